//! The function's process: starts it so that it dies with the watchdog, reads its output, says when it has ended, and
//! ends it with all that it started. It knows nothing of requests.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, getppid, kill_process_group, set_parent_process_death_signal};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::config::LogConfig;
use crate::logs::{copy_lines, log};

/// First argument of a watchdog that is about to become the function.
pub(crate) const BECOME: &str = "__become-function";

/// Longest time to wait for the last lines of a function that has ended.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How the function's process stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Running,
    /// It ended with this status; there may be output left.
    Ended(String),
    /// It ended, and all of its output was written.
    Drained(String),
}

/// The running function.
#[derive(Debug)]
pub(crate) struct Function {
    group: Pid,
    state: watch::Receiver<State>,
}

impl Function {
    /// Starts `program` with `args`, with `environment` on top of the watchdog's.
    ///
    /// To be called from the main thread: the kernel ties the function's life to the *thread* that starts it.
    pub(crate) fn start(
        program: &str,
        args: &[&str],
        environment: &[(&str, OsString)],
        logs: LogConfig,
    ) -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(BECOME).arg(std::process::id().to_string()).arg(program).args(args);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        let copiers = [
            copy(child.stdout.take(), "stdout", logs, io::stdout)?,
            copy(child.stderr.take(), "stderr", logs, io::stderr)?,
        ];
        let group = Pid::from_child(&child);
        let (sender, state) = watch::channel(State::Running);
        thread::Builder::new().name("function".into()).spawn(move || reap(child, copiers, &sender))?;
        Ok(Self { group, state })
    }

    /// Waits until the function has ended, and says how.
    pub(crate) async fn ended(&self) -> String {
        let mut state = self.state.clone();
        let ended = state.wait_for(|state| *state != State::Running).await;
        match ended.as_deref() {
            Ok(State::Ended(status) | State::Drained(status)) => status.clone(),
            Ok(State::Running) | Err(_) => "unknown status".to_string(),
        }
    }

    /// Asks the function and all that it started to end, and ends them after `grace`.
    pub(crate) async fn stop(&self, grace: Duration) {
        // A group without processes is one that has ended.
        let _ = kill_process_group(self.group, Signal::TERM);
        let _ = timeout(grace, self.ended()).await;
        self.kill().await;
    }

    /// Ends the function and all that it started, and waits for their last lines.
    pub(crate) async fn kill(&self) {
        let _ = kill_process_group(self.group, Signal::KILL);
        let mut state = self.state.clone();
        let drained = state.wait_for(|state| matches!(state, State::Drained(_)));
        let _ = timeout(LAST_LINES, drained).await;
    }
}

/// Copies a pipe's lines on a thread of its own: a blocked stdout must not hold up requests.
fn copy<P, W>(
    pipe: Option<P>,
    name: &'static str,
    logs: LogConfig,
    output: fn() -> W,
) -> io::Result<thread::JoinHandle<()>>
where
    P: io::Read + Send + 'static,
    W: io::Write + 'static,
{
    log!("Started logging: {name} from function.");
    let builder = thread::Builder::new().name(format!("log-{name}"));
    builder.spawn(move || pipe.into_iter().for_each(|pipe| copy_lines(pipe, name, logs, &mut output())))
}

fn reap(mut child: Child, copiers: [thread::JoinHandle<()>; 2], state: &watch::Sender<State>) {
    let status = child.wait().map_or_else(|error| error.to_string(), describe);
    state.send_replace(State::Ended(status.clone()));
    for copier in copiers {
        // A copier that panicked has nothing more to write.
        let _ = copier.join();
    }
    state.send_replace(State::Drained(status));
}

/// The status in Go's words, which people look for in logs.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal: {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Turns this process into the function; returns only if that fails, with the reason.
///
/// `arguments` are those after [`BECOME`]: the watchdog's process, the program and its arguments. The kernel keeps the
/// death signal when another program is loaded, and so does this need no code between fork and exec.
pub(crate) fn become_function(mut arguments: impl Iterator<Item = OsString>) -> String {
    let parent = arguments.next().and_then(|id| id.to_str()?.parse::<i32>().ok()).and_then(Pid::from_raw);
    let program = arguments.next();
    let (Some(parent), Some(program)) = (parent, program) else {
        return format!("{BECOME} is for the watchdog itself, allowed are the arguments of of-watchdog");
    };
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return format!("can't tie the function to the watchdog: {error}");
    }
    if getppid() != Some(parent) {
        return "the watchdog ended before the function started".to_string();
    }
    let error = Command::new(&program).args(arguments).exec();
    format!("fprocess is {}, and it can't be started: {error}", quoted(&program))
}

fn quoted(program: &OsStr) -> String {
    format!("{:?}", program.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_in_the_words_of_go() {
        assert_eq!(describe(ExitStatus::from_raw(3 << 8)), "exit status 3");
        assert_eq!(describe(ExitStatus::from_raw(0)), "exit status 0");
        assert_eq!(describe(ExitStatus::from_raw(9)), "signal: 9");
    }

    #[test]
    fn whoever_is_not_the_watchdog_is_refused() {
        let arguments = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>().into_iter();
        assert!(become_function(arguments(&[])).contains(BECOME));
        assert!(become_function(arguments(&["x", "true"])).contains(BECOME));
    }
}
