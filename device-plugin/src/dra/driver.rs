//! The services that the kubelet calls: messages in and out, and the claims behind their names.

use std::collections::HashMap;
use std::sync::Arc;

use gpu_share::names::dra::DRIVER;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::api::Api;
use tokio::sync::{Mutex, watch};
use tonic::{Request, Response, Status};

use super::api::v1 as api;
use super::api::{KIND, SERVICES, registration};
use super::preparer::Preparer;
use crate::kubelet::cluster::{Cluster, in_time};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    pub(crate) preparer: Arc<Mutex<Preparer>>,
    pub(crate) cluster: Cluster,
    /// Whether a kubelet has registered the driver.
    pub(crate) registered: watch::Sender<bool>,
}

impl Driver {
    async fn prepare(&self, claim: &api::Claim) -> Result<Vec<api::Device>, String> {
        let api = Api::<ResourceClaim>::namespaced(self.cluster.client(), &claim.namespace);
        let found = in_time(api.get(&claim.name))
            .await
            .map_err(|error| format!("the claim is not known: {error}"))?;
        let uid = found.metadata.uid.as_deref().unwrap_or_default();
        if uid != claim.uid {
            return Err(format!("the claim's UID is {:?}, allowed is {uid:?}: it was made anew", claim.uid));
        }
        self.preparer.lock().await.prepare(&found).await.map_err(|error| error.to_string())
    }
}

/// What is wrong with a claim, once in the log and once in the answer.
fn told(claim: &api::Claim, what: &str, error: &str) -> String {
    tracing::warn!(namespace = claim.namespace, claim = claim.name, error, "{what}");
    error.into()
}

#[tonic::async_trait]
impl api::dra_plugin_server::DraPlugin for Driver {
    async fn node_prepare_resources(
        &self,
        request: Request<api::NodePrepareResourcesRequest>,
    ) -> Result<Response<api::NodePrepareResourcesResponse>, Status> {
        let mut claims = HashMap::new();
        for claim in request.into_inner().claims {
            let answer = match self.prepare(&claim).await {
                Ok(devices) => api::NodePrepareResourceResponse { devices, error: String::new() },
                Err(error) => api::NodePrepareResourceResponse {
                    devices: Vec::new(),
                    error: told(&claim, "claim is not prepared", &error),
                },
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
            let unprepared = self.preparer.lock().await.unprepare(&claim.uid).await;
            let error =
                unprepared.err().map(|error| told(&claim, "claim is not given back", &error.to_string()));
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
            self.registered.send_replace(true);
        } else {
            tracing::error!(driver = DRIVER, error, "the kubelet does not register the driver");
        }
        Ok(Response::new(registration::RegistrationStatusResponse {}))
    }
}
