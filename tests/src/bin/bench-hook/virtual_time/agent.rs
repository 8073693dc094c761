//! The node agent without sockets and files: the pure node that it runs.

use std::collections::BTreeMap;

use device_plugin::arbiter::{ProcessId, Rules};
use device_plugin::node::{Effect, Node, Report};
use gpu_share::binding::{BindingId, GpuId, Owner};
use gpu_share::ledger::{Gpu, Sharing};
use gpu_share::protocol::{Bind, FromContainer};
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos, Quota, SmShare, Units};
use gpufn::audit::cell::{Container, Mode};

/// The node, and who is who in it.
#[derive(Debug)]
pub(super) struct Agent {
    node: Node,
    ids: Vec<BindingId>,
    processes: BTreeMap<(BindingId, usize), usize>,
    words: Vec<(usize, u32)>,
}

impl Agent {
    pub(super) fn new(mode: Mode) -> Self {
        let sharing = if mode == Mode::Mps { Sharing::Mps } else { Sharing::Exclusive };
        let gpu = Gpu {
            id: GpuId("GPU".into()),
            index: 0,
            name: "virtual".into(),
            memory: Bytes::gib(16),
            sharing,
        };
        let node = Node::new([gpu], Units::PER_GPU, Rules::default());
        Self { node, ids: Vec::new(), processes: BTreeMap::new(), words: Vec::new() }
    }

    pub(super) fn bind(&mut self, index: usize, container: &Container) {
        let percent = |percent| Quota::from_percent(percent).expect("a quota of a cell is at most 100 %");
        let sm = SmShare::from_percent(container.sm).expect("an SM share of a cell is at most 100 %");
        let share = Share::new(sm, percent(container.quota), percent(container.ceiling), Bytes::mib(100));
        let share = share.expect("quotas of a cell are above 0, and the ceiling is no less than the floor");
        let id: BindingId = format!("c{index}").try_into().expect("a letter and a number name a binding");
        let bind = Bind { owner: Owner::default(), share };
        self.node.bind(id.clone(), bind, Nanos::ZERO).expect("the containers of a cell fit on one GPU");
        self.ids.push(id);
    }

    pub(super) fn attach(&mut self, container: usize, process: usize) {
        let id = self.ids[container].clone();
        let (slot, _) = self
            .node
            .attach(ProcessId(process as u64), &id, 1, Bytes::ZERO)
            .expect("a page has slots for the processes of a cell");
        self.processes.insert((id, slot), process);
    }

    pub(super) fn hear(&mut self, process: usize, message: &FromContainer, now: Nanos) {
        let process = ProcessId(process as u64);
        let effects = match *message {
            FromContainer::Want => self.node.want(process, now),
            FromContainer::Yield { right, used, launches, throttled, more, unknown } => {
                self.node.give_back(process, &Report { right, used, launches, throttled, more, unknown }, now)
            }
            _ => Vec::new(),
        };
        self.note(effects);
        self.tick(now);
    }

    pub(super) fn tick(&mut self, now: Nanos) {
        let effects = self.node.tick(now);
        self.note(effects);
    }

    pub(super) fn grant(&mut self, container: usize, quota: Quota, now: Nanos) {
        let granted = self.node.set_grant(&self.ids[container], quota, now);
        self.note(granted.expect("the container is bound").1);
    }

    pub(super) fn grant_of(&self, container: usize) -> Option<Quota> {
        self.node.ledger().get(&self.ids[container]).ok().map(|binding| binding.grant)
    }

    pub(super) fn deadline(&self, now: Nanos) -> Option<Nanos> {
        self.node.deadline(now)
    }

    /// Words of pages that changed: process and word.
    pub(super) fn take_words(&mut self) -> Vec<(usize, u32)> {
        core::mem::take(&mut self.words)
    }

    fn note(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            if let Effect::Right { binding, slot, right } = effect
                && let Some(&process) = self.processes.get(&(binding, slot))
            {
                self.words.push((process, right));
            }
        }
    }
}
