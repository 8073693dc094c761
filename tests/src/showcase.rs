//! The web page before made-up figures: any number of functions whose load goes up and down, on simulated GPUs that never were.
//!
//! Time passes by a second with each overview, so that what is shown depends on nothing but how often it was asked for.

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const MODELS: [&str; 8] =
    ["resnet50", "bert-base", "vgg16", "yolov5s", "whisper-tiny", "mobilenet-v2", "vit-b16", "distilgpt2"];
const POLICIES: [&str; 4] = ["hybrid", "vertical", "hybrid", "off"];
const TEAMS: [&str; 5] = ["search", "ads", "maps", "mail", "lab"];
const GPU_MEMORY: u64 = 16 << 30;

/// A server of the page; its end is the end of this.
#[derive(Debug)]
pub struct Showcase {
    url: String,
    stage: Arc<Mutex<Stage>>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct Stage {
    second: u32,
    functions: Vec<Actor>,
    gpus: usize,
    decisions: Vec<Value>,
    is_down: bool,
}

/// A function, and where its replicas are.
#[derive(Clone, Debug)]
struct Actor {
    place: u32,
    name: String,
    model: String,
    namespace: String,
    sm: u32,
    ceiling: u32,
    bound: f64,
    /// GPU and row of each replica.
    replicas: Vec<(usize, usize)>,
}

impl Showcase {
    /// Starts one with so many functions; the first is called `name`, if that is given.
    pub async fn start(functions: u32, name: Option<&str>) -> Self {
        let mut stage = Stage::new(functions);
        if let Some((first, name)) = stage.functions.first_mut().zip(name) {
            first.name = name.into();
        }
        let stage = Arc::new(Mutex::new(stage));
        let router = Router::new()
            .route("/v1/overview", get(overview))
            .route("/v1/decisions", get(decisions))
            .with_state(Arc::clone(&stage))
            .merge(scaler::page::router());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}/ui/", listener.local_addr().expect("a listener has an address"));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { url, stage, server }
    }

    /// The page.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// From now on it answers by errors, or no more.
    pub fn fail(&self, is_down: bool) {
        lock(&self.stage).is_down = is_down;
    }
}

impl Drop for Showcase {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn lock(stage: &Mutex<Stage>) -> std::sync::MutexGuard<'_, Stage> {
    stage.lock().unwrap_or_else(PoisonError::into_inner)
}

type Shared = State<Arc<Mutex<Stage>>>;

