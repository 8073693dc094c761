//! The function's process: starts it so that it dies with the watchdog, reads its output, starts it again where the
//! policy says so, and ends it with all that it started. It knows nothing of requests.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, getpid, getppid, kill_process, kill_process_group, set_parent_process_death_signal,
};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::config::duration::GoStyle;
use crate::config::{Config, LogConfig};
use crate::logs::{copy_lines, log};

pub(crate) mod processes;
pub(crate) mod restart;

use processes::{Group, Processes};
use restart::{Decision, RestartPolicy};

/// First argument of a watchdog that is about to become the function.
pub(crate) const BECOME: &str = "__become-function";

/// Longest time to wait for the last lines of a function that has ended.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How the function's process stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It runs, after this many restarts.
    Running(u64),
    /// It ended, and will start again.
    Restarting,
    /// It ended with this status; there may be output left.
    Ended(String),
    /// It ended, and all of its output was written.
    Drained(String),
}

/// The function's process, or the processes of a function that has one for each request.
#[derive(Debug)]
pub(crate) struct Function {
    processes: Arc<Processes>,
    service: Option<Service>,
}

/// A function that is one process.
#[derive(Debug)]
struct Service {
    leader: Arc<Mutex<Option<Pid>>>,
    state: watch::Receiver<State>,
    /// Dropped or used, it ends restarts.
    stop: mpsc::Sender<()>,
    /// Whether SIGTERM reaches the function as soon as the watchdog has it.
    is_told_at_once: bool,
}

impl Function {
    /// No process of its own: those of requests are in `processes`.
    pub(crate) fn per_request(processes: Arc<Processes>) -> Self {
        Self { processes, service: None }
    }

