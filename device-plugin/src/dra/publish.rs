//! The node's resource slice at the API server: written, and written again when it is not as it should be.
//!
//! The kubelet deletes it when it starts, and when the driver was away for 30 s: so it is watched. It stays when the agent
//! stops, since the next one is mostly there sooner.
//!
//! A kubelet that starts deletes the slices of all drivers first and registers them then, or the other way round where the
//! API server is slow (`DRAPluginManager` of Kubernetes 1.37). Between the two a slice would bring pods that the kubelet can't
//! prepare, and tries again much later. So a slice that somebody deleted is written once the kubelet has registered the driver
//! about then ([`HOLD`]), or else did not for so long: then it was somebody else.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use gpu_share::names::dra::DRIVER;
use gpu_share::units::Nanos;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{Device, ResourceSlice, ResourceSliceSpec};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use tokio::sync::watch;

use super::slice::{slice, slice_name};
use crate::clock::monotonic;
use crate::kubelet::cluster::{Cluster, in_time};

/// Who writes the slice.
const MANAGER: &str = "gpufn-node";
/// Pause after a request that failed.
const PAUSE: Duration = Duration::from_secs(2);
/// How far the deletion of the slice and the driver's registration are apart at most when a kubelet starts.
const HOLD: Nanos = Nanos::from_secs(10);

/// Keeps the slice of the node of `cluster` as `devices` says, until dropped; from when a kubelet has registered the driver,
/// or pods would come that it can't prepare yet and tries again much later.
pub(crate) async fn keep(
    cluster: Cluster,
    mut devices: watch::Receiver<Vec<Device>>,
    mut registered: watch::Receiver<Option<Nanos>>,
) {
    if registered.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let slices = Api::<ResourceSlice>::all(cluster.client());
    let own = format!("spec.nodeName={},spec.driver={DRIVER}", cluster.node());
    let mut events = pin!(watcher(slices, watcher::Config::default().fields(&own)).default_backoff());
    let mut pool = Pool::new(cluster.node());
    // What is wrong is said once, not at every try.
    let (mut last, mut is_blind) = (Ok(()), false);
    loop {
        let wanted = devices.borrow_and_update().clone();
        let held = pool.held(*registered.borrow_and_update(), monotonic());
        let result = match held {
            None => bring_into_step(&cluster, &mut pool, &wanted).await,
            Some(_) => Ok(()),
        };
        if let Err(error) = &result
            && result != last
        {
            tracing::warn!(error, "the node's resource slice is not written; trying again");
        }
        last = result;
        tokio::select! {
            Some(event) = events.next() => {
                if let (Err(error), false) = (&event, is_blind) {
                    tracing::warn!(%error, "the API server does not show resource slices; trying again");
                }
                is_blind = event.is_err();
                if let Ok(event) = event {
                    pool.saw(event, monotonic());
                }
            }
            changed = devices.changed() => if changed.is_err() { return },
            changed = registered.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(held.map_or(PAUSE, Duration::from)), if held.is_some() || last.is_err() => {}
        }
    }
}

async fn bring_into_step(cluster: &Cluster, pool: &mut Pool, wanted: &[Device]) -> Result<(), String> {
    let api = Api::<ResourceSlice>::all(cluster.client());
    for step in pool.steps(wanted) {
        match step {
            Step::Write { generation } => {
                // Asked each time: a node that was made anew has another UID, and owns nothing of the old one's.
                let uid = uid(cluster.client(), cluster.node()).await?;
                let slice = slice(cluster.node(), &uid, generation, wanted.to_vec());
                let how = PatchParams::apply(MANAGER).force();
                let name = slice_name(cluster.node());
                let written = in_time(api.patch(&name, &how, &Patch::Apply(&slice))).await?;
                tracing::info!(generation, devices = wanted.len(), "resource slice written");
                pool.wrote(wanted, written);
            }
            Step::Delete(name) => {
                let deleted = in_time(api.delete(&name, &DeleteParams::default())).await;
                tracing::info!(name, "resource slice of an earlier form deleted");
                deleted?;
                pool.slices.remove(&name);
            }
        }
    }
    Ok(())
}

async fn uid(client: Client, node: &str) -> Result<String, String> {
    let node = in_time(Api::<Node>::all(client).get_metadata(node)).await?;
    Ok(node.uid().unwrap_or_default())
}

