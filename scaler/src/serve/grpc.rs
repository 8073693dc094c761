//! KEDA's protocol: who is meant, on what terms, and what is told.
//!
//! Each call is answered from the board at once. Where nothing is known the answer is an error: then the autoscaler leaves the
//! replicas as they are, while a zero would remove them.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::board::{Board, Unknown};
use super::metrics::Metrics;
use super::streams::{self, Answers, Follower};
use crate::keda::api::external_scaler_server::ExternalScaler;
use crate::keda::api::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
};
use crate::keda::metadata::Terms;
use crate::keda::metric;
use crate::need::Need;

/// The service.
#[derive(Clone, Debug)]
pub(super) struct Scaler {
    pub(super) board: Arc<Board>,
    pub(super) metrics: Arc<Metrics>,
    /// Ends streams.
    pub(super) stop: CancellationToken,
}

/// Who asks, for which function.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) namespace: String,
    /// The `ScaledObject`'s name.
    pub(super) asker: String,
    pub(super) terms: Terms,
}

impl Asked {
    /// Checks who is meant.
    fn read(reference: ScaledObjectRef) -> Result<Self, Status> {
        let ScaledObjectRef { name, namespace, scaler_metadata } = reference;
        if name.is_empty() || namespace.is_empty() {
            let message = format!(
                "the ScaledObject is {:?}, allowed is one with a name and a namespace",
                format!("{namespace}/{name}")
            );
            return Err(Status::invalid_argument(message));
        }
        let terms = Terms::read(&namespace, &scaler_metadata)
            .map_err(|invalid| Status::invalid_argument(invalid.to_string()))?;
        Ok(Self { namespace, asker: name, terms })
    }
}

impl Scaler {
    /// Answers a call and measures it.
    fn answer<T>(
        &self,
        call: &str,
        answer: impl FnOnce() -> Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        let _timer = self.metrics.call(call);
        answer().map(Response::new).inspect_err(|status| self.metrics.call_failed(call, status.code()))
    }

    fn need(&self, asked: &Asked) -> Result<Need, Status> {
        self.board.need(&asked.namespace, &asked.asker, &asked.terms).map_err(status)
    }

    fn spec(&self, reference: ScaledObjectRef) -> Result<GetMetricSpecResponse, Status> {
        let asked = Asked::read(reference)?;
        // An autoscaler for what does not exist is told at once, not when its first value is asked for.
        self.board.follow(&asked.namespace, &asked.terms).map_err(status)?;
        Ok(spec())
    }
}

#[tonic::async_trait]
impl ExternalScaler for Scaler {
    type StreamIsActiveStream = Answers<IsActiveResponse>;
    type StreamMetricSpecStream = Answers<GetMetricSpecResponse>;

    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        self.answer("IsActive", || {
            let result = self.need(&Asked::read(request.into_inner())?)?.is_active;
            Ok(IsActiveResponse { result })
        })
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        self.answer("StreamIsActive", || {
            let asked = Asked::read(request.into_inner())?;
            let changed = self.board.follow(&asked.namespace, &asked.terms).map_err(status)?;
            let open = self.metrics.stream("StreamIsActive");
            let (board, stop) = (Arc::clone(&self.board), self.stop.clone());
            Ok(Follower::new(board, asked, changed, stop, open).stream())
        })
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        self.answer("GetMetricSpec", || self.spec(request.into_inner()))
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        self.answer("GetMetrics", || {
            let GetMetricsRequest { scaled_object_ref, metric_name } = request.into_inner();
            let asked = Asked::read(scaled_object_ref.unwrap_or_default())?;
            if !metric_name.is_empty() && metric_name != metric::NAME {
                let message = format!("metricName is {metric_name:?}, allowed is {:?}", metric::NAME);
                return Err(Status::not_found(message));
            }
            let value = self.need(&asked)?.value;
            let metric_name = metric::NAME.into();
            let metric_value = metric::whole(value);
            Ok(GetMetricsResponse {
                metric_values: vec![MetricValue { metric_name, metric_value, metric_value_float: value }],
            })
        })
    }

    async fn stream_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamMetricSpecStream>, Status> {
        self.answer("StreamMetricSpec", || {
            let spec = self.spec(request.into_inner())?;
            Ok(streams::constant(spec, self.stop.clone(), self.metrics.stream("StreamMetricSpec")))
        })
    }
}

/// One metric, the same for all functions and at all times: see [`metric`].
fn spec() -> GetMetricSpecResponse {
    let spec = MetricSpec {
        metric_name: metric::NAME.into(),
        target_size: metric::whole(metric::TARGET),
        target_size_float: metric::TARGET,
    };
    GetMetricSpecResponse { metric_specs: vec![spec] }
}

/// What is not known, as KEDA is told.
#[allow(clippy::needless_pass_by_value)] // For `map_err`.
fn status(unknown: Unknown) -> Status {
    let message = unknown.to_string();
    match unknown {
        Unknown::NotListed | Unknown::NotRead(_) | Unknown::Stale { .. } => Status::unavailable(message),
        Unknown::NoFunction(_) => Status::not_found(message),
        Unknown::Wish(_) => Status::failed_precondition(message),
    }
}
