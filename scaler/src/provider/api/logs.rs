//! `/system/logs`: lines of a function as newline-separated JSON, what there is or all that comes.

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt as _;
use openfaas::answers::Refusal;
use openfaas::logs::{CONTENT_TYPE, Query};
use openfaas::names::FunctionId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::App;
use crate::provider::pod_logs::{AHEAD, PodLogs};

pub(super) async fn logs(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query = Query::read(query.as_deref().unwrap_or_default())?;
    let id = FunctionId { namespace: app.cluster.namespace(&query.namespace)?, name: query.name.clone() };
    let missing = || Refusal::new(StatusCode::NOT_FOUND, "function not found");
    let function = app.cluster.functions.get(&id).ok_or_else(missing)?;
    let reader = PodLogs { client: app.cluster.client.clone(), stop: app.stop.clone() };
    let (out, lines) = mpsc::channel(AHEAD);
    tokio::spawn(reader.send(function, query, out));
    let lines = ReceiverStream::new(lines).map(Ok::<_, std::convert::Infallible>);
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    Ok(response)
}
