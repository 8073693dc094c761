//! `OpenWhisk` actions: `/init`, `/run`, the single entry, and what the platform reads in the logs.

use std::io::{Cursor, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::StatusCode;
use serde_json::{Value, json};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::fixture::{Watchdog, bare, with_script};

const MARKER: &str = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX";

/// Echoes its parameters, and says something before.
const ECHO: &str =
    "echo working\necho aside >&2\nprintf '{\"got\":%s,\"id\":\"%s\"}\\n' \"$1\" \"$__OW_ACTIVATION_ID\"";

/// Answers each line on file descriptor 3.
const LOOP: &str = "while read -r line; do\n\
    case $line in *die*) exit 3;; *slow*) sleep 1000;; *bad*) echo 7 >&3; continue;; esac\n\
    echo working; printf '{\"got\":%s}\\n' \"$line\" >&3\n\
    done";

async fn post(watchdog: &Watchdog, path: &str, message: &Value) -> (u16, Value) {
    let answer = watchdog.request("POST", path).body(message.to_string()).send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

fn error(words: &str) -> Value {
    json!({ "error": words })
}

#[tokio::test]
async fn an_action_of_the_image_is_made_ready_once_and_run() {
    let watchdog = with_script("openwhisk", ECHO).start().await;
    let init = json!({"value": {"name": "f", "main": "main", "env": {"A": "1"}}});
    assert_eq!(post(&watchdog, "/init", &init).await, (200, json!({"ok": true})));
    let again = post(&watchdog, "/init", &init).await;
    assert_eq!(again, (403, error("Cannot initialize the action more than once.")));
    let run = json!({"value": {"a": "☃"}, "activation_id": "abc", "deadline": 0});
    let answer = post(&watchdog, "/run", &run).await;
    assert_eq!(answer, (200, json!({"got": {"a": "☃"}, "id": "abc"})));
    assert_eq!(watchdog.stdout(), format!("working\n{MARKER}\n"));
    watchdog.line(MARKER).await;
    let lines = watchdog.lines();
    let at = |words: &str| lines.iter().position(|line| line == words).unwrap();
    assert!(at("aside") < at(MARKER), "{lines:?}");
    // The platform reads the log of an activation; nothing else may be in it.
    assert!(!lines.iter().any(|line| line.contains("/run")), "{lines:?}");
}

#[tokio::test]
async fn what_an_action_must_not_do_is_told_in_the_platforms_words() {
    let watchdog = with_script("openwhisk", "echo 7").env("openwhisk_payload_limit", 100).start().await;
    let bad = post(&watchdog, "/run", &json!({"value": {}})).await;
    assert_eq!(bad, (502, error("The action did not return a dictionary or array.")));
    assert_eq!(watchdog.stdout(), format!("7\n{MARKER}\n"));
    let text = post(&watchdog, "/run", &json!({"value": "x"})).await;
    assert_eq!(text, (404, error("The action did not receive a dictionary or array as an argument.")));
    let large = post(&watchdog, "/run", &json!({"value": {"a": "x".repeat(100)}})).await;
    assert_eq!(large, (413, error("Request larger than allowed: 108 > 100 bytes.")));
    assert_eq!(watchdog.status("/run").await, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(watchdog.status("/else").await, StatusCode::NOT_FOUND);
    let script = "head -c 200 /dev/zero | tr '\\0' x";
    let watchdog = with_script("openwhisk", script).env("openwhisk_payload_limit", 100).start().await;
    let (status, answer) = post(&watchdog, "/run", &json!({})).await;
    let words = "The action produced a response that exceeded the allowed length: 200 > 100 bytes.";
    assert_eq!((status, answer), (502, error(words)));
}

#[tokio::test]
async fn a_line_that_is_too_long_for_a_result_hides_none() {
    let script = "head -c 300000 /dev/zero | tr '\\0' x; echo; echo '{\"a\":1}'";
    let watchdog = with_script("openwhisk", script).env("openwhisk_payload_limit", 100).start().await;
    assert_eq!(post(&watchdog, "/run", &json!({"value": {}})).await, (200, json!({"a": 1})));
    let stdout = watchdog.stdout();
    assert!(stdout.starts_with('x') && stdout.ends_with(&format!("x\n{MARKER}\n")), "{stdout}");
}

#[tokio::test]
async fn an_action_comes_with_its_code() {
    for mode in ["openwhisk", "actionloop"] {
        let watchdog = bare().env("mode", mode).start().await;
        assert!(post(&watchdog, "/run", &json!({"value": {}})).await.0 >= 500);
        let empty = post(&watchdog, "/init", &json!({"value": {}})).await;
        assert_eq!(empty, (403, error("Missing main/no code to execute.")));
        let no_base64 = json!({"value": {"code": "***", "binary": true}});
        assert_eq!(post(&watchdog, "/init", &no_base64).await.0, 400);
        let script = if mode == "openwhisk" { ECHO } else { LOOP };
        let code = STANDARD.encode(format!("#!/bin/sh\n{script}\n"));
        let init = json!({"value": {"code": code, "binary": true}});
        assert_eq!(post(&watchdog, "/init", &init).await, (200, json!({"ok": true})));
        let (status, answer) = post(&watchdog, "/run", &json!({"value": {"a": 1}})).await;
        assert_eq!(status, 200, "{answer}");
        assert!(answer["got"] == json!({"a": 1}) || answer["got"] == json!({"value": {"a": 1}}), "{answer}");
    }
}

/// An archive in base64, packed.
fn archive(files: &[(&str, &str, u32)]) -> String {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, text, mode) in files {
        let options = SimpleFileOptions::default().unix_permissions(*mode);
        archive.start_file(*name, options.compression_method(CompressionMethod::Deflated)).unwrap();
        archive.write_all(text.as_bytes()).unwrap();
    }
    STANDARD.encode(archive.finish().unwrap().into_inner())
}

#[tokio::test]
async fn an_action_comes_as_an_archive() {
    let script = "#!/bin/sh\necho \"{\\\"got\\\":$(\"${0%/*}/lib/tool\"),\\\"length\\\":$(wc -c < \"${0%/*}/data\")}\"\n";
    let data = "0123456789".repeat(30_000);
    // The program gets its right to run, as archives of other systems have none.
    let files =
        [("exec", script, 0o644), ("lib/tool", "#!/bin/sh\necho 42\n", 0o755), ("data", &data, 0o644)];
    let watchdog = bare().env("mode", "openwhisk").start().await;
    let bad = json!({"value": {"code": STANDARD.encode("PK\x03\x04 and no more"), "binary": true}});
    let (status, answer) = post(&watchdog, "/init", &bad).await;
    let words = "The action can't be unpacked: the archive can't be read: ";
    assert!(status == 502 && answer["error"].as_str().unwrap().starts_with(words), "{answer}");
    let nothing = json!({"value": {"code": archive(&[("other", "", 0o755)]), "binary": true}});
    let words = "The action failed to generate or locate a binary. See logs for details.";
    assert_eq!(post(&watchdog, "/init", &nothing).await, (502, error(words)));
    // What was refused may be sent again.
    let init = json!({"value": {"code": archive(&files), "binary": true}});
    assert_eq!(post(&watchdog, "/init", &init).await, (200, json!({"ok": true})));
    let answer = post(&watchdog, "/run", &json!({"value": {}})).await;
    assert_eq!(answer, (200, json!({"got": 42, "length": 300_000})));
}

#[tokio::test]
async fn activations_do_not_overlap_unless_they_may() {
    let script = "set -e\nmkdir \"${0%/*}/only\"\nsleep 0.2\nrmdir \"${0%/*}/only\"\necho '{}'";
    let watchdog = with_script("openwhisk", script).start().await;
    let run = json!({"value": {}});
    let (first, second) = tokio::join!(post(&watchdog, "/run", &run), post(&watchdog, "/run", &run));
    assert_eq!((first.0, second.0), (200, 200));
    let script = "mkdir \"${0%/*}/$$\"\nwhile [ $(ls -d \"${0%/*}\"/[0-9]* | wc -l) -lt 2 ]; do sleep 0.02; done\necho '{}'";
    let watchdog = with_script("openwhisk", script).env("__OW_ALLOW_CONCURRENT", "true").start().await;
    let (first, second) = tokio::join!(post(&watchdog, "/run", &run), post(&watchdog, "/run", &run));
    assert_eq!((first.0, second.0), (200, 200));
}

#[tokio::test]
async fn an_action_has_as_long_as_the_platform_gives_it() {
    let watchdog = with_script("openwhisk", "sleep 1000").env("exec_timeout", "300ms").start().await;
    let (status, answer) = post(&watchdog, "/run", &json!({"value": {}})).await;
    assert_eq!((status, answer), (504, error("The action exceeded its time limits of 300 milliseconds.")));
    let watchdog = with_script("openwhisk", "sleep 1000").start().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let deadline = u64::try_from(now.as_millis()).unwrap() + 300;
    assert_eq!(post(&watchdog, "/run", &json!({"value": {}, "deadline": deadline})).await.0, 504);
}

#[tokio::test]
async fn a_loop_reads_lines_and_answers_on_descriptor_3() {
    let watchdog = with_script("actionloop", LOOP).start().await;
    assert_eq!(post(&watchdog, "/init", &json!({"value": {}})).await, (200, json!({"ok": true})));
    for n in 0..20 {
        let run = json!({"value": {"n": n, "text": "x".repeat(n * 10_000)}, "namespace": "guest"});
        assert_eq!(post(&watchdog, "/run", &run).await, (200, json!({"got": run})));
    }
    assert_eq!(watchdog.stdout(), format!("working\n{MARKER}\n").repeat(20));
    let bad = post(&watchdog, "/run", &json!({"value": {"bad": 1}})).await;
    assert_eq!(bad, (502, error("The action did not return a dictionary or array.")));
    let spread = "{\n\"value\":\n{}\n}";
    let answer = watchdog.request("POST", "/run").body(spread).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_loop_that_ends_is_never_healthy_again_unless_it_may_start_again() {
    let watchdog = with_script("actionloop", LOOP).start().await;
    let die = json!({"value": {"die": 1}});
    assert_eq!(post(&watchdog, "/run", &die).await, (400, error("command exited")));
    let after = post(&watchdog, "/run", &json!({"value": {}})).await;
    assert_eq!(after, (500, error("no action defined yet")));
    assert_eq!(watchdog.status("/_/health").await, StatusCode::SERVICE_UNAVAILABLE);
    let watchdog = with_script("actionloop", LOOP).env("restart_policy", "on-failure").start().await;
    assert_eq!(post(&watchdog, "/run", &die).await.0, 400);
    assert_eq!(post(&watchdog, "/run", &json!({"value": {}})).await.0, 200);
    assert_eq!(watchdog.status("/_/health").await, StatusCode::OK);
}

#[tokio::test]
async fn a_loop_that_is_late_never_gives_its_result_to_the_next_activation() {
    let watchdog = with_script("actionloop", LOOP)
        .env("restart_policy", "always")
        .env("exec_timeout", "400ms")
        .start()
        .await;
    assert_eq!(post(&watchdog, "/run", &json!({"value": {"slow": 1}})).await.0, 504);
    let next = json!({"value": {"next": 1}});
    assert_eq!(post(&watchdog, "/run", &next).await, (200, json!({"got": next})));
}

#[tokio::test]
async fn a_loop_can_say_when_it_has_started() {
    for (ack, status) in [("{\"ok\":true}", 200), ("{\"ok\":false}", 502), ("no", 502)] {
        let script = format!("[ -n \"$__OW_WAIT_FOR_ACK\" ] && echo '{ack}' >&3\n{LOOP}");
        let watchdog = with_script("actionloop", &script).env("OW_WAIT_FOR_ACK", "1").start().await;
        let (found, answer) = post(&watchdog, "/init", &json!({"value": {}})).await;
        assert_eq!(found, status, "{answer}");
    }
    let watchdog = with_script("actionloop", "exit 1").env("OW_WAIT_FOR_ACK", "1").start().await;
    let ended = post(&watchdog, "/init", &json!({"value": {}})).await;
    let words = "cannot start action: Command exited abruptly during initialization.";
    assert_eq!(ended, (502, error(words)));
}

#[tokio::test]
async fn on_knative_one_message_makes_an_action_ready_and_runs_it() {
    let script = "#!/bin/sh\nprintf '{\"statusCode\":418,\"headers\":{\"X-A\":\"b\"},\"body\":\"<p>%s\"}' \"$__OW_ACTION_NAME\"";
    let watchdog = bare().without("port").env("PORT", 0).env("mode", "openwhisk").start().await;
    let code = STANDARD.encode(script);
    let message = json!({"init": {"name": "f", "code": code, "binary": true},
        "activation": {"namespace": "guest", "deadline": 0}, "value": {"a": 1}});
    let answer = watchdog.request("POST", "/").body(message.to_string()).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::IM_A_TEAPOT);
    assert_eq!(answer.headers()["x-a"], "b");
    assert_eq!(answer.headers()["content-type"], "text/html");
    assert_eq!(answer.text().await.unwrap(), "<p>f");
    let dedicated =
        bare().env("mode", "openwhisk").env("__OW_ACTION_CODE", "#!/bin/sh\necho '{\"payload\":1}'");
    let dedicated = dedicated.start().await;
    let answer = post(&dedicated, "/", &json!({"value": {}})).await;
    assert_eq!(answer, (200, json!({"payload": 1})));
    let init = post(&dedicated, "/", &json!({"init": {}})).await;
    assert_eq!(init, (404, error("Cannot initialize a runtime with a dedicated function.")));
}
