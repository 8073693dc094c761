//! Asks the daemon how its GPUs are. One short connection a question, so that a forked process can ask too.

use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::socket::send_all;
use crate::stats::{REQUEST, Stats};

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn stats() -> io::Result<Stats> {
    let path = std::env::var("SIMCUDA_SOCKET")
        .map_err(|_| io::Error::other("SIMCUDA_SOCKET is not set, allowed is the path of simgpu's socket"))?;
    let stream = UnixStream::connect(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("SIMCUDA_SOCKET is {path:?}: {error}")))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    send_all(&stream, REQUEST.as_bytes())?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
