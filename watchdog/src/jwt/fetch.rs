//! One GET over plain HTTP, for documents of a gateway in the same cluster.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest time for a document.
const PATIENCE: Duration = Duration::from_secs(5);

/// Largest document, in bytes.
const LARGEST: usize = 1 << 20;

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// No such URL can be fetched.
    #[error("URL is {0:?}, allowed is http://host:port/path")]
    Url(String),
    /// It did not come in time.
    #[error("{0} did not answer in time")]
    Late(String),
    /// Its server can't be reached, or did not send it.
    #[error("{url}: {source}")]
    Transport { url: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// Its server sent something else.
    #[error("{0} answered {1}")]
    Status(String, StatusCode),
    /// It is not what was wanted.
    #[error("{url} is not understood: {source}")]
    Content { url: String, source: serde_json::Error },
}

/// The document at `url`.
pub(super) async fn fetch(url: &str) -> Result<Bytes, FetchError> {
    let outcome = timeout(PATIENCE, get(url)).await;
    outcome.unwrap_or_else(|_| Err(FetchError::Late(url.to_string())))
}

async fn get(url: &str) -> Result<Bytes, FetchError> {
    let uri = url.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("http"));
    let uri = uri.ok_or_else(|| FetchError::Url(url.to_string()))?;
    let host = uri.host().ok_or_else(|| FetchError::Url(url.to_string()))?.to_string();
    let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80));
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_string();
    let transport = |source: Box<dyn std::error::Error + Send + Sync>| FetchError::Transport {
        url: url.to_string(),
        source,
    };
    let stream = TcpStream::connect(&authority).await.map_err(|error| transport(error.into()))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| transport(error.into()))?;
    tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = path.parse().map_err(|_| FetchError::Url(url.to_string()))?;
    let host = HeaderValue::try_from(authority).map_err(|_| FetchError::Url(url.to_string()))?;
    request.headers_mut().insert(header::HOST, host);
    request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static("openfaas-watchdog"));
    let answer = sender.send_request(request).await.map_err(|error| transport(error.into()))?;
    if answer.status() != StatusCode::OK {
        return Err(FetchError::Status(url.to_string(), answer.status()));
    }
    Ok(Limited::new(answer.into_body(), LARGEST).collect().await.map_err(transport)?.to_bytes())
}
