//! `/system/logs`: lines of a function as newline-separated JSON, what there is or all that comes.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Api, plain};
use crate::up::deployment::LogMessage;
use crate::up::function::Function;
use crate::up::logbook::Filter;
use crate::up::platform::{Platform, or_default_namespace};

/// What the query asks for.
#[derive(Debug, Default)]
struct Wanted {
    name: String,
    namespace: String,
    follow: bool,
    filter: Filter,
}

/// A repeated parameter counts with its last value; `tail` of zero or less is without limit.
fn wanted(query: &str) -> Option<Wanted> {
    let mut wanted = Wanted::default();
    for (name, value) in pairs(query) {
        match name.as_str() {
            "name" => wanted.name = value,
            "namespace" => wanted.namespace = value,
            "instance" => wanted.filter.instance = Some(value).filter(|value| !value.is_empty()),
            "follow" => wanted.follow = matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"),
            "tail" if !value.is_empty() => {
                wanted.filter.tail =
                    usize::try_from(value.parse::<i64>().ok()?).ok().filter(|tail| *tail > 0);
            }
            "since" if !value.is_empty() => {
                // A plus that was not escaped has become a space; no other space is in RFC 3339.
                let text = value.replace(' ', "+");
                wanted.filter.since = Some(OffsetDateTime::parse(&text, &Rfc3339).ok()?);
            }
            _ => {}
        }
    }
    Some(wanted)
}

fn pairs(query: &str) -> Vec<(String, String)> {
    let uri = http::Uri::builder().path_and_query(format!("/?{query}")).build();
    let parsed = uri.ok().and_then(|uri| axum::extract::Query::try_from_uri(&uri).ok());
    parsed.map(|axum::extract::Query(pairs)| pairs).unwrap_or_default()
}

pub(super) async fn logs(State(api): State<Api>, RawQuery(query): RawQuery) -> Response {
    let Some(wanted) = wanted(query.as_deref().unwrap_or_default()) else {
        return plain(StatusCode::UNPROCESSABLE_ENTITY, "could not parse the log request");
    };
    let Some(function) = api.platform.function(or_default_namespace(&wanted.namespace), &wanted.name) else {
        return plain(StatusCode::NOT_FOUND, "function not found");
    };
    let reader = Reader {
        platform: api.platform.clone(),
        function,
        filter: wanted.filter,
        follow: wanted.follow,
        next: 0,
        first: true,
    };
    let stream = futures_util::stream::unfold(reader, |mut reader| async move {
        let chunk = reader.next_chunk().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), reader))
    });
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
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
                return Some(messages.iter().flat_map(line).collect());
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

fn line(message: &LogMessage) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_is_read_as_the_reference_reads_it() {
        let query = "name=f&follow=true&tail=-1&since=2026-01-02T03%3A04%3A05%2B01%3A00&tail=5";
        let read = wanted(query).unwrap();
        assert_eq!((read.name.as_str(), read.follow, read.filter.tail), ("f", true, Some(5)));
        assert!(read.filter.since.is_some());
        assert!(wanted("name=f&tail=x").is_none());
        assert!(wanted("name=f&since=yesterday").is_none());
        assert!(!wanted("name=f&follow=maybe").unwrap().follow);
        assert_eq!(wanted("name=f&tail=0").unwrap().filter.tail, None);
    }

    proptest::proptest! {
        #[test]
        fn no_query_makes_the_reader_panic(query in "\\PC{0,40}") {
            let _ = wanted(&query);
        }
    }
}
