//! What the environment asks of the watchdog: of-watchdog's variables, and what is added to them.
//! Pure: it reads through a lookup function and never touches the process's environment, files or clock.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use gpu_share::invalid::Invalid;
use http::HeaderValue;
use http::uri::PathAndQuery;

use crate::child::restart::RestartPolicy;
use crate::gpu::GpuConfig;
use crate::jwt::JwtConfig;
use crate::mode::Mode;
use crate::mode::http::{BatchConfig, Upstream};

pub(crate) mod duration;

use duration::{SignedDuration, parse_or_seconds};

/// Longest line of the function that is logged in one piece, unless configured otherwise, in bytes.
const LOG_BUFFER: usize = 64 * 1024;

/// Most of a request body that is held back to learn its length, unless configured otherwise, in bytes.
const BODY_BUFFER: u64 = 64 << 20;

/// Longest answer in mode `serializing`, unless configured otherwise, in bytes.
const OUTPUT: usize = 64 << 20;

/// Time that an `OpenWhisk` action has, unless configured otherwise, as on the platform itself.
const ACTION_TIMEOUT: Duration = Duration::from_mins(1);

/// Largest parameters and largest result of an `OpenWhisk` action, unless configured otherwise, in bytes.
const ACTION_PAYLOAD: usize = 1 << 20;

/// Variables of the classic watchdog that change nothing here with this value, and why.
const CLASSIC: [(&str, &str, &str); 4] = [
    ("cgi_headers", "false", "a process for each request always gets the headers"),
    ("marshal_request", "true", "the function gets the body as it was sent"),
    ("write_debug", "true", "a request is one line in the log"),
    ("debug_headers", "true", "headers are not logged"),
];

/// Longest time that an inference waits for others, unless configured otherwise.
const BATCH_DELAY: SignedDuration = SignedDuration(Ok(Duration::from_millis(5)));

/// Why the watchdog can't start as configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// Only a Go program can link a handler in.
    #[error(
        "mode is \"inproc\", allowed is {}: the function is a process of its own, and inproc is for Go programs that \
         contain their watchdog",
        Mode::NAMES
    )]
    InProcess,
    /// Without a function there is nothing to watch.
    #[error("provide a \"function_process\" or \"fprocess\" environmental variable for your function")]
    NoFunction,
    /// There is no such mode.
    #[error(transparent)]
    Mode(Invalid),
    /// A value that is not allowed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// Everything that the environment can set.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // Each is a variable of its own.
