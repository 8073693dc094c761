//! The services that the kubelet calls: messages in and out, and the claims behind their names.

use std::collections::HashMap;
use std::sync::Arc;

use gpu_share::names::dra::DRIVER;
use gpu_share::units::Nanos;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::api::Api;
use tokio::sync::{Mutex, watch};
use tonic::{Request, Response, Status};

use super::api::v1 as api;
use super::api::{KIND, SERVICES, registration};
use super::preparer::Preparer;
use crate::clock::monotonic;
use crate::kubelet::cluster::{Cluster, in_time};
use crate::metrics::Metrics;
use crate::metrics::front_end::Call;
use crate::refused::Refused;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    pub(crate) preparer: Arc<Mutex<Preparer>>,
    pub(crate) cluster: Cluster,
    /// When a kubelet registered the driver last.
    pub(crate) registered: watch::Sender<Option<Nanos>>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Driver {
    async fn prepare(&self, claim: &api::Claim) -> Result<Vec<api::Device>, Refused> {
        let api = Api::<ResourceClaim>::namespaced(self.cluster.client(), &claim.namespace);
        let found = in_time(api.get(&claim.name)).await.map_err(Refused::UnknownClaim)?;
        let uid = found.metadata.uid.clone().unwrap_or_default();
        if uid != claim.uid {
            return Err(Refused::OtherClaim { asked: claim.uid.clone(), found: uid });
        }
        self.preparer.lock().await.prepare(&found).await
    }

    /// What the kubelet is told of a claim that is not prepared, or not given back.
    fn refuse(&self, call: Call, claim: &api::Claim, refused: &Refused) -> String {
        let error = refused.to_string();
        tracing::warn!(
            namespace = claim.namespace,
            claim = claim.name,
            error,
            "refused a call of the kubelet"
        );
        self.metrics.front_end.refused(call, refused);
        error
    }
}

#[tonic::async_trait]
impl api::dra_plugin_server::DraPlugin for Driver {
    async fn node_prepare_resources(
        &self,
        request: Request<api::NodePrepareResourcesRequest>,
    ) -> Result<Response<api::NodePrepareResourcesResponse>, Status> {
        let mut claims = HashMap::new();
        for claim in request.into_inner().claims {
            let _timer = self.metrics.front_end.call(Call::Prepare);
            let answer = match self.prepare(&claim).await {
                Ok(devices) => api::NodePrepareResourceResponse { devices, error: String::new() },
                Err(refused) => {
                    let error = self.refuse(Call::Prepare, &claim, &refused);
                    api::NodePrepareResourceResponse { devices: Vec::new(), error }
                }
            };
            claims.insert(claim.uid, answer);
        }
        Ok(Response::new(api::NodePrepareResourcesResponse { claims }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<api::NodeUnprepareResourcesRequest>,
    ) -> Result<Response<api::NodeUnprepareResourcesResponse>, Status> {
        let mut claims = HashMap::new();
        for claim in request.into_inner().claims {
            let _timer = self.metrics.front_end.call(Call::Unprepare);
            let unprepared = self.preparer.lock().await.unprepare(&claim.uid).await;
            let error = unprepared.err().map(|refused| self.refuse(Call::Unprepare, &claim, &refused));
            let answer = api::NodeUnprepareResourceResponse { error: error.unwrap_or_default() };
            claims.insert(claim.uid, answer);
        }
        Ok(Response::new(api::NodeUnprepareResourcesResponse { claims }))
    }
}

#[tonic::async_trait]
impl registration::registration_server::Registration for Driver {
    async fn get_info(
        &self,
        _: Request<registration::InfoRequest>,
    ) -> Result<Response<registration::PluginInfo>, Status> {
        Ok(Response::new(registration::PluginInfo {
            r#type: KIND.into(),
            name: DRIVER.into(),
            // This very socket.
            endpoint: String::new(),
            supported_versions: SERVICES.map(String::from).into(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<registration::RegistrationStatus>,
    ) -> Result<Response<registration::RegistrationStatusResponse>, Status> {
        let registration::RegistrationStatus { plugin_registered, error } = request.into_inner();
        if plugin_registered {
            tracing::info!(driver = DRIVER, "registered with the kubelet");
            self.metrics.front_end.registered();
            self.registered.send_replace(Some(monotonic()));
        } else {
            tracing::error!(driver = DRIVER, error, "the kubelet does not register the driver");
        }
        Ok(Response::new(registration::RegistrationStatusResponse {}))
    }
}
