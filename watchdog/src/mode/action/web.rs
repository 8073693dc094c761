//! The single entry of actions on Knative (apache/openwhisk, `docs/single_entrypoint_proxy_contract.md`): one message makes
//! an action ready and runs it, and its result is an HTTP answer. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value};

use super::message::{Init, Refusal, Run};

/// What a message asks for, in this order.
#[derive(Debug, Default, PartialEq)]
pub struct Entry {
    /// Make this action ready.
    pub init: Option<Init>,
    /// Run it.
    pub run: Option<Run>,
}

/// What the message came with.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The request's method.
    pub method: &'a str,
    /// What is behind the `?`.
    pub query: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// The namespace of the action, if the environment has one.
    pub namespace: &'a str,
    /// Whether the action wants the parameters as they were sent.
    pub is_raw: bool,
    /// Whether the image has the action already.
    pub is_dedicated: bool,
}

impl Entry {
    /// Reads the body of a request to `/`; the parameters may have `most` bytes.
    pub fn read(bytes: &[u8], asked: &Asked<'_>, most: usize) -> Result<Self, Refusal> {
        let not_found = |words: &str| Refusal::new(StatusCode::NOT_FOUND, words);
        let mut message = match serde_json::from_slice(bytes) {
            Ok(Value::Object(message)) => message,
            // What is no JSON is no input.
            Err(_) => Map::new(),
            Ok(_) => return Err(not_found("The action did not receive a dictionary as an argument.")),
        };
        let mut is_raw = asked.is_raw;
        let mut name = None;
        let init = match message.remove("init") {
            None => None,
            Some(_) if asked.is_dedicated => {
                return Err(not_found("Cannot initialize a runtime with a dedicated function."));
            }
            Some(Value::Object(init)) => {
                is_raw |= flag(&init, "raw")?;
                flag(&init, "binary")?;
                name = init.get("name").and_then(Value::as_str).map(ToString::to_string);
                Some(Init::of(init)?)
            }
            Some(_) => return Err(not_found("Unable to process Initialization data: it is not an object.")),
        };
        let activation = message.remove("activation");
        if init.is_some() && activation.is_none() {
            return Ok(Self { init, run: None });
        }
        let context = match activation {
            Some(Value::Object(mut context)) => {
                if let Some(name) = name.filter(|_| context.get("action_name").is_none_or(|name| name == ""))
                {
                    context.insert("action_name".to_string(), name.into());
                }
                context
            }
            _ => Map::new(),
        };
        let value = parameters(message.remove("value"), asked, is_raw);
        Ok(Self { init, run: Some(Run::of(value, context, most)?) })
    }
}

fn flag(init: &Map<String, Value>, name: &str) -> Result<bool, Refusal> {
    match init.get(name) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => {
            let words = "Unable to process Initialization data: Invalid Init. data; expected boolean for key";
            Err(Refusal::new(StatusCode::NOT_FOUND, format!("{words} '{name}'.")))
        }
    }
}

/// The parameters; a raw action gets them as they were sent, with what they were sent with.
fn parameters(value: Option<Value>, asked: &Asked<'_>, is_raw: bool) -> Value {
    let value = value.unwrap_or_else(|| Value::Object(Map::new()));
    if !is_raw {
        return value;
    }
    let body = match value {
        Value::String(text) => text,
        value => STANDARD.encode(value.to_string()),
    };
    let mut raw = Map::new();
    let headers = asked
        .headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str().to_string(), Value::from(value.to_str().ok()?))));
    raw.insert("__ow_body".into(), body.into());
    raw.insert("__ow_query".into(), asked.query.into());
    raw.insert("__ow_user".into(), asked.namespace.into());
    raw.insert("__ow_method".into(), asked.method.into());
    raw.insert("__ow_headers".into(), headers.collect::<Map<_, _>>().into());
    raw.insert("__ow_path".into(), "".into());
    Value::Object(raw)
}

