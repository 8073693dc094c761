//! What a watchdog costs before it does anything: memory, time to start, size; and memory with many streams.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gpufn::figures::{Bar, Figure};
use tests::load::median;
use tests::wait::pause;

use crate::Cli;
use crate::target::{answers, upstream, watchdog};

/// How often a start is timed.
const STARTS: usize = 21;

/// Event streams at once.
const STREAMS: usize = 200;

/// Figures of the watchdog alone.
pub(crate) fn figures(cli: &Cli) -> Result<Vec<Figure>> {
    let upstream = upstream()?;
    let size = std::fs::metadata(&cli.watchdog).with_context(|| cli.watchdog.display().to_string())?.len();
    #[allow(clippy::cast_precision_loss)] // A program has less than 8 PiB.
    let size = size as f64 / f64::from(1 << 20);
    let idle = watchdog("fwatchdog", &cli.watchdog, upstream.port())?;
    pause(Duration::from_millis(500));
    let resident = idle.memory("VmRSS")?;
    drop(idle);
    Ok(vec![
        Figure::new("binary-size", size, "MiB", Bar::AtMost(8.0), "release build"),
        Figure::new("idle-memory", resident, "MiB", Bar::AtMost(5.0), "VmRSS half a second after the start"),
        start_to_healthy(cli, upstream.port())?,
        streams(cli)?,
    ])
}

fn start_to_healthy(cli: &Cli, upstream: u16) -> Result<Figure> {
    let time = || {
        let start = Instant::now();
        watchdog("fwatchdog", &cli.watchdog, upstream).map(|_| start.elapsed().as_secs_f64() * 1e3)
    };
    let times: Vec<f64> = (0..STARTS).map(|_| time()).collect::<Result<_>>()?;
    let value = median(times).context("no start was timed")?;
    let how = format!("exec to the first 200 of /_/health; median of {STARTS}");
    Ok(Figure::new("start-to-healthy", value, "ms", Bar::AtMost(5.0), how))
}

/// Many clients that read events for a while.
fn streams(cli: &Cli) -> Result<Figure> {
    let function = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = function.local_addr()?.port();
    std::thread::spawn(move || send_events(&function));
    let watchdog = watchdog("fwatchdog", &cli.watchdog, port)?;
    let start = Instant::now();
    while !answers(watchdog.server.address(), "/_/ready") {
        if start.elapsed() > Duration::from_secs(10) {
            bail!("the watchdog does not become ready");
        }
        pause(Duration::from_millis(1));
    }
    let mut clients = Vec::with_capacity(STREAMS);
    for _ in 0..STREAMS {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, watchdog.port()))?;
        client.set_read_timeout(Some(Duration::from_secs(10)))?;
        client.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")?;
        clients.push(client);
    }
    for _ in 0..20 {
        for client in &mut clients {
            if client.read(&mut [0; 4096])? == 0 {
                bail!("an event stream ended");
            }
        }
    }
    let peak = watchdog.memory("VmHWM")?;
    let how = format!("VmHWM with {STREAMS} event streams that all are read");
    Ok(Figure::new("memory-200-event-streams", peak, "MiB", Bar::AtMost(20.0), how))
}

/// A function that answers every connection with an event every 50 ms.
fn send_events(listener: &TcpListener) {
    for stream in listener.incoming().map_while(Result::ok) {
        std::thread::spawn(move || events(stream));
    }
}

fn events(mut stream: TcpStream) -> std::io::Result<()> {
    if stream.read(&mut [0; 4096])? == 0 {
        return Ok(());
    }
    stream.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    loop {
        stream.write_all(b"b\r\ndata: abc\n\n\r\n")?;
        pause(Duration::from_millis(50));
    }
}
