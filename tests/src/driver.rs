//! A kubelet as a driver of dynamic resource allocation meets it: the folder in which it finds the driver's socket, the
//! registration, and calls for claims.
//!
//! It names the server by the socket's path, as the kubelet's client does (`encodeAuthority` of grpc-go).

use std::fmt::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use device_plugin::dra::api::health::dra_resource_health_client::DraResourceHealthClient;
use device_plugin::dra::api::health::{HealthStatus, NodeWatchResourcesRequest};
use device_plugin::dra::api::registration as registering;
use device_plugin::dra::api::registration::registration_client::RegistrationClient;
use device_plugin::dra::api::v1 as api;
use device_plugin::dra::api::v1::dra_plugin_client::DraPluginClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::wait::until;

/// Longest wait for what the driver should do by itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// A kubelet that has registered a driver.
#[derive(Clone, Debug)]
pub struct Registered {
    /// What the driver said of itself.
    pub info: registering::PluginInfo,
    /// Its socket.
    pub socket: PathBuf,
    client: DraPluginClient<Channel>,
}

impl Registered {
    /// Waits for a driver in the folder `registry`, and registers it.
    pub async fn in_folder(registry: &Path) -> Self {
        until("a driver to register", PATIENCE, async || {
            let socket = sockets(registry).into_iter().next()?;
            let mut client = RegistrationClient::new(connect(&socket, &authority(&socket)));
            // The socket may be one that a killed driver left.
            let info = client.get_info(registering::InfoRequest {}).await.ok()?.into_inner();
            let status = registering::RegistrationStatus { plugin_registered: true, error: String::new() };
            client.notify_registration_status(status).await.ok()?;
            // For the calls themselves the kubelet's client says that the server is local.
            let client = DraPluginClient::new(connect(&socket, "localhost"));
            Some(Self { info, socket, client })
        })
        .await
    }

    /// Prepares claims; the answer to each, in order: its devices, or what is wrong.
    pub async fn prepare(&self, claims: &[api::Claim]) -> Vec<Result<Vec<api::Device>, String>> {
        let request = api::NodePrepareResourcesRequest { claims: claims.to_vec() };
        let answer = self.client.clone().node_prepare_resources(request).await.expect("the driver answers");
        let mut answers = answer.into_inner().claims;
        assert_eq!(answers.len(), claims.len(), "an answer for each claim");
        let mut answer = |claim: &api::Claim| {
            let answer = answers.remove(&claim.uid).expect("an answer for each claim");
            if answer.error.is_empty() { Ok(answer.devices) } else { Err(answer.error) }
        };
        claims.iter().map(&mut answer).collect()
    }

    /// Prepares one claim.
    pub async fn prepare_one(&self, claim: &api::Claim) -> Result<Vec<api::Device>, String> {
        self.prepare(std::slice::from_ref(claim)).await.remove(0)
    }

    /// Follows the devices' health until the first is `healthy` or not; returns what is said of it.
    pub async fn until_health(&self, healthy: bool) -> String {
        let mut client = DraResourceHealthClient::new(connect(&self.socket, "localhost"));
        let followed = async {
            let mut answers = client.node_watch_resources(NodeWatchResourcesRequest {}).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                let first = answer.devices.into_iter().next().expect("a device");
                if (first.health() == HealthStatus::Healthy) == healthy {
                    return Ok::<_, tonic::Status>(first.message);
                }
            }
            panic!("the stream ended");
        };
        let followed = tokio::time::timeout(PATIENCE, followed).await;
        followed.expect("the health is told in time").expect("the driver answers")
    }

    /// Gives a claim back.
    pub async fn unprepare(&self, claim: &api::Claim) -> Result<(), String> {
        let request = api::NodeUnprepareResourcesRequest { claims: vec![claim.clone()] };
        let answer = self.client.clone().node_unprepare_resources(request).await.expect("the driver answers");
        let error = answer.into_inner().claims.remove(&claim.uid).expect("an answer for each claim").error;
        if error.is_empty() { Ok(()) } else { Err(error) }
    }
}

/// A claim by its names.
pub fn claim(name: &str, uid: &str) -> api::Claim {
    api::Claim { namespace: "fn".into(), name: name.into(), uid: uid.into() }
}

/// The sockets in a folder that a kubelet looks at.
pub fn sockets(registry: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(registry).expect("the folder can be read").flatten();
    let sockets = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()));
    sockets.map(|entry| entry.path()).collect()
}

/// What the kubelet's client calls a server that it reaches by `socket`.
fn authority(socket: &Path) -> String {
    let mut encoded = String::new();
    for byte in socket.to_str().expect("a path of text").bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]@".contains(&byte) {
            encoded.push(byte.into());
        } else {
            write!(encoded, "%{byte:02X}").expect("text takes text");
        }
    }
    encoded
}

fn connect(socket: &Path, authority: &str) -> Channel {
    let socket = socket.to_path_buf();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let server = format!("http://{authority}");
    Endpoint::from_shared(server).expect("an address").connect_with_connector_lazy(connector)
}
