//! The process that holds the GPUs: connections in, notices out, and the thread that keeps the timeline.
//!
//! What happens on a GPU is decided in [`crate::gpu`]; here are the clock, the threads and the sockets.

mod connection;
mod faults;
mod outbox;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gpu_share::units::{Bytes, Nanos};

use crate::card::{Card, Device};
use crate::cost::Costs;
use crate::gpu::{ClientId, Config, Gpu, Mode, Notice};
use crate::stats::{ClientStats, GpuStats, Stats};
use crate::wire::{Reply, status};

use self::faults::FaultBook;
use self::outbox::Outbox;

/// How many processes that have ended stay in the statistics.
const REMEMBERED: usize = 64;

/// How soon a reply is tried again that a client did not take.
const RETRY: Nanos = Nanos::from_millis(1);

/// What a daemon simulates.
#[derive(Debug)]
pub struct Options {
    /// Where it listens.
    pub socket: PathBuf,
    /// Number of GPUs.
    pub gpus: u32,
    /// What kind of card they are.
    pub card: Card,
    /// How each behaves.
    pub config: Config,
    /// How long kernels take.
    pub costs: Costs,
    /// Where the lines go that a driver would write to the kernel's log, if anywhere.
    pub kernel_log: Option<File>,
}

/// A daemon that listens but does not serve yet.
#[derive(Debug)]
pub struct Daemon {
    listener: UnixListener,
    shared: Arc<Shared>,
    socket: PathBuf,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    costs: Costs,
    devices: Vec<Device>,
    mode: Mode,
    faults: FaultBook,
}

#[derive(Debug)]
struct Peer {
    pid: u32,
    outbox: Outbox,
}

#[derive(Debug, Default)]
struct State {
    gpus: Vec<Gpu>,
    peers: BTreeMap<ClientId, Peer>,
    gone: VecDeque<(ClientId, u32)>,
    clients: u32,
    /// When the timeline thread wakes up by itself.
    armed: Option<Nanos>,
    stopping: bool,
}

/// The monotonic clock, which all processes of a machine share.
pub(crate) fn monotonic() -> Nanos {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or_default();
    Nanos::from_secs(part(now.tv_sec)) + Nanos(part(now.tv_nsec))
}

impl Daemon {
    /// Binds the socket. A socket that a dead daemon left behind is replaced.
    pub fn bind(options: Options) -> io::Result<Self> {
        remove_stale(&options.socket)?;
        let listener = UnixListener::bind(&options.socket)?;
        let device = |index| Device::new(&options.card, options.config.memory, &options.socket, index);
        let mode = options.config.mode;
        let state = State {
            gpus: (0..options.gpus).map(|_| Gpu::new(options.config.clone())).collect(),
            ..State::default()
        };
        let shared = Shared {
            state: Mutex::new(state),
            wake: Condvar::new(),
            costs: options.costs,
            devices: (0..options.gpus).map(device).collect(),
            mode,
            faults: FaultBook::new(options.gpus as usize, options.kernel_log),
        };
        Ok(Self { listener, shared: Arc::new(shared), socket: options.socket })
    }

    /// Starts the threads that serve. They live until the process ends or [`Daemon::stop`].
    pub fn start(&self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        std::thread::Builder::new().name("timeline".into()).spawn(move || keep_timeline(&shared))?;
        let shared = Arc::clone(&self.shared);
        let listener = self.listener.try_clone()?;
        std::thread::Builder::new().name("accept".into()).spawn(move || accept(&listener, &shared))?;
        Ok(())
    }

    /// Ends the timeline and removes the socket.
    pub fn stop(self) -> io::Result<()> {
        self.shared.lock().stopping = true;
        self.shared.wake.notify_all();
        std::fs::remove_file(&self.socket)
    }
}

fn remove_stale(socket: &Path) -> io::Result<()> {
    let Ok(entry) = std::fs::symlink_metadata(socket) else { return Ok(()) };
    if !entry.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is no socket"));
    }
    match UnixStream::connect(socket) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
        Err(_) => std::fs::remove_file(socket),
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let shared = Arc::clone(shared);
        let served = std::thread::Builder::new()
            .name("client".into())
            .spawn(move || connection::serve(&stream, &shared));
        if let Err(error) = served {
            tracing::warn!(%error, "no thread for a new connection");
        }
    }
}

/// Wakes up whenever somebody has to be told something.
fn keep_timeline(shared: &Shared) {
    shorten_timer_slack();
    let mut state = shared.lock();
    while !state.stopping {
        let now = monotonic();
        for gpu in &mut state.gpus {
            gpu.advance(now);
        }
        state.deliver();
        let retry = state.peers.values_mut().any(|peer| !peer.outbox.flush()).then(|| now + RETRY);
        state.armed = state.next_notice().into_iter().chain(retry).min();
        state = match state.armed {
            None => shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(at) => {
                let span = Duration::from(at.since(monotonic()));
                shared.wake.wait_timeout(state, span).unwrap_or_else(PoisonError::into_inner).0
            }
        };
    }
}

