//! Messages between client and daemon: little-endian frames, each with its length in front.
//!
//! A launch is one small frame without an answer, so this is binary; what is read by people or by tools is JSON
//! ([`crate::stats`]).

use gpu_share::units::Nanos;

/// The first byte of a client's connection, before its first frame; a JSON connection begins with `{`.
pub const HELLO: u8 = b'G';

/// The longest frame that is accepted.
pub const LONGEST: usize = 1 << 16;

/// How a request ended.
pub mod status {
    /// Done.
    pub const OK: u32 = 0;
    /// The card is full.
    pub const OUT_OF_MEMORY: u32 = 1;
    /// Not done yet (answer to a query).
    pub const NOT_READY: u32 = 2;
    /// A handle is unknown, or an event was never recorded.
    pub const INVALID: u32 = 3;
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame: {0}")]
pub struct Malformed(pub &'static str);

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are named as in the model, which documents them.
pub enum Request {
    /// Gives a kernel's name a number, for this connection.
    Kernel {
        id: u32,
        name: String,
    },
    CreateContext {
        token: u64,
        gpu: u8,
        context: u32,
        legacy: u32,
        sm: u8,
        green: bool,
    },
    DestroyContext {
        token: u64,
        gpu: u8,
        context: u32,
    },
    CreateStream {
        gpu: u8,
        context: u32,
        stream: u32,
        kind: u8,
    },
    DestroyStream {
        gpu: u8,
        stream: u32,
    },
    DestroyEvent {
        gpu: u8,
        event: u32,
    },
    Allocate {
        token: u64,
        gpu: u8,
        bytes: u64,
    },
    Free {
        gpu: u8,
        bytes: u64,
    },
    Memory {
        token: u64,
        gpu: u8,
    },
    Submit {
        gpu: u8,
        stream: u32,
        tag: u64,
        notify: bool,
        task: Task,
    },
    HostDone {
        gpu: u8,
        stream: u32,
    },
    /// Answered when all of the scope is done.
    Watch {
        token: u64,
        gpu: u8,
        scope: Target,
    },
    /// Answered at once: done, or not ready.
    Query {
        token: u64,
        gpu: u8,
        scope: Target,
    },
    EventTime {
        token: u64,
        gpu: u8,
        event: u32,
    },
}

/// One operation of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Task {
    Launch { kernel: u32, grid: [u32; 3], argument: u32 },
    CopyIn(u64),
    CopyOut(u64),
    CopyWithin(u64),
    Record(u32),
    Wait(u32),
    Host,
    Release(u64),
}

/// What is waited for or asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Target {
    Stream(u32),
    Context(u32),
    Event(u32),
    Room(u32),
}

/// What the daemon tells a client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reply {
    /// The GPUs, as JSON; the first message on a connection.
    Welcome { devices: String },
    /// The answer to a request: a [`status`] and two values.
    Done { token: u64, status: u32, values: [u64; 2] },
    /// An operation is done that asked for it.
    Completed { tag: u64, at: Nanos },
    /// A host function is due.
    HostDue { gpu: u8, stream: u32, tag: u64 },
    /// The latest record of an event is done. Comes along with whatever comes next.
    Recorded { event: u32, tag: u64, at: Nanos },
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Writer<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend([0; 4]);
        Self { out, start }
    }

    fn u8(self, value: u8) -> Self {
        self.out.push(value);
        self
    }

    fn u32(self, value: u32) -> Self {
        self.out.extend(value.to_le_bytes());
        self
    }

    fn u64(self, value: u64) -> Self {
        self.out.extend(value.to_le_bytes());
        self
    }

    fn text(self, text: &str) -> Self {
        self.out.extend(text.as_bytes());
        self
    }

    fn end(self) {
        let length = u32::try_from(self.out.len() - self.start - 4).unwrap_or(u32::MAX);
        self.out[self.start..self.start + 4].copy_from_slice(&length.to_le_bytes());
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Malformed("too short"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let text =
            std::str::from_utf8(std::mem::take(&mut self.0)).map_err(|_| Malformed("text is not UTF-8"))?;
        Ok(text.into())
    }

    fn end<T>(&self, message: T) -> Result<T, Malformed> {
        if self.0.is_empty() { Ok(message) } else { Err(Malformed("too long")) }
    }
}

/// The first whole frame of `buffer` without its length, and the bytes it takes; none if it is not complete.
pub fn split_frame(buffer: &[u8]) -> Result<Option<(&[u8], usize)>, Malformed> {
    let Some((length, rest)) = buffer.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > LONGEST {
        return Err(Malformed("longer than allowed"));
    }
    Ok(rest.get(..length).map(|frame| (frame, length + 4)))
}

