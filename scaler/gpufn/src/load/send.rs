//! Sends requests at their times, whether or not earlier ones have ended, and tells how each ended.
//!
//! Latency counts from the time a request was to start, so that a slow server can't hide by slowing the client down.
//! It decides nothing about the times.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Interrupt;

/// One request that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// When, since the start of the load.
    pub at: Duration,
    /// Index of the URL that it goes to.
    pub target: usize,
}

/// What is to be sent.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where requests go.
    pub urls: Vec<String>,
    /// The requests, by rising time.
    pub requests: Vec<Planned>,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// Method of every request.
    pub method: http::Method,
    /// Body of every request.
    pub body: Bytes,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Index of the URL.
    pub target: usize,
    /// When it was to start, seconds since the start of the load.
    pub at_s: f64,
    /// How much later it did start, milliseconds.
    pub lag_ms: f64,
    /// From when it was to start to the end of its answer, or to its failure, milliseconds.
    pub latency_ms: f64,
    /// Status of the answer, or why there was none.
    pub answer: Result<u16, Failure>,
}

impl Outcome {
    /// Whether it was answered with a status below 400.
    pub fn is_ok(&self) -> bool {
        self.answer.is_ok_and(|status| status < 400)
    }

    /// Whether it misses `bound`; failed ones do.
    pub fn is_late(&self, bound: Duration) -> bool {
        !self.is_ok() || self.latency_ms > bound.as_secs_f64() * 1e3
    }
}

/// Why a request got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Not within the time limit.
    Timeout,
    /// No connection.
    Connect,
    /// The connection ended before the answer did.
    Cut,
}

impl Failure {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Connect => "connect",
            Self::Cut => "cut",
        }
    }
}

/// Sends `load`; `ended` sees each outcome as it comes. If interrupted it sends no more and waits for what is under way;
/// if interrupted again it waits no longer.
pub async fn send(
    load: Load,
    interrupt: &Interrupt,
    mut ended: impl FnMut(&Outcome),
) -> anyhow::Result<Vec<Outcome>> {
    let client = reqwest::Client::builder()
        .timeout(load.timeout)
        // A proxy between would be measured as well.
        .no_proxy()
        .tcp_nodelay(true)
        .build()?;
    let (outcomes, mut arriving) = mpsc::unbounded_channel();
    let (keep_going, stopped) = std::sync::mpsc::channel::<()>();
    let runtime = tokio::runtime::Handle::current();
    let planned = load.requests.len();
    let start = Instant::now();
    // A thread of its own: timers of the async runtime are a millisecond coarse.
    let sender = std::thread::Builder::new().name("load".into()).spawn(move || {
        dispatch(start, &load.requests, &stopped, |request| {
            let Some(url) = load.urls.get(request.target) else { return };
            let call = client.request(load.method.clone(), url.as_str()).body(load.body.clone());
            let outcomes = outcomes.clone();
            runtime.spawn(async move {
                // The receiver is gone only when nobody wants the outcome any more.
                let _ = outcomes.send(one(call, request, start).await);
            });
        });
    })?;
    let mut all = Vec::with_capacity(planned);
    let mut keep_going = Some(keep_going);
    loop {
        tokio::select! {
            outcome = arriving.recv() => match outcome {
                Some(outcome) => {
                    ended(&outcome);
                    all.push(outcome);
                }
                None => break,
            },
            () = interrupt.now.cancelled() => break,
            () = interrupt.stop.cancelled(), if keep_going.is_some() => keep_going = None,
        }
    }
    drop(keep_going);
    if sender.join().is_err() {
        anyhow::bail!("the thread that sends requests ended early");
    }
    Ok(all)
}

