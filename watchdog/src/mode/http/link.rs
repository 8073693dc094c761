//! Connections to the function: one is driven by the request that uses it, so that no other task has to be woken, and
//! kept for the next request. It never repeats a request that the function may have seen.

use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::outgoing::Outgoing;
use crate::workers::{self, MOST_WORKERS};

/// Idle connections live as long as those of of-watchdog. Some servers serve one connection at a time, and some end
/// idle ones soon.
const IDLE: Duration = Duration::from_millis(500);

/// The most idle connections, as in of-watchdog.
const MOST_IDLE: usize = 100;

/// A connection to the function.
#[derive(Debug)]
pub(crate) struct Link {
    sender: SendRequest<Outgoing>,
    /// `None` when it has ended.
    connection: Option<Connection<TokioIo<TcpStream>, Outgoing>>,
    idle_since: Instant,
}

impl Link {
    /// Connects to `authority`, a host and a port.
    pub(crate) async fn open(authority: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(authority).await?;
        stream.set_nodelay(true)?;
        let handshake = http1::Builder::new().title_case_headers(true).handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        Ok(Self { sender, connection: Some(connection), idle_since: Instant::now() })
    }

    /// Sends `request` and waits for the head of the answer.
    pub(crate) async fn send(
        &mut self,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Outgoing>>> {
        let mut answer = pin!(self.sender.try_send_request(request));
        let connection = &mut self.connection;
        std::future::poll_fn(|cx| {
            drive(connection, cx);
            answer.as_mut().poll(cx)
        })
        .await
    }

    /// Reads and writes what can be read and written now.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        drive(&mut self.connection, cx);
    }

    /// Whether the next request can be sent: the answer is read and the request is written, both to their ends.
    fn is_idle(&self) -> bool {
        self.connection.is_some() && self.sender.is_ready()
    }

    /// Whether the function has ended the connection, or sent what nobody asked for.
    fn is_stale(&mut self) -> bool {
        // Nobody needs to be woken: whoever takes the connection drives it again.
        self.drive(&mut Context::from_waker(Waker::noop()));
        !self.is_idle()
    }
}

fn drive(connection: &mut Option<Connection<TokioIo<TcpStream>, Outgoing>>, cx: &mut Context<'_>) {
    if let Some(open) = connection
        && Pin::new(open).poll(cx).is_ready()
    {
        // What went wrong reaches the request through its answer or its body.
        *connection = None;
    }
}

/// Connections that wait for their next request.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Those of each worker: a connection is driven by the thread that opened it. The one used last is at the end, and
    /// taken first.
    idle: [Mutex<Vec<Link>>; MOST_WORKERS],
    filled: Notify,
}

impl Pool {
    /// An empty pool. Inside a runtime only.
    pub(crate) fn new() -> Arc<Self> {
        let pool = Arc::new(Self { idle: Default::default(), filled: Notify::new() });
        tokio::spawn(Arc::clone(&pool).close_idle());
        pool
    }

    /// A connection that was open a moment ago.
    pub(crate) fn take(&self) -> Option<Link> {
        loop {
            let mut link = self.own().pop()?;
            if link.idle_since.elapsed() < IDLE && !link.is_stale() {
                return Some(link);
            }
        }
    }

    /// Keeps `link`, whose answer has been read, for the next request.
    pub(crate) fn give_back(self: &Arc<Self>, mut link: Link) {
        if !link.is_stale() {
            self.keep(link);
        } else if link.connection.is_some() {
            // The function answered before it had read the whole request; what is left still goes to it.
            tokio::spawn(Arc::clone(self).finish(link));
        }
    }

    async fn finish(self: Arc<Self>, mut link: Link) {
        std::future::poll_fn(|cx| {
            link.drive(cx);
            match &link.connection {
                Some(_) => link.sender.poll_ready(cx).map(|_| ()),
                None => Poll::Ready(()),
            }
        })
        .await;
        if link.is_idle() {
            self.keep(link);
        }
    }

    fn keep(&self, mut link: Link) {
        link.idle_since = Instant::now();
        let mut idle = self.own();
        if idle.len() < MOST_IDLE {
            idle.push(link);
        }
        let is_first = idle.len() == 1;
        drop(idle);
        if is_first {
            self.filled.notify_one();
        }
    }

    /// Closes connections that nobody has used for [`IDLE`]: nobody drives them, so nobody else would.
    async fn close_idle(self: Arc<Self>) {
        loop {
            if self.idle.iter().all(|idle| lock(idle).is_empty()) {
                self.filled.notified().await;
            }
            tokio::time::sleep(IDLE / 2).await;
            let now = Instant::now();
            let old: Vec<Link> = self.idle.iter().flat_map(|idle| old(&mut lock(idle), now)).collect();
            drop(old);
        }
    }

    /// The idle connections of this thread.
    fn own(&self) -> MutexGuard<'_, Vec<Link>> {
        lock(&self.idle[workers::current()])
    }
}

fn lock(idle: &Mutex<Vec<Link>>) -> MutexGuard<'_, Vec<Link>> {
    // Links are moved in and out whole, so a panic elsewhere leaves nothing half done.
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes out those that have been idle for [`IDLE`].
fn old(idle: &mut Vec<Link>, now: Instant) -> Vec<Link> {
    let young = idle.partition_point(|link| now.duration_since(link.idle_since) >= IDLE);
    idle.drain(..young).collect()
}
