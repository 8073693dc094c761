//! The ledger against a model of it: plain lists and sums that share no code with it.
//!
//! The model is told what each operation answered, and nothing else. After each one it must agree with the ledger on
//! every binding, so that a change that was not reported is found, and what must always hold is summed up anew from the
//! model's own lists.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::tests::{gpu, id, quota, share};
use super::*;
use crate::units::Units;

/// GPUs of the node, as they are shared.
const GPUS: [Sharing; 3] = [Sharing::Mps, Sharing::Mps, Sharing::Exclusive];
/// Names that operations draw from: more than fit, so that some are always free.
const NAMES: u32 = 40;
/// Operations on one ledger, before another is begun.
const EPISODE: u32 = 5_000;

/// One binding, in percent and bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    gpu: usize,
    row: u32,
    sm: u32,
    floor: u32,
    ceiling: u32,
    /// Parts per million.
    grant: u32,
    memory: u64,
    /// What the kubelet gave its container, never more nor less until it is released.
    units: u32,
}

#[derive(Clone, Debug, Default)]
struct Model {
    entries: BTreeMap<u32, Entry>,
    unhealthy: BTreeSet<usize>,
}

fn number(id: &BindingId) -> u32 {
    id.as_str().trim_start_matches("b-").parse().unwrap()
}

fn entry(binding: &Binding, units: u32) -> Entry {
    Entry {
        gpu: binding.gpu.0.trim_start_matches("GPU-").parse().unwrap(),
        row: binding.row,
        sm: binding.share.sm.percent().into(),
        floor: binding.share.floor.ppm() / 10_000,
        ceiling: binding.share.ceiling.ppm() / 10_000,
        grant: binding.grant.ppm(),
        memory: binding.share.memory.0,
        units,
    }
}

impl Model {
    fn on(&self, gpu: usize) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(move |entry| entry.gpu == gpu)
    }

    fn width_of(gpu: usize, sm: u32) -> u32 {
        if GPUS[gpu] == Sharing::Exclusive { 100 } else { sm }
    }

    fn widths(&self, gpu: usize) -> BTreeMap<u32, u32> {
        let mut widths = BTreeMap::new();
        for entry in self.on(gpu) {
            let width = widths.entry(entry.row).or_insert(0);
            *width = (*width).max(Self::width_of(gpu, entry.sm));
        }
        widths
    }

    fn sum(&self, gpu: usize, row: u32, of: impl Fn(&Entry) -> u32) -> u32 {
        self.on(gpu).filter(|entry| entry.row == row).map(of).sum()
    }

    /// Whether a share fits on a GPU as its rows are, tried in each row and in one of its own.
    fn has_place(&self, gpu: usize, share: &Share) -> bool {
        let (sm, floor) = (Self::width_of(gpu, share.sm.percent().into()), share.floor.ppm() / 10_000);
        let memory: u64 = self.on(gpu).map(|entry| entry.memory).sum();
        let widths = self.widths(gpu);
        let total: u32 = widths.values().sum();
        let in_a_row = |(&row, &width): (&u32, &u32)| {
            self.sum(gpu, row, |entry| entry.floor) + floor <= 100 && total - width + width.max(sm) <= 100
        };
        !self.unhealthy.contains(&gpu)
            && memory + share.memory.0 <= Bytes::gib(16).0
            && (total + sm <= 100 || widths.iter().any(in_a_row))
    }

    /// Parts of a GPU that floors and memory leave, as the smaller of the two.
    #[allow(clippy::cast_precision_loss)] // Gibibytes; far more exact than what is compared.
    fn room(&self, gpu: usize, share: &Share) -> f64 {
        let time_of = |sm: u32, floor: u32| f64::from(Self::width_of(gpu, sm) * floor) / 1e4;
        let sold: f64 = self.on(gpu).map(|entry| time_of(entry.sm, entry.floor)).sum();
        let bound: u64 = self.on(gpu).map(|entry| entry.memory).sum();
        let (sold, bound) = (
            sold + time_of(share.sm.percent().into(), share.floor.ppm() / 10_000),
            (bound + share.memory.0) as f64 / Bytes::gib(16).0 as f64,
        );
        (1.0 - sold).max(0.0).min((1.0 - bound).max(0.0))
    }

    fn apply(&mut self, withdrawn: &Withdrawn) {
        for (id, grant) in withdrawn {
            let entry = self.entries.get_mut(&number(id)).unwrap();
            assert!(grant.ppm() < entry.grant, "{id} is said to have lost what it has not");
            assert!(grant.ppm() >= entry.floor * 10_000, "{id} lost its floor");
            entry.grant = grant.ppm();
        }
    }

    /// What must hold whatever was done: acceptance list a.8 of the plugin, and the ledger's own rows.
    fn check(&self, ledger: &Ledger) {
        for (index, card) in ledger.gpus().enumerate() {
            let widths = self.widths(index);
            assert!(widths.values().sum::<u32>() <= 100, "rows are wider than GPU {index}");
            for &row in widths.keys() {
                assert!(self.sum(index, row, |entry| entry.floor) <= 100, "floors of row {row}");
                assert!(self.sum(index, row, |entry| entry.grant) <= 1_000_000, "grants of row {row}");
            }
            assert!(self.on(index).map(|entry| entry.memory).sum::<u64>() <= Bytes::gib(16).0, "memory");
            let area = |of: fn(&Entry) -> u32| self.on(index).map(|entry| entry.sm * of(entry)).sum::<u32>();
            assert!(area(|entry| entry.floor) <= 10_000, "floors of GPU {index} are more than it has");
            assert!(area(|entry| entry.grant / 100) <= 1_000_000, "grants of GPU {index}");
            self.check_offer(ledger, card, index);
        }
        for (name, entry) in &self.entries {
            let parked = entry.grant == 0;
            let (floor, ceiling) = (entry.floor * 10_000, entry.ceiling * 10_000);
            assert!(parked || (floor..=ceiling).contains(&entry.grant), "grant of b-{name}");
        }
        let theirs: BTreeMap<_, _> = ledger
            .bindings()
            .map(|binding| {
                let name = number(&binding.id);
                (name, entry(binding, self.entries.get(&name).map_or(0, |entry| entry.units)))
            })
            .collect();
        assert_eq!(theirs, self.entries, "something changed that was not reported");
    }

    /// No unit is counted twice, none that a container has is withdrawn, and what is free could be bound.
    fn check_offer(&self, ledger: &Ledger, card: &Gpu, index: usize) {
        let allocated: u32 = self.on(index).map(|entry| entry.units).sum();
        let offer = ledger.offer(card, Units::PER_GPU, Units(allocated), Units(1));
        assert_eq!(offer.allocated.0 + offer.free.0 + offer.withdrawn.0, 20);
        assert_eq!(offer.allocated.0, allocated.min(20), "a container's units are its own");
        let held: u32 =
            self.on(index).map(|entry| entry.sm * entry.grant.max(entry.floor * 10_000) / 100).sum();
        // Floors of parked bindings and grants that borrow them may be more than the GPU together.
        assert!(
            offer.free.0 == 0 || offer.free.0 * 50_000 + held <= 1_000_000,
            "free units are sold already"
        );
        if self.unhealthy.contains(&index) {
            assert_eq!(offer.free, Units(0));
            return;
        }
        // The largest fit is no promise that can't be kept: as a share of full memory and little time it can be bound.
        let largest = ledger.largest_fit(card, Units::PER_GPU);
        assert!(largest <= ledger.free_units(card, Units::PER_GPU));
        if largest.0 > 0 {
            let memory = Bytes(card.memory.0 / 20 * u64::from(largest.0));
            let fits = (1..=100).any(|sm| self.has_place(index, &share(sm, 1, 100, memory)));
            assert!(fits, "nothing of {} units of memory fits on GPU {index}", largest.0);
        }
    }
}

