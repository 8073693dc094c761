//! Asynchronous calls: answered 202 at once, done later, their result sent to a callback if one was named.
//!
//! In memory only and bounded in number and bytes: what is too much is refused, what waits is lost when `up` ends.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::function::Function;
use openfaas::calls::Call;

use super::gateway;
use super::platform::Platform;

/// Most calls that wait.
const CALLS: usize = 1_024;
/// Most bytes of bodies that wait.
const BYTES: usize = 64 << 20;
/// Longest body of one call.
pub(crate) const BODY_MAX: usize = 8 << 20;
/// Longest answer that is passed on to a callback.
const ANSWER_MAX: usize = 8 << 20;
/// Calls that are done at the same time.
const AT_ONCE: usize = 16;

/// Header that names the callback.
pub(crate) const CALLBACK_URL: HeaderName = HeaderName::from_static("x-callback-url");

/// A call that waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) function: Arc<Function>,
    pub(crate) method: Method,
    pub(crate) path: PathAndQuery,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) call: Call,
    pub(crate) callback: Option<Uri>,
}

/// The queue's entrance.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    sender: mpsc::Sender<(Waiting, OwnedSemaphorePermit)>,
    bytes: Arc<Semaphore>,
}

impl Queue {
    /// A queue, and the task that works it off until `up` ends.
    pub(crate) fn start(platform: Arc<Platform>) -> Self {
        let (sender, mut receiver) = mpsc::channel::<(Waiting, OwnedSemaphorePermit)>(CALLS);
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        let tasks = platform.tasks.clone();
        tasks.clone().spawn(async move {
            loop {
                let next = async {
                    let worker = at_once.clone().acquire_owned().await.ok()?;
                    Some((worker, receiver.recv().await?))
                };
                let next = tokio::select! {
                    next = next => next,
                    () = platform.shutdown.cancelled() => None,
                };
                let Some((worker, (waiting, bytes))) = next else { return };
                let platform = platform.clone();
                tasks.spawn(async move {
                    work_off(&platform, waiting).await;
                    drop((worker, bytes));
                });
            }
        });
        Self { sender, bytes: Arc::new(Semaphore::new(BYTES)) }
    }

    /// Adds a call; false if the queue is full.
    pub(crate) fn add(&self, waiting: Waiting) -> bool {
        let size = u32::try_from(waiting.body.len()).unwrap_or(u32::MAX);
        let Ok(bytes) = self.bytes.clone().try_acquire_many_owned(size) else { return false };
        self.sender.try_send((waiting, bytes)).is_ok()
    }
}

/// The callback that a request names: plain HTTP, as there is no TLS here.
pub(crate) fn callback(headers: &HeaderMap) -> Result<Option<Uri>, String> {
    let Some(value) = headers.get(CALLBACK_URL) else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let uri =
        text.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("http") && uri.authority().is_some());
    uri.map(Some).ok_or_else(|| format!("X-Callback-Url is {text:?}, allowed is http://HOST[:PORT]/PATH"))
}

async fn work_off(platform: &Arc<Platform>, waiting: Waiting) {
    let Waiting { function, method, path, headers, body, call, callback } = waiting;
    let started = Instant::now();
    let mut request = Request::new(Body::from(body));
    *request.method_mut() = method;
    *request.headers_mut() = headers;
    request.headers_mut().remove(CALLBACK_URL);
    let response = gateway::invoke(platform, &function, request, path, &call).await;
    let (head, body) = response.into_parts();
    let answer = match Limited::new(body, ANSWER_MAX).collect().await {
        Ok(body) => Some(body.to_bytes()),
        Err(error) => {
            tracing::warn!(function = function.label, %error, "The answer to an asynchronous call broke off.");
            None
        }
    };
    let Some(callback) = callback else { return };
    let status = if answer.is_some() { head.status } else { StatusCode::BAD_GATEWAY };
    let mut request = Request::new(Body::from(answer.unwrap_or_default()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = callback;
    let seconds = format!("{:.6}", started.elapsed().as_secs_f64());
    let headers = request.headers_mut();
    call.mark(headers);
    if let Some(kind) = head.headers.get(header::CONTENT_TYPE) {
        headers.insert(header::CONTENT_TYPE, kind.clone());
    }
    headers.insert("x-function-status", HeaderValue::from(status.as_u16()));
    for (name, value) in
        [("x-function-name", function.label.as_str()), ("x-duration-seconds", seconds.as_str())]
    {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let sent = tokio::time::timeout(gateway::HOLD, platform.client.request(request)).await;
    if !matches!(sent, Ok(Ok(_))) {
        tracing::warn!(function = function.label, "A callback could not be delivered.");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callback_is_plain_http_or_refused() {
        let read = |text: &'static str| {
            callback(&[(CALLBACK_URL, HeaderValue::from_static(text))].into_iter().collect())
        };
        assert!(read("http://127.0.0.1:9/x?y=1").unwrap().is_some());
        for bad in ["https://a/", "/x", "ftp://a/", "", "http://"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(callback(&HeaderMap::new()).unwrap().is_none());
    }
}
