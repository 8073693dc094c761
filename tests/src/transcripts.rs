//! The recorded calls of `faas-cli` (`data/faas-cli-transcripts.jsonl`): reading them, and making each one a request to
//! a server of ours that differs from the recording only in what can't be the same.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The login that the recordings use.
const RECORDED_LOGIN: &str = "Basic YWRtaW46czNjcmV0";
/// Where the recorded calls went.
const RECORDED_GATEWAY: &str = "http://127.0.0.1:8080";
/// Stands for a moment ten minutes before the call.
const TEN_MINUTES_AGO: &str = "<now-10m>";

/// Invocations of `faas-cli` one after the other against one server.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// Whether the server asks for a login.
    pub auth: bool,
    /// Functions that are there beforehand, as deployments; `replicas` where it was set.
    pub functions: Vec<Map<String, Value>>,
    /// The invocations.
    pub invocations: Vec<Invocation>,
}

/// One invocation of `faas-cli`.
#[derive(Clone, Debug, Deserialize)]
pub struct Invocation {
    /// Its name.
    pub id: String,
    /// The command line.
    pub argv: String,
    /// How it exited.
    pub exit: i32,
    /// What it sent.
    pub calls: Vec<Call>,
}

/// One request, and how it was answered.
#[derive(Clone, Debug, Deserialize)]
pub struct Call {
    /// Its method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Headers; a list where one was sent several times.
    pub headers: Map<String, Value>,
    /// Its body.
    #[serde(default)]
    pub body: Body,
    /// The recorded status.
    pub status: u16,
    /// What in the recorded answer `faas-cli` or its user relies on.
    pub answer: Option<Expected>,
}

/// A request's body.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(untagged)]
pub enum Body {
    /// None.
    #[default]
    Empty,
    /// As it is.
    Text(String),
    /// Not text.
    Binary {
        /// Encoded.
        base64: String,
    },
    /// One text many times.
    Repeated {
        /// The text.
        repeat: String,
        /// How many times.
        times: usize,
    },
}

/// The decisive part of an answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    /// A list of exactly these functions.
    Functions(Vec<String>),
    /// A list of exactly these secrets.
    Secrets(Vec<Value>),
    /// Exactly this.
    Json(Value),
    /// This text.
    Text(String),
    /// These bytes.
    Base64(String),
    /// A function with at least these members.
    #[serde(untagged)]
    Status {
        /// The members.
        status: Map<String, Value>,
        /// Whether a replica takes requests, where that is known.
        available: Option<bool>,
    },
}

/// What of a request can't be as it was recorded.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Our server's host and port.
    pub authority: String,
    /// Its login, where it asks for one.
    pub login: Option<(String, String)>,
    /// The image that stands for all images.
    pub image: String,
    /// A moment ten minutes ago, RFC 3339.
    pub ten_minutes_ago: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Begin { scenario: String, auth: bool, functions: Vec<Map<String, Value>> },
    Invocation(Invocation),
}

/// Reads the recordings.
pub fn parse(text: &str) -> Result<Vec<Scenario>, String> {
    let mut scenarios: Vec<Scenario> = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with('#')) {
        let wrong = |error: &str| format!("line {}: {error}", number + 1);
        match serde_json::from_str(line).map_err(|error| wrong(&error.to_string()))? {
            Line::Begin { scenario, auth, functions } => {
                scenarios.push(Scenario { name: scenario, auth, functions, invocations: Vec::new() });
            }
            Line::Invocation(invocation) => {
                let scenario = scenarios.last_mut().ok_or_else(|| wrong("no scenario has begun"))?;
                scenario.invocations.push(invocation);
            }
        }
    }
    Ok(scenarios)
}

impl Scenario {
    /// Secrets that its functions name, with their namespaces; they must be there beforehand.
    pub fn secrets(&self) -> Vec<(String, String)> {
        let sent =
            self.invocations.iter().flat_map(|invocation| &invocation.calls).filter_map(Call::deployment);
        let mut secrets: Vec<_> = (self.functions.iter().cloned().chain(sent))
            .flat_map(|function| {
                let namespace = function.get("namespace").and_then(Value::as_str).unwrap_or("openfaas-fn");
                let names = function.get("secrets").and_then(Value::as_array).cloned().unwrap_or_default();
                let namespace = namespace.to_string();
                names
                    .into_iter()
                    .filter_map(move |name| Some((name.as_str()?.to_string(), namespace.clone())))
            })
            .filter(|(_, namespace)| ["openfaas-fn", "staging-fn"].contains(&namespace.as_str()))
            .collect();
        secrets.sort();
        secrets.dedup();
        secrets
    }
}

impl Call {
    /// The path without the query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Whether the answer has no end.
    pub fn is_followed(&self) -> bool {
        self.target.contains("follow=true")
    }

