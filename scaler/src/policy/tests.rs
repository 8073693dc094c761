//! The policies on any view, and on a small simulated cluster.

use gpu_share::annotations::{Priority, Replicas, Scaling, Slo};

use super::*;

mod cluster;
mod compared;
mod places;
mod properties;
mod scenarios;
mod shortage;

fn percent(percent: u8) -> Quota {
    Quota::from_percent(percent).unwrap()
}

/// A ResNet-50 on half of the SMs that may have four replicas.
fn wish() -> Wish {
    let sm = SmShare::from_percent(50).unwrap();
    Wish {
        share: Share::new(sm, percent(20), percent(100), Bytes::gib(2)).unwrap(),
        slo: Some(Slo { percentile: 0.95, bound: Nanos::from_millis(100) }),
        scaling: Scaling::Hybrid,
        model: Some("resnet50".into()),
        batch: 1,
        replicas: Replicas { min: 1, max: 4 },
        priority: Priority::default(),
    }
}

/// What is seen of a function to which `arrivals` requests came, none of which is under way.
fn view(name: &str, wish: Wish, arrivals: u64, replicas: Vec<ReplicaView>) -> FunctionView {
    FunctionView {
        name: name.into(),
        wish,
        gpu_memory: Bytes::gib(16),
        window: Nanos::from_millis(10),
        replicas,
        arrivals,
        held: 0,
        in_flight: 0,
        latencies: Vec::new(),
        cold_start: Nanos::from_secs(5),
        no_room: false,
    }
}
