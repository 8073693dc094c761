//! What the tests' function answers: it echoes its request, answers as its variables say, or shows what reached it. Without
//! sockets, so that a program of its own and a pretended pod answer alike.
//!
//! `ECHO_STATUS`, `ECHO_BODY` (base64), `ECHO_HEADERS` (lines `Name: value`): what it answers. Paths: `/status/CODE`, `/env/NAME`,
//! `/header/NAME`, `/secret/NAME`, `/sleep/MILLISECONDS`, `/exit/CODE`.

use std::path::Path;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Response, Uri};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Where a provider puts secrets unless it says otherwise.
const SECRETS: &str = "/var/openfaas/secrets";

/// Answers a request, with `variable` as the environment.
pub async fn answer(
    variable: impl Fn(&str) -> Option<String>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let path = uri.path().trim_matches('/');
    let Some((what, name)) = path.split_once('/') else { return echo(&variable, &method, &uri, &body) };
    match what {
        "status" => text(name.parse().unwrap_or(400), "as asked for"),
        "env" => found(variable(name)),
        "header" => found(headers.get(name).and_then(|value| Some(value.to_str().ok()?.to_string()))),
        "secret" => {
            let folder = variable("secret_mount_path").unwrap_or_else(|| SECRETS.into());
            found(std::fs::read_to_string(Path::new(&folder).join(name)).ok())
        }
        "sleep" => {
            tokio::time::sleep(Duration::from_millis(name.parse().unwrap_or_default())).await;
            text(200, "awake")
        }
        // What a crash looks like from outside; destructors have nothing to do here.
        #[allow(clippy::exit)]
        "exit" => std::process::exit(name.parse().unwrap_or(1)),
        _ => echo(&variable, &method, &uri, &body),
    }
}

fn echo(
    variable: &impl Fn(&str) -> Option<String>,
    method: &Method,
    uri: &Uri,
    body: &Bytes,
) -> Response<Body> {
    let fixed = variable("ECHO_BODY").and_then(|text| STANDARD.decode(text).ok());
    let mut response = if let Some(fixed) = fixed {
        Response::new(Body::from(fixed))
    } else {
        let (path, query) = (uri.path(), uri.query().unwrap_or_default());
        let mut echoed = format!("{method} {path}?{query} {} bytes: ", body.len()).into_bytes();
        echoed.extend_from_slice(body);
        Response::new(Body::from(echoed))
    };
    if let Some(Ok(status)) = variable("ECHO_STATUS").map(|text| text.parse::<u16>()) {
        *response.status_mut() = status.try_into().unwrap_or_default();
    }
    let lines = variable("ECHO_HEADERS").unwrap_or_default();
    for (name, value) in lines.lines().filter_map(|line| line.split_once(": ")) {
        if let (Ok(name), Ok(value)) = (name.parse::<axum::http::HeaderName>(), value.parse()) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn found(value: Option<String>) -> Response<Body> {
    match value {
        Some(value) => text(200, &value),
        None => text(404, "not there"),
    }
}

fn text(status: u16, body: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status.try_into().unwrap_or_default();
    response
}
