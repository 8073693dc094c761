//! Where load is read: one of three sources, each as far away as its users have it.

use std::collections::HashMap;

use gpu_share::units::Nanos;

pub(super) use self::gateway::Gateway;
pub(super) use self::prometheus::Prometheus;
pub(super) use self::watchdogs::Watchdogs;
use super::board::Roster;
use super::fleet::FunctionName;
use crate::traffic::Reading;

mod gateway;
mod prometheus;
mod watchdogs;

/// Longest answer that is read, in bytes: metrics of ten thousand functions.
const LONGEST: usize = 64 << 20;

/// What was read, by function; a function of which nothing could be read is missing.
pub(super) type Readings = HashMap<FunctionName, Reading>;

/// A source of load.
pub(super) trait Source: Send + Sync {
    /// What the functions of the roster show at `now`, or why none of them can be read.
    fn read(&self, now: Nanos, roster: &Roster)
    -> impl Future<Output = Result<Readings, SourceError>> + Send;
}

/// Why a source can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    /// It does not answer, or with an error.
    #[error("failed to read {url}")]
    Http {
        /// What was asked for.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// It answers something else than it should.
    #[error("the answer of {url} is {what}, allowed is {allowed}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What came.
        what: String,
        /// What should have.
        allowed: &'static str,
    },
}

/// The body that `url` answers, at most [`LONGEST`] bytes of text.
async fn get(client: &reqwest::Client, url: &str) -> Result<String, SourceError> {
    let http = |source: reqwest::Error| SourceError::Http { url: url.into(), source: source.without_url() };
    let mut answer =
        client.get(url).send().await.and_then(reqwest::Response::error_for_status).map_err(http)?;
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(http)? {
        body.extend_from_slice(&piece);
        if body.len() > LONGEST {
            let what = format!("longer than {LONGEST} bytes");
            return Err(SourceError::Answer { url: url.into(), what, allowed: "a shorter one" });
        }
    }
    let not_text = |_| SourceError::Answer { url: url.into(), what: "no UTF-8".into(), allowed: "text" };
    String::from_utf8(body).map_err(not_text)
}
