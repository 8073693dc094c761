//! Start and end of the service.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::board::{Board, Settings};
use super::clock::Clock;
use super::cluster::Cluster;
use super::grpc::Scaler;
use super::metrics::Metrics;
use super::source::{Gateway, Prometheus, Watchdogs};
use super::tls::Files;
use super::{sampler, tls, web};
use crate::keda::api::DESCRIPTION;
use crate::keda::api::external_scaler_server::ExternalScalerServer;

/// Connections that lie idle are asked for life so often: what is between may drop those that say nothing for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// A connection that does not answer for so long is dead.
const DEAD: Duration = Duration::from_secs(10);
/// Streams on one connection: KEDA has one connection for all triggers of an address, with two streams for each of them that
/// stay, and calls that find no room would wait for ever.
const STREAMS: u32 = 1 << 20;
/// Longest time that what is begun may take to end.
const DRAIN: Duration = Duration::from_secs(10);
/// Time between two looks whether the API server has shown everything.
const LOOK: Duration = Duration::from_millis(50);
/// Longest message that is read, in bytes: metadata of a trigger is a page of text at most.
const LONGEST: usize = 256 << 10;

/// Where load is read.
#[derive(Clone, Debug)]
pub(super) enum From {
    /// From the watchdogs, on this port of each pod.
    Watchdogs(u16),
    /// From this Prometheus.
    Prometheus(reqwest::Url),
    /// From this gateway's metrics.
    Gateway(String),
}

/// What the service is started with.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) listen: SocketAddr,
    pub(super) http: SocketAddr,
    pub(super) tls: Option<Files>,
    pub(super) namespace: Option<String>,
    pub(super) source: From,
    pub(super) period: Duration,
    /// Longest time that one answer of the source may take.
    pub(super) patience: Duration,
    pub(super) settings: Settings,
}

/// Runs until `stop`. `ready` is told where it listens.
pub(super) async fn run(
    options: Options,
    stop: CancellationToken,
    ready: impl FnOnce(SocketAddr, SocketAddr) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let Options { listen, http, tls, namespace, source, period, patience, settings } = options;
    if tls.is_none() && !listen.ip().is_loopback() {
        tracing::warn!(%listen, "whoever reaches the socket may ask: no --tls-cert is given");
    }
    let tls = tls.map(|files| files.load().map(|loaded| (files, loaded))).transpose()?;
    let client = kube::Client::try_default().await.context(
        "no API server is known, allowed is a service account or KUBECONFIG: functions come from there",
    )?;
    let bind = async |address| {
        TcpListener::bind(address).await.with_context(|| format!("failed to listen on {address}"))
    };
    let (grpc, web) = (bind(listen).await?, bind(http).await?);
    let addresses = (grpc.local_addr()?, web.local_addr()?);

    let (clock, metrics) = (Clock::start(), Arc::new(Metrics::new()?));
    let board = Arc::new(Board::new(settings, clock));
    let mut tasks = JoinSet::new();
    let cluster = Cluster { client, namespace };
    tasks.spawn(cluster.clone().follow_deployments(Arc::clone(&board), Arc::clone(&metrics)));
    tasks.spawn(cluster.follow_pods(Arc::clone(&board), Arc::clone(&metrics)));
    read(&mut tasks, source, period, patience, &board, clock, &metrics)?;

    let (reporter, health) = tonic_health::server::health_reporter();
    report(&reporter, ServingStatus::NotServing).await;
    tasks.spawn(serve_when_listed(reporter.clone(), Arc::clone(&board)));
    let app = web::App { board: Arc::clone(&board), metrics: Arc::clone(&metrics), stop: stop.clone() };
    let http = axum::serve(web, web::router(app)).with_graceful_shutdown(stop.clone().cancelled_owned());

    let scaler = Scaler { board, metrics, stop: stop.clone() };
    // Older clients know the second form only.
    let (reflection, old_reflection) = (described().build_v1()?, described().build_v1alpha()?);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(DEAD))
        .max_concurrent_streams(Some(STREAMS))
        .add_service(ExternalScalerServer::new(scaler).max_decoding_message_size(LONGEST))
        .add_service(health)
        .add_service(reflection)
        .add_service(old_reflection);
    ready(addresses.0, addresses.1)?;
    let ends = stop.clone();
    let serving = async {
        match tls {
            None => serve(server, TcpIncoming::from(grpc).with_nodelay(Some(true)), ends).await,
            Some((files, (config, contents))) => {
                let (newest, config) = watch::channel(config);
                tasks.spawn(files.watch(newest, contents));
                serve(server, tls::incoming(grpc, config), ends).await
            }
        }
    };
    let serving = async { tokio::try_join!(serving, async { Ok(http.await?) }) };
    let ended = tokio::select! {
        ended = serving => ended.map(drop),
        () = overdue(&stop, &reporter) => {
            tracing::warn!(seconds = DRAIN.as_secs(), "what was begun is not done, and is cut");
            Ok(())
        }
    };
    tasks.shutdown().await;
    ended
}

fn described() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTION)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

async fn serve<S, C>(
    server: tonic::transport::server::Router,
    incoming: S,
    stop: CancellationToken,
) -> anyhow::Result<()>
where
    S: Stream<Item = std::io::Result<C>>,
    C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    Ok(server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await?)
}

/// Starts to read load.
fn read(
    tasks: &mut JoinSet<()>,
    source: From,
    period: Duration,
    patience: Duration,
    board: &Arc<Board>,
    clock: Clock,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<()> {
    // Through no proxy: these are addresses within the cluster.
    let client = reqwest::Client::builder().no_proxy().timeout(patience).build()?;
    let (board, metrics) = (Arc::clone(board), Arc::clone(metrics));
    match source {
        From::Watchdogs(port) => {
            tasks.spawn(sampler::run(Watchdogs { client, port }, period, board, clock, metrics));
        }
        From::Prometheus(url) => {
            tasks.spawn(sampler::run(Prometheus::new(client, url), period, board, clock, metrics));
        }
        From::Gateway(url) => {
            tasks.spawn(sampler::run(Gateway { client, url }, period, board, clock, metrics));
        }
    }
    Ok(())
}

/// Says that it serves once it is known which functions there are.
async fn serve_when_listed(reporter: HealthReporter, board: Arc<Board>) {
    while !board.is_listed() {
        tokio::time::sleep(LOOK).await;
    }
    report(&reporter, ServingStatus::Serving).await;
}

async fn report(reporter: &HealthReporter, status: ServingStatus) {
    for service in ["", crate::keda::api::external_scaler_server::SERVICE_NAME] {
        reporter.set_service_status(service, status).await;
    }
}

/// Says that it serves no more when it is told to stop, and returns when the time for that is over.
async fn overdue(stop: &CancellationToken, reporter: &HealthReporter) {
    stop.cancelled().await;
    report(reporter, ServingStatus::NotServing).await;
    tokio::time::sleep(DRAIN).await;
}
