//! Whether requests are accepted, and whether the function is up: what `/_/health` and `/_/ready` answer from.
//! Owns the lock file that says the same to probes inside the container. It decides nothing about draining.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::watch;

/// How far the function has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It runs, and does not accept connections yet.
    Starting,
    /// It has accepted a connection.
    Up,
    /// It has ended, and will start again.
    Restarting,
    /// It has ended.
    Gone,
}

/// Most requests that wait for the function to start. Each holds its connection and its body's first bytes.
const MOST_HELD: usize = 1000;

/// What waiting for the function comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Started {
    /// It can answer.
    Up,
    /// It never will.
    Gone,
    /// Too many wait for it already.
    Crowded,
}

/// A request that waits, until it is dropped.
struct Held<'a>(&'a AtomicUsize);

impl<'a> Held<'a> {
    fn one_more(held: &'a AtomicUsize) -> Option<Self> {
        let more = |count: usize| (count < MOST_HELD).then_some(count + 1);
        held.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok().map(|_| Self(held))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The state that probes ask for.
#[derive(Debug)]
pub(crate) struct Health {
    lock_file: Option<PathBuf>,
    /// Whether the lock file is ours to write; else it is only looked for, as of-watchdog does with `suppress_lock`.
    writes_lock: bool,
    accepting: AtomicBool,
    draining: AtomicBool,
    /// The same as the phase being [`Phase::Up`], without the channel's lock.
    up: AtomicBool,
    phase: watch::Sender<Phase>,
    /// Requests that wait for the function to start.
    held: AtomicUsize,
}

impl Health {
    /// Nothing is accepted yet. Without a `lock_file`, none is written and none is looked for.
    pub(crate) fn new(lock_file: Option<PathBuf>) -> Self {
        Self {
            lock_file,
            writes_lock: true,
            accepting: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            up: AtomicBool::new(false),
            phase: watch::Sender::new(Phase::Starting),
            held: AtomicUsize::new(0),
        }
    }

    /// The same, where the lock file is never written, and looked for all the same: nothing is accepted without it.
    pub(crate) fn without_writing(self) -> Self {
        Self { writes_lock: false, ..self }
    }

    /// From now on requests are accepted; writes the lock file.
    pub(crate) fn accept(&self) -> io::Result<()> {
        if let Some(path) = self.lock_file() {
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o660).open(path)?;
        }
        self.accepting.store(true, Ordering::Release);
        Ok(())
    }

    /// From now on no new requests should be sent here; removes the lock file.
    pub(crate) fn stop(&self) {
        self.draining.store(true, Ordering::Release);
        self.accepting.store(false, Ordering::Release);
        if let Some(path) = self.lock_file() {
            // Someone may have removed it, which says the same.
            let _ = fs::remove_file(path);
        }
    }

    /// Whether clients should go elsewhere with their next request.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Path of the lock file, if one is written.
    pub(crate) fn lock_file(&self) -> Option<&PathBuf> {
        self.lock_file.as_ref().filter(|_| self.writes_lock)
    }

    /// Whether requests are accepted, and the function is not just between its end and its next start. Whoever removes the
    /// lock file takes the replica out of rotation.
    pub(crate) fn is_accepting(&self) -> bool {
        self.accepting.load(Ordering::Acquire)
            && !matches!(*self.phase.borrow(), Phase::Restarting | Phase::Gone)
            && self.lock_file.as_ref().is_none_or(|path| path.exists())
    }

    /// Whether the function can answer now.
    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// Notes how far the function has come. One that is gone stays gone.
    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let is_news = *now != Phase::Gone;
            if is_news {
                *now = phase;
                self.up.store(phase == Phase::Up, Ordering::Release);
            }
            is_news
        });
    }

    /// Waits until the function is up or gone, unless too many wait already.
    pub(crate) async fn started(&self) -> Started {
        if self.is_up() {
            return Started::Up;
        }
        let Some(_held) = Held::one_more(&self.held) else { return Started::Crowded };
        let mut phase = self.phase.subscribe();
        let settled =
            phase.wait_for(|phase| matches!(phase, Phase::Up | Phase::Gone)).await.map(|phase| *phase);
        if settled.is_ok_and(|phase| phase == Phase::Up) { Started::Up } else { Started::Gone }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_accepted_while_the_lock_file_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".lock");
        let health = Health::new(Some(path.clone()));
        assert!(!health.is_accepting());
        health.accept().unwrap();
        assert!(health.is_accepting() && path.exists());
        fs::remove_file(&path).unwrap();
        assert!(!health.is_accepting());
        health.accept().unwrap();
        health.stop();
        assert!(!health.is_accepting() && !path.exists());
    }

    #[test]
    fn a_lock_file_that_is_not_ours_to_write_is_looked_for_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".lock");
        let health = Health::new(Some(path.clone())).without_writing();
        health.accept().unwrap();
        assert!(!health.is_accepting() && !path.exists() && health.lock_file().is_none());
        fs::write(&path, "").unwrap();
        assert!(health.is_accepting());
        health.stop();
        assert!(!health.is_accepting() && path.exists());
    }

    #[test]
    fn without_a_lock_file_the_state_alone_counts() {
        let health = Health::new(None);
        health.accept().unwrap();
        assert!(health.is_accepting());
        health.stop();
        assert!(!health.is_accepting());
    }

    #[tokio::test]
    async fn a_waiter_learns_that_the_function_is_up_or_gone() {
        for (phase, wanted) in [(Phase::Up, Started::Up), (Phase::Gone, Started::Gone)] {
            let health = Health::new(None);
            let (started, ()) = tokio::join!(health.started(), async { health.set_phase(phase) });
            assert_eq!(started, wanted);
        }
    }

    #[tokio::test]
    async fn no_more_than_so_many_wait() {
        let health = std::sync::Arc::new(Health::new(None));
        let waiters: Vec<_> = (0..MOST_HELD)
            .map(|_| {
                let health = std::sync::Arc::clone(&health);
                tokio::spawn(async move { health.started().await })
            })
            .collect();
        while health.held.load(Ordering::Acquire) < MOST_HELD {
            tokio::task::yield_now().await;
        }
        assert_eq!(health.started().await, Started::Crowded);
        health.set_phase(Phase::Up);
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), Started::Up);
        }
        assert_eq!(health.held.load(Ordering::Acquire), 0);
    }
}