pub(crate) struct Config {
    /// The function's command, as it was given.
    pub(crate) fprocess: String,
    /// Which protocol the function speaks.
    pub(crate) mode: Mode,
    /// Where the function listens; only in mode `http`.
    pub(crate) upstream: Option<Upstream>,
    /// Whether faults of of-watchdog that are mended here come back.
    pub(crate) compat: bool,
    /// Type of what a function writes that is a process for each request.
    pub(crate) content_type: HeaderValue,
    /// Whether what such a function writes to stderr is part of its answer.
    pub(crate) combine_output: bool,
    /// Longest answer in mode `serializing`, in bytes; `None` for no limit.
    pub(crate) output_limit: Option<usize>,
    /// Folder of the files in mode `static`.
    pub(crate) static_path: PathBuf,
    /// Largest parameters and largest result of an action, in bytes.
    pub(crate) action_payload: usize,
    /// What happens when the function ends by itself.
    pub(crate) restart: RestartPolicy,
    /// Address of the function's and the metrics' listener.
    pub(crate) address: IpAddr,
    /// Port of the function's listener; 0 takes a free one.
    pub(crate) port: u16,
    /// Port of the metrics' listener; `None` for no metrics.
    pub(crate) metrics_port: Option<u16>,
    /// Most time to receive a request, and to wait for the next one on a connection.
    pub(crate) read_timeout: Option<Duration>,
    /// Most time from a request's head to the end of its answer.
    pub(crate) write_timeout: Option<Duration>,
    /// Most time that the function may take.
    pub(crate) exec_timeout: Option<Duration>,
    /// Time from SIGTERM to the listener's end.
    pub(crate) healthcheck_interval: Duration,
    /// Most requests at once, 0 for any number.
    pub(crate) max_inflight: usize,
    /// Most requests that wait for a slot.
    pub(crate) max_queue: usize,
    /// Longest time that a request waits for a slot.
    pub(crate) queue_timeout: Option<Duration>,
    /// Whether the function speaks HTTP/2.
    pub(crate) upstream_h2c: bool,
    /// How inferences are put together; `None`: each goes alone.
    pub(crate) batch: Option<BatchConfig>,
    /// Whose tokens callers need; `None`: anyone may call.
    pub(crate) jwt: Option<JwtConfig>,
    /// Path at which the function says whether it is ready.
    pub(crate) ready_path: Option<PathAndQuery>,
    /// Most bytes held back to send the function a `Content-Length`; `None` streams, chunked.
    pub(crate) buffer_body: Option<u64>,
    /// Whether there is no lock file.
    pub(crate) suppress_lock: bool,
    /// Folder of the lock file.
    pub(crate) lock_folder: PathBuf,
    /// What is logged, and how.
    pub(crate) logs: LogConfig,
    /// The share of a GPU, if one is asked for.
    pub(crate) gpu: Option<GpuConfig>,
    /// Values that were ignored, each in one line.
    pub(crate) warnings: Vec<String>,
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogConfig {
    /// Whether the function's lines get the time and the name of their stream.
    pub(crate) prefix: bool,
    /// Bytes after which a line of the function is split; `None` for never.
    pub(crate) line_limit: Option<usize>,
    /// Whether a longer line ends the log of its stream instead.
    pub(crate) gives_up: bool,
    /// Whether a request's line ends with its `X-Call-Id`.
    pub(crate) call_id: bool,
}

impl Config {
    /// Reads the configuration through `lookup`, which gives a variable's value if it is set.
    pub(crate) fn read(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut reader = Reader { lookup, warnings: Vec::new() };
        let mode = reader.mode()?;
        let fprocess = reader.later(["fprocess", "function_process"]);
        if fprocess.is_none() && mode.needs_function() {
            return Err(ConfigError::NoFunction);
        }
        let upstream = reader.upstream(mode)?;
        let compat = reader.compat()?;
        reader.classic();
        let default = SignedDuration(Ok(Duration::from_secs(30)));
        let exec = if mode.is_action() { SignedDuration(Ok(ACTION_TIMEOUT)) } else { default };
        let write_timeout = reader.span("write_timeout", default);
        if write_timeout.0 == Ok(Duration::ZERO) {
            return Err(Invalid::new("write_timeout", "0", "more than 0s, or less for no limit").into());
        }
        let interval = reader.span("healthcheck_interval", write_timeout).above_zero().unwrap_or_default();
        // Knative's queue-proxy has taken the pod out of rotation before it sends SIGTERM.
        let on_knative = reader.get("K_REVISION").is_some();
        Ok(Self {
            fprocess: fprocess.unwrap_or_default(),
            mode,
            upstream,
            compat,
            content_type: reader.content_type()?,
            combine_output: reader.flag("combine_output"),
            output_limit: Some(reader.number("output_limit", if compat { 0 } else { OUTPUT }))
                .filter(|limit| *limit != 0),
            static_path: reader.get("static_path").unwrap_or_else(|| "/home/app/public".into()).into(),
            action_payload: reader.number("openwhisk_payload_limit", ACTION_PAYLOAD),
            restart: reader.restart(compat)?,
            address: reader.address()?,
            port: reader.port(compat)?,
            metrics_port: Some(reader.port_named("metrics_port", 8081)?).filter(|port| *port != 0),
            read_timeout: reader.span("read_timeout", default).above_zero(),
            write_timeout: write_timeout.above_zero(),
            exec_timeout: reader.span("exec_timeout", exec).above_zero(),
            healthcheck_interval: if on_knative && !compat { Duration::ZERO } else { interval },
            max_inflight: reader.number("max_inflight", 0),
            max_queue: reader.number("max_queue", 0),
            queue_timeout: reader.span("queue_timeout", default).above_zero(),
            upstream_h2c: reader.flag("upstream_h2c"),
            batch: reader.batch(),
            jwt: JwtConfig::read(|name| reader.get(name))?,
            ready_path: reader.ready_path()?,
            // There it is held back, and goes out in chunks all the same.
            buffer_body: reader.buffer_body().filter(|_| !compat),
            suppress_lock: reader.flag("suppress_lock"),
            lock_folder: reader.get("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from),
            logs: reader.logs(mode, compat)?,
            gpu: GpuConfig::read(|name| reader.get(name))?,
            warnings: reader.warnings,
        })
    }

    /// The function's command and its arguments: split at single spaces, no shell, no quoting.
    pub(crate) fn command(&self) -> (&str, Vec<&str>) {
        let mut words = self.fprocess.split(' ').filter(|word| !word.is_empty());
        (words.next().unwrap_or_default(), words.collect())
    }

    /// Path of the file that says that requests are accepted.
    pub(crate) fn lock_file(&self) -> PathBuf {
        self.lock_folder.join(".lock")
    }
}

/// Reads single variables, and notes what it ignores.
struct Reader<L> {
    lookup: L,
    warnings: Vec<String>,
}

impl<L: Fn(&str) -> Option<String>> Reader<L> {
    /// A variable that is set and not empty.
    fn get(&self, name: &str) -> Option<String> {
        (self.lookup)(name).filter(|value| !value.trim().is_empty())
    }

