//! Peers for tests: a runtime whose replicas are servers in this process, a node agent with a real ledger, and a
//! policy that does as it is told. Each speaks the real protocol.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path as UrlPath, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, put};
use axum::{Json, Router};
use futures_util::future::BoxFuture;
use gpu_share::annotations::Wish;
use gpu_share::binding::{BindingId, GpuId};
use gpu_share::latency::Profiles;
use gpu_share::ledger::{Gpu, Ledger, Sharing};
use gpu_share::protocol::{
    Bind, BindingStatus, Bound, GpuStatus, Granted, Health, NodeStatus, Problem, SetGrant,
};
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos, Units};
use http::StatusCode;
use scaler::policy::{Action, Decision, FunctionView, Policy};
use serde_json::Value;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api::{self, Api};
use super::control;
use super::folder::Folder;
use super::node::Node;
use super::platform::{Parts, Platform};
use super::queue::Queue;
use super::runtime::{Launch, Launched, Runtime};
use super::store::Store;

/// Longest time that a request is held: longer than anything takes that is waited for, and short enough to wait for.
const HOLD: Duration = Duration::from_secs(3);
/// Longest wait of any test.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Starts replicas as servers in this process.
///
/// They answer `/redirect` with 302, `/never` not at all, and everything else with what they were asked.
#[derive(Debug, Default)]
pub(crate) struct InProcess {
    /// Time until a replica is ready.
    delay: Duration,
    /// Why none can start.
    broken: Option<String>,
    started: Mutex<Vec<Launched>>,
}

impl InProcess {
    /// Replicas that are ready only after `delay`.
    pub(crate) fn slow(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// Replicas that cannot start, for this reason.
    pub(crate) fn broken(reason: &str) -> Self {
        Self { broken: Some(reason.into()), ..Self::default() }
    }

    /// Ends the newest replica as a crash would.
    pub(crate) fn crash(&self) {
        self.started.lock().unwrap().last().unwrap().kill.cancel();
    }

    pub(crate) fn started(&self) -> usize {
        self.started.lock().unwrap().len()
    }
}

impl Runtime for InProcess {
    fn launch(&self, order: Launch) -> BoxFuture<'_, Result<Launched, String>> {
        Box::pin(async move {
            if let Some(reason) = &self.broken {
                return Err(reason.clone());
            }
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
            let (ended_send, ended) = watch::channel(None);
            order.log.write(&order.instance, format!("started for {}", order.spec.id));
            let app = replica_app(self.delay);
            let (stopped, killed) = (stop.clone(), kill.clone());
            tokio::spawn(async move {
                let reason = tokio::select! {
                    _ = axum::serve(listener, app).into_future() => "server ended",
                    () = stopped.cancelled() => "stopped",
                    () = killed.cancelled() => "crashed",
                };
                ended_send.send_replace(Some(reason.to_string()));
            });
            let launched = Launched { address, pid: None, ended, stop, kill };
            self.started.lock().unwrap().push(launched.clone());
            Ok(launched)
        })
    }
}