    /// The request as it is sent to our server.
    pub fn request(&self, setting: &Setting) -> Result<Request<Full<Bytes>>, String> {
        let escaped = setting.ten_minutes_ago.replace('+', "%2B").replace(':', "%3A");
        let target = self.target.replace(TEN_MINUTES_AGO, &escaped);
        let mut request = Request::builder().method(self.method.as_str()).uri(target);
        request = request.header("Host", &setting.authority);
        for (name, value) in &self.headers {
            for value in value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice) {
                let value = value.as_str().ok_or("a header is not text")?;
                request = request.header(name, setting.header(value));
            }
        }
        request.body(Full::new(self.bytes(setting)?)).map_err(|error| error.to_string())
    }

    /// The deployment that is sent, if it is one.
    fn deployment(&self) -> Option<Map<String, Value>> {
        let Body::Text(text) = &self.body else { return None };
        let is_deployment = self.path().ends_with("/system/functions") && self.method != "DELETE";
        is_deployment.then(|| serde_json::from_str(text).ok()).flatten()
    }

    fn bytes(&self, setting: &Setting) -> Result<Bytes, String> {
        if let Some(mut deployment) = self.deployment() {
            deployment.insert("image".into(), setting.image.clone().into());
            return serde_json::to_vec(&deployment).map(Bytes::from).map_err(|error| error.to_string());
        }
        Ok(match &self.body {
            Body::Empty => Bytes::new(),
            Body::Text(text) => Bytes::from(text.clone()),
            Body::Binary { base64 } => STANDARD.decode(base64).map_err(|error| error.to_string())?.into(),
            Body::Repeated { repeat, times } => repeat.repeat(*times).into(),
        })
    }
}

impl Setting {
    /// A recorded header with our server's login and address in place of the recorder's.
    fn header(&self, value: &str) -> String {
        match &self.login {
            Some((user, password)) if value == RECORDED_LOGIN => {
                format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
            }
            _ => value.replace(RECORDED_GATEWAY, &format!("http://{}", self.authority)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting() -> Setting {
        Setting {
            authority: "127.0.0.1:5".into(),
            login: Some(("admin".into(), "new".into())),
            image: "file:///echo".into(),
            ten_minutes_ago: "2026-01-02T03:04:05+00:00".into(),
        }
    }

    fn only_call(line: &str) -> Call {
        let begin = r#"{"scenario":"s","auth":true,"functions":[]}"#;
        let call = format!(r#"{{"id":"i","argv":"faas-cli","exit":0,"calls":[{line}]}}"#);
        parse(&format!("# head\n{begin}\n{call}\n")).unwrap()[0].invocations[0].calls[0].clone()
    }

    #[test]
    fn the_recordings_are_read() {
        let scenarios = parse(include_str!("../data/faas-cli-transcripts.jsonl")).unwrap();
        assert_eq!(scenarios.len(), 16);
        let calls = scenarios.iter().flat_map(|scenario| &scenario.invocations).map(|i| i.calls.len());
        assert_eq!(calls.sum::<usize>(), 220);
    }

    #[test]
    fn every_recording_makes_a_request() {
        let scenarios = parse(include_str!("../data/faas-cli-transcripts.jsonl")).unwrap();
        let invocations = scenarios.iter().flat_map(|scenario| &scenario.invocations);
        for call in invocations.flat_map(|invocation| &invocation.calls) {
            call.request(&setting()).unwrap();
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "(\\PC|\n|\\{\"id\":|\\{\"scenario\":){0,40}") {
            let _ = parse(&text);
        }
    }

    #[test]
    fn a_request_differs_from_its_recording_only_in_login_address_image_and_time() {
        let call = only_call(concat!(
            r#"{"method":"PUT","target":"/system/functions?since=<now-10m>","status":202,"#,
            r#""headers":{"Authorization":"Basic YWRtaW46czNjcmV0","X-Two":["1","2"]},"#,
            r#""body":"{\"service\":\"a\",\"image\":\"i\"}"}"#,
        ));
        let request = call.request(&setting()).unwrap();
        assert_eq!(request.uri(), "/system/functions?since=2026-01-02T03%3A04%3A05%2B00%3A00");
        assert_eq!(request.headers()["authorization"], "Basic YWRtaW46bmV3");
        assert_eq!(request.headers().get_all("x-two").iter().count(), 2);
        assert_eq!(call.bytes(&setting()).unwrap(), r#"{"image":"file:///echo","service":"a"}"#);
    }

    #[test]
    fn a_line_before_any_scenario_is_refused_with_its_number() {
        let error = parse("# head\n{\"id\":\"i\",\"argv\":\"\",\"exit\":0,\"calls\":[]}").unwrap_err();
        assert_eq!(error, "line 2: no scenario has begun");
    }
}
