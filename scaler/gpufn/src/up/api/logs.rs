//! `/system/logs`: lines of a function as newline-separated JSON, what there is or all that comes.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use openfaas::answers::plain;
use openfaas::logs::{self, Query};

use super::Api;
use crate::up::function::Function;
use crate::up::logbook::Filter;
use crate::up::platform::{Platform, or_default_namespace};

pub(super) async fn logs(State(api): State<Api>, RawQuery(query): RawQuery) -> Response {
    let wanted = match Query::read(query.as_deref().unwrap_or_default()) {
        Ok(wanted) => wanted,
        Err(refusal) => return refusal.into_response(),
    };
    let Some(function) = api.platform.function(or_default_namespace(&wanted.namespace), &wanted.name) else {
        return plain(StatusCode::NOT_FOUND, "function not found");
    };
    let reader = Reader {
        platform: api.platform.clone(),
        function,
        filter: Filter { tail: wanted.tail, since: wanted.since, instance: wanted.instance },
        follow: wanted.follow,
        next: 0,
        first: true,
    };
    let stream = futures_util::stream::unfold(reader, |mut reader| async move {
        let chunk = reader.next_chunk().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), reader))
    });
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(logs::CONTENT_TYPE));
    response
}

/// Where a client is in a log.
struct Reader {
    platform: Arc<Platform>,
    function: Arc<Function>,
    filter: Filter,
    follow: bool,
    next: u64,
    first: bool,
}

impl Reader {
    /// The next lines, as soon as there are any; `None` at the end.
    async fn next_chunk(&mut self) -> Option<Bytes> {
        let mut watch = self.function.log.watch();
        loop {
            let more = core::mem::take(&mut self.first) || self.follow;
            if !more {
                return None;
            }
            watch.mark_unchanged();
            let (lines, next) = self.function.log.since(self.next);
            self.next = next;
            let messages = self.filter.apply(&self.function.id, lines);
            if !messages.is_empty() {
                return Some(messages.iter().flat_map(logs::line).collect());
            }
            if !self.follow {
                return None;
            }
            tokio::select! {
                changed = watch.changed() => changed.ok()?,
                () = self.platform.shutdown.cancelled() => return None,
                () = self.function.removed.cancelled() => return None,
            }
        }
    }
}
