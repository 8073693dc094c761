//! What a control period takes: the real scaler that leads, over a simulated API server with 1,000 nodes of 8 GPUs, and two
//! watchdogs that show what those of all pods do.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use gpufn::figures::{Bar, Figure};
use tests::apiserver::ApiServer;
use tests::scaler::Scaler;
use tests::watchdogs::Watchdogs;

use crate::BUSY;

/// GPUs in the cluster: 1,000 nodes of 8.
const GPUS: u32 = 8_000;
/// Replicas of each function, two on each of half of the GPUs and one on each of the others.
const REPLICAS: u32 = 4;
/// Time between two decisions: here one process plays all watchdogs, on the processors of the scaler, and answers so many in no
/// quarter of a second.
const PERIOD: &str = "5s";
/// Time in which functions are watched before grants are lowered, and some.
const SETTLED: Duration = Duration::from_secs(20);

/// The figures of a control period.
pub(crate) async fn measure(quick: bool) -> Result<Vec<Figure>> {
    let gpus = if quick { GPUS / 10 } else { GPUS };
    let pods = gpus + gpus / 2;
    let (cluster, watchdogs) = (ApiServer::start().await, Watchdogs::start(2).await);
    let asks = [("sm", "50"), ("quota", "20"), ("quota-limit", "80"), ("slo", "p95<250ms")];
    for number in 0..pods {
        let (function, gpu) = (number / REPLICAS, number % gpus);
        let name = format!("f{function}");
        if number % REPLICAS == 0 {
            cluster.put_deployment(&name, REPLICAS, &asks);
        }
        let place = u8::from(!is_busy(function));
        let pod = format!("{name}-{}", number % REPLICAS);
        cluster.put_bound_replica(&name, &pod, watchdogs.address(place), 20);
        cluster.change_replica(&pod, |metadata| {
            metadata["annotations"]["gpufn.dev/gpu"] = format!("GPU-{gpu}").into();
        });
    }
    watchdogs.show_all(|shown| (shown.share, shown.latency) = (Some((0.02, 0.2)), 0.1));
    watchdogs.show(0, |shown| (shown.rate, shown.in_flight) = (8.0, 1));
    let builder = Scaler::builder(&cluster).with("--watchdog-port", &watchdogs.port).with("--period", "1m");
    let scaler = builder.with("--control-period", PERIOD).with("--patience", "10s").start().await;
    scaler.until_decided(1.0).await;
    let since = Instant::now();
    let before = Spent::of(&scaler).await;
    while since.elapsed() < SETTLED {
        scaler.until_decided(1.0).await;
    }
    let spent = Spent::of(&scaler).await.since(&before);
    let written = cluster.written().len();
    ensure!(spent.periods >= 3.0, "only {} control periods were measured", spent.periods);
    ensure!(written > 0, "nothing was decided");
    let how = |what: &str| {
        format!(
            "{what}; {} functions with {pods} pods on {gpus} GPUs, one of {BUSY} with 8 requests a second at each pod; mean of \
             {} periods, {written} grants written meanwhile; client and fakes on the same processors",
            pods / REPLICAS,
            spent.periods
        )
    };
    let period = (spent.look + spent.decide) / spent.periods * 1e3;
    let each = spent.read / spent.periods / f64::from(pods) * 1e6;
    Ok(vec![
        Figure::new(
            "scaler-control-period",
            period,
            "ms",
            Bar::AtMost(200.0),
            how("from what is known to what is to be written"),
        ),
        Figure::new(
            "scaler-control-read",
            each,
            "µs",
            Bar::Any,
            how("to read one watchdog, many at the same time"),
        ),
    ])
}

fn is_busy(function: u32) -> bool {
    usize::try_from(function).is_ok_and(|function| function % BUSY == 0)
}

/// Seconds that the parts of control periods took so far.
struct Spent {
    periods: f64,
    look: f64,
    read: f64,
    decide: f64,
}

impl Spent {
    async fn of(scaler: &Scaler) -> Self {
        let sum = async |part: &str| {
            scaler.metric(&format!("gpufn_scaler_control_seconds_sum{{part=\"{part}\"}}")).await
        };
        Self {
            periods: scaler.metric("gpufn_scaler_control_seconds_count{part=\"decide\"}").await,
            look: sum("look").await,
            read: sum("read").await,
            decide: sum("decide").await,
        }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            periods: self.periods - before.periods,
            look: self.look - before.look,
            read: self.read - before.read,
            decide: self.decide - before.decide,
        }
    }
}