impl Task {
    fn encode(self, out: Writer<'_>) -> Writer<'_> {
        match self {
            Self::Launch { kernel, grid: [x, y, z], argument } => {
                out.u8(0).u32(kernel).u32(x).u32(y).u32(z).u32(argument)
            }
            Self::CopyIn(bytes) => out.u8(1).u64(bytes),
            Self::CopyOut(bytes) => out.u8(2).u64(bytes),
            Self::CopyWithin(bytes) => out.u8(3).u64(bytes),
            Self::Record(event) => out.u8(4).u32(event),
            Self::Wait(event) => out.u8(5).u32(event),
            Self::Host => out.u8(6),
            Self::Release(bytes) => out.u8(7).u64(bytes),
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match from.u8()? {
            0 => Self::Launch {
                kernel: from.u32()?,
                grid: [from.u32()?, from.u32()?, from.u32()?],
                argument: from.u32()?,
            },
            1 => Self::CopyIn(from.u64()?),
            2 => Self::CopyOut(from.u64()?),
            3 => Self::CopyWithin(from.u64()?),
            4 => Self::Record(from.u32()?),
            5 => Self::Wait(from.u32()?),
            6 => Self::Host,
            7 => Self::Release(from.u64()?),
            _ => return Err(Malformed("unknown task")),
        })
    }
}

impl Target {
    fn encode(self, out: Writer<'_>) -> Writer<'_> {
        match self {
            Self::Stream(id) => out.u8(0).u32(id),
            Self::Context(id) => out.u8(1).u32(id),
            Self::Event(id) => out.u8(2).u32(id),
            Self::Room(id) => out.u8(3).u32(id),
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let kind = from.u8()?;
        let id = from.u32()?;
        match kind {
            0 => Ok(Self::Stream(id)),
            1 => Ok(Self::Context(id)),
            2 => Ok(Self::Event(id)),
            3 => Ok(Self::Room(id)),
            _ => Err(Malformed("unknown target")),
        }
    }
}

impl Request {
    /// Appends the request to `out` as one frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let w = Writer::new(out);
        match *self {
            Self::Kernel { id, ref name } => w.u8(0).u32(id).text(name),
            Self::CreateContext { token, gpu, context, legacy, sm, green } => {
                w.u8(1).u64(token).u8(gpu).u32(context).u32(legacy).u8(sm).u8(green.into())
            }
            Self::DestroyContext { token, gpu, context } => w.u8(2).u64(token).u8(gpu).u32(context),
            Self::CreateStream { gpu, context, stream, kind } => {
                w.u8(3).u8(gpu).u32(context).u32(stream).u8(kind)
            }
            Self::DestroyStream { gpu, stream } => w.u8(4).u8(gpu).u32(stream),
            Self::DestroyEvent { gpu, event } => w.u8(5).u8(gpu).u32(event),
            Self::Allocate { token, gpu, bytes } => w.u8(6).u64(token).u8(gpu).u64(bytes),
            Self::Free { gpu, bytes } => w.u8(7).u8(gpu).u64(bytes),
            Self::Memory { token, gpu } => w.u8(8).u64(token).u8(gpu),
            Self::Submit { gpu, stream, tag, notify, task } => {
                task.encode(w.u8(9).u8(gpu).u32(stream).u64(tag).u8(notify.into()))
            }
            Self::HostDone { gpu, stream } => w.u8(10).u8(gpu).u32(stream),
            Self::Watch { token, gpu, scope } => scope.encode(w.u8(11).u64(token).u8(gpu)),
            Self::Query { token, gpu, scope } => scope.encode(w.u8(12).u64(token).u8(gpu)),
            Self::EventTime { token, gpu, event } => w.u8(13).u64(token).u8(gpu).u32(event),
        }
        .end();
    }

    /// Reads a request from a frame without its length.
    pub fn decode(frame: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader(frame);
        let request = match r.u8()? {
            0 => Self::Kernel { id: r.u32()?, name: r.text()? },
            1 => Self::CreateContext {
                token: r.u64()?,
                gpu: r.u8()?,
                context: r.u32()?,
                legacy: r.u32()?,
                sm: r.u8()?,
                green: r.u8()? != 0,
            },
            2 => Self::DestroyContext { token: r.u64()?, gpu: r.u8()?, context: r.u32()? },
            3 => Self::CreateStream { gpu: r.u8()?, context: r.u32()?, stream: r.u32()?, kind: r.u8()? },
            4 => Self::DestroyStream { gpu: r.u8()?, stream: r.u32()? },
            5 => Self::DestroyEvent { gpu: r.u8()?, event: r.u32()? },
            6 => Self::Allocate { token: r.u64()?, gpu: r.u8()?, bytes: r.u64()? },
            7 => Self::Free { gpu: r.u8()?, bytes: r.u64()? },
            8 => Self::Memory { token: r.u64()?, gpu: r.u8()? },
            9 => Self::Submit {
                gpu: r.u8()?,
                stream: r.u32()?,
                tag: r.u64()?,
                notify: r.u8()? != 0,
                task: Task::decode(&mut r)?,
            },
            10 => Self::HostDone { gpu: r.u8()?, stream: r.u32()? },
            11 => Self::Watch { token: r.u64()?, gpu: r.u8()?, scope: Target::decode(&mut r)? },
            12 => Self::Query { token: r.u64()?, gpu: r.u8()?, scope: Target::decode(&mut r)? },
            13 => Self::EventTime { token: r.u64()?, gpu: r.u8()?, event: r.u32()? },
            _ => return Err(Malformed("unknown request")),
        };
        r.end(request)
    }
}

impl Reply {
    /// Appends the reply to `out` as one frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let w = Writer::new(out);
        match *self {
            Self::Welcome { ref devices } => w.u8(0).text(devices),
            Self::Done { token, status, values } => {
                w.u8(1).u64(token).u32(status).u64(values[0]).u64(values[1])
            }
            Self::Completed { tag, at } => w.u8(2).u64(tag).u64(at.0),
            Self::HostDue { gpu, stream, tag } => w.u8(3).u8(gpu).u32(stream).u64(tag),
            Self::Recorded { event, tag, at } => w.u8(4).u32(event).u64(tag).u64(at.0),
        }
        .end();
    }