/// Something to do at the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Write { generation: i64 },
    Delete(String),
}

/// The node's slices as the API server has them.
#[derive(Clone, Debug, Default)]
struct Pool {
    node: String,
    slices: BTreeMap<String, ResourceSlice>,
    /// A list that has not ended.
    listing: BTreeMap<String, ResourceSlice>,
    is_listed: bool,
    /// The latest that any of them had, gone ones too: the scheduler takes the slices of the newest generation only.
    generation: i64,
    /// What was written last, and what the API server made of it.
    written: Option<(Vec<Device>, ResourceSliceSpec)>,
    /// When somebody deleted the slice.
    deleted: Option<Nanos>,
}

impl Pool {
    fn new(node: &str) -> Self {
        Self { node: node.into(), ..Self::default() }
    }

    fn saw(&mut self, event: watcher::Event<ResourceSlice>, now: Nanos) {
        let had = self.slices.contains_key(&slice_name(&self.node));
        if let watcher::Event::Apply(slice) | watcher::Event::InitApply(slice) = &event {
            self.generation = self.generation.max(slice.spec.pool.generation);
        }
        match event {
            watcher::Event::Apply(slice) => drop(self.slices.insert(slice.name_any(), slice)),
            watcher::Event::Delete(slice) => drop(self.slices.remove(&slice.name_any())),
            watcher::Event::Init => self.listing.clear(),
            watcher::Event::InitApply(slice) => drop(self.listing.insert(slice.name_any(), slice)),
            watcher::Event::InitDone => {
                self.slices = std::mem::take(&mut self.listing);
                self.is_listed = true;
            }
        }
        if self.slices.contains_key(&slice_name(&self.node)) {
            self.deleted = None;
        } else if had {
            self.deleted = Some(now);
        }
    }

    /// How long the slice is not to be written yet, where the driver was registered last at `registered`.
    fn held(&self, registered: Option<Nanos>, now: Nanos) -> Option<Nanos> {
        let deleted = self.deleted?;
        let is_about_then = registered.is_some_and(|registered| registered + HOLD >= deleted);
        let left = (deleted + HOLD).since(now);
        (!is_about_then && left > Nanos::ZERO).then_some(left)
    }

    fn wrote(&mut self, wanted: &[Device], slice: ResourceSlice) {
        self.generation = self.generation.max(slice.spec.pool.generation);
        self.written = Some((wanted.to_vec(), slice.spec.clone()));
        self.deleted = None;
        self.slices.insert(slice.name_any(), slice);
    }

    /// What brings the node's slices to `wanted`: one slice. Nothing before they are known.
    fn steps(&self, wanted: &[Device]) -> Vec<Step> {
        if !self.is_listed {
            return Vec::new();
        }
        let name = slice_name(&self.node);
        let written = self.slices.get(&name).is_some_and(|slice| self.is_as(wanted, &slice.spec));
        let write = (!written).then(|| Step::Write { generation: self.generation + 1 });
        let others = self.slices.keys().filter(|other| **other != name).cloned().map(Step::Delete);
        write.into_iter().chain(others).collect()
    }

