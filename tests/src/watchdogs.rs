//! The watchdogs of a function's pods as the scaler reads them, a Prometheus that has read them, and a gateway before them.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What one watchdog shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shown {
    /// Requests answered so far, beside those of `rate`.
    pub answered: u64,
    /// Requests a second that are answered all the time.
    pub rate: f64,
    /// Requests that are there, those that wait included.
    pub in_flight: u32,
    /// Requests that wait.
    pub waiting: u32,
    /// Seconds that the oldest of them has waited.
    pub oldest: f64,
    /// GPU time of a request in seconds and the quota as a part, where it has a share.
    pub share: Option<(f64, f64)>,
    /// Seconds that each of its requests takes.
    pub latency: f64,
    /// It answers by an error.
    pub is_down: bool,
}

/// Watchdogs on one port of several loopback addresses.
#[derive(Debug)]
pub struct Watchdogs {
    /// The port.
    pub port: u16,
    shown: Vec<Arc<Mutex<Shown>>>,
    _servers: JoinSet<()>,
}

impl Watchdogs {
    /// Starts so many, which show no load.
    pub async fn start(count: u8) -> Self {
        let (mut port, mut shown, mut servers) = (0, Vec::new(), JoinSet::new());
        for place in 0..count {
            let listener = TcpListener::bind((address(place), port)).await.expect("the port is free");
            port = listener.local_addr().expect("a listener has an address").port();
            let state = Arc::new(Mutex::new(Shown::default()));
            let router = Router::new().route("/metrics", get(metrics));
            let router = router.with_state((Arc::clone(&state), Instant::now()));
            servers.spawn(async move { axum::serve(listener, router).await.expect("it serves") });
            shown.push(state);
        }
        Self { port, shown, _servers: servers }
    }

    /// Where the one at `place` is.
    pub fn address(&self, place: u8) -> IpAddr {
        address(place)
    }

    /// Changes what the one at `place` shows.
    pub fn show(&self, place: usize, change: impl FnOnce(&mut Shown)) {
        change(&mut lock(&self.shown[place]));
    }

    /// Changes what all show.
    pub fn show_all(&self, change: impl Fn(&mut Shown)) {
        self.shown.iter().for_each(|shown| change(&mut lock(shown)));
    }
}

fn address(place: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, 1 + place).into()
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn metrics(State((shown, since)): State<(Arc<Mutex<Shown>>, Instant)>) -> Response {
    let shown = *lock(&shown);
    if shown.is_down {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    text(&shown, since).into_response()
}

fn text(shown: &Shown, since: Instant) -> String {
    let answered = answered(shown, since);
    let requests = format!(
        "# TYPE http_requests_total counter\nhttp_requests_total{{code=\"200\",method=\"post\"}} {answered}\n\
         http_requests_in_flight {}\ngpufn_function_queue_length {}\ngpufn_function_queue_age_seconds {}\n",
        shown.in_flight, shown.waiting, shown.oldest
    );
    let share = shown.share.map_or_else(String::new, |(request, quota)| {
        let used = answered * request;
        format!(
            "gpufn_function_gpu_used_seconds_total {used}\ngpufn_function_quota_grant_ratio {quota}\n\
             gpufn_function_quota_ceiling_ratio 1\n"
        )
    });
    requests + &share + &durations(answered, shown.latency)
}

/// The histogram of the latencies of so many requests that all take as long.
fn durations(answered: f64, latency: f64) -> String {
    const NAME: &str = "http_request_duration_seconds";
    let bucket = |bound: &str, count: f64| {
        format!("{NAME}_bucket{{code=\"200\",method=\"post\",le=\"{bound}\"}} {count}\n")
    };
    let finite = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    let counted = |bound: f64| if latency <= bound { answered } else { 0.0 };
    let buckets: String = finite.iter().map(|&bound| bucket(&bound.to_string(), counted(bound))).collect();
    let (last, sum) = (bucket("+Inf", answered), answered * latency);
    format!("{buckets}{last}{NAME}_sum{{code=\"200\",method=\"post\"}} {sum}\n")
}

/// A whole number, as a counter's is.
fn answered(shown: &Shown, since: Instant) -> f64 {
    f64::from(u32::try_from(shown.answered).unwrap_or(u32::MAX))
        + (shown.rate * since.elapsed().as_secs_f64()).floor()
}

/// A Prometheus that has read pods just now, which all show the same.
#[derive(Debug)]
pub struct Prometheus {
    /// Its URL.
    pub url: String,
    shown: Arc<Mutex<Shown>>,
    _server: JoinSet<()>,
}

impl Prometheus {
    /// Starts one that knows these pods in the namespace of all functions.
    pub async fn start(pods: &[String]) -> Self {
        let (shown, mut server) = (Arc::new(Mutex::new(Shown::default())), JoinSet::new());
        let (listener, url) = listen().await;
        let state = (Arc::clone(&shown), Instant::now(), Arc::from(pods));
        let router = Router::new().route("/api/v1/query", get(query)).with_state(state);
        server.spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { url, shown, _server: server }
    }

    /// Changes what it has read.
    pub fn show(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut lock(&self.shown));
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("a listener has an address"));
    (listener, url)
}

