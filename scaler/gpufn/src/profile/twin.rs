//! The function once more, at the share that is measured, behind the same gateway.
//!
//! Owns HTTP and waiting; every wait has a deadline. It can be told apart by its name, is never scaled, and is removed in
//! the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use gpu_share::invalid::Invalid;
use gpu_share::names::annotation;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use scaler::profile::sheet::{Place, Sample};
use serde_json::{Value, json};

use crate::load::function_url;
use crate::view::{FunctionSummary, GpuView, Overview, ReplicaSummary};

/// Longest wait for a replica, for an answer, and for the node's account of GPU time to come to rest.
const READY: Duration = Duration::from_mins(1);
const ANSWER: Duration = Duration::from_secs(30);
const REST: Duration = Duration::from_secs(30);
/// How often is looked, and how long the account must say the same: it is taken five times a second, on a busy machine
/// later.
const LOOK: Duration = Duration::from_millis(50);
const STILL: Duration = Duration::from_secs(1);
/// Requests that warm the function up.
const WARM: u32 = 5;
/// Part of the latencies that is left out at each end: something else may have run.
const TRIMMED: usize = 10;
/// What of a function's status is not of its deployment.
const STATUS: [&str; 6] = ["name", "invocationCount", "replicas", "availableReplicas", "createdAt", "usage"];

/// A twin.
#[derive(Debug)]
pub(super) struct Twin {
    client: reqwest::Client,
    base: String,
    name: String,
    deployment: Value,
    /// Annotations of the function itself.
    pub annotations: BTreeMap<String, String>,
    /// SM share of the function, percent.
    pub sm: u8,
    /// The largest SM share that a twin finds room for beside what is deployed, percent.
    pub room: u8,
    /// Name that a profile of it has.
    pub model: String,
    /// The GPU, in words.
    pub gpu: String,
    /// Π, milliseconds: the unit of what latencies have beside GPU time, so the usual one does for every node.
    pub window_ms: f64,
}

impl Twin {
    /// Of a function that is deployed behind `gateway`. Nothing is deployed yet.
    pub(super) async fn of(gateway: &str, password: Option<String>, function: &str) -> anyhow::Result<Self> {
        let (client, base) = (client(password)?, gateway.trim_end_matches('/').to_string());
        let answer = client.get(format!("{base}/system/function/{function}")).send().await;
        let answer = answer.with_context(|| format!("nothing answers at {base}; is `gpufn up` running?"))?;
        match answer.status() {
            StatusCode::UNAUTHORIZED => {
                bail!("{base} asks for a password; name its file with --password-file")
            }
            StatusCode::NOT_FOUND => {
                return Err(Invalid::new("function", function, "a function that is deployed").into());
            }
            status => ensure!(status.is_success(), "{base} answers {status}"),
        }
        let mut deployment: Value =
            answer.json().await.context("the gateway does not answer as OpenFaaS does")?;
        let annotations = deployment.get_mut("annotations").map(Value::take).unwrap_or_default();
        let annotations: BTreeMap<String, String> = serde_json::from_value(annotations).unwrap_or_default();
        let text = annotations.get(annotation::SM).map(String::as_str).unwrap_or_default();
        let sm = text.parse().ok().filter(|percent| (1..=100).contains(percent));
        let sm =
            sm.ok_or_else(|| Invalid::new(annotation::SM, text, "a whole number from 1 to 100 (percent)"))?;
        let name = format!("{function}-profile");
        let Some(members) = deployment.as_object_mut() else {
            bail!("{base} does not answer as OpenFaaS does")
        };
        for status in STATUS {
            members.remove(status);
        }
        members.insert("service".into(), json!(name));
        let model = annotations.get(annotation::MODEL).map_or(function, String::as_str).to_string();
        let mut twin = Self {
            client,
            base,
            name,
            deployment,
            annotations,
            sm,
            room: 0,
            model,
            gpu: String::new(),
            window_ms: gpu_share::quota::WINDOW.millis_f64(),
        };
        let overview = twin.overview().await?;
        twin.room = room(&overview, &twin.name);
        twin.gpu = overview.gpus.into_iter().next().map(|gpu| gpu.name).unwrap_or_default();
        Ok(twin)
    }

    /// Measures at `place`: deploys it there, warms it up, and sends one request after the other.
    pub(super) async fn sample(&self, place: Place, requests: u32) -> anyhow::Result<Sample> {
        self.deploy(place).await?;
        let instance = self.ready(place).await?;
        for _ in 0..WARM {
            self.request().await?;
        }
        let before = self.used_ms(&instance, 0.0).await?;
        let mut latencies = Vec::new();
        for _ in 0..requests {
            latencies.push(self.request().await?);
        }
        let gpu_ms = (self.used_ms(&instance, before).await? - before) / f64::from(requests);
        Ok(Sample { place, gpu_ms, latency_ms: trimmed_mean(latencies), requests, interval_ms: None })
    }

