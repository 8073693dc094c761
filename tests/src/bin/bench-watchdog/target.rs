//! The programs that are measured: started on free ports with nothing to say, and looked at through `/proc`.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tests::port;
use tests::server::{Server, WatchdogSetup};

/// Between two looks whether a program has started.
const LOOK: Duration = Duration::from_micros(200);

/// What the upstream answers to small requests.
const ANSWER: &str = "hello world";

/// Size of large bodies, in bytes.
pub(crate) const LARGE: usize = 10 << 20;

/// A running program.
#[derive(Debug)]
pub(crate) struct Target {
    /// What it is called in figures.
    pub(crate) name: &'static str,
    /// Its process.
    pub(crate) server: Server,
}

impl Target {
    /// A URL at it.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.address())
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.server.address().port()
    }

    /// A line of `/proc/PID/status` in MiB, of the program's own process.
    pub(crate) fn memory(&self, line: &str) -> Result<f64> {
        Ok(f64::from(u32::try_from(self.server.status(line)?)?) / 1024.0)
    }

    /// One that has started when it answers `path`.
    fn new(name: &'static str, server: Server, path: &str) -> Result<Self> {
        let server = server.until_up(LOOK, |server| answers(server.address(), path)).context(name)?;
        Ok(Self { name, server })
    }
}

fn start(name: &'static str, mut command: Command, port: u16, folder: TempDir, path: &str) -> Result<Target> {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Target::new(name, Server::start(&mut command, port, folder)?, path)
}

/// Whether `path` is answered with 200.
pub(crate) fn answers(address: SocketAddr, path: &str) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(address)?;
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
    // of-watchdog knows no such variable; only one of them runs with its own port for metrics.
    let mut setup = WatchdogSetup::new(program)?.env("metrics_port", 0);
    for (variable, value) in variables {
        setup = setup.env(variable, value);
    }
    let mut command = setup.command();
    Target::new(name, setup.start(&mut command)?, path)
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
