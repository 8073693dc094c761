//! The function's share of a GPU, as the watchdog sees it: asks the node agent whether the binding exists, says where
//! the hook is, and reads the page for the metrics. It enforces nothing; that is the hook's and the agent's work.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpu_share::binding::{Binding, BindingId};
use gpu_share::invalid::Invalid;
use gpu_share::names::env;
use gpu_share::page::{self, Snapshot};
use gpu_share::protocol::{FromContainer, MAX_LINE, ToContainer};
use gpu_share::units::Nanos;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};

/// Longest time to wait for the node agent: it may be restarting.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pause between two tries to reach the node agent.
const RETRY: Duration = Duration::from_millis(50);

/// Age of the heartbeat from which the node agent counts as gone.
const HEARTBEAT_LIMIT: Nanos = Nanos::from_secs(2);

/// Whether, and how, the function gets the hook's preload form.
const PRELOAD: &str = "gpufn_preload";

/// The preload form in the hook's folder.
const PRELOAD_FILE: &str = "libgpufn_preload.so";

/// What leads a function to the proxy that opens the driver by a path, and not by a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preload {
    /// Nothing: the library path does for names.
    Off,
    /// The preload form, in this variable of the dynamic loader.
    In(&'static str),
}

impl Preload {
    fn read(value: Option<&str>) -> Result<Self, Invalid> {
        match value {
            None | Some("false" | "0") => Ok(Self::Off),
            Some("true" | "1") => Ok(Self::In("LD_PRELOAD")),
            Some("audit") => Ok(Self::In("LD_AUDIT")),
            Some(other) => Err(Invalid::new(PRELOAD, other, "true, audit or false")),
        }
    }
}

/// Whether a function that asks for a share may start without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// It may not.
    Strict,
    /// It may, with a warning and without the hook.
    Open,
}

/// What the container's environment says about its share.
#[derive(Clone, Debug)]
pub(crate) struct GpuConfig {
    policy: Policy,
    binding: Option<BindingId>,
    socket: Option<PathBuf>,
    page: Option<PathBuf>,
    hook: Option<PathBuf>,
    preload: Preload,
}

/// Why there is no share.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoShare {
    /// The environment is incomplete.
    #[error("{0} is not set, allowed is what the node agent sets for a container with a share")]
    Unset(&'static str),
    /// The node agent can't be reached.
    #[error("{} is {socket:?}, and no node agent answers there: {source}", env::SOCKET)]
    Unreachable {
        /// Path of its socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The preload form is wanted and not there.
    #[error("{PRELOAD} is set, and {0:?} is not there, allowed is a hook's folder that has it")]
    NoPreload(PathBuf),
    /// It answered no.
    #[error("{} is {binding:?}, and the node agent refuses it: {reason}", env::BINDING)]
    Refused {
        /// The binding.
        binding: String,
        /// The node agent's words.
        reason: String,
    },
    /// It answered what the protocol does not allow.
    #[error(
        "{} is {binding:?}, and the node agent answered {answer:?}, allowed is welcome or refused",
        env::BINDING
    )]
    Unexpected {
        /// The binding.
        binding: String,
        /// The first characters of what it said.
        answer: String,
    },
}

impl GpuConfig {
    /// What the environment says; `None` if it speaks of no share.
    pub(crate) fn read(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, Invalid> {
        let (policy, binding) = (get(env::POLICY), get(env::BINDING));
        if policy.is_none() && binding.is_none() {
            return Ok(None);
        }
        let policy = match policy.as_deref() {
            None | Some("strict") => Policy::Strict,
            Some("open") => Policy::Open,
            Some(other) => return Err(Invalid::new(env::POLICY, other, "strict or open")),
        };
        let binding =
            binding.map(BindingId::try_from).transpose().map_err(|error| error.in_field(env::BINDING))?;
        let path = |name| get(name).map(PathBuf::from);
        Ok(Some(Self {
            policy,
            binding,
            socket: path(env::SOCKET),
            page: path(env::PAGE),
            hook: path(env::HOOK),
            preload: Preload::read(get(PRELOAD).as_deref())?,
        }))
    }

    /// What happens without a share.
    pub(crate) fn policy(&self) -> Policy {
        self.policy
    }

    /// Asks the node agent for the binding.
    pub(crate) async fn join(&self) -> Result<GpuShare, NoShare> {
        let binding = self.binding.clone().ok_or(NoShare::Unset(env::BINDING))?;
        let socket = self.socket.as_deref().ok_or(NoShare::Unset(env::SOCKET))?;
        let hook = self.hook.clone().ok_or(NoShare::Unset(env::HOOK))?;
        let library = hook.join(PRELOAD_FILE);
        let preload = match self.preload {
            Preload::In(_) if !library.is_file() => return Err(NoShare::NoPreload(library)),
            Preload::In(variable) => Some((variable, library)),
            Preload::Off => None,
        };
        let answer = ask(socket, &binding).await.map_err(|source| {
            let socket = socket.to_path_buf();
            NoShare::Unreachable { socket, source }
        })?;
        let binding = welcomed(&binding, &answer)?;
        Ok(GpuShare { binding, hook, preload, page: self.page.clone() })
    }
}

/// The share that the node agent has confirmed.
#[derive(Clone, Debug)]
pub(crate) struct GpuShare {
    binding: Binding,
    hook: PathBuf,
    /// The preload form, and the variable that it goes into.
    preload: Option<(&'static str, PathBuf)>,
    page: Option<PathBuf>,
}

impl GpuShare {
    /// The binding, as it was when the function was about to start.
    pub(crate) fn binding(&self) -> &Binding {
        &self.binding
    }

