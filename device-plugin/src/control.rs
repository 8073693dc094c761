//! The control API: HTTP with JSON bodies on a socket that only the agent's user may open.
//!
//! Owns routes, status codes and the form of errors. Requests are forwarded to the owner; nothing is decided here.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{self, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use gpu_share::binding::{Binding, BindingId, GpuId};
use gpu_share::ledger::Refusal;
use gpu_share::protocol::{Bind, Bound, Event, Granted, Health, NodeStatus, Problem, SetGrant};
use gpu_share::units::{Quota, Units};
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, oneshot, watch};

use crate::metrics::Metrics;
use crate::node::GpuOffer;
use crate::owner::{ControlError, Message, Observation, Reply, Reshape};
use crate::reactor::Sender;

/// Asks the node agent's owner. What the control socket serves, and what a program that embeds the agent calls.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) owner: Sender<Message>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) health: watch::Receiver<BTreeMap<GpuId, Health>>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Handle {
    /// Binds a share; returns once that is on the disk.
    pub async fn bind(&self, bind: Bind) -> Result<Bound, ControlError> {
        self.ask(|reply| Message::Bind(bind, reply)).await
    }

    /// Ends a binding and the connections of its processes.
    pub async fn release(&self, id: BindingId) -> Result<(), ControlError> {
        self.ask(|reply| Message::Release(id, Some(reply))).await
    }

    /// The same, for who has nothing to wait for: it is on the disk with the next binding, or soon. An agent that starts after
    /// a crash before that has the binding still, and releases it when it finds its container gone.
    pub(crate) fn release_unwaited(&self, id: BindingId) -> Result<(), ControlError> {
        self.owner.send(Message::Release(id, None)).map_err(|_| ControlError::Stopped)
    }

    /// Changes a binding's quota, zero to park it.
    pub async fn set_grant(&self, id: BindingId, quota: Quota) -> Result<Granted, ControlError> {
        self.ask(|reply| Message::SetGrant(id, quota, reply)).await
    }

    /// Binds a share on `gpu`, in whatever form fits there; returns once that is on the disk.
    pub async fn bind_on(&self, gpu: GpuId, bind: Bind) -> Result<Bound, ControlError> {
        self.ask(|reply| Message::BindOn(gpu, bind, reply)).await
    }

    /// Changes whom a binding is for and what it may use; its page has it when this returns.
    pub async fn reshape(&self, id: BindingId, reshape: Reshape) -> Result<Bound, ControlError> {
        self.ask(|reply| Message::Reshape(id, Box::new(reshape), reply)).await
    }

    /// Takes over a binding of an earlier agent whose checkpoint is lost, if it still fits exactly there.
    pub async fn restore(&self, binding: Binding) -> Result<(), ControlError> {
        self.ask(|reply| Message::Restore(Box::new(binding), reply)).await
    }

    /// The units of each GPU as a scheduler should see them, where `allocated` are with containers and nobody asks for fewer
    /// than `smallest`.
    pub async fn offers(
        &self,
        allocated: BTreeMap<GpuId, Units>,
        smallest: Units,
    ) -> Result<Vec<GpuOffer>, ControlError> {
        self.ask(|reply| Message::Offers(allocated, smallest, reply)).await
    }

    /// The node as it is now.
    pub async fn status(&self) -> Result<NodeStatus, ControlError> {
        Ok(self.observe().await?.status)
    }

    /// The node as it is now, with what its arbiters did.
    pub async fn observe(&self) -> Result<Observation, ControlError> {
        self.ask(Message::Observe).await
    }

    /// Which bindings have processes.
    pub(crate) async fn busy(&self) -> Result<BTreeSet<BindingId>, ControlError> {
        self.ask(Message::Busy).await
    }

    /// How each GPU is, now and with each change: what decides which units a kubelet may give away.
    pub fn health(&self) -> watch::Receiver<BTreeMap<GpuId, Health>> {
        self.health.clone()
    }

    /// What is counted, for a front end's part of it.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Events from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    async fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> Message) -> Result<T, ControlError> {
        let (reply, answer) = oneshot::channel();
        // The owner takes messages within microseconds, so a full queue does not block for long.
        self.owner.send(message(reply)).map_err(|_| ControlError::Stopped)?;
        answer.await.map_err(|_| ControlError::Stopped)?
    }
}

/// Listens at `path`, for the agent's user only.
pub(crate) fn listen(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves the API until dropped.
pub(crate) async fn serve(listener: std::os::unix::net::UnixListener, handle: Handle) -> io::Result<()> {
    axum::serve(UnixListener::from_std(listener)?, router(handle)).await
}

fn router(handle: Handle) -> Router {
    Router::new()
        .route("/healthz", get(health))
        .route("/v1/status", get(status))
        .route("/v1/bindings", post(bind))
        .route("/v1/bindings/{id}", delete(release))
        .route("/v1/bindings/{id}/grant", put(set_grant))
        .route("/v1/events", get(events))
        .fallback(async || Failure::new(StatusCode::NOT_FOUND, &"there is no such path"))
        .method_not_allowed_fallback(async || {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, &"the path does not allow this method")
        })
        .with_state(handle)
}

/// An error response.
struct Failure(StatusCode, Problem);

impl Failure {
    fn new(status: StatusCode, error: &impl ToString) -> Self {
        Self(status, Problem { error: error.to_string() })
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        let status = match &error {
            ControlError::Refused(Refusal::Unknown(_) | Refusal::UnknownGpu(_)) => StatusCode::NOT_FOUND,
            ControlError::Refused(Refusal::NoRoom { .. } | Refusal::Exists(_) | Refusal::Unhealthy(_)) => {
                StatusCode::CONFLICT
            }
            ControlError::State(_) => StatusCode::INTERNAL_SERVER_ERROR,
            ControlError::Mps(_) | ControlError::Stopped => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, &error)
    }
}

fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::new(StatusCode::BAD_REQUEST, &format!("body is not of the expected form: {error}"))
    })
}

fn id(name: String) -> Result<BindingId, Failure> {
    name.try_into().map_err(|error| Failure::new(StatusCode::BAD_REQUEST, &error))
}

/// Whether the owner answers.
pub(crate) async fn health(State(handle): State<Handle>) -> Result<&'static str, StatusCode> {
    handle.observe().await.map(|_| "ok\n").map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
}

async fn status(State(handle): State<Handle>) -> Result<Json<NodeStatus>, Failure> {
    Ok(Json(handle.status().await?))
}

async fn bind(State(handle): State<Handle>, body: Bytes) -> Result<(StatusCode, Json<Bound>), Failure> {
    Ok((StatusCode::CREATED, Json(handle.bind(read(&body)?).await?)))
}

async fn release(
    State(handle): State<Handle>,
    extract::Path(name): extract::Path<String>,
) -> Result<StatusCode, Failure> {
    handle.release(id(name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn set_grant(
    State(handle): State<Handle>,
    extract::Path(name): extract::Path<String>,
    body: Bytes,
) -> Result<Json<Granted>, Failure> {
    let SetGrant { quota } = read(&body)?;
    Ok(Json(handle.set_grant(id(name)?, quota).await?))
}

/// One JSON line per event. A listener that falls behind misses events, and is told so by the end of the stream.
async fn events(State(handle): State<Handle>) -> Response {
    let stream = futures_util::stream::unfold(handle.events(), async |mut events| {
        let event = match events.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(_) | RecvError::Closed) => return None,
        };
        let mut line = serde_json::to_vec(&event).ok()?;
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), events))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream)).into_response()
}
