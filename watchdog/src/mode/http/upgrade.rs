//! Requests that turn their connection into a WebSocket: the handshake goes to the function, and once it agrees, bytes
//! go both ways until one side ends. Each has a connection of its own; none comes from the pool.

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::failure::{Failure, Limit};
use super::outgoing::{Outgoing, strip_connection};
use super::{HttpMode, Peer, append_forwarded_for, within};
use crate::alarm::Alarm;
use crate::answer::Answer;
use crate::exchange::Exchange;

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Whether the client asks for a WebSocket, which only a GET can (RFC 6455, 4.1).
pub(crate) fn is_wanted(request: &Request<Incoming>) -> bool {
    let is_websocket = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes());
    request.method() == Method::GET && request.headers().get(header::UPGRADE).is_some_and(is_websocket)
}

/// Passes the handshake on, and then the bytes.
pub(crate) async fn answer(
    mode: &HttpMode,
    mut request: Request<Incoming>,
    peer: Peer,
    exchange: Exchange,
) -> Response<Answer> {
    let client = hyper::upgrade::on(&mut request);
    let limit = mode.write_timeout.map(|span| Limit { span, field: "write_timeout" });
    let mut deadline = limit.map(|limit| Alarm::at(Instant::now() + limit.span));
    let agreed = within(&mut deadline, limit, shake_hands(mode, request, peer)).await;
    match agreed {
        Ok(answer) => join(answer, client, exchange),
        Err(failure) => failure.answer(exchange),
    }
}

async fn shake_hands(
    mode: &HttpMode,
    request: Request<Incoming>,
    peer: Peer,
) -> Result<Response<Incoming>, Failure> {
    let (mut parts, _) = request.into_parts();
    parts.uri = mode.backend.upstream.target(&parts.uri)?;
    parts.version = Version::HTTP_11;
    strip_connection(&mut parts.headers);
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    parts.headers.insert(header::UPGRADE, WEBSOCKET);
    append_forwarded_for(&mut parts.headers, peer);
    mode.backend.health.started().await.or_failure()?;
    let stream = TcpStream::connect(mode.backend.upstream.authority()).await.map_err(Failure::Unreachable)?;
    stream.set_nodelay(true).map_err(Failure::Unreachable)?;
    let handshake = http1::Builder::new().title_case_headers(true).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(Failure::from)?;
    tokio::spawn(connection.with_upgrades());
    sender.send_request(Request::from_parts(parts, Outgoing::Empty)).await.map_err(Failure::from)
}

/// Answers the client, and passes bytes on once both connections have changed their protocol.
fn join(mut answer: Response<Incoming>, client: OnUpgrade, exchange: Exchange) -> Response<Answer> {
    let status = answer.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        exchange.finish(status);
        strip_connection(answer.headers_mut());
        return answer.map(Answer::Refusal);
    }
    let function = hyper::upgrade::on(&mut answer);
    let (mut parts, _) = answer.into_parts();
    strip_connection(&mut parts.headers);
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    parts.headers.insert(header::UPGRADE, WEBSOCKET);
    tokio::spawn(async move {
        if let (Ok(client), Ok(function)) = tokio::join!(client, function) {
            // However it ends, both connections end with it.
            let _ = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(function)).await;
        }
        exchange.finish(status);
    });
    Response::from_parts(parts, Answer::Empty)
}
