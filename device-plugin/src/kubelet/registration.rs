//! The plugin's socket, and the kubelet's knowledge of it.
//!
//! ```text
//!          ┌───────────────────────── own socket gone, or the kubelet's another one ─────────────────┐
//!          ▼                                                                                         │
//!   bind a fresh socket ─► serve ─► it answers ─► Register ─► registered ─ inotify, and a look each second ┘
//!          ▲                                        │
//!          └── pause, or the kubelet's socket ──────┘ no kubelet, or it refuses
//! ```
//!
//! The kubelet calls back before it answers `Register`, so the service answers first. A kubelet that starts removes every
//! socket in the folder; an agent that starts beside another (an upgrade) uses a name of its own and touches nobody else's.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::transport::Server;

use super::api::v1beta1::RegisterRequest;
use super::api::v1beta1::device_plugin_server::DevicePluginServer;
use super::api::v1beta1::registration_client::RegistrationClient;
use super::api::{KUBELET_SOCKET, VERSION};
use super::plugin::{OPTIONS, Plugin};
use super::podresources::connect_lazily;
use super::resource::Resource;
use super::socket::{Removed, Watch, identity};

/// The kubelet waits 10 s for its call back.
const PATIENCE: Duration = Duration::from_secs(12);
/// First and longest pause after a failure. A resource whose plugin stays away for 5 min is dropped by the kubelet.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How long calls that are being answered may go on at the end.
const LAST_CALLS: Duration = Duration::from_secs(1);

/// Why the plugin is not registered.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{path} can't be listened on: {reason}")]
    Listen { path: PathBuf, reason: io::Error },
    #[error("{path} does not answer: {reason}")]
    Probe { path: PathBuf, reason: io::Error },
    #[error("there is no kubelet at {path}: {reason}")]
    NoKubelet { path: PathBuf, reason: io::Error },
    #[error("the kubelet at {path} does not register the plugin: {reason}")]
    Refused { path: PathBuf, reason: tonic::Status },
    #[error("the kubelet at {0} does not answer")]
    Silent(PathBuf),
}

/// Keeps `plugin` registered for `resource` with the kubelet whose folder is `folder`, until `stop`.
pub(crate) async fn keep(plugin: Plugin, folder: &Path, resource: &Resource, stop: CancellationToken) {
    let mut watch = Watch::new(folder);
    let mut pause = PAUSES.0;
    let mut last = String::new();
    for number in 0_u64.. {
        let end = stop.child_token();
        let session = session(plugin.clone(), folder, number, resource, &mut watch, end.clone());
        let result = tokio::select! {
            result = session => result,
            () = stop.cancelled() => Ok(()),
        };
        if stop.is_cancelled() {
            return;
        }
        let Err(failure) = result else {
            pause = PAUSES.0;
            last.clear();
            continue;
        };
        // Said once, not at every try.
        let text = failure.to_string();
        if text != last {
            tracing::warn!(error = text, "not registered with the kubelet; trying again");
            last = text;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSES.1),
            () = kubelet_appears(&mut watch) => pause = PAUSES.0,
            () = stop.cancelled() => return,
        }
    }
}

/// From a fresh socket until that or the kubelet's is gone.
async fn session(
    plugin: Plugin,
    folder: &Path,
    number: u64,
    resource: &Resource,
    watch: &mut Watch,
    end: CancellationToken,
) -> Result<(), Failure> {
    let socket = Socket::bind(folder, number)?;
    let kubelet = folder.join(KUBELET_SOCKET);
    let metrics = Arc::clone(&plugin.metrics);
    metrics.front_end.unregistered();
    let plugin = Plugin { end: end.clone(), ..plugin };
    let serving = tokio::spawn(serve(plugin, socket.listener, end.clone()));
    // However this ends, the service ends with it.
    let _guard = end.clone().drop_guard();
    let own = socket.path;
    let outcome = async {
        let probed = UnixStream::connect(&own.path).await;
        probed.map_err(|reason| Failure::Probe { path: own.path.clone(), reason })?;
        let met =
            identity(&kubelet).map_err(|reason| Failure::NoKubelet { path: kubelet.clone(), reason })?;
        register(&kubelet, &own.path, resource).await?;
        metrics.front_end.registered();
        tracing::info!(%resource, socket = %own.path.display(), "registered with the kubelet");
        while own.is_there() && identity(&kubelet).ok() == Some(met) {
            watch.something_happens().await;
        }
        tracing::info!(%resource, "the kubelet was restarted; registering again");
        Ok(())
    };
    let result = outcome.await;
    metrics.front_end.unregistered();
    end.cancel();
    let _ = tokio::time::timeout(LAST_CALLS, serving).await;
    result
}

async fn serve(plugin: Plugin, listener: UnixListener, end: CancellationToken) {
    let connections = UnixListenerStream::new(listener);
    let service = DevicePluginServer::new(plugin);
    let served = Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(connections, end.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "the service for the kubelet ended");
    }
}

async fn register(kubelet: &Path, own: &Path, resource: &Resource) -> Result<(), Failure> {
    let endpoint = own.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let request = RegisterRequest {
        version: VERSION.into(),
        endpoint,
        resource_name: resource.as_str().into(),
        options: Some(OPTIONS),
    };
    let mut client = RegistrationClient::new(connect_lazily(kubelet.into()));
    match tokio::time::timeout(PATIENCE, client.register(Request::new(request))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(reason)) => Err(Failure::Refused { path: kubelet.into(), reason }),
        Err(_) => Err(Failure::Silent(kubelet.into())),
    }
}

/// A socket of this agent's own.
struct Socket {
    listener: UnixListener,
    path: Removed,
}

impl Socket {
    fn bind(folder: &Path, number: u64) -> Result<Self, Failure> {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        // Short: an address of a socket has 108 bytes at most.
        let path = folder.join(format!("gpufn-{}-{started}-{number}.sock", std::process::id()));
        match UnixListener::bind(&path) {
            Ok(listener) => Ok(Self { listener, path: Removed::at(path) }),
            Err(reason) => Err(Failure::Listen { path, reason }),
        }
    }
}

/// Returns when the kubelet's socket is another one than now.
async fn kubelet_appears(watch: &mut Watch) {
    let path = watch.folder.join(KUBELET_SOCKET);
    let before = identity(&path).ok();
    loop {
        watch.something_happens().await;
        let now = identity(&path).ok();
        if now.is_some() && now != before {
            return;
        }
    }
}
