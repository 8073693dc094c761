//! Asks the daemon how its GPUs are. One short connection a question, so that a forked process can ask too.
//!
//! While the daemon says that calls hang, no question is answered.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::NvmlError;
use crate::fault::Events;
use crate::socket::send_all;
use crate::stats::{REQUEST, Stats};

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a call that hangs looks whether it still has to.
const LOOK: Duration = Duration::from_millis(10);

pub(super) fn stats() -> Result<Stats, NvmlError> {
    unhung(|| ask::<Stats>(REQUEST, Duration::ZERO), |stats| stats.hung)
}

/// Whether a daemon answers; says why not.
pub(super) fn reach() -> Result<(), NvmlError> {
    let reached = unhung(|| ask::<Stats>(REQUEST, Duration::ZERO).inspect_err(complain), |stats| stats.hung);
    reached.map(|_| ()).map_err(|_| NvmlError::DRIVER_NOT_LOADED)
}

/// Events after number `after`, waited for at most `wait`, and which GPUs are lost.
pub(super) fn events(after: u64, wait: Duration) -> Result<Events, NvmlError> {
    let request = format!("{{\"request\":\"events\",\"after\":{after},\"wait_ms\":{}}}\n", wait.as_millis());
    unhung(|| ask::<Events>(&request, wait), |events| events.hung)
}

fn unhung<T>(ask: impl Fn() -> io::Result<T>, is_hung: impl Fn(&T) -> bool) -> Result<T, NvmlError> {
    loop {
        let answer = ask().map_err(|_| NvmlError::GPU_IS_LOST)?;
        if !is_hung(&answer) {
            return Ok(answer);
        }
        std::thread::park_timeout(LOOK);
    }
}

fn complain(error: &io::Error) {
    let _ = writeln!(io::stderr(), "simcuda: no GPU: {error}");
}

fn ask<T: DeserializeOwned>(request: &str, wait: Duration) -> io::Result<T> {
    let path = std::env::var("SIMCUDA_SOCKET")
        .map_err(|_| io::Error::other("SIMCUDA_SOCKET is not set, allowed is the path of simgpu's socket"))?;
    let stream = UnixStream::connect(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("SIMCUDA_SOCKET is {path:?}: {error}")))?;
    stream.set_read_timeout(Some(PATIENCE + wait))?;
    send_all(&stream, request.as_bytes())?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
