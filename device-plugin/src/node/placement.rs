//! Bindings whose GPU and form somebody else chooses: the kubelet gives devices before it says for whom, so that a container
//! is bound first and gets its form when it starts.

use gpu_share::binding::{Binding, BindingId, GpuId, Owner};
use gpu_share::ledger::{Displaced, Refusal};
use gpu_share::share::Share;
use gpu_share::units::{Nanos, Quota};

use super::{Account, Effect, Node};
use crate::arbiter;
use crate::fit;

impl Node {
    /// Binds `share` on `gpu`, in the first of its forms that fits there (see [`fit::forms`]).
    pub fn bind_on(
        &mut self,
        gpu: &GpuId,
        id: BindingId,
        owner: &Owner,
        share: &Share,
        now: Nanos,
    ) -> Result<(Binding, Vec<Effect>), Refusal> {
        let (binding, displaced) = self.place(gpu, &id, owner, share)?;
        self.settle(&binding, displaced, Account::default(), now);
        Ok((binding, self.take_effects()))
    }

    /// Changes whom a binding is for and what it may use, and gives it as much of `quota` as there is room for.
    ///
    /// While processes are attached it keeps its row and its SMs: a process can't change them. Where nothing fits, nothing
    /// changes.
    pub fn reshape(
        &mut self,
        id: &BindingId,
        owner: Owner,
        share: &Share,
        quota: Quota,
        now: Nanos,
    ) -> Result<(Binding, Vec<Effect>), Refusal> {
        let before = self.ledger.get(id)?.clone();
        if self.is_attached(id) {
            self.resize_in_row(&before, &Share { sm: before.share.sm, ..*share }, now)?;
        } else if self.resize_in_row(&before, share, now).is_err() {
            self.move_to_fit(&before, share, now)?;
        }
        self.ledger.set_owner(id, owner)?;
        if !self.ledger.get(id)?.is_parked() {
            self.effects = self.set_grant(id, quota, now)?.1;
        }
        Ok((self.ledger.get(id)?.clone(), self.take_effects()))
    }

    /// Whether processes of a binding are attached.
    pub fn is_attached(&self, id: &BindingId) -> bool {
        self.processes_of(id).next().is_some()
    }

    fn resize_in_row(&mut self, before: &Binding, share: &Share, now: Nanos) -> Result<(), Refusal> {
        let (_, withdrawn) = self.ledger.resize(&before.id, *share)?;
        self.withdrawn(withdrawn, now);
        self.resize(&before.id, now);
        Ok(())
    }

    /// Nothing of it runs, so it can be in any row.
    fn move_to_fit(&mut self, before: &Binding, share: &Share, now: Nanos) -> Result<(), Refusal> {
        self.ledger.release(&before.id)?;
        match self.place(&before.gpu, &before.id, &before.owner, share) {
            Ok((binding, displaced)) => {
                self.arbitrate(before, arbiter::Event::Leave(before.id.clone()), now);
                let account = self.accounts.remove(&before.id).unwrap_or_default();
                self.settle(&binding, displaced, account, now);
                Ok(())
            }
            Err(refusal) => {
                self.ledger.restore(before.clone())?;
                Err(refusal)
            }
        }
    }

    fn place(
        &mut self,
        gpu: &GpuId,
        id: &BindingId,
        owner: &Owner,
        share: &Share,
    ) -> Result<(Binding, Displaced), Refusal> {
        let mut refused = Refusal::UnknownGpu(gpu.clone());
        for form in self.forms(gpu, None, share) {
            match self.ledger.bind_on(gpu, id.clone(), owner.clone(), form) {
                Ok(bound) => return Ok(bound),
                Err(refusal) => refused = refusal,
            }
        }
        Err(refused)
    }

    fn forms(&self, gpu: &GpuId, except: Option<&BindingId>, share: &Share) -> Vec<Share> {
        let Some(card) = self.ledger.gpu(gpu) else { return Vec::new() };
        fit::forms(card, self.ledger.bindings_on(gpu).filter(|binding| Some(&binding.id) != except), share)
    }

    /// The ledger has a binding: its arbiter has it too, and who was displaced follows.
    fn settle(&mut self, binding: &Binding, displaced: Displaced, account: Account, now: Nanos) {
        // Before the new one joins: its row may be what they leave.
        for moved in displaced.moved {
            self.change_row(&moved, now);
        }
        self.join(binding, account, now);
        self.withdrawn(displaced.withdrawn, now);
    }
}
