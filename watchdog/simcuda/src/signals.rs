//! Termination signals, taken by waiting for them instead of by a handler.

use std::io;
use std::mem::MaybeUninit;

/// SIGTERM and SIGINT, blocked in the thread that made this and in those that it starts.
#[derive(Debug)]
pub struct Termination(libc::sigset_t);

/// Blocks SIGTERM and SIGINT.
pub fn block_termination() -> io::Result<Termination> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set that the other calls then use; the old mask is not asked for.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        let mut set = set.assume_init();
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
            0 => Ok(Termination(set)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Blocks all signals while `start` runs; the threads that it starts keep them blocked. For a library's own
/// threads, which must not run the program's signal handlers.
pub(crate) fn without_signals<T>(start: impl FnOnce() -> T) -> T {
    let (mut all, mut old) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: sigfillset initialises `all`; pthread_sigmask initialises `old` before it is read back.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr());
        let result = start();
        libc::pthread_sigmask(libc::SIG_SETMASK, old.as_ptr(), std::ptr::null_mut());
        result
    }
}

impl Termination {
    /// Waits for one of them.
    pub fn wait(&self) -> io::Result<()> {
        let mut signal = 0;
        // SAFETY: the set is initialised and lives as long as the call.
        match unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}
