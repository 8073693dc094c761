//! Prometheus, where it reads the watchdogs already: two questions for all functions together.
//!
//! What it answers is as old as its last scrape, which it also says.
//! Source: Prometheus' documentation, "HTTP API", instant queries.

use std::collections::HashMap;
use std::sync::OnceLock;

use gpu_share::units::Nanos;
use serde::Deserialize;

use super::{FunctionName, Readings, Roster, Source, SourceError, get};
use crate::traffic::Reading;
use crate::traffic::exposition::WATCHDOG;

/// When each pod was scraped last.
const SCRAPED: &str =
    r#"max by (namespace, pod) (timestamp(http_requests_in_flight{namespace!="",pod!=""}))"#;

/// Reads one Prometheus.
#[derive(Debug)]
pub(in crate::serve) struct Prometheus {
    client: reqwest::Client,
    url: reqwest::Url,
    /// How much later the clock of Prometheus is than ours, in seconds; of the first answer, so that one scrape has one time.
    offset: OnceLock<f64>,
}

impl Prometheus {
    /// The one at `url`, below which its API is.
    pub(in crate::serve) fn new(client: reqwest::Client, url: reqwest::Url) -> Self {
        Self { client, url, offset: OnceLock::new() }
    }

    async fn ask(&self, query: &str) -> Result<Vec<Element>, SourceError> {
        let mut url = self.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["api", "v1", "query"]);
        }
        url.query_pairs_mut().append_pair("query", query);
        let body = get(&self.client, url.as_str()).await?;
        let answer: Answer = serde_json::from_str(&body).map_err(|error| SourceError::Answer {
            url: self.url.to_string(),
            what: error.to_string(),
            allowed: "that of an instant query",
        })?;
        Ok(answer.data.result)
    }
}

impl Source for Prometheus {
    async fn read(&self, now: Nanos, roster: &Roster) -> Result<Readings, SourceError> {
        let counted = format!(
            r#"sum by (__name__, namespace, pod, code) ({{__name__=~"{}",namespace!="",pod!=""}})"#,
            WATCHDOG.join("|")
        );
        let (counted, scraped) = (self.ask(&counted).await?, self.ask(SCRAPED).await?);
        let replicas = roster.iter().flat_map(|(name, replicas)| replicas.iter().map(move |one| (name, one)));
        let functions: HashMap<_, _> = replicas
            .map(|(function, one)| ((function.namespace.as_str(), one.name.as_str()), function))
            .collect();
        let of = |element: &Element| -> Option<&FunctionName> {
            functions.get(&(element.metric.namespace.as_str(), element.metric.pod.as_str())).copied()
        };
        let mut readings = Readings::new();
        for element in &scraped {
            let Some((function, at)) = of(element).zip(element.number()) else { continue };
            let offset = *self.offset.get_or_init(|| element.value.0 - now.secs_f64());
            let expected = roster.get(function).map_or(0, Vec::len);
            let reading = readings
                .entry(function.clone())
                .or_insert_with(|| Reading { expected, ..Reading::default() });
            // Before the first scrape of a scaler that has just started there is no time.
            reading.at = reading.at.max(Nanos::from_secs_f64((at - offset).max(0.0)));
            reading.replicas.entry(element.metric.pod.clone()).or_default();
        }
        for element in &counted {
            let Some((function, value)) = of(element).zip(element.number()) else { continue };
            let counters =
                readings.get_mut(function).and_then(|reading| reading.replicas.get_mut(&element.metric.pod));
            if let Some(counters) = counters {
                counters.take_in(&element.metric.name, element.metric.code.as_deref(), value);
            }
        }
        Ok(readings)
    }
}

#[derive(Debug, Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Debug, Deserialize)]
struct Data {
    result: Vec<Element>,
}

/// One element of an instant vector.
#[derive(Debug, Deserialize)]
struct Element {
    metric: Labels,
    /// When it was evaluated, in seconds since the epoch, and the value as text.
    value: (f64, String),
}

impl Element {
    fn number(&self) -> Option<f64> {
        self.value.1.parse().ok().filter(|value: &f64| value.is_finite())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Labels {
    #[serde(rename = "__name__")]
    name: String,
    namespace: String,
    pod: String,
    code: Option<String>,
}