    /// Takes the twin away.
    pub(super) async fn remove(&self) -> anyhow::Result<()> {
        let url = format!("{}/system/functions", self.base);
        let answer = self.client.delete(url).json(&json!({ "functionName": self.name })).send().await?;
        let gone = answer.status().is_success() || answer.status() == StatusCode::NOT_FOUND;
        ensure!(gone, "function {} is not removed: {}", self.name, answer.status());
        Ok(())
    }

    /// As faas-cli does: PUT, and POST where there is nothing to update.
    async fn deploy(&self, place: Place) -> anyhow::Result<()> {
        let mut deployment = self.deployment.clone();
        deployment["annotations"] = json!(annotations(&self.annotations, place));
        let url = format!("{}/system/functions", self.base);
        let mut answer = self.client.put(&url).json(&deployment).send().await?;
        if answer.status() == StatusCode::NOT_FOUND {
            answer = self.client.post(&url).json(&deployment).send().await?;
        }
        let status = answer.status();
        let text = answer.text().await.unwrap_or_default();
        ensure!(status.is_success(), "function {} is not deployed: {status} {}", self.name, text.trim());
        Ok(())
    }

    /// Waits until its only replica is of this deployment and has the share of `place`; returns the replica's name.
    async fn ready(&self, place: Place) -> anyhow::Result<String> {
        let deadline = Instant::now() + READY;
        loop {
            let function = self.summary().await?;
            if let Some(replica) = function.as_ref().and_then(|function| replica(function, place)) {
                return Ok(replica.instance.clone());
            }
            let problem =
                function.and_then(|function| function.problem).unwrap_or_else(|| "no reason is told".into());
            let late =
                || format!("function {} is not ready at {place} after {READY:?}: {problem}", self.name);
            ensure!(Instant::now() < deadline, late());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Milliseconds that one request takes.
    async fn request(&self) -> anyhow::Result<f64> {
        let started = Instant::now();
        let answer = self.client.post(function_url(&self.base, &self.name)).send().await?;
        let status = answer.status();
        let text = answer.text().await.unwrap_or_default();
        ensure!(status.is_success(), "function {} answers {status} {}", self.name, text.trim());
        Ok(started.elapsed().as_secs_f64() * 1e3)
    }

    /// GPU time of the replica `instance` so far, milliseconds: more than `least`, and the same for a while.
    async fn used_ms(&self, instance: &str, least: f64) -> anyhow::Result<f64> {
        let started = Instant::now();
        let (mut known, mut since) = (least, started);
        loop {
            let function = self.summary().await?;
            let mut replicas = function.iter().flat_map(|function| &function.replicas);
            let replica = replicas
                .find(|replica| replica.instance == instance)
                .with_context(|| format!("replica {instance} is gone"))?;
            let used = replica.used_seconds * 1e3;
            if used.to_bits() != known.to_bits() {
                (known, since) = (used, Instant::now());
            } else if known > least && since.elapsed() >= STILL {
                return Ok(known);
            }
            ensure!(
                started.elapsed() < REST,
                "the GPU time of replica {instance} is {known:.1} ms after {REST:?}, {}",
                if known > least { "and still rises: do others call it?" } else { "as before its requests" }
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn summary(&self) -> anyhow::Result<Option<FunctionSummary>> {
        Ok(self.overview().await?.functions.into_iter().find(|function| function.name == self.name))
    }

    async fn overview(&self) -> anyhow::Result<Overview> {
        let answer = self.client.get(format!("{}/v1/overview", self.base)).send().await?;
        let answer = answer.error_for_status().context("gpufn profile needs `gpufn up` there")?;
        answer.json().await.context("the overview is not one of gpufn")
    }
}

fn client(password: Option<String>) -> anyhow::Result<reqwest::Client> {
    let mut headers = HeaderMap::new();
    if let Some(password) = password {
        let login = base64::engine::general_purpose::STANDARD.encode(format!("admin:{}", password.trim()));
        let mut value = HeaderValue::try_from(format!("Basic {login}"))?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    Ok(reqwest::Client::builder().timeout(ANSWER).no_proxy().default_headers(headers).build()?)
}

/// The function's annotations, with the share of `place` and nothing that would change it.
fn annotations(own: &BTreeMap<String, String>, place: Place) -> BTreeMap<String, String> {
    let mut annotations = own.clone();
    annotations.remove(annotation::SLO);
    let quota = place.quota.to_string();
    let share = [
        (annotation::SM, place.sm.to_string()),
        (annotation::QUOTA, quota.clone()),
        (annotation::QUOTA_LIMIT, quota),
        (annotation::POLICY, "off".into()),
        (annotation::REPLICAS, "1..1".into()),
    ];
    annotations.extend(share.map(|(key, value)| (key.to_string(), value)));
    annotations
}

/// The widest row that a GPU has room for: all of its SMs but the rows of replicas that are none of `twin`'s, each as wide as
/// its widest. A twin has all of its row's time, so it shares none.
fn room(overview: &Overview, twin: &str) -> u8 {
    let others = overview.functions.iter().filter(|function| function.name != twin);
    let replicas: Vec<_> = others.flat_map(|function| &function.replicas).collect();
    let free = |gpu: &GpuView| {
        let mut rows = BTreeMap::<u32, u8>::new();
        for replica in replicas.iter().filter(|replica| replica.gpu.as_ref() == Some(&gpu.uuid)) {
            let width = rows.entry(replica.row.unwrap_or_default()).or_default();
            *width = replica.sm_percent.max(*width);
        }
        rows.values().fold(100_u8, |free, width| free.saturating_sub(*width))
    };
    overview.gpus.iter().map(free).max().unwrap_or(0)
}

/// The only replica, if it is of this deployment, ready, and has the share of `place`.
fn replica(function: &FunctionSummary, place: Place) -> Option<&ReplicaSummary> {
    let [replica] = &function.replicas[..] else { return None };
    let is_there = replica.state == "ready"
        && !replica.outdated
        && replica.sm_percent == place.sm
        && (replica.grant_percent - f64::from(place.quota)).abs() < 1e-6;
    is_there.then_some(replica)
}

/// The mean without the shortest and the longest.
fn trimmed_mean(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let cut = values.len() / TRIMMED;
    let kept = &values[cut..values.len() - cut];
    kept.iter().sum::<f64>() / f64::from(u32::try_from(kept.len()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { batch: 1, sm: 30, quota: 50 };

    #[test]
    fn a_twin_has_the_share_that_is_measured_and_nothing_that_changes_it() {
        let own = [("gpufn.dev/sm", "10"), ("gpufn.dev/slo", "p95<50ms"), ("gpufn.dev/memory", "1Gi")];
        let own = own.map(|(key, value)| (key.to_string(), value.to_string())).into();
        let annotations = annotations(&own, PLACE);
        let told = |key: &str| annotations.get(key).map(String::as_str);
        assert_eq!(told("gpufn.dev/sm"), Some("30"));
        assert_eq!((told("gpufn.dev/quota"), told("gpufn.dev/quota-limit")), (Some("50"), Some("50")));
        assert_eq!((told("gpufn.dev/policy"), told("gpufn.dev/replicas")), (Some("off"), Some("1..1")));
        assert_eq!((told("gpufn.dev/memory"), told("gpufn.dev/slo")), (Some("1Gi"), None));
    }

    #[test]
    fn a_replica_with_another_share_is_not_measured() {
        let there = ReplicaSummary {
            state: "ready".into(),
            sm_percent: 30,
            grant_percent: 50.0,
            ..Default::default()
        };
        let function = |replicas: &[ReplicaSummary]| FunctionSummary {
            replicas: replicas.to_vec(),
            ..Default::default()
        };
        assert!(replica(&function(std::slice::from_ref(&there)), PLACE).is_some());
        let others = [
            ReplicaSummary { state: "starting".into(), ..there.clone() },
            // What a profile that was killed left at the same place.
            ReplicaSummary { outdated: true, ..there.clone() },
            ReplicaSummary { sm_percent: 20, ..there.clone() },
            ReplicaSummary { grant_percent: 25.0, ..there.clone() },
        ];
        for other in others {
            assert!(replica(&function(&[other]), PLACE).is_none());
        }
        assert!(replica(&function(&[there.clone(), there]), PLACE).is_none());
    }

    #[test]
    fn a_twin_has_room_where_no_other_row_is() {
        let replica = |gpu: &str, row, sm_percent| ReplicaSummary {
            gpu: Some(gpu.into()),
            row: Some(row),
            sm_percent,
            ..ReplicaSummary::default()
        };
        let function = |name: &str, replicas: &[ReplicaSummary]| FunctionSummary {
            name: name.into(),
            replicas: replicas.to_vec(),
            ..FunctionSummary::default()
        };
        let gpu = |uuid: &str| GpuView { uuid: uuid.into(), ..GpuView::default() };
        let deployed = [
            function("a", &[replica("one", 0, 10), replica("one", 0, 30), replica("two", 0, 60)]),
            function("b", &[replica("one", 1, 15)]),
            function("a-profile", &[replica("one", 2, 50)]),
        ];
        let overview = |gpus: &[&str]| Overview {
            gpus: gpus.iter().map(|uuid| gpu(uuid)).collect(),
            functions: deployed.to_vec(),
            ..Overview::default()
        };
        assert_eq!(room(&overview(&["one"]), "a-profile"), 55);
        assert_eq!(room(&overview(&["two", "one"]), "a-profile"), 55);
        assert_eq!(room(&overview(&["two", "three"]), "a-profile"), 100);
        assert_eq!(room(&overview(&[]), "a-profile"), 0);
    }

    #[test]
    fn a_disturbed_request_does_not_count() {
        let mut values = vec![10.0; 19];
        values.push(500.0);
        assert!((trimmed_mean(values) - 10.0).abs() < 1e-9);
    }
}
