//! What a function sends over HTTP/2, without the frames that carry nothing. The HTTP/2 library takes 100 of them for an
//! attack and ends the connection with all of its requests (hyperium/h2, pull request 935), however long it lives; a
//! server that passes a body on by the frame sends one for each. It changes nothing else.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, BufReader, ReadBuf};

/// Length of a frame's head (RFC 9113, 4.1): three bytes for the payload's length, one for the type, one for flags, four
/// for the stream.
const HEAD: usize = 9;

/// The type of frames of a body (RFC 9113, 6.1).
const DATA: u8 = 0;

/// The flag of a stream's last frame.
const END_STREAM: u8 = 1;

/// Room for what is read at once, in bytes: a few frames of the usual size.
const ROOM: usize = 64 << 10;

/// A connection whose empty frames are not read.
#[derive(Debug)]
pub(super) struct WithoutEmpty<S> {
    stream: BufReader<S>,
    head: [u8; HEAD],
    /// How much of the head has come, and how much of that has been handed on.
    come: usize,
    given: usize,
    /// Bytes of the frame's payload that are still to come.
    payload: usize,
}

impl<S: AsyncRead> WithoutEmpty<S> {
    /// `stream`, of which nothing has been read.
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream: BufReader::with_capacity(ROOM, stream),
            head: [0; HEAD],
            come: 0,
            given: 0,
            payload: 0,
        }
    }
}

/// The length of the payload behind `head`; `None` for a frame of a body without a byte that is not the last one.
fn wanted(head: &[u8; HEAD]) -> Option<usize> {
    let payload = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    (payload > 0 || head[3] != DATA || head[4] & END_STREAM != 0).then_some(payload)
}

impl<S: AsyncRead + Unpin> WithoutEmpty<S> {
    /// Hands on what comes next of a frame; nothing only at the connection's end.
    fn poll_piece(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.come == HEAD && self.given < HEAD {
                let count = buffer.remaining().min(HEAD - self.given);
                buffer.put_slice(&self.head[self.given..self.given + count]);
                self.given += count;
                return Poll::Ready(Ok(()));
            }
            if self.given == HEAD && self.payload == 0 {
                (self.come, self.given) = (0, 0);
            }
            let bytes = ready!(Pin::new(&mut self.stream).poll_fill_buf(cx))?;
            if bytes.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if self.payload > 0 {
                let count = bytes.len().min(self.payload).min(buffer.remaining());
                buffer.put_slice(&bytes[..count]);
                Pin::new(&mut self.stream).consume(count);
                self.payload -= count;
                return Poll::Ready(Ok(()));
            }
            let count = bytes.len().min(HEAD - self.come);
            self.head[self.come..self.come + count].copy_from_slice(&bytes[..count]);
            Pin::new(&mut self.stream).consume(count);
            self.come += count;
            if self.come == HEAD {
                match wanted(&self.head) {
                    Some(payload) => self.payload = payload,
                    None => self.come = 0,
                }
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WithoutEmpty<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        while buffer.remaining() > 0 {
            let filled = buffer.filled().len();
            match self.poll_piece(cx, buffer) {
                // Whoever reads comes back for the rest, and for the error.
                Poll::Pending | Poll::Ready(Err(_)) if filled > before => break,
                Poll::Ready(Ok(())) if buffer.filled().len() == filled => break,
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WithoutEmpty<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &[0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn only_a_frame_of_a_body_that_carries_and_ends_nothing_is_left_out() {
        let head =
            |kind, flags, payload: &[u8]| wanted(&frame(kind, flags, payload)[..HEAD].try_into().unwrap());
        assert_eq!(head(DATA, 0, b""), None);
        // Of a padded frame, the padding counts for the flow.
        assert_eq!(head(DATA, 8, b"\0"), Some(1));
        assert_eq!(head(DATA, END_STREAM, b""), Some(0));
        // Settings.
        assert_eq!(head(4, 0, b""), Some(0));
    }

    proptest! {
        #[test]
        fn all_other_bytes_pass_however_they_come(
            frames in prop::collection::vec((0_u8..3, 0_u8..2, 0_usize..40), 0..30),
            pieces in prop::collection::vec(1_usize..30, 1..20),
            room in 1_usize..50,
        ) {
            let bytes = |(kind, flags, length): &(u8, u8, usize)| frame(*kind, *flags, &vec![7; *length]);
            let sent = frames.iter().flat_map(bytes).collect::<Vec<_>>();
            let is_wanted = |frame: &&(u8, u8, usize)| frame.0 != DATA || frame.1 != 0 || frame.2 > 0;
            let expected = frames.iter().filter(is_wanted).flat_map(bytes).collect::<Vec<_>>();
            let (mut near, far) = tokio::io::duplex(16);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let got = runtime.block_on(async move {
                let send = async move {
                    let (mut rest, mut sizes) = (&sent[..], pieces.iter().cycle());
                    while !rest.is_empty() {
                        let (piece, after) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
                        near.write_all(piece).await.unwrap();
                        rest = after;
                    }
                };
                let receive = async move {
                    let (mut far, mut got, mut space) = (WithoutEmpty::new(far), Vec::new(), vec![0; room]);
                    loop {
                        match far.read(&mut space).await.unwrap() {
                            0 => return got,
                            count => got.extend_from_slice(&space[..count]),
                        }
                    }
                };
                tokio::join!(send, receive).1
            });
            prop_assert_eq!(got, expected);
        }
    }
}
