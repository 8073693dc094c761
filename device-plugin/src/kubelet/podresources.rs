//! The kubelet's own list of who holds which device: the only place that says whose the devices of a call are.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use super::api::podresources::ListPodResourcesRequest;
use super::api::podresources::pod_resources_lister_client::PodResourcesListerClient;
use super::claims::{Container, PodName};
use super::device::DeviceId;
use super::resource::Resource;

/// What the kubelet's own clients take: the list has every device of every container of the node.
const MAX_MESSAGE: usize = 16 << 20;
/// Longest time for one answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pauses before each further try. The kubelet allows so many calls a second for all clients together, and tells the others
/// to come again; it gives `PreStartContainer` 30 s.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// The containers that hold devices, each with them.
pub(crate) type Listed = Vec<(Container, BTreeSet<DeviceId>)>;

/// Asks the kubelet.
#[derive(Clone, Debug)]
pub(crate) struct PodResources {
    client: PodResourcesListerClient<Channel>,
    resource: Resource,
}

impl PodResources {
    /// Asks the kubelet behind `socket` for holders of `resource`. Connects when first asked, and again after a restart of the
    /// kubelet. Needs a runtime.
    pub(crate) fn new(socket: PathBuf, resource: Resource) -> Self {
        let client =
            PodResourcesListerClient::new(connect_lazily(socket)).max_decoding_message_size(MAX_MESSAGE);
        Self { client, resource }
    }

    /// Who holds which devices.
    pub(crate) async fn list(&self) -> Result<Listed, Status> {
        let mut client = self.client.clone();
        let call = client.list(ListPodResourcesRequest {});
        let answer = tokio::time::timeout(PATIENCE, call)
            .await
            .map_err(|_| Status::deadline_exceeded("the kubelet does not answer"))??;
        let mut listed = Listed::new();
        for pod in answer.into_inner().pod_resources {
            for container in pod.containers {
                let own =
                    container.devices.into_iter().filter(|one| one.resource_name == self.resource.as_str());
                let devices: BTreeSet<_> = own.flat_map(|one| one.device_ids).map(DeviceId::from).collect();
                if !devices.is_empty() {
                    let pod = PodName { namespace: pod.namespace.clone(), name: pod.name.clone() };
                    listed.push((Container { pod, name: container.name }, devices));
                }
            }
        }
        Ok(listed)
    }

    /// The same, asked again for a while where the kubelet is busy or starting.
    pub(crate) async fn list_patiently(&self) -> Result<Listed, Status> {
        for pause in PAUSES {
            match self.list().await {
                Err(status) if is_passing(&status) => tokio::time::sleep(pause).await,
                result => return result,
            }
        }
        self.list().await
    }
}

/// The container that holds `devices`; if none has just these, the one that has all of them: an init container is not listed,
/// and its devices are reused by the containers after it.
pub(crate) fn holder(listed: &Listed, devices: &BTreeSet<DeviceId>) -> Option<Container> {
    let exact = listed.iter().find(|(_, held)| held == devices);
    let holder = exact.or_else(|| listed.iter().find(|(_, held)| devices.is_subset(held)));
    holder.map(|(container, _)| container.clone())
}

fn is_passing(status: &Status) -> bool {
    matches!(status.code(), Code::ResourceExhausted | Code::Unavailable | Code::DeadlineExceeded)
}

/// A channel to a Unix socket. The address is never looked up: `localhost` is what the kubelet's own clients say.
pub(crate) fn connect_lazily(socket: PathBuf) -> Channel {
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(of: &[(&str, &[&str])]) -> Listed {
        let pod = |name: &str| PodName { namespace: "fn".into(), name: name.into() };
        of.iter()
            .map(|(name, devices)| (Container { pod: pod(name), name: "main".into() }, set(devices)))
            .collect()
    }

    fn set(devices: &[&str]) -> BTreeSet<DeviceId> {
        devices.iter().map(|name| DeviceId((*name).into())).collect()
    }

    #[test]
    fn the_holder_has_the_devices_or_is_of_the_pod_whose_init_container_had_them() {
        let listed = listed(&[("a", &["1", "2", "3"]), ("b", &["4", "5"])]);
        let name = |devices: &[&str]| holder(&listed, &set(devices)).map(|container| container.pod.name);
        assert_eq!(name(&["4", "5"]), Some("b".into()));
        assert_eq!(name(&["1", "2"]), Some("a".into()));
        assert_eq!(name(&["3", "4"]), None);
    }
}
