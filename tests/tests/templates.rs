//! The templates as `faas-cli build --shrinkwrap` lays them out: the function's folder in the template's, under `gpufn up`.
//! `make test-templates` needs Python.
// A test ends where something is wrong with it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::function::Function;
use tests::local::Local;
use tests::wait::until;

const PATIENCE: Duration = Duration::from_secs(10);

/// Functions that ask the driver by themselves, as a framework would.
const PYTHON: &str = r#"
import ctypes
import os
import time

def load():
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context, total = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t()
    for status in (
        cuda.cuInit(0),
        cuda.cuDeviceGet(ctypes.byref(device), 0),
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
        cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device),
    ):
        assert status == 0, f"the driver answered {status}"
    return total.value

def handle(event, context):
    if event.path == "/raise":
        raise RuntimeError("on purpose")
    if event.path == "/slow":
        open(os.environ["begun"], "w").close()
        time.sleep(1)
    return {
        "statusCode": 201,
        "headers": {"X-Length": len(event.body)},
        "body": {"memory": context.model, "method": event.method, "path": event.path, "query": event.query},
    }
"#;

const RUST: &str = r#"
use bytes::Bytes;
use http::{Request, Response};
use libloading::Library;

pub type Error = Box<dyn std::error::Error + Send + Sync>;
pub struct Model(usize);

pub async fn load() -> Result<Model, Error> {
    // The signatures of the driver's own header.
    unsafe {
        let cuda = Library::new("libcuda.so.1")?;
        let init = cuda.get::<unsafe extern "C" fn(u32) -> i32>("cuInit")?;
        let total = cuda.get::<unsafe extern "C" fn(*mut usize, i32) -> i32>("cuDeviceTotalMem_v2")?;
        let mut bytes = 0;
        match (init(0), total(&mut bytes, 0)) {
            (0, 0) => Ok(Model(bytes)),
            wrong => Err(format!("the driver answered {wrong:?}").into()),
        }
    }
}

pub async fn handle(request: Request<Bytes>, model: &Model) -> Result<Response<Bytes>, Error> {
    if request.uri().path() == "/raise" {
        return Err("on purpose".into());
    }
    let text = format!("{} {} {} {}", model.0, request.method(), request.uri(), request.body().len());
    Ok(Response::builder().status(201).header("X-Made-By", "rust").body(text.into())?)
}
"#;

fn template(language: &str) -> PathBuf {
    let templates = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("faas-templates").join("template");
    templates.join(language)
}

/// The template, with these files of the function in place of its own.
fn shrinkwrapped(language: &str, files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::Builder::new().prefix("gpufn-").tempdir().unwrap();
    copy(&template(language), folder.path());
    for (name, text) in files {
        fs::write(folder.path().join("function").join(name), text).unwrap();
    }
    folder
}

fn python() -> TempDir {
    shrinkwrapped("gpu-python3", &[("handler.py", PYTHON)])
}

