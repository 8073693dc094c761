//! One cell of the matrix: which containers share the GPU, what each was set, and what its processes launch.
//!
//! Owns the axes and which cells there are. Pure: the same cells are run in real time and in virtual time.

use std::fmt;

use serde::{Serialize, Serializer};

/// How work is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Launch {
    /// `cuLaunchKernel`.
    Kernel,
    /// `cuLaunchKernelEx`.
    Extended,
    /// `cuGraphLaunch` of a graph of several kernels.
    Graph,
    /// `cuLaunchCooperativeKernel`.
    Cooperative,
}

impl Launch {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Kernel, Self::Extended, Self::Graph, Self::Cooperative];

    /// As the driver calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "launch",
            Self::Extended => "launchEx",
            Self::Graph => "graph",
            Self::Cooperative => "cooperative",
        }
    }
}

/// When the program waits for its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// After every launch.
    Each,
    /// After some 20 ms of work.
    Batch,
    /// Never: the driver's queue is kept full.
    Never,
}

/// Work that is launched before a program with [`Wait::Batch`] waits, microseconds.
pub const BATCH_MICROS: u32 = 20_000;
/// Length of a graph, microseconds, where its kernels are not longer.
const GRAPH_MICROS: u32 = 10_000;
/// Most kernels of a graph.
const GRAPH_KERNELS: u32 = 10;

/// What each process of a container does, without an end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Load {
    /// Lengths of its kernels in turn, microseconds.
    pub kernels: Vec<u32>,
    /// How it launches them.
    pub launch: Launch,
    /// When it waits.
    pub wait: Wait,
    /// Blocks of each launch, as far as the card takes them.
    pub blocks: u32,
}

impl Load {
    /// Kernels of one length.
    pub fn new(micros: u32, launch: Launch) -> Self {
        Self { kernels: vec![micros], launch, wait: Wait::Batch, blocks: 1 }
    }

    /// Kernels of `micros` that one launch starts.
    pub fn kernels_per_launch(launch: Launch, micros: u32) -> u32 {
        if launch == Launch::Graph { (GRAPH_MICROS / micros.max(1)).clamp(1, GRAPH_KERNELS) } else { 1 }
    }

    /// Its longest kernel, microseconds.
    pub fn longest(&self) -> u32 {
        self.kernels.iter().copied().max().unwrap_or(0)
    }
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Container {
    /// What it was set: floor and, unless told otherwise, ceiling, percent of the time.
    pub quota: u8,
    /// The most that it may get, percent of the time.
    pub ceiling: u8,
    /// SM share, percent.
    pub sm: u8,
    /// Processes in it.
    pub processes: u8,
    /// What each of them does.
    pub load: Load,
}

impl Container {
    /// One process with the whole of the SMs and a ceiling that is its quota.
    pub fn new(quota: u8, load: Load) -> Self {
        Self { quota, ceiling: quota, sm: 100, processes: 1, load }
    }
}

/// How processes share the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One container at a time.
    Exclusive,
    /// Beside each other, on disjoint SM shares.
    Mps,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Mps { "mps" } else { "exclusive" })
    }
}

/// Where a cell of the matrix stands on its axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Place {
    /// Quota of the container that the cell is about, percent.
    pub quota: u8,
    /// Length of all kernels.
    pub kernel: Kernel,
    /// How they are launched.
    pub launch: Launch,
    /// Containers.
    pub containers: u8,
    /// Processes of each.
    pub processes: u8,
    /// How they share the GPU.
    pub mode: Mode,
}

/// Kernels of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kernel {
    /// All of one length, microseconds.
    Micros(u32),
    /// 10 µs to 20 ms in one process.
    Mixed,
}

/// Lengths of mixed kernels, microseconds.
const MIXED: [u32; 4] = [10, 1_000, 100, 20_000];

impl Kernel {
    fn lengths(self) -> Vec<u32> {
        match self {
            Self::Micros(micros) => vec![micros],
            Self::Mixed => MIXED.to_vec(),
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Micros(micros) => write!(f, "{} ms", f64::from(*micros) / 1e3),
            Self::Mixed => f.write_str("mixed"),
        }
    }
}

impl Serialize for Kernel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Quotas of the matrix, percent.
pub const QUOTAS: [u8; 8] = [5, 10, 20, 30, 50, 70, 90, 95];
/// Kernels of the matrix.
pub const KERNELS: [Kernel; 7] = [
    Kernel::Micros(10),
    Kernel::Micros(100),
    Kernel::Micros(1_000),
    Kernel::Micros(5_000),
    Kernel::Micros(20_000),
    Kernel::Micros(50_000),
    Kernel::Mixed,
];
/// Numbers of containers.
pub const CONTAINERS: [u8; 3] = [1, 2, 4];
/// Numbers of processes in each.
pub const PROCESSES: [u8; 2] = [1, 3];
/// Ways of sharing.
pub const MODES: [Mode; 2] = [Mode::Exclusive, Mode::Mps];

