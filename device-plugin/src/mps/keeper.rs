//! The thread that keeps the control daemon running. It asks, and does what [`Lifecycle`] decides.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::control::Control;
pub(crate) use super::lifecycle::Standing;
use super::lifecycle::{Lifecycle, START};
use crate::clock::monotonic;

/// How often the daemon is asked while all is well.
const EVERY: Duration = Duration::from_secs(2);
/// How often it is asked while it starts.
const SOON: Duration = Duration::from_millis(50);

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
pub enum MpsError {
    /// Its folders can't be made.
    #[error("folder {path} can't be made: {reason}")]
    Folder {
        /// In which folder.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// It was started, or could not be, and does not answer.
    #[error("--mps is start, allowed is that where {program} starts a control daemon: {reason}")]
    Start {
        /// The control program.
        program: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The daemon's keeper. Dropped, it leaves the daemon running, for the next agent to find.
#[derive(Debug)]
pub(crate) struct Keeper {
    end: mpsc::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the daemon with `program`, unless one answers in `state` already, and waits until it answers. From then on
    /// `tell` is told of each change of its standing.
    pub(crate) fn start(
        program: &Path,
        state: &Path,
        tell: impl Fn(Standing) + Send + 'static,
    ) -> Result<Self, MpsError> {
        let control = Control::new(program.into(), state)
            .map_err(|reason| MpsError::Folder { path: state.join("mps"), reason })?;
        let mut life = Lifecycle::new();
        let deadline = monotonic() + START;
        let failed = |reason: String| MpsError::Start { program: program.into(), reason };
        loop {
            // A program that can't start the daemon now is a matter of configuration; later it is one of patience.
            step(&control, &mut life).map_err(|error| failed(error.to_string()))?;
            match life.standing() {
                Standing::Up => break,
                Standing::Broken(reason) if monotonic() >= deadline => return Err(failed(reason.clone())),
                Standing::Broken(_) => thread::park_timeout(SOON),
            }
        }
        let (end, ended) = mpsc::channel();
        let thread = thread::Builder::new().name("mps".into()).spawn(move || {
            keep(&control, life, &ended, &tell);
        });
        Ok(Self { end, thread: Some(thread.map_err(|error| failed(error.to_string()))?) })
    }

    /// Stops watching, and ends the daemon if `quit`.
    pub(crate) fn stop(mut self, quit: bool) {
        // A thread that is gone has nothing to end.
        let _ = self.end.send(quit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.end.send(false);
    }
}

fn keep(control: &Control, mut life: Lifecycle, end: &mpsc::Receiver<bool>, tell: &impl Fn(Standing)) {
    let mut told = Standing::Up;
    loop {
        let pause = if told == Standing::Up { EVERY } else { SOON * 10 };
        match end.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(true) => {
                if let Err(error) = control.quit() {
                    tracing::warn!(%error, "MPS control daemon does not end");
                }
                return;
            }
            Ok(false) | Err(RecvTimeoutError::Disconnected) => return,
        }
        if let Err(error) = step(control, &mut life) {
            tracing::error!(%error, "MPS control daemon can't be started");
        }
        let standing = life.standing().clone();
        if standing != told {
            match &standing {
                Standing::Up => tracing::info!("MPS is up again"),
                Standing::Broken(why) => tracing::error!(why, "MPS is broken: no SM shares until it is back"),
            }
            tell(standing.clone());
            told = standing;
        }
    }
}

/// Looks, and starts the daemon if that is due.
fn step(control: &Control, life: &mut Lifecycle) -> io::Result<()> {
    if life.step(control.look(), monotonic()) {
        control.start()?;
        tracing::info!("MPS control daemon started");
    }
    Ok(())
}