/// By default Linux lets a thread sleep 50 µs longer than asked.
fn shorten_timer_slack() {
    // SAFETY: PR_SET_TIMERSLACK takes one integer and changes this thread alone.
    let refused = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000_u64) };
    if refused != 0 {
        tracing::debug!("the timer slack stays as it is");
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells clients what there is to tell, and wakes the timeline up if it would sleep too long.
    fn publish(&self, state: &mut State) {
        state.deliver();
        let retry = state.peers.values().any(|peer| peer.outbox.is_behind()).then(|| monotonic() + RETRY);
        let next = state.next_notice().into_iter().chain(retry).min();
        if next.is_some_and(|at| state.armed.is_none_or(|armed| at < armed)) {
            self.wake.notify_one();
        }
    }

    fn stats(&self) -> Stats {
        let mut state = self.lock();
        let now = monotonic();
        let known: Vec<(ClientId, u32, bool)> = state
            .gone
            .iter()
            .map(|&(id, pid)| (id, pid, false))
            .chain(state.peers.iter().map(|(&id, peer)| (id, peer.pid, true)))
            .collect();
        let faults = self.faults.lock().clone();
        let mut gpus = Vec::new();
        for (index, (gpu, device)) in state.gpus.iter_mut().zip(&self.devices).enumerate() {
            gpu.advance(now);
            let clients = known.iter().map(|&(id, pid, alive)| client_stats(gpu, id, pid, alive));
            let (free, total) = gpu.memory();
            gpus.push(GpuStats {
                device: device.clone(),
                memory_used: total.saturating_sub(free).0,
                busy_ns: gpu.busy().0,
                utilization: gpu.utilization(),
                lost: faults.condition(index).lost,
                recovery: faults.condition(index).recovery,
                clients: clients.collect(),
            });
        }
        self.publish(&mut state);
        let mode = if self.mode == Mode::Mps { "mps" } else { "exclusive" };
        Stats { mode: mode.into(), now_ns: now.0, hung: faults.hung(), events: faults.count(), gpus }
    }
}

fn client_stats(gpu: &Gpu, id: ClientId, pid: u32, alive: bool) -> ClientStats {
    let usage = gpu.usage(id);
    ClientStats {
        pid,
        alive,
        busy_ns: usage.busy.0,
        memory: usage.memory.0,
        kernels: usage.kernels,
        running: usage.running,
        pending: usage.pending,
        contexts: usage.contexts,
        utilization: usage.utilization,
    }
}

impl State {
    fn next_notice(&self) -> Option<Nanos> {
        self.gpus.iter().filter_map(Gpu::next_notice).min()
    }

    /// Sends the notices of all GPUs.
    fn deliver(&mut self) {
        for (index, gpu) in self.gpus.iter_mut().enumerate() {
            let index = u8::try_from(index).unwrap_or(u8::MAX);
            for notice in gpu.take_notices() {
                let (client, reply) = reply(index, &notice);
                let Some(peer) = self.peers.get_mut(&client) else { continue };
                match reply {
                    Reply::Recorded { .. } => peer.outbox.add(&reply),
                    _ => peer.outbox.send(&reply),
                }
            }
        }
    }

    fn connect(&mut self, pid: u32, outbox: Outbox) -> ClientId {
        self.clients += 1;
        let id = ClientId(self.clients);
        self.peers.insert(id, Peer { pid, outbox });
        for gpu in &mut self.gpus {
            gpu.connect(id);
        }
        id
    }

    fn disconnect(&mut self, id: ClientId) {
        let now = monotonic();
        for gpu in &mut self.gpus {
            gpu.disconnect(now, id);
        }
        let Some(peer) = self.peers.remove(&id) else { return };
        self.gone.push_back((id, peer.pid));
        if self.gone.len() > REMEMBERED
            && let Some((oldest, _)) = self.gone.pop_front()
        {
            for gpu in &mut self.gpus {
                gpu.forget(oldest);
            }
        }
    }

    fn free_memory(&self, gpu: usize) -> Option<(Bytes, Bytes)> {
        self.gpus.get(gpu).map(Gpu::memory)
    }
}

fn reply(gpu: u8, notice: &Notice) -> (ClientId, Reply) {
    match *notice {
        Notice::Completed { client, tag, at } => (client, Reply::Completed { tag, at }),
        Notice::Recorded { client, event, tag, at } => (client, Reply::Recorded { event: event.0, tag, at }),
        Notice::HostDue { client, stream, tag } => (client, Reply::HostDue { gpu, stream: stream.0, tag }),
        Notice::Reached { client, token, at, retired } => {
            (client, Reply::Done { token, status: status::OK, values: [at.0, retired] })
        }
    }
}
