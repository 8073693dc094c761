//! Where a source of reports hands them in, and is told how often to look. What it does at the moment is noted here, for
//! when it never comes back from it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use gpu_share::units::Nanos;

use super::Report;

/// A source's side.
#[derive(Clone, Debug)]
pub struct Desk {
    reports: mpsc::Sender<Report>,
    notes: Arc<Notes>,
}

/// What both sides see.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Between two probes of the GPUs, in nanoseconds.
    pause: AtomicU64,
    /// The call that has not returned yet.
    doing: Mutex<String>,
}

impl Notes {
    pub(super) fn set_pause(&self, pause: Nanos) {
        self.pause.store(pause.0, Ordering::Relaxed);
    }

    pub(super) fn doing(&self) -> String {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Desk {
    pub(super) fn new(pause: Nanos) -> (Self, Arc<Notes>, mpsc::Receiver<Report>) {
        let (reports, inbox) = mpsc::channel();
        let notes = Arc::new(Notes::default());
        notes.set_pause(pause);
        (Self { reports, notes: Arc::clone(&notes) }, notes, inbox)
    }

    /// To hand in reports without a source.
    pub(super) fn sender(&self) -> mpsc::Sender<Report> {
        self.reports.clone()
    }

    /// Hands in a report; false if nobody wants any more.
    pub fn report(&self, report: Report) -> bool {
        self.reports.send(report).is_ok()
    }

    /// Time between two probes of the GPUs, as it is wanted now.
    pub fn pause(&self) -> Duration {
        Duration::from_nanos(self.notes.pause.load(Ordering::Relaxed))
    }

    /// Notes the call that is made next.
    pub fn about_to(&self, call: impl fmt::Display) {
        *self.notes.doing.lock().unwrap_or_else(PoisonError::into_inner) = call.to_string();
    }
}
