//! The gate: how many connections there may be, and how many of them one process may keep that say who it is.
//!
//! Counts, and reads and answers nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Most connections at a time.
const MAX_CONNECTIONS: usize = 4096;
/// Most connections at a time of one process that have not attached yet. A process needs one; each costs the agent a
/// thread, and starting threads without end would delay the turns of others.
const MAX_STRANGERS: usize = 16;

/// Counts the connections that are open.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    open: usize,
    /// By process, those that have not attached.
    strangers: BTreeMap<u32, usize>,
}

/// One open connection.
#[derive(Debug)]
pub(super) struct Pass {
    gate: Gate,
    /// While it has not attached: the process, or 0 where that can't be seen.
    stranger: Option<u32>,
}

impl Gate {
    /// Lets a connection of `pid` in, or says why not.
    pub(super) fn enter(&self, pid: Option<u32>) -> Result<Pass, String> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.open >= MAX_CONNECTIONS {
            return Err(format!("connections are {MAX_CONNECTIONS}, allowed are {MAX_CONNECTIONS}"));
        }
        let pid = pid.unwrap_or(0);
        let strangers = counts.strangers.entry(pid).or_default();
        if *strangers >= MAX_STRANGERS {
            return Err(format!(
                "connections of process {pid} that have not attached are {MAX_STRANGERS}, allowed are {MAX_STRANGERS}"
            ));
        }
        *strangers += 1;
        counts.open += 1;
        Ok(Pass { gate: self.clone(), stranger: Some(pid) })
    }
}

impl Pass {
    /// The connection has attached. Twice is once.
    pub(super) fn attach(&mut self) {
        let Some(pid) = self.stranger.take() else { return };
        let mut counts = self.gate.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(strangers) = counts.strangers.get_mut(&pid) {
            *strangers -= 1;
            if *strangers == 0 {
                counts.strangers.remove(&pid);
            }
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.attach();
        self.gate.0.lock().unwrap_or_else(PoisonError::into_inner).open -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_keeps_few_connections_that_have_not_attached_and_others_come_in() {
        let gate = Gate::default();
        let mut passes: Vec<_> = (0..MAX_STRANGERS).map(|_| gate.enter(Some(7)).unwrap()).collect();
        assert!(gate.enter(Some(7)).unwrap_err().contains("process 7"));
        assert!(gate.enter(Some(8)).is_ok());
        passes[0].attach();
        passes[0].attach();
        passes.push(gate.enter(Some(7)).unwrap());
        assert!(gate.enter(Some(7)).is_err());
        drop(passes);
        let counts = gate.0.lock().unwrap();
        assert!(counts.open == 0 && counts.strangers.is_empty(), "{counts:?}");
    }

    #[test]
    fn more_connections_than_the_agent_serves_are_refused_whoever_asks() {
        let gate = Gate::default();
        let passes: Vec<_> = (0..MAX_CONNECTIONS)
            .map(|pid| {
                let mut pass = gate.enter(u32::try_from(pid).ok()).unwrap();
                pass.attach();
                pass
            })
            .collect();
        assert!(gate.enter(Some(1)).unwrap_err().contains("4096"));
        drop(passes);
        assert!(gate.enter(Some(1)).is_ok());
    }
}
