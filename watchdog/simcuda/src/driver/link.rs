//! The connection of this process to the daemon: requests out, replies and notices in, from any thread.
//!
//! One thread reads. It also does what an operation does to the program's memory (copies, built-in kernels), in the
//! order in which operations end, so that whoever waits for an operation finds its effect done. Host functions run
//! on a thread of their own, since they may take long.

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use gpu_share::units::Nanos;

use crate::card::Device;
use crate::signals::without_signals;
use crate::socket::send_all;
use crate::wire::{self, HELLO, Reply, Request, Task, status};

use super::{CudaError, Result};

/// What an operation does in this process when its time on the GPU is over.
pub(crate) type Effect = Arc<dyn Fn() + Send + Sync>;

/// What a stream waits for.
pub(crate) type Condition = Arc<dyn Fn() -> bool + Send + Sync>;

/// How often conditions are looked at.
const LOOK: std::time::Duration = std::time::Duration::from_micros(100);

type Answer = (u32, [u64; 2]);

/// The latest record of an event: its number, and when it was done, as far as that is known.
#[derive(Clone, Copy, Debug)]
struct Record {
    tag: u64,
    at: Option<Nanos>,
}

/// A host function that is due.
struct Due {
    gpu: u8,
    stream: u32,
    effect: Option<Effect>,
    condition: Option<Condition>,
}

pub(crate) struct Link {
    socket: UnixStream,
    /// Holds the bytes of the request that is being written; its lock keeps requests whole and in order.
    out: Mutex<Vec<u8>>,
    waiting: Mutex<HashMap<u64, mpsc::Sender<Answer>>>,
    effects: Mutex<HashMap<u64, Effect>>,
    conditions: Mutex<HashMap<u64, Condition>>,
    /// Of events that were recorded. A real driver finds the times of events in memory that the GPU writes.
    records: Mutex<HashMap<u32, Record>>,
    numbers: AtomicU64,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("socket", &self.socket).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// Connects and reads which GPUs there are.
    pub(crate) fn connect(path: &str) -> std::io::Result<(Arc<Self>, Vec<Device>)> {
        let socket = UnixStream::connect(path)?;
        send_all(&socket, &[HELLO])?;
        let mut inbox = Inbox::new(socket.try_clone()?);
        let Reply::Welcome { devices } = inbox.next()? else {
            return Err(std::io::Error::other("the daemon did not say which GPUs it has"));
        };
        let devices = serde_json::from_str(&devices)?;
        let link = Arc::new(Self {
            socket,
            out: Mutex::default(),
            waiting: Mutex::default(),
            effects: Mutex::default(),
            conditions: Mutex::default(),
            records: Mutex::default(),
            numbers: AtomicU64::new(1),
        });
        let (due, functions) = mpsc::channel();
        let (reader, caller) = (Arc::clone(&link), Arc::clone(&link));
        without_signals(|| {
            let builder = || std::thread::Builder::new().name("simcuda".into());
            builder().spawn(move || caller.call_host_functions(&functions))?;
            builder().spawn(move || reader.read(inbox, &due))
        })?;
        Ok((link, devices))
    }

