//! Modes `openwhisk` and `actionloop`: the platform's interface of an action, `/init` and `/run`, and the single entry `/`
//! of actions on Knative. Activations never overlap unless the action allows it. It decides nothing about what they say.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep_until};

use crate::answer::{Answer, text};
use crate::child::restart::{Decision, RestartPolicy};
use crate::config::Config;
use crate::exchange::Exchange;
use crate::health::{Health, Phase};
use crate::logs::Lines;
use crate::mode::Mode;
use crate::mode::fork::process::{Event, Input, Recipe};

pub(crate) mod code;
pub(crate) mod line;
pub(crate) mod message;
pub(crate) mod web;

use line::{Loop, Start};
use message::{Init, MOST_INIT, Refusal, Run, late, long, result};
use web::{Asked, Entry, response};

/// Ends the lines of an activation in both streams.
const MARKER: &str = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX\n";

/// Longest argument that Linux gives a process (`MAX_ARG_STRLEN` in `linux/binfmts.h`), without the byte that ends it.
const LONGEST_ARGUMENT: usize = 131_071;

/// Larger than the parameters that a message may have: the rest of the message.
const BESIDE_PARAMETERS: usize = 1 << 20;

/// An `OpenWhisk` action.
#[derive(Debug)]
pub(crate) struct ActionMode {
    recipe: Recipe,
    is_loop: bool,
    folder: PathBuf,
    most: usize,
    limit: Option<Duration>,
    restart: RestartPolicy,
    health: Arc<Health>,
    environment: Environment,
    state: Mutex<State>,
    is_ready: AtomicBool,
}

/// What the container's environment says of the action.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // Each is a variable of its own.
struct Environment {
    allows_concurrent: bool,
    says_when_ready: bool,
    execution: Option<String>,
    namespace: String,
    is_raw: bool,
    main: Option<String>,
    code: Option<String>,
    is_binary: bool,
}

impl Environment {
    fn read(get: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let flag = |name: &str| get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        Self {
            allows_concurrent: flag("__OW_ALLOW_CONCURRENT"),
            says_when_ready: get("OW_WAIT_FOR_ACK").or_else(|| get("__OW_WAIT_FOR_ACK")).is_some(),
            execution: get("OW_EXECUTION_ENV"),
            namespace: get("__OW_NAMESPACE").unwrap_or_default(),
            is_raw: flag("__OW_ACTION_RAW"),
            main: get("__OW_ACTION_MAIN"),
            code: get("__OW_ACTION_CODE"),
            is_binary: flag("__OW_ACTION_BINARY"),
        }
    }
}

/// How far the action has come.
#[derive(Debug, Default)]
struct State {
    is_initialized: bool,
    /// What `/init` brought, if it did.
    program: Option<OsString>,
    variables: Vec<(String, String)>,
    running: Option<Loop>,
    /// The action has ended and does not start again.
    is_over: bool,
    restarts: u32,
}

impl ActionMode {
    /// As configured; `get` reads the environment.
    pub(crate) fn new(
        config: &Config,
        recipe: Recipe,
        health: Arc<Health>,
        get: impl Fn(&str) -> Option<String>,
    ) -> Self {
        Self {
            recipe,
            is_loop: config.mode == Mode::ActionLoop,
            folder: config.lock_folder.join("action"),
            most: config.action_payload,
            limit: config.exec_timeout,
            restart: config.restart,
            health,
            environment: Environment::read(get),
            state: Mutex::default(),
            is_ready: AtomicBool::new(false),
        }
    }

