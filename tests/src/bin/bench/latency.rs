//! What gateway and watchdog add to a request: the same tiny function asked through both, through its watchdog, and
//! directly, in turn. One request at a time: it says nothing about throughput.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use gpufn::figures::{Bar, Figure};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tests::function::Function;
use tests::load::median;
use tests::local::Local;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{Effort, of_rounds};

/// Longest wait for an answer of a function that has nothing to do.
const DEADLINE: Duration = Duration::from_secs(5);
/// Requests before the first round.
const WARM_UP: usize = 200;

/// What the gateway and what the watchdog add to the median latency.
pub(crate) async fn added(local: &Local, effort: Effort) -> Result<Vec<Figure>> {
    let replica = local.gateway().deploy_ready(&Function::echo("echo")).await;
    let watchdog = replica.watchdog_pid.context("the replica has no watchdog")?;
    let mut lines = [
        Line::open(loopback(port(watchdog, "PORT")?), "/").await?,
        Line::open(loopback(port(watchdog, "port")?), "/").await?,
        Line::open(local.address(), "/function/echo").await?,
    ];
    round(&mut lines, WARM_UP).await?;
    let (mut by_watchdog, mut by_gateway) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let [function, watchdog, gateway] = round(&mut lines, effort.requests).await?;
        println!("p50: function {function:.3} ms, watchdog {watchdog:.3} ms, gateway {gateway:.3} ms");
        by_watchdog.push(watchdog - function);
        by_gateway.push(gateway - watchdog);
    }
    let figure = |id: &str, rounds: &[f64], through: &str| {
        let how = format!("p50 {through}, {} sequential requests each, in turn", effort.requests);
        let (value, how) = of_rounds(id, rounds, "ms", &how)?;
        anyhow::Ok(Figure::new(id, value, "ms", Bar::AtMost(0.5), how))
    };
    Ok(vec![
        figure(
            "gateway-added-p50-ms",
            &by_gateway,
            "of an echo function through the gateway of `gpufn up` minus at its fwatchdog",
        )?,
        figure(
            "watchdog-added-p50-ms",
            &by_watchdog,
            "of an echo function through fwatchdog minus at the function",
        )?,
    ])
}

/// Median latency on each line, milliseconds. The lines take turns, so that what disturbs one disturbs all.
async fn round(lines: &mut [Line; 3], requests: usize) -> Result<[f64; 3]> {
    let mut latencies = [const { Vec::new() }; 3];
    for _ in 0..requests {
        for (line, latencies) in lines.iter_mut().zip(&mut latencies) {
            latencies.push(1e3 * line.ask().await?.as_secs_f64());
        }
    }
    Ok(latencies.map(|latencies| median(latencies).unwrap_or(f64::NAN)))
}

/// A port that the watchdog was told in its environment.
fn port(watchdog: u32, variable: &str) -> Result<u16> {
    let path = format!("/proc/{watchdog}/environ");
    let environment = String::from_utf8_lossy(&std::fs::read(&path).context(path)?).into_owned();
    let value = environment.split('\0').find_map(|entry| entry.strip_prefix(variable)?.strip_prefix('='));
    let value = value.with_context(|| format!("the watchdog was not told {variable}"))?;
    value.parse().with_context(|| format!("{variable}={value}"))
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A connection that is kept, with one request at a time on it.
struct Line {
    sender: SendRequest<Full<Bytes>>,
    address: SocketAddr,
    path: &'static str,
}

impl Line {
    async fn open(address: SocketAddr, path: &'static str) -> Result<Self> {
        let stream = timeout(DEADLINE, TcpStream::connect(address)).await?.context(address)?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends with the sender; a failure shows at the request that it fails.
        tokio::spawn(connection);
        Ok(Self { sender, address, path })
    }

    /// How long a request takes, its whole answer included.
    async fn ask(&mut self) -> Result<Duration> {
        let request = Request::post(self.path).header("host", self.address.to_string());
        let request = request.body(Full::new(Bytes::from_static(b"x")))?;
        let start = Instant::now();
        let exchange = async {
            self.sender.ready().await?;
            let answer = self.sender.send_request(request).await?;
            let status = answer.status();
            answer.into_body().collect().await.map(|_| status)
        };
        let status =
            timeout(DEADLINE, exchange).await.with_context(|| format!("{}: no answer", self.address))?;
        let took = start.elapsed();
        let status = status.with_context(|| self.address.to_string())?;
        ensure!(status == StatusCode::OK, "{}{} answered {status}", self.address, self.path);
        Ok(took)
    }
}
