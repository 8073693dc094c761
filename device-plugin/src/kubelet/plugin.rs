//! The service that the kubelet calls: messages in and out, and who is asked before the allocator is.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use tokio::sync::{Mutex, watch};
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::advert::{Advert, Told};
use super::allocator::{Allocator, Refused};
use super::api::v1beta1 as api;
use super::api::{HEALTHY, UNHEALTHY};
use super::claims::Container;
use super::cluster::Cluster;
use super::device::DeviceId;
use super::inject::Injector;
use super::podresources::{self, PodResources};
use crate::owner::ControlError;

/// What the kubelet is told that the plugin can do.
pub(crate) const OPTIONS: api::DevicePluginOptions =
    api::DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true };

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Plugin {
    pub(crate) allocator: Arc<Mutex<Allocator>>,
    pub(crate) injector: Injector,
    pub(crate) advert: watch::Receiver<Advert>,
    pub(crate) pods: PodResources,
    pub(crate) cluster: Option<Cluster>,
    /// Ends the streams, which would go on for ever.
    pub(crate) end: CancellationToken,
}

impl Plugin {
    /// Whose devices these are. `None` if the kubelet does not say: it does not list init containers, and a container that
    /// starts with the share that its units stand for is better than one that never starts.
    async fn whose(&self, devices: &BTreeSet<DeviceId>) -> Option<Container> {
        let listed = self.pods.list_patiently().await;
        let listed = listed.inspect_err(|error| {
            tracing::warn!(%error, "the kubelet does not say whose devices start; their pod's annotations are not read");
        });
        let container = podresources::holder(&listed.ok()?, devices)?;
        self.learn(&container).await;
        Some(container)
    }

    /// Reads the pod's annotations, if the watch has not shown them yet.
    async fn learn(&self, container: &Container) {
        let Some(cluster) = &self.cluster else { return };
        if self.allocator.lock().await.knows(&container.pod) {
            return;
        }
        match cluster.annotations(&container.pod).await {
            Ok(annotations) => self.allocator.lock().await.learned(container.pod.clone(), annotations).await,
            Err(error) => {
                let pod = &container.pod;
                tracing::warn!(namespace = pod.namespace, pod = pod.name, error, "annotations are not known");
            }
        }
    }
}

#[tonic::async_trait]
impl api::device_plugin_server::DevicePlugin for Plugin {
    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<api::ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<api::Empty>,
    ) -> Result<Response<api::DevicePluginOptions>, Status> {
        Ok(Response::new(OPTIONS))
    }

    async fn list_and_watch(
        &self,
        _: Request<api::Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let adverts = WatchStream::new(self.advert.clone()).map(|advert| Ok(snapshot(&advert)));
        Ok(Response::new(Box::pin(adverts.take_until(self.end.clone().cancelled_owned()))))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<api::PreferredAllocationRequest>,
    ) -> Result<Response<api::PreferredAllocationResponse>, Status> {
        let allocator = self.allocator.lock().await;
        let preferred = request.into_inner().container_requests.into_iter().map(|request| {
            let size = usize::try_from(request.allocation_size).unwrap_or(0);
            let device_ids =
                allocator.prefer(&request.available_device_ids, &request.must_include_device_ids, size);
            api::ContainerPreferredAllocationResponse { device_ids }
        });
        Ok(Response::new(api::PreferredAllocationResponse { container_responses: preferred.collect() }))
    }

    async fn allocate(
        &self,
        request: Request<api::AllocateRequest>,
    ) -> Result<Response<api::AllocateResponse>, Status> {
        let mut container_responses = Vec::new();
        for request in request.into_inner().container_requests {
            let devices = ids(request.device_ids);
            let bound = self.allocator.lock().await.allocate(&devices).await?;
            container_responses.push(self.injector.answer(&bound));
        }
        Ok(Response::new(api::AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<api::PreStartContainerRequest>,
    ) -> Result<Response<api::PreStartContainerResponse>, Status> {
        let devices = ids(request.into_inner().device_ids);
        let container = self.whose(&devices).await;
        self.allocator.lock().await.start(&devices, container).await?;
        Ok(Response::new(api::PreStartContainerResponse {}))
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        tracing::warn!(error = text, "refused a call of the kubelet");
        match refused {
            Refused::UnknownDevice(_) => Self::invalid_argument(text),
            Refused::NotAllocated(_) => Self::failed_precondition(text),
            Refused::NoRoom(_) | Refused::NoMemory { .. } | Refused::Owner(ControlError::Refused(_)) => {
                Self::resource_exhausted(text)
            }
            Refused::Owner(ControlError::Mps(_) | ControlError::Stopped) => Self::unavailable(text),
            Refused::Owner(ControlError::State(_)) | Refused::Inject(_) => Self::internal(text),
        }
    }
}

fn ids(names: Vec<String>) -> BTreeSet<DeviceId> {
    names.into_iter().map(DeviceId::from).collect()
}

fn snapshot(advert: &Advert) -> api::ListAndWatchResponse {
    let device = |told: &Told| api::Device {
        id: told.device.to_string(),
        health: if told.is_offered { HEALTHY } else { UNHEALTHY }.into(),
        topology: told.numa.map(|node| api::TopologyInfo { nodes: vec![api::NumaNode { id: node.into() }] }),
    };
    api::ListAndWatchResponse { devices: advert.iter().map(device).collect() }
}
