//! One connection: reads its requests and lets the model act on them. A connection is a client until it closes.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use gpu_share::units::{Bytes, SmShare};
use rustix::net::sockopt::socket_peercred;
use serde::Deserialize;

use super::outbox::Outbox;
use super::{Shared, State, monotonic};
use crate::cost::Launch;
use crate::fault::Order;
use crate::gpu::{
    ClientId, ContextId, EventId, Gpu, GpuError, MemoryError, NewContext, Scope, StreamId, StreamKind, Work,
};
use crate::wire::{self, HELLO, Reply, Request, Target, Task, status};

/// What a connection may ask for in JSON.
#[derive(Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
enum Question {
    Stats,
    /// Xid events after a number, waited for.
    Events {
        after: u64,
        wait_ms: u64,
    },
    #[serde(untagged)]
    Order(Order),
}

pub(super) fn serve(mut stream: &UnixStream, shared: &Shared) {
    let mut first = [0];
    let result = match stream.read(&mut first) {
        Ok(0) => Ok(()),
        Ok(_) if first[0] == HELLO => serve_client(stream, shared),
        Ok(_) if first[0] == b'{' => answer_questions(stream, shared),
        Ok(_) => Err(io::Error::other("neither a client nor JSON")),
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        tracing::info!(%error, "connection closed");
    }
}

fn answer_questions(stream: &UnixStream, shared: &Shared) -> io::Result<()> {
    // The first byte of the first line has been read already.
    let lines = BufReader::new((&b"{"[..]).chain(stream)).take(1 << 20);
    for line in lines.lines() {
        let answer = match serde_json::from_str(&line?) {
            Ok(Question::Stats) => serde_json::to_string(&shared.stats())?,
            Ok(Question::Events { after, wait_ms }) => {
                serde_json::to_string(&shared.faults.events(after, Duration::from_millis(wait_ms)))?
            }
            Ok(Question::Order(order)) => match shared.faults.obey(order, &shared.devices) {
                Ok(()) => serde_json::json!({ "done": true }).to_string(),
                Err(error) => serde_json::json!({ "error": error }).to_string(),
            },
            Err(error) => serde_json::json!({ "error": error.to_string() }).to_string(),
        };
        let mut out = stream;
        out.write_all(format!("{answer}\n").as_bytes())?;
    }
    Ok(())
}

fn serve_client(stream: &UnixStream, shared: &Shared) -> io::Result<()> {
    let pid = u32::try_from(socket_peercred(stream)?.pid.as_raw_nonzero().get()).unwrap_or_default();
    let mut outbox = Outbox::new(stream.try_clone()?);
    outbox.send(&Reply::Welcome { devices: serde_json::to_string(&shared.devices)? });
    let id = shared.lock().connect(pid, outbox);
    tracing::info!(pid, "client connected");
    let result = Session { id, shared, kernels: HashMap::new() }.run(stream);
    let mut state = shared.lock();
    state.disconnect(id);
    shared.publish(&mut state);
    tracing::info!(pid, "client gone");
    result
}

struct Session<'a> {
    id: ClientId,
    shared: &'a Shared,
    kernels: HashMap<u32, String>,
}

