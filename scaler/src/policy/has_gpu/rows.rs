//! The books of GPUs that HAS-GPU keeps: rows of equal SM share, two on a GPU, whose quotas sum to at most 100 %.

use std::collections::BTreeMap;

use gpu_share::share::Share;
use gpu_share::units::{Bytes, Quota, SmShare};

use crate::policy::{Action, FunctionView, ReplicaState};

/// Rows of a GPU.
const ROWS: usize = 2;
/// Occupancy from which a GPU gets no more pods.
const FULL: f64 = 0.95;

/// One pod.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pod {
    pub(super) id: String,
    function: String,
    pub(super) gpu: u32,
    pub(super) sm: SmShare,
    /// Percent.
    pub(super) quota: u8,
    memory: Bytes,
}

/// All pods.
#[derive(Clone, Debug)]
pub(super) struct Books {
    gpus: u32,
    memory: Bytes,
    pods: Vec<Pod>,
}

impl Books {
    /// As the views show them.
    pub(super) fn of(functions: &[FunctionView], gpus: u32) -> Self {
        let pods = functions.iter().flat_map(|view| {
            let staying = view.replicas.iter().filter(|replica| replica.state != ReplicaState::Draining);
            staying.map(|replica| Pod {
                id: replica.id.clone(),
                function: view.name.clone(),
                gpu: replica.gpu,
                sm: replica.share.sm,
                quota: percent(replica.grant),
                memory: replica.share.memory,
            })
        });
        let memory = functions.iter().map(|view| view.gpu_memory).max().unwrap_or_default();
        Self { gpus, memory, pods: pods.collect() }
    }

    pub(super) fn pods_of(&self, function: &str) -> Vec<Pod> {
        self.pods.iter().filter(|pod| pod.function == function).cloned().collect()
    }

    pub(super) fn quota_of(&self, id: &str) -> Option<u8> {
        self.pods.iter().find(|pod| pod.id == id).map(|pod| pod.quota)
    }

    /// Quota that the row of `sm` on `gpu` has left, percent.
    pub(super) fn free_in_row(&self, gpu: u32, sm: SmShare) -> u8 {
        let taken = self.on(gpu).filter(|pod| pod.sm == sm).map(|pod| u32::from(pod.quota)).sum::<u32>();
        u8::try_from(100_u32.saturating_sub(taken)).unwrap_or(0)
    }

    /// Rows that may take a pod: SM share and free quota. A fresh one is as wide as `wanted` and the other rows allow.
    pub(super) fn rows(&self, gpu: u32, wanted: SmShare, fresh: bool) -> Vec<(SmShare, u8)> {
        let mut sms: Vec<_> = self.on(gpu).map(|pod| pod.sm).collect();
        sms.sort_unstable();
        sms.dedup();
        let mut rows: Vec<_> = sms.iter().map(|&sm| (sm, self.free_in_row(gpu, sm))).collect();
        let width: u32 = sms.iter().map(|sm| u32::from(sm.percent())).sum();
        let left = 100_u32.saturating_sub(width).min(wanted.percent().into());
        if fresh
            && sms.len() < ROWS
            && let Ok(sm) = SmShare::from_percent(u8::try_from(left).unwrap_or(0))
        {
            rows.push((sm, 100));
        }
        rows
    }

    /// GPUs that have pods and are not full, least occupied first; where occupancy is not known, in their order.
    pub(super) fn gpus_by_occupancy(&self, known: bool) -> Vec<u32> {
        let mut used: BTreeMap<u32, f64> = BTreeMap::new();
        for pod in &self.pods {
            *used.entry(pod.gpu).or_default() +=
                if known { pod.sm.fraction() * f64::from(pod.quota) / 100.0 } else { 0.0 };
        }
        let mut gpus: Vec<_> = used.into_iter().filter(|&(_, occupancy)| occupancy < FULL).collect();
        gpus.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        gpus.into_iter().map(|(gpu, _)| gpu).collect()
    }

    pub(super) fn least_occupied(&self) -> Option<u32> {
        self.unused().or_else(|| self.gpus_by_occupancy(true).first().copied())
    }

    pub(super) fn unused(&self) -> Option<u32> {
        (0..self.gpus).find(|&gpu| self.on(gpu).next().is_none())
    }

    pub(super) fn has_memory(&self, gpu: u32, memory: Bytes) -> bool {
        self.on(gpu).map(|pod| pod.memory).sum::<Bytes>() + memory <= self.memory
    }

    /// Notes a pod that is started.
    pub(super) fn start(&mut self, function: &str, share: Share, gpu: u32) -> Action {
        self.pods.push(Pod {
            id: String::new(),
            function: function.into(),
            gpu,
            sm: share.sm,
            quota: percent(share.floor),
            memory: share.memory,
        });
        Action::Start { function: function.into(), share, gpu }
    }

    /// Notes another quota, in percent.
    pub(super) fn grant(&mut self, id: &str, quota: u8) -> Option<Action> {
        let pod = self.pods.iter_mut().find(|pod| pod.id == id)?;
        pod.quota = quota;
        Some(Action::Grant { replica: id.into(), quota: Quota::from_percent(quota).ok()? })
    }

    /// Notes a pod that goes.
    pub(super) fn stop(&mut self, id: &str) -> Action {
        self.pods.retain(|pod| pod.id != id);
        Action::Stop { replica: id.into() }
    }

    fn on(&self, gpu: u32) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(move |pod| pod.gpu == gpu)
    }
}

fn percent(quota: Quota) -> u8 {
    u8::try_from(quota.ppm() / 10_000).unwrap_or(100)
}