/// Calls `fire` for each request at its time; ends when all are fired, or when the other end of `stop` is gone.
fn dispatch(start: Instant, requests: &[Planned], stop: &Receiver<()>, mut fire: impl FnMut(Planned)) {
    for &request in requests {
        let wait = (start + request.at).saturating_duration_since(Instant::now());
        match stop.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => fire(request),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

async fn one(call: reqwest::RequestBuilder, request: Planned, start: Instant) -> Outcome {
    let due = start + request.at;
    let lag = due.elapsed();
    let answer = answer(call).await;
    let millis = |span: Duration| span.as_secs_f64() * 1e3;
    Outcome {
        target: request.target,
        at_s: request.at.as_secs_f64(),
        lag_ms: millis(lag),
        latency_ms: millis(due.elapsed()),
        answer,
    }
}

async fn answer(call: reqwest::RequestBuilder) -> Result<u16, Failure> {
    let failure = |error: reqwest::Error| match error {
        error if error.is_timeout() => Failure::Timeout,
        error if error.is_connect() => Failure::Connect,
        _ => Failure::Cut,
    };
    let mut response = call.send().await.map_err(failure)?;
    while response.chunk().await.map_err(failure)?.is_some() {}
    Ok(response.status().as_u16())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A server that answers with 200, and the address of it.
    async fn server(app: axum::Router) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        url
    }

    fn load(url: String, requests: usize, every: Duration, timeout: Duration) -> Load {
        let requests = 0..u32::try_from(requests).unwrap();
        Load {
            urls: vec![url],
            requests: requests.map(|k| Planned { at: every * k, target: 0 }).collect(),
            timeout,
            method: http::Method::POST,
            body: Bytes::new(),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_server_that_stalls_holds_back_no_later_request_and_its_stall_is_counted() {
        let arrived = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let (seen, opened) = (Arc::clone(&arrived), Arc::clone(&gate));
        // Nobody is answered before the last one has come: a client that waits would never send it.
        let app = axum::Router::new().fallback(move || async move {
            if seen.fetch_add(1, Ordering::SeqCst) + 1 == 20 {
                opened.add_permits(20);
            }
            opened.acquire().await.unwrap().forget();
        });
        let load = load(server(app).await, 20, Duration::from_millis(10), Duration::from_secs(10));
        let outcomes = send(load, &Interrupt::default(), |_| {}).await.unwrap();
        assert_eq!(outcomes.len(), 20);
        assert!(outcomes.iter().all(Outcome::is_ok), "{outcomes:?}");
        let first = outcomes.iter().find(|outcome| outcome.at_s == 0.0).unwrap();
        assert!(first.latency_ms >= 190.0, "{first:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn requests_start_within_a_millisecond_at_200_per_second() {
        let app = axum::Router::new().fallback(|| async {});
        let load = load(server(app).await, 200, Duration::from_millis(5), Duration::from_secs(10));
        let outcomes = send(load, &Interrupt::default(), |_| {}).await.unwrap();
        let mut lags: Vec<_> = outcomes.iter().map(|outcome| outcome.lag_ms).collect();
        lags.sort_by(f64::total_cmp);
        // The median, since a busy machine may take the processor away from anyone for longer.
        assert!(lags[lags.len() / 2] < 1.0, "median {} ms", lags[lags.len() / 2]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_gets_no_answer_says_why() {
        let app = axum::Router::new().fallback(std::future::pending::<()>);
        let slow = load(server(app).await, 1, Duration::ZERO, Duration::from_millis(50));
        let outcomes = send(slow, &Interrupt::default(), |_| {}).await.unwrap();
        assert_eq!(outcomes[0].answer, Err(Failure::Timeout));
        let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let nobody = load(format!("http://{refusing}/"), 1, Duration::ZERO, Duration::from_secs(5));
        let outcomes = send(nobody, &Interrupt::default(), |_| {}).await.unwrap();
        assert_eq!(outcomes[0].answer, Err(Failure::Connect));
        assert!(outcomes[0].is_late(Duration::from_secs(100)));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_stop_ends_the_sending_at_once_and_keeps_what_was_sent() {
        let app = axum::Router::new().fallback(|| async {});
        let load = load(server(app).await, 1000, Duration::from_millis(100), Duration::from_secs(10));
        let interrupt = Interrupt::default();
        let (begun, mut seen) = (Instant::now(), 0);
        let outcomes = send(load, &interrupt, |_| {
            seen += 1;
            if seen == 3 {
                interrupt.stop.cancel();
            }
        })
        .await
        .unwrap();
        assert!((3..1000).contains(&outcomes.len()));
        assert!(begun.elapsed() < Duration::from_secs(50));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_second_interrupt_does_not_wait_for_what_is_under_way() {
        let app = axum::Router::new().fallback(std::future::pending::<()>);
        let load = load(server(app).await, 10, Duration::from_millis(1), Duration::from_secs(500));
        let interrupt = Interrupt::default();
        interrupt.stop.cancel();
        interrupt.now.cancel();
        let sent = tokio::time::timeout(Duration::from_secs(50), send(load, &interrupt, |_| {})).await;
        assert!(sent.unwrap().unwrap().is_empty());
    }
}
