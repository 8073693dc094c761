//! Lines of a function's pods: what there is in order of time, or all that comes.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::{AsyncBufRead, AsyncBufReadExt as _};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ListParams, LogParams};
use openfaas::answers::Refusal;
use openfaas::logs::{Query, line};
use openfaas::names::FunctionId;
use openfaas::shapes::LogMessage;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::FUNCTION;
use super::cluster::answer;
use super::functions::Function;

/// Bytes of a line that are passed on; the rest of it is left out.
const LONGEST: usize = 64 << 10;
/// Lines that may wait for a client that reads slowly.
pub(super) const AHEAD: usize = 64;
/// Time until a pod is asked again whose container has not started yet.
const AGAIN: Duration = Duration::from_millis(500);

/// Where lines are read.
#[derive(Clone)]
pub(super) struct PodLogs {
    pub(super) client: Client,
    pub(super) stop: CancellationToken,
}

/// One line of a pod.
struct Line {
    at: OffsetDateTime,
    message: LogMessage,
}

/// The lines of a pod as they come from the kubelet.
struct Lines<R> {
    reader: R,
    id: FunctionId,
    pod: String,
    since: Option<OffsetDateTime>,
}

impl PodLogs {
    /// Sends lines of a function to `out`, until there are no more, or nobody listens.
    pub(super) async fn send(self, function: Arc<Function>, query: Query, out: mpsc::Sender<Bytes>) {
        let reading = async {
            if query.follow {
                self.follow(&function, &query, &out).await;
            } else {
                self.read(&function.id, &query, &out).await;
            }
        };
        tokio::select! {
            () = reading => {}
            () = out.closed() => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// The function's pods that a query asks for.
    pub(super) async fn pods(&self, id: &FunctionId, query: &Query) -> Result<Vec<String>, Refusal> {
        let mine = ListParams::default().labels(&format!("{FUNCTION}={}", id.name));
        let listed = self.api(id).list_metadata(&mine).await.map_err(|error| answer(&error))?;
        let names = listed.items.into_iter().filter_map(|pod| pod.metadata.name);
        Ok(names.filter(|name| is_asked_for(name, query)).collect())
    }

    /// What there is, all pods together in order of time.
    async fn read(&self, id: &FunctionId, query: &Query, out: &mpsc::Sender<Bytes>) {
        let Ok(pods) = self.pods(id, query).await else { return };
        let mut sources = Vec::new();
        for pod in pods {
            // One that has not started, or is gone, has no lines.
            if let Ok(mut lines) = self.open(id, &pod, query, false).await
                && let Ok(Some(first)) = lines.next().await
            {
                sources.push((first, lines));
            }
        }
        let mut last: VecDeque<Bytes> = VecDeque::new();
        while let Some(oldest) = (0..sources.len()).min_by_key(|place| sources[*place].0.at) {
            let (first, lines) = &mut sources[oldest];
            let bytes = Bytes::from(line(&first.message));
            match lines.next().await {
                Ok(Some(next)) => *first = next,
                _ => drop(sources.swap_remove(oldest)),
            }
            // Of several pods each has given its last lines: the last of those are kept.
            last.push_back(bytes);
            let most = query.tail.unwrap_or(0);
            while last.len() > most {
                let Some(bytes) = last.pop_front() else { break };
                if query.tail.is_none() && out.send(bytes).await.is_err() {
                    return;
                }
            }
        }
        for bytes in last {
            if out.send(bytes).await.is_err() {
                return;
            }
        }
    }

    /// What there is and what comes, of pods that come too, until the function is gone.
    async fn follow(&self, function: &Arc<Function>, query: &Query, out: &mpsc::Sender<Bytes>) {
        let mut changes = function.changes();
        let (mut followed, mut readers) = (BTreeSet::new(), JoinSet::new());
        while function.facts().is_some() {
            let pods = function.pods();
            for pod in pods.iter().filter(|pod| is_asked_for(pod, query)) {
                if followed.insert(pod.clone()) {
                    let reading = self.clone().follow_pod(
                        Arc::clone(function),
                        pod.clone(),
                        query.clone(),
                        out.clone(),
                    );
                    readers.spawn(reading);
                }
            }
            followed.retain(|pod| pods.contains(pod));
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Lines of one pod until it is gone. The container may start late, and again.
    async fn follow_pod(
        self,
        function: Arc<Function>,
        pod: String,
        mut query: Query,
        out: mpsc::Sender<Bytes>,
    ) {
        while function.pods().contains(&pod) {
            if let Ok(mut lines) = self.open(&function.id, &pod, &query, true).await {
                while let Ok(Some(next)) = lines.next().await {
                    // Not again when it is read again; the same nanosecond has one line.
                    query.since = Some(next.at + time::Duration::NANOSECOND);
                    query.tail = None;
                    if out.send(line(&next.message).into()).await.is_err() {
                        return;
                    }
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn open(
        &self,
        id: &FunctionId,
        pod: &str,
        query: &Query,
        follow: bool,
    ) -> kube::Result<Lines<impl AsyncBufRead + Unpin + use<>>> {
        // The API server counts in whole seconds.
        let since_time = query.since.and_then(|since| Timestamp::from_second(since.unix_timestamp()).ok());
        let params = LogParams {
            container: Some(id.name.clone()),
            follow,
            tail_lines: query.tail.and_then(|tail| i64::try_from(tail).ok()),
            since_time,
            timestamps: true,
            ..LogParams::default()
        };
        let reader = Box::pin(self.api(id).log_stream(pod, &params).await?);
        Ok(Lines { reader, id: id.clone(), pod: pod.into(), since: query.since })
    }

    fn api(&self, id: &FunctionId) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &id.namespace)
    }
}

fn is_asked_for(pod: &str, query: &Query) -> bool {
    query.instance.as_deref().is_none_or(|instance| instance == pod)
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    /// The next line; nothing at the end.
    async fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let Some(text) = next_line(&mut self.reader).await? else { return Ok(None) };
            // What has no time before it is an error of the kubelet.
            let Some((at, text)) = stamped(&text) else { continue };
            if self.since.is_none_or(|since| at >= since) {
                let message = LogMessage {
                    name: self.id.name.clone(),
                    namespace: self.id.namespace.clone(),
                    instance: self.pod.clone(),
                    timestamp: at.format(&Rfc3339).unwrap_or_default(),
                    text: text.into(),
                };
                return Ok(Some(Line { at, message }));
            }
        }
    }
}

/// The time that the kubelet writes before a line, and the line.
fn stamped(line: &str) -> Option<(OffsetDateTime, &str)> {
    let (stamp, text) = line.split_once(' ')?;
    Some((OffsetDateTime::parse(stamp, &Rfc3339).ok()?, text))
}

/// The next line without its end, cut where it is too long; nothing at the end.
async fn next_line(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let mut is_begun = false;
    loop {
        let there = reader.fill_buf().await?;
        if there.is_empty() {
            return Ok(is_begun.then(|| String::from_utf8_lossy(&line).into_owned()));
        }
        is_begun = true;
        let end = there.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(there.len());
        let room = LONGEST.saturating_sub(line.len());
        line.extend_from_slice(&there[..taken.min(room)]);
        reader.consume_unpin(taken + usize::from(end.is_some()));
        if end.is_some() {
            return Ok(Some(String::from_utf8_lossy(&line).trim_end_matches('\r').into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::io::{BufReader, Cursor};

    use super::*;

    #[tokio::test]
    async fn a_line_that_is_too_long_is_cut_and_the_next_one_is_whole() {
        let text = format!("{}\nb\r\n\nlast", "a".repeat(LONGEST + 100));
        let mut reader = BufReader::with_capacity(1000, Cursor::new(text));
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut reader).await.unwrap() {
            lines.push(line);
        }
        assert_eq!(lines[0].len(), LONGEST);
        assert_eq!(&lines[1..], ["b", "", "last"]);
    }

    #[test]
    fn the_kubelet_writes_the_time_before_a_line() {
        let (at, text) = stamped("2026-01-02T03:04:05.123456789Z  GET / ").unwrap();
        assert_eq!((at.nanosecond(), text), (123_456_789, " GET / "));
        assert!(stamped("failed to open log file").is_none());
    }
}
