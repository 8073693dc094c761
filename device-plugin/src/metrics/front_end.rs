//! What the front end for the kubelet does: calls, registrations, what the scheduler is told. Neither of its metrics is there
//! without a front end.

use prometheus::{
    HistogramOpts, HistogramTimer, HistogramVec, IntCounterVec, IntGaugeVec, Registry, exponential_buckets,
};

use super::{counter, gauge, registered, signed};
use crate::node::GpuOffer;
use crate::refused::Refused;

/// A call of the kubelet, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// `GetPreferredAllocation`.
    Prefer,
    /// `Allocate`.
    Allocate,
    /// `PreStartContainer`.
    Start,
    /// `NodePrepareResources`, one claim of it.
    Prepare,
    /// `NodeUnprepareResources`, one claim of it.
    Unprepare,
}

impl Call {
    fn label(self) -> &'static str {
        match self {
            Self::Prefer => "get_preferred_allocation",
            Self::Allocate => "allocate",
            Self::Start => "pre_start_container",
            Self::Prepare => "prepare_claim",
            Self::Unprepare => "unprepare_claim",
        }
    }
}

/// The metrics of either front end.
#[derive(Debug)]
pub(crate) struct FrontEnd {
    calls: HistogramVec,
    refusals: IntCounterVec,
    registered: IntGaugeVec,
    registrations: IntCounterVec,
    units: IntGaugeVec,
    claims: IntGaugeVec,
    events: IntCounterVec,
}

impl FrontEnd {
    pub(super) fn new(r: &Registry) -> prometheus::Result<Self> {
        // 50 µs to 26 s; the kubelet gives up after 30 s at the earliest.
        let buckets = exponential_buckets(5e-5, 3.0, 13)?;
        let calls = HistogramOpts::new(
            "gpufn_node_kubelet_call_seconds",
            "Time until a call of the kubelet is answered",
        );
        Ok(Self {
            calls: registered(r, HistogramVec::new(calls.buckets(buckets), &["call"])?)?,
            refusals: counter(
                r,
                "gpufn_node_kubelet_refusals_total",
                "Calls of the kubelet that were refused",
                &["call", "reason"],
            )?,
            registered: gauge(
                r,
                "gpufn_node_kubelet_registered",
                "1 while a kubelet knows the front end",
                &[],
            )?,
            registrations: counter(
                r,
                "gpufn_node_kubelet_registrations_total",
                "Times that a kubelet has registered the front end",
                &[],
            )?,
            units: gauge(
                r,
                "gpufn_node_units",
                "Units of a GPU as the kubelet is told them",
                &["gpu", "state"],
            )?,
            claims: gauge(r, "gpufn_node_claims", "Resource claims that are prepared", &[])?,
            events: counter(r, "gpufn_node_pod_events_total", "Events told beside pods", &["reason"])?,
        })
    }

    /// Measures a call until the timer is dropped.
    pub(crate) fn call(&self, call: Call) -> HistogramTimer {
        self.calls.with_label_values(&[call.label()]).start_timer()
    }

    /// A call was refused.
    pub(crate) fn refused(&self, call: Call, why: &Refused) {
        self.refusals.with_label_values(&[call.label(), why.reason()]).inc();
    }

    /// A kubelet has registered the front end.
    pub(crate) fn registered(&self) {
        self.registrations.with_label_values::<&str>(&[]).inc();
        self.registered.with_label_values::<&str>(&[]).set(1);
    }

    /// No kubelet knows the front end now.
    pub(crate) fn unregistered(&self) {
        self.registered.with_label_values::<&str>(&[]).set(0);
    }

    /// What the kubelet is told of units.
    pub(crate) fn offer(&self, offers: &[GpuOffer]) {
        for GpuOffer { gpu, units, .. } in offers {
            let states =
                [("allocated", units.allocated), ("free", units.free), ("withdrawn", units.withdrawn)];
            for (state, units) in states {
                self.units.with_label_values(&[gpu.0.as_str(), state]).set(units.0.into());
            }
        }
    }

    /// So many claims are prepared.
    pub(crate) fn claims(&self, count: usize) {
        self.claims.with_label_values::<&str>(&[]).set(signed(count as u64));
    }

    /// An event was told beside a pod.
    pub(crate) fn event(&self, reason: &str) {
        self.events.with_label_values(&[reason]).inc();
    }
}
