//! The webhook's service: the API server asks over HTTPS what a pod is to get.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::Listener;
use axum::{Json, Router};
use prometheus::{IntCounterVec, Opts, Registry, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::tls::{self, Files};
use crate::webhook::Settings;
use crate::webhook::review::{Outcome, answer};

/// Longest review, in bytes: a pod is 1.5 MiB at most, as etcd is set up, and comes with the one before it.
const LONGEST: usize = 4 << 20;
/// Longest time that reviews that have begun may take to end.
const DRAIN: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
struct App {
    settings: Arc<Settings>,
    registry: Registry,
    reviews: IntCounterVec,
}

/// Runs until `stop`. `ready` is told where it listens.
pub(super) async fn run(
    listen: SocketAddr,
    files: Files,
    settings: Settings,
    stop: CancellationToken,
    ready: impl FnOnce(SocketAddr) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let (config, contents) = files.load()?;
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("failed to listen on {listen}"))?;
    let address = listener.local_addr()?;
    let (newest, config) = watch::channel(config);
    tokio::spawn(files.watch(newest, contents));
    let incoming = Incoming { address, accepted: tls::incoming(listener, config) };
    let app = router(App::new(settings)?);
    ready(address)?;
    let serving = axum::serve(incoming, app).with_graceful_shutdown(stop.clone().cancelled_owned());
    tokio::select! {
        served = async { serving.await } => Ok(served?),
        () = async { stop.cancelled().await; tokio::time::sleep(DRAIN).await } => {
            tracing::warn!(seconds = DRAIN.as_secs(), "reviews are not done, and are cut");
            Ok(())
        }
    }
}

impl App {
    fn new(settings: Settings) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let options = Opts::new("gpufn_scaler_reviews_total", "Reviews of pods, by what came of them");
        let reviews = IntCounterVec::new(options, &["result"])?;
        registry.register(Box::new(reviews.clone()))?;
        Ok(Self { settings: Arc::new(settings), registry, reviews })
    }

    fn count(&self, outcome: &Outcome) {
        let result = match outcome {
            Outcome::Unchanged => "unchanged",
            Outcome::Patched => "patched",
            Outcome::Refused(_) => "refused",
            Outcome::Unreadable(_) => "unreadable",
        };
        self.reviews.with_label_values(&[result]).inc();
    }
}

fn router(app: App) -> Router {
    Router::new()
        .route("/mutate", post(mutate))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(LONGEST))
        .with_state(app)
}

async fn mutate(State(app): State<App>, body: Bytes) -> Response {
    let (review, outcome) = answer(&body, &app.settings);
    match &outcome {
        Outcome::Refused(why) => tracing::info!(%why, "a pod is refused"),
        Outcome::Unreadable(why) => tracing::warn!(%why, "a review can't be answered"),
        Outcome::Unchanged | Outcome::Patched => {}
    }
    app.count(&outcome);
    Json(review).into_response()
}

async fn metrics(State(app): State<App>) -> Response {
    match TextEncoder::new().encode_to_string(&app.registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Connections that are through with TLS.
struct Incoming {
    address: SocketAddr,
    accepted: ReceiverStream<std::io::Result<TlsStream<TcpStream>>>,
}

impl Listener for Incoming {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.accepted.next().await {
                Some(Ok(stream)) => return (stream, self.address),
                Some(Err(_)) => {}
                // Nothing listens any more; the service ends.
                None => std::future::pending().await,
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::settings;

    #[test]
    fn the_readme_lists_the_metric_and_what_it_tells_apart() {
        let app = App::new(settings()).unwrap();
        let why = || "why".to_string();
        for outcome in
            [Outcome::Patched, Outcome::Unchanged, Outcome::Refused(why()), Outcome::Unreadable(why())]
        {
            app.count(&outcome);
        }
        let text = TextEncoder::new().encode_to_string(&app.registry.gather()).unwrap();
        let (_, readme) = include_str!("../../README.md").split_once("# The admission webhook").unwrap();
        let row = readme
            .lines()
            .find(|line| line.starts_with("| `gpufn_scaler_reviews_total` | counter |"))
            .unwrap();
        let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(samples.len(), 4);
        for result in samples.iter().map(|line| line.split('"').nth(1).unwrap()) {
            assert!(row.contains(&format!("`{result}`")), "{result}");
        }
    }
}
