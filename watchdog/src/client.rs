//! A client's socket, which ends when it takes nothing for too long: an answer to a client that stopped reading would
//! otherwise hold its slot and its function for ever. It knows nothing of HTTP.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::clock;
use crate::pieces::poll_write_pieces;

/// When writing to a client must be over. Shared by its socket and its requests.
#[derive(Debug, Default)]
pub(crate) struct WriteLimit {
    /// In milliseconds of the coarse clock; 0 while there is no limit.
    at: AtomicU64,
    is_strict: AtomicBool,
}

impl WriteLimit {
    /// Writing must be over `span` from now; without a `span` it may take any time.
    pub(crate) fn set(&self, span: Option<Duration>) {
        let at = span.map_or(0, |span| {
            u64::try_from(clock::coarse().saturating_add(span).as_millis()).unwrap_or(u64::MAX)
        });
        self.at.store(at, Ordering::Relaxed);
    }

    /// Writing is over `span` from now, also for a client that reads.
    pub(crate) fn set_strict(&self, span: Option<Duration>) {
        self.set(span);
        self.is_strict.store(true, Ordering::Relaxed);
    }

    /// Fails when writing is over for a client that reads too.
    fn check(&self) -> io::Result<()> {
        let is_over = || self.rest().is_some_and(|rest| rest.is_zero());
        if self.is_strict.load(Ordering::Relaxed) && is_over() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    /// How long writing may still take.
    fn rest(&self) -> Option<Duration> {
        match self.at.load(Ordering::Relaxed) {
            0 => None,
            millis => Some(Duration::from_millis(millis).saturating_sub(clock::coarse())),
        }
    }
}

/// The most that is read at once, in bytes: less than a power of two, since hyper doubles a buffer that was filled.
const MOST_READ: u64 = 252 << 10;

/// Longest time until a limit is looked at again.
const LONG: Duration = Duration::from_hours(24);

/// A client's socket.
#[derive(Debug)]
pub(crate) struct ClientSocket {
    stream: Take<TcpStream>,
    limit: Arc<WriteLimit>,
    /// Made when the client first makes us wait.
    timer: Option<Pin<Box<Sleep>>>,
    /// When reading what the client still sends after the end is over; `None` before the end.
    linger: Option<Pin<Box<Sleep>>>,
}

/// Longest time to read what a client still sends after it has been answered for the last time, as in Go.
const LINGER: Duration = Duration::from_millis(500);

impl ClientSocket {
    /// The socket, and the limit that its requests set.
    pub(crate) fn new(stream: TcpStream) -> (Self, Arc<WriteLimit>) {
        let limit = Arc::<WriteLimit>::default();
        let stream = stream.take(MOST_READ);
        (Self { stream, limit: Arc::clone(&limit), timer: None, linger: None }, limit)
    }

    /// `written`, unless that waits for longer than it may.
    fn limited(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.timer = None;
            return written;
        }
        let Some(rest) = self.limit.rest() else { return Poll::Pending };
        if rest.is_zero() {
            let words = "the client read nothing for write_timeout";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, words)));
        }
        // The limit may be another one since the last look, and its clock is behind the timer's.
        let at = Instant::now() + rest.min(LONG) + clock::TICK;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        timer.as_mut().reset(at);
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Reads what has come, and says whether the client has ended its side.
    fn discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut space = [0; 8192];
        loop {
            let mut buffer = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(self.stream.get_mut()).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
        }
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream.set_limit(MOST_READ);
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.limit.check()?;
        let written = Pin::new(self.stream.get_mut()).poll_write(cx, bytes);
        self.limited(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.limit.check()?;
        let written = poll_write_pieces(self.stream.get_mut(), cx, slices);
        self.limited(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(Pin::new(self.stream.get_mut()).poll_shutdown(cx))?;
            // The kernel resets a connection that is closed with unread bytes, and the client loses its answer.
            if self.stream.get_ref().try_read(&mut [0; 8192]).is_err() {
                return Poll::Ready(Ok(()));
            }
        }
        let linger = self.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        if linger.as_mut().poll(cx).is_pending() {
            ready!(self.discard(cx));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_client_that_does_not_read_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut socket, limit) = ClientSocket::new(listener.accept().await.unwrap().0);
        limit.set(Some(Duration::from_millis(50)));
        let error = socket.write_all(&vec![0; 64 << 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(client);
    }
}
