//! Chromium without a window, driven over its debugging protocol by a pipe: a page is loaded, looked at, typed into, pictured.
//!
//! Chromium comes from a package of npm, once, in `target/page`: it needs Node, and Linux on x86-64.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::wait::until;

/// Longest time for an answer of Chromium, and for a page to become what it should.
const PATIENCE: Duration = Duration::from_secs(20);
/// The mark of an installation that came to its end: the packages that it was made of.
const MARK: &str = "installed.json";

/// `target/page`.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("page")
}

fn files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("page")
}

/// Installs Chromium and axe, unless they are there.
fn installed() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| install().unwrap_or_else(|error| panic!("Chromium: {error:#}")))
}

fn install() -> Result<PathBuf> {
    let folder = folder();
    let wanted = fs::read_to_string(files().join("package-lock.json"))?;
    if fs::read_to_string(folder.join(MARK)).is_ok_and(|installed| installed == wanted) {
        return Ok(folder);
    }
    fs::create_dir_all(&folder)?;
    for name in ["package.json", "package-lock.json"] {
        fs::copy(files().join(name), folder.join(name))?;
    }
    let run = |command: &mut std::process::Command| {
        let name = command.get_program().display().to_string();
        let status =
            command.current_dir(&folder).stdin(Stdio::null()).status().with_context(|| name.clone())?;
        ensure!(status.success(), "{name} failed: {status}");
        Ok(())
    };
    // No script of a package is run.
    run(std::process::Command::new("npm").args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]))?;
    run(std::process::Command::new("node").arg(files().join("unpack.mjs")).arg(&folder))?;
    fs::write(folder.join(MARK), wanted)?;
    Ok(folder)
}

/// Source of axe-core, which finds what keeps people from using a page.
pub fn axe() -> String {
    let path = installed().join("node_modules/axe-core/axe.min.js");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Makes a page's clock and timers run faster, so that minutes pass in seconds.
const HURRY: &str = "
    const [now, begun, timeout] = [Date.now, Date.now(), window.setTimeout];
    Date.now = () => begun + (now() - begun) * hurry;
    window.setTimeout = (act, span) => timeout(act, span / hurry);
";

/// How a page is looked at.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Width and height of the window.
    pub size: (u32, u32),
    /// Whether a dark page is preferred.
    pub is_dark: bool,
    /// How many times faster than the world's the page's clock runs.
    pub hurry: u32,
}

/// A running Chromium; its end is the end of this.
#[derive(Debug)]
pub struct Browser {
    wire: Arc<Wire>,
    _child: Child,
    reader: JoinHandle<()>,
    _profile: TempDir,
}

/// Both directions of the pipe.
#[derive(Debug)]
struct Wire {
    to: tokio::sync::Mutex<ChildStdin>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<Value>>,
    /// What went wrong in pages, by session.
    problems: HashMap<String, Vec<String>>,
}

