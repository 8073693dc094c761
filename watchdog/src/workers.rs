//! The threads that pass requests on. Each owns the connections that it was given and its own connections to the
//! function, so that no request wakes a second thread. It reads no request.

use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::connection::Protocols;
use crate::server::App;
use crate::{alarm, logs};

/// The most threads that pass requests on: more would only cost memory beside a function.
pub(crate) const MOST_WORKERS: usize = 4;

/// The most threads of each that wait for files: tokio's 512 would only cost memory.
const MOST_BLOCKING: usize = 16;

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// The number of the worker that this thread is, below [`MOST_WORKERS`]; 0 for all other threads.
pub(crate) fn current() -> usize {
    CURRENT.get()
}

/// All threads that pass requests on; the first is the one that accepts connections.
#[derive(Debug)]
pub(crate) struct Workers {
    app: Arc<App>,
    protocols: Protocols,
    all: Vec<Worker>,
}

#[derive(Debug)]
struct Worker {
    /// Where its connections are driven.
    runtime: Handle,
    /// How many it has.
    open: Arc<AtomicUsize>,
}

/// An open connection of a worker, until it is dropped.
struct Load(Arc<AtomicUsize>);

impl Load {
    fn on(worker: &Worker) -> Self {
        worker.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&worker.open))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// This thread and as many more as there are processors, up to [`MOST_WORKERS`]. Inside a runtime only.
    pub(crate) fn start(app: Arc<App>, protocols: Protocols) -> io::Result<Self> {
        settle();
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_WORKERS);
        let others = (1..threads).map(spawn);
        let runtimes = std::iter::once(Ok(Handle::current())).chain(others);
        let worker = |runtime| Worker { runtime, open: Arc::default() };
        let all = runtimes.map(|runtime| runtime.map(worker)).collect::<io::Result<_>>()?;
        Ok(Self { app, protocols, all })
    }

    /// Has the worker with the fewest connections serve one more.
    pub(crate) fn serve(&self, stream: TcpStream, peer: IpAddr) -> io::Result<()> {
        let idlest = self.all.iter().min_by_key(|worker| worker.open.load(Ordering::Relaxed));
        let Some(worker) = idlest else { return Ok(()) };
        let (app, protocols, load) = (Arc::clone(&self.app), self.protocols.clone(), Load::on(worker));
        // It is to be polled by that thread's runtime.
        let stream = stream.into_std()?;
        worker.runtime.spawn(async move {
            if let Ok(stream) = TcpStream::from_std(stream) {
                protocols.serve(stream, peer, &app).await;
            }
            drop(load);
        });
        Ok(())
    }
}

/// What drives the connections of one worker.
pub(crate) fn runtime() -> io::Result<Runtime> {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().max_blocking_threads(MOST_BLOCKING).on_thread_park(logs::write_waiting).build()
}

/// This thread has a [`runtime`] until it ends, and no other.
fn settle() {
    alarm::keep_spare();
    logs::write_when_idle();
}

/// Starts the worker `number`, which ends with the process.
fn spawn(number: usize) -> io::Result<Handle> {
    let runtime = runtime()?;
    let handle = runtime.handle().clone();
    let work = move || {
        CURRENT.set(number);
        settle();
        runtime.block_on(std::future::pending::<()>());
    };
    std::thread::Builder::new().name(format!("worker-{number}")).spawn(work)?;
    Ok(handle)
}
