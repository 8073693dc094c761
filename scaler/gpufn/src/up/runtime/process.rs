//! Replicas as local processes behind `fwatchdog`. No isolation: a function may do what the user may.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Launch, Launched, Runtime};
use crate::up::folder::{Folder, Pids};
use crate::up::logbook::LogBook;
use crate::up::spec::Spec;
use openfaas::shapes::Map;

/// Time from SIGTERM to SIGKILL: the watchdog's own bound for the function, and a little.
const STOP: Duration = Duration::from_secs(8);
/// What reading and writing may take beyond the function's own limit, and that limit where there is none.
const PATIENCE: Duration = Duration::from_secs(5);
const UNLIMITED: Duration = Duration::from_hours(24);
/// Longest log line; what is longer is split.
const LINE: usize = 64 << 10;
/// What functions see of the environment that gpufn itself was started with.
const INHERITED: [&str; 7] = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH"];

/// Starts `fwatchdog` with the function behind it.
#[derive(Debug)]
pub(crate) struct Processes {
    watchdog: PathBuf,
    folder: Folder,
    pids: Arc<Pids>,
    tasks: TaskTracker,
}

impl Processes {
    /// A runtime with this `fwatchdog`, which keeps its files in `folder`.
    pub(crate) fn new(watchdog: PathBuf, folder: Folder, pids: Arc<Pids>, tasks: TaskTracker) -> Self {
        Self { watchdog, folder, pids, tasks }
    }

    fn start(&self, order: &Launch) -> Result<Launched, String> {
        let home = self.folder.replica(&order.instance);
        let secrets = prepare(&home, &self.folder, &order.spec)?;
        // Both ports are held until the moment of the start, so that no two replicas are given the same.
        let (own, function) = (free_port()?, free_port()?);
        let ports = Ports { own: port_of(&own)?, function: port_of(&function)? };
        let mut command = Command::new(&self.watchdog);
        command
            .current_dir(&order.spec.program.folder)
            .env_clear()
            .envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .envs(environment(&order.spec, &ports, &home.join("tmp"), &secrets))
            .envs(order.binding_env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        drop((own, function));
        let child = command.spawn().map_err(|error| {
            let _ = std::fs::remove_dir_all(&home);
            format!(
                "failed to start {} in {}: {error}",
                self.watchdog.display(),
                order.spec.program.folder.display()
            )
        })?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.own));
        Ok(self.watch(child, address, home, order))
    }

    fn watch(&self, mut child: Child, address: SocketAddr, home: PathBuf, order: &Launch) -> Launched {
        let pid = child.id();
        let (send, ended) = watch::channel(None);
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        if let Some(pid) = pid {
            self.pids.add(pid);
        }
        let (log, instance) = (&order.log, &order.instance);
        if let Some(stdout) = child.stdout.take() {
            self.tasks.spawn(copy_lines(stdout, log.clone(), instance.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            self.tasks.spawn(copy_lines(stderr, log.clone(), instance.clone()));
        }
        let launched = Launched { address, pid, ended, stop: stop.clone(), kill: kill.clone() };
        let pids = self.pids.clone();
        self.tasks.spawn(async move {
            let reason = end_of(&mut child, pid, stop, kill).await;
            if let Some(pid) = pid {
                pids.remove(pid);
            }
            if let Err(error) = std::fs::remove_dir_all(&home) {
                tracing::debug!(path = %home.display(), %error, "A replica's folder stays.");
            }
            send.send_replace(Some(reason));
        });
        launched
    }
}

impl Runtime for Processes {
    fn launch(&self, order: Launch) -> BoxFuture<'_, Result<Launched, String>> {
        Box::pin(std::future::ready(self.start(&order)))
    }
}

struct Ports {
    own: u16,
    function: u16,
}

fn free_port() -> Result<std::net::TcpListener, String> {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .map_err(|error| format!("failed to find a free port: {error}"))
}

fn port_of(listener: &std::net::TcpListener) -> Result<u16, String> {
    listener
        .local_addr()
        .map(|address| address.port())
        .map_err(|error| format!("failed to find a free port: {error}"))
}

