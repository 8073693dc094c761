//! `/system/logs`: what the query asks for, and a line of the answer (newline-separated JSON).

use http::StatusCode;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::answers::Refusal;
use crate::shapes::LogMessage;

/// Content type of the answer.
pub const CONTENT_TYPE: &str = "application/x-ndjson";

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// The function.
    pub name: String,
    /// Its namespace; empty for the default.
    pub namespace: String,
    /// The only replica whose lines are wanted.
    pub instance: Option<String>,
    /// At most so many lines of those that there are: the last ones.
    pub tail: Option<usize>,
    /// No line before this.
    pub since: Option<OffsetDateTime>,
    /// Also what is still to come.
    pub follow: bool,
}

impl Query {
    /// Reads a URL's query. A repeated parameter counts with its last value; `tail` of zero or less is without limit.
    pub fn read(query: &str) -> Result<Self, Refusal> {
        let wrong = || Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "could not parse the log request");
        let mut wanted = Self::default();
        for (name, value) in pairs(query) {
            match name.as_str() {
                "name" => wanted.name = value,
                "namespace" => wanted.namespace = value,
                "instance" => wanted.instance = Some(value).filter(|value| !value.is_empty()),
                "follow" => {
                    wanted.follow = matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True");
                }
                "tail" if !value.is_empty() => {
                    let tail = value.parse::<i64>().map_err(|_| wrong())?;
                    wanted.tail = usize::try_from(tail).ok().filter(|tail| *tail > 0);
                }
                "since" if !value.is_empty() => {
                    // A plus that was not escaped has become a space; no other space is in RFC 3339.
                    let text = value.replace(' ', "+");
                    wanted.since = Some(OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| wrong())?);
                }
                _ => {}
            }
        }
        Ok(wanted)
    }
}

fn pairs(query: &str) -> Vec<(String, String)> {
    let uri = http::Uri::builder().path_and_query(format!("/?{query}")).build();
    let parsed = uri.ok().and_then(|uri| axum::extract::Query::try_from_uri(&uri).ok());
    parsed.map(|axum::extract::Query(pairs)| pairs).unwrap_or_default()
}

/// A message as a line.
pub fn line(message: &LogMessage) -> Vec<u8> {
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
        let read = Query::read(query).unwrap();
        assert_eq!((read.name.as_str(), read.follow, read.tail), ("f", true, Some(5)));
        assert!(read.since.is_some());
        assert_eq!(Query::read("name=f&tail=x").unwrap_err().status, StatusCode::UNPROCESSABLE_ENTITY);
        assert!(Query::read("name=f&since=yesterday").is_err());
        assert!(!Query::read("name=f&follow=maybe").unwrap().follow);
        assert_eq!(Query::read("name=f&tail=0").unwrap().tail, None);
    }

    proptest::proptest! {
        #[test]
        fn no_query_makes_the_reader_panic(query in "\\PC{0,40}") {
            drop(Query::read(&query));
        }
    }
}
