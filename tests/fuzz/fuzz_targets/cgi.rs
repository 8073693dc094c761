//! A request's head, line by line: method, target, then headers. What a process finds in its environment it can have.
#![no_main]

use std::os::unix::ffi::OsStrExt;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use libfuzzer_sys::fuzz_target;
use watchdog::parsers::variables;

fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let Some(Ok(method)) = lines.next().map(Method::from_bytes) else { return };
    let Some(Ok(target)) = lines.next().map(Uri::try_from) else { return };
    let mut headers = HeaderMap::new();
    for line in lines.take(100) {
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':').unwrap_or(line.len()));
        let value = HeaderValue::from_bytes(value.strip_prefix(b":").unwrap_or(value));
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value) {
            headers.append(name, value);
        }
    }
    for (name, value) in variables(&method, &target, &headers, true).into_iter().flatten() {
        assert!(name.starts_with("Http_") && !name.contains(['=', '\0']), "{name:?}");
        assert!(!value.as_bytes().contains(&0), "{name}={value:?}");
    }
});
