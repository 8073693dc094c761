//! The function behind the watchdog: a plain HTTP/1.1 server, one thread for each connection, that tells what it sees.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::wait::pause;

/// A running server, until it is dropped.
#[derive(Debug)]
pub(crate) struct Upstream {
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
    /// Requests that are being answered.
    pub(crate) busy: Arc<AtomicUsize>,
    /// Requests whose client went away while they were being answered.
    pub(crate) aborted: Arc<AtomicUsize>,
}

impl Upstream {
    /// Starts on a free port.
    pub(crate) fn start() -> Result<Self> {
        Self::serve(TcpListener::bind("127.0.0.1:0")?)
    }

    /// Serves on `listener`.
    pub(crate) fn serve(listener: TcpListener) -> Result<Self> {
        let server = Self {
            address: listener.local_addr()?,
            is_over: Arc::default(),
            busy: Arc::default(),
            aborted: Arc::default(),
        };
        let (is_over, busy, aborted) =
            (Arc::clone(&server.is_over), Arc::clone(&server.busy), Arc::clone(&server.aborted));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                let (busy, aborted, is_over) =
                    (Arc::clone(&busy), Arc::clone(&aborted), Arc::clone(&is_over));
                thread::spawn(move || {
                    while !is_over.load(Ordering::SeqCst)
                        && converse(&stream, &busy, &aborted, &is_over).unwrap_or(false)
                    {}
                });
            }
        });
        Ok(server)
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until `count` requests are being answered.
    pub(crate) fn until_busy(&self, count: usize) -> Result<()> {
        crate::watchdog::wait_for(|| self.busy.load(Ordering::SeqCst) == count)
            .with_context(|| format!("{count} requests should be under way"))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

/// What the server has seen of a request.
struct Seen {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// Answers one request; whether another may come.
fn converse(
    stream: &TcpStream,
    busy: &AtomicUsize,
    aborted: &AtomicUsize,
    is_over: &AtomicBool,
) -> Result<bool> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let Some(seen) = head(&mut reader)?.filter(|_| !is_over.load(Ordering::SeqCst)) else { return Ok(false) };
    let body = body(&mut reader, &seen)?;
    busy.fetch_add(1, Ordering::SeqCst);
    let outcome = answer(stream, &seen, &body, aborted);
    busy.fetch_sub(1, Ordering::SeqCst);
    outcome
}

fn head(reader: &mut impl BufRead) -> Result<Option<Seen>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(ToString::to_string);
    let (method, target) = (words.next().context("no method")?, words.next().context("no target")?);
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_string(), value.trim().to_string()));
    }
    Ok(Some(Seen { method, target, headers }))
}

fn body(reader: &mut impl BufRead, seen: &Seen) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    if seen.header("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            ensure!(reader.read_line(&mut line)? > 0, "the body ended");
            let size = usize::from_str_radix(line.trim(), 16)?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }
    let length = seen.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    body.resize(length, 0);
    reader.read_exact(&mut body)?;
    Ok(body)
}

fn whole(mut stream: &TcpStream, seen: &Seen, head: &str, body: &[u8]) -> Result<bool> {
    let mut bytes = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    if seen.method != "HEAD" {
        bytes.extend_from_slice(body);
    }
    stream.write_all(&bytes)?;
    Ok(true)
}

fn answer(mut stream: &TcpStream, seen: &Seen, body: &[u8], aborted: &AtomicUsize) -> Result<bool> {
    let path = seen.target.split('?').next().unwrap_or_default();
    let mut words = path.trim_start_matches('/').split('/');
    let (what, number) = (words.next().unwrap_or_default(), words.next().and_then(|n| n.parse::<u64>().ok()));
    let number = number.unwrap_or(0);
    match what {
        "status" => {
            let head = format!("{number} Said\r\nLocation: /else?where=1");
            whole(stream, seen, &head, b"body")
        }
        "sleep" => {
            let until = Instant::now() + Duration::from_millis(number);
            while Instant::now() < until {
                if has_gone(stream) {
                    aborted.fetch_add(1, Ordering::SeqCst);
                    return Ok(false);
                }
                pause(Duration::from_millis(5));
            }
            whole(stream, seen, "200 OK", b"slept")
        }
        "cookies" => whole(stream, seen, "200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2", b""),
        "gzip" => whole(stream, seen, "200 OK\r\nContent-Encoding: gzip", b"\x1f\x8b not really"),
        "events" => {
            stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
            )?;
            for n in 0..3 {
                let event = format!("data: {n}\n\n");
                stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())?;
                pause(Duration::from_millis(number));
            }
            stream.write_all(b"0\r\n\r\n")?;
            Ok(true)
        }
        "ws" => {
            stream.write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            )?;
            std::io::copy(&mut stream.try_clone()?, &mut stream)?;
            Ok(false)
        }
        _ => {
            let headers: Vec<Value> =
                seen.headers.iter().map(|(name, value)| json!([name.to_lowercase(), value])).collect();
            let text = String::from_utf8_lossy(body);
            let seen_as =
                json!({"method": seen.method, "target": seen.target, "headers": headers, "body": text});
            whole(stream, seen, "200 OK", seen_as.to_string().as_bytes())
        }
    }
}

/// Whether the other side has ended the connection.
fn has_gone(stream: &TcpStream) -> bool {
    let _ = stream.set_nonblocking(true);
    let peeked = stream.peek(&mut [0]);
    let _ = stream.set_nonblocking(false);
    match peeked {
        Ok(count) => count == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

/// The values of a header in what the server has seen.
pub(crate) fn seen_headers(seen: &Value, name: &str) -> Vec<String> {
    let headers = seen["headers"].as_array().into_iter().flatten();
    headers
        .filter(|header| header[0] == name)
        .filter_map(|header| header[1].as_str().map(ToString::to_string))
        .collect()
}