    /// Starts the configured command with `environment` on top of the watchdog's.
    pub(crate) fn start(
        config: &Config,
        environment: Vec<(&'static str, OsString)>,
        processes: Arc<Processes>,
    ) -> io::Result<Self> {
        let (program, args) = config.command();
        let words = std::iter::once(program).chain(args).map(OsString::from).collect();
        let recipe = Recipe { words, environment, logs: config.logs };
        let (sender, state) = watch::channel(State::Running(0));
        let (stop, stopped) = mpsc::channel();
        let leader = Arc::new(Mutex::new(None));
        let keeper = Keeper {
            recipe,
            policy: config.restart,
            processes: Arc::clone(&processes),
            leader: Arc::clone(&leader),
            state: sender,
            stopped,
        };
        let (started, outcome) = mpsc::sync_channel(1);
        // The kernel ties the function's life to the *thread* that starts it, so the one that waits for it starts it.
        thread::Builder::new().name("function".into()).spawn(move || keeper.keep(&started))?;
        outcome.recv().map_err(io::Error::other)??;
        let is_told_at_once = config.compat;
        Ok(Self { processes, service: Some(Service { leader, state, stop, is_told_at_once }) })
    }

    /// How the function's process stands from now on; `None` if it has none of its own.
    pub(crate) fn states(&self) -> Option<watch::Receiver<State>> {
        self.service.as_ref().map(|service| service.state.clone())
    }

    /// Waits until the function has ended for good, and says how.
    pub(crate) async fn ended(&self) -> String {
        let Some(service) = &self.service else { return std::future::pending().await };
        let mut state = service.state.clone();
        let ended = state.wait_for(|state| matches!(state, State::Ended(_) | State::Drained(_))).await;
        match ended.as_deref() {
            Ok(State::Ended(status) | State::Drained(status)) => status.clone(),
            _ => "unknown status".to_string(),
        }
    }

    /// The watchdog has been told to stop. The function learns of it where of-watchdog would tell it.
    pub(crate) fn announce_stop(&self) {
        let Some(service) = self.service.as_ref().filter(|service| service.is_told_at_once) else { return };
        if let Some(leader) = service.leader() {
            let _ = kill_process(leader, Signal::TERM);
        }
    }

    /// Whether the watchdog ends at once when the function does, as of-watchdog.
    pub(crate) fn is_let_go_at_once(&self) -> bool {
        self.service.as_ref().is_some_and(|service| service.is_told_at_once)
    }

    /// Asks the function and all that it started to end, and ends them after `grace`.
    pub(crate) async fn stop(&self, grace: Duration) {
        if let Some(service) = &self.service {
            // It may have ended, and its keeper with it.
            let _ = service.stop.send(());
            if let Some(leader) = service.leader() {
                // A group without processes is one that has ended.
                let _ = kill_process_group(leader, Signal::TERM);
            }
            let _ = timeout(grace, self.ended()).await;
        }
        self.kill().await;
    }

    /// Ends the function and all that it started, and waits for their last lines.
    pub(crate) async fn kill(&self) {
        self.processes.kill();
        let Some(service) = &self.service else { return };
        let _ = service.stop.send(());
        let mut state = service.state.clone();
        let drained = state.wait_for(|state| matches!(state, State::Drained(_)));
        let _ = timeout(LAST_LINES, drained).await;
    }
}

impl Service {
    /// The function's process, or the last one.
    fn leader(&self) -> Option<Pid> {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the function, waits for its end, and starts it again.
struct Keeper {
    recipe: Recipe,
    policy: RestartPolicy,
    processes: Arc<Processes>,
    leader: Arc<Mutex<Option<Pid>>>,
    state: watch::Sender<State>,
    stopped: mpsc::Receiver<()>,
}

impl Keeper {
    /// Says through `started` whether the first start worked.
    fn keep(self, started: &mpsc::SyncSender<io::Result<()>>) {
        let (mut in_a_row, mut restarts) = (0, 0);
        let mut run = match self.start() {
            Ok(run) => run,
            Err(error) => return drop(started.send(Err(error))),
        };
        // Nobody waits for a watchdog that has been told to stop meanwhile.
        let _ = started.send(Ok(()));
        loop {
            let (status, ended_well, ran) = run.wait();
            match self.policy.decide(ended_well, ran, in_a_row) {
                Decision::GiveUp => return self.end(status, run),
                Decision::Ignore => {
                    let _ = self.stopped.recv();
                    return self.end(status, run);
                }
                Decision::Restart(pause) => {
                    log!("Forked function has terminated: {status}, restarting in {}", GoStyle(pause));
                    self.state.send_replace(State::Restarting);
                    // What it has left behind would hold its port.
                    run.group.kill();
                    if self.stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                        return self.end(status, run);
                    }
                    (in_a_row, restarts) = (RestartPolicy::count(ran, in_a_row), restarts + 1);
                }
            }
            run = match self.start() {
                Ok(run) => run,
                Err(error) => return drop(self.state.send_replace(State::Drained(error.to_string()))),
            };
            self.state.send_replace(State::Running(restarts));
        }
    }

    fn start(&self) -> io::Result<Run> {
        let run = self.recipe.start(&self.processes)?;
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = Some(run.group.leader());
        Ok(run)
    }

    fn end(&self, status: String, run: Run) {
        self.state.send_replace(State::Ended(status.clone()));
        for copier in run.copiers {
            // A copier that panicked has nothing more to write.
            let _ = copier.join();
        }
        self.state.send_replace(State::Drained(status));
    }
}

/// What a function's process is started with.
#[derive(Clone, Debug)]
struct Recipe {
    words: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
    logs: LogConfig,
}

/// A process of the function.
struct Run {
    child: Child,
    group: Group,
    copiers: [thread::JoinHandle<()>; 2],
    since: Instant,
}

impl Recipe {
    /// Starts the function, tied to the watchdog's life where that is needed.
    fn start(&self, processes: &Arc<Processes>) -> io::Result<Run> {
        // With the first process of a container, the kernel ends all others (pid_namespaces(7)).
        if getpid().is_init() {
            return self.start_itself(processes);
        }
        match self.start_as(self.tied_command(), processes) {
            Err(error) if is_foreign(&error) => {
                log!(
                    "warning: the function is not ended with a watchdog that is killed, since it can't start itself: {error}"
                );
                self.start_itself(processes)
            }
            outcome => outcome,
        }
    }