/// Makes the replica's folder, with a copy of the secrets that it names; returns where those are.
fn prepare(home: &Path, folder: &Folder, spec: &Spec) -> Result<PathBuf, String> {
    let secrets = home.join("secrets");
    let failed = |error: std::io::Error| format!("failed to prepare {}: {error}", home.display());
    for path in [&home.join("tmp"), &secrets] {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    }
    for name in &spec.deployment.secrets {
        let value = std::fs::read(folder.secret(&spec.id.namespace, name))
            .map_err(|error| format!("failed to read secret {name}: {error}"))?;
        let file = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(secrets.join(name));
        file.and_then(|mut file| std::io::Write::write_all(&mut file, &value)).map_err(failed)?;
    }
    Ok(secrets)
}

/// What the watchdog and the function are told. Where it listens is not the deployment's to say.
fn environment(spec: &Spec, ports: &Ports, tmp: &Path, secrets: &Path) -> Map {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let millis = |span: Duration| format!("{}ms", span.as_millis());
    let timeout = millis(spec.exec_timeout.unwrap_or_default());
    let patience = millis(spec.exec_timeout.unwrap_or(UNLIMITED) + PATIENCE);
    let mut env: Map = [
        ("mode", "http".to_string()),
        ("upstream_url", format!("http://127.0.0.1:{}", ports.function)),
        ("PORT", ports.function.to_string()),
        ("read_timeout", patience.clone()),
        ("write_timeout", patience),
        ("secret_mount_path", text(secrets)),
        ("TMPDIR", text(tmp)),
    ]
    .map(|(name, value)| (name.to_string(), value))
    .into();
    env.extend(spec.env());
    let fixed = [
        ("fprocess", spec.program.process.clone()),
        ("port", ports.own.to_string()),
        ("listen_address", Ipv4Addr::LOCALHOST.to_string()),
        ("metrics_port", "0".into()),
        ("exec_timeout", timeout),
        ("healthcheck_interval", "0".into()),
        ("OPENFAAS_NAME", spec.id.name.clone()),
        ("OPENFAAS_NAMESPACE", spec.id.namespace.clone()),
    ];
    env.extend(fixed.map(|(name, value)| (name.to_string(), value)));
    env.remove("function_process");
    env
}

/// Waits for the process to end, by itself or as told; says why it did.
async fn end_of(
    child: &mut Child,
    pid: Option<u32>,
    stop: CancellationToken,
    kill: CancellationToken,
) -> String {
    let group = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let end = |status: std::io::Result<std::process::ExitStatus>| match status {
        Ok(status) => format!("fwatchdog ended with {status}"),
        Err(error) => format!("fwatchdog is lost: {error}"),
    };
    tokio::select! {
        status = child.wait() => return end(status),
        () = kill.cancelled() => {}
        () = stop.cancelled() => {
            if let Some(pid) = group {
                // To the watchdog alone: it drains, and ends the function in its turn.
                let _ = kill_process(pid, Signal::TERM);
            }
            tokio::select! {
                status = child.wait() => return end(status),
                () = kill.cancelled() => {}
                () = tokio::time::sleep(STOP) => {}
            }
        }
    }
    if let Some(pid) = group {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    end(child.wait().await)
}

/// Copies lines into the log until the other end closes.
async fn copy_lines(from: impl AsyncRead + Unpin, log: Arc<LogBook>, instance: Arc<str>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while let Ok(chunk) = from.fill_buf().await {
        if chunk.is_empty() {
            break;
        }
        let room = chunk.len().min(LINE - line.len());
        let end = chunk[..room].iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&chunk[..end.unwrap_or(room)]);
        let whole = end.is_some() || line.len() == LINE;
        from.consume(end.map_or(room, |end| end + 1));
        if whole {
            log.write(&instance, String::from_utf8_lossy(&line).trim_end_matches('\r').to_string());
            line.clear();
        }
    }
    if !line.is_empty() {
        log.write(&instance, String::from_utf8_lossy(&line).into_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_copied_and_long_ones_split() {
        let log = Arc::new(LogBook::new(None));
        let text = format!("a\r\n\n{}b\nend", "x".repeat(LINE));
        copy_lines(text.as_bytes(), log.clone(), "i".into()).await;
        let lines: Vec<_> = log.since(0).0.into_iter().map(|line| line.text).collect();
        assert_eq!(lines.len(), 5);
        assert_eq!((lines[0].as_str(), lines[1].as_str(), lines[2].len()), ("a", "", LINE));
        assert_eq!((lines[3].as_str(), lines[4].as_str()), ("b", "end"));
    }
}
