//! What is simulated.

use std::sync::Arc;

use gpu_share::annotations::Wish;
use gpu_share::invalid::Invalid;
use gpu_share::ledger::Sharing;
use gpu_share::units::{Bytes, Nanos};

use crate::arrivals::Load;
use crate::gpu::{Contention, Enforcement};
use crate::random::Spread;
use crate::surface::Surface;

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The GPUs.
    pub cards: Cards,
    /// How decisions are made and carried out.
    pub control: Control,
    /// What breaks.
    pub faults: Faults,
    /// The functions.
    pub functions: Vec<FunctionSpec>,
    /// How long costs are counted, in seconds. Requests that are there then are answered all the same.
    pub seconds: f64,
    /// Seed of everything that is random.
    pub seed: u64,
}

/// The GPUs, all alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cards {
    /// How many, at least 1.
    pub count: u32,
    /// GPUs of a node: they are lost together.
    pub per_node: u32,
    /// Memory of each.
    pub memory: Bytes,
    /// How processes share one.
    pub sharing: Sharing,
    /// How shares are enforced.
    pub enforcement: Enforcement,
}

/// How decisions are made and carried out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Control {
    /// Time between two decisions.
    pub tick: Nanos,
    /// Time from what is seen to what is done about it: metrics, and the way of a decision to the node.
    pub delay: Nanos,
    /// Seconds from the start of a replica until it is ready.
    pub cold_start: Spread,
    /// Clients give up after this.
    pub timeout: Nanos,
    /// Which replica a request goes to.
    pub routing: Routing,
}

/// Which replica a request goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// The one with the fewest requests; a parked one only if all are.
    Least,
    /// Any that is ready: a Kubernetes service.
    Random,
}

/// What breaks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// Mean seconds until a replica fails.
    pub replica_mtbf: Option<f64>,
    /// Mean seconds until a node is lost.
    pub node_mtbf: Option<f64>,
    /// Seconds until a node is back.
    pub repair: f64,
    /// Losses at a given time: seconds, and the node.
    pub losses: Vec<(f64, u32)>,
}

/// One function.
#[derive(Clone, Debug, PartialEq)]
pub struct FunctionSpec {
    /// Its name, of its own.
    pub name: String,
    /// What it asks for.
    pub wish: Wish,
    /// How long its model takes.
    pub surface: Arc<Surface>,
    /// What neighbours cost it.
    pub contention: Contention,
    /// Its requests.
    pub load: Load,
    /// Seconds of a request before its GPU work: decoding, preprocessing, the way there and back.
    pub cpu: Spread,
    /// Requests that a replica prepares at once, 0 for all.
    pub workers: u32,
    /// Requests that a replica has at most; others are held at the gateway. 0 for no limit.
    pub limit: u32,
    /// How long a batch waits to be filled.
    pub fill: Nanos,
}

/// Most GPUs and functions of a run.
const MOST: u32 = 100_000;

impl Spec {
    /// What is not allowed, if anything.
    pub fn check(&self) -> Result<(), Invalid> {
        let count = |field: &str, value: u32| {
            let allowed = (1..=MOST).contains(&value);
            if allowed { Ok(()) } else { Err(Invalid::new(field, value, format!("1 to {MOST}"))) }
        };
        count("gpus", self.cards.count)?;
        count("gpus of a node", self.cards.per_node)?;
        count("functions", u32::try_from(self.functions.len()).unwrap_or(u32::MAX))?;
        if self.control.tick < Nanos::from_millis(1) {
            return Err(Invalid::new("tick", self.control.tick.secs_f64(), "0.001 s or more"));
        }
        let nodes = self.cards.count.div_ceil(self.cards.per_node);
        if let Some((_, node)) = self.faults.losses.iter().find(|(_, node)| *node >= nodes) {
            return Err(Invalid::new("node that is lost", node, format!("0 to {}", nodes - 1)));
        }
        self.functions.iter().try_for_each(FunctionSpec::check)
    }
}

impl FunctionSpec {
    /// An objective that no configuration keeps is no objective.
    fn check(&self) -> Result<(), Invalid> {
        let Some(slo) = self.wish.slo else { return Ok(()) };
        let fastest = self.surface.gpu_time(gpu_share::units::SmShare::WHOLE, 1).secs_f64() + self.cpu.mean;
        if slo.bound.secs_f64() >= fastest {
            return Ok(());
        }
        let allowed =
            format!("a longer one: cannot be met: fastest is {:.1} ms on a whole GPU", fastest * 1e3);
        Err(Invalid::new("slo", slo, allowed).within(&format!("function {}", self.name)))
    }
}
