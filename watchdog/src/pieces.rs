//! Writing what lies in several places: as one piece where it is little, which the kernel takes faster than several.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

/// Up to how many bytes are copied to be one piece.
const FEW: usize = 1 << 10;

/// Writes what can be written now of `pieces`; how many bytes that is.
pub(crate) fn poll_write_pieces(
    stream: &mut TcpStream,
    cx: &mut Context<'_>,
    pieces: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let mut space = [0; FEW];
    match joined(pieces, &mut space) {
        Some(piece) => Pin::new(stream).poll_write(cx, piece),
        None => Pin::new(stream).poll_write_vectored(cx, pieces),
    }
}

/// All of `pieces` in `space`, if there is room for them.
fn joined<'a>(pieces: &[IoSlice<'_>], space: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut length = 0;
    for piece in pieces {
        let end = length + piece.len();
        space.get_mut(length..end)?.copy_from_slice(piece);
        length = end;
    }
    Some(&space[..length])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_joined_while_there_is_room() {
        let mut space = [0; 5];
        let pieces = |last| [IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(last)];
        assert_eq!(joined(&pieces(b"cde"), &mut space), Some(&b"abcde"[..]));
        assert_eq!(joined(&pieces(b"cdef"), &mut space), None);
        assert_eq!(joined(&[], &mut space), Some(&b""[..]));
    }
}