struct Trial {
    ledger: Ledger,
    model: Model,
    rng: StdRng,
    bound: u64,
    refused: u64,
    merged: u64,
}

impl Trial {
    fn new(seed: u64) -> Self {
        Self {
            ledger: Self::empty(),
            model: Model::default(),
            rng: StdRng::seed_from_u64(seed),
            bound: 0,
            refused: 0,
            merged: 0,
        }
    }

    fn empty() -> Ledger {
        Ledger::new(GPUS.iter().zip(0..).map(|(&sharing, index)| gpu(index, sharing)))
    }

    fn random_share(&mut self) -> Share {
        let floor = self.rng.random_range(1..=60);
        let ceiling = self.rng.random_range(floor..=100);
        let memory = Bytes::mib(self.rng.random_range(0..6_000));
        share(self.rng.random_range(1..=100), floor, ceiling, memory)
    }

    fn step(&mut self) {
        let name = self.rng.random_range(0..NAMES);
        match self.rng.random_range(0..20) {
            0..=5 => self.allocate(name),
            6..=8 => self.free(name),
            9..=12 => self.grant(name),
            13 => {
                if self.ledger.park(&id(name)).is_ok() {
                    self.model.entries.get_mut(&name).unwrap().grant = 0;
                }
            }
            14 => {
                if let Ok(grant) = self.ledger.withdraw(&id(name)) {
                    let entry = self.model.entries.get_mut(&name).unwrap();
                    assert_eq!(grant.ppm(), entry.grant.min(entry.floor * 10_000));
                    entry.grant = grant.ppm();
                }
            }
            15..=17 => self.resize(name),
            18 => self.fail_or_recover(),
            _ => self.restart(),
        }
        self.model.check(&self.ledger);
    }

