//! The service that the kubelet calls: messages in and out, and who is asked before the allocator is.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use tokio::sync::{Mutex, watch};
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use super::advert::{Advert, Told};
use super::allocator::Allocator;
use super::api::v1beta1 as api;
use super::api::{HEALTHY, UNHEALTHY};
use super::claims::Container;
use super::cluster::Cluster;
use super::device::DeviceId;
use super::inject::Injector;
use super::podresources::{self, PodResources};
use crate::metrics::Metrics;
use crate::metrics::front_end::Call;
use crate::owner::ControlError;
use crate::refused::Refused;

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
    pub(crate) metrics: Arc<Metrics>,
    /// Ends the streams, which would go on for ever.
    pub(crate) end: CancellationToken,
}

impl Plugin {
    /// What the kubelet is told of a call that is not carried out.
    fn refuse(&self, call: Call, refused: &Refused) -> Status {
        let error = refused.to_string();
        tracing::warn!(error, "refused a call of the kubelet");
        self.metrics.front_end.refused(call, refused);
        Status::new(code(refused), error)
    }

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
        let _timer = self.metrics.front_end.call(Call::Prefer);
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
        let _timer = self.metrics.front_end.call(Call::Allocate);
        let mut container_responses = Vec::new();
        for request in request.into_inner().container_requests {
            let devices = ids(request.device_ids);
            let bound = self.allocator.lock().await.allocate(&devices).await;
            let bound = bound.map_err(|refused| self.refuse(Call::Allocate, &refused))?;
            container_responses.push(self.injector.answer(&bound));
        }
        Ok(Response::new(api::AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<api::PreStartContainerRequest>,
    ) -> Result<Response<api::PreStartContainerResponse>, Status> {
        let _timer = self.metrics.front_end.call(Call::Start);
        let devices = ids(request.into_inner().device_ids);
        let container = self.whose(&devices).await;
        let started = self.allocator.lock().await.start(&devices, container).await;
        started.map_err(|refused| self.refuse(Call::Start, &refused))?;
        Ok(Response::new(api::PreStartContainerResponse {}))
    }
}

fn code(refused: &Refused) -> Code {
    match refused {
        Refused::UnknownDevice(_) => Code::InvalidArgument,
        Refused::NotAllocated(_)
        | Refused::Claim(_)
        | Refused::UnknownClaim(_)
        | Refused::OtherClaim { .. } => Code::FailedPrecondition,
        Refused::NoRoom(_) | Refused::NoMemory { .. } | Refused::Owner(ControlError::Refused(_)) => {
            Code::ResourceExhausted
        }
        Refused::Owner(ControlError::Mps(_) | ControlError::Stopped) => Code::Unavailable,
        Refused::Owner(ControlError::State(_)) | Refused::Inject(_) => Code::Internal,
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