/// Built with the versions that the project itself has, so that nothing is downloaded.
fn rust() -> TempDir {
    let own = fs::read_to_string(template("gpu-rust").join("function/Cargo.toml")).unwrap();
    let cargo = own.replace("[dependencies]\n", "[dependencies]\nlibloading = \"0.9\"\n");
    let folder = shrinkwrapped("gpu-rust", &[("Cargo.toml", &cargo), ("src/lib.rs", RUST)]);
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::copy(project.join("Cargo.lock"), folder.path().join("Cargo.lock")).unwrap();
    let target = project.join("target/templates");
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--offline", "--target-dir"]).arg(&target).current_dir(folder.path());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::copy(target.join("debug/function-server"), folder.path().join("function-server")).unwrap();
    folder
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn function(folder: &TempDir) -> Function {
    let function =
        Function::echo("function").set("image", json!(format!("file://{}", folder.path().display())));
    let function = function.label("gpufn.dev/enabled", "true").annotation("gpufn.dev/model", "resnet50");
    function.sm(50).quota(20, 50).memory("2Gi").policy("off").replicas(1, 2)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Python: make test-templates"]
async fn a_python_function_sees_its_share_and_answers_with_what_its_handler_returns() {
    let folder = python();
    let local = Local::up().start().await;
    let gateway = local.gateway();
    gateway.deploy_ready(&function(&folder)).await;

    let url = format!("{}/function/function/a%20b?x=1&x=2&y", gateway.url());
    let body = vec![b'a'; 3_000_000];
    let answer = gateway.client().post(url).body(body).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.headers()["x-length"], "3000000");
    assert_eq!(answer.headers()["content-type"], "application/json");
    let said: Value = answer.json().await.unwrap();
    let expected =
        json!({"memory": 2_u64 << 30, "method": "POST", "path": "/a b", "query": {"x": "2", "y": ""}});
    assert_eq!(said, expected);

    gateway.scale("function", 2).await;
    until("another replica, at a port of its own", PATIENCE, async || {
        (gateway.overview().await.function("function")?.serving().count() == 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Python: make test-templates"]
async fn a_handler_that_raises_is_a_500_and_the_next_request_is_answered() {
    let folder = python();
    let local = Local::up().start().await;
    let gateway = local.gateway();
    gateway.deploy_ready(&function(&folder)).await;
    let (status, text) = gateway.invoke("function/raise", "").await;
    assert_eq!(
        (status, &*text),
        (StatusCode::INTERNAL_SERVER_ERROR, "the handler failed; its log says why\n")
    );
    until("the reason in the function's log", PATIENCE, async || {
        let (_, logs) = gateway.call(Method::GET, "/system/logs?name=function", &Value::Null).await;
        logs.contains("RuntimeError: on purpose").then_some(())
    })
    .await;
    assert_eq!(gateway.invoke("function/", "").await.0, StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Python: make test-templates"]
async fn a_request_that_has_begun_is_answered_before_its_replica_ends() {
    let folder = python();
    let local = Local::up().start().await;
    let gateway = local.gateway();
    let begun = folder.path().join("begun");
    gateway.deploy_ready(&function(&folder).env("begun", begun.to_str().unwrap())).await;
    let url = format!("{}/function/function/slow", gateway.url());
    let slow = tokio::spawn(gateway.client().get(url).send());
    until("the handler to begin", PATIENCE, async || begun.is_file().then_some(())).await;
    let (status, text) =
        gateway.call(Method::DELETE, "/system/functions", &json!({"functionName": "function"})).await;
    assert!(status.is_success(), "{text}");
    assert_eq!(slow.await.unwrap().unwrap().status(), StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "builds a crate of its own: make test-templates"]
async fn a_rust_function_sees_its_share_and_answers_with_what_its_handler_returns() {
    let folder = rust();
    let local = Local::up().start().await;
    let gateway = local.gateway();
    gateway.deploy_ready(&function(&folder)).await;

    let url = format!("{}/function/function/a%20b?x=1", gateway.url());
    let answer = gateway.client().put(url).body(vec![b'a'; 3_000_000]).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.headers()["x-made-by"], "rust");
    assert_eq!(answer.text().await.unwrap(), format!("{} PUT /a%20b?x=1 3000000", 2_u64 << 30));
    let (status, text) = gateway.invoke("function/raise", "").await;
    assert_eq!(
        (status, &*text),
        (StatusCode::INTERNAL_SERVER_ERROR, "the handler failed; its log says why\n")
    );
    assert_eq!(gateway.invoke("function/", "").await.0, StatusCode::CREATED);
}

#[test]
#[ignore = "needs Python: make test-templates"]
fn a_new_functions_own_test_passes() {
    let folder = tempfile::tempdir().unwrap();
    copy(&template("gpu-python3"), folder.path());
    let mut command = Command::new("python3");
    command.args(["-m", "unittest", "discover", "-s", "function", "-p", "*_test.py", "-t", "."]);
    let output = command.current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Ran 1 test"));
}
