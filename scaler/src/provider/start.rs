//! Start and end of the provider.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use openfaas::calls;
use openfaas::login::Login;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::api::{App, router};
use super::cluster::Cluster;
use super::functions::Functions;
use super::metrics::Metrics;
use super::wake::{Scaler, Waker};
use super::watches::Watches;

/// Longest time that requests that have begun may take to end.
const DRAIN: Duration = Duration::from_secs(30);

/// What the provider is started with.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) listen: SocketAddr,
    pub(super) login: Option<Login>,
    pub(super) scaler: Option<reqwest::Url>,
    pub(super) settings: Settings,
}

/// Runs until `stop`. `ready` is told where it listens.
pub(super) async fn run(
    options: Options,
    stop: CancellationToken,
    ready: impl FnOnce(SocketAddr) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let Options { listen, login, scaler, settings } = options;
    if login.is_none() && !listen.ip().is_loopback() {
        tracing::warn!(%listen, "whoever reaches the address may run programs in the cluster: no --basic-auth is given");
    }
    let client = kube::Client::try_default()
        .await
        .context("no API server is known, allowed is a service account or KUBECONFIG: functions run there")?;
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("failed to listen on {listen}"))?;
    let address = listener.local_addr()?;

    let metrics = Arc::new(Metrics::new(settings.role)?);
    let settings = Arc::new(settings);
    let functions = Arc::new(Functions::new(Arc::clone(&settings)));
    let watches = Watches {
        client: client.clone(),
        settings: Arc::clone(&settings),
        functions: Arc::clone(&functions),
        metrics: Arc::clone(&metrics),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(watches.clone().follow_deployments());
    tasks.spawn(watches.clone().follow_pods());
    tasks.spawn(watches.follow_namespaces());

    // Through no proxy: it is an address within the cluster.
    let to_scaler = reqwest::Client::builder().no_proxy().build()?;
    let cluster = Cluster { client, settings, functions };
    let waker = Waker {
        cluster: cluster.clone(),
        metrics: Arc::clone(&metrics),
        scaler: scaler.map(|url| Scaler { client: to_scaler, url }),
        stop: stop.clone(),
    };
    let login = login.map(Arc::new);
    let app = App { cluster, waker, client: calls::client(), metrics, login, stop: stop.clone() };
    let app = router(app).into_make_service_with_connect_info::<SocketAddr>();
    ready(address)?;
    let serving = axum::serve(listener, app).with_graceful_shutdown(stop.clone().cancelled_owned());
    let ended = tokio::select! {
        served = async { serving.await } => Ok(served?),
        () = async { stop.cancelled().await; tokio::time::sleep(DRAIN).await } => {
            tracing::warn!(seconds = DRAIN.as_secs(), "requests are not done, and are cut");
            Ok(())
        }
    };
    tasks.shutdown().await;
    ended
}

/// Reads user and password from files of the names that OpenFaaS gives them.
pub(super) fn read_login(folder: &Path) -> anyhow::Result<Login> {
    let read = |name: &str| {
        let file = folder.join(name);
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("failed to read {}", file.display()))?;
        let text = text.trim();
        anyhow::ensure!(!text.is_empty(), "{} is empty, allowed is text", file.display());
        Ok(text.to_string())
    };
    Ok(Login { user: read("basic-auth-user")?, password: read("basic-auth-password")? })
}
