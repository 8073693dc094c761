//! Answers in plain text, as the reference framework gives them, and errors as such answers.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use gpu_share::invalid::Invalid;
use http::{HeaderValue, StatusCode, header};

/// One line of text.
pub fn plain(status: StatusCode, line: &str) -> Response {
    let mut response = Response::new(Body::from(format!("{line}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The answer to a path that there is none of.
#[allow(clippy::unused_async)] // Handlers are.
pub async fn not_found() -> Response {
    plain(StatusCode::NOT_FOUND, "404 page not found")
}

/// An error as an answer: its status and one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// Why, in one line.
    pub why: String,
}

impl Refusal {
    /// `why`, answered with `status`.
    pub fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        plain(self.status, &self.why)
    }
}

impl From<Invalid> for Refusal {
    fn from(error: Invalid) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.to_string())
    }
}

/// Reads a JSON body whatever its content type says, as the reference does.
pub fn from_json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, format!("body is not the JSON expected here: {error}"))
    })
}

/// A path without the name that it may end in, as metrics have it: two segments.
pub fn route(path: &str) -> &str {
    let ends = path.char_indices().skip(1).filter(|(_, character)| *character == '/').map(|(index, _)| index);
    path.get(..ends.into_iter().nth(1).unwrap_or(path.len())).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_a_path_without_its_name() {
        for (path, expected) in [
            ("/system/function/f", "/system/function"),
            ("/system/functions", "/system/functions"),
            ("/system/namespace/", "/system/namespace"),
            ("/healthz", "/healthz"),
            ("/", "/"),
            ("", ""),
        ] {
            assert_eq!(route(path), expected);
        }
    }
}
