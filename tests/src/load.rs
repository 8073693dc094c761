//! Open-loop load: requests start at their times whether or not earlier ones ended, and a latency counts from the
//! scheduled time, so a stalled server can't hide its stall.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::gateway::Gateway;

/// Even load on one function.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The function.
    pub function: String,
    /// Requests per second.
    pub rps: f64,
}

impl Stream {
    /// `rps` requests per second on `function`.
    pub fn new(function: &str, rps: f64) -> Self {
        Self { function: function.into(), rps }
    }
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a status.
    Status(u16),
    /// Not within its deadline.
    Hung,
    /// The gateway broke the connection or could not be reached.
    Broken(String),
}

/// One request.
#[derive(Clone, Debug)]
pub struct Shot {
    /// The function.
    pub function: String,
    /// When it was to be sent.
    pub at: Instant,
    /// From then to its end.
    pub latency: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

impl Shot {
    /// Whether it was answered as it should be.
    pub fn is_ok(&self) -> bool {
        self.outcome == Outcome::Status(200)
    }
}

/// What load is sent to.
pub trait Target: Clone + Send + Sync + 'static {
    /// Invokes a function; the status of the answer, once all of it is there.
    fn invoke(&self, function: &str) -> impl Future<Output = reqwest::Result<u16>> + Send;
}

impl Target for Gateway {
    async fn invoke(&self, function: &str) -> reqwest::Result<u16> {
        let answer = self.send(function, "").await?;
        let status = answer.status().as_u16();
        answer.bytes().await?;
        Ok(status)
    }
}

/// Load that runs until it is stopped.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    streams: JoinSet<Vec<Shot>>,
}

impl Load {
    /// Starts sending; each request has `deadline` to end.
    pub fn start(
        target: &impl Target,
        streams: impl IntoIterator<Item = Stream>,
        deadline: Duration,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for stream in streams {
            tasks.spawn(send_all(target.clone(), stream, deadline, stopped.clone()));
        }
        Self { stop, streams: tasks }
    }

    /// Stops sending, waits for what is on its way, and returns all requests in the order of their times.
    pub async fn stop(self) -> Vec<Shot> {
        // Without a receiver there is nobody left to stop.
        let _ = self.stop.send(true);
        let mut shots: Vec<_> = self.streams.join_all().await.into_iter().flatten().collect();
        shots.sort_by_key(|shot| shot.at);
        shots
    }
}

async fn send_all(
    target: impl Target,
    stream: Stream,
    deadline: Duration,
    mut stopped: watch::Receiver<bool>,
) -> Vec<Shot> {
    let start = Instant::now();
    let mut shots = JoinSet::new();
    for n in 0u32.. {
        let at = start + Duration::from_secs_f64(f64::from(n) / stream.rps);
        tokio::select! {
            () = sleep_until(at) => {}
            _ = stopped.wait_for(|&stop| stop) => break,
        }
        shots.spawn(send(target.clone(), stream.function.clone(), at, deadline));
    }
    shots.join_all().await
}

async fn send(target: impl Target, function: String, at: Instant, deadline: Duration) -> Shot {
    let outcome = match timeout(deadline, target.invoke(&function)).await {
        Ok(Ok(status)) => Outcome::Status(status),
        Ok(Err(error)) => Outcome::Broken(format!("{error:?}")),
        Err(_) => Outcome::Hung,
    };
    Shot { function, at, latency: at.elapsed(), outcome }
}

/// The nearest-rank percentile of `values`, `p` in (0, 1]; none of nothing.
pub fn percentile(values: impl IntoIterator<Item = f64>, p: f64) -> Option<f64> {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let rank = (p * values.len() as f64).ceil() as usize; // Between 0 and the length, which is small.
    values.get(rank.max(1) - 1).copied()
}

/// The middle one of `values`; the mean of the two middle ones if their number is even.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(value: Option<f64>, expected: f64) -> bool {
        value.is_some_and(|value| (value - expected).abs() < f64::EPSILON)
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let hundred = || (1..=100).map(f64::from);
        assert!(is(percentile(hundred(), 0.95), 95.0));
        assert!(is(percentile(hundred(), 1.0), 100.0));
        assert!(is(percentile([7.0], 0.01), 7.0));
        assert_eq!(percentile([], 0.5), None);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert!(is(median([3.0, 1.0, 2.0]), 2.0));
        assert!(is(median([4.0, 1.0]), 2.5));
        assert_eq!(median([]), None);
    }
}
