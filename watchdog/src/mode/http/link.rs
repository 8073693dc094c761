//! Connections to the function: one is driven by the request that uses it, so that no other task has to be woken, and
//! kept for the next request. It never repeats a request that the function may have seen.

use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response};
use hyper::body::Frame;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::codec::{BadAnswer, Decoded, Decoder, Head, read_head};
use super::outgoing::{BodyError, Outgoing};
use super::sending::Sending;
use crate::clock;
use crate::workers::{self, MOST_WORKERS};

/// Idle connections live as long as those of of-watchdog. Some servers serve one connection at a time, and some end
/// idle ones soon.
const IDLE: Duration = Duration::from_millis(500);

/// The most idle connections, as in of-watchdog.
const MOST_IDLE: usize = 100;

/// Room for what is read at once, in bytes: small answers get the least of it, those that fill it get more.
const LEAST_ROOM: usize = 4 << 10;
const MOST_ROOM: usize = 128 << 10;

/// Why a connection can't be used any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// Reading or writing failed.
    #[error("{0}")]
    Io(io::Error),
    /// The answer can't be understood.
    #[error("{0}")]
    Answer(#[from] BadAnswer),
    /// The request's body did not arrive.
    #[error("{0}")]
    Body(BodyError),
    /// It has another length than its headers say.
    #[error("the request body is not as long as its Content-Length says")]
    Length,
}

/// Why a request has no answer.
#[derive(Debug)]
pub(super) struct Unanswered {
    pub(super) error: LinkError,
    /// Whether the function can't have seen any of it. Then it still has its body.
    pub(super) is_unseen: bool,
}

impl Unanswered {
    /// Whether the connection failed, and not what came over it.
    pub(super) fn is_of_connection(&self) -> bool {
        matches!(self.error, LinkError::Io(_) | LinkError::Answer(BadAnswer::Cut))
    }
}

/// A connection to the function.
#[derive(Debug)]
pub(crate) struct Link {
    stream: TcpStream,
    /// What has been received and not been used.
    received: BytesMut,
    room: usize,
    sending: Sending,
    answer: Decoder,
    /// Whether the connection ends with this answer.
    is_last: bool,
    /// By the coarse clock.
    idle_since: Duration,
}