async fn overview(State(stage): Shared) -> Response {
    let mut stage = lock(&stage);
    if stage.is_down {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    stage.pass();
    Json(stage.overview()).into_response()
}

#[derive(Debug, serde::Deserialize)]
struct Which {
    after: usize,
    last: usize,
}

async fn decisions(State(stage): Shared, Query(Which { after, last }): Query<Which>) -> Json<Vec<Value>> {
    let stage = lock(&stage);
    let all = &stage.decisions;
    Json(all[after.max(all.len().saturating_sub(last)).min(all.len())..].to_vec())
}

impl Stage {
    fn new(count: u32) -> Self {
        // Rows of each GPU: SM share, and quota that is left.
        let mut gpus: Vec<Vec<(u32, u32)>> = Vec::new();
        let functions = (0..count).map(|place| Actor::new(place, count, &mut gpus)).collect();
        Self { second: 0, functions, gpus: gpus.len().max(1), decisions: Vec::new(), is_down: false }
    }

    fn pass(&mut self) {
        self.second += 1;
        for actor in &self.functions {
            let (before, now) = (actor.grant(self.second - 1), actor.grant(self.second));
            if before == now || actor.is_parked() || actor.replicas.is_empty() {
                continue;
            }
            let rate = actor.rate(self.second);
            let reason = if before < now {
                format!("forecast {rate:.0}/s needs {now} % to keep {}", actor.objective())
            } else {
                format!("{now} % bears the most of the last 1.5 s")
            };
            self.decisions.push(json!({
                "seq": self.decisions.len() + 1, "at_s": self.second, "function": actor.name,
                "namespace": actor.namespace, "instance": format!("{}-1", actor.name), "action": "grant", "from": before,
                "to": now, "reason": reason,
            }));
        }
    }

    fn overview(&self) -> Value {
        let functions: Vec<_> = self.functions.iter().map(|actor| actor.view(self.second)).collect();
        let gpu = |index: usize| {
            let here = |replica: &&Value| replica["gpu"] == gpu_name(index);
            let replicas = functions.iter().flat_map(|f| f["replicas"].as_array().into_iter().flatten());
            let mine: Vec<_> = replicas.filter(here).collect();
            let bound: u64 = mine.iter().filter_map(|replica| replica["memory_limit_bytes"].as_u64()).sum();
            let time =
                |replica: &&Value| replica["sm_percent"].as_f64().zip(replica["grant_percent"].as_f64());
            let reserved: f64 = mine.iter().filter_map(time).map(|(sm, grant)| sm * grant / 1e4).sum();
            let health = if index == 5 {
                json!({"state": "suspect", "why": "Xid 63"})
            } else {
                json!({"state": "healthy"})
            };
            json!({
                "uuid": gpu_name(index), "name": "gpufn simulated V100", "sharing": "mps", "health": health,
                "memory_bytes": GPU_MEMORY, "memory_bound_bytes": bound, "reserved_ratio": reserved,
            })
        };
        let gpus: Vec<_> = (0..self.gpus).map(gpu).collect();
        json!({
            "server": "gpufn 0.1.0", "uptime_s": self.second, "policy": "gpufn", "gpus": gpus, "functions": functions,
        })
    }
}

fn gpu_name(index: usize) -> String {
    format!("GPU-{index:08x}")
}

impl Actor {
    fn new(place: u32, count: u32, gpus: &mut Vec<Vec<(u32, u32)>>) -> Self {
        let at = |list: &[&str], place: u32| list[place as usize % list.len()].to_string();
        let model = at(&MODELS, if count > 8 { place / 5 } else { place });
        let name =
            if count > 8 { format!("{}-{model}-{}", at(&TEAMS, place), place / 40) } else { model.clone() };
        let namespace = if place % 11 == 10 { "staging" } else { "openfaas-fn" };
        let (sm, ceiling) = ([40, 30, 20, 10][place as usize % 4], [60, 80, 50][place as usize % 3]);
        let replicas = match place % 9 {
            8 => 0,
            2 | 5 => 2,
            _ => 1,
        };
        let replicas = (0..replicas).map(|_| find_room(gpus, sm, ceiling)).collect();
        let bound = [100.0, 250.0, 60.0, 500.0][place as usize % 4];
        Self { place, name, model, namespace: namespace.into(), sm, ceiling, bound, replicas }
    }

    fn is_parked(&self) -> bool {
        self.place % 7 == 6
    }

    fn is_starting(&self) -> bool {
        self.place % 23 == 22
    }

    fn objective(&self) -> String {
        format!("p95<{}ms", self.bound)
    }

    /// Between 0 and 1, as high as its load is.
    fn tide(&self, second: u32) -> f64 {
        let (place, second) = (f64::from(self.place), f64::from(second));
        let slow = (second / (70.0 + place % 13.0 * 9.0) * 6.3 + place * 2.4).sin();
        let quick = (second / 9.0 + place).sin() * 0.18 + (second * 1.7 + place * 5.0).sin() * 0.05;
        (0.5 + 0.42 * slow + quick).clamp(0.0, 1.0)
    }

    fn rate(&self, second: u32) -> f64 {
        let serves = !self.is_parked() && !self.is_starting() && !self.replicas.is_empty();
        if serves { 4.0 + 90.0 * self.tide(second) } else { 0.0 }
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A whole number of steps of 5 %, up to 20.
    fn grant(&self, second: u32) -> u32 {
        let steps = (self.tide(second) * f64::from(self.ceiling - 10) / 5.0).ceil() as u32;
        if self.is_parked() { 0 } else { 10 + 5 * steps }
    }

    fn view(&self, second: u32) -> Value {
        let (rate, grant) = (self.rate(second), self.grant(second));
        let strain = 0.45 + 0.5 * self.tide(second + 3) + if self.place % 17 == 1 { 0.3 } else { 0.0 };
        let runs = rate > 0.0;
        let latency = |part: f64| runs.then_some((self.bound * strain * part * 10.0).round() / 10.0);
        let state = match (self.is_parked(), self.is_starting()) {
            (true, _) => "parked",
            (false, true) => "starting",
            (false, false) => "ready",
        };
        let used: f64 = (0..second).map(|before| f64::from(self.grant(before)) * 0.008).sum();
        let replica = |(index, &(gpu, row)): (usize, &(usize, usize))| {
            json!({
                "instance": format!("{}-{}", self.name, index + 1), "state": state, "gpu": gpu_name(gpu), "row": row,
                "sm_percent": self.sm, "floor_percent": 10, "grant_percent": grant, "ceiling_percent": self.ceiling,
                "used_seconds": used,
                "memory_used_bytes": 700_u64 << 20, "memory_limit_bytes": 1100_u64 << 20, "in_flight": 1,
            })
        };
        let replicas: Vec<_> = self.replicas.iter().enumerate().map(replica).collect();
        let problem =
            (self.place % 61 == 60).then_some("no GPU has room for SM share 10 %, quota 10 % and 1.1 GiB");
        let requests = u64::from(second) * 40 * u64::from(runs);
        json!({
            "name": self.name, "namespace": self.namespace, "model": self.model,
            "policy": POLICIES[self.place as usize % 4],
            "slo": self.objective(), "slo_bound_ms": self.bound, "slo_latency_ms": latency(1.0),
            "replicas_wanted": replicas.len() + usize::from(problem.is_some()), "rate_rps": rate,
            "in_flight": if runs { 2 } else { 0 }, "held": 0, "requests_total": requests,
            "late_total": requests / if self.place % 17 == 1 { 9 } else { 400 }, "p50_ms": latency(0.4), "p95_ms": latency(1.0),
            "p99_ms": latency(1.4), "cold_starts": 1, "vertical_changes": second / 4, "horizontal_changes": 2,
            "problem": problem, "replicas": replicas,
        })
    }
}

/// The first GPU and row where a replica fits at its ceiling.
fn find_room(gpus: &mut Vec<Vec<(u32, u32)>>, sm: u32, ceiling: u32) -> (usize, usize) {
    for (gpu, rows) in gpus.iter_mut().enumerate() {
        if let Some(row) = rows.iter().position(|&(width, left)| width == sm && left >= ceiling) {
            rows[row].1 -= ceiling;
            return (gpu, row);
        }
        if rows.iter().map(|(width, _)| width).sum::<u32>() + sm <= 100 {
            rows.push((sm, 100 - ceiling));
            return (gpu, rows.len() - 1);
        }
    }
    gpus.push(vec![(sm, 100 - ceiling)]);
    (gpus.len() - 1, 0)
}
