//! `gpufn-scaler serve` as KEDA meets it: a client of KEDA's shape in front, an API server and watchdogs behind.
// A test ends where something is wrong with it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tests::apiserver::ApiServer;
use tests::keda::Keda;
use tests::process::{kill, resume};
use tests::scaler::{Builder, Scaler};
use tests::wait::until;
use tests::watchdogs::{Gateway, Prometheus, Watchdogs};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServiceResponse};

const PATIENCE: Duration = Duration::from_secs(20);
/// What the function of the tests asks for.
const SHARED: [(&str, &str); 4] =
    [("sm", "50"), ("quota", "40"), ("quota-limit", "40"), ("slo", "p95<250ms")];

/// One function with replicas that are ready.
struct Stage {
    cluster: ApiServer,
    watchdogs: Watchdogs,
}

impl Stage {
    async fn with(replicas: u8) -> Self {
        let (cluster, watchdogs) = (ApiServer::start().await, Watchdogs::start(replicas.max(1)).await);
        cluster.put_deployment("resnet", replicas.into(), &SHARED);
        for place in 0..replicas {
            cluster.put_replica("resnet", &format!("resnet-{place}"), watchdogs.address(place), true);
        }
        Self { cluster, watchdogs }
    }

    fn builder(&self) -> Builder {
        Scaler::builder(&self.cluster).with("--watchdog-port", &self.watchdogs.port)
    }

    async fn scaler(&self) -> Scaler {
        let scaler = self.builder().start().await;
        scaler.until_read("resnet").await;
        scaler
    }
}

fn keda(scaler: &Scaler) -> Keda {
    Keda::at(&[scaler.grpc], "resnet").trigger("resnet")
}

fn code<T: std::fmt::Debug>(answer: Result<T, tonic::Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), status.message().to_string())
}

#[tokio::test]
async fn a_poll_goes_as_keda_s_does_and_the_target_is_always_the_same() {
    let stage = Stage::with(1).await;
    let scaler = stage.scaler().await;
    let first = keda(&scaler).poll().await.unwrap();
    assert_eq!(first.targets, [("s0-gpufn-demand".to_string(), 100_000)]);
    assert!(first.targets[0].0.len() <= 63);
    stage.watchdogs.show(0, |shown| shown.in_flight = 30);
    let later = until("the load to be told", PATIENCE, async || {
        let polled = keda(&scaler).poll().await.unwrap();
        (polled.values[0] > 100_000).then_some(polled)
    })
    .await;
    assert_eq!(later.targets, first.targets);
    assert!(later.is_active);
    let spec = &keda(&scaler).specs().await.unwrap()[0];
    assert_eq!((spec.target_size, spec.target_size_float), (100, 100.0));
}

#[tokio::test]
async fn the_metric_is_told_by_its_name_or_without_one_and_no_other_is() {
    let stage = Stage::with(1).await;
    let scaler = stage.scaler().await;
    let keda = keda(&scaler);
    let known = keda.metrics("gpufn-demand").await.unwrap();
    assert_eq!(known.len(), 1);
    assert_eq!(keda.metrics("").await.unwrap().len(), 1);
    let (code, message) = code(keda.metrics("cpu").await);
    assert_eq!(
        (code, message.as_str()),
        (Code::NotFound, "metricName is \"cpu\", allowed is \"gpufn-demand\"")
    );
}

#[tokio::test]
async fn a_function_without_replicas_and_requests_is_zero_in_both_fields_and_not_active() {
    let stage = Stage::with(0).await;
    let scaler = stage.scaler().await;
    let value = &keda(&scaler).metrics("gpufn-demand").await.unwrap()[0];
    assert_eq!((value.metric_value, value.metric_value_float), (0, 0.0));
    assert!(!keda(&scaler).is_active().await.unwrap());
}

/// The shortest of several spans: what others on this machine do delays some, what is slow by itself delays all.
fn shortest(spans: &[Duration]) -> Duration {
    spans.iter().copied().min().unwrap()
}

