//! Whether an answer is one that `faas-cli` 0.18.12 takes as the recorded one: the status classes of its calls, the JSON
//! shapes it needs, and the members its users look at. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::http::Answer;
use crate::transcripts::{Call, Expected};

/// Checks one answer; the complaint is one line.
pub fn judge(call: &Call, answer: &Answer) -> Result<(), String> {
    let status = answer.status.as_u16();
    let allowed = allowed_statuses(call);
    if !allowed.contains(&status) {
        return Err(format!("status {status}, allowed is {allowed:?}: {}", first_line(&answer.text())));
    }
    match (status, call.path()) {
        (401, path) if path.starts_with("/system/") => refused_login(answer),
        (200, "/system/info") => info(&json(answer)?),
        (200, "/system/logs") => log_lines(call, answer),
        (200, "/system/functions") if call.method == "GET" => functions(&json(answer)?),
        (200..=299, path) if path.contains("function/") && !path.starts_with("/system/") => call_id(answer),
        _ => Ok(()),
    }?;
    call.answer.as_ref().map_or(Ok(()), |expected| decisive(expected, answer))
}

/// What `faas-cli` takes as success of a call; a recorded failure allows only the same failure.
fn allowed_statuses(call: &Call) -> Vec<u16> {
    if call.status >= 300
        || call.path().starts_with("/function/")
        || call.path().starts_with("/async-function/")
    {
        return vec![call.status];
    }
    match (call.method.as_str(), call.path()) {
        ("PUT" | "POST", "/system/functions") | ("PUT" | "DELETE", "/system/secrets") => vec![200, 202],
        ("DELETE", "/system/functions") | ("POST", "/system/secrets") => vec![200, 201, 202],
        ("POST" | "PUT" | "DELETE", path) if path.starts_with("/system/namespace/") => vec![200, 201, 202],
        _ => vec![200],
    }
}