    /// The last of `names` that is set.
    fn later(&self, names: [&str; 2]) -> Option<String> {
        names.into_iter().rev().find_map(|name| self.get(name))
    }

    fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value == "true" || value == "1")
    }

    /// A flag that takes all that Go's `strconv.ParseBool` takes.
    fn go_flag(&mut self, name: &str, default: bool) -> bool {
        match self.get(name).as_deref() {
            None => default,
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
            Some(value) => {
                self.ignore(&Invalid::new(name, value, "true or false"), default);
                default
            }
        }
    }

    fn span(&mut self, name: &str, default: SignedDuration) -> SignedDuration {
        let Some(value) = self.get(name) else { return default };
        parse_or_seconds(value.trim()).unwrap_or_else(|| {
            let shown = duration::GoStyle(default.0.unwrap_or_default());
            self.ignore(&Invalid::new(name, value, "seconds, or a duration such as 1m30s"), shown);
            default
        })
    }

    fn number<N: std::str::FromStr + std::fmt::Display + Copy>(&mut self, name: &str, default: N) -> N {
        let Some(value) = self.get(name) else { return default };
        value.trim().parse().unwrap_or_else(|_| {
            self.ignore(&Invalid::new(name, value, "a whole number, 0 or more"), default);
            default
        })
    }

    /// of-watchdog starts with the default in place of these values, and images rely on it.
    fn ignore(&mut self, invalid: &Invalid, default: impl std::fmt::Display) {
        self.warnings.push(format!("{invalid}; using {default}"));
    }

    /// The function's port. of-watchdog takes a free one in place of what is no number.
    fn port(&mut self, compat: bool) -> Result<u16, Invalid> {
        let name = if self.get("port").is_some() { "port" } else { "PORT" };
        self.port_named(name, 8080).or_else(|invalid| {
            if !compat {
                return Err(invalid);
            }
            self.ignore(&invalid, "a free one");
            Ok(0)
        })
    }