#[tokio::test]
async fn the_first_queued_request_makes_it_active_within_fifty_milliseconds() {
    let stage = Stage::with(5).await;
    for place in 0..5 {
        // A function each. What has replicas is active until it has been watched for a while, so they have none.
        let name = format!("f{place}");
        stage.cluster.put_deployment(&name, 0, &SHARED);
        stage.cluster.put_replica(&name, &format!("{name}-0"), stage.watchdogs.address(place), true);
    }
    let scaler = stage.scaler().await;
    let mut spans = Vec::new();
    for place in 0..5 {
        let keda = Keda::at(&[scaler.grpc], &format!("f{place}")).trigger("so");
        assert!(!keda.is_active().await.unwrap());
        let mut followed = keda.follow();
        assert_eq!(followed.next(PATIENCE).await.0, Some(false));
        let queued = Instant::now();
        stage.watchdogs.show(place, |shown| (shown.in_flight, shown.waiting) = (1, 1));
        spans.push(followed.until_active(PATIENCE).await - queued);
        assert!(keda.is_active().await.unwrap());
    }
    assert!(shortest(&spans) <= Duration::from_millis(50), "{spans:?}");
}

#[tokio::test]
async fn requests_held_for_a_first_replica_are_pushed_within_twenty_milliseconds() {
    let stage = Stage::with(0).await;
    // Nothing is read in this time: only what is told can be pushed.
    let scaler = stage.builder().with("--period", "1m").start().await;
    let mut followed = keda(&scaler).follow();
    assert_eq!(followed.next(PATIENCE).await.0, Some(false));
    let mut spans = Vec::new();
    for _ in 0..5 {
        let held = Instant::now();
        assert_eq!(scaler.hold("resnet", 1).await, reqwest::StatusCode::NO_CONTENT);
        spans.push(followed.until_active(PATIENCE).await - held);
        assert!(keda(&scaler).poll().await.unwrap().values[0] > 0);
        assert_eq!(scaler.hold("resnet", 0).await, reqwest::StatusCode::NO_CONTENT);
        while followed.next(PATIENCE).await.0 != Some(false) {}
    }
    assert!(shortest(&spans) <= Duration::from_millis(20), "{spans:?}");
    // KEDA may have dropped what it heard, so it is said again while there is no replica.
    scaler.hold("resnet", 1).await;
    followed.until_active(PATIENCE).await;
    followed.until_active(Duration::from_secs(5)).await;
    assert_eq!(scaler.hold("nobody", 1).await, reqwest::StatusCode::NOT_FOUND);
    assert_eq!(scaler.hold("resnet", 4_000_000).await, reqwest::StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn the_specs_are_streamed_at_once_as_they_are_answered() {
    let stage = Stage::with(1).await;
    let scaler = stage.scaler().await;
    let mut stream = keda(&scaler).stream_specs().await.unwrap();
    let told = tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(told.metric_specs, keda(&scaler).specs().await.unwrap());
}

#[tokio::test]
async fn a_stream_is_closed_when_keda_cancels_it() {
    let stage = Stage::with(1).await;
    let scaler = stage.scaler().await;
    let streams = async || {
        let text = scaler.get("/metrics").await.1;
        let line =
            text.lines().find(|line| line.starts_with("gpufn_scaler_streams{call=\"StreamIsActive\"}"));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    };
    let stream = keda(&scaler).stream().await.unwrap();
    until("a stream to be open", PATIENCE, async || (streams().await == 1).then_some(())).await;
    drop(stream);
    until("no stream to be open", PATIENCE, async || (streams().await == 0).then_some(())).await;
}

#[tokio::test]
async fn hundreds_of_streams_on_one_connection_leave_room_for_calls() {
    let stage = Stage::with(1).await;
    let scaler = stage.scaler().await;
    let keda = keda(&scaler);
    let mut streams = Vec::new();
    // KEDA has one connection for all triggers of an address, with two streams for each.
    for _ in 0..300 {
        let mut stream = keda.stream().await.unwrap();
        assert!(stream.message().await.unwrap().is_some());
        streams.push((stream, keda.stream_specs().await.unwrap()));
    }
    assert!(tokio::time::timeout(PATIENCE, keda.poll()).await.unwrap().is_ok());
}

#[tokio::test]
#[ignore = "takes more than a minute"]
async fn a_stream_survives_a_minute_in_which_nothing_happens() {
    let stage = Stage::with(0).await;
    let scaler = stage.scaler().await;
    let mut stream = keda(&scaler).stream().await.unwrap();
    assert!(!stream.message().await.unwrap().unwrap().result);
    let idle = tokio::time::timeout(Duration::from_secs(65), stream.message()).await;
    assert!(idle.is_err(), "nothing is said, and the stream stays open: {idle:?}");
    scaler.hold("resnet", 1).await;
    assert!(tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap().result);
}

#[tokio::test]
async fn wrong_metadata_is_refused_with_its_key() {
    let stage = Stage::with(1).await;
    let scaler = stage.scaler().await;
    let with = |key, value| Keda::at(&[scaler.grpc], "resnet").metadata(key, value).trigger("so");
    for (key, value) in
        [("slo", "soon"), ("concurrency", "0"), ("activationTarget", "-1"), ("function", "Résnet")]
    {
        let (code, message) = code(with(key, value).poll().await);
        assert_eq!(code, Code::InvalidArgument);
        assert!(message.starts_with(&format!("{key} is {value:?}, allowed is ")), "{message}");
    }
    let (unknown, message) = code(with("threshold", "5").is_active().await);
    assert_eq!(unknown, Code::InvalidArgument);
    assert!(message.contains("\"threshold\""), "{message}");
    let (stream, _) = code(with("slo", "soon").stream().await);
    assert_eq!(stream, Code::InvalidArgument);
    assert!(with("functionFromEnv", "other").poll().await.is_ok(), "a plain key goes first");
}

#[tokio::test]
async fn a_function_that_does_not_exist_or_asks_for_nonsense_is_said_to() {
    let stage = Stage::with(1).await;
    let scaler = stage.scaler().await;
    let (missing, message) = code(Keda::at(&[scaler.grpc], "bert").trigger("bert").poll().await);
    assert_eq!(missing, Code::NotFound);
    assert!(message.starts_with("function is \"bert\", allowed is a Deployment"), "{message}");
    stage.cluster.put_deployment("odd", 1, &[("sm", "900")]);
    let odd = Keda::at(&[scaler.grpc], "odd").trigger("odd");
    until("the wrong annotation to be refused", PATIENCE, async || {
        let status = odd.poll().await.err()?;
        (status.code() == Code::FailedPrecondition).then(|| {
            assert!(status.message().contains("gpufn.dev/sm is \"900\""), "{}", status.message());
        })
    })
    .await;
}

#[tokio::test]
async fn a_tenant_is_told_nothing_of_another_namespace() {
    let stage = Stage::with(1).await;
    stage.cluster.put_deployment_in("bank", "secret", 3, &SHARED);
    let scaler = stage.scaler().await;
    until("the other function to be known", PATIENCE, async || {
        scaler.get("/v1/functions").await.1.contains("secret").then_some(())
    })
    .await;
    let (by_name, _) = code(Keda::at(&[scaler.grpc], "secret").trigger("so").poll().await);
    assert_eq!(by_name, Code::NotFound);
    let claimed = Keda::at(&[scaler.grpc], "secret").metadata("namespace", "bank").trigger("so");
    let (by_key, message) = code(claimed.poll().await);
    assert_eq!(by_key, Code::InvalidArgument);
    assert!(message.contains("allowed is that of the ScaledObject, \"fn\""), "{message}");
    assert!(Keda::at(&[scaler.grpc], "secret").trigger("so").in_namespace("bank").specs().await.is_ok());
}

#[tokio::test]
async fn three_scalers_behind_round_robin_say_the_same() {
    let stage = Stage::with(3).await;
    stage.watchdogs.show_all(|shown| (shown.rate, shown.share) = (40.0, Some((0.02, 0.4))));
    let mut scalers = Vec::new();
    for _ in 0..3 {
        let scaler = stage.builder().with("--period", "200ms").start().await;
        scaler.until_read("resnet").await;
        scalers.push(scaler);
    }
    let addresses: Vec<SocketAddr> = scalers.iter().map(|scaler| scaler.grpc).collect();
    let keda = Keda::at(&addresses, "resnet").metadata("maxReplicas", "50").trigger("resnet");
    // 120 requests a second of 20 ms at a quota of 40 % keep six replicas busy, and three are there.
    let (first, steady) = (Instant::now(), Duration::from_secs(20));
    let same = until("three answers that are the same within a twentieth", steady * 2, async || {
        let mut values = Vec::new();
        for _ in 0..3 {
            values.push(keda.metrics("gpufn-demand").await.unwrap()[0].metric_value_float);
        }
        let (least, most) =
            (values.iter().copied().fold(f64::MAX, f64::min), values.iter().copied().fold(0.0, f64::max));
        (least > 600.0 && most <= 1.05 * least && first.elapsed() > Duration::from_secs(8)).then_some(values)
    })
    .await;
    assert_eq!(same.len(), 3);
}

#[tokio::test]
async fn a_scaler_that_is_started_again_removes_nothing_and_knows_what_the_others_know() {
    let stage = Stage::with(3).await;
    let scaler = stage.scaler().await;
    assert_eq!(keda(&scaler).poll().await.unwrap().values, [300_000], "it has seen no request yet");
    kill(scaler.pid());
    drop(scaler);
    let again = stage.scaler().await;
    let polled = keda(&again).poll().await.unwrap();
    assert_eq!((polled.values, polled.is_active), (vec![300_000], true));
}

#[tokio::test]
async fn watchdogs_that_do_not_answer_are_an_error_and_never_no_load() {
    let stage = Stage::with(2).await;
    let scaler = stage.builder().with("--stale", "500ms").start().await;
    scaler.until_read("resnet").await;
    let before = keda(&scaler).poll().await.unwrap();
    // One of two is enough to tell.
    stage.watchdogs.show(0, |shown| shown.is_down = true);
    let settled = Instant::now();
    until("readings with one replica", PATIENCE, async || {
        let polled = keda(&scaler).poll().await.unwrap();
        assert_eq!(polled.values, before.values);
        (settled.elapsed() > Duration::from_secs(1)).then_some(())
    })
    .await;
    stage.watchdogs.show(1, |shown| shown.is_down = true);
    let status = until("an error", PATIENCE, async || keda(&scaler).poll().await.err()).await;
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with("the replicas of fn/resnet were last read"), "{}", status.message());
    assert_eq!(code(keda(&scaler).is_active().await).0, Code::Unavailable);
    assert!(keda(&scaler).specs().await.is_ok(), "the autoscaler's target does not depend on load");
    stage.watchdogs.show_all(|shown| shown.is_down = false);
    until("answers again", PATIENCE, async || keda(&scaler).poll().await.ok()).await;
}

#[tokio::test]
async fn an_api_server_that_is_gone_leaves_what_is_known() {
    let stage = Stage::with(2).await;
    let scaler = stage.builder().with("--stale", "1s").start().await;
    scaler.until_read("resnet").await;
    stage.cluster.hide_workloads();
    until("the scaler to notice", PATIENCE, async || {
        scaler.get("/metrics").await.1.contains("gpufn_scaler_api_server_up{kind=\"pods\"} 0").then_some(())
    })
    .await;
    stage.watchdogs.show_all(|shown| shown.in_flight = 40);
    until("the load to be told", PATIENCE, async || {
        (keda(&scaler).poll().await.unwrap().values[0] > 300_000).then_some(())
    })
    .await;
}

#[tokio::test]
async fn before_the_api_server_has_answered_nothing_is_told() {
    let cluster = ApiServer::start().await;
    cluster.hide_workloads();
    let scaler = Scaler::builder(&cluster).start_unready().await;
    assert_eq!(code(keda(&scaler).poll().await).0, Code::Unavailable);
    assert_eq!(scaler.get("/readyz").await.0, reqwest::StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(scaler.get("/healthz").await.0, reqwest::StatusCode::OK);
    assert_eq!(health(&scaler).await, NOT_SERVING);
}

#[tokio::test]
async fn replicas_that_start_are_not_taken_away() {
    let stage = Stage::with(1).await;
    stage.cluster.put_replica("resnet", "resnet-0", stage.watchdogs.address(0), false);
    let scaler = stage.builder().with("--stale", "100ms").start().await;
    let polled = until("an answer", PATIENCE, async || keda(&scaler).poll().await.ok()).await;
    assert_eq!((polled.values, polled.is_active), (vec![100_000], true));
}

#[tokio::test]
async fn load_is_read_from_a_prometheus() {
    let stage = Stage::with(1).await;
    let prometheus = Prometheus::start(&["resnet-0".into()]).await;
    let scaler = stage.builder().with("--prometheus", &prometheus.url).with("--stale", "500ms").start().await;
    scaler.until_read("resnet").await;
    prometheus.show(|shown| shown.in_flight = 21);
    // Little's law, until enough requests have shown their GPU time: 21 at hand, one at once for 70 % of the time.
    until("the load to be told", PATIENCE, async || {
        (keda(&scaler).poll().await.unwrap().values[0] > 700_000).then_some(())
    })
    .await;
    prometheus.show(|shown| shown.is_down = true);
    let status = until("an error", PATIENCE, async || keda(&scaler).poll().await.err()).await;
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn load_is_read_from_a_gateway_also_for_a_function_without_replicas() {
    let stage = Stage::with(0).await;
    let gateway = Gateway::start("resnet.fn").await;
    let scaler = stage.builder().with("--gateway", &gateway.url).start().await;
    scaler.until_read("resnet").await;
    let mut followed = keda(&scaler).follow();
    assert_eq!(followed.next(PATIENCE).await.0, Some(false));
    gateway.show(|shown| shown.in_flight = 3);
    followed.until_active(PATIENCE).await;
    // They wait for a first replica, and so say that one is needed.
    assert!(keda(&scaler).poll().await.unwrap().values[0] <= 100_000);
    stage.cluster.put_deployment("resnet", 1, &SHARED);
    stage.cluster.put_replica("resnet", "resnet-0", stage.watchdogs.address(0), true);
    until("the load to be told", PATIENCE, async || {
        (keda(&scaler).poll().await.unwrap().values[0] > 200_000).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_need_is_explained() {
    let stage = Stage::with(1).await;
    stage.watchdogs.show(0, |shown| (shown.rate, shown.share) = (50.0, Some((0.02, 0.4))));
    let scaler = stage.scaler().await;
    keda(&scaler).poll().await.unwrap();
    let plan = until("a plan", PATIENCE, async || {
        let explained = scaler.explain("resnet").await;
        (explained["needs"]["resnet"]["basis"] == "plan").then_some(explained)
    })
    .await;
    let need = &plan["needs"]["resnet"];
    assert!(need["reason"].as_str().unwrap().contains("ms of GPU time each and a quota of 40"), "{need}");
    let gpu = plan["gpu_milliseconds_per_request"].as_f64().unwrap();
    assert!((gpu - 20.0).abs() < 2.0, "{gpu} ms of GPU time are learnt from the watchdog");
    assert_eq!(scaler.get("/v1/functions/fn/nobody").await.0, reqwest::StatusCode::NOT_FOUND);
}

const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

async fn channel(scaler: &Scaler) -> Channel {
    Endpoint::from_shared(format!("http://{}", scaler.grpc)).unwrap().connect().await.unwrap()
}

async fn health(scaler: &Scaler) -> i32 {
    let service = "externalscaler.ExternalScaler".into();
    let mut client = HealthClient::new(channel(scaler).await);
    client.check(HealthCheckRequest { service }).await.unwrap().into_inner().status
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let stage = Stage::with(1).await;
    let scaler = stage.scaler().await;
    until("it to serve", PATIENCE, async || (health(&scaler).await == SERVING).then_some(())).await;
    let list = MessageRequest::ListServices(String::new());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut client = ServerReflectionClient::new(channel(&scaler).await);
    let answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(services) = answer else { panic!("{answer:?}") };
    let names: BTreeSet<_> = services.service.into_iter().map(|ServiceResponse { name }| name).collect();
    for service in ["externalscaler.ExternalScaler", "grpc.health.v1.Health"] {
        assert!(names.contains(service), "{names:?}");
    }
}

#[tokio::test]
async fn told_to_end_it_ends_streams_well_and_exits() {
    let stage = Stage::with(1).await;
    let scaler = stage.scaler().await;
    let mut stream = keda(&scaler).stream().await.unwrap();
    let mut specs = keda(&scaler).stream_specs().await.unwrap();
    assert!(stream.message().await.unwrap().is_some() && specs.message().await.unwrap().is_some());
    let asked = Instant::now();
    let ending = tokio::task::spawn_blocking(move || scaler.stop());
    assert_eq!(tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap(), None);
    assert_eq!(tokio::time::timeout(PATIENCE, specs.message()).await.unwrap().unwrap(), None);
    drop((stream, specs));
    let (status, by_itself) = ending.await.unwrap();
    assert!(status.success() && by_itself, "{status}");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
}

/// An authority that signs certificates of servers and clients.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key.
    fn sign(&self, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_string()]).unwrap();
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn server(&self, certificate: &Path, key: &Path) {
        let (chain, secret) = self.sign(ExtendedKeyUsagePurpose::ServerAuth);
        fs::write(key, secret).unwrap();
        fs::write(certificate, chain).unwrap();
    }
}

#[tokio::test]
async fn only_clients_that_the_authority_knows_may_ask_over_mutual_tls() {
    let (stage, authority, other) = (Stage::with(1).await, Authority::new(), Authority::new());
    let builder = stage.builder();
    let (certificate, key, ca) = (builder.path("tls.crt"), builder.path("tls.key"), builder.path("ca.crt"));
    authority.server(&certificate, &key);
    fs::write(&ca, &authority.pem).unwrap();
    let builder = builder.with("--tls-cert", &certificate.display()).with("--tls-key", &key.display());
    let scaler = builder.with("--tls-client-ca", &ca.display()).start().await;
    scaler.until_read("resnet").await;
    let keda = || Keda::at(&[scaler.grpc], "resnet").tls(&authority.pem);
    let (chain, secret) = authority.sign(ExtendedKeyUsagePurpose::ClientAuth);
    assert!(keda().identity(&chain, &secret).trigger("so").poll().await.is_ok());
    let (chain, secret) = other.sign(ExtendedKeyUsagePurpose::ClientAuth);
    assert!(keda().identity(&chain, &secret).trigger("so").poll().await.is_err(), "of another authority");
    assert!(keda().trigger("so").poll().await.is_err(), "without a certificate");
    assert!(Keda::at(&[scaler.grpc], "resnet").trigger("so").poll().await.is_err(), "without TLS");
}

#[tokio::test]
async fn a_certificate_that_is_renewed_is_used_without_a_restart() {
    let (stage, old, new) = (Stage::with(1).await, Authority::new(), Authority::new());
    let builder = stage.builder();
    let (certificate, key) = (builder.path("tls.crt"), builder.path("tls.key"));
    old.server(&certificate, &key);
    let builder = builder.with("--tls-cert", &certificate.display()).with("--tls-key", &key.display());
    let scaler = builder.start().await;
    scaler.until_read("resnet").await;
    let keda = |authority: &Authority| Keda::at(&[scaler.grpc], "resnet").tls(&authority.pem).trigger("so");
    let open = keda(&old);
    assert!(open.poll().await.is_ok());
    assert!(keda(&new).poll().await.is_err(), "KEDA believes the new authority only");
    fs::write(&certificate, "half a fi").unwrap();
    new.server(&certificate, &key);
    until("the new certificate", PATIENCE, async || keda(&new).poll().await.ok()).await;
    assert!(open.poll().await.is_ok(), "what was connected before stays");
    assert!(keda(&old).poll().await.is_err());
}

#[tokio::test]
async fn wrong_files_and_options_end_it_with_one_line() {
    let cluster = ApiServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (config, wrong) = (folder.path().join("kubeconfig"), folder.path().join("wrong.pem"));
    cluster.write_kubeconfig(&config);
    fs::write(&wrong, "no certificate").unwrap();
    let wrong = wrong.display().to_string();
    let run = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(tests::programs::built("gpufn-scaler"));
        let command =
            command.arg("serve").args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]).args(arguments);
        let ended = command.env("KUBECONFIG", &config).kill_on_drop(true).output();
        let output = tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(&["--tls-cert", &wrong, "--tls-key", &wrong]).await;
    assert_eq!(code, Some(1));
    assert!(said.starts_with(&format!("gpufn-scaler: {wrong} is no PEM file of certificates")), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let (code, said) = run(&["--profiles", &wrong]).await;
    assert_eq!(code, Some(64), "{said}");
    for usage in
        [&["--period", "0s"][..], &["--prometheus", "somewhere"], &["--tls-cert", "x"], &["--listen", "host"]]
    {
        assert_eq!(run(usage).await.0, Some(64), "{usage:?}");
    }
}

#[tokio::test]
async fn a_scaler_that_was_halted_tells_nothing_old() {
    let stage = Stage::with(1).await;
    let scaler = stage.builder().with("--stale", "300ms").start().await;
    scaler.until_read("resnet").await;
    tests::process::halt(scaler.pid());
    tests::wait::pause(Duration::from_millis(800));
    stage.watchdogs.show(0, |shown| shown.is_down = true);
    resume(scaler.pid());
    let status = until("an error", PATIENCE, async || keda(&scaler).poll().await.err()).await;
    assert_eq!(status.code(), Code::Unavailable);
}