type Scraped = (Arc<Mutex<Shown>>, Instant, Arc<[String]>);

#[derive(Debug, serde::Deserialize)]
struct Asked {
    query: String,
}

async fn query(
    State((shown, since, pods)): State<Scraped>,
    Query(Asked { query }): Query<Asked>,
) -> Response {
    let shown = *lock(&shown);
    if shown.is_down {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let samples = if query.contains("timestamp(") {
        vec![(String::new(), now)]
    } else {
        text(&shown, since).lines().filter_map(sample).collect()
    };
    let element = |pod: &String, (name, value): &(String, f64)| {
        let metric = json!({"namespace": "fn", "pod": pod, "__name__": name, "code": "200"});
        json!({"metric": metric, "value": [now, value.to_string()]})
    };
    let result: Vec<Value> =
        pods.iter().flat_map(|pod| samples.iter().map(move |sample| element(pod, sample))).collect();
    axum::Json(json!({"status": "success", "data": {"resultType": "vector", "result": result}}))
        .into_response()
}

/// Name and value of a line that a watchdog shows.
fn sample(line: &str) -> Option<(String, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let name = series.split('{').next()?;
    (!line.starts_with('#')).then_some((name.into(), value.parse().ok()?))
}

/// A gateway before one function, by its metrics.
#[derive(Debug)]
pub struct Gateway {
    /// URL of its metrics.
    pub url: String,
    shown: Arc<Mutex<Shown>>,
    _server: JoinSet<()>,
}

impl Gateway {
    /// Starts one that has served the function `name.namespace`.
    pub async fn start(function: &str) -> Self {
        let (shown, mut server) = (Arc::new(Mutex::new(Shown::default())), JoinSet::new());
        let (listener, url) = listen().await;
        let state = (Arc::clone(&shown), Instant::now(), Arc::<str>::from(function));
        let router = Router::new().route("/metrics", get(counted)).with_state(state);
        server.spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { url: format!("{url}/metrics"), shown, _server: server }
    }

    /// Changes what it shows.
    pub fn show(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut lock(&self.shown));
    }
}

async fn counted(State((shown, since, function)): State<(Arc<Mutex<Shown>>, Instant, Arc<str>)>) -> String {
    let shown = *lock(&shown);
    let answered = answered(&shown, since);
    let started = answered + f64::from(shown.in_flight);
    format!(
        "gateway_function_invocation_started{{function_name=\"{function}\"}} {started}\n\
         gateway_function_invocation_total{{code=\"200\",function_name=\"{function}\"}} {answered}\n"
    )
}
