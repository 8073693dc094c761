//! Ports for programs that can't be told to take any.

use std::net::{Ipv4Addr, TcpListener};

/// A port of the loopback address that nothing listened on a moment ago.
///
/// # Errors
/// If there is none.
pub fn free() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