fn replica_app(delay: Duration) -> Router {
    let ready_at = std::time::Instant::now() + delay;
    let ready = move || async move {
        if std::time::Instant::now() >= ready_at { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    };
    Router::new().route("/_/ready", get(ready)).fallback(echo)
}

async fn echo(request: Request) -> Response {
    let path = request.uri().to_string();
    match path.as_str() {
        "/redirect" => return (StatusCode::FOUND, [("location", "/elsewhere")]).into_response(),
        "/never" => std::future::pending().await,
        "/fail" => return (StatusCode::INTERNAL_SERVER_ERROR, "broken").into_response(),
        _ => {}
    }
    let mut text = format!("{} {path}\n", request.method());
    for (name, value) in request.headers() {
        text.extend([name.as_str(), ": ", value.to_str().unwrap(), "\n"]);
    }
    let body = axum::body::to_bytes(request.into_body(), 64 << 20).await.unwrap();
    text += &String::from_utf8_lossy(&body);
    (StatusCode::OK, text).into_response()
}

/// A node agent: a real ledger behind the real control API.
#[derive(Clone, Debug)]
pub(crate) struct FakeNode {
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    /// GPU time that each binding has used.
    pub(crate) used: Arc<Mutex<Nanos>>,
    numbers: Arc<AtomicU32>,
}

impl FakeNode {
    /// An agent of `gpus` cards of 16 GiB that serves at `socket`.
    pub(crate) fn start(socket: &Path, gpus: u32) -> Self {
        let gpu = |index| Gpu {
            id: GpuId(format!("GPU-{index}")),
            index,
            name: "fake".into(),
            memory: Bytes::gib(16),
            sharing: Sharing::Mps,
        };
        let node = Self {
            ledger: Arc::new(Mutex::new(Ledger::new((0..gpus).map(gpu)))),
            used: Arc::default(),
            numbers: Arc::default(),
        };
        let app = Router::new()
            .route("/v1/status", get(status))
            .route("/v1/bindings", axum::routing::post(bind))
            .route("/v1/bindings/{id}", delete(release))
            .route("/v1/bindings/{id}/grant", put(grant))
            .with_state(node.clone());
        let listener = UnixListener::bind(socket).unwrap();
        tokio::spawn(axum::serve(listener, app).into_future());
        node
    }
}

async fn status(State(node): State<FakeNode>) -> Json<NodeStatus> {
    let ledger = node.ledger.lock().unwrap();
    let used = *node.used.lock().unwrap();
    let gpus = ledger.gpus().map(|gpu| GpuStatus {
        gpu: gpu.clone(),
        health: Health::Healthy,
        free_units: ledger.free_units(gpu, Units::PER_GPU),
        largest_fit: ledger.largest_fit(gpu, Units::PER_GPU),
        bindings: ledger
            .bindings_on(&gpu.id)
            .map(|binding| BindingStatus {
                binding: binding.clone(),
                used,
                throttled: Nanos::ZERO,
                memory_used: Bytes::ZERO,
                processes: vec![7],
                launches: 0,
                unknown: 0,
                faults: 0,
            })
            .collect(),
    });
    let gpus = gpus.collect();
    Json(NodeStatus { version: "0".into(), pid: 1, units_per_gpu: Units::PER_GPU, blind: None, gpus })
}

async fn bind(State(node): State<FakeNode>, Json(bind): Json<Bind>) -> Response {
    let id = BindingId::try_from(format!("b-{}", node.numbers.fetch_add(1, SeqCst))).unwrap();
    match node.ledger.lock().unwrap().bind(id, bind.owner, bind.share) {
        Ok((binding, _)) => {
            let bound = Bound { binding, page: "/page".into(), socket: "/socket".into(), env: vec![] };
            (StatusCode::CREATED, Json(bound)).into_response()
        }
        Err(error) => (StatusCode::CONFLICT, Json(Problem { error: error.to_string() })).into_response(),
    }
}

async fn release(State(node): State<FakeNode>, UrlPath(id): UrlPath<BindingId>) -> Response {
    match node.ledger.lock().unwrap().release(&id) {
        Ok(_) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => (StatusCode::NOT_FOUND, Json(Problem { error: error.to_string() })).into_response(),
    }
}

async fn grant(
    State(node): State<FakeNode>,
    UrlPath(id): UrlPath<BindingId>,
    Json(set): Json<SetGrant>,
) -> Response {
    let mut ledger = node.ledger.lock().unwrap();
    let granted = if set.quota.is_zero() {
        ledger.park(&id).map(|()| set.quota)
    } else {
        ledger.grant(&id, set.quota).map(|(grant, _)| grant)
    };
    match granted {
        Ok(grant) => Json(Granted { grant }).into_response(),
        Err(error) => (StatusCode::NOT_FOUND, Json(Problem { error: error.to_string() })).into_response(),
    }
}

/// Decides what it is told to, one action a round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told(pub(crate) Arc<Mutex<VecDeque<Action>>>);

impl Policy for Told {
    fn name(&self) -> &'static str {
        "told"
    }

    fn share(&self, wish: &Wish, _: Bytes) -> Share {
        wish.share
    }

    fn decide(&mut self, _: Nanos, functions: &[FunctionView]) -> Vec<Decision> {
        if functions.is_empty() {
            return vec![];
        }
        let action = self.0.lock().unwrap().pop_front();
        action.into_iter().map(|action| Decision { action, reason: "as told".into() }).collect()
    }
}

/// All of `up` but its processes, behind a real port.
pub(crate) struct World {
    pub(crate) platform: Arc<Platform>,
    pub(crate) runtime: Arc<InProcess>,
    pub(crate) node: FakeNode,
    pub(crate) told: Told,
    pub(crate) url: String,
    pub(crate) client: reqwest::Client,
    _root: tempfile::TempDir,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(InProcess::default(), None).await
    }

    pub(crate) async fn with(runtime: InProcess, password: Option<&str>) -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::create(root.path()).unwrap();
        let socket = root.path().join("control.sock");
        let node = FakeNode::start(&socket, 1);
        let runtime = Arc::new(runtime);
        let told = Told::default();
        let parts = Parts {
            node: Node::new(socket),
            runtime: runtime.clone(),
            store: Store { folder },
            profiles: Profiles::shipped(),
            window: Nanos::from_millis(10),
            hold: HOLD,
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        };
        let platform = Arc::new(Platform::new(parts, Box::new(told.clone())).unwrap());
        platform.note_status(Arc::new(platform.node.status().await.unwrap()));
        platform.tasks.spawn(control::run(platform.clone()));
        let queue = Queue::start(platform.clone());
        let api = Api {
            platform: platform.clone(),
            queue,
            login: password.map(|password| Arc::new(api::login(password.into()))),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let service = api::router(api).into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(axum::serve(listener, service).into_future());
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(DEADLINE);
        let client = client.build().unwrap();
        Self { platform, runtime, node, told, url, client, _root: root }
    }

    /// Sends a request; its status and text.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let response = self.send(method, path, body).await;
        (response.status().as_u16(), response.text().await.unwrap())
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: &str) -> reqwest::Response {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        self.client
            .request(method, format!("{}{path}", self.url))
            .body(body.to_string())
            .send()
            .await
            .unwrap()
    }

    pub(crate) async fn json(&self, path: &str) -> Value {
        let (status, text) = self.ask("GET", path, "").await;
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Deploys an executable with these annotations, and waits until a replica serves.
    pub(crate) async fn deploy(&self, name: &str, annotations: &str) {
        let body = format!(r#"{{"service":"{name}","image":"/bin/cat","annotations":{{{annotations}}}}}"#);
        assert_eq!(self.ask("POST", "/system/functions", &body).await, (202, String::new()));
        self.until("a replica serves", || self.function(name).available() > 0).await;
    }

    pub(crate) fn function(&self, name: &str) -> Arc<super::function::Function> {
        let (name, namespace) = openfaas::names::split(name, openfaas::names::DEFAULT_NAMESPACE);
        self.platform.function(namespace, name).unwrap()
    }

    /// Waits for something, at most so long.
    pub(crate) async fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let wait = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, wait)
            .await
            .unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.platform.shutdown.cancel();
    }
}
