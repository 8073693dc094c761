//! The node's resource slice at the API server: written, and written again when it is not as it should be.
//!
//! The kubelet deletes it when it starts, and when the driver was away for 30 s: so it is watched. It stays when the agent
//! stops, since the next one is mostly there sooner.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use gpu_share::names::dra::DRIVER;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{Device, ResourceSlice, ResourceSliceSpec};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use tokio::sync::watch;

use super::slice::{slice, slice_name};
use crate::kubelet::cluster::{Cluster, in_time};

/// Who writes the slice.
const MANAGER: &str = "gpufn-node";
/// Pause after a request that failed.
const PAUSE: Duration = Duration::from_secs(2);

/// Keeps the slice of the node of `cluster` as `devices` says, until dropped; from when a kubelet has registered the driver,
/// or pods would come that it can't prepare yet and tries again much later.
pub(crate) async fn keep(
    cluster: Cluster,
    mut devices: watch::Receiver<Vec<Device>>,
    mut registered: watch::Receiver<bool>,
) {
    if registered.wait_for(|is_registered| *is_registered).await.is_err() {
        return;
    }
    let slices = Api::<ResourceSlice>::all(cluster.client());
    let own = format!("spec.nodeName={},spec.driver={DRIVER}", cluster.node());
    let mut events = pin!(watcher(slices, watcher::Config::default().fields(&own)).default_backoff());
    let mut pool = Pool::default();
    // What is wrong is said once, not at every try.
    let (mut last, mut is_blind) = (Ok(()), false);
    loop {
        let wanted = devices.borrow_and_update().clone();
        let result = bring_into_step(&cluster, &mut pool, &wanted).await;
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
                    pool.saw(event);
                }
            }
            changed = devices.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(PAUSE), if last.is_err() => {}
        }
    }
}

async fn bring_into_step(cluster: &Cluster, pool: &mut Pool, wanted: &[Device]) -> Result<(), String> {
    let api = Api::<ResourceSlice>::all(cluster.client());
    for step in pool.steps(cluster.node(), wanted) {
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
    slices: BTreeMap<String, ResourceSlice>,
    /// A list that has not ended.
    listing: BTreeMap<String, ResourceSlice>,
    is_listed: bool,
    /// The latest that any of them had, gone ones too: the scheduler takes the slices of the newest generation only.
    generation: i64,
    /// What was written last, and what the API server made of it.
    written: Option<(Vec<Device>, ResourceSliceSpec)>,
}

impl Pool {
    fn saw(&mut self, event: watcher::Event<ResourceSlice>) {
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
    }

    fn wrote(&mut self, wanted: &[Device], slice: ResourceSlice) {
        self.generation = self.generation.max(slice.spec.pool.generation);
        self.written = Some((wanted.to_vec(), slice.spec.clone()));
        self.slices.insert(slice.name_any(), slice);
    }

    /// What brings the slices of `node` to `wanted`: one slice. Nothing before they are known.
    fn steps(&self, node: &str, wanted: &[Device]) -> Vec<Step> {
        if !self.is_listed {
            return Vec::new();
        }
        let name = slice_name(node);
        let written = self.slices.get(&name).is_some_and(|slice| self.is_as(node, wanted, &slice.spec));
        let write = (!written).then(|| Step::Write { generation: self.generation + 1 });
        let others = self.slices.keys().filter(|other| **other != name).cloned().map(Step::Delete);
        write.into_iter().chain(others).collect()
    }

    /// Whether `spec` says `wanted`: it is what the API server made of that, or word for word the same.
    fn is_as(&self, node: &str, wanted: &[Device], spec: &ResourceSliceSpec) -> bool {
        match &self.written {
            Some((devices, made)) if devices == wanted => made == spec,
            _ => slice(node, "", spec.pool.generation, wanted.to_vec()).spec == *spec,
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
        let mut pool = Pool::default();
        pool.saw(watcher::Event::Init);
        for slice in slices {
            pool.saw(watcher::Event::InitApply(slice));
        }
        assert_eq!(pool.steps(NODE, &devices(&["a"])), [], "not before all are known");
        pool.saw(watcher::Event::InitDone);
        pool
    }

    fn named(name: &str, generation: i64) -> ResourceSlice {
        let mut slice = slice(NODE, "uid", generation, devices(&["old"]));
        slice.metadata.name = Some(name.into());
        slice
    }

    #[test]
    fn a_slice_that_is_as_it_should_be_is_left_alone() {
        let pool = listed(vec![slice(NODE, "uid", 7, devices(&["a"]))]);
        assert_eq!(pool.steps(NODE, &devices(&["a"])), []);
        assert_eq!(pool.steps(NODE, &devices(&["b"])), [Step::Write { generation: 8 }]);
    }

    #[test]
    fn a_slice_that_an_earlier_agent_wrote_and_the_kubelet_deleted_has_a_later_generation() {
        let earlier = slice(NODE, "uid", 7, devices(&["a"]));
        let mut pool = listed(vec![earlier.clone()]);
        pool.saw(watcher::Event::Delete(earlier));
        assert_eq!(pool.steps(NODE, &devices(&["a"])), [Step::Write { generation: 8 }]);
    }

    #[test]
    fn a_slice_that_the_kubelet_deleted_is_written_again_with_a_later_generation() {
        let mut pool = listed(Vec::new());
        assert_eq!(pool.steps(NODE, &devices(&["a"])), [Step::Write { generation: 1 }]);
        let written = slice(NODE, "uid", 1, devices(&["a"]));
        pool.wrote(&devices(&["a"]), written.clone());
        pool.saw(watcher::Event::Apply(written.clone()));
        assert_eq!(pool.steps(NODE, &devices(&["a"])), []);
        pool.saw(watcher::Event::Delete(written));
        assert_eq!(pool.steps(NODE, &devices(&["a"])), [Step::Write { generation: 2 }]);
    }

    #[test]
    fn what_the_api_server_makes_of_a_slice_is_not_written_again_but_what_others_make_of_it_is() {
        let mut pool = listed(Vec::new());
        let mut made = slice(NODE, "uid", 1, devices(&["a"]));
        if let Some([device]) = made.spec.devices.as_deref_mut() {
            device.attributes = Some(BTreeMap::new());
        }
        pool.wrote(&devices(&["a"]), made.clone());
        pool.saw(watcher::Event::Apply(made.clone()));
        assert_eq!(pool.steps(NODE, &devices(&["a"])), []);
        if let Some([device]) = made.spec.devices.as_deref_mut() {
            device.capacity = Some(BTreeMap::from([("compute".into(), capacity("1"))]));
        }
        pool.saw(watcher::Event::Apply(made));
        assert_eq!(pool.steps(NODE, &devices(&["a"])), [Step::Write { generation: 2 }]);
    }

    fn capacity(value: &str) -> k8s_openapi::api::resource::v1::DeviceCapacity {
        k8s_openapi::api::resource::v1::DeviceCapacity { value: Quantity(value.into()), ..Default::default() }
    }

    #[test]
    fn slices_under_other_names_are_deleted_after_a_later_one_is_written() {
        let pool = listed(vec![named("other-1", 4), named("other-2", 5)]);
        let steps = pool.steps(NODE, &devices(&["a"]));
        let deleted = ["other-1", "other-2"].map(|name| Step::Delete(name.into()));
        assert_eq!(steps, [vec![Step::Write { generation: 6 }], deleted.to_vec()].concat());
    }
}
