//! How a page's descriptor travels from the node agent to a process: beside a line of the containers' socket.
//!
//! It knows nothing of what the lines say.

use core::mem::MaybeUninit;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, send, sendmsg,
};

/// Sends `line`, and `descriptor` with its first byte. Raises no signal where the other end is gone.
pub fn send_with(stream: &UnixStream, line: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let (mut control, descriptors) = (SendAncillaryBuffer::new(&mut space), [descriptor]);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let mut sent = sendmsg(stream, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?;
    while sent < line.len() {
        sent += send(stream, &line[sent..], SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// Reads what is there, and the descriptor that came with it.
pub fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((got.bytes, descriptor))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_descriptor_comes_with_its_line_and_only_with_that() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"page").unwrap();
        file.rewind().unwrap();
        send_with(&ours, b"line\n", file.as_fd()).unwrap();
        let mut bytes = [0; 16];
        let (count, descriptor) = receive(&theirs, &mut bytes).unwrap();
        assert_eq!(&bytes[..count], b"line\n");
        let mut text = String::new();
        File::from(descriptor.unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "page");

        (&ours).write_all(b"next\n").unwrap();
        let (count, descriptor) = receive(&theirs, &mut bytes).unwrap();
        assert_eq!((&bytes[..count], descriptor.is_none()), (&b"next\n"[..], true));
        drop(ours);
        assert_eq!(receive(&theirs, &mut bytes).unwrap().0, 0);
    }
}