    /// Reads a reply from a frame without its length.
    pub fn decode(frame: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader(frame);
        let reply = match r.u8()? {
            0 => Self::Welcome { devices: r.text()? },
            1 => Self::Done { token: r.u64()?, status: r.u32()?, values: [r.u64()?, r.u64()?] },
            2 => Self::Completed { tag: r.u64()?, at: Nanos(r.u64()?) },
            3 => Self::HostDue { gpu: r.u8()?, stream: r.u32()?, tag: r.u64()? },
            4 => Self::Recorded { event: r.u32()?, tag: r.u64()?, at: Nanos(r.u64()?) },
            _ => return Err(Malformed("unknown reply")),
        };
        r.end(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn task() -> impl Strategy<Value = Task> {
        prop_oneof![
            any::<(u32, [u32; 3], u32)>().prop_map(|(kernel, grid, argument)| Task::Launch {
                kernel,
                grid,
                argument
            }),
            any::<u64>().prop_map(Task::CopyIn),
            any::<u64>().prop_map(Task::CopyOut),
            any::<u64>().prop_map(Task::CopyWithin),
            any::<u32>().prop_map(Task::Record),
            any::<u32>().prop_map(Task::Wait),
            Just(Task::Host),
            any::<u64>().prop_map(Task::Release),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_to_the_same(
            (gpu, stream, tag, notify) in any::<(u8, u32, u64, bool)>(), task in task(), name in "[a-z_]{0,20}",
        ) {
            let requests = [
                Request::Submit { gpu, stream, tag, notify, task },
                Request::Kernel { id: stream, name },
                Request::CreateContext { token: tag, gpu, context: stream, legacy: 7, sm: gpu, green: notify },
                Request::Watch { token: tag, gpu, scope: Target::Room(stream) },
            ];
            let mut bytes = Vec::new();
            for request in &requests {
                request.encode(&mut bytes);
            }
            let mut rest = &bytes[..];
            for request in &requests {
                let (frame, used) = split_frame(rest).unwrap().unwrap();
                prop_assert_eq!(&Request::decode(frame).unwrap(), request);
                rest = &rest[used..];
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn a_reply_that_is_encoded_is_decoded_to_the_same(
            (gpu, id, tag, at, values) in any::<(u8, u32, u64, u64, [u64; 2])>(),
        ) {
            let at = Nanos(at);
            let replies = [
                Reply::Done { token: tag, status: id, values },
                Reply::Completed { tag, at },
                Reply::HostDue { gpu, stream: id, tag },
                Reply::Recorded { event: id, tag, at },
            ];
            for reply in replies {
                let mut bytes = Vec::new();
                reply.encode(&mut bytes);
                let (frame, used) = split_frame(&bytes).unwrap().unwrap();
                prop_assert_eq!((Reply::decode(frame).unwrap(), used), (reply, bytes.len()));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = split_frame(&bytes);
            let _ = Request::decode(&bytes);
            let _ = Reply::decode(&bytes);
        }
    }
}
