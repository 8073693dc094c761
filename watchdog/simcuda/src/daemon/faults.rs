//! The book of faults as connections share it: orders in, and events to whoever waits for them.

use std::fs::File;
use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::monotonic;
use crate::card::Device;
use crate::fault::{Events, Faults, Order, XidEvent};

/// Longest that a question for events may wait.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct FaultBook {
    faults: Mutex<Faults>,
    changed: Condvar,
    /// Where a driver's lines of the kernel's log go.
    kernel_log: Option<File>,
}

impl FaultBook {
    pub(super) fn new(gpus: usize, kernel_log: Option<File>) -> Self {
        Self { faults: Mutex::new(Faults::new(gpus)), changed: Condvar::new(), kernel_log }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what is ordered on one of `devices`.
    pub(super) fn obey(&self, order: Order, devices: &[Device]) -> Result<(), String> {
        let mut faults = self.lock();
        if let Some((event, pid)) = faults.obey(order)? {
            // Before the event can be heard, as the driver does it.
            self.log(event, pid, devices)
                .map_err(|error| format!("the kernel log can't be written: {error}"))?;
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Events after number `after`, waited for at most `wait`.
    pub(super) fn events(&self, after: u64, wait: Duration) -> Events {
        let faults = self.lock();
        let none = |faults: &mut Faults| !faults.hung() && faults.count() <= after;
        let waited = self.changed.wait_timeout_while(faults, wait.min(LONGEST_WAIT), none);
        waited.unwrap_or_else(PoisonError::into_inner).0.after(after)
    }

    /// A record as `/dev/kmsg` gives it: priority, sequence number, microseconds and flags, then the text.
    fn log(&self, event: XidEvent, pid: Option<u32>, devices: &[Device]) -> std::io::Result<()> {
        let (Some(mut file), Some(device)) = (self.kernel_log.as_ref(), devices.get(event.gpu)) else {
            return Ok(());
        };
        let pid = pid.map_or_else(|| "'<unknown>'".into(), |pid| pid.to_string());
        let address = device.pci_address();
        let bus = address.trim_end_matches(".0");
        let (number, xid, time) = (event.number, event.xid, monotonic().0 / 1000);
        let line = format!(
            "3,{number},{time},-;NVRM: Xid (PCI:{bus}): {xid}, pid={pid}, name=<unknown>, simulated\n"
        );
        file.write_all(line.as_bytes())
    }
}
