//! The policies on any view, and on a small simulated cluster.

use gpu_share::annotations::{Replicas, Scaling, Slo};

use super::*;

mod cluster;
mod compared;
mod places;
mod properties;
mod scenarios;

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
    }
}
