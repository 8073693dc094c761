//! What changed, in order: a watch is told of all that came after the list that it goes on from, deletions too, as by a real
//! API server.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::broadcast;

/// Changes that a watcher may fall behind.
const BEHIND: usize = 1024;

/// The changes of one kind of object.
#[derive(Debug)]
pub(crate) struct Changes {
    all: Mutex<Vec<Value>>,
    live: broadcast::Sender<Value>,
}

impl Default for Changes {
    fn default() -> Self {
        Self { all: Mutex::default(), live: broadcast::channel(BEHIND).0 }
    }
}

impl Changes {
    /// Adds one: `object` as it is after it, with its version.
    pub(crate) fn add(&self, kind: &str, object: &Value) {
        let change = json!({"type": kind, "object": object});
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(change.clone());
        // Nobody watches yet, or any more.
        let _ = self.live.send(change);
    }

    /// Ends all watches, as the end of a server does.
    pub(crate) fn cut(&self) {
        let _ = self.live.send(Value::Null);
    }

    /// Answers a watch: what changed since the version that `query` names, and what changes from now on.
    pub(crate) fn watch(&self, query: &BTreeMap<String, String>) -> Response {
        let since = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        let (missed, live) = {
            let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            let missed: Vec<_> = all.iter().filter(|change| version(change) > since).cloned().collect();
            (missed, self.live.subscribe())
        };
        let stream =
            futures_util::stream::unfold((missed.into_iter(), live), async |(mut missed, mut live)| {
                let change = match missed.next() {
                    Some(change) => change,
                    None => live.recv().await.ok().filter(|change| !change.is_null())?,
                };
                Some((Ok::<_, Infallible>(format!("{change}\n")), (missed, live)))
            });
        Body::from_stream(stream).into_response()
    }
}

fn version(change: &Value) -> u64 {
    let version = change["object"]["metadata"]["resourceVersion"].as_str();
    version.and_then(|version| version.parse().ok()).unwrap_or(0)
}