    /// Answers one message of the platform.
    pub(crate) async fn answer(&self, request: Request<Incoming>, exchange: Exchange) -> Response<Answer> {
        let exchange = exchange.unlogged();
        let answered = match (request.method(), request.uri().path()) {
            (&Method::POST, "/init") => self.init(request).await,
            (&Method::POST, "/run") => self.run(request).await,
            (_, "/") => self.enter(request).await,
            (_, "/init" | "/run") => Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "allowed is POST")),
            _ => Err(Refusal::new(StatusCode::NOT_FOUND, "allowed is /init, /run or /")),
        };
        let answer =
            answered.unwrap_or_else(|refusal| text(refusal.status, "application/json", refusal.body()));
        exchange.finish(answer.status());
        answer
    }

    async fn init(&self, request: Request<Incoming>) -> Result<Response<Answer>, Refusal> {
        let (_, bytes) = read(request, MOST_INIT).await?;
        self.prepare(Init::read(&bytes)?).await?;
        Ok(text(StatusCode::OK, "application/json", "{\"ok\":true}\n"))
    }

    async fn run(&self, request: Request<Incoming>) -> Result<Response<Answer>, Refusal> {
        let (_, bytes) = read(request, self.most + BESIDE_PARAMETERS).await?;
        let run = Run::read(&bytes, self.most)?;
        let value = self.activate(&run, &bytes).await?;
        Ok(text(StatusCode::OK, "application/json", value.to_string()))
    }

    /// The single entry.
    async fn enter(&self, request: Request<Incoming>) -> Result<Response<Answer>, Refusal> {
        let (head, bytes) = read(request, MOST_INIT).await?;
        let asked = Asked {
            method: head.method.as_str(),
            query: head.uri.query().unwrap_or_default(),
            headers: &head.headers,
            namespace: &self.environment.namespace,
            is_raw: self.environment.is_raw,
            is_dedicated: self.environment.code.is_some(),
        };
        let entry = Entry::read(&bytes, &asked, self.most)?;
        if let Some(init) = entry.init {
            self.prepare(init).await?;
        } else if !self.is_ready.load(Ordering::Acquire) && self.environment.code.is_some() {
            self.prepare(self.dedicated()).await?;
        }
        let Some(run) = entry.run else {
            return Ok(text(StatusCode::OK, "application/json", "{\"ok\":true}\n"));
        };
        let message = whole_message(&run);
        let value = self.activate(&run, message.as_bytes()).await?;
        Ok(response(value)
            .map(|body| Answer::Text(Some(body.into()).filter(|body: &Bytes| !body.is_empty()))))
    }

    /// The action that the image's environment holds.
    fn dedicated(&self) -> Init {
        let Environment { code, main, is_binary, .. } = &self.environment;
        Init { code: code.clone(), main: main.clone(), is_binary: *is_binary, environment: Vec::new() }
    }

    /// Makes the action ready, once.
    async fn prepare(&self, init: Init) -> Result<(), Refusal> {
        let mut state = self.state.lock().await;
        if state.is_initialized {
            let words = "Cannot initialize the action more than once.";
            let _ = writeln!(io::stderr(), "{words}");
            return Err(Refusal::new(StatusCode::FORBIDDEN, words));
        }
        if let Some(code) = init.code.clone() {
            let (folder, init) = (self.folder.clone(), init.clone());
            let placed = tokio::task::spawn_blocking(move || code::place(&init, &code, &folder)).await;
            let program = placed.map_err(|_| internal())??;
            if self.recipe.program.is_empty() {
                state.program = Some(program.into());
            }
        } else if self.recipe.program.is_empty() {
            return Err(Refusal::new(StatusCode::FORBIDDEN, "Missing main/no code to execute."));
        }
        state.variables = init.environment;
        if let Some(main) = init.main {
            state.variables.push(("__OW_ACTION_MAIN".to_string(), main));
        }
        if self.is_loop {
            let started = self.start(&state);
            match self.within(self.limit, true, started).await {
                Ok(action) => state.running = Some(action),
                Err(refusal) => {
                    end_logs();
                    return Err(refusal);
                }
            }
        }
        state.is_initialized = true;
        self.is_ready.store(true, Ordering::Release);
        Ok(())
    }

    /// Runs one activation.
    async fn activate(&self, run: &Run, message: &[u8]) -> Result<Value, Refusal> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let limit = run.time_left(self.limit, now);
        let outcome = if self.is_loop {
            let state = self.state.lock().await;
            self.activate_loop(state, message, limit).await
        } else {
            self.activate_process(run, limit).await
        };
        end_logs();
        outcome
    }

    async fn activate_process(&self, run: &Run, limit: Option<Duration>) -> Result<Value, Refusal> {
        let state = self.state.lock().await;
        let mut recipe = self.recipe.clone();
        if let Some(program) = &state.program {
            recipe.program.clone_from(program);
        }
        if recipe.program.is_empty() {
            let words = "The action failed to locate a binary. See logs for details.";
            return Err(Refusal::new(StatusCode::BAD_GATEWAY, words));
        }
        let variables = [&state.variables[..], &run.context].concat();
        // The lock is held for the whole activation, unless activations may overlap.
        let _only = (!self.environment.allows_concurrent).then_some(state);
        let parameters = run.value.to_string();
        let argument = (parameters.len() <= LONGEST_ARGUMENT).then(|| OsString::from(&parameters));
        let work = async {
            let started = recipe.start(Input::Bytes(parameters.into()), variables, argument.as_deref());
            let process = started.map_err(|error| {
                let _ = writeln!(io::stdout(), "{}: {error}", recipe.program.display());
                no_result()
            })?;
            last_line(process, &recipe, self.most).await
        };
        self.within(limit, false, work).await
    }

    async fn activate_loop(
        &self,
        mut state: MutexGuard<'_, State>,
        message: &[u8],
        limit: Option<Duration>,
    ) -> Result<Value, Refusal> {
        let line: Vec<u8> = message.iter().copied().filter(|byte| *byte != b'\n').collect();
        let mut action = match state.running.take() {
            Some(action) => action,
            None if state.is_over || self.program(&state).is_empty() => {
                return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "no action defined yet"));
            }
            None => self.within(limit, true, self.start(&state)).await?,
        };
        // Taken out, so that an activation whose client goes away ends the action: its result would be the next one's.
        let since = Instant::now();
        let work = async { Ok(action.run(&line, self.most).await) };
        match self.within(limit, false, work).await {
            Ok(Ok(outcome)) => {
                state.running = Some(action);
                outcome
            }
            Ok(Err(line::Exited)) => {
                self.ended(&mut state, since.elapsed());
                Err(Refusal::new(StatusCode::BAD_REQUEST, "command exited"))
            }
            Err(refusal) => {
                self.ended(&mut state, since.elapsed());
                Err(refusal)
            }
        }
    }

    /// The action has ended by itself or for its lateness: it starts again with the next activation, or never.
    fn ended(&self, state: &mut State, ran: Duration) {
        match self.restart.decide(false, ran, state.restarts) {
            Decision::Restart(_) => state.restarts = RestartPolicy::count(ran, state.restarts),
            Decision::GiveUp | Decision::Ignore => {
                state.is_over = true;
                self.health.set_phase(Phase::Gone);
            }
        }
    }

    fn program<'a>(&'a self, state: &'a State) -> &'a OsStr {
        state.program.as_deref().unwrap_or(&self.recipe.program)
    }

    async fn start(&self, state: &State) -> Result<Loop, Refusal> {
        let loader =
            self.recipe.environment.iter().map(|(name, value)| (OsString::from(name), value.clone()));
        let own = state.variables.iter().map(|(name, value)| (name.into(), value.into()));
        let mut environment: Vec<(OsString, OsString)> = loader.chain(own).collect();
        if self.environment.says_when_ready {
            environment.push(("__OW_WAIT_FOR_ACK".into(), "1".into()));
        }
        if let Some(execution) = &self.environment.execution {
            environment.push(("__OW_EXECUTION_ENV".into(), execution.into()));
        }
        let program = self.program(state);
        let args = if state.program.is_some() { &[] } else { &self.recipe.args[..] };
        let says_so = self.environment.says_when_ready;
        let start = Start { program, args, environment, says_so, most: self.most };
        Loop::start(start, &self.recipe.processes).await
    }

    /// `work`, for as long as it may take.
    async fn within<T>(
        &self,
        limit: Option<Duration>,
        is_init: bool,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let Some(limit) = limit else { return work.await };
        let deadline = Instant::now() + limit;
        tokio::select! {
            biased;
            done = work => done,
            () = sleep_until(deadline) => Err(late(self.limit.unwrap_or(limit).min(limit), is_init)),
        }
    }
}

