//! What an operator must know about a pod: once in the log, and as an event beside the pod.

use gpu_share::binding::{Binding, BindingId};

use super::Allocator;
use crate::kubelet::claims::{Container, PodName};
use crate::kubelet::entitlement::{Complaint, Entitlement};
use crate::refused::Refused;

impl Allocator {
    pub(super) fn tell_of_start(&mut self, id: &BindingId, entitled: &Entitlement, binding: &Binding) {
        let Some(container) = self.claims.get(id).and_then(|claim| claim.container.clone()) else { return };
        let (pod, name) = (&container.pod, &container.name);
        match &entitled.complaint {
            Some(Complaint::Invalid(invalid)) => {
                let note = format!("{name}: {}", Complaint::Invalid(invalid.clone()));
                self.tell(id, pod, "GpuAnnotationInvalid", note);
            }
            Some(complaint) => self.tell(id, pod, "GpuUnitsMismatch", format!("{name}: {complaint}")),
            None => {}
        }
        let (has, asked) = (&binding.share, &entitled.share);
        if has.sm != asked.sm || has.floor < asked.floor || has.memory < asked.memory {
            let note = format!(
                "{name} has SM share {}, quota {} and {} instead of {}, {} and {}: beside the others on GPU {} no more fits",
                has.sm, has.floor, has.memory, asked.sm, asked.floor, asked.memory, binding.gpu
            );
            self.notices.tell(pod, "GpuShareDegraded", note);
        }
    }

    pub(super) fn tell_of_delay(&mut self, id: &BindingId, error: &Refused) {
        if let Some(Container { pod, name }) = self.claims.get(id).and_then(|claim| claim.container.clone()) {
            self.tell(id, &pod, "GpuShareUnavailable", format!("{name} does not start yet: {error}"));
        }
    }

    /// Tells something about a claim, unless that was the last that was told.
    pub(super) fn tell(&mut self, id: &BindingId, pod: &PodName, reason: &'static str, note: String) {
        if self.told.get(id) != Some(&note) {
            self.told.insert(id.clone(), note.clone());
            self.notices.tell(pod, reason, note);
        }
    }
}
