//! KEDA as an external scaler meets it: which calls it makes in which order, what it makes of the answers, and over which
//! connections.
//!
//! Source: KEDA 2.20, pkg/scalers (external scaler): each poll asks for the specs, then for each metric the values and after
//! each of them whether it is active; calls go round robin over the addresses of the Service; a stream that ends well is opened
//! again after 2 s, one that fails after twice as long each time, up to a minute.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use scaler::keda::api::external_scaler_client::ExternalScalerClient;
use scaler::keda::api::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Status, Streaming};

/// Pause before a stream is opened again, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(1));

/// KEDA's end of one trigger.
#[derive(Debug)]
pub struct Keda {
    clients: Vec<ExternalScalerClient<Channel>>,
    next: AtomicUsize,
    trigger: ScaledObjectRef,
    index: usize,
}

/// How KEDA connects.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    addresses: Vec<SocketAddr>,
    tls: Option<ClientTlsConfig>,
    metadata: HashMap<String, String>,
}

/// What KEDA hands on to the autoscaler after a poll.
#[derive(Clone, Debug, PartialEq)]
pub struct Polled {
    /// Names that the autoscaler knows the metrics by, with what each replica is to have in thousandths.
    pub targets: Vec<(String, i64)>,
    /// Values in thousandths.
    pub values: Vec<i64>,
    /// Whether there should be any replica.
    pub is_active: bool,
}

impl Builder {
    /// KEDA believes the server of this authority, PEM.
    #[must_use]
    pub fn tls(mut self, authority: &str) -> Self {
        let config =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority)).domain_name("localhost");
        self.tls = Some(config);
        self
    }

    /// And shows a certificate of its own, PEM.
    #[must_use]
    pub fn identity(mut self, certificate: &str, key: &str) -> Self {
        self.tls = self.tls.map(|tls| tls.identity(Identity::from_pem(certificate, key)));
        self
    }

    /// One more key of the trigger's metadata.
    #[must_use]
    pub fn metadata(mut self, key: &str, value: &str) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// The trigger of a `ScaledObject` `name`.
    pub fn trigger(self, name: &str) -> Keda {
        let clients = self.clients();
        keda(clients, name, self.metadata)
    }

    /// The connections that all triggers for these addresses share.
    pub fn connect(self) -> Connection {
        Connection { clients: self.clients() }
    }

    /// Connects when the first call is made, as gRPC's clients do.
    fn clients(&self) -> Vec<ExternalScalerClient<Channel>> {
        let connect = |address: &SocketAddr| {
            let scheme = if self.tls.is_some() { "https" } else { "http" };
            let endpoint =
                Endpoint::from_shared(format!("{scheme}://{address}")).expect("an address is a URL");
            let endpoint = match &self.tls {
                Some(tls) => endpoint.tls_config(tls.clone()).expect("the certificates are PEM"),
                None => endpoint,
            };
            ExternalScalerClient::new(endpoint.connect_lazy())
        };
        self.addresses.iter().map(connect).collect()
    }
}

/// Connections to some scalers.
#[derive(Clone, Debug)]
pub struct Connection {
    clients: Vec<ExternalScalerClient<Channel>>,
}

impl Connection {
    /// One of many triggers over them: of a `ScaledObject` that has its function's name.
    pub fn trigger(&self, function: &str) -> Keda {
        keda(self.clients.clone(), function, HashMap::from([("function".into(), function.into())]))
    }
}

fn keda(
    clients: Vec<ExternalScalerClient<Channel>>,
    name: &str,
    scaler_metadata: HashMap<String, String>,
) -> Keda {
    let trigger = ScaledObjectRef { name: name.into(), namespace: "fn".into(), scaler_metadata };
    Keda { clients, next: AtomicUsize::new(0), trigger, index: 0 }
}

impl Keda {
    /// KEDA in front of scalers at these addresses, with a trigger for `function` that has KEDA's own keys too.
    pub fn at(addresses: &[SocketAddr], function: &str) -> Builder {
        let builder = Builder { addresses: addresses.into(), ..Builder::default() };
        builder.metadata("scalerAddress", "gpufn-scaler.gpufn:9090").metadata("function", function)
    }

