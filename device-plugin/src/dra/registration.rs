//! The socket by which the kubelet finds the driver, and over which it calls it.
//!
//! The kubelet looks at every socket in its folder `plugins_registry`, when it starts and when one comes. So the driver only
//! has to see that its own is there. It has one name: an agent that was killed leaves it, and the next one replaces it, which
//! the kubelet takes for another plugin in the place of the old one. Two agents don't meet here, since the one that comes later
//! waits for the state folder.

use std::io;
use std::path::Path;
use std::time::Duration;

use gpu_share::names::dra::DRIVER;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::api::health::dra_resource_health_server::DraResourceHealthServer;
use super::api::registration::registration_server::RegistrationServer;
use super::api::v1::dra_plugin_server::DraPluginServer;
use super::driver::Driver;
use super::health::HealthService;
use crate::kubelet::socket::{Removed, Watch};

/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// How long calls that are being answered may go on at the end.
const LAST_CALLS: Duration = Duration::from_secs(1);

/// The socket's name in the folder.
///
/// The kubelet's client names the server by the path of the socket, with `%2F` for slashes (`encodeAuthority` of grpc-go).
/// HTTP's rules allow that in front of an `@` only, as a user's name, and the server here keeps to them (`hyperium/h2` #487).
fn socket_name() -> String {
    format!("gpufn@{DRIVER}.sock")
}

/// What is served on the socket.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    pub(crate) driver: Driver,
    pub(crate) health: HealthService,
}

/// Keeps `services` where the kubelet finds them, in `folder`, until `stop`.
pub(crate) async fn keep(services: Services, folder: &Path, stop: CancellationToken) {
    let mut watch = Watch::new(folder);
    // What is wrong is said once, not at every try.
    let mut last = String::new();
    while !stop.is_cancelled() {
        let session = session(services.clone(), folder, &mut watch, stop.clone()).await;
        if stop.is_cancelled() {
            return;
        }
        let Err(error) = session else {
            last.clear();
            tracing::info!("the driver's socket was removed; making another one");
            continue;
        };
        let text = error.to_string();
        if text != last {
            tracing::warn!(folder = %folder.display(), error = text, "the kubelet can't find the driver; trying again");
            last = text;
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// From a fresh socket until that is gone.
async fn session(
    services: Services,
    folder: &Path,
    watch: &mut Watch,
    stop: CancellationToken,
) -> io::Result<()> {
    let path = folder.join(socket_name());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    let socket = Removed::at(path);
    let end = stop.child_token();
    let ends = end.clone();
    let Services { driver, health } = services;
    driver.metrics.front_end.unregistered();
    let health = HealthService { end: end.clone(), ..health };
    let serving = tokio::spawn(async move {
        let served = Server::builder()
            .add_service(RegistrationServer::new(driver.clone()))
            .add_service(DraPluginServer::new(driver))
            .add_service(DraResourceHealthServer::new(health))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), ends.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "the service for the kubelet ended");
        }
    });
    let _guard = end.clone().drop_guard();
    while socket.is_there() {
        tokio::select! {
            () = watch.something_happens() => {}
            () = stop.cancelled() => break,
        }
    }
    // The kubelet calls nobody whose socket is gone.
    drop(socket);
    end.cancel();
    let _ = tokio::time::timeout(LAST_CALLS, serving).await;
    Ok(())
}
