//! A request's head: what is passed on of it has nothing that belongs to the client's connection, and everything else.
#![no_main]

use std::collections::BTreeSet;

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use watchdog::parsers::strip_connection;

/// RFC 9110, 7.6.1.
const NEVER: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

/// What a client can't have dropped.
const ALWAYS: [&str; 2] = ["content-length", "host"];

fuzz_target!(|bytes: &[u8]| {
    let mut space = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut space);
    if !request.parse(bytes).is_ok_and(|status| status.is_complete()) {
        return;
    }
    let mut headers = HeaderMap::new();
    for field in request.headers.iter() {
        let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(field.name.as_bytes()), HeaderValue::from_bytes(field.value))
        else {
            return;
        };
        headers.append(name, value);
    }
    let listed: BTreeSet<String> = headers
        .get_all("connection")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let before = headers.clone();
    strip_connection(&mut headers);
    for name in before.keys() {
        let name = name.as_str();
        let is_gone = NEVER.contains(&name) || (listed.contains(name) && !ALWAYS.contains(&name));
        let wanted: Vec<_> = if is_gone { Vec::new() } else { before.get_all(name).iter().collect() };
        let found: Vec<_> = headers.get_all(name).iter().collect();
        assert_eq!(found, wanted, "{name}: {before:?}");
    }
    assert!(headers.keys().all(|name| before.contains_key(name)));
});