    /// The same in another namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        self.trigger.namespace = namespace.into();
        self
    }

    fn client(&self) -> ExternalScalerClient<Channel> {
        let place = self.next.fetch_add(1, Ordering::Relaxed) % self.clients.len();
        self.clients[place].clone()
    }

    /// One round of its scale loop.
    pub async fn poll(&self) -> Result<Polled, Status> {
        let specs = self.specs().await?;
        let (mut values, mut is_active) = (Vec::new(), false);
        for spec in &specs {
            values.extend(self.metrics(&spec.metric_name).await?.iter().map(value));
            is_active |= self.is_active().await?;
        }
        let target = |spec: &MetricSpec| {
            // The float where there is one, else the number of old.
            let target =
                if spec.target_size_float > 0.0 { spec.target_size_float } else { whole(spec.target_size) };
            (format!("s{}-{}", self.index, spec.metric_name), thousandths(target))
        };
        Ok(Polled { targets: specs.iter().map(target).collect(), values, is_active })
    }

    /// The same, and how long its questions for the values and for activity took.
    pub async fn timed_poll(&self) -> Result<(Duration, Duration), Status> {
        let specs = self.specs().await?;
        let (mut values, mut activity) = (Duration::ZERO, Duration::ZERO);
        for spec in &specs {
            let start = Instant::now();
            self.metrics(&spec.metric_name).await?;
            values += start.elapsed();
            let start = Instant::now();
            self.is_active().await?;
            activity += start.elapsed();
        }
        Ok((values, activity))
    }

    /// `GetMetricSpec`.
    pub async fn specs(&self) -> Result<Vec<MetricSpec>, Status> {
        Ok(self.client().get_metric_spec(self.trigger.clone()).await?.into_inner().metric_specs)
    }

    /// `GetMetrics`.
    pub async fn metrics(&self, name: &str) -> Result<Vec<MetricValue>, Status> {
        let (scaled_object_ref, metric_name) = (Some(self.trigger.clone()), name.into());
        let request = GetMetricsRequest { scaled_object_ref, metric_name };
        let GetMetricsResponse { metric_values } = self.client().get_metrics(request).await?.into_inner();
        Ok(metric_values)
    }

    /// `IsActive`.
    pub async fn is_active(&self) -> Result<bool, Status> {
        Ok(self.client().is_active(self.trigger.clone()).await?.into_inner().result)
    }

    /// `StreamIsActive`, once.
    pub async fn stream(&self) -> Result<Streaming<IsActiveResponse>, Status> {
        Ok(self.client().stream_is_active(self.trigger.clone()).await?.into_inner())
    }

    /// `StreamMetricSpec`, once.
    pub async fn stream_specs(&self) -> Result<Streaming<GetMetricSpecResponse>, Status> {
        Ok(self.client().stream_metric_spec(self.trigger.clone()).await?.into_inner())
    }

    /// Follows `StreamIsActive` as a trigger `external-push` does: what it hears, and when, and where a stream ended (`None`).
    pub fn follow(&self) -> Followed {
        let (clients, trigger) = (self.clients.clone(), self.trigger.clone());
        let (says, heard) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let mut pause = BACK_OFF.0;
            for mut client in clients.into_iter().cycle() {
                let is_clean = match client.stream_is_active(trigger.clone()).await {
                    Ok(stream) => hear(stream.into_inner(), &says).await,
                    Err(_) => false,
                };
                if says.send((None, Instant::now())).is_err() {
                    return;
                }
                pause = if is_clean { BACK_OFF.0 } else { pause };
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(BACK_OFF.1);
            }
        });
        Followed { heard, task }
    }
}

/// Hands on what a stream says, and tells whether it ended without an error.
async fn hear(
    mut stream: Streaming<IsActiveResponse>,
    says: &mpsc::UnboundedSender<(Option<bool>, Instant)>,
) -> bool {
    loop {
        match stream.message().await {
            Ok(Some(said)) => drop(says.send((Some(said.result), Instant::now()))),
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// What a trigger `external-push` hears.
#[derive(Debug)]
pub struct Followed {
    heard: mpsc::UnboundedReceiver<(Option<bool>, Instant)>,
    task: JoinHandle<()>,
}

impl Followed {
    /// What it hears next, and when.
    pub async fn next(&mut self, patience: Duration) -> (Option<bool>, Instant) {
        let heard = tokio::time::timeout(patience, self.heard.recv()).await;
        heard.expect("something is heard in time").expect("it is followed")
    }

    /// Waits until it hears that there should be replicas, whatever it hears before. When it did.
    pub async fn until_active(&mut self, patience: Duration) -> Instant {
        let start = Instant::now();
        loop {
            let left = patience.checked_sub(start.elapsed()).expect("it is active in time");
            if let (Some(true), at) = self.next(left).await {
                return at;
            }
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A value as KEDA hands it on: the float where it is not zero, else the number of old; in thousandths.
fn value(value: &MetricValue) -> i64 {
    let float = value.metric_value_float;
    thousandths(if float > 0.0 { float } else { whole(value.metric_value) })
}

#[allow(clippy::cast_precision_loss)] // As KEDA does.
fn whole(number: i64) -> f64 {
    number as f64
}

#[allow(clippy::cast_possible_truncation)] // As KEDA does.
fn thousandths(number: f64) -> i64 {
    (number * 1e3) as i64
}
