//! What an earlier agent left, and which GPUs that makes there be. Decides; the files are others' business.

use std::io;
use std::path::Path;
use std::time::Duration;

use gpu_share::binding::{Binding, GpuId, Owner};
use gpu_share::ledger::{Gpu, Ledger};
use gpu_share::names::state;
use gpu_share::page::Snapshot;
use gpu_share::share::Share;

use crate::checkpoint::{self, Found, Saved};
use crate::inventory::InventoryError;

/// What was found in the state folder.
#[derive(Debug, Default)]
pub(super) struct Before {
    pub(super) saved: Saved,
    /// There was a checkpoint that can't be used.
    pub(super) damaged: bool,
    /// The machine was started again since.
    pub(super) rebooted: bool,
    /// This run of the machine.
    pub(super) boot: Option<String>,
}

/// The GPUs of the node.
#[derive(Debug, Default)]
pub(super) struct Gpus {
    /// All of them.
    pub(super) all: Vec<Gpu>,
    /// Those that nobody has seen yet.
    pub(super) missing: Vec<GpuId>,
}

impl Before {
    /// Reads the checkpoint in the state folder.
    pub(super) fn read(folder: &Path) -> io::Result<Self> {
        let boot = checkpoint::boot();
        let (saved, damaged) = match checkpoint::read_or_set_aside(&folder.join(state::LEDGER))? {
            Found::Nothing => (Saved::default(), false),
            Found::Sound(saved) => (saved, false),
            Found::Damaged(_) => (Saved::default(), true),
        };
        let rebooted = saved.is_of_another_boot(boot.as_deref());
        Ok(Self { saved, damaged, rebooted, boot })
    }

    /// How long to wait for the list of GPUs: a driver that nobody uses yet takes seconds for each, but what runs waits for
    /// its agent.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(if self.had().next().is_some() { 5 } else { 60 })
    }

    /// The GPUs that an earlier agent had, unless the machine was started again since.
    fn had(&self) -> impl Iterator<Item = &Gpu> {
        self.saved.gpus.iter().filter(|_| !self.rebooted)
    }

    /// The GPUs that there are, from what was found now.
    ///
    /// One that an earlier agent had, with bindings, and that does not answer is missing: it fell off its bus, or the driver
    /// hangs, and those that run on it must not lose their bindings for that. Once the machine was started again, one that does
    /// not answer is none of this node.
    pub(super) fn gpus(&self, found: Result<Vec<Gpu>, InventoryError>) -> Result<Gpus, InventoryError> {
        let is_bound = |gpu: &&Gpu| self.saved.bindings.iter().any(|binding| binding.gpu == gpu.id);
        match found {
            Ok(seen) => {
                let is_new = |gpu: &&Gpu| seen.iter().all(|seen| seen.id != gpu.id);
                let missing: Vec<_> = self.had().filter(is_bound).filter(is_new).cloned().collect();
                let ids = missing.iter().map(|gpu| gpu.id.clone()).collect();
                Ok(Gpus { all: seen.into_iter().chain(missing).collect(), missing: ids })
            }
            Err(error) if self.had().any(|gpu| is_bound(&gpu)) => {
                tracing::error!(%error, "GPUs can't be listed: going on with those that an earlier agent found.");
                let missing = self.had().map(|gpu| gpu.id.clone()).collect();
                Ok(Gpus { all: self.had().cloned().collect(), missing })
            }
            Err(error) => Err(error),
        }
    }
}

/// The binding that a page is of, as far as the page has it: whom it is for is not in there.
pub(super) fn from_page(ledger: &Ledger, page: &Snapshot) -> Result<Binding, String> {
    let limits = &page.limits;
    let share = Share::new(limits.sm, limits.floor, limits.ceiling, limits.memory)
        .map_err(|error| error.to_string())?;
    let gpu = GpuId(page.identity.gpu.clone());
    let mut trial = ledger.clone();
    let bound = trial.bind_on(&gpu, page.identity.binding.clone(), Owner::default(), share);
    let (binding, displaced) = bound.map_err(|refusal| refusal.to_string())?;
    if !displaced.moved.is_empty() {
        return Err("its row is not known, and none has room".into());
    }
    Ok(binding)
}

#[cfg(test)]
mod tests {
    use gpu_share::ledger::Sharing;
    use gpu_share::units::Bytes;

    use super::*;

    fn gpu(index: u32) -> Gpu {
        let id = GpuId(format!("GPU-{index}"));
        Gpu { id, index, name: "test".into(), memory: Bytes::gib(16), sharing: Sharing::Exclusive }
    }

    fn before(rebooted: bool) -> Before {
        let mut ledger = Ledger::new([gpu(0), gpu(1), gpu(2)]);
        let id = "b-1".to_string().try_into().unwrap();
        let (binding, _) =
            ledger.bind_on(&gpu(1).id, id, Owner::default(), Share::whole_gpu(Bytes::gib(1))).unwrap();
        let gpus = (0..3).map(gpu).collect();
        Before { saved: Saved { boot: None, gpus, bindings: vec![binding] }, rebooted, ..Before::default() }
    }

    fn silent() -> InventoryError {
        InventoryError::Silent { path: "nvml".into(), patience: Duration::ZERO }
    }

    #[test]
    fn a_gpu_with_bindings_that_does_not_answer_is_missing_and_one_without_is_none() {
        let gpus = before(false).gpus(Ok(vec![gpu(0)])).unwrap();
        assert_eq!((gpus.all, gpus.missing), (vec![gpu(0), gpu(1)], vec![gpu(1).id]));
        let gpus = before(false).gpus(Ok(vec![gpu(0), gpu(1)])).unwrap();
        assert_eq!((gpus.all.len(), gpus.missing.len()), (2, 0));
    }

    #[test]
    fn if_none_can_be_listed_all_are_missing_as_long_as_something_is_bound() {
        let gpus = before(false).gpus(Err(silent())).unwrap();
        assert_eq!((gpus.all.len(), gpus.missing.len()), (3, 3));
        assert!(Before::default().gpus(Err(silent())).is_err());
    }

    #[test]
    fn after_the_machine_was_started_again_only_what_answers_is_there() {
        let gpus = before(true).gpus(Ok(vec![gpu(0)])).unwrap();
        assert_eq!((gpus.all.len(), gpus.missing.len()), (1, 0));
        assert!(before(true).gpus(Err(silent())).is_err());
    }
}
