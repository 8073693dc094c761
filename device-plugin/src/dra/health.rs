//! The GPUs' health as the kubelet shows it beside pods (KEP-4680), from 1.37 on; an older one does not ask.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{Stream, StreamExt, stream};
use gpu_share::binding::GpuId;
use gpu_share::protocol::Health;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::api::health as api;
use super::slice::device_name;

/// Between two answers that say the same: after 30 s without news the kubelet takes a device's health for unknown.
const PERIOD: Duration = Duration::from_secs(10);

/// The service that the kubelet follows.
#[derive(Clone, Debug)]
pub(crate) struct HealthService {
    /// The node's pool of devices.
    pub(crate) pool: String,
    pub(crate) health: watch::Receiver<BTreeMap<GpuId, Health>>,
    /// Ends the streams, which would go on for ever.
    pub(crate) end: CancellationToken,
}

impl HealthService {
    fn snapshot(&self, at: SystemTime) -> api::NodeWatchResourcesResponse {
        let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let device = |(gpu, health): (&GpuId, &Health)| api::DeviceHealth {
            device: Some(api::DeviceIdentifier {
                pool_name: self.pool.clone(),
                device_name: device_name(gpu),
            }),
            health: status(health).into(),
            last_updated_time: i64::try_from(seconds).unwrap_or(i64::MAX),
            health_check_timeout_seconds: 0,
            message: health.why().unwrap_or_default().into(),
        };
        api::NodeWatchResourcesResponse { devices: self.health.borrow().iter().map(device).collect() }
    }
}

fn status(health: &Health) -> api::HealthStatus {
    if health.takes_bindings() { api::HealthStatus::Healthy } else { api::HealthStatus::Unhealthy }
}

#[tonic::async_trait]
impl api::dra_resource_health_server::DraResourceHealth for HealthService {
    type NodeWatchResourcesStream =
        Pin<Box<dyn Stream<Item = Result<api::NodeWatchResourcesResponse, Status>> + Send>>;

    async fn node_watch_resources(
        &self,
        _: Request<api::NodeWatchResourcesRequest>,
    ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
        let mut service = self.clone();
        service.health.mark_changed();
        let answers = stream::unfold(service, async |mut service| {
            match tokio::time::timeout(PERIOD, service.health.changed()).await {
                Ok(Err(_)) => None,
                Ok(Ok(())) | Err(_) => Some((Ok(service.snapshot(SystemTime::now())), service)),
            }
        });
        Ok(Response::new(Box::pin(answers.take_until(self.end.clone().cancelled_owned()))))
    }
}
