//! What the function sees of a request, and a client of an answer: cases 8 to 24.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{Case, case};
use crate::client::{Connection, Request};
use crate::upstream::{Upstream, seen_headers};
use crate::watchdog::Suite;

pub(crate) const CASES: &[Case] = &[
    case(8, "target, host and repeated headers arrive as they were sent", |suite| {
        let request = Request::new("GET", "/a%20b/c?x=1&y=%2F").header("X-A", "1").header("X-A", "2");
        let seen = seen(suite, &request, &[])?;
        ensure!(seen["target"] == "/a%20b/c?x=1&y=%2F", "{seen}");
        ensure!(seen_headers(&seen, "host") == ["fn.example"], "{seen}");
        ensure!(seen_headers(&seen, "x-a") == ["1", "2"], "{seen}");
        Ok(())
    }),
    case(9, "a body arrives, in chunks", |suite| {
        let seen = seen(suite, &Request::new("POST", "/").body("hello"), &[])?;
        is_chunked(&seen)
    }),
    case(10, "a body in chunks arrives in chunks", |suite| {
        let seen = seen(suite, &Request::new("POST", "/").body("hello").chunked(), &[])?;
        is_chunked(&seen)
    }),
    case(11, "an empty POST has a length of 0", |suite| {
        let seen = seen(suite, &Request::new("POST", "/").body(""), &[])?;
        ensure!(seen_headers(&seen, "content-length") == ["0"], "{seen}");
        Ok(())
    }),
    case(12, "GET and DELETE without a body have neither length nor chunks", |suite| {
        for method in ["GET", "DELETE"] {
            let seen = seen(suite, &Request::new(method, "/"), &[])?;
            let headers = [seen_headers(&seen, "content-length"), seen_headers(&seen, "transfer-encoding")];
            ensure!(headers.concat().is_empty(), "{seen}");
        }
        Ok(())
    }),
    case(13, "HEAD gives headers and no body", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.start()?;
        let mut connection = Connection::open(watchdog.address)?;
        connection.send("HEAD /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let answer = connection.rest()?;
        ensure!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
        Ok(())
    }),
    case(14, "a buffered body arrives with its length", |suite| {
        let request = Request::new("POST", "/").body("hello").chunked();
        let seen = seen(suite, &request, &[("http_buffer_req_body", "true")])?;
        if suite.is_old {
            return is_chunked(&seen);
        }
        ensure!(seen_headers(&seen, "content-length") == ["5"] && seen["body"] == "hello", "{seen}");
        ensure!(seen_headers(&seen, "transfer-encoding").is_empty(), "{seen}");
        Ok(())
    }),
    case(15, "statuses pass, and redirects are not followed", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.start()?;
        for status in [404, 503, 302] {
            let answer = watchdog.get(&format!("/status/{status}"))?.expect(status)?;
            ensure!(
                answer.header("location") == Some("/else?where=1") && answer.text() == "body",
                "{answer:?}"
            );
        }
        Ok(())
    }),
    case(16, "repeated headers of an answer are kept", |suite| {
        let upstream = Upstream::start()?;
        let answer = suite.http(&upstream.url())?.start()?.get("/cookies")?.expect(200)?;
        let cookies = answer.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
        let cookies: Vec<&str> = cookies.map(|(_, value)| value.as_str()).collect();
        ensure!(cookies == ["a=1", "b=2"], "{answer:?}");
        Ok(())
    }),
    case(17, "X-Duration-Seconds has six decimals", |suite| {
        let upstream = Upstream::start()?;
        let answer = suite.http(&upstream.url())?.start()?.get("/x")?.expect(200)?;
        let seconds = answer.header("x-duration-seconds").unwrap_or_default();
        let decimals = seconds.split_once('.').map(|(_, decimals)| decimals.len());
        ensure!(decimals == Some(6) && seconds.parse::<f64>().is_ok(), "{answer:?}");
        Ok(())
    }),
    case(18, "an encoded answer passes to a client that asked for it", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.start()?;
        let answer = Request::new("GET", "/gzip").header("Accept-Encoding", "gzip").send(watchdog.address)?;
        ensure!(answer.header("content-encoding") == Some("gzip"), "{answer:?}");
        ensure!(answer.body == b"\x1f\x8b not really", "{answer:?}");
        Ok(())
    }),
    case(19, "a client that expects a 100 gets it", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.start()?;
        let mut connection = Connection::open(watchdog.address)?;
        connection.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")?;
        let first = connection.until(b"\r\n\r\n")?;
        ensure!(first.starts_with("HTTP/1.1 100 "), "{first}");
        connection.send("hi")?;
        connection.answer("POST")?.expect(200).map(drop)
    }),
    case(20, "two requests at once get two answers in their order", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.start()?;
        let mut connection = Connection::open(watchdog.address)?;
        connection.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n")?;
        for target in ["/a", "/b"] {
            let seen = connection.answer("GET")?.expect(200)?.json()?;
            ensure!(seen["target"] == target, "{seen}");
        }
        Ok(())
    }),
    case(21, "HTTP/1.0 is answered in HTTP/1.0", |suite| {
        first_line(suite, "GET / HTTP/1.0\r\n\r\n", &["HTTP/1.0 200 "])
    }),
    case(22, "a request without a host is 400", |suite| {
        first_line(suite, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n", &["HTTP/1.1 400 "])
    }),
    case(23, "a header of 1.1 MB is 431", |suite| {
        let request = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(1_150_000));
        first_line(suite, &request, &["HTTP/1.1 431 "])
    }),
    case(24, "CONNECT is refused, OPTIONS * is 200", |suite| {
        let connect = "CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\nConnection: close\r\n\r\n";
        first_line(suite, connect, &["HTTP/1.1 404 ", "HTTP/1.1 405 "])?;
        first_line(suite, "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", &["HTTP/1.1 200 "])
    }),
];

/// The request as the function saw it.
fn seen(suite: &Suite, request: &Request, environment: &[(&str, &str)]) -> Result<Value> {
    let upstream = Upstream::start()?;
    let setup = suite.http(&upstream.url())?;
    let setup = environment.iter().fold(setup, |setup, (name, value)| setup.env(name, value));
    request.send(setup.start()?.address)?.expect(200)?.json()
}

fn is_chunked(seen: &Value) -> Result<()> {
    let encoding = seen_headers(seen, "transfer-encoding");
    ensure!(encoding == ["chunked"] && seen["body"] == "hello", "{seen}");
    Ok(())
}

fn first_line(suite: &Suite, request: &str, wanted: &[&str]) -> Result<()> {
    let upstream = Upstream::start()?;
    let watchdog = suite.http(&upstream.url())?.start()?;
    let mut connection = Connection::open(watchdog.address)?;
    connection.send(request)?;
    let answer = connection.rest()?;
    let line = answer.lines().next().unwrap_or_default();
    ensure!(wanted.iter().any(|wanted| line.starts_with(wanted)), "{line:?}, wanted one of {wanted:?}");
    Ok(())
}
