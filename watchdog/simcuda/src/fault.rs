//! Faults that somebody makes a simulated GPU have: what its management library reports of them, never what runs on it.
//!
//! Pure: a book of what was asked for. It is asked for in JSON on the daemon's socket ([`Order`]).

use serde::{Deserialize, Serialize};

/// `nvmlDeviceGpuRecoveryAction_t`: nothing is to be done.
pub const NO_ACTION: u32 = 0;
/// "GPU has fallen off the bus".
const OFF_THE_BUS: u64 = 79;
/// Events that are remembered for those who have not asked yet.
const REMEMBERED: usize = 1024;

/// What one can make happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// An Xid event on a GPU, of a process if one is named.
    Xid {
        /// The GPU's number.
        gpu: usize,
        /// Which Xid.
        xid: u64,
        /// Whose fault it was.
        #[serde(default)]
        pid: Option<u32>,
    },
    /// The GPU falls off the bus: Xid 79, and from then on its calls say that it is lost.
    Lose {
        /// The GPU's number.
        gpu: usize,
    },
    /// A lost GPU is back, as after a reset.
    Return {
        /// The GPU's number.
        gpu: usize,
    },
    /// What the driver says is to be done for the GPU (0 nothing, 1 reset, 2 reboot, 3 drain, 4 drain and reset).
    Recovery {
        /// The GPU's number.
        gpu: usize,
        /// The action's number.
        action: u32,
    },
    /// From now on no call of the management library returns.
    Hang,
    /// Calls return again, those that hung too.
    Resume,
}

/// An Xid event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XidEvent {
    /// Its number, from 1.
    pub number: u64,
    /// The GPU's number.
    pub gpu: usize,
    /// Which Xid.
    pub xid: u64,
}

/// The answer to `{"request":"events","after":N,"wait_ms":M}`: events after number N, waited for at most M milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Calls hang.
    pub hung: bool,
    /// The events, oldest first.
    pub events: Vec<XidEvent>,
    /// GPUs that are off the bus.
    pub lost: Vec<usize>,
}

/// What one GPU has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// It is off the bus.
    pub lost: bool,
    /// What the driver says is to be done.
    pub recovery: u32,
}

/// The book.
#[derive(Clone, Debug)]
pub struct Faults {
    hung: bool,
    gpus: Vec<Condition>,
    events: Vec<XidEvent>,
    count: u64,
}

impl Faults {
    /// A book of `gpus` without a fault.
    pub fn new(gpus: usize) -> Self {
        Self { hung: false, gpus: vec![Condition::default(); gpus], events: Vec::new(), count: 0 }
    }

    /// Does what is ordered; the event that came of it, with the process that it is of.
    pub fn obey(&mut self, order: Order) -> Result<Option<(XidEvent, Option<u32>)>, String> {
        match order {
            Order::Xid { gpu, xid, pid } => {
                self.gpu(gpu)?;
                Ok(Some((self.note(gpu, xid), pid)))
            }
            Order::Lose { gpu } => {
                self.gpu(gpu)?.lost = true;
                Ok(Some((self.note(gpu, OFF_THE_BUS), None)))
            }
            Order::Return { gpu } => {
                *self.gpu(gpu)? = Condition::default();
                Ok(None)
            }
            Order::Recovery { gpu, action } => {
                self.gpu(gpu)?.recovery = action;
                Ok(None)
            }
            Order::Hang | Order::Resume => {
                self.hung = order == Order::Hang;
                Ok(None)
            }
        }
    }

    /// Whether calls hang.
    pub fn hung(&self) -> bool {
        self.hung
    }

    /// What GPU number `gpu` has.
    pub fn condition(&self, gpu: usize) -> Condition {
        self.gpus.get(gpu).copied().unwrap_or_default()
    }

    /// Number of the last event.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Events after number `after`, as far as they are remembered.
    pub fn after(&self, after: u64) -> Events {
        let events = self.events.iter().filter(|event| event.number > after).copied().collect();
        let lost = self.gpus.iter().enumerate().filter(|(_, gpu)| gpu.lost).map(|(index, _)| index).collect();
        Events { hung: self.hung, events, lost }
    }

    fn gpu(&mut self, gpu: usize) -> Result<&mut Condition, String> {
        let most = self.gpus.len().saturating_sub(1);
        self.gpus.get_mut(gpu).ok_or_else(|| format!("gpu is {gpu}, allowed is 0 to {most}"))
    }

    fn note(&mut self, gpu: usize, xid: u64) -> XidEvent {
        self.count += 1;
        let event = XidEvent { number: self.count, gpu, xid };
        if self.events.len() == REMEMBERED {
            self.events.remove(0);
        }
        self.events.push(event);
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_gpu_says_so_with_an_event_and_comes_back_without_a_fault() {
        let mut faults = Faults::new(2);
        let (event, pid) = faults.obey(Order::Lose { gpu: 1 }).unwrap().unwrap();
        assert_eq!((event, pid), (XidEvent { number: 1, gpu: 1, xid: 79 }, None));
        assert!(faults.condition(1).lost && !faults.condition(0).lost);
        faults.obey(Order::Recovery { gpu: 1, action: 1 }).unwrap();
        faults.obey(Order::Return { gpu: 1 }).unwrap();
        assert_eq!(faults.condition(1), Condition::default());
    }

    #[test]
    fn events_are_told_once_to_whoever_counts() {
        let mut faults = Faults::new(1);
        for xid in [31, 43] {
            faults.obey(Order::Xid { gpu: 0, xid, pid: Some(7) }).unwrap();
        }
        let xids = |after| faults.after(after).events.iter().map(|event| event.xid).collect::<Vec<_>>();
        assert_eq!((xids(0), xids(1), xids(2)), (vec![31, 43], vec![43], vec![]));
        assert_eq!(faults.count(), 2);
    }

    #[test]
    fn an_order_for_a_gpu_that_is_not_there_is_refused() {
        let error = Faults::new(2).obey(Order::Lose { gpu: 2 }).unwrap_err();
        assert_eq!(error, "gpu is 2, allowed is 0 to 1");
        assert!(serde_json::from_str::<Order>(r#"{"request":"lose","gpu":0,"x":1}"#).is_err());
    }
}