fn json(answer: &Answer) -> Result<Value, String> {
    serde_json::from_slice(&answer.body)
        .map_err(|error| format!("no JSON, {error}: {}", first_line(&answer.text())))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn refused_login(answer: &Answer) -> Result<(), String> {
    let challenge = answer.header("www-authenticate");
    ensure(challenge.starts_with("Basic realm="), || format!("WWW-Authenticate is {challenge:?}"))?;
    ensure(answer.text().trim() == "invalid credentials", || format!("the body is {:?}", answer.text()))
}

/// By which a user finds an invocation in logs.
fn call_id(answer: &Answer) -> Result<(), String> {
    let id = answer.header("x-call-id");
    ensure(!id.is_empty(), || "X-Call-Id is missing".into())
}

/// A nested object that is missing makes `faas-cli version` panic.
fn info(info: &Value) -> Result<(), String> {
    let texts = [
        "/provider/provider",
        "/provider/version/release",
        "/provider/version/sha",
        "/provider/orchestration",
        "/version/release",
        "/version/sha",
        "/arch",
    ];
    texts.iter().try_for_each(|path| {
        let text = info.pointer(path).and_then(Value::as_str);
        ensure(text.is_some_and(|text| !text.is_empty()), || format!("{path} is missing"))
    })
}

/// Clients dereference labels and annotations, and tell an absent map from an empty one.
fn functions(list: &Value) -> Result<(), String> {
    list.as_array().ok_or("not a list")?.iter().try_for_each(|function| {
        ["name", "image"].iter().try_for_each(|key| {
            ensure(function[key].is_string(), || format!("{key} is {}", function[key]))
        })?;
        ["labels", "annotations"].iter().try_for_each(|key| {
            ensure(function[key].is_object(), || {
                format!("{key} of {} is {}", function["name"], function[key])
            })
        })?;
        ["envVars", "limits", "requests"].iter().try_for_each(|key| {
            let empty = function.get(key).is_some_and(|value| value.as_object().is_none_or(Map::is_empty));
            ensure(!empty, || format!("{key} of {} is {}, not left out", function["name"], function[key]))
        })
    })
}

fn log_lines(call: &Call, answer: &Answer) -> Result<(), String> {
    let kind = answer.header("content-type");
    ensure(kind.starts_with("application/x-ndjson"), || format!("content type is {kind:?}"))?;
    let text = answer.text();
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.iter().try_for_each(|line| {
        let message: Value = serde_json::from_str(line).map_err(|error| format!("{error}: {line}"))?;
        ["name", "namespace", "instance", "timestamp", "text"].iter().try_for_each(|key| {
            ensure(message[key].is_string(), || format!("{key} of a message is {}", message[key]))
        })
    })?;
    let most =
        call.target.split(['?', '&']).find_map(|pair| pair.strip_prefix("tail=")?.parse::<usize>().ok());
    ensure(most.is_none_or(|most| lines.len() <= most), || {
        format!("{} lines, asked for {most:?}", lines.len())
    })
}

fn decisive(expected: &Expected, answer: &Answer) -> Result<(), String> {
    match expected {
        Expected::Functions(names) => {
            let list = json(answer)?;
            let mut got: Vec<_> = elements(&list).filter_map(|function| function["name"].as_str()).collect();
            got.sort_unstable();
            ensure(got == *names, || format!("functions {got:?}, expected {names:?}"))
        }
        Expected::Status { status, available } => function_status(status, *available, &json(answer)?),
        Expected::Secrets(secrets) => secret_list(secrets, &json(answer)?),
        Expected::Json(expected) => {
            let got = json(answer)?;
            ensure(got == *expected, || format!("{got}, expected {expected}"))
        }
        Expected::Text(text) => {
            // The name of the service in plain text may end in a line feed or not.
            let (got, text) = (answer.text(), text.as_str());
            ensure(got.trim_end() == text.trim_end(), || format!("body {got:?}, expected {text:?}"))
        }
        Expected::Base64(text) => {
            let bytes = STANDARD.decode(text).map_err(|error| error.to_string())?;
            ensure(answer.body == bytes, || format!("{} bytes that differ", answer.body.len()))
        }
    }
}

fn function_status(members: &Map<String, Value>, available: Option<bool>, got: &Value) -> Result<(), String> {
    members.iter().try_for_each(|(key, expected)| {
        ensure(contains(&got[key], expected), || format!("{key} is {}, expected {expected}", got[key]))
    })?;
    let count = got["availableReplicas"].as_u64().unwrap_or_default();
    ensure(available.is_none_or(|available| available == (count > 0)), || {
        format!("availableReplicas is {count}")
    })
}

/// Whether `got` is `expected`, or a map that has all of it: a provider may add labels of its own.
fn contains(got: &Value, expected: &Value) -> bool {
    match (got.as_object(), expected.as_object()) {
        (Some(got), Some(expected)) => expected.iter().all(|(key, value)| got.get(key) == Some(value)),
        _ => got == expected,
    }
}

fn secret_list(expected: &[Value], got: &Value) -> Result<(), String> {
    let key = |secret: &Value| (secret["namespace"].to_string(), secret["name"].to_string());
    let sorted = |list: Vec<Value>| {
        let mut keys: Vec<_> = list.iter().map(key).collect();
        keys.sort();
        keys
    };
    let got: Vec<_> = elements(got).cloned().collect();
    let told = got.iter().any(|secret| secret.get("value").is_some() || secret.get("rawValue").is_some());
    ensure(!told, || "a listing shows values".into())?;
    let (got, expected) = (sorted(got), sorted(expected.to_vec()));
    ensure(got == expected, || format!("secrets {got:?}, expected {expected:?}"))
}

/// The elements of a list; `null` is an empty one.
fn elements(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn ensure(holds: bool, complaint: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(complaint()) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::{HeaderMap, StatusCode};
    use serde_json::json;

    use super::*;

    fn call(method: &str, target: &str, status: u16, answer: &Value) -> Call {
        let headers = json!({});
        let call = json!({ "method": method, "target": target, "headers": headers, "status": status, "answer": answer });
        serde_json::from_value(call).unwrap()
    }

    fn answer(status: u16, body: &str) -> Answer {
        let body = Bytes::from(body.to_string());
        Answer { status: StatusCode::from_u16(status).unwrap(), headers: HeaderMap::new(), body }
    }

    #[test]
    fn success_is_what_the_tool_takes_as_success() {
        let post = call("POST", "/system/functions", 202, &Value::Null);
        assert_eq!(judge(&post, &answer(200, "")), Ok(()));
        // 201 makes `faas-cli deploy` fail.
        assert!(judge(&post, &answer(201, "")).is_err());
        let delete = call("DELETE", "/system/secrets", 202, &Value::Null);
        assert!(judge(&delete, &answer(204, "")).is_err());
    }

    #[test]
    fn a_recorded_failure_must_be_the_same_failure() {
        let put = call("PUT", "/system/functions", 404, &Value::Null);
        assert_eq!(judge(&put, &answer(404, "")), Ok(()));
        assert_eq!(judge(&put, &answer(500, "boom\nx")), Err("status 500, allowed is [404]: boom".into()));
    }

    #[test]
    fn lists_are_compared_by_name_and_shape() {
        let list = call("GET", "/system/functions", 200, &json!({ "functions": ["a", "b"] }));
        let function = |name| json!({ "name": name, "image": "i", "labels": {}, "annotations": {} });
        let got = |got: &Value| judge(&list, &answer(200, &got.to_string()));
        assert_eq!(got(&json!([function("b"), function("a")])), Ok(()));
        assert!(got(&json!([function("a")])).is_err());
        let mut empty_env = function("a");
        empty_env["envVars"] = json!({});
        assert!(got(&json!([empty_env, function("b")])).is_err());
    }

    #[test]
    fn a_status_may_have_more_labels_but_not_fewer() {
        let expected = json!({ "status": { "name": "a", "labels": { "x": "1" } }, "available": true });
        let describe = call("GET", "/system/function/a?usage=1", 200, &expected);
        let status =
            |labels, count| json!({ "name": "a", "labels": labels, "availableReplicas": count }).to_string();
        assert_eq!(judge(&describe, &answer(200, &status(json!({ "x": "1", "y": "2" }), 1))), Ok(()));
        assert!(judge(&describe, &answer(200, &status(json!({ "y": "2" }), 1))).is_err());
        assert!(judge(&describe, &answer(200, &status(json!({ "x": "1" }), 0))).is_err());
    }

    #[test]
    fn a_listing_of_secrets_must_not_tell_them() {
        let expected = json!({ "secrets": [{ "name": "k", "namespace": "n" }] });
        let list = call("GET", "/system/secrets", 200, &expected);
        assert_eq!(judge(&list, &answer(200, r#"[{"name":"k","namespace":"n"}]"#)), Ok(()));
        assert!(judge(&list, &answer(200, r#"[{"name":"k","namespace":"n","value":"v"}]"#)).is_err());
    }
}
