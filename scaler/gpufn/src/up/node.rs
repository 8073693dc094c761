//! The node agent's control API over its unix socket, as a client.
//!
//! Each call is a connection of its own with a deadline: a node agent that hangs or restarts costs one call, never
//! the control loop.

use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use gpu_share::binding::BindingId;
use gpu_share::protocol::{Bind, Bound, Event, Granted, NodeStatus, Problem, SetGrant};
use gpu_share::units::Quota;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// Longest call.
const DEADLINE: Duration = Duration::from_secs(1);
/// Longest answer.
const ANSWER_MAX: usize = 16 << 20;

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    /// No answer, or none that makes sense.
    #[error("node agent does not answer: {0}")]
    Unreachable(String),
    /// The agent said no.
    #[error("{error}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// Its reason.
        error: String,
    },
}

impl NodeError {
    #[allow(clippy::needless_pass_by_value)] // It is handed to `map_err`, which gives values.
    fn unreachable(error: impl core::fmt::Display) -> Self {
        Self::Unreachable(error.to_string())
    }

    /// Whether it is for want of room.
    pub(crate) fn is_no_room(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::CONFLICT, .. })
    }
}

/// A node agent.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    socket: PathBuf,
}

impl Node {
    /// The agent whose control socket is at `socket`.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The whole node.
    pub(crate) async fn status(&self) -> Result<NodeStatus, NodeError> {
        self.call(Method::GET, "/v1/status", &()).await
    }

    /// Binds a share.
    pub(crate) async fn bind(&self, bind: &Bind) -> Result<Bound, NodeError> {
        self.call(Method::POST, "/v1/bindings", bind).await
    }

    /// Ends a binding.
    pub(crate) async fn release(&self, id: &BindingId) -> Result<(), NodeError> {
        self.answer(Method::DELETE, &format!("/v1/bindings/{id}"), Bytes::new()).await.map(drop)
    }

    /// Changes a quota, to zero to park; returns what the binding has now.
    pub(crate) async fn grant(&self, id: &BindingId, quota: Quota) -> Result<Quota, NodeError> {
        let path = format!("/v1/bindings/{id}/grant");
        let granted: Granted = self.call(Method::PUT, &path, &SetGrant { quota }).await?;
        Ok(granted.grant)
    }

    /// Hands over each event as it comes, until the agent goes away.
    pub(crate) async fn events(&self, mut handle: impl FnMut(Event)) -> Result<(), NodeError> {
        let opened = tokio::time::timeout(DEADLINE, self.send(Method::GET, "/v1/events", Bytes::new()));
        let mut body = opened.await.map_err(NodeError::unreachable)??.into_body();
        let mut buffer = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(NodeError::unreachable)?;
            buffer.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end + 1);
                match serde_json::from_slice(&line) {
                    Ok(event) => handle(event),
                    Err(error) => {
                        tracing::debug!(%error, "The node agent told of an event of an unknown kind.");
                    }
                }
            }
        }
        Ok(())
    }

    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<T, NodeError> {
        let body = if method == Method::GET { Vec::new() } else { to_json(body)? };
        let answer = self.answer(method, path, body.into()).await?;
        serde_json::from_slice(&answer).map_err(NodeError::unreachable)
    }

    async fn answer(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, NodeError> {
        tokio::time::timeout(DEADLINE, async {
            let response = self.send(method, path, body).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
            let body = body.map_err(NodeError::unreachable)?.to_bytes();
            if status.is_success() { Ok(body) } else { Err(refused(status, &body)) }
        })
        .await
        .map_err(|_| NodeError::unreachable(format!("no answer within {} s", DEADLINE.as_secs())))?
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<http::Response<Incoming>, NodeError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(NodeError::unreachable)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(NodeError::unreachable)?;
        // Ends by itself when the answer has been read and the sender is dropped.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "node")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(NodeError::unreachable)?;
        sender.send_request(request).await.map_err(NodeError::unreachable)
    }
}

fn to_json(body: &impl Serialize) -> Result<Vec<u8>, NodeError> {
    serde_json::to_vec(body).map_err(NodeError::unreachable)
}

fn refused(status: StatusCode, body: &[u8]) -> NodeError {
    let error = serde_json::from_slice::<Problem>(body).map(|problem| problem.error);
    NodeError::Refused { status, error: error.unwrap_or_else(|_| format!("node agent answered {status}")) }
}
