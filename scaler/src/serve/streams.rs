//! What KEDA is told without asking, until it or the service goes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::board::Board;
use super::grpc::Asked;
use super::metrics::Open;
use crate::keda::api::IsActiveResponse;

/// A stream of answers.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// That a function without a replica should have one is said again after this time: KEDA drops what it is told before it has
/// noted the metrics of the `ScaledObject`.
const REPEAT: Duration = Duration::from_secs(2);
/// What changes by itself, as a function that becomes idle, is looked for so often.
const LOOK: Duration = Duration::from_secs(10);

/// Tells one `ScaledObject` whether its function should have replicas: at once, and when that changes.
#[derive(Debug)]
pub(super) struct Follower {
    board: Arc<Board>,
    asked: Asked,
    changed: watch::Receiver<()>,
    stop: CancellationToken,
    /// What was said last, and when.
    said: Option<(bool, Instant)>,
    _open: Open,
}

impl Follower {
    /// It has said nothing yet. `changed` tells when there may be something to say.
    pub(super) fn new(
        board: Arc<Board>,
        asked: Asked,
        changed: watch::Receiver<()>,
        stop: CancellationToken,
        open: Open,
    ) -> Self {
        Self { board, asked, changed, stop, said: None, _open: open }
    }

    /// What it says.
    pub(super) fn stream(self) -> Answers<IsActiveResponse> {
        Box::pin(stream::unfold(self, |mut follower| async {
            let result = follower.next().await?;
            Some((Ok(IsActiveResponse { result }), follower))
        }))
    }

    /// What to say next; nothing when the function is gone, or the service is about to go. While nothing is known nothing is
    /// said: an error would make KEDA wait for up to a minute before it asks again.
    async fn next(&mut self) -> Option<bool> {
        loop {
            let need = self.board.need(&self.asked.namespace, &self.asked.asker, &self.asked.terms);
            let present = self.board.present(&self.asked.namespace, &self.asked.terms).ok()?;
            let is_active = need.ok().map(|need| need.is_active);
            let is_awaited = is_active == Some(true) && present == 0;
            if let Some(is_active) = is_active {
                let is_news = self.said.is_none_or(|(said, _)| said != is_active);
                let is_due = is_awaited && self.said.is_some_and(|(_, at)| at.elapsed() >= REPEAT);
                if is_news || is_due {
                    self.said = Some((is_active, Instant::now()));
                    return Some(is_active);
                }
            }
            tokio::select! {
                changed = self.changed.changed() => changed.ok()?,
                () = tokio::time::sleep(if is_awaited { REPEAT } else { LOOK }) => {}
                () = self.stop.cancelled() => return None,
            }
        }
    }
}

/// Says `answer`, then nothing until `stop`.
pub(super) fn constant<T: Clone + Send + 'static>(
    answer: T,
    stop: CancellationToken,
    open: Open,
) -> Answers<T> {
    Box::pin(stream::unfold((Some(answer), stop, open), |(answer, stop, open)| async {
        if let Some(answer) = answer {
            return Some((Ok(answer), (None, stop, open)));
        }
        stop.cancelled().await;
        None
    }))
}