    fn allocate(&mut self, name: u32) {
        let share = self.random_share();
        let chosen = self.rng.random_range(0..GPUS.len());
        let choose = self.rng.random_bool(0.3);
        let result = if choose {
            self.ledger.bind_on(&GpuId(format!("GPU-{chosen}")), id(name), Owner::default(), share)
        } else {
            self.ledger.bind(id(name), Owner::default(), share)
        };
        let possible: Vec<_> = (0..GPUS.len())
            .filter(|&gpu| (!choose || gpu == chosen) && self.model.has_place(gpu, &share))
            .collect();
        match result {
            Ok((binding, displaced)) => {
                let units = share.units(Units::PER_GPU, Bytes::gib(16)).0;
                let entry = entry(&binding, units);
                assert!(!self.model.unhealthy.contains(&entry.gpu), "bound on a GPU that is not healthy");
                let best = possible.iter().map(|&gpu| self.model.room(gpu, &share)).reduce(f64::min);
                if displaced.moved.is_empty() {
                    let room = self.model.room(entry.gpu, &share);
                    assert!(
                        best.is_some_and(|best| room <= best + 1e-5),
                        "{room} left, {best:?} was possible"
                    );
                } else {
                    assert!(possible.is_empty(), "bindings moved although there was a place");
                    self.merged += 1;
                }
                for moved in &displaced.moved {
                    let row = self.ledger.get(moved).unwrap().row;
                    self.model.entries.get_mut(&number(moved)).unwrap().row = row;
                }
                self.model.apply(&displaced.withdrawn);
                self.model.entries.insert(name, entry);
                self.bound += 1;
            }
            Err(Refusal::Exists(_)) => assert!(self.model.entries.contains_key(&name)),
            Err(refusal) => {
                assert!(possible.is_empty(), "{refusal}, but there was a place on {possible:?}");
                self.refused += 1;
            }
        }
    }

    fn free(&mut self, name: u32) {
        let ours = self.model.entries.remove(&name);
        let theirs = self.ledger.release(&id(name)).ok();
        assert_eq!(theirs.map(|binding| entry(&binding, ours.as_ref().map_or(0, |e| e.units))), ours);
    }

    fn grant(&mut self, name: u32) {
        let wanted = quota(self.rng.random_range(0..=100));
        let Ok((grant, withdrawn)) = self.ledger.grant(&id(name), wanted) else { return };
        self.model.apply(&withdrawn);
        let entry = self.model.entries.get_mut(&name).unwrap();
        assert!((entry.floor * 10_000..=entry.ceiling * 10_000).contains(&grant.ppm()));
        entry.grant = grant.ppm();
    }

    fn resize(&mut self, name: u32) {
        let share = self.random_share();
        let Some(before) = self.model.entries.remove(&name) else {
            assert!(self.ledger.resize(&id(name), share).is_err());
            return;
        };
        match self.ledger.resize(&id(name), share) {
            Ok((binding, withdrawn)) => {
                self.model.apply(&withdrawn);
                let after = entry(&binding, before.units);
                assert_eq!((after.gpu, after.row), (before.gpu, before.row));
                assert_eq!(after.grant == 0, before.grant == 0, "only who was parked is");
                self.model.entries.insert(name, after);
            }
            Err(_) => drop(self.model.entries.insert(name, before)),
        }
    }

    fn fail_or_recover(&mut self) {
        let gpu = self.rng.random_range(0..GPUS.len());
        let healthy = self.rng.random_bool(0.7);
        self.ledger.set_healthy(&GpuId(format!("GPU-{gpu}")), healthy).unwrap();
        if healthy {
            self.model.unhealthy.remove(&gpu)
        } else {
            self.model.unhealthy.insert(gpu)
        };
    }

    /// A new ledger from what a checkpoint has. Which GPU is healthy is not in it, but found anew.
    fn restart(&mut self) {
        let saved = serde_json::to_string(&self.ledger.bindings().collect::<Vec<_>>()).unwrap();
        let mut after = Self::empty();
        for binding in serde_json::from_str::<Vec<Binding>>(&saved).unwrap() {
            after.restore(binding).unwrap();
        }
        self.ledger = after;
        self.model.unhealthy.clear();
    }
}

/// Operations in all: as many as `GPUFN_LEDGER_OPERATIONS` says, 20,000 without it. A million take 40 s of processor time.
#[test]
fn whatever_is_done_the_ledger_agrees_with_the_model_and_no_invariant_breaks() {
    let wanted = std::env::var("GPUFN_LEDGER_OPERATIONS").ok();
    let operations =
        wanted.map_or(20_000, |wanted| wanted.parse().expect("GPUFN_LEDGER_OPERATIONS is a number"));
    let (mut bound, mut refused, mut merged) = (0, 0, 0);
    for seed in 0..u64::from(u32::div_ceil(operations, EPISODE)) {
        let mut trial = Trial::new(seed);
        (0..EPISODE).for_each(|_| trial.step());
        for name in 0..NAMES {
            trial.free(name);
        }
        assert_eq!(trial.ledger.free_memory(trial.ledger.gpus().next().unwrap()), Bytes::gib(16));
        (bound, refused, merged) = (bound + trial.bound, refused + trial.refused, merged + trial.merged);
    }
    let enough = u64::from(operations / 100);
    assert!(
        bound > enough && refused > enough && merged > enough / 100,
        "{bound} bound, {refused} refused, {merged} with merged rows: the test exercises too little"
    );
}
