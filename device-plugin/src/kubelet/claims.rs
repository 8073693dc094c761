//! Which binding stands for which devices, as far as the kubelet's calls tell.
//!
//! ```text
//!             Allocate                     PreStartContainer            not in the kubelet's list, for a grace
//!  (nothing) ──────────► admitted: no form ─────────────────► started ─────────────────────────────────────► (nothing)
//!                 ▲          │   │                               │
//!                 └──────────┘   └───────────────────────────────┴─► (nothing), when the kubelet gives its devices away
//!            all of its devices, or some of them and no others
//! ```
//!
//! The kubelet is the authority on devices and says nothing when it frees them, nor for whom it asks. So a call for devices
//! that a claim has means one of two things. If no container of the claim has started, and the one has all devices that the
//! other has, it is the same pod again: a call repeated, or the next container of a pod whose init container had the
//! devices (the kubelet takes those first). They run one after the other and share the binding. Else the claim's pod is
//! gone: devices of a pod that lives are not given away.
//!
//! Pure: callers pass the time and carry out what comes back.

use std::collections::{BTreeMap, BTreeSet};

use gpu_share::binding::BindingId;
use gpu_share::units::Nanos;

use super::device::DeviceId;

/// A pod, by the names that the kubelet's lists have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Container {
    /// The pod.
    pub pod: PodName,
    /// The container's name in it.
    pub name: String,
}

/// Devices that containers hold, and the binding that stands for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The devices.
    pub devices: BTreeSet<DeviceId>,
    /// Position of the GPU that the binding is on; the devices may be of others.
    pub gpu: usize,
    /// Units that the container has paid for. More than there are devices once the kubelet gave some of them away.
    pub units: usize,
    /// The device sets that were answered with this binding; a container starts with the one that it was admitted with.
    pub admitted: BTreeSet<BTreeSet<DeviceId>>,
    /// Units of the container that started last, once one has.
    pub started: Option<usize>,
    /// The container that started last, if the kubelet's list names it.
    pub container: Option<Container>,
    /// Since when the kubelet's list does not show it.
    pub missing_since: Option<Nanos>,
}

/// What a call for devices means for the claims.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// The claim that it goes to, with the devices that this has now; a new one if none.
    pub reuse: Option<BindingId>,
    /// Claims whose containers are gone.
    pub gone: Vec<BindingId>,
    /// Claims that go on with fewer devices.
    pub shrunk: Vec<BindingId>,
}

/// What the kubelet's list means for the claims.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Claims whose containers are gone.
    pub gone: Vec<BindingId>,
    /// Claims whose container is known now.
    pub found: Vec<BindingId>,
}

/// The claims of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims(BTreeMap<BindingId, Claim>);

impl Claim {
    /// A claim for `devices` on the GPU at position `gpu`.
    pub fn new(devices: BTreeSet<DeviceId>, gpu: usize) -> Self {
        let (units, admitted) = (devices.len(), BTreeSet::from([devices.clone()]));
        Self { devices, gpu, units, admitted, started: None, container: None, missing_since: None }
    }

    fn reuse(&mut self, devices: &BTreeSet<DeviceId>) {
        self.devices.clone_from(devices);
        self.units = devices.len();
        self.admitted.insert(devices.clone());
        self.missing_since = None;
    }
}

impl Claims {
    /// Adds a claim, or replaces it.
    pub fn insert(&mut self, binding: BindingId, claim: Claim) {
        self.0.insert(binding, claim);
    }

    /// Ends a claim.
    pub fn remove(&mut self, binding: &BindingId) -> Option<Claim> {
        self.0.remove(binding)
    }

    /// A claim.
    pub fn get(&self, binding: &BindingId) -> Option<&Claim> {
        self.0.get(binding)
    }

    /// A claim, to change.
    pub fn get_mut(&mut self, binding: &BindingId) -> Option<&mut Claim> {
        self.0.get_mut(binding)
    }

    /// All claims, by binding.
    pub fn iter(&self) -> impl Iterator<Item = (&BindingId, &Claim)> {
        self.0.iter()
    }

    /// The claim that was answered to a call for `devices`; if none was (an earlier agent did), the one with most of them.
    pub fn holding(&self, devices: &BTreeSet<DeviceId>) -> Option<(&BindingId, &Claim)> {
        let exact = self.iter().find(|(_, claim)| claim.admitted.contains(devices));
        let common = |claim: &Claim| claim.devices.intersection(devices).count();
        exact.or_else(|| {
            let most = self.iter().max_by_key(|(_, claim)| common(claim))?;
            (common(most.1) > 0).then_some(most)
        })
    }

    /// Devices that containers hold.
    pub fn taken(&self) -> BTreeSet<DeviceId> {
        self.0.values().flat_map(|claim| claim.devices.iter().cloned()).collect()
    }

    /// Units of the GPU at `position` that containers have paid for.
    pub fn units_on(&self, position: usize) -> usize {
        self.0.values().filter(|claim| claim.gpu == position).map(|claim| claim.units).sum()
    }