impl Link {
    /// Connects to `authority`, a host and a port.
    pub(super) async fn open(authority: &str) -> io::Result<Box<Self>> {
        let stream = TcpStream::connect(authority).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(Self {
            stream,
            received: BytesMut::new(),
            room: LEAST_ROOM,
            sending: Sending::nothing(),
            answer: Decoder::ENDED,
            is_last: false,
            idle_since: Duration::ZERO,
        }))
    }

    /// Sends `request` and waits for the head of the answer.
    pub(super) async fn send(&mut self, request: &mut Request<Outgoing>) -> Result<Response<()>, Unanswered> {
        self.sending.begin(request);
        let method = request.method().clone();
        let (mut scanned, mut failed) = (0, None);
        let head = std::future::poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                let is_written_in_vain = matches!(error, LinkError::Io(_)) && self.sending.has_begun();
                if !is_written_in_vain {
                    return Poll::Ready(Err(error));
                }
                // It may have answered all the same, before it had read everything.
                failed = Some(error);
            }
            let read = ready!(self.poll_head(cx, &mut scanned, &method));
            Poll::Ready(read.map_err(|error| failed.take().unwrap_or(error)))
        });
        match head.await {
            Ok(head) => {
                self.answer = head.body;
                self.is_last |= head.is_last;
                Ok(head.response)
            }
            Err(error) => {
                let body = self.sending.take_back();
                let is_unseen = matches!(error, LinkError::Io(_)) && body.is_some();
                *request.body_mut() = body.unwrap_or(Outgoing::Empty);
                Err(Unanswered { error, is_unseen })
            }
        }
    }

    /// Writes what can be written now. After an error nothing more is written.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let sent = self.sending.poll(&mut self.stream, cx);
        if let Poll::Ready(Err(_)) = sent {
            self.is_last = true;
            if self.sending.has_begun() {
                self.sending.give_up();
            }
        }
        sent
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        scanned: &mut usize,
        method: &Method,
    ) -> Poll<Result<Head, LinkError>> {
        loop {
            if let Some(head) = read_head(&mut self.received, scanned, method)? {
                return Poll::Ready(Ok(head));
            }
            if ready!(self.poll_receive(cx)).map_err(LinkError::Io)? == 0 {
                return Poll::Ready(Err(BadAnswer::Cut.into()));
            }
        }
    }

    /// Receives some bytes, none at the connection's end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let free = self.received.capacity() - self.received.len();
        if free < LEAST_ROOM || (free < self.room && self.received.is_empty()) {
            self.received.reserve(self.room);
        }
        let free = self.received.capacity() - self.received.len();
        let count = ready!(pin!(self.stream.read_buf(&mut self.received)).poll(cx))?;
        self.room = match count {
            _ if count == free => (self.room * 2).min(MOST_ROOM),
            _ if count < self.room / 4 => (self.room / 2).max(LEAST_ROOM),
            _ => self.room,
        };
        Poll::Ready(Ok(count))
    }

    /// The answer's body, if all of it has come.
    pub(super) fn take_whole(&mut self) -> Option<Bytes> {
        let rest = self.answer.rest().and_then(|rest| usize::try_from(rest).ok())?;
        (rest <= self.received.len()).then(|| {
            self.answer = Decoder::ENDED;
            self.received.split_to(rest).freeze()
        })
    }

    /// The next frame of the answer's body. What is left of the request is sent meanwhile.
    pub(super) fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, LinkError>>> {
        if let Poll::Ready(Err(error)) = self.poll_send(cx)
            && !matches!(error, LinkError::Io(_))
        {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            match self.answer.decode(&mut self.received)? {
                Decoded::Bytes(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Decoded::Trailers(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Decoded::End => return Poll::Ready(None),
                Decoded::Wanting => {}
            }
            if ready!(self.poll_receive(cx)).map_err(LinkError::Io)? == 0 {
                self.answer.end()?;
            }
        }
    }

    /// How many bytes of the answer's body are still to come, if that was said.
    pub(super) fn rest(&self) -> Option<u64> {
        self.answer.rest()
    }

    /// Whether the next request can be sent: the answer is read and the request is written, both to their ends.
    fn is_idle(&self) -> bool {
        !self.is_last && self.answer.is_ended() && self.sending.is_done() && self.received.is_empty()
    }

    /// Whether the function has ended the connection, or sent what nobody asked for.
    fn is_stale(&mut self) -> bool {
        let mut space = [0];
        // Nobody needs to be woken: whoever takes the connection drives it.
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(&mut self.stream).poll_read(&mut cx, &mut ReadBuf::new(&mut space)).is_ready()
    }
}

/// Some connections. Each moves between its request and the pool, and is large.
#[allow(clippy::vec_box)]
type Links = Vec<Box<Link>>;

/// Connections that wait for their next request.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Those of each worker: a connection is driven by the thread that opened it. The one used last is at the end, and
    /// taken first.
    idle: [Mutex<Links>; MOST_WORKERS],
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
    pub(super) fn take(&self) -> Option<Box<Link>> {
        loop {
            let mut link = self.own().pop()?;
            if clock::coarse().saturating_sub(link.idle_since) < IDLE && !link.is_stale() {
                return Some(link);
            }
        }
    }

    /// Keeps `link`, whose answer has been read, for the next request.
    pub(super) fn give_back(self: &Arc<Self>, link: Box<Link>) {
        if link.is_idle() {
            self.keep(link);
        } else if !link.sending.is_done() {
            // The function answered before it had read the whole request; what is left still goes to it.
            tokio::spawn(Arc::clone(self).finish(link));
        }
    }

    async fn finish(self: Arc<Self>, mut link: Box<Link>) {
        let sent = std::future::poll_fn(|cx| link.poll_send(cx)).await;
        if sent.is_ok() && link.is_idle() {
            self.keep(link);
        }
    }

    fn keep(&self, mut link: Box<Link>) {
        link.idle_since = clock::coarse();
        if link.room > LEAST_ROOM {
            // What a large answer needed.
            (link.received, link.room) = (BytesMut::new(), LEAST_ROOM);
        }
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
            let now = clock::coarse();
            let old: Vec<_> = self.idle.iter().flat_map(|idle| old(&mut lock(idle), now)).collect();
            drop(old);
        }
    }

    /// The idle connections of this thread.
    fn own(&self) -> MutexGuard<'_, Links> {
        lock(&self.idle[workers::current()])
    }
}

fn lock(idle: &Mutex<Links>) -> MutexGuard<'_, Links> {
    // Links are moved in and out whole, so a panic elsewhere leaves nothing half done.
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes out those that have been idle for [`IDLE`].
fn old(idle: &mut Links, now: Duration) -> Links {
    let young = idle.partition_point(|link| now.saturating_sub(link.idle_since) >= IDLE);
    idle.drain(..young).collect()
}
