//! Start and end of the service.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::board::{Board, Settings};
use super::clock::Clock;
use super::cluster::Cluster;
use super::control::{Control, Shared};
use super::grpc::Scaler;
use super::lead::{Candidate, Leadership};
use super::metrics::Metrics;
use super::outbox::{Outbox, Writer};
use super::source::{Gateway, Prometheus, Watchdogs};
use super::statuses::Statuses;
use super::tls::Files;
use super::{control, lead, owner, sampler, tls, web};
use crate::control::election::Terms;
use crate::control::period;
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
    pub(super) lead: Lead,
}

/// What the scaler that leads does, and how it comes to lead.
#[derive(Debug)]
pub(super) struct Lead {
    /// Namespace of the Lease; else that of the service account or KUBECONFIG.
    pub(super) namespace: Option<String>,
    /// Name of the Lease.
    pub(super) lease: String,
    pub(super) terms: Terms,
    /// Time between two decisions about grants.
    pub(super) period: Duration,
    /// Whether grants are changed.
    pub(super) grants: bool,
    /// Whether numbers of replicas are, where nobody else owns them.
    pub(super) counts: bool,
    pub(super) is_dry_run: bool,
    /// Most writes a second.
    pub(super) rate: u32,
}

/// Runs until `stop`. `ready` is told where it listens.
pub(super) async fn run(
    options: Options,
    stop: CancellationToken,
    ready: impl FnOnce(SocketAddr, SocketAddr) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let Options { listen, http, tls, namespace, source, period, patience, settings, lead } = options;
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
    let cluster = Cluster { client: client.clone(), namespace };
    tasks.spawn(cluster.clone().follow_deployments(Arc::clone(&board), Arc::clone(&metrics)));
    tasks.spawn(cluster.clone().follow_pods(Arc::clone(&board), Arc::clone(&metrics)));
    for kind in owner::KINDS {
        tasks.spawn(cluster.clone().follow_owners(kind, Arc::clone(&board), Arc::clone(&metrics)));
    }
    tasks.spawn(cluster.follow_profiles(Arc::clone(&board), Arc::clone(&metrics)));
    // Through no proxy: these are addresses within the cluster.
    let reader = reqwest::Client::builder().no_proxy().timeout(patience).build()?;
    let (leadership, shared) = (Arc::new(Leadership::new(clock)), Arc::new(Shared::default()));
    let watchdogs = match source {
        From::Watchdogs(port) => Some(Watchdogs { client: reader.clone(), port }),
        From::Prometheus(_) | From::Gateway(_) => None,
    };
    let leader =
        Leader { client, board: &board, clock, metrics: &metrics, shared: &shared, leadership: &leadership };
    let standing = leader.start(&mut tasks, lead, watchdogs, stop.clone());
    read(&mut tasks, source, period, reader, &board, clock, &metrics);

    let (reporter, health) = tonic_health::server::health_reporter();
    report(&reporter, ServingStatus::NotServing).await;
    tasks.spawn(serve_when_listed(reporter.clone(), Arc::clone(&board)));
    let app = web::App {
        board: Arc::clone(&board),
        metrics: Arc::clone(&metrics),
        stop: stop.clone(),
        clock,
        leadership,
        shared,
    };
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
    if let Some(standing) = standing {
        // It gives the Lease back, also where an error ended all else.
        stop.cancel();
        let _ = standing.await;
    }
    tasks.shutdown().await;
    ended
}

/// What the one that leads works with.
struct Leader<'a> {
    client: kube::Client,
    board: &'a Arc<Board>,
    clock: Clock,
    metrics: &'a Arc<Metrics>,
    shared: &'a Arc<Shared>,
    leadership: &'a Arc<Leadership>,
}

impl Leader<'_> {
    /// Starts to stand for election and to decide, if there is anything to be decided.
    fn start(
        self,
        tasks: &mut JoinSet<()>,
        lead: Lead,
        watchdogs: Option<Watchdogs>,
        stop: CancellationToken,
    ) -> Option<JoinHandle<()>> {
        if lead.grants && watchdogs.is_none() {
            tracing::warn!("grants are left alone: what Prometheus or a gateway says is too old for them");
        }
        let watchdogs = watchdogs.filter(|_| lead.grants);
        if watchdogs.is_none() && !lead.counts {
            return None;
        }
        let Self { client, board, clock, metrics, shared, leadership } = self;
        let (identity, outbox) = (lead::identity(), Arc::new(Outbox::default()));
        let candidate = Candidate {
            client: client.clone(),
            namespace: lead.namespace.unwrap_or_else(|| client.default_namespace().into()),
            lease: lead.lease,
            identity: identity.clone(),
            terms: lead.terms,
            board: Arc::clone(board),
            grants: watchdogs.is_some() && !lead.is_dry_run,
        };
        let writer = Writer {
            client,
            leadership: Arc::clone(leadership),
            board: Arc::clone(board),
            metrics: Arc::clone(metrics),
            shared: Arc::clone(shared),
            rate: lead.rate,
            identity,
        };
        let settings = board.settings();
        let control = Control {
            options: control::Options {
                period: lead.period,
                watchdogs,
                counts: lead.counts,
                is_dry_run: lead.is_dry_run,
            },
            profiles: settings.profiles.clone(),
            settings: period::Settings { gpu_memory: settings.gpu_memory, window: settings.window },
            board: Arc::clone(board),
            clock,
            leadership: Arc::clone(leadership),
            metrics: Arc::clone(metrics),
            shared: Arc::clone(shared),
            outbox: Arc::clone(&outbox),
        };
        if !lead.is_dry_run {
            let statuses = Statuses {
                client: candidate.client.clone(),
                leadership: Arc::clone(leadership),
                board: Arc::clone(board),
                shared: Arc::clone(shared),
            };
            tasks.spawn(statuses.run());
        }
        tasks.spawn(writer.run(outbox));
        tasks.spawn(control.run());
        // Not one of the tasks that are cut at the end.
        Some(tokio::spawn(candidate.run(Arc::clone(leadership), Arc::clone(metrics), stop)))
    }
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
    client: reqwest::Client,
    board: &Arc<Board>,
    clock: Clock,
    metrics: &Arc<Metrics>,
) {
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
