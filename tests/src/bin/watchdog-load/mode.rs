//! The modes of a watchdog, and what it is started with in each.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use tests::server::{Server, WatchdogSetup};

use crate::Common;
use crate::body::Body;
use crate::client::{Connection, Request, Sent};
use crate::function;

/// Between two looks whether a watchdog is healthy.
const LOOK: Duration = Duration::from_millis(2);

/// Longer than any request takes, on a busy machine too.
const LIMIT: &str = "30m";

/// Most bytes of an action's parameters, and of its result.
const PAYLOAD: &str = "60000000";

/// What stands around an action's parameter in the message to it.
pub(crate) const MESSAGE: (&str, &str) = ("{\"value\":{\"data\":\"", "\"}}");

/// What stands around it in the parameters themselves.
pub(crate) const PARAMETERS: (&str, &str) = ("{\"data\":\"", "\"}");

/// How requests reach the function, and what becomes of their bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// A server.
    Http,
    /// A server that gets the length of each body.
    HttpHeld,
    /// A server that speaks HTTP/2.
    H2c,
    /// A process for each request.
    Streaming,
    /// The same, whose answer is held until it ends.
    Serializing,
    /// Files.
    Static,
    /// A process for each activation.
    Openwhisk,
    /// A process that reads lines.
    Actionloop,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl Mode {
    /// All of them.
    pub(crate) const ALL: [Self; 8] = [
        Self::Http,
        Self::HttpHeld,
        Self::H2c,
        Self::Streaming,
        Self::Serializing,
        Self::Static,
        Self::Openwhisk,
        Self::Actionloop,
    ];

    /// Its name in figures.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::HttpHeld => "http-held",
            Self::H2c => "h2c",
            Self::Streaming => "streaming",
            Self::Serializing => "serializing",
            Self::Static => "static",
            Self::Openwhisk => "openwhisk",
            Self::Actionloop => "actionloop",
        }
    }

    /// Whether a request has a process of its own.
    pub(crate) fn forks(self) -> bool {
        matches!(self, Self::Streaming | Self::Serializing | Self::Openwhisk)
    }

    /// Whether a server answers.
    pub(crate) fn is_served(self) -> bool {
        matches!(self, Self::Http | Self::HttpHeld | Self::H2c)
    }

    /// Whether the function is an action.
    pub(crate) fn is_action(self) -> bool {
        matches!(self, Self::Openwhisk | Self::Actionloop)
    }

    /// Whether an answer can begin before its request has ended.
    pub(crate) fn can_be_early(self) -> bool {
        matches!(self, Self::Http | Self::H2c | Self::Streaming)
    }

    /// Starts the watchdog in this mode, its function giving back what it gets, and waits until it is healthy. Mode
    /// `static` gives the files of `files`.
    pub(crate) fn start(self, common: &Common, files: &Path) -> Result<Server> {
        let mut setup = WatchdogSetup::new(&common.program)?;
        for (name, value) in self.variables(setup.folder(), files)? {
            setup = setup.env(name, value);
        }
        for limit in ["read_timeout", "write_timeout", "exec_timeout"] {
            setup = setup.env(limit, LIMIT);
        }
        for (name, value) in &common.environment {
            setup = setup.env(name, value);
        }
        let mut command = setup.command();
        let watchdog = setup.start(&mut command)?.until_up(LOOK, is_healthy)?;
        if self.is_action() {
            let body = Body::text(0, 0, "{\"value\":{\"name\":\"f", "\"}}");
            let sent = Sent { body: &body, chunks: None, holds_last: false };
            let init = Request { body: Some(sent), ..Request::new("POST", "/init") };
            let answer = Connection::open(watchdog.address())?.exchange(&init).context("/init")?;
            ensure!(answer.status == 200, "/init is answered {}", answer.status);
        }
        Ok(watchdog)
    }

    fn variables(self, folder: &Path, files: &Path) -> Result<Vec<(&'static str, String)>> {
        let script = |lines: &str| -> Result<String> {
            let path = folder.join("action.sh");
            fs::write(&path, lines)?;
            Ok(format!("sh {}", path.display()))
        };
        let (mode, function) = match self {
            Self::Http | Self::HttpHeld | Self::H2c => ("http", "sleep 1000000".to_string()),
            Self::Streaming => ("streaming", "cat".to_string()),
            Self::Serializing => ("serializing", "cat".to_string()),
            Self::Static => ("static", String::new()),
            Self::Openwhisk => ("openwhisk", script("exec cat\n")?),
            Self::Actionloop => ("actionloop", script("exec cat >&3\n")?),
        };
        let mut variables = vec![("mode", mode.to_string()), ("static_path", files.display().to_string())];
        // Mode `static` of of-watchdog wants none.
        if !function.is_empty() {
            variables.push(("fprocess", function));
        }
        if self.is_served() {
            variables.push(("upstream_url", format!("http://{}", function::start(self == Self::H2c)?)));
        }
        match self {
            Self::HttpHeld => variables.push(("http_buffer_req_body", "true".into())),
            Self::H2c => variables.push(("upstream_h2c", "true".into())),
            _ if self.is_action() => {
                variables.push(("openwhisk_payload_limit", PAYLOAD.into()));
                variables.push(("__OW_ALLOW_CONCURRENT", "true".into()));
            }
            _ => {}
        }
        Ok(variables)
    }
}

fn is_healthy(watchdog: &Server) -> bool {
    let ask = || Connection::open(watchdog.address())?.exchange(&Request::new("GET", "/_/health"));
    ask().is_ok_and(|answer| answer.status == 200)
}
