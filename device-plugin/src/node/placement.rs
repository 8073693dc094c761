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
        id: &BindingId,
        owner: &Owner,
        share: &Share,
        now: Nanos,
    ) -> Result<(Binding, Vec<Effect>), Refusal> {
        let (binding, displaced) = self.place(gpu, id, owner, share)?;
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

#[cfg(test)]
mod tests {
    use gpu_share::ledger::{Gpu, Sharing};
    use gpu_share::units::{Bytes, SmShare, Units};
    use proptest::prelude::*;

    use super::*;
    use crate::arbiter::{ProcessId, Rules};

    const NOW: Nanos = Nanos::from_millis(1);

    fn node() -> (Node, GpuId) {
        let id = GpuId("GPU-1".into());
        let (memory, sharing) = (Bytes::gib(16), Sharing::Mps);
        let gpu = Gpu { id: id.clone(), index: 0, name: "simulated".into(), memory, sharing };
        (Node::new([gpu], Units::PER_GPU, Rules::default()), id)
    }

    fn id(name: &str) -> BindingId {
        BindingId::try_from(name.to_string()).unwrap()
    }

    fn percent(percent: u8) -> Quota {
        Quota::from_percent(percent).unwrap()
    }

    fn share(sm: u8, floor: u8, gib: u64) -> Share {
        Share::new(SmShare::from_percent(sm).unwrap(), percent(floor), Quota::WHOLE, Bytes::gib(gib)).unwrap()
    }

    fn placeholder(node: &mut Node, gpu: &GpuId, name: &str, gib: u64) {
        let share = fit::placeholder(Bytes::gib(gib)).unwrap();
        node.bind_on(gpu, &id(name), &Owner::default(), &share, NOW).unwrap();
    }

    /// What the arbiters know is what the ledger says.
    fn check(node: &Node) -> Result<(), String> {
        node.ledger.check()?;
        for binding in node.ledger.bindings() {
            let rows: Vec<_> =
                node.rows.iter().filter(|(_, row)| row.has(&binding.id)).map(|(key, _)| key).collect();
            if rows != [&(binding.gpu.clone(), binding.row)] {
                return Err(format!("{} is in rows {rows:?}, not in {}", binding.id, binding.row));
            }
        }
        Ok(())
    }

    #[test]
    fn a_binding_takes_its_form_when_its_container_starts() {
        let (mut node, gpu) = node();
        for name in ["a", "b"] {
            placeholder(&mut node, &gpu, name, 4);
        }
        for (name, form) in [("a", share(30, 100, 4)), ("b", share(60, 50, 4))] {
            let (binding, _) = node.reshape(&id(name), Owner::default(), &form, form.floor, NOW).unwrap();
            assert_eq!((binding.share, binding.grant), (form, form.floor));
        }
        assert_eq!(check(&node), Ok(()));
    }

    #[test]
    fn beside_a_neighbour_that_leaves_no_width_it_has_the_same_area_in_another_form() {
        let (mut node, gpu) = node();
        placeholder(&mut node, &gpu, "a", 4);
        node.reshape(&id("a"), Owner::default(), &share(30, 100, 4), Quota::WHOLE, NOW).unwrap();
        placeholder(&mut node, &gpu, "b", 4);
        let wide = share(100, 30, 4);
        let (binding, _) = node.reshape(&id("b"), Owner::default(), &wide, wide.floor, NOW).unwrap();
        assert_eq!((binding.share.sm.percent(), binding.share.floor.ppm()), (70, 428_572));
        assert_eq!(check(&node), Ok(()));
    }

    #[test]
    fn while_a_process_is_attached_its_quota_changes_and_its_multiprocessors_do_not() {
        let (mut node, gpu) = node();
        placeholder(&mut node, &gpu, "a", 4);
        node.reshape(&id("a"), Owner::default(), &share(50, 40, 4), percent(40), NOW).unwrap();
        node.attach(ProcessId(1), &id("a"), 7, Bytes::ZERO).unwrap();
        let (binding, effects) =
            node.reshape(&id("a"), Owner::default(), &share(100, 20, 4), percent(80), NOW).unwrap();
        assert_eq!((binding.share.sm.percent(), binding.share.floor), (50, percent(20)));
        assert_eq!(binding.grant, percent(80));
        assert!(effects.contains(&Effect::Limits(id("a"))), "the page is told: {effects:?}");
    }

    #[test]
    fn what_does_not_fit_at_all_changes_nothing() {
        let (mut node, gpu) = node();
        placeholder(&mut node, &gpu, "a", 4);
        node.reshape(&id("a"), Owner::default(), &share(50, 40, 4), percent(40), NOW).unwrap();
        node.attach(ProcessId(1), &id("a"), 7, Bytes::ZERO).unwrap();
        let before = node.ledger.get(&id("a")).unwrap().clone();
        assert!(node.reshape(&id("a"), Owner::default(), &share(50, 40, 17), percent(40), NOW).is_err());
        assert_eq!(node.ledger.get(&id("a")).unwrap(), &before);
    }

    proptest! {
        #[test]
        fn ledger_and_arbiters_agree_whatever_is_bound_reshaped_and_released(
            acts in prop::collection::vec((0u8..4, 0u8..6, 1u8..=100, 1u8..=100, 1u64..=6), 1..40),
        ) {
            let (mut node, gpu) = node();
            for (act, which, sm, floor, gib) in acts {
                let (name, form) = (id(&format!("b{which}")), share(sm, floor, gib));
                // What is refused must leave everything sound too.
                match act {
                    0 => drop(node.bind_on(&gpu, &name, &Owner::default(), &form, NOW)),
                    1 => drop(node.reshape(&name, Owner::default(), &form, percent(floor), NOW)),
                    2 => drop(node.release(&name, NOW)),
                    _ => drop(node.attach(ProcessId(u64::from(sm)), &name, 7, Bytes::ZERO)),
                }
                prop_assert_eq!(check(&node), Ok(()));
            }
        }
    }
}
