//! Which bindings stand for which claims, and which of the claims are gone.
//!
//! ```text
//!             Prepare                 the API server shows it no more, for a grace
//!  (nothing) ─────────► held ──────────────────────────────────────────────────────► (nothing), unless it runs
//!                        └─── Unprepare ─► (nothing)
//! ```
//!
//! All of it is in the bindings' owners, so that it can be had from the ledger again. Pure: callers pass the time and carry
//! out what comes back.

use std::collections::{BTreeMap, BTreeSet};

use gpu_share::binding::{Binding, BindingId, ClaimPart, GpuId};
use gpu_share::units::Nanos;

use crate::kubelet::claims::PodName;

/// What a binding is to a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The claim's namespace.
    pub namespace: String,
    /// The pod that it was prepared for first.
    pub pod: PodName,
    /// Which part of which claim.
    pub part: ClaimPart,
    /// The GPU.
    pub gpu: GpuId,
    /// Since when the API server does not show it.
    missing_since: Option<Nanos>,
}

impl Held {
    /// What `binding` is to a claim, if it is of one.
    pub fn of(binding: &Binding) -> Option<Self> {
        let owner = &binding.owner;
        Some(Self {
            namespace: owner.namespace.clone(),
            pod: PodName { namespace: owner.namespace.clone(), name: owner.instance.clone() },
            part: owner.claim.as_deref()?.clone(),
            gpu: binding.gpu.clone(),
            missing_since: None,
        })
    }
}

/// A claim, as the API server finds it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: another claim may have its name later.
    pub uid: String,
}

/// The bindings that stand for claims.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings(BTreeMap<BindingId, Held>);

impl Holdings {
    /// Notes a binding that is of a claim; others are not noted.
    pub fn insert(&mut self, binding: &Binding) {
        if let Some(held) = Held::of(binding) {
            self.0.insert(binding.id.clone(), held);
        }
    }

    /// Ends a binding.
    pub fn remove(&mut self, id: &BindingId) {
        self.0.remove(id);
    }

    /// What a binding stands for.
    pub fn get(&self, id: &BindingId) -> Option<&Held> {
        self.0.get(id)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&BindingId, &Held)> {
        self.0.iter()
    }

    /// The bindings of the claim with this UID.
    pub fn of_claim<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = (&'a BindingId, &'a Held)> {
        self.iter().filter(move |(_, held)| held.part.uid == uid)
    }

    /// The bindings that were prepared for `pod` first.
    pub fn of_pod(&self, pod: &PodName) -> Vec<BindingId> {
        self.iter().filter(|(_, held)| held.pod == *pod).map(|(id, _)| id.clone()).collect()
    }

    /// The binding that stands for `part` on `gpu`.
    pub fn find(&self, part: &ClaimPart, gpu: &GpuId) -> Option<&BindingId> {
        self.iter().find(|(_, held)| held.part == *part && held.gpu == *gpu).map(|(id, _)| id)
    }

    /// The claims.
    pub fn claims(&self) -> BTreeSet<ClaimName> {
        let name = |held: &Held| ClaimName {
            namespace: held.namespace.clone(),
            name: held.part.name.clone(),
            uid: held.part.uid.clone(),
        };
        self.0.values().map(name).collect()
    }

    /// The API server shows the claim with this UID, and `has` says which parts it has still; or it shows none. Returns the
    /// bindings whose part was missing for `grace` and of which nothing runs (`busy`).
    pub fn looked(
        &mut self,
        uid: &str,
        has: impl Fn(&Held) -> bool,
        busy: impl Fn(&BindingId) -> bool,
        now: Nanos,
        grace: Nanos,
    ) -> Vec<BindingId> {
        let mut gone = Vec::new();
        for (id, held) in self.0.iter_mut().filter(|(_, held)| held.part.uid == uid) {
            if has(held) {
                held.missing_since = None;
                continue;
            }
            let since = *held.missing_since.get_or_insert(now);
            if now.since(since) >= grace && !busy(id) {
                gone.push(id.clone());
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use gpu_share::binding::Owner;
    use gpu_share::share::Share;
    use gpu_share::units::{Bytes, Quota};

    use super::*;

    const GRACE: Nanos = Nanos::from_secs(10);

    fn id(name: &str) -> BindingId {
        BindingId::try_from(name.to_string()).unwrap()
    }

    fn part(uid: &str, request: &str) -> ClaimPart {
        ClaimPart { uid: uid.into(), name: "claim".into(), request: request.into(), share: None }
    }

    fn binding(name: &str, part: Option<ClaimPart>) -> Binding {
        let owner = Owner {
            namespace: "fn".into(),
            instance: "pod".into(),
            claim: part.map(Box::new),
            ..Owner::default()
        };
        Binding {
            id: id(name),
            owner,
            gpu: GpuId("GPU-1".into()),
            share: Share::whole_gpu(Bytes::gib(1)),
            grant: Quota::WHOLE,
            row: 0,
        }
    }

    fn holdings() -> Holdings {
        let mut holdings = Holdings::default();
        holdings.insert(&binding("a", Some(part("u-1", "one"))));
        holdings.insert(&binding("b", Some(part("u-1", "other"))));
        holdings.insert(&binding("c", Some(part("u-2", "one"))));
        holdings.insert(&binding("d", None));
        holdings
    }

    #[test]
    fn bindings_of_claims_are_found_and_others_are_not_this_front_ends() {
        let holdings = holdings();
        assert!(holdings.get(&id("d")).is_none());
        let of = |uid| holdings.of_claim(uid).map(|(id, _)| id.clone()).collect::<Vec<_>>();
        assert_eq!((of("u-1"), of("u-2"), of("u-3")), (vec![id("a"), id("b")], vec![id("c")], vec![]));
        let gpu = GpuId("GPU-1".into());
        assert_eq!(holdings.find(&part("u-1", "other"), &gpu), Some(&id("b")));
        assert_eq!(holdings.find(&part("u-1", "other"), &GpuId("GPU-2".into())), None);
        assert_eq!(holdings.claims().len(), 2);
    }

    #[test]
    fn what_the_api_server_does_not_show_is_gone_after_the_grace_unless_it_runs() {
        let mut holdings = holdings();
        let mut look = |has: bool, seconds| {
            holdings.looked("u-1", |_| has, |busy| *busy == id("b"), Nanos::from_secs(seconds), GRACE)
        };
        assert_eq!(look(false, 0), []);
        assert_eq!(look(true, 9), [], "it comes back: the grace starts anew");
        assert_eq!(look(false, 11), []);
        assert_eq!(look(false, 20), []);
        assert_eq!(look(false, 21), [id("a")]);
    }
}
