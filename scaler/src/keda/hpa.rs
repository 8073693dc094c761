//! Kubernetes' horizontal pod autoscaler as a model: what it makes of a metric of type `AverageValue`.
//!
//! Sources: Kubernetes' documentation, "Horizontal Pod Autoscaling" (algorithm, default behaviour); pkg/controller/podautoscaler.

use std::collections::VecDeque;

/// Replicas that a value asks for, before limits in time: ⌈value / target⌉, nothing within a tenth.
pub(crate) fn desired(value: f64, target: f64, replicas: u32) -> u32 {
    let ratio = value / (target * f64::from(replicas));
    if (1.0 - ratio).abs() <= 0.1 {
        return replicas;
    }
    // KEDA hands thousandths on.
    let thousandths = (value * 1e3).round();
    (thousandths / (target * 1e3)).ceil() as u32
}

/// One autoscaler with Kubernetes' default behaviour, synced every 15 s.
#[derive(Debug)]
pub(crate) struct Hpa {
    pub(crate) replicas: u32,
    most: u32,
    /// What was wanted at the last syncs, within the stabilisation window of 300 s.
    wanted: VecDeque<u32>,
}

impl Hpa {
    pub(crate) fn new(replicas: u32, most: u32) -> Self {
        Self { replicas, most, wanted: VecDeque::new() }
    }

    /// Syncs with a value; an error leaves the replicas as they are.
    pub(crate) fn sync(&mut self, value: Result<f64, ()>) {
        let Ok(value) = value else { return };
        let wanted = desired(value, super::metric::TARGET, self.replicas).clamp(1, self.most);
        self.wanted.push_back(wanted);
        if self.wanted.len() > 300 / 15 {
            self.wanted.pop_front();
        }
        let kept = self.wanted.iter().copied().max().unwrap_or(wanted);
        let fastest = (2 * self.replicas).max(self.replicas + 4);
        self.replicas = if wanted > self.replicas { wanted.min(fastest) } else { kept.min(self.replicas) };
    }
}
