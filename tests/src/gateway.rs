//! A client of the gateway API as the tests use it: deploys, invokes, scales, and reads the overview.

use std::time::Duration;

use reqwest::{Client, Method, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::function::Function;
use crate::overview::{Decision, Overview, Replica};
use crate::wait::until;

/// Longest wait for an answer of the gateway itself.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait for a function, its start included.
const INVOCATION: Duration = Duration::from_secs(30);

/// What an inference function answers.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Inference {
    /// The checked kernel's result.
    pub checksum: f32,
    /// The function's process.
    pub pid: u32,
}

/// The checksum of a right answer: the sum of 3·i for i below 256.
pub const CHECKSUM: f32 = 97_920.0;

/// A gateway, by its URL.
#[derive(Clone, Debug)]
pub struct Gateway {
    url: String,
    client: Client,
    login: Option<(String, String)>,
}

impl Gateway {
    /// The gateway at `url`, with the login where it asks for one.
    pub fn at(url: &str, login: Option<(String, String)>) -> Self {
        let client = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build();
        Self { url: url.trim_end_matches('/').into(), client: client.expect("a client can be made"), login }
    }

    /// Its URL, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The connection pool, for callers that send requests of their own.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sends a request with a JSON body, or none if `body` is null.
    pub async fn call(&self, method: Method, path: &str, body: &Value) -> (StatusCode, String) {
        let mut request =
            self.client.request(method.clone(), format!("{}{path}", self.url)).timeout(DEADLINE);
        if let Some((user, password)) = &self.login {
            request = request.basic_auth(user, Some(password));
        }
        if !body.is_null() {
            request = request.json(body);
        }
        let answer = request.send().await.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"));
        let status = answer.status();
        (status, answer.text().await.unwrap_or_else(|error| panic!("{method} {path}: {error:?}")))
    }

    /// Reads a JSON answer, which must be a success.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let (status, body) = self.call(Method::GET, path, &Value::Null).await;
        assert!(status.is_success(), "GET {path}: {status} {body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("GET {path}: {error} in {body}"))
    }

    /// Deploys as `faas-cli` does, PUT and then POST, and expects success.
    pub async fn deploy(&self, function: &Function) {
        let (status, text) = self.try_deploy(function).await;
        assert!(status.is_success(), "deploying {}: {status} {text}", function.name());
    }

    /// Deploys as `faas-cli` does, and tells how the last call was answered.
    pub async fn try_deploy(&self, function: &Function) -> (StatusCode, String) {
        let (status, text) = self.call(Method::PUT, "/system/functions", &function.json()).await;
        if status != StatusCode::NOT_FOUND {
            return (status, text);
        }
        self.call(Method::POST, "/system/functions", &function.json()).await
    }

    /// Deploys, and waits until a replica takes requests.
    pub async fn deploy_ready(&self, function: &Function) -> Replica {
        self.deploy(function).await;
        self.serving_replica(function.name()).await
    }

    /// Waits for a replica of `name` that takes requests.
    pub async fn serving_replica(&self, name: &str) -> Replica {
        let what = format!("a replica of {name} that takes requests");
        until(&what, INVOCATION, async || self.overview().await.function(name)?.serving().next().cloned())
            .await
    }

    /// Sets the number of replicas.
    pub async fn scale(&self, name: &str, replicas: u32) {
        let body = json!({ "serviceName": name, "replicas": replicas });
        let (status, text) = self.call(Method::POST, &format!("/system/scale-function/{name}"), &body).await;
        assert_eq!(status, StatusCode::ACCEPTED, "scaling {name} to {replicas}: {text}");
    }

    /// Creates or replaces a secret.
    pub async fn secret(&self, name: &str, namespace: &str, value: &str) {
        let body = json!({ "name": name, "namespace": namespace, "value": value });
        let (status, text) = self.call(Method::POST, "/system/secrets", &body).await;
        assert!(status.is_success(), "secret {name}: {status} {text}");
    }

    /// Replicas wanted and replicas that take requests.
    pub async fn replicas(&self, name: &str) -> (u64, u64) {
        let status: Value = self.get(&format!("/system/function/{name}")).await;
        let count = |key: &str| status[key].as_u64().unwrap_or_default();
        (count("replicas"), count("availableReplicas"))
    }

    /// Everything at this moment.
    pub async fn overview(&self) -> Overview {
        self.get("/v1/overview").await
    }

    /// All that was done so far.
    pub async fn decisions(&self) -> Vec<Decision> {
        self.get("/v1/decisions?after=0").await
    }

    /// Invokes `path` below `/function/` and returns the answer with its headers.
    pub async fn send(&self, path: &str, body: &str) -> reqwest::Result<Response> {
        let request = self.client.post(format!("{}/function/{path}", self.url));
        request.body(body.to_string()).timeout(INVOCATION).send().await
    }

    /// Invokes `path` below `/function/`; an answer of any status.
    pub async fn invoke(&self, path: &str, body: &str) -> (StatusCode, String) {
        let answer = self.send(path, body).await.unwrap_or_else(|error| panic!("{path}: {error:?}"));
        let status = answer.status();
        (status, answer.text().await.unwrap_or_else(|error| panic!("{path}: {error:?}")))
    }

    /// Invokes an inference function, and checks that its answer is right.
    pub async fn infer(&self, name: &str) -> Inference {
        let (status, body) = self.invoke(name, "").await;
        assert_eq!(status, StatusCode::OK, "{name}: {body}");
        let answer: Inference =
            serde_json::from_str(&body).unwrap_or_else(|error| panic!("{name}: {error} in {body}"));
        assert!((answer.checksum - CHECKSUM).abs() < f32::EPSILON, "{name} computed {}", answer.checksum);
        answer
    }
}
