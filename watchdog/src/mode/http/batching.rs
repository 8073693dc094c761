//! Requests that wait a moment for others like them, to be one request to the function. What can be merged is decided
//! in `batch`; a batch that the function does not answer well is sent again one by one, so that a bad request fails alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::backend::Backend;
use super::failure::Failure;
use super::outgoing::{Outgoing, Stream, hold_back, strip_connection};
use crate::answer::Answer;
use crate::batch::{Infer, merge, split};
use crate::logs::log;

/// Largest answer to a batch, in bytes: it is held to be split.
const LARGEST_ANSWER: usize = 64 << 20;

/// How requests are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchConfig {
    /// The most rows of a batch.
    pub(crate) size: u64,
    /// The longest time that a request waits for others.
    pub(crate) delay: Duration,
    /// The largest request, in bytes.
    pub(crate) body: u64,
    /// The longest time for the function.
    pub(crate) limit: Option<Duration>,
}

/// Puts requests together.
#[derive(Debug)]
pub(crate) struct Batcher {
    config: BatchConfig,
    backend: Arc<Backend>,
    /// Batches that are not full, by what their requests have in common.
    open: Mutex<HashMap<String, Open>>,
}

#[derive(Debug)]
struct Open {
    rows: u64,
    members: Vec<Member>,
    full: Arc<Notify>,
}

/// A request that waits, and who waits for its answer.
#[derive(Debug)]
struct Member {
    parts: Parts,
    body: Bytes,
    answer: oneshot::Sender<Reply>,
}

/// The answer to one request: whole, since it is a part of another.
type Reply = Result<Response<Bytes>, Failure>;

/// What can be merged: an inference whose tensors are JSON.
pub(super) fn is_wanted(request: &Request<Incoming>) -> bool {
    let headers = request.headers();
    let is_json = headers.get(header::CONTENT_TYPE).is_none_or(|value| {
        value
            .to_str()
            .is_ok_and(|value| value.trim_start().to_ascii_lowercase().starts_with("application/json"))
    });
    let is_plain = !headers.contains_key(header::CONTENT_ENCODING)
        && !headers.contains_key("inference-header-content-length")
        && !headers.contains_key(header::UPGRADE);
    request.method() == Method::POST && is_json && is_plain && is_inference(request.uri().path())
}

/// `/v2/models/{model}/infer` or `/v2/models/{model}/versions/{version}/infer`.
fn is_inference(path: &str) -> bool {
    let words: Vec<&str> = path.strip_prefix("/v2/models/").unwrap_or_default().split('/').collect();
    match words.as_slice() {
        [model, "infer"] => !model.is_empty(),
        [model, "versions", version, "infer"] => !model.is_empty() && !version.is_empty(),
        _ => false,
    }
}

impl Batcher {
    /// As configured.
    pub(super) fn new(config: BatchConfig, backend: Arc<Backend>) -> Arc<Self> {
        Arc::new(Self { config, backend, open: Mutex::default() })
    }

    /// Has the function answer `request`, together with others where that works.
    pub(super) async fn answer(
        self: &Arc<Self>,
        request: Request<Stream>,
    ) -> Result<Response<Answer>, Failure> {
        let (mut parts, Outgoing::Whole(body)) = hold_back(request, self.config.body).await?.into_parts()
        else {
            return Err(Failure::Gone);
        };
        strip_connection(&mut parts.headers);
        parts.headers.remove(header::EXPECT);
        let (answer, reply) = oneshot::channel();
        self.admit(Member { parts, body: body.unwrap_or_default(), answer });
        // The batch is dropped only with the runtime.
        let answer = reply.await.unwrap_or(Err(Failure::Gone))?;
        let (mut parts, body) = answer.into_parts();
        parts.headers.remove(header::TRANSFER_ENCODING);
        parts.headers.insert(header::CONTENT_LENGTH, body.len().into());
        Ok(Response::from_parts(parts, Answer::Text(Some(body).filter(|body| !body.is_empty()))))
    }

    /// Puts a request into the batch of its kind.
    fn admit(self: &Arc<Self>, member: Member) {
        let request = Infer::read(&member.body).map(|request| (request.rows(), request.kind()));
        let Some((rows, kind)) = request.filter(|(rows, _)| *rows < self.config.size) else {
            tokio::spawn(Arc::clone(self).run(vec![member]));
            return;
        };
        let key = format!("{}\n{:?}\n{kind}", member.parts.uri, credentials(&member.parts.headers));
        let mut open = self.lock();
        // One that does not fit any more ends the wait of those before it.
        let early = open.get(&key).is_some_and(|batch| batch.rows + rows > self.config.size);
        let early = if early { open.remove(&key) } else { None };
        if let Some(early) = &early {
            early.full.notify_one();
        }
        let is_new = !open.contains_key(&key);
        let batch = open.entry(key.clone()).or_insert_with(|| Open {
            rows: 0,
            members: Vec::new(),
            full: Arc::default(),
        });
        batch.rows += rows;
        batch.members.push(member);
        let full = Arc::clone(&batch.full);
        if batch.rows == self.config.size {
            full.notify_one();
        }
        drop(open);
        if let Some(early) = early {
            tokio::spawn(Arc::clone(self).run(early.members));
        }
        if is_new {
            tokio::spawn(Arc::clone(self).wait(key, full));
        }
    }