    /// The file descriptor, for a child process to close.
    pub(crate) fn descriptor(&self) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(&self.socket)
    }

    /// Sends a request that has no answer.
    pub(crate) fn send(&self, request: &Request) -> Result {
        let mut out = lock(&self.out);
        out.clear();
        request.encode(&mut out);
        send_all(&self.socket, &out).map_err(|_| CudaError::DEVICE_UNAVAILABLE)
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn call(&self, request: impl FnOnce(u64) -> Request) -> Result<[u64; 2]> {
        let token = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = mpsc::channel();
        lock(&self.waiting).insert(token, sender);
        let sent = self.send(&request(token));
        if sent.is_err() {
            lock(&self.waiting).remove(&token);
        }
        sent?;
        let (status, values) = answer.recv().map_err(|_| CudaError::DEVICE_UNAVAILABLE)?;
        match status {
            status::OK => Ok(values),
            status::OUT_OF_MEMORY => Err(CudaError::OUT_OF_MEMORY),
            status::NOT_READY => Err(CudaError::NOT_READY),
            _ => Err(CudaError::INVALID_HANDLE),
        }
    }

    /// Queues an operation on a stream.
    pub(crate) fn submit(&self, gpu: u8, stream: u32, task: Task, effect: Option<Effect>) -> Result {
        let tag = self.numbers.fetch_add(1, Ordering::Relaxed);
        let notify = effect.is_some() && task != Task::Host;
        if let Some(effect) = effect {
            lock(&self.effects).insert(tag, effect);
        }
        let request = Request::Submit { gpu, stream, tag, notify, task };
        let Task::Record(event) = task else { return self.send(&request) };
        // Records of one event are sent in the order in which they are noted here.
        let mut records = lock(&self.records);
        records.insert(event, Record { tag, at: None });
        self.send(&request)
    }

    /// When the latest record of an event was done, if that is known to be over.
    pub(crate) fn recorded_at(&self, event: u32) -> Option<Nanos> {
        lock(&self.records).get(&event)?.at
    }

    /// The event is gone.
    pub(crate) fn forget_event(&self, gpu: u8, event: u32) -> Result {
        lock(&self.records).remove(&event);
        self.send(&Request::DestroyEvent { gpu, event })
    }

    /// Queues a wait for a condition on a stream.
    pub(crate) fn submit_wait(&self, gpu: u8, stream: u32, condition: Condition) -> Result {
        let tag = self.numbers.fetch_add(1, Ordering::Relaxed);
        lock(&self.conditions).insert(tag, condition);
        self.send(&Request::Submit { gpu, stream, tag, notify: false, task: Task::Host })
    }

    fn read(&self, mut inbox: Inbox, due: &mpsc::Sender<Due>) {
        while let Ok(reply) = inbox.next() {
            match reply {
                Reply::Done { token, status, values } => {
                    if let Some(waiter) = lock(&self.waiting).remove(&token) {
                        // A waiter that has gone needs no answer.
                        let _ = waiter.send((status, values));
                    }
                }
                Reply::Completed { tag, .. } => {
                    let effect = lock(&self.effects).remove(&tag);
                    if let Some(effect) = effect {
                        effect();
                    }
                }
                Reply::Recorded { event, tag, at } => {
                    if let Some(record) =
                        lock(&self.records).get_mut(&event).filter(|record| record.tag == tag)
                    {
                        record.at = Some(at);
                    }
                }
                Reply::HostDue { gpu, stream, tag } => {
                    let effect = lock(&self.effects).remove(&tag);
                    // The thread that calls them lives as long as this one.
                    let condition = lock(&self.conditions).remove(&tag);
                    let _ = due.send(Due { gpu, stream, effect, condition });
                }
                Reply::Welcome { .. } => break,
            }
        }
        // The daemon is gone: whoever waits learns it, and so does whoever asks from now on.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let mut waiting = lock(&self.waiting);
        waiting.clear();
    }

    fn call_host_functions(&self, due: &mpsc::Receiver<Due>) {
        let mut waiting: Vec<Due> = Vec::new();
        loop {
            let next = if waiting.is_empty() {
                due.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
            } else {
                due.recv_timeout(LOOK)
            };
            match next {
                Ok(one) => {
                    if let Some(function) = &one.effect {
                        function();
                    }
                    waiting.push(one);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            let holds = |one: &mut Due| one.condition.as_ref().is_none_or(|condition| condition());
            for Due { gpu, stream, .. } in waiting.extract_if(.., holds) {
                if self.send(&Request::HostDone { gpu, stream }).is_err() {
                    return;
                }
            }
        }
    }
}

/// Reads whole replies from the socket.
struct Inbox {
    socket: UnixStream,
    buffer: Vec<u8>,
    start: usize,
}

impl Inbox {
    fn new(socket: UnixStream) -> Self {
        Self { socket, buffer: Vec::new(), start: 0 }
    }

    fn next(&mut self) -> std::io::Result<Reply> {
        loop {
            let frame = wire::split_frame(&self.buffer[self.start..]).map_err(std::io::Error::other)?;
            if let Some((frame, used)) = frame {
                let reply = Reply::decode(frame).map_err(std::io::Error::other)?;
                self.start += used;
                return Ok(reply);
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            let mut chunk = [0; 4096];
            match self.socket.read(&mut chunk)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                n => self.buffer.extend_from_slice(&chunk[..n]),
            }
        }
    }
}
