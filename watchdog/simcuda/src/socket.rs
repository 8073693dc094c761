//! Writing to a socket from within somebody else's process: never by a signal.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::net::{SendFlags, send};

/// Writes all of `bytes`. If nobody reads, that is an error, and no SIGPIPE, which would end the program.
pub(crate) fn send_all(stream: &UnixStream, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match send(stream, rest, SendFlags::NOSIGNAL) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => rest = &rest[sent..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