impl Session<'_> {
    fn run(&mut self, mut stream: &UnixStream) -> io::Result<()> {
        let mut buffer = Vec::new();
        let mut chunk = vec![0; wire::LONGEST];
        loop {
            let n = stream.read(&mut chunk)?;
            if n == 0 {
                return Ok(());
            }
            buffer.extend_from_slice(&chunk[..n]);
            let used = self.handle_all(&buffer)?;
            buffer.drain(..used);
        }
    }

    /// Handles all whole frames under one lock. Returns the bytes they took.
    fn handle_all(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let shared = self.shared;
        let mut state = shared.lock();
        let mut used = 0;
        while let Some((frame, length)) = wire::split_frame(&buffer[used..]).map_err(io::Error::other)? {
            used += length;
            let request = Request::decode(frame).map_err(io::Error::other)?;
            self.handle(&mut state, request)?;
        }
        shared.publish(&mut state);
        Ok(used)
    }

    fn handle(&mut self, state: &mut State, request: Request) -> io::Result<()> {
        let (now, id) = (monotonic(), self.id);
        match request {
            Request::Kernel { id, name } => {
                self.kernels.insert(id, name);
            }
            Request::CreateContext { token, gpu, context, legacy, sm, green } => {
                let sm = SmShare::from_percent(sm).unwrap_or(SmShare::WHOLE);
                let wanted = NewContext { id: ContextId(context), legacy: StreamId(legacy), sm, green };
                let made = model(state, gpu)?.create_context(now, id, wanted, token);
                self.refuse(state, token, made);
            }
            Request::DestroyContext { token, gpu, context } => {
                let ended = model(state, gpu)?.destroy_context(now, id, ContextId(context));
                self.answer(state, token, ended.map(|()| [0; 2]));
            }
            Request::CreateStream { gpu, context, stream, kind } => {
                let kind = if kind == 0 { StreamKind::Blocking } else { StreamKind::NonBlocking };
                let made = model(state, gpu)?.create_stream(id, ContextId(context), StreamId(stream), kind);
                made.map_err(io::Error::other)?;
            }
            // A stream or an event of a context that has been destroyed is gone already.
            Request::DestroyStream { gpu, stream } => {
                let _ = model(state, gpu)?.destroy_stream(id, StreamId(stream));
            }
            Request::DestroyEvent { gpu, event } => model(state, gpu)?.destroy_event(id, EventId(event)),
            Request::Allocate { token, gpu, bytes } => {
                let taken = model(state, gpu)?.allocate(now, id, Bytes(bytes));
                self.answer(state, token, taken.map(|()| [0; 2]));
            }
            Request::Free { gpu, bytes } => {
                model(state, gpu)?.free(id, Bytes(bytes)).map_err(io::Error::other)?;
            }
            Request::Memory { token, gpu } => {
                let (free, total) = state.free_memory(gpu.into()).ok_or_else(|| no_gpu(gpu))?;
                self.answer(state, token, Ok([free.0, total.0]));
            }
            Request::Submit { gpu, stream, tag, notify, task } => {
                self.submit(model(state, gpu)?, StreamId(stream), tag, notify, task)?;
            }
            Request::HostDone { gpu, stream } => model(state, gpu)?.host_done(now, id, StreamId(stream)),
            Request::Watch { token, gpu, scope } => {
                let watched = model(state, gpu)?.watch(now, id, scope.into(), token);
                self.refuse(state, token, watched);
            }
            Request::Query { token, gpu, scope } => {
                let done = model(state, gpu)?.is_done(now, id, scope.into());
                self.answer_query(state, token, done);
            }
            Request::EventTime { token, gpu, event } => {
                let time = model(state, gpu)?.event_time(now, id, EventId(event));
                self.answer(state, token, time.map(|at| [at.0, 0]));
            }
        }
        Ok(())
    }

    fn submit(&self, gpu: &mut Gpu, stream: StreamId, tag: u64, notify: bool, task: Task) -> io::Result<()> {
        let work = match task {
            Task::Launch { kernel, grid, argument } => {
                let kernel = self.kernels.get(&kernel).map_or("", String::as_str);
                let sm = gpu.sm_share(self.id, stream).map_err(io::Error::other)?;
                Work::Kernel { time: self.shared.costs.time(&Launch { kernel, grid, argument }, sm) }
            }
            Task::CopyIn(bytes) => Work::CopyIn(Bytes(bytes)),
            Task::CopyOut(bytes) => Work::CopyOut(Bytes(bytes)),
            Task::CopyWithin(bytes) => Work::CopyWithin(Bytes(bytes)),
            Task::Record(event) => Work::Record(EventId(event)),
            Task::Wait(event) => Work::Wait(EventId(event)),
            Task::Host => Work::Host,
            Task::Release(bytes) => Work::Release(Bytes(bytes)),
        };
        gpu.submit(monotonic(), self.id, stream, work, tag, notify).map_err(io::Error::other)
    }

    /// Answers at once if the model refuses; what it accepts is answered by a notice later.
    fn refuse(&self, state: &mut State, token: u64, result: Result<(), GpuError>) {
        if let Err(error) = result {
            self.answer(state, token, Err(error));
        }
    }

    fn answer_query(&self, state: &mut State, token: u64, done: Result<bool, GpuError>) {
        match done {
            Ok(false) => self.reply(state, token, status::NOT_READY, [0; 2]),
            done => self.answer(state, token, done.map(|_| [0; 2])),
        }
    }

    fn answer(&self, state: &mut State, token: u64, result: Result<[u64; 2], GpuError>) {
        match result {
            Ok(values) => self.reply(state, token, status::OK, values),
            Err(GpuError::Memory(MemoryError::OutOfMemory { .. })) => {
                self.reply(state, token, status::OUT_OF_MEMORY, [0; 2]);
            }
            Err(GpuError::PendingEvent(_)) => self.reply(state, token, status::NOT_READY, [0; 2]),
            Err(error) => {
                tracing::debug!(%error, "request refused");
                self.reply(state, token, status::INVALID, [0; 2]);
            }
        }
    }

    /// Sends a reply after all notices that came before it, so that a client never sees them in the wrong order.
    fn reply(&self, state: &mut State, token: u64, status: u32, values: [u64; 2]) {
        state.deliver();
        if let Some(peer) = state.peers.get_mut(&self.id) {
            peer.outbox.send(&Reply::Done { token, status, values });
        }
    }
}

fn model(state: &mut State, gpu: u8) -> io::Result<&mut Gpu> {
    state.gpus.get_mut(usize::from(gpu)).ok_or_else(|| no_gpu(gpu))
}

fn no_gpu(gpu: u8) -> io::Error {
    io::Error::other(format!("GPU {gpu} does not exist"))
}

impl From<Target> for Scope {
    fn from(target: Target) -> Self {
        match target {
            Target::Stream(id) => Self::Stream(StreamId(id)),
            Target::Context(id) => Self::Context(ContextId(id)),
            Target::Event(id) => Self::Event(EventId(id)),
            Target::Room(id) => Self::Room(StreamId(id)),
        }
    }
}