/// What all quotas of a cell sum to at most, percent: handing the right over takes time, too.
const BOOKED: u8 = 96;
/// SM share of a container beside others under MPS: two rows of the GPU.
const HALF: u8 = 50;

impl Place {
    /// The containers of the cell, that which it is about first; the others have what it leaves, in equal parts.
    pub fn containers(&self) -> Vec<Container> {
        let others = self.containers.saturating_sub(1);
        let rest = BOOKED.saturating_sub(self.quota).checked_div(others).unwrap_or(0).max(1);
        let sm = if self.mode == Mode::Mps { HALF } else { 100 };
        (0..self.containers)
            .map(|index| {
                let quota = if index == 0 { self.quota } else { rest };
                let load = Load {
                    kernels: self.kernel.lengths(),
                    launch: self.launch,
                    wait: Wait::Batch,
                    blocks: 1,
                };
                Container { sm, processes: self.processes, ..Container::new(quota, load) }
            })
            .collect()
    }

    /// Its longest kernel, microseconds.
    pub fn longest(&self) -> u32 {
        self.kernel.lengths().into_iter().max().unwrap_or(0)
    }

    /// Every cell of the matrix.
    pub fn all() -> Vec<Self> {
        let mut places = Vec::new();
        for mode in MODES {
            for containers in CONTAINERS {
                for processes in PROCESSES {
                    for launch in Launch::ALL {
                        for kernel in KERNELS {
                            for quota in QUOTAS {
                                places.push(Self { quota, kernel, launch, containers, processes, mode });
                            }
                        }
                    }
                }
            }
        }
        places
    }

    /// Cells in which every two values of different axes meet at least once: greedily, so few more than needed.
    pub fn pairwise() -> Vec<Self> {
        let all: Vec<_> = Self::all().into_iter().map(|place| (place, place.pairs())).collect();
        let mut open: std::collections::BTreeSet<Pair> =
            all.iter().flat_map(|(_, pairs)| pairs.clone()).collect();
        let mut chosen = Vec::new();
        while !open.is_empty() {
            let fresh = |pairs: &[Pair]| pairs.iter().filter(|pair| open.contains(pair)).count();
            let Some((place, pairs)) = all.iter().max_by_key(|(_, pairs)| fresh(pairs)) else { break };
            for pair in pairs {
                open.remove(pair);
            }
            chosen.push(*place);
        }
        chosen
    }

    fn pairs(&self) -> Vec<Pair> {
        let at = |values: usize| u8::try_from(values).unwrap_or(u8::MAX);
        let kernel = KERNELS.iter().position(|kernel| *kernel == self.kernel).unwrap_or(0);
        let axes =
            [self.quota, at(kernel), self.launch as u8, self.containers, self.processes, self.mode as u8];
        let numbered: Vec<_> = axes.into_iter().enumerate().map(|(axis, value)| (at(axis), value)).collect();
        let mut pairs = Vec::new();
        for (index, first) in numbered.iter().enumerate() {
            pairs.extend(numbered[index + 1..].iter().map(|second| (*first, *second)));
        }
        pairs
    }
}

/// Two values, each with its axis.
type Pair = ((u8, u8), (u8, u8));

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { quota, kernel, launch, containers, processes, mode } = self;
        write!(f, "{quota} %, {kernel}, {}, {containers} × {processes}, {mode}", launch.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_of_a_cell_fit_into_one_row() {
        for place in Place::all() {
            let containers = place.containers();
            assert_eq!(containers.len(), usize::from(place.containers));
            assert_eq!(containers[0].quota, place.quota);
            let booked: u32 = containers.iter().map(|container| u32::from(container.quota)).sum();
            assert!(booked <= 100, "{place}: {booked}");
            assert!(containers.iter().all(|container| container.quota > 0));
        }
    }

    #[test]
    fn the_matrix_has_every_combination_once() {
        let places = Place::all();
        let different: std::collections::BTreeSet<_> = places.iter().collect();
        assert_eq!(different.len(), 8 * 7 * 4 * 3 * 2 * 2);
        assert_eq!(different.len(), places.len());
    }

    #[test]
    fn in_the_subset_every_two_values_meet() {
        let chosen = Place::pairwise();
        let met: std::collections::BTreeSet<_> = chosen.iter().flat_map(Place::pairs).collect();
        let all: std::collections::BTreeSet<_> = Place::all().iter().flat_map(Place::pairs).collect();
        assert_eq!(met, all);
        assert!((56..=80).contains(&chosen.len()), "{}", chosen.len());
    }

    #[test]
    fn a_graph_is_no_longer_than_ten_milliseconds_unless_its_kernel_is() {
        for (micros, kernels) in [(10, 10), (1_000, 10), (5_000, 2), (20_000, 1), (50_000, 1)] {
            assert_eq!(Load::kernels_per_launch(Launch::Graph, micros), kernels);
            assert_eq!(Load::kernels_per_launch(Launch::Kernel, micros), 1);
        }
    }
}
