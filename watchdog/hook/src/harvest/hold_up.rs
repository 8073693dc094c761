//! Holds a stream up while a launch is put between its events, so that these lie at the edges of its work.
//!
//! Where the GPU waits for the host, the events around a short kernel measure how long the host took to launch it. Once in
//! a while such work is launched behind a host function that waits, and measured exactly.

use core::ffi::c_void;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::handle;
use crate::driver;

/// A launch that has not returned after so long may be waiting for the stream itself.
const LONGEST: Duration = Duration::from_millis(2);

#[derive(Debug, Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

/// A stream on which nothing starts before this is dropped, or [`LONGEST`] has passed.
#[derive(Debug)]
pub(super) struct HoldUp(Arc<Gate>);

impl HoldUp {
    /// Holds `stream` of the present context up; `None` where the driver can't.
    pub(super) fn of(stream: usize) -> Option<Self> {
        let gate = Arc::new(Gate::default());
        let data = Arc::into_raw(gate.clone()).cast_mut().cast();
        if driver::launch_host_function(handle(stream), wait, data).is_ok() {
            return Some(Self(gate));
        }
        // SAFETY: it was made from an Arc just now, and the driver, which refused, has not kept it.
        drop(unsafe { Arc::from_raw(data.cast::<Gate>()) });
        None
    }
}

impl Drop for HoldUp {
    fn drop(&mut self) {
        *self.0.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.opened.notify_all();
    }
}

/// # Safety
/// Called once by the driver, with what was given to it in [`HoldUp::of`].
unsafe extern "C" fn wait(data: *mut c_void) {
    // SAFETY: as said above: it was made from an Arc, and this is its only use.
    let gate = unsafe { Arc::from_raw(data.cast_const().cast::<Gate>()) };
    let open = gate.open.lock().unwrap_or_else(PoisonError::into_inner);
    drop(gate.opened.wait_timeout_while(open, LONGEST, |open| !*open));
}
