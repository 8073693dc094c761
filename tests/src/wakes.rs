//! How long a sleeping thread of this machine takes to wake when another one calls it.
//!
//! A processor that has gone idle wakes in microseconds on one machine and, where a hypervisor has to be asked, in a tenth of
//! a millisecond on another. Each time the right to run goes from one process to the next, four wakes lie between the end
//! of one kernel and the start of the other.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Between two calls processors have the time to go idle that they have between two turns.
const PAUSE: Duration = Duration::from_millis(3);

/// Two threads that wake each other all the while.
#[derive(Debug)]
pub struct Wakes {
    over: Arc<AtomicBool>,
    caller: JoinHandle<io::Result<Duration>>,
}

impl Wakes {
    /// Begins to measure.
    pub fn watch() -> Self {
        let (near, far) = UnixStream::pair().expect("a pair of sockets can be made");
        thread::spawn(move || answer(far));
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        Self { over, caller: thread::spawn(move || call(near, &until)) }
    }

    /// The mean time of a wake since then.
    pub fn mean(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        let mean = self.caller.join().expect("the caller does not panic");
        mean.expect("a pair of sockets carries bytes")
    }
}

fn call(mut socket: UnixStream, over: &AtomicBool) -> io::Result<Duration> {
    let (mut total, mut wakes) = (Duration::ZERO, 0);
    while wakes == 0 || !over.load(Ordering::Relaxed) {
        thread::park_timeout(PAUSE);
        let start = Instant::now();
        socket.write_all(&[1])?;
        socket.read_exact(&mut [0])?;
        total += start.elapsed();
        wakes += 2;
    }
    Ok(total / wakes)
}

/// Answers until the other end is closed.
fn answer(mut socket: UnixStream) {
    while socket.read_exact(&mut [0]).and_then(|()| socket.write_all(&[1])).is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_takes_some_time_and_less_than_a_pause() {
        let wakes = Wakes::watch();
        thread::park_timeout(10 * PAUSE);
        let mean = wakes.mean();
        assert!(mean > Duration::ZERO && mean < Duration::from_secs(1), "{mean:?}");
    }
}