/// The last line that a process writes, as its result; the others are logged as they come.
async fn last_line(
    mut process: crate::mode::fork::process::Process,
    recipe: &Recipe,
    most: usize,
) -> Result<Value, Refusal> {
    let mut lines = Lines::new("stdout", recipe.logs);
    let mut last = Vec::new();
    // Of the last line, also of what was not kept of it.
    let (mut length, mut has_ended) = (0, false);
    loop {
        let bytes = match process.next().await {
            Event::Bytes(bytes) => bytes,
            Event::Ended(_) => break,
            // There is no client behind known bytes.
            Event::NoBody(_) => return Err(internal()),
        };
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if has_ended {
                lines.push(&last, &mut io::stdout());
                last.clear();
                length = 0;
            }
            length += part.len();
            has_ended = part.ends_with(b"\n");
            let room = (most + 1).saturating_sub(last.len());
            last.extend_from_slice(&part[..part.len().min(room)]);
            if has_ended && !last.ends_with(b"\n") {
                last.push(b'\n');
            }
        }
    }
    process.release();
    let trimmed = last.trim_ascii();
    if length > most + 1 {
        return Err(long(length, most));
    }
    result(trimmed, most).inspect_err(|_| {
        lines.push(trimmed, &mut io::stdout());
        lines.end(&mut io::stdout());
    })
}

/// The message to an action that was entered through `/`.
fn whole_message(run: &Run) -> String {
    let context = run.context.iter().map(|(name, value)| {
        let name = name.trim_start_matches("__OW_").to_lowercase();
        (name, Value::from(value.as_str()))
    });
    let mut message: serde_json::Map<String, Value> = context.collect();
    message.insert("value".to_string(), run.value.clone());
    Value::Object(message).to_string()
}

/// The lines of the activation are complete.
fn end_logs() {
    let _ = io::stdout().write_all(MARKER.as_bytes()).and_then(|()| io::stdout().flush());
    let _ = io::stderr().write_all(MARKER.as_bytes());
}

fn no_result() -> Refusal {
    Refusal::new(StatusCode::BAD_GATEWAY, "The action did not return a dictionary or array.")
}

fn internal() -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal error.")
}

/// The head and the whole body of a request.
async fn read(request: Request<Incoming>, most: usize) -> Result<(http::request::Parts, Bytes), Refusal> {
    let (head, body) = request.into_parts();
    let length = |headers: &HeaderMap| {
        headers.get(header::CONTENT_LENGTH).map(HeaderValue::to_str)?.ok()?.parse().ok()
    };
    if let Some(length) = length(&head.headers).filter(|length| *length > most) {
        return Err(Refusal::too_large("Request", length, most));
    }
    match Limited::new(body, most).collect().await {
        Ok(body) => Ok((head, body.to_bytes())),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Refusal::too_large("Request", most + 1, most))
        }
        Err(error) => {
            let words = format!("Error reading request body: {error}");
            Err(Refusal::new(StatusCode::BAD_REQUEST, words))
        }
    }
}