/// The HTTP answer that a result describes with `statusCode`, `headers` and `body`, or else the result itself.
pub fn response(result: Value) -> Response<Vec<u8>> {
    let mut answer = Response::new(Vec::new());
    let mut body = result;
    if let Value::Object(fields) = &mut body {
        if let Some(status) = fields.remove("statusCode").and_then(|status| status.as_u64()?.try_into().ok())
            && let Ok(status) = StatusCode::from_u16(status)
            // What is below is no last answer.
            && status.as_u16() >= 200
        {
            *answer.status_mut() = status;
        }
        if let Some(Value::Object(headers)) = fields.remove("headers") {
            headers.iter().for_each(|(name, value)| add_header(answer.headers_mut(), name, value));
        }
        if let Some(inner) = fields.remove("body") {
            body = inner;
        }
    }
    let is_text = body.is_string();
    let bytes = match body {
        Value::String(text) => text.into_bytes(),
        body => body.to_string().into_bytes(),
    };
    let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let decoded =
        kind.filter(|kind| kind.contains("image") && is_text).and_then(|_| STANDARD.decode(&bytes).ok());
    if kind.is_none() {
        let kind = if is_text { "text/html" } else { "application/json" };
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    *answer.body_mut() = decoded.unwrap_or(bytes);
    if answer.status() == StatusCode::OK && answer.body().is_empty() {
        *answer.status_mut() = StatusCode::NO_CONTENT;
    }
    let cors = [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "OPTIONS, GET, DELETE, POST, PUT, HEAD, PATCH"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "Authorization, Origin, X-Requested-With, Content-Type, Accept, User-Agent",
        ),
    ];
    for (name, value) in cors {
        answer.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    answer
}

fn add_header(headers: &mut HeaderMap, name: &str, value: &Value) {
    let Ok(name) = name.parse::<HeaderName>() else { return };
    // Framing is the watchdog's.
    if name == header::CONTENT_LENGTH || name == header::TRANSFER_ENCODING || name == header::CONNECTION {
        return;
    }
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => {
            return values
                .iter()
                .filter(|value| !value.is_array())
                .for_each(|value| add_header(headers, name.as_str(), value));
        }
        value => value.to_string(),
    };
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.append(name, value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(message: &Value, is_raw: bool, is_dedicated: bool) -> Result<Entry, Refusal> {
        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("*/*"))]);
        let asked = Asked {
            method: "POST",
            query: "a=1",
            headers: &headers,
            namespace: "guest",
            is_raw,
            is_dedicated,
        };
        Entry::read(message.to_string().as_bytes(), &asked, 1 << 20)
    }

    #[test]
    fn one_message_makes_an_action_ready_and_runs_it() {
        let message = json!({"init": {"name": "f", "code": "x"}, "activation": {"namespace": "n", "action_name": ""},
            "value": {"a": 1}});
        let entry = read(&message, false, false).unwrap();
        assert_eq!(entry.init.unwrap().code.as_deref(), Some("x"));
        let run = entry.run.unwrap();
        assert_eq!(run.value, json!({"a": 1}));
        assert!(run.context.contains(&("__OW_ACTION_NAME".to_string(), "f".to_string())));
        let entry = read(&json!({"init": {}}), false, false).unwrap();
        assert!(entry.init.is_some() && entry.run.is_none());
        let entry = read(&json!({"value": {"a": 1}}), false, false).unwrap();
        assert!(entry.init.is_none() && entry.run.is_some());
    }

    #[test]
    fn what_does_not_fit_is_refused_in_the_platforms_words() {
        let dedicated = read(&json!({"init": {}}), false, true).unwrap_err();
        assert_eq!(dedicated.words, "Cannot initialize a runtime with a dedicated function.");
        let flag = read(&json!({"init": {"binary": "yes"}}), false, false).unwrap_err();
        assert!(flag.words.ends_with("Invalid Init. data; expected boolean for key 'binary'."), "{flag:?}");
        let array = read(&json!([]), false, false).unwrap_err();
        assert_eq!(array.words, "The action did not receive a dictionary as an argument.");
    }

    #[test]
    fn a_raw_action_gets_its_parameters_as_they_were_sent() {
        let run = read(&json!({"value": {"name": "Joe"}}), true, false).unwrap().run.unwrap();
        assert_eq!(run.value["__ow_body"], "eyJuYW1lIjoiSm9lIn0=");
        assert_eq!(run.value["__ow_query"], "a=1");
        assert_eq!(run.value["__ow_headers"]["accept"], "*/*");
    }

    #[test]
    fn a_result_can_describe_an_answer() {
        let answer = response(json!({"payload": "x"}));
        assert_eq!((answer.status(), &answer.body()[..]), (StatusCode::OK, &b"{\"payload\":\"x\"}"[..]));
        assert_eq!(answer.headers()["content-type"], "application/json");
        let answer = response(
            json!({"body": "<p>", "statusCode": 418, "headers": {"X-A": ["1", "2"], "bad name": 1}}),
        );
        assert_eq!((answer.status().as_u16(), &answer.body()[..]), (418, &b"<p>"[..]));
        assert_eq!(answer.headers()["content-type"], "text/html");
        assert_eq!(answer.headers().get_all("x-a").iter().count(), 2);
        let image = response(json!({"body": "AQI=", "headers": {"content-type": "image/png"}}));
        assert_eq!(image.body(), &[1, 2]);
        assert_eq!(response(json!({"body": ""})).status(), StatusCode::NO_CONTENT);
        assert_eq!(response(json!({"statusCode": 101})).status(), StatusCode::OK);
    }
}
