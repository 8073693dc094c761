//! Serves the function's handler to the watchdog, at the port that `upstream_url` names.
//!
//! The port is open once `load` is done: until then the watchdog holds requests, and the container is not ready.

use std::process::ExitCode;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use function::{Error, Model};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

const DEFAULT_PORT: u16 = 5000;

#[tokio::main]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), Error> {
    let port = port(std::env::var("upstream_url").ok().as_deref())?;
    let mut term = signal(SignalKind::terminate())?;
    let model = Arc::new(function::load().await?);
    // The watchdog and its limits decide how much is too much.
    let app = Router::new().fallback(answer).layer(DefaultBodyLimit::disable()).with_state(model);
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    axum::serve(listener, app)
        .with_graceful_shutdown(async move {
            term.recv().await;
        })
        .await?;
    Ok(())
}

async fn answer(
    State(model): State<Arc<Model>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    match function::handle(request, &model).await {
        Ok(response) => response.map(Body::from),
        Err(error) => {
            eprintln!("{error}");
            let mut response = Response::new(Body::from("the handler failed; its log says why\n"));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}

fn port(url: Option<&str>) -> Result<u16, Error> {
    let Some(url) = url else { return Ok(DEFAULT_PORT) };
    let port = url.parse::<Uri>().ok().and_then(|uri| uri.port_u16());
    port.ok_or_else(|| format!("upstream_url is {url:?}, allowed is http://127.0.0.1:PORT").into())
}