    /// Whether `spec` says `wanted`: it is what the API server made of that, or word for word the same.
    fn is_as(&self, wanted: &[Device], spec: &ResourceSliceSpec) -> bool {
        match &self.written {
            Some((devices, made)) if devices == wanted => made == spec,
            _ => slice(&self.node, "", spec.pool.generation, wanted.to_vec()).spec == *spec,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    use super::*;

    const NODE: &str = "node-1";

    fn devices(names: &[&str]) -> Vec<Device> {
        names.iter().map(|name| Device { name: (*name).into(), ..Device::default() }).collect()
    }

    fn listed(slices: Vec<ResourceSlice>) -> Pool {
        let mut pool = Pool::new(NODE);
        saw(&mut pool, watcher::Event::Init);
        for slice in slices {
            saw(&mut pool, watcher::Event::InitApply(slice));
        }
        assert_eq!(pool.steps(&devices(&["a"])), [], "not before all are known");
        saw(&mut pool, watcher::Event::InitDone);
        pool
    }

    fn saw(pool: &mut Pool, event: watcher::Event<ResourceSlice>) {
        pool.saw(event, Nanos::from_secs(100));
    }

    fn named(name: &str, generation: i64) -> ResourceSlice {
        let mut slice = slice(NODE, "uid", generation, devices(&["old"]));
        slice.metadata.name = Some(name.into());
        slice
    }

    #[test]
    fn a_slice_that_is_as_it_should_be_is_left_alone() {
        let pool = listed(vec![slice(NODE, "uid", 7, devices(&["a"]))]);
        assert_eq!(pool.steps(&devices(&["a"])), []);
        assert_eq!(pool.steps(&devices(&["b"])), [Step::Write { generation: 8 }]);
    }

    #[test]
    fn a_slice_that_an_earlier_agent_wrote_and_the_kubelet_deleted_has_a_later_generation() {
        let earlier = slice(NODE, "uid", 7, devices(&["a"]));
        let mut pool = listed(vec![earlier.clone()]);
        saw(&mut pool, watcher::Event::Delete(earlier));
        assert_eq!(pool.steps(&devices(&["a"])), [Step::Write { generation: 8 }]);
    }

    #[test]
    fn a_slice_that_the_kubelet_deleted_is_written_again_with_a_later_generation() {
        let mut pool = listed(Vec::new());
        assert_eq!(pool.steps(&devices(&["a"])), [Step::Write { generation: 1 }]);
        let written = slice(NODE, "uid", 1, devices(&["a"]));
        pool.wrote(&devices(&["a"]), written.clone());
        saw(&mut pool, watcher::Event::Apply(written.clone()));
        assert_eq!(pool.steps(&devices(&["a"])), []);
        saw(&mut pool, watcher::Event::Delete(written));
        assert_eq!(pool.steps(&devices(&["a"])), [Step::Write { generation: 2 }]);
    }

    #[test]
    fn what_the_api_server_makes_of_a_slice_is_not_written_again_but_what_others_make_of_it_is() {
        let mut pool = listed(Vec::new());
        let mut made = slice(NODE, "uid", 1, devices(&["a"]));
        if let Some([device]) = made.spec.devices.as_deref_mut() {
            device.attributes = Some(BTreeMap::new());
        }
        pool.wrote(&devices(&["a"]), made.clone());
        saw(&mut pool, watcher::Event::Apply(made.clone()));
        assert_eq!(pool.steps(&devices(&["a"])), []);
        if let Some([device]) = made.spec.devices.as_deref_mut() {
            device.capacity = Some(BTreeMap::from([("compute".into(), capacity("1"))]));
        }
        saw(&mut pool, watcher::Event::Apply(made));
        assert_eq!(pool.steps(&devices(&["a"])), [Step::Write { generation: 2 }]);
    }

    fn capacity(value: &str) -> k8s_openapi::api::resource::v1::DeviceCapacity {
        k8s_openapi::api::resource::v1::DeviceCapacity { value: Quantity(value.into()), ..Default::default() }
    }

    #[test]
    fn slices_under_other_names_are_deleted_after_a_later_one_is_written() {
        let pool = listed(vec![named("other-1", 4), named("other-2", 5)]);
        let steps = pool.steps(&devices(&["a"]));
        let deleted = ["other-1", "other-2"].map(|name| Step::Delete(name.into()));
        assert_eq!(steps, [vec![Step::Write { generation: 6 }], deleted.to_vec()].concat());
    }

    #[test]
    fn a_slice_that_was_deleted_waits_for_a_registration_about_then_but_not_for_ever() {
        let own = slice(NODE, "uid", 1, devices(&["a"]));
        let at = |seconds| Some(Nanos::from_secs(seconds));
        let held = |pool: &Pool, registered, now| pool.held(registered, Nanos::from_secs(now));
        let mut pool = listed(vec![own.clone()]);
        assert_eq!(held(&pool, at(10), 100), None, "nobody deleted it");
        saw(&mut pool, watcher::Event::Delete(own.clone()));
        assert_eq!(held(&pool, at(10), 102), at(8), "of another kubelet's time");
        for registered in [at(91), at(101)] {
            assert_eq!(held(&pool, registered, 102), None);
        }
        assert_eq!(held(&pool, at(10), 110), None, "no kubelet that starts");
        pool.wrote(&devices(&["a"]), own);
        assert_eq!(held(&pool, at(10), 102), None);
        // A watch that was interrupted shows it by a list without it.
        saw(&mut pool, watcher::Event::Init);
        saw(&mut pool, watcher::Event::InitDone);
        assert_eq!(held(&pool, at(10), 102), at(8));
    }
}
