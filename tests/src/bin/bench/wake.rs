//! What a request waits longer for when it is the first one at a parked function. The scaler parks it, as it does in use.
//! Nothing else uses the GPU meanwhile: it says nothing about a wait for others' kernels.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gpufn::figures::{Bar, Figure};
use tests::function::Function;
use tests::gateway::Gateway;
use tests::load::median;
use tests::local::Local;
use tests::wait::until;

use crate::of_rounds;

const NAME: &str = "parked";
/// Longest time until an idle function is parked.
const PATIENCE: Duration = Duration::from_mins(1);
/// Requests whose median is the warm latency of a round.
const WARM: usize = 9;
/// Between warm requests, so that none waits for what the one before it used of the quota.
const PAUSE: Duration = Duration::from_millis(100);

/// Time that waking adds to the first request.
pub(crate) async fn wake(local: &Local, rounds: usize) -> Result<Figure> {
    let gateway = local.gateway();
    let function = Function::inference(NAME, "resnet50").sm(50).quota(30, 100).memory("1500Mi");
    gateway.deploy_ready(&function.policy("vertical").slo("p95<100ms").replicas(1, 1)).await;
    let mut added = Vec::new();
    for _ in 0..rounds {
        let mut warm = Vec::new();
        for _ in 0..WARM {
            tokio::time::sleep(PAUSE).await;
            warm.push(infer(gateway).await);
        }
        let warm = median(warm).context("no warm request")?;
        until("the idle function to be parked", PATIENCE, async || is_parked(local).await.then_some(()))
            .await;
        let first = infer(gateway).await;
        println!("warm {warm:.1} ms, first when parked {first:.1} ms");
        added.push(first - warm);
    }
    let wakes = gateway.overview().await.function(NAME).map_or(0, |function| function.wakes);
    ensure!(wakes >= rounds as u64, "{wakes} wakes in {rounds} rounds");
    let how = "first request at a parked resnet50 function through the gateway, minus its warm p50, nothing else on the GPU";
    let (value, how) = of_rounds("wake-ms", &added, "ms", how)?;
    Ok(Figure::new("wake-ms", value, "ms", Bar::AtMost(50.0), how))
}

/// Whether the gateway takes it for parked and the node agent has taken its whole grant.
async fn is_parked(local: &Local) -> bool {
    let overview = local.gateway().overview().await;
    let replicas = overview.function(NAME).map(|function| &function.replicas[..]).unwrap_or_default();
    let bindings = local.node().bindings().await.unwrap_or_default();
    replicas.iter().any(|replica| replica.state == "parked")
        && bindings
            .iter()
            .any(|status| status.binding.owner.function == NAME && status.binding.grant.is_zero())
}

/// How long an inference takes, milliseconds; its answer is checked.
async fn infer(gateway: &Gateway) -> f64 {
    let start = Instant::now();
    gateway.infer(NAME).await;
    1e3 * start.elapsed().as_secs_f64()
}