impl Browser {
    /// Starts it, with a profile of its own.
    ///
    /// # Panics
    /// Outside a runtime, which reads what it says.
    pub fn start() -> Self {
        let folder = installed();
        let profile = tempfile::tempdir().expect("a temp folder can be made");
        // It reads at descriptor 3 and writes to 4. The sandbox can't be had by root; what is shown here is our own page.
        let pipes = "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1";
        let mut command = Command::new("sh");
        command.args(["-c", pipes]).arg(folder.join("chromium")).args([
            "--headless=shell",
            "--remote-debugging-pipe",
            "--no-sandbox",
            "--no-zygote",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
        ]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.env("LD_LIBRARY_PATH", folder.join("lib")).env("HOME", profile.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("Chromium starts");
        let (to, from) = child.stdin.take().zip(child.stdout.take()).expect("both are pipes");
        let wire = Arc::new(Wire { to: to.into(), inner: Mutex::default() });
        let reader = tokio::spawn(read(BufReader::new(from), Arc::clone(&wire)));
        Self { wire, _child: child, reader, _profile: profile }
    }

    /// A new tab at `url`.
    pub async fn open(&self, url: &str, view: View) -> Tab {
        let View { size: (width, height), is_dark, hurry } = view;
        let made = self.wire.call(None, "Target.createTarget", json!({"url": "about:blank"})).await;
        let attach = json!({"targetId": made["targetId"], "flatten": true});
        let attached = self.wire.call(None, "Target.attachToTarget", attach).await;
        let session = attached["sessionId"].as_str().expect("a session has a name").to_string();
        let tab = Tab { wire: Arc::clone(&self.wire), session };
        for domain in ["Page", "Runtime", "Log"] {
            tab.call(&format!("{domain}.enable"), json!({})).await;
        }
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        tab.call("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = if is_dark { "dark" } else { "light" };
        let media = json!({"features": [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]});
        tab.call("Emulation.setEmulatedMedia", media).await;
        let source = format!("((hurry) => {{{HURRY}}})({hurry})");
        tab.call("Page.addScriptToEvaluateOnNewDocument", json!({"source": source})).await;
        tab.call("Page.navigate", json!({"url": url})).await;
        tab.until("location.protocol !== 'about:' && document.readyState === 'complete'").await;
        tab
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Wire {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call(&self, session: Option<&str>, method: &str, params: Value) -> Value {
        let (tell, told) = oneshot::channel();
        let id = {
            let mut inner = self.inner();
            inner.last += 1;
            let id = inner.last;
            inner.waiting.insert(id, tell);
            id
        };
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.lock().await.write_all(&bytes).await.expect("Chromium reads");
        let answer = tokio::time::timeout(PATIENCE, told).await;
        let mut answer = answer.unwrap_or_else(|_| panic!("{method}: no answer")).expect("Chromium runs");
        assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        answer["result"].take()
    }
}

async fn read(mut from: BufReader<ChildStdout>, wire: Arc<Wire>) {
    let mut bytes = Vec::new();
    while from.read_until(0, &mut bytes).await.is_ok_and(|count| count > 0) {
        let message: Value =
            serde_json::from_slice(bytes.trim_ascii_end().strip_suffix(&[0]).unwrap_or(&bytes))
                .expect("Chromium writes JSON");
        bytes.clear();
        let mut inner = wire.inner();
        if let Some(waiting) = message["id"].as_u64().and_then(|id| inner.waiting.remove(&id)) {
            // Whoever asked may have given up.
            let _ = waiting.send(message);
        } else if let Some((session, problem)) = message["sessionId"].as_str().zip(problem(&message)) {
            inner.problems.entry(session.into()).or_default().push(problem);
        }
    }
}

/// What an event says went wrong: errors in the console, exceptions, what the page's policy forbade.
fn problem(event: &Value) -> Option<String> {
    let params = &event["params"];
    let is_bad = match event["method"].as_str()? {
        "Runtime.exceptionThrown" => true,
        "Runtime.consoleAPICalled" => params["type"] == "error" || params["type"] == "assert",
        "Log.entryAdded" => params["entry"]["level"] == "error",
        _ => false,
    };
    is_bad.then(|| params.to_string())
}

/// A tab.
#[derive(Debug)]
pub struct Tab {
    wire: Arc<Wire>,
    session: String,
}

impl Tab {
    async fn call(&self, method: &str, params: Value) -> Value {
        self.wire.call(Some(&self.session), method, params).await
    }

    /// The value of an expression, or of what it promises.
    pub async fn value(&self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut answer = self.call("Runtime.evaluate", params).await;
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].take()
    }

    /// Waits until an expression is true.
    pub async fn until(&self, expression: &str) {
        until(expression, PATIENCE, async || (self.value(expression).await == true).then_some(())).await;
    }

    /// Presses and releases a key, by its name in `KeyboardEvent.key`.
    pub async fn press(&self, key: &str) {
        let codes = [
            ("Enter", 13),
            ("Tab", 9),
            ("Escape", 27),
            ("Home", 36),
            ("End", 35),
            ("ArrowUp", 38),
            ("ArrowDown", 40),
        ];
        let code = codes.iter().find(|(name, _)| *name == key).map(|(_, code)| *code);
        let text = match key {
            "Enter" => "\r",
            _ if code.is_some() => "",
            character => character,
        };
        let down =
            json!({"type": "keyDown", "key": key, "text": text, "windowsVirtualKeyCode": code.unwrap_or(0)});
        self.call("Input.dispatchKeyEvent", down).await;
        let up = json!({"type": "keyUp", "key": key, "windowsVirtualKeyCode": code.unwrap_or(0)});
        self.call("Input.dispatchKeyEvent", up).await;
    }

    /// Types a text where the focus is.
    pub async fn insert(&self, text: &str) {
        self.call("Input.insertText", json!({"text": text})).await;
    }

    /// Writes a picture of the window to a file.
    pub async fn picture(&self, path: &Path) {
        let answer = self.call("Page.captureScreenshot", json!({"format": "png"})).await;
        let data = answer["data"].as_str().expect("a picture is text");
        let bytes = base64::engine::general_purpose::STANDARD.decode(data).expect("it is base64");
        fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// What went wrong in the page since the last call.
    pub fn problems(&self) -> Vec<String> {
        self.wire.inner().problems.remove(&self.session).unwrap_or_default()
    }
}
