//! The end: which connections are open, the order in which a watchdog that is told to stop lets go, and the exit code.
//! It answers no request.

use std::collections::HashMap;
use std::io;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::child::Function;
use crate::config::duration::GoStyle;
use crate::health::Phase;
use crate::logs::log;
use crate::server::App;

/// Time that the function has to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// Time to tell clients that their requests failed, when the function has ended.
const APOLOGY: Duration = Duration::from_secs(1);

/// The open connections of clients.
#[derive(Debug)]
pub(crate) struct Connections {
    open: Mutex<Open>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// Dropping a sender asks its connection to end.
    members: HashMap<u64, Option<oneshot::Sender<()>>>,
    is_closing: bool,
}

/// An open connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Member {
    id: u64,
    connections: Arc<Connections>,
}

impl Connections {
    /// None open.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), changed: Notify::new() })
    }

    /// A connection opens; the receiver is done when it should end after the request that it is answering.
    pub(crate) fn enter(self: &Arc<Self>) -> (Member, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        let mut open = self.lock();
        let id = open.next;
        open.next += 1;
        let sender = (!open.is_closing).then_some(sender);
        open.members.insert(id, sender);
        (Member { id, connections: Arc::clone(self) }, receiver)
    }

    /// Asks all connections to end, and waits until they have.
    pub(crate) async fn close(&self) {
        {
            let mut open = self.lock();
            open.is_closing = true;
            open.members.values_mut().for_each(|sender| *sender = None);
        }
        while !self.lock().members.is_empty() {
            self.changed.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Every change is a single insert or removal.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.connections.lock().members.remove(&self.id);
        self.connections.changed.notify_one();
    }
}

/// What tells the watchdog to stop.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// How the watchdog is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// SIGTERM: others must learn of it before requests end.
    Terminate,
    /// SIGINT: someone at a terminal waits.
    Interrupt,
}

impl Signals {
    /// From now on the signals are noticed here, and no longer end the process.
    pub(crate) fn install() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next one.
    pub(crate) async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.terminate.recv() => Stop::Terminate,
            _ = self.interrupt.recv() => Stop::Interrupt,
        }
    }

    /// The next SIGINT: while draining, it ends the wait that is under way. Another SIGTERM changes nothing.
    async fn interrupted(&mut self) {
        self.interrupt.recv().await;
    }
}

/// A watchdog that accepts requests.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) app: Arc<App>,
    pub(crate) function: Function,
    pub(crate) signals: Signals,
    /// Closes the listener.
    pub(crate) listening: CancellationToken,
    /// Time from SIGTERM to the listener's end.
    pub(crate) interval: Duration,
    /// Longest time to wait for requests after that; `None` for any time.
    pub(crate) patience: Option<Duration>,
}

impl Running {
    /// Waits until the function ends or someone tells the watchdog to stop, and lets go of everything.
    pub(crate) async fn until_end(mut self) -> ExitCode {
        let stop = tokio::select! {
            status = self.function.ended() => return self.fail(&status).await,
            stop = self.signals.next() => stop,
        };
        match self.drain(stop).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(status) => self.fail(&status).await,
        }
    }

    /// Lets requests end, then the function. The error is the status of a function that did not wait for that.
    async fn drain(&mut self, stop: Stop) -> Result<(), String> {
        let (name, interval) = match stop {
            Stop::Terminate => ("SIGTERM", self.interval),
            Stop::Interrupt => ("SIGINT", Duration::ZERO),
        };
        log!("{name} received.. shutting down server in {}", GoStyle(interval));
        self.app.health.stop();
        self.function.announce_stop();
        tokio::select! {
            status = self.function.ended() => return Err(status),
            () = self.signals.interrupted() => {}
            () = sleep(interval) => {}
        }
        self.listening.cancel();
        let patience = self.patience;
        let out_of_patience = async move {
            match patience {
                Some(patience) => sleep(patience).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            status = self.function.ended() => return Err(status),
            () = self.signals.interrupted() => log!("SIGINT received.. requests are cut"),
            () = out_of_patience => log!("Requests did not end in time and are cut"),
            () = self.app.connections.close() => log!("No more requests"),
        }
        tokio::select! {
            () = self.signals.interrupted() => self.function.kill().await,
            () = self.function.stop(GRACE) => {}
        }
        Ok(())
    }

    /// The function has ended by itself, whatever its status: without it there is nothing to serve.
    async fn fail(&self, status: &str) -> ExitCode {
        self.app.health.stop();
        self.app.health.set_phase(Phase::Gone);
        self.listening.cancel();
        let apology = if self.function.is_let_go_at_once() { Duration::ZERO } else { APOLOGY };
        // What it started may hold connections open that nobody will ever answer.
        let ((), _) = tokio::join!(self.function.kill(), timeout(apology, self.app.connections.close()));
        log!("Forked function has terminated: {status}");
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn closing_waits_for_every_connection() {
        let connections = Connections::new();
        let (first, mut first_asked) = connections.enter();
        assert!(first_asked.try_recv().is_err());
        let mut close = std::pin::pin!(connections.close());
        assert!(timeout(Duration::from_millis(20), close.as_mut()).await.is_err());
        first_asked.await.unwrap_err();
        let (late, late_asked) = connections.enter();
        late_asked.await.unwrap_err();
        drop(first);
        assert!(timeout(Duration::from_millis(20), close.as_mut()).await.is_err());
        drop(late);
        timeout(Duration::from_secs(5), close).await.unwrap();
    }
}
