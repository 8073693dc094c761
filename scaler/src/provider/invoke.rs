//! A request to a function: to a replica and back, with bodies that stream both ways.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{StatusCode, header};
use axum::response::Response;
use openfaas::calls::{self, Call, Guard, Lent, Target, guarded, refuse};
use openfaas::names::FunctionId;

use super::Role;
use super::api::App;
use super::functions::{Function, Seat};
use super::metrics::Metrics;

/// Replicas that are tried, one after the other, where one can't be reached.
const TRIES: usize = 3;
/// What is waited beyond the function's own limit, which its watchdog keeps.
const GRACE: Duration = Duration::from_secs(5);

/// `/function/{name}[.{namespace}]/{rest}`.
pub(super) async fn invoke(State(app): State<App>, mut request: Request) -> Response {
    let call = Call::of(request.headers());
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    calls::note_origin(request.headers_mut(), peer);
    call.mark(request.headers_mut());
    let mut response = match Target::of(&request, "/function/", &app.cluster.settings.namespace) {
        Ok(Target { name, namespace, path }) => {
            let id = FunctionId { namespace, name };
            match app.cluster.functions.get(&id) {
                Some(function) => {
                    function.requests.fetch_add(1, Ordering::Relaxed);
                    let mut visit = Visit::begin(&app, &function);
                    let response = forward(&app, &function, &mut visit, request, path).await;
                    visit.status = Some(response.status());
                    guarded(response, visit)
                }
                None => unknown(app.cluster.settings.role, &id),
            }
        }
        Err(refusal) => *refusal,
    };
    call.mark(response.headers_mut());
    response
}

/// Gateways and providers answer differently; clients of each rely on it.
fn unknown(role: Role, id: &FunctionId) -> Response {
    match role {
        Role::Provider => {
            refuse(StatusCode::SERVICE_UNAVAILABLE, &format!("No endpoints available for: {id}."))
        }
        Role::Gateway => {
            refuse(StatusCode::NOT_FOUND, &format!("error finding function {id}: it does not exist"))
        }
    }
}

async fn forward(
    app: &App,
    function: &Arc<Function>,
    visit: &mut Visit,
    request: Request,
    path: PathAndQuery,
) -> Response {
    let label = &function.label;
    let kind = request.headers().get(header::CONTENT_TYPE).cloned();
    let limit = function.facts().and_then(|facts| facts.exec_timeout);
    let (head, body) = request.into_parts();
    let body = Lent::new(body);
    for _ in 0..TRIES {
        let address = match app.waker.seat(function).await {
            Ok(seat) => visit.sit(seat),
            Err(refusal) => return refusal,
        };
        let mut request = Request::from_parts(head.clone(), Body::new(body.clone()));
        let to = (address, app.cluster.settings.port).into();
        if calls::readdress(&mut request, to, path.clone()).is_none() {
            return refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                &format!("Failed to resolve service: {label}."),
            );
        }
        let answered = tokio::select! {
            answered = app.client.request(request) => answered,
            () = patience(limit) => {
                let why = format!("no answer of {label} within its exec_timeout");
                return refuse(StatusCode::GATEWAY_TIMEOUT, &why);
            }
        };
        match answered {
            Ok(response) => return calls::pass_on(response, kind),
            Err(error) => {
                tracing::debug!(function = label, %address, %error, "a replica can't be reached");
                // It has got nothing of it, so another may.
                if !(error.is_connect() && body.is_whole()) {
                    break;
                }
                function.shun(address);
            }
        }
    }
    let status = match app.cluster.settings.role {
        Role::Provider => StatusCode::INTERNAL_SERVER_ERROR,
        Role::Gateway => StatusCode::BAD_GATEWAY,
    };
    refuse(status, &format!("Can't reach service for: {label}."))
}

/// Ends when the function's limit and a little more are over; never if there is no limit.
async fn patience(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit + GRACE).await,
        None => std::future::pending().await,
    }
}

/// One request from its arrival to the last byte of its answer; counted when dropped.
struct Visit {
    metrics: Arc<Metrics>,
    label: String,
    arrived: Instant,
    status: Option<StatusCode>,
    seat: Option<Seat>,
}

impl Visit {
    fn begin(app: &App, function: &Function) -> Self {
        app.metrics.started(&function.label);
        Self {
            metrics: app.metrics.clone(),
            label: function.label.clone(),
            arrived: Instant::now(),
            status: None,
            seat: None,
        }
    }

    fn sit(&mut self, seat: Seat) -> IpAddr {
        let address = seat.address;
        self.seat = Some(seat);
        address
    }
}

impl Guard for Visit {}

impl Drop for Visit {
    fn drop(&mut self) {
        // 499 as nginx has it: the client was gone before there was an answer.
        let code = self.status.as_ref().map_or("499", StatusCode::as_str);
        self.metrics.finished(&self.label, code, self.arrived.elapsed());
    }
}
