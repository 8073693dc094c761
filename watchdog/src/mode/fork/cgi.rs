//! What a process for each request learns of its request: environment variables, named as of-watchdog names them.
//! Pure; it never gives a variable that a process can't have.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use http::{HeaderMap, HeaderName, Method, Uri, header};

/// Why a request can't be told in variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// What stands behind a `%` is no byte.
    #[error("the path has a % without two hexadecimal digits behind it")]
    Escape,
    /// A variable can't hold it.
    #[error("the path has a zero byte")]
    Zero,
}

/// The variables of a request, `Http_Host` only with `with_host`: of-watchdog has it not, the classic watchdog has.
pub fn variables(
    method: &Method,
    target: &Uri,
    headers: &HeaderMap,
    with_host: bool,
) -> Result<Vec<(String, OsString)>, BadPath> {
    let path = decoded(target.path())?;
    let mut variables: Vec<(String, OsString)> = headers
        .keys()
        .filter(|name| **name != header::TRANSFER_ENCODING && (with_host || **name != header::HOST))
        .filter_map(|name| Some((variable(name), os(headers.get(name)?.as_bytes()))))
        .collect();
    let mut add = |name: &str, value: &[u8]| variables.push((name.to_string(), os(value)));
    add("Http_Method", method.as_str().as_bytes());
    if let Some(query) = target.query().filter(|query| !query.is_empty()) {
        add("Http_Query", query.as_bytes());
    }
    if !path.is_empty() {
        add("Http_Path", &path);
    }
    if let Some(encoding) = headers.get(header::TRANSFER_ENCODING) {
        add("Http_Transfer_Encoding", encoding.as_bytes());
    }
    Ok(variables)
}

/// `x-foo-bar` as `Http_X_Foo_Bar`.
fn variable(name: &HeaderName) -> String {
    let mut text = String::from("Http_");
    let mut is_first = true;
    for letter in name.as_str().chars() {
        text.push(match letter {
            '-' => '_',
            letter if is_first => letter.to_ascii_uppercase(),
            letter => letter,
        });
        is_first = letter == '-';
    }
    text
}

fn os(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

/// A path without its percent-encoding.
pub(crate) fn decoded(path: &str) -> Result<Vec<u8>, BadPath> {
    let mut bytes = path.bytes();
    let mut plain = Vec::with_capacity(path.len());
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
            let value = digit().zip(digit()).map(|(high, low)| 16 * high + low);
            value.and_then(|value| u8::try_from(value).ok()).ok_or(BadPath::Escape)?
        } else {
            byte
        };
        if byte == 0 {
            return Err(BadPath::Zero);
        }
        plain.push(byte);
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_method_path_and_query_are_variables() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "fn.example"),
            ("x-foo-bar", "1"),
            ("x-foo-bar", "2"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let target = "/a%20b/c?x=1&y=%2F".parse().unwrap();
        let mut found = variables(&Method::POST, &target, &headers, false).unwrap();
        found.sort();
        let wanted = [
            ("Http_Content_Length", "5"),
            ("Http_Method", "POST"),
            ("Http_Path", "/a b/c"),
            ("Http_Query", "x=1&y=%2F"),
            ("Http_Transfer_Encoding", "chunked"),
            ("Http_X_Foo_Bar", "1"),
        ];
        let found: Vec<_> = found.iter().map(|(name, value)| (&name[..], value.to_str().unwrap())).collect();
        assert_eq!(found, wanted);
        let with_host = variables(&Method::POST, &target, &headers, true).unwrap();
        assert!(with_host.contains(&("Http_Host".to_string(), "fn.example".into())));
    }

    #[test]
    fn a_path_that_can_not_be_a_variable_is_refused() {
        assert_eq!(decoded("/%00"), Err(BadPath::Zero));
        for path in ["/%", "/%2", "/%zz", "/%+1", "/%é"] {
            assert_eq!(decoded(path), Err(BadPath::Escape), "{path}");
        }
        assert_eq!(decoded("/%e2%82%ac%41").unwrap(), "/€A".as_bytes());
    }

    proptest! {
        #[test]
        fn a_path_without_escapes_stays_as_it_is(path in "/[a-zA-Z0-9/._~-]{0,40}") {
            prop_assert_eq!(decoded(&path).unwrap(), path.as_bytes());
        }

        #[test]
        fn every_byte_but_zero_can_be_escaped(bytes in prop::collection::vec(1u8.., 0..40)) {
            let path = bytes.iter().map(|byte| format!("%{byte:02x}")).collect::<Vec<_>>().concat();
            prop_assert_eq!(decoded(&path).unwrap(), bytes);
        }
    }
}