    fn start_itself(&self, processes: &Arc<Processes>) -> io::Result<Run> {
        let mut words = self.words.iter();
        let program = words.next().map(OsString::as_os_str).unwrap_or_default();
        let mut command = Command::new(program);
        command.args(words);
        let named = |error: io::Error| io::Error::new(error.kind(), cannot_start(program, &error));
        self.start_as(command, processes).map_err(named)
    }

    /// A watchdog that becomes the function: only a process itself can ask to be killed with its parent.
    fn tied_command(&self) -> Command {
        let mut command = Command::new(own_program());
        command.arg(BECOME).arg(std::process::id().to_string()).args(&self.words);
        command
    }

    fn start_as(&self, mut command: Command, processes: &Arc<Processes>) -> io::Result<Run> {
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let (mut child, group) = processes.start(|| {
            let child = command.spawn()?;
            let leader = Pid::from_child(&child);
            Ok::<_, io::Error>((child, leader))
        })?;
        let copiers = [
            copy(child.stdout.take(), "stdout", self.logs, io::stdout)?,
            copy(child.stderr.take(), "stderr", self.logs, io::stderr)?,
        ];
        Ok(Run { child, group, copiers, since: Instant::now() })
    }
}

/// The watchdog's program. Not the kernel's name for it where there is another: with an emulator of the processor, that
/// is the emulator.
pub(crate) fn own_program() -> PathBuf {
    std::env::current_exe().ok().filter(|path| path.exists()).unwrap_or_else(|| "/proc/self/exe".into())
}

/// Whether the program is for another processor: that of an emulator which is not registered with the kernel.
fn is_foreign(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error())
}

impl Run {
    /// Waits for the end: the status in words, whether it is 0, and how long it took.
    fn wait(&mut self) -> (String, bool, Duration) {
        let status = self.child.wait();
        let ran = self.since.elapsed();
        let ended_well = status.as_ref().is_ok_and(ExitStatus::success);
        (status.map_or_else(|error| error.to_string(), describe), ended_well, ran)
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

/// The status in Go's words, which people look for in logs.
pub(crate) fn describe(status: ExitStatus) -> String {
    let Some(signal) = status.signal() else {
        return status.code().map_or_else(|| status.to_string(), |code| format!("exit status {code}"));
    };
    let dumped = if status.core_dumped() { " (core dumped)" } else { "" };
    let name = usize::try_from(signal).ok().and_then(|number| SIGNALS.get(number.wrapping_sub(1)));
    match name {
        Some(name) => format!("signal: {name}{dumped}"),
        None => format!("signal: signal {signal}{dumped}"),
    }
}

/// Names of the signals from 1 on, as Go writes them on Linux.
const SIGNALS: [&str; 15] = [
    "hangup",
    "interrupt",
    "quit",
    "illegal instruction",
    "trace/breakpoint trap",
    "aborted",
    "bus error",
    "floating point exception",
    "killed",
    "user defined signal 1",
    "segmentation fault",
    "user defined signal 2",
    "broken pipe",
    "alarm clock",
    "terminated",
];

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
    cannot_start(&program, &error)
}

fn cannot_start(program: &OsStr, error: &io::Error) -> String {
    format!("fprocess is {:?}, and it can't be started: {error}", program.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_in_the_words_of_go() {
        assert_eq!(describe(ExitStatus::from_raw(3 << 8)), "exit status 3");
        assert_eq!(describe(ExitStatus::from_raw(0)), "exit status 0");
        assert_eq!(describe(ExitStatus::from_raw(9)), "signal: killed");
        assert_eq!(describe(ExitStatus::from_raw(0x8b)), "signal: segmentation fault (core dumped)");
        assert_eq!(describe(ExitStatus::from_raw(64)), "signal: signal 64");
    }

    #[test]
    fn whoever_is_not_the_watchdog_is_refused() {
        let arguments = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>().into_iter();
        assert!(become_function(arguments(&[])).contains(BECOME));
        assert!(become_function(arguments(&["x", "true"])).contains(BECOME));
    }
}
