//! Replays recorded calls of `faas-cli` against a server: state carries over from call to call, as it did when they were recorded.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::function::Function;
use crate::gateway::Gateway;
use crate::http::{self, Read};
use crate::judge::judge;
use crate::transcripts::{Call, Scenario, Setting};
use crate::wait::until;

/// Long enough for a function's start.
const DEADLINE: Duration = Duration::from_secs(20);

/// A server to which calls are sent.
#[derive(Clone, Debug)]
pub struct Server {
    gateway: Gateway,
    address: SocketAddr,
    setting: Setting,
}

/// How many invocations and calls were replayed, and complaints about answers.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Invocations of the tool.
    pub invocations: usize,
    /// Its calls.
    pub calls: usize,
    /// What is wrong, a line each.
    pub wrong: Vec<String>,
}

impl Server {
    /// The server at an address, with its login where it asks for one, where `image` stands for all images.
    pub fn at(
        gateway: &Gateway,
        address: SocketAddr,
        login: Option<(String, String)>,
        image: String,
    ) -> Self {
        let ten_minutes_ago = ten_minutes_ago();
        let setting = Setting { authority: address.to_string(), login, image, ten_minutes_ago };
        Self { gateway: gateway.clone(), address, setting }
    }

    /// Replays a scenario, without the calls that `is_left_out` names, and removes all that it left.
    pub async fn replay(
        &self,
        scenario: &Scenario,
        is_left_out: impl Fn(&Call) -> bool,
        outcome: &mut Outcome,
    ) {
        self.prepare(scenario).await;
        for invocation in &scenario.invocations {
            outcome.invocations += 1;
            for call in invocation.calls.iter().filter(|call| !is_left_out(call)) {
                outcome.calls += 1;
                if let Err(complaint) = self.send(call).await {
                    let (name, id, argv) = (&scenario.name, &invocation.id, &invocation.argv);
                    let (method, target, exit) = (&call.method, &call.target, invocation.exit);
                    let line =
                        format!("{name}/{id}: {method} {target}: {complaint} ({argv:?} exited {exit})");
                    outcome.wrong.push(line);
                }
            }
        }
        self.empty().await;
    }

    async fn send(&self, call: &Call) -> Result<(), String> {
        let request = call.request(&self.setting)?;
        let read = if call.is_followed() && call.status == 200 { Read::FirstPiece } else { Read::Whole };
        let answer = http::over_tcp(self.address, request, read, DEADLINE).await;
        judge(call, &answer.map_err(|error| format!("{error:#}"))?)
    }

    /// Makes what was there when the scenario was recorded: a second namespace, the secrets that functions name, functions.
    async fn prepare(&self, scenario: &Scenario) {
        let gateway = &self.gateway;
        let staging = json!({ "name": "staging-fn", "annotations": { "openfaas": "1" } });
        let (status, text) = gateway.call(reqwest::Method::POST, "/system/namespace/", &staging).await;
        assert!(status.is_success() || status == 409, "namespace staging-fn: {status} {text}");
        for (name, namespace) in scenario.secrets() {
            gateway.secret(&name, &namespace, "secret").await;
        }
        for recorded in &scenario.functions {
            let name = recorded["service"].as_str().unwrap();
            gateway.deploy(&self.stand_in(name, recorded)).await;
            if recorded.contains_key("replicas") {
                gateway.scale(name, 0).await;
            } else if !recorded.contains_key("envProcess") {
                self.until_available(name, recorded.get("namespace").and_then(Value::as_str)).await;
            }
        }
    }

    /// The recorded function with the tests' program as its image, which is told to behave as the recorder's did.
    fn stand_in(&self, name: &str, recorded: &Map<String, Value>) -> Function {
        let mut function = Function::echo(name).set("image", self.setting.image.as_str().into());
        for (key, value) in
            recorded.iter().filter(|(key, _)| !["image", "service", "replicas"].contains(&key.as_str()))
        {
            function = function.set(key, value.clone());
        }
        match name {
            "f-fail" => function.env("ECHO_STATUS", "500").env("ECHO_BODY", "ZXhpdCBzdGF0dXMgMQo="),
            "f-redirect" => {
                let location = "Location: http://127.0.0.1:8080/healthz";
                function.env("ECHO_STATUS", "302").env("ECHO_BODY", "").env("ECHO_HEADERS", location)
            }
            "f-bin" => function
                .env("ECHO_BODY", "AAEC//4K")
                .env("ECHO_HEADERS", "Content-Type: application/octet-stream"),
            "f-created" => function.env("ECHO_STATUS", "201").env("ECHO_BODY", "bWFkZQ=="),
            "f-none" => function.env("ECHO_STATUS", "204").env("ECHO_BODY", ""),
            "f-iam" => {
                let challenge =
                    "WWW-Authenticate: Bearer realm=\"IAM function invoke\", error=\"missing_token\"";
                function.env("ECHO_STATUS", "401").env("ECHO_BODY", "").env("ECHO_HEADERS", challenge)
            }
            _ => function,
        }
    }

    async fn until_available(&self, name: &str, namespace: Option<&str>) {
        let path = format!("/system/function/{name}?namespace={}", namespace.unwrap_or_default());
        until(&format!("{name} to be available"), DEADLINE, async || {
            let status: Value = self.gateway.get(&path).await;
            (status["availableReplicas"].as_u64()? > 0).then_some(())
        })
        .await;
    }

    /// Removes all that a scenario left.
    async fn empty(&self) {
        let gateway = &self.gateway;
        for namespace in ["openfaas-fn", "staging-fn"] {
            let functions: Vec<Value> =
                gateway.get(&format!("/system/functions?namespace={namespace}")).await;
            for function in functions {
                let body = json!({ "functionName": function["name"], "namespace": namespace });
                gateway.call(reqwest::Method::DELETE, "/system/functions", &body).await;
            }
            let secrets: Option<Vec<Value>> =
                gateway.get(&format!("/system/secrets?namespace={namespace}")).await;
            for secret in secrets.unwrap_or_default() {
                gateway.call(reqwest::Method::DELETE, "/system/secrets", &secret).await;
            }
        }
    }
}

/// RFC 3339, in UTC.
fn ten_minutes_ago() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() - 600;
    let (days, rest) = (i64::try_from(seconds / 86_400).unwrap(), seconds % 86_400);
    // Days to a civil date, by eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}+00:00")
}
