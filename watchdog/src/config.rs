//! What the environment asks of the watchdog: of-watchdog's variables, and what is added to them.
//! Pure: it reads through a lookup function and never touches the process's environment, files or clock.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use gpu_share::invalid::Invalid;
use http::uri::PathAndQuery;

use crate::gpu::GpuConfig;
use crate::mode::Mode;
use crate::mode::http::Upstream;

pub(crate) mod duration;

use duration::{SignedDuration, parse_or_seconds};

/// Longest line of the function that is logged in one piece, unless configured otherwise, in bytes.
const LOG_BUFFER: usize = 64 * 1024;

/// Most of a request body that is held back to learn its length, unless configured otherwise, in bytes.
const BODY_BUFFER: u64 = 64 << 20;

/// Why the watchdog can't start as configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// Without a function there is nothing to watch.
    #[error("provide a \"function_process\" or \"fprocess\" environmental variable for your function")]
    NoFunction,
    /// A value that is not allowed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// Everything that the environment can set.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The function's command, as it was given.
    pub(crate) fprocess: String,
    /// Which protocol the function speaks.
    pub(crate) mode: Mode,
    /// Where the function listens.
    pub(crate) upstream: Upstream,
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
    /// Whether a request's line ends with its `X-Call-Id`.
    pub(crate) call_id: bool,
}

impl Config {
    /// Reads the configuration through `lookup`, which gives a variable's value if it is set.
    pub(crate) fn read(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut reader = Reader { lookup, warnings: Vec::new() };
        let fprocess = reader.later(["fprocess", "function_process"]).ok_or(ConfigError::NoFunction)?;
        let mode = Mode::read(reader.get("mode").as_deref().unwrap_or("streaming"))?;
        let upstream = reader.later(["upstream_url", "http_upstream_url"]).unwrap_or_default();
        let upstream = Upstream::read("upstream_url", &upstream)?;
        let default = SignedDuration(Ok(Duration::from_secs(30)));
        let write_timeout = reader.span("write_timeout", default);
        if write_timeout.0 == Ok(Duration::ZERO) {
            return Err(Invalid::new("write_timeout", "0", "more than 0s, or less for no limit").into());
        }
        let interval = reader.span("healthcheck_interval", write_timeout).above_zero().unwrap_or_default();
        // Knative's queue-proxy has taken the pod out of rotation before it sends SIGTERM.
        let on_knative = reader.get("K_REVISION").is_some();
        Ok(Self {
            fprocess,
            mode,
            upstream,
            address: reader.address()?,
            port: reader.port()?,
            metrics_port: Some(reader.port_named("metrics_port", 8081)?).filter(|port| *port != 0),
            read_timeout: reader.span("read_timeout", default).above_zero(),
            write_timeout: write_timeout.above_zero(),
            exec_timeout: reader.span("exec_timeout", default).above_zero(),
            healthcheck_interval: if on_knative { Duration::ZERO } else { interval },
            max_inflight: reader.number("max_inflight", 0),
            ready_path: reader.ready_path()?,
            buffer_body: reader.buffer_body(),
            suppress_lock: reader.flag("suppress_lock"),
            lock_folder: reader.get("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from),
            logs: reader.logs()?,
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

    fn port(&self) -> Result<u16, Invalid> {
        let name = if self.get("port").is_some() { "port" } else { "PORT" };
        self.port_named(name, 8080)
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

    fn buffer_body(&mut self) -> Option<u64> {
        let wanted = self.flag("http_buffer_req_body") || self.flag("buffer_http");
        wanted.then(|| self.number("http_buffer_req_limit", BODY_BUFFER))
    }

    fn logs(&mut self) -> Result<LogConfig, Invalid> {
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
            prefix: self.go_flag("prefix_logs", true),
            line_limit,
            call_id: self.go_flag("log_callid", false),
        })
    }
}

#[cfg(test)]
mod tests;
