//! A function without a GPU for the tests: it echoes its request, answers as its environment says, or shows what reached
//! it.
//!
//! `PORT`: where it listens on loopback. `ECHO_STATUS`, `ECHO_BODY` (base64), `ECHO_HEADERS` (lines `Name: value`): what
//! it answers. Paths: `/status/CODE`, `/env/NAME`, `/header/NAME`, `/secret/NAME`, `/sleep/MILLISECONDS`, `/exit/CODE`.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Response, Uri};
use axum::routing::any;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Where a provider puts secrets unless it says otherwise.
const SECRETS: &str = "/var/openfaas/secrets";

fn main() -> Result<()> {
    let port: u16 = std::env::var("PORT").context("PORT is not set")?.parse().context("PORT")?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        println!("echo-function listens on port {port}");
        axum::serve(listener, Router::new().fallback(any(answer))).await?;
        Ok(())
    })
}

async fn answer(method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response<Body> {
    println!("{method} {uri}");
    let path = uri.path().trim_matches('/');
    let Some((what, name)) = path.split_once('/') else { return echo(&method, &uri, &body) };
    match what {
        "status" => text(name.parse().unwrap_or(400), "as asked for"),
        "env" => found(std::env::var(name).ok()),
        "header" => found(headers.get(name).and_then(|value| Some(value.to_str().ok()?.to_string()))),
        "secret" => {
            let folder = std::env::var("secret_mount_path").unwrap_or_else(|_| SECRETS.into());
            found(std::fs::read_to_string(Path::new(&folder).join(name)).ok())
        }
        "sleep" => {
            tokio::time::sleep(Duration::from_millis(name.parse().unwrap_or_default())).await;
            text(200, "awake")
        }
        // What a crash looks like from outside; destructors have nothing to do here.
        #[allow(clippy::exit)]
        "exit" => std::process::exit(name.parse().unwrap_or(1)),
        _ => echo(&method, &uri, &body),
    }
}

fn echo(method: &Method, uri: &Uri, body: &Bytes) -> Response<Body> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let mut response = match STANDARD.decode(variable("ECHO_BODY")) {
        Ok(fixed) if std::env::var_os("ECHO_BODY").is_some() => Response::new(Body::from(fixed)),
        _ => {
            let (path, query) = (uri.path(), uri.query().unwrap_or_default());
            let mut echoed = format!("{method} {path}?{query} {} bytes: ", body.len()).into_bytes();
            echoed.extend_from_slice(body);
            Response::new(Body::from(echoed))
        }
    };
    if let Ok(status) = variable("ECHO_STATUS").parse::<u16>() {
        *response.status_mut() = status.try_into().unwrap_or_default();
    }
    let lines = variable("ECHO_HEADERS");
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
