//! The programs that are measured: started on free ports with nothing to say, and looked at through `/proc`.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tests::port;

/// Longest time for a program to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clock ticks in a second, which Linux shows in `/proc` on all its platforms.
const TICKS: f64 = 100.0;

/// What the upstream answers to small requests.
const ANSWER: &str = "hello world";

/// Size of large bodies, in bytes.
pub(crate) const LARGE: usize = 10 << 20;

/// A running program. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Target {
    /// What it is called in figures.
    pub(crate) name: &'static str,
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl Target {
    /// A URL at it.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its process and those that it started, except the function behind a watchdog, which only sleeps.
    fn processes(&self) -> Vec<u32> {
        let own = self.child.id();
        let children =
            std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        std::iter::once(own).chain(children).collect()
    }

    /// Processor time used so far, in seconds.
    pub(crate) fn cpu(&self) -> f64 {
        let used = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // After the name, which may have spaces, fields 14 and 15 of proc(5) are numbers 11 and 12.
            let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
            Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
        };
        self.processes().into_iter().filter_map(used).sum::<f64>() / TICKS
    }

    /// A line of `/proc/PID/status` in MiB, of the program's own process.
    pub(crate) fn memory(&self, line: &str) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let value = status.lines().find_map(|found| found.strip_prefix(line)).context("no such line")?;
        let kib: f64 = value.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").trim().parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // At once: a watchdog that is asked to end drains for half a minute first.
        for pid in self.processes() {
            let _ =
                Command::new("kill").args(["-s", "KILL", &pid.to_string()]).stderr(Stdio::null()).status();
        }
        let _ = self.child.wait();
    }
}

/// A moment between two looks with a deadline, or a time that is part of what is measured.
#[allow(clippy::disallowed_methods)] // There is nothing to wait for that could be told.
pub(crate) fn pause(span: Duration) {
    std::thread::sleep(span);
}

fn start(name: &'static str, mut command: Command, port: u16, folder: TempDir, path: &str) -> Result<Target> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().with_context(|| format!("{name} can't be started"))?;
    let target = Target { name, child, port, _folder: folder };
    let start = Instant::now();
    while !answers(port, path) {
        if start.elapsed() > PATIENCE {
            bail!("{name} does not answer at port {port}");
        }
        pause(Duration::from_micros(200));
    }
    Ok(target)
}

/// Whether `path` is answered with 200.
pub(crate) fn answers(port: u16, path: &str) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        std::io::Result::Ok(&status == b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}

/// The watchdog `program` in mode `http` in front of `upstream`.
pub(crate) fn watchdog(name: &'static str, program: &Path, upstream: u16) -> Result<Target> {
    let url = format!("http://127.0.0.1:{upstream}");
    let variables = [("mode", "http"), ("upstream_url", &url), ("fprocess", "sleep 100000")];
    watchdog_with(name, program, &variables, "/_/health")
}

/// The watchdog `program` with `variables`; it has started when it answers `path`.
pub(crate) fn watchdog_with(
    name: &'static str,
    program: &Path,
    variables: &[(&str, &str)],
    path: &str,
) -> Result<Target> {
    let (folder, port) = (tempfile::tempdir()?, port::free()?);
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("TMPDIR", folder.path()).env("port", port.to_string()).envs(variables.iter().copied());
    // of-watchdog knows no such variable; only one of them runs with its own port for metrics.
    command.env("metrics_port", "0");
    start(name, command, port, folder, path)
}

/// What is behind all of them: nginx with one worker, which answers from memory.
pub(crate) fn upstream() -> Result<Target> {
    let (folder, port) = (tempfile::tempdir()?, port::free()?);
    std::fs::write(folder.path().join("large"), vec![b'x'; LARGE])?;
    let root = folder.path().display();
    // A body is answered when all of it is there: `return` would answer before that.
    let buffer = LARGE + 1;
    let server = format!(
        "server {{ listen 127.0.0.1:{port}; client_max_body_size 0; root {root};\n\
         location = /large {{ }}\n\
         location = /upload {{ client_body_buffer_size {buffer}; proxy_method GET; proxy_pass_request_body off;\n\
         proxy_set_header Content-Length \"\"; proxy_pass http://127.0.0.1:{port}/; }}\n\
         location / {{ return 200 \"{ANSWER}\"; }} }}"
    );
    nginx("direct", 1, &server, folder, port)
}

/// nginx as a proxy in front of `upstream`.
pub(crate) fn nginx_proxy(upstream: u16) -> Result<Target> {
    let (folder, port) = (tempfile::tempdir()?, port::free()?);
    let server = format!(
        "upstream function {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000000; }}\n\
         server {{ listen 127.0.0.1:{port}; client_max_body_size 0; proxy_request_buffering off; proxy_buffering off;\n\
         location / {{ proxy_pass http://function; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         proxy_set_header Host $host; }} }}"
    );
    nginx("nginx", std::thread::available_parallelism()?.get(), &server, folder, port)
}

fn nginx(name: &'static str, workers: usize, server: &str, folder: TempDir, port: u16) -> Result<Target> {
    let path = folder.path().display().to_string();
    let mut config = format!(
        "worker_processes {workers}; daemon off; pid {path}/pid; error_log /dev/null;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; sendfile on; keepalive_requests 1000000000;\n"
    );
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(config, "{kind}_temp_path {path}/{kind};");
    }
    let _ = writeln!(config, "{server} }}");
    std::fs::write(folder.path().join("nginx.conf"), config)?;
    // Its workers drop root's rights and must still get at the folder.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut command = Command::new("nginx");
    command.env("PATH", search_path()).args([
        "-c",
        &format!("{path}/nginx.conf"),
        "-e",
        "/dev/null",
        "-p",
        &path,
    ]);
    start(name, command, port, folder, "/")
}

/// haproxy in front of `upstream`.
pub(crate) fn haproxy(upstream: u16) -> Result<Target> {
    let (folder, port) = (tempfile::tempdir()?, port::free()?);
    let threads = std::thread::available_parallelism()?;
    let config = format!(
        "global\n nbthread {threads}\n maxconn 4000\n\
         defaults\n mode http\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
         frontend f\n bind 127.0.0.1:{port}\n default_backend b\n\
         backend b\n http-reuse always\n server s 127.0.0.1:{upstream}\n"
    );
    let path = folder.path().join("haproxy.cfg");
    std::fs::write(&path, config)?;
    let mut command = Command::new("haproxy");
    command.env("PATH", search_path()).arg("-f").arg(path);
    start("haproxy", command, port, folder, "/")
}

fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}