    fn port_named(&self, name: &str, default: u16) -> Result<u16, Invalid> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.trim().parse().map_err(|_| Invalid::new(name, value, "0 to 65535"))
    }

    /// All interfaces unless set: the kubelet and the gateway reach a function through the pod's address.
    fn address(&self) -> Result<IpAddr, Invalid> {
        let Some(value) = self.get("listen_address") else { return Ok(Ipv6Addr::UNSPECIFIED.into()) };
        value.parse().map_err(|_| Invalid::new("listen_address", value, "an IP address"))
    }

    fn ready_path(&self) -> Result<Option<PathAndQuery>, Invalid> {
        let Some(path) = self.get("ready_path") else { return Ok(None) };
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        let parsed = path.parse().map_err(|_| Invalid::new("ready_path", path, "a path such as /ready"))?;
        Ok(Some(parsed))
    }

    fn batch(&mut self) -> Option<BatchConfig> {
        let size = self.number("max_batch_size", 0);
        let exec = SignedDuration(Ok(Duration::from_secs(30)));
        (size > 1).then(|| BatchConfig {
            size,
            delay: self.span("max_batch_delay", BATCH_DELAY).above_zero().unwrap_or_default(),
            body: self.number("http_buffer_req_limit", BODY_BUFFER),
            limit: self.span("exec_timeout", exec).above_zero(),
        })
    }

    fn buffer_body(&mut self) -> Option<u64> {
        let wanted = self.flag("http_buffer_req_body") || self.flag("buffer_http");
        wanted.then(|| self.number("http_buffer_req_limit", BODY_BUFFER))
    }

    fn mode(&self) -> Result<Mode, ConfigError> {
        match self.get("mode").as_deref() {
            None => Ok(Mode::Streaming),
            Some("inproc") => Err(ConfigError::InProcess),
            Some(name) => Mode::read(name).map_err(ConfigError::Mode),
        }
    }

    fn upstream(&self, mode: Mode) -> Result<Option<Upstream>, Invalid> {
        if mode != Mode::Http {
            return Ok(None);
        }
        let url = self.later(["upstream_url", "http_upstream_url"]).unwrap_or_default();
        Upstream::read("upstream_url", &url).map(Some)
    }

    fn compat(&self) -> Result<bool, Invalid> {
        match self.get("compat").as_deref() {
            None | Some("false") => Ok(false),
            Some("of-watchdog") => Ok(true),
            Some(other) => Err(Invalid::new("compat", other, "of-watchdog")),
        }
    }

    fn restart(&self, compat: bool) -> Result<RestartPolicy, Invalid> {
        let policy = RestartPolicy::read(self.get("restart_policy").as_deref())?;
        Ok(if compat { policy.ignoring_success() } else { policy })
    }

    fn content_type(&self) -> Result<HeaderValue, Invalid> {
        let Some(value) = self.get("content_type") else {
            return Ok(HeaderValue::from_static("application/octet-stream"));
        };
        value.parse().map_err(|_| Invalid::new("content_type", value, "a media type such as text/plain"))
    }

    /// Images of the classic watchdog set these; they start, and whoever reads the log learns what is different.
    fn classic(&mut self) {
        for (name, value, instead) in CLASSIC {
            if self.get(name).as_deref() == Some(value) {
                self.warnings.push(format!("{name} is {value:?}, and changes nothing: {instead}"));
            }
        }
    }

    /// The platform reads an action's lines as they are.
    fn logs(&mut self, mode: Mode, compat: bool) -> Result<LogConfig, Invalid> {
        let line_limit = match self.get("log_buffer_size") {
            None => Some(LOG_BUFFER),
            Some(value) => match value.trim().parse::<i64>() {
                Ok(-1) => None,
                Ok(bytes) if bytes > 0 => usize::try_from(bytes).ok(),
                _ => {
                    return Err(Invalid::new(
                        "log_buffer_size",
                        value,
                        "1 or more bytes, or -1 for no limit",
                    ));
                }
            },
        };
        Ok(LogConfig {
            prefix: self.go_flag("prefix_logs", !mode.is_action()),
            line_limit,
            gives_up: compat,
            call_id: self.go_flag("log_callid", false),
        })
    }
}

#[cfg(test)]
mod tests;