    /// The function's variables of the dynamic loader: the hook comes first, then what was `before` in each.
    pub(crate) fn loader_variables(
        &self,
        before: impl Fn(&str) -> Option<OsString>,
    ) -> Vec<(&'static str, OsString)> {
        let library_path = ("LD_LIBRARY_PATH", self.hook.as_os_str());
        let preload = self.preload.as_ref().map(|(variable, file)| (*variable, file.as_os_str()));
        let first = |(variable, own): (&'static str, &OsStr)| {
            let mut value = own.to_owned();
            if let Some(before) = before(variable).filter(|before| !before.is_empty()) {
                value.push(":");
                value.push(before);
            }
            (variable, value)
        };
        std::iter::once(library_path).chain(preload).map(first).collect()
    }

    /// What the page says now, if it is this binding's.
    pub(crate) fn snapshot(&self) -> Option<Snapshot> {
        let mut bytes = [0; page::SIZE];
        File::open(self.page.as_deref()?).ok()?.read_exact_at(&mut bytes, 0).ok()?;
        Snapshot::parse(&bytes).ok().filter(|snapshot| snapshot.identity.binding == self.binding.id)
    }
}

/// Whether the node agent lived at `now` on the monotonic clock, by the page's heartbeat.
pub(crate) fn is_agent_up(snapshot: &Snapshot, now: Nanos) -> bool {
    now.since(snapshot.heartbeat) < HEARTBEAT_LIMIT
}

/// The monotonic clock, on which the heartbeat is.
pub(crate) fn monotonic_now() -> Nanos {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Nanos::from_secs(now.tv_sec.unsigned_abs()) + Nanos(now.tv_nsec.unsigned_abs())
}

/// Sends `hello` and returns the line that comes back, trying again until [`PATIENCE`] ends.
async fn ask(socket: &Path, binding: &BindingId) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let outcome = match timeout_at(deadline, hello(socket, binding)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 5s")),
        };
        match outcome {
            Err(_) if Instant::now() + RETRY < deadline => sleep(RETRY).await,
            outcome => return outcome,
        }
    }
}

async fn hello(socket: &Path, binding: &BindingId) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut line = serde_json::to_vec(&FromContainer::Hello { binding: binding.clone() })?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = String::new();
    // One more than the longest line, so that a longer one is seen to be one.
    let limit = u64::try_from(MAX_LINE + 1).unwrap_or(u64::MAX);
    BufReader::new(stream.take(limit)).read_line(&mut answer).await?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended without an answer"));
    }
    Ok(answer)
}

fn welcomed(wanted: &BindingId, answer: &str) -> Result<Binding, NoShare> {
    match serde_json::from_str(answer) {
        Ok(ToContainer::Welcome { binding }) if binding.id == *wanted => Ok(binding),
        Ok(ToContainer::Refused { error }) => {
            let reason = error.chars().filter(|c| !c.is_control()).take(200).collect();
            Err(NoShare::Refused { binding: wanted.to_string(), reason })
        }
        _ => {
            let answer = answer.trim_end().chars().take(80).collect();
            Err(NoShare::Unexpected { binding: wanted.to_string(), answer })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Option<GpuConfig> {
        let get =
            |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_string());
        GpuConfig::read(get).unwrap()
    }

    #[test]
    fn an_environment_without_binding_and_policy_asks_for_no_share() {
        assert!(read(&[(env::SOCKET, "/x"), (env::HOOK, "/y")]).is_none());
        assert_eq!(read(&[(env::POLICY, "open")]).unwrap().policy(), Policy::Open);
        assert_eq!(read(&[(env::BINDING, "b-1")]).unwrap().policy(), Policy::Strict);
    }

    #[test]
    fn only_a_welcome_for_the_same_binding_is_one() {
        let wanted = BindingId::try_from("b-1".to_string()).unwrap();
        let refused =
            welcomed(&wanted, "{\"answer\":\"refused\",\"error\":\"no\\nsuch\"}\n").unwrap_err().to_string();
        assert_eq!(refused, "GPUFN_BINDING is \"b-1\", and the node agent refuses it: nosuch");
        for answer in ["", "hello\n", "{\"answer\":\"attached\",\"slot\":1}\n"] {
            let error = welcomed(&wanted, answer).unwrap_err();
            assert!(matches!(error, NoShare::Unexpected { .. }) && !error.to_string().contains('\n'));
        }
    }

    #[tokio::test]
    async fn a_missing_variable_is_named() {
        let error = read(&[(env::POLICY, "strict")]).unwrap().join().await.unwrap_err();
        assert!(error.to_string().starts_with("GPUFN_BINDING is not set"), "{error}");
    }
}