    /// Sends a batch when it is full or has waited long enough, unless it was sent already.
    async fn wait(self: Arc<Self>, key: String, full: Arc<Notify>) {
        // Both ends of the wait are the same.
        let _ = timeout(self.config.delay, full.notified()).await;
        let batch = {
            let mut open = self.lock();
            let is_same = open.get(&key).is_some_and(|batch| Arc::ptr_eq(&batch.full, &full));
            if is_same { open.remove(&key) } else { None }
        };
        if let Some(batch) = batch {
            self.run(batch.members).await;
        }
    }

    /// Sends a batch and hands out the answers.
    async fn run(self: Arc<Self>, mut members: Vec<Member>) {
        // Nobody waits for the answer of a client that went away.
        members.retain(|member| !member.answer.is_closed());
        if members.len() > 1 {
            members = match self.together(members).await {
                Ok(()) => return,
                Err(members) => members,
            };
        }
        for member in members {
            let batcher = Arc::clone(&self);
            tokio::spawn(async move {
                let Member { parts, body, answer } = member;
                let reply = batcher.call(parts, body).await;
                let _ = answer.send(reply);
            });
        }
    }

    /// Sends `members` as one request; gives them back if each should be sent by itself.
    async fn together(&self, members: Vec<Member>) -> Result<(), Vec<Member>> {
        let requests: Vec<_> = members.iter().filter_map(|member| Infer::read(&member.body)).collect();
        let wanted: Vec<_> = requests.iter().map(|request| (request.rows(), request.id())).collect();
        let Some(first) = members.first().filter(|_| requests.len() == members.len()) else {
            return Err(members);
        };
        let (body, parts) = (Bytes::from(merge(&requests)), first.parts.clone());
        let answer = match self.call(parts, body).await {
            Ok(answer) => answer,
            Err(Failure::Broken(error)) => {
                log!(
                    "batch of {} requests: {}; sent again one by one",
                    members.len(),
                    Failure::Broken(error)
                );
                return Err(members);
            }
            Err(failure) => {
                let failure = Arc::new(failure);
                for member in members {
                    let _ = member.answer.send(Err(Failure::Batch(Arc::clone(&failure))));
                }
                return Ok(());
            }
        };
        let is_good = answer.status() == StatusCode::OK;
        let Some(answers) = is_good.then(|| split(answer.body(), &wanted)).flatten() else {
            return Err(members);
        };
        for (member, body) in members.into_iter().zip(answers) {
            let mut own = Response::new(Bytes::from(body));
            *own.headers_mut() = answer.headers().clone();
            let _ = member.answer.send(Ok(own));
        }
        Ok(())
    }

    async fn call(&self, mut parts: Parts, body: Bytes) -> Reply {
        parts.headers.insert(header::CONTENT_LENGTH, body.len().into());
        let body = Outgoing::Whole(Some(body).filter(|body| !body.is_empty()));
        let exchange = async {
            let answer = self.backend.send(Request::from_parts(parts, body)).await?;
            let (mut parts, body) = answer.into_parts();
            strip_connection(&mut parts.headers);
            Ok(Response::from_parts(parts, body.collect(LARGEST_ANSWER).await?))
        };
        match self.config.limit {
            Some(limit) => timeout(limit, exchange).await.unwrap_or(Err(Failure::late(limit))),
            None => exchange.await,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Open>> {
        // Members are moved in and out whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What makes two callers different for the function.
fn credentials(headers: &HeaderMap) -> [Option<&HeaderValue>; 3] {
    [header::AUTHORIZATION, header::COOKIE, header::HOST].map(|name| headers.get(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_inferences_are_merged() {
        for (path, wanted) in [
            ("/v2/models/m/infer", true),
            ("/v2/models/m/versions/1/infer", true),
            ("/v2/models//infer", false),
            ("/v2/models/m/versions//infer", false),
            ("/v2/models/m/ready", false),
            ("/v2/models/m/infer/", false),
            ("/x/v2/models/m/infer", false),
        ] {
            assert_eq!(is_inference(path), wanted, "{path}");
        }
    }
}
