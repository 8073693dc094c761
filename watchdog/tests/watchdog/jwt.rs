//! Tokens, against a gateway of the test's own that publishes keys and changes them.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use reqwest::StatusCode;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::fixture::{Builder, DEADLINE, Watchdog, in_front_of};
use crate::function::{Function, header_values};

/// A key of the gateway.
struct Key {
    name: &'static str,
    pair: EcdsaKeyPair,
}

impl Key {
    fn new(name: &'static str) -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random);
        Self { name, pair: pair.unwrap() }
    }

    fn public(&self) -> Value {
        // An uncompressed point: 4, x, y.
        let point = self.pair.public_key().as_ref();
        let coordinate = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.name,
            "x": coordinate(&point[1..33]), "y": coordinate(&point[33..65]),
        })
    }

    fn sign(&self, claims: &Value) -> String {
        let head = json!({"alg": "ES256", "kid": self.name, "typ": "JWT"});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&head), part(claims));
        let signature = self.pair.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

/// A gateway that publishes keys.
struct Gateway {
    url: String,
    keys: Arc<Mutex<Value>>,
    fetches: Arc<AtomicUsize>,
}

impl Gateway {
    async fn start(key: &Key) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let keys = Arc::new(Mutex::new(json!({"keys": [{"kty": "unheard of"}, key.public()]})));
        let fetches = Arc::new(AtomicUsize::new(0));
        let (own, shown, counted) = (url.clone(), Arc::clone(&keys), Arc::clone(&fetches));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (own, shown, counted) = (own.clone(), Arc::clone(&shown), Arc::clone(&counted));
                let service = service_fn(move |request: Request<Incoming>| {
                    let body = if request.uri().path() == "/keys" {
                        counted.fetch_add(1, Ordering::SeqCst);
                        shown.lock().unwrap().to_string()
                    } else {
                        // As a gateway in a cluster names itself.
                        json!({"issuer": own, "jwks_uri": "https://gateway.example.com/keys"}).to_string()
                    };
                    std::future::ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(body)))))
                });
                let server = hyper::server::conn::http1::Builder::new();
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { url, keys, fetches }
    }

    fn in_front_of(&self, url: &str) -> Builder {
        let builder = in_front_of(url).env("jwt_auth", true).env("jwt_authority", &self.url);
        builder.env("OPENFAAS_NAME", "fn").env("OPENFAAS_NAMESPACE", "ns")
    }

    /// Claims that are good, with `permissions`.
    fn claims(&self, permissions: &[&str]) -> Value {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        json!({
            "iss": self.url, "aud": [self.url], "sub": "x", "iat": now, "exp": now + 600,
            "function": {"permissions": permissions},
        })
    }
}

/// The same claims with one of them changed, or without it.
fn with(mut claims: Value, name: &str, value: Option<Value>) -> Value {
    let members = claims.as_object_mut().unwrap();
    members.remove(name);
    members.extend(value.map(|value| (name.to_string(), value)));
    claims
}

async fn status(watchdog: &Watchdog, token: &str) -> StatusCode {
    let request = watchdog.request("GET", "/x").header("Authorization", format!("Bearer {token}"));
    request.send().await.unwrap().status()
}

#[tokio::test]
async fn only_good_tokens_reach_the_function() {
    let (function, key) = (Function::start().await, Key::new("first"));
    let gateway = Gateway::start(&key).await;
    let watchdog = gateway.in_front_of(&function.url).start().await;
    let good = gateway.claims(&["ns:*"]);
    let request =
        watchdog.request("GET", "/x").header("Authorization", format!("Bearer {}", key.sign(&good)));
    let seen: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(header_values(&seen, "x-auth-seconds").len(), 1);

    let none = watchdog.get("/x").await;
    assert_eq!(none.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(none.headers()["www-authenticate"], "Bearer realm=IAM function invoke");
    assert_eq!(none.headers()["x-openfaas-internal"], "faas-middleware");

    let (now, other) = (good["iat"].as_u64().unwrap(), Key::new("first"));
    let unsigned = format!("{}.", key.sign(&good).rsplit_once('.').unwrap().0);
    let no_algorithm = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"first"}"#), "e30");
    for (token, wanted) in [
        (key.sign(&gateway.claims(&["ns:fn"])), 200),
        (key.sign(&gateway.claims(&["*"])), 200),
        (key.sign(&gateway.claims(&["other:*"])), 403),
        (key.sign(&gateway.claims(&[])), 403),
        (key.sign(&with(good.clone(), "function", None)), 403),
        (key.sign(&with(good.clone(), "iss", Some(json!("someone")))), 401),
        (key.sign(&with(good.clone(), "iss", None)), 401),
        (key.sign(&with(good.clone(), "aud", Some(json!("other")))), 401),
        (key.sign(&with(good.clone(), "exp", Some(json!(now - 60)))), 401),
        (key.sign(&with(good.clone(), "exp", None)), 401),
        (key.sign(&with(good.clone(), "nbf", Some(json!(now + 60)))), 401),
        (other.sign(&good), 401),
        (unsigned, 401),
        (no_algorithm, 401),
        ("x".to_string(), 401),
    ] {
        assert_eq!(status(&watchdog, &token).await, wanted, "{token}");
    }
    // Probes need none.
    assert_eq!(watchdog.status("/_/health").await, StatusCode::OK);
    watchdog.until_metric("http_requests_total{code=\"403\",method=\"get\"} 3").await;
}

#[tokio::test]
async fn a_new_key_is_fetched_when_it_is_needed_and_not_for_every_request() {
    let (function, old, new) = (Function::start().await, Key::new("old"), Key::new("new"));
    let gateway = Gateway::start(&old).await;
    let watchdog = gateway.in_front_of(&function.url).start().await;
    let claims = gateway.claims(&["*"]);
    *gateway.keys.lock().unwrap() = json!({"keys": [new.public()]});
    let start = Instant::now();
    while status(&watchdog, &new.sign(&claims)).await != StatusCode::OK {
        assert!(start.elapsed() < DEADLINE, "the new key was never fetched");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(status(&watchdog, &old.sign(&claims)).await, StatusCode::UNAUTHORIZED);
    let unknown = Key::new("unknown");
    for _ in 0..100 {
        assert_eq!(status(&watchdog, &unknown.sign(&claims)).await, StatusCode::UNAUTHORIZED);
    }
    let fetches = gateway.fetches.load(Ordering::SeqCst);
    // One at the start, one for the new key, and one for each 2 s of unknown ones.
    let most = 3 + usize::try_from(start.elapsed().as_secs()).unwrap() / 2 + 1;
    assert!(fetches <= most, "{fetches} fetches, at most {most}");
}

#[tokio::test]
async fn without_keys_or_a_name_nothing_starts() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let builder = in_front_of("http://127.0.0.1:9").env("jwt_auth", true).env("OPENFAAS_NAMESPACE", "ns");
    let (status, stderr) = builder.run(&[]).await;
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("OPENFAAS_NAME is \"\""), "{stderr}");
    let builder = in_front_of("http://127.0.0.1:9").env("jwt_auth", true).env("jwt_authority", url);
    let (status, stderr) = builder.env("OPENFAAS_NAME", "fn").env("OPENFAAS_NAMESPACE", "ns").run(&[]).await;
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("the keys of jwt_auth can't be fetched"), "{stderr}");
}