    /// Takes `devices` for a container that the kubelet admits. Claims of which processes run (`busy`) keep their binding
    /// whatever the kubelet says: it may have lost its memory, and nobody takes a running function's share.
    pub fn admit(&mut self, devices: &BTreeSet<DeviceId>, busy: impl Fn(&BindingId) -> bool) -> Admission {
        let mut admission = Admission::default();
        let overlapping: Vec<_> = self
            .iter()
            .filter(|(_, claim)| !claim.devices.is_disjoint(devices))
            .map(|(id, _)| id.clone())
            .collect();
        for id in overlapping {
            let Some(claim) = self.0.get_mut(&id) else { continue };
            let is_nested = devices.is_subset(&claim.devices) || devices.is_superset(&claim.devices);
            if claim.started.is_none() && is_nested && admission.reuse.is_none() {
                claim.reuse(devices);
                admission.reuse = Some(id);
            } else if claim.started.is_some() && busy(&id) {
                claim.devices = &claim.devices - devices;
                admission.shrunk.push(id);
            } else {
                self.0.remove(&id);
                admission.gone.push(id);
            }
        }
        admission
    }

    /// Compares the claims with the containers that the kubelet lists. A claim that it has not listed for `grace` and of which
    /// nothing runs (`busy`) is gone: an init container is never listed, and a pod may come to the list a little late.
    pub fn reconcile(
        &mut self,
        listed: &[(Container, BTreeSet<DeviceId>)],
        busy: impl Fn(&BindingId) -> bool,
        now: Nanos,
        grace: Nanos,
    ) -> Reconciled {
        let mut reconciled = Reconciled::default();
        for (id, claim) in &mut self.0 {
            let holder = listed.iter().find(|(_, devices)| !devices.is_disjoint(&claim.devices));
            if let Some((container, _)) = holder {
                claim.missing_since = None;
                if claim.container.is_none() {
                    claim.container = Some(container.clone());
                    reconciled.found.push(id.clone());
                }
                continue;
            }
            let since = *claim.missing_since.get_or_insert(now);
            if now.since(since) >= grace && !busy(id) {
                reconciled.gone.push(id.clone());
            }
        }
        for id in &reconciled.gone {
            self.0.remove(id);
        }
        reconciled
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GRACE: Nanos = Nanos::from_secs(10);

    fn id(name: &str) -> BindingId {
        BindingId::try_from(name.to_string()).unwrap()
    }

    fn devices(units: &[u32]) -> BTreeSet<DeviceId> {
        units.iter().map(|unit| DeviceId::from(format!("g-{unit:02}of20"))).collect()
    }

    fn claim(units: &[u32], is_started: bool) -> Claim {
        Claim { started: is_started.then_some(units.len()), ..Claim::new(devices(units), 0) }
    }

    fn claims(of: &[(&str, &[u32], bool)]) -> Claims {
        Claims(of.iter().map(|(name, units, started)| (id(name), claim(units, *started))).collect())
    }

    fn container(name: &str) -> Container {
        let pod = PodName { namespace: "fn".into(), name: name.into() };
        Container { pod, name: "main".into() }
    }

    #[test]
    fn a_repeated_call_finds_the_same_claim() {
        let mut claims = claims(&[("a", &[1, 2], false)]);
        let before = claims.clone();
        let admission = claims.admit(&devices(&[1, 2]), |_| false);
        assert_eq!(admission, Admission { reuse: Some(id("a")), ..Admission::default() });
        assert_eq!(claims, before);
    }

    #[test]
    fn a_container_that_has_its_init_containers_devices_shares_the_claim() {
        let mut claims = claims(&[("a", &[1, 2], false)]);
        assert_eq!(claims.admit(&devices(&[1, 2, 3, 4]), |_| false).reuse, Some(id("a")));
        assert_eq!((claims.get(&id("a")).unwrap().units, claims.units_on(0)), (4, 4));
    }

    #[test]
    fn a_pod_that_died_before_it_started_does_not_lend_its_claim_to_two_others() {
        let mut claims = claims(&[("a", &[1, 2, 3, 4], false)]);
        assert_eq!(claims.admit(&devices(&[1, 2]), |_| false).reuse, Some(id("a")));
        assert_eq!(claims.admit(&devices(&[3, 4]), |_| false), Admission::default());
        assert_eq!(claims.get(&id("a")).unwrap().units, 2);
        let other = claims.admit(&devices(&[2, 5]), |_| false);
        assert_eq!(other, Admission { gone: vec![id("a")], ..Admission::default() });
    }

    #[test]
    fn an_init_container_starts_with_the_claim_that_it_was_admitted_with() {
        let mut claims = claims(&[("a", &[1, 2, 3], false)]);
        claims.admit(&devices(&[1]), |_| false);
        claims.insert(id("b"), claim(&[2, 3], false));
        let held_by = |units: &[u32]| claims.holding(&devices(units)).map(|(id, _)| id.clone());
        assert_eq!(held_by(&[1, 2, 3]), Some(id("a")));
        assert_eq!(held_by(&[2, 3]), Some(id("b")));
        assert_eq!(held_by(&[3, 9]), Some(id("b")), "for an agent that was not there when it was admitted");
        assert_eq!(held_by(&[9]), None);
    }

    #[test]
    fn devices_of_a_container_that_started_are_given_away_only_when_its_pod_is_gone() {
        let mut claims = claims(&[("a", &[1, 2], true)]);
        let admission = claims.admit(&devices(&[2, 3]), |_| false);
        assert_eq!(admission, Admission { gone: vec![id("a")], ..Admission::default() });
        assert_eq!(claims, Claims::default());
    }

    #[test]
    fn a_running_function_keeps_its_binding_when_the_kubelet_forgot_it() {
        let mut claims = claims(&[("a", &[1, 2], true)]);
        let admission = claims.admit(&devices(&[2, 3]), |_| true);
        assert_eq!(admission, Admission { shrunk: vec![id("a")], ..Admission::default() });
        assert_eq!((claims.taken(), claims.units_on(0)), (devices(&[1]), 2));
    }

    #[test]
    fn what_the_kubelet_does_not_list_is_gone_after_the_grace_unless_it_runs() {
        let mut claims = claims(&[("a", &[1], true), ("b", &[2], true), ("c", &[3], false)]);
        let listed = [(container("pod-b"), devices(&[2]))];
        let start = Nanos::from_secs(1);
        assert_eq!(claims.reconcile(&listed, |_| false, start, GRACE).found, [id("b")]);
        let early = claims.reconcile(&listed, |_| false, start + Nanos::from_secs(9), GRACE);
        assert_eq!(early, Reconciled::default());
        let late = claims.reconcile(&listed, |one| *one == id("a"), start + GRACE, GRACE);
        assert_eq!(late.gone, [id("c")]);
        assert_eq!(claims.get(&id("b")).unwrap().container, Some(container("pod-b")));
    }

    #[test]
    fn a_claim_that_comes_back_to_the_list_starts_its_grace_anew() {
        let mut claims = claims(&[("a", &[1], true)]);
        let at = |seconds| Nanos::from_secs(seconds);
        claims.reconcile(&[], |_| false, at(0), GRACE);
        claims.reconcile(&[(container("a"), devices(&[1]))], |_| false, at(9), GRACE);
        assert_eq!(claims.reconcile(&[], |_| false, at(11), GRACE).gone, []);
        assert_eq!(claims.reconcile(&[], |_| false, at(21), GRACE).gone, [id("a")]);
    }

    /// What a kubelet may do, in any order.
    #[derive(Clone, Debug)]
    enum Act {
        Allocate(BTreeSet<DeviceId>, bool),
        Start(usize),
        List(Vec<usize>, u64),
    }

    fn act() -> impl Strategy<Value = Act> {
        let some = prop::collection::btree_set(0u32..20, 1..6)
            .prop_map(|units| devices(&units.into_iter().collect::<Vec<_>>()));
        prop_oneof![
            3 => (some, any::<bool>()).prop_map(|(devices, busy)| Act::Allocate(devices, busy)),
            2 => (0usize..8).prop_map(Act::Start),
            1 => (prop::collection::vec(0usize..8, 0..4), 0u64..20).prop_map(|(who, passed)| Act::List(who, passed)),
        ]
    }

    proptest! {
        #[test]
        fn no_device_is_ever_with_two_claims_and_what_is_asked_for_is_free_or_reused(
            acts in prop::collection::vec(act(), 1..60),
        ) {
            let (mut claims, mut next, mut now) = (Claims::default(), 0, Nanos::ZERO);
            for act in acts {
                match act {
                    Act::Allocate(devices, busy) => {
                        let admission = claims.admit(&devices, |_| busy);
                        if let Some(reused) = &admission.reuse {
                            let claim = claims.get(reused).unwrap();
                            prop_assert!(claim.started.is_none() && devices == claim.devices);
                        } else {
                            prop_assert!(claims.taken().is_disjoint(&devices));
                            claims.insert(id(&format!("b{next}")), Claim::new(devices.clone(), 0));
                            next += 1;
                        }
                        prop_assert_eq!(claims.holding(&devices).is_some(), true);
                        prop_assert!(admission.gone.iter().all(|gone| claims.get(gone).is_none()));
                    }
                    Act::Start(which) => {
                        if let Some(claim) = claims.0.values_mut().nth(which) {
                            claim.started = Some(claim.units);
                        }
                    }
                    Act::List(who, passed) => {
                        now += Nanos::from_secs(passed);
                        let all: Vec<_> = claims.0.values().map(|claim| claim.devices.clone()).collect();
                        let listed: Vec<_> = who.iter().filter_map(|&who| all.get(who).cloned())
                            .filter(|devices| !devices.is_empty())
                            .map(|devices| (container("p"), devices)).collect();
                        let reconciled = claims.reconcile(&listed, |_| false, now, GRACE);
                        for (_, devices) in &listed {
                            prop_assert!(claims.holding(devices).is_some(), "{reconciled:?}");
                        }
                    }
                }
                let counted: usize = claims.0.values().map(|claim| claim.devices.len()).sum();
                prop_assert_eq!(counted, claims.taken().len(), "a device is with two claims");
                prop_assert!(claims.0.values().all(|claim| claim.units >= claim.devices.len()));
            }
        }
    }
}
