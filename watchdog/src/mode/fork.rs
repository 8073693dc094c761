//! Modes `streaming` and `serializing`: a process for each request, which reads the body and writes the answer. Owns
//! the time limits of such a request. What it can't tell a client any more, it tells by ending the connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::{Body, Frame, Incoming};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::answer::{Answer, INTERNAL, empty, text};
use crate::child::describe;
use crate::config::Config;
use crate::config::duration::GoStyle;
use crate::exchange::Exchange;
use crate::logs::log;
use crate::mode::Mode;
use crate::mode::http::Cut;

pub(crate) mod cgi;
pub(crate) mod process;

use process::{Event, Input, NoBody, Process, Recipe};

/// How long a request took, in seconds.
const DURATION: HeaderName = HeaderName::from_static("x-duration-seconds");

/// Answers each request by a process.
#[derive(Debug)]
pub(crate) struct ForkMode {
    recipe: Recipe,
    is_serializing: bool,
    content_type: HeaderValue,
    output_limit: Option<usize>,
    exec_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    read_timeout: Option<Duration>,
    compat: bool,
}

/// How long a request may take, and which variable says so.
#[derive(Clone, Copy, Debug)]
struct Limit {
    span: Duration,
    is_exec: bool,
}

impl Limit {
    fn field(self) -> &'static str {
        if self.is_exec { "exec_timeout" } else { "write_timeout" }
    }
}

/// Why there is no output to send.
#[derive(Debug)]
enum Failure {
    Late(Limit),
    NoBody(NoBody),
}

impl ForkMode {
    /// As configured.
    pub(crate) fn new(config: &Config, recipe: Recipe) -> Self {
        Self {
            recipe,
            is_serializing: config.mode == Mode::Serializing,
            content_type: config.content_type.clone(),
            output_limit: config.output_limit,
            exec_timeout: config.exec_timeout,
            write_timeout: config.write_timeout,
            read_timeout: config.read_timeout,
            compat: config.compat,
        }
    }

    /// Has a process answer `request`.
    pub(crate) async fn answer(&self, request: Request<Incoming>, exchange: Exchange) -> Response<Answer> {
        let started = Instant::from_std(exchange.started());
        let (head, body) = request.into_parts();
        let variables = match cgi::variables(&head.method, &head.uri, &head.headers, !self.compat) {
            Ok(variables) => variables,
            Err(error) => {
                exchange.finish(StatusCode::BAD_REQUEST);
                return text(StatusCode::BAD_REQUEST, "text/plain; charset=utf-8", format!("{error}\n"));
            }
        };
        let input = Input::Body(body, self.read_timeout.map(|span| started + span));
        let process = match self.recipe.start(input, variables, None) {
            Ok(process) => process,
            Err(error) => return self.refuse(&error, exchange),
        };
        let limit = self.limit();
        let deadline = limit.map(|limit| Box::pin(sleep_until(started + limit.span)));
        if self.is_serializing {
            self.serialize(process, limit, deadline, exchange).await
        } else {
            self.stream(process, limit, deadline, exchange).await
        }
    }

    /// The shorter of the two limits.
    fn limit(&self) -> Option<Limit> {
        let exec = self.exec_timeout.map(|span| Limit { span, is_exec: true });
        let write = self.write_timeout.map(|span| Limit { span, is_exec: false });
        exec.into_iter().chain(write).min_by_key(|limit| limit.span)
    }

    /// The process can't be started. A client of mode `streaming` learns of it by the empty answer, as ever.
    fn refuse(&self, error: &io::Error, exchange: Exchange) -> Response<Answer> {
        let error = self.start_error(error);
        log!("{error}");
        if self.is_serializing {
            return self.fail(error, exchange);
        }
        exchange.finish_logged(StatusCode::OK, StatusCode::INTERNAL_SERVER_ERROR);
        self.whole(StatusCode::OK, Answer::Empty)
    }

    /// In Go's words.
    fn start_error(&self, error: &io::Error) -> String {
        let program = self.recipe.program.to_string_lossy();
        if error.kind() == io::ErrorKind::NotFound && !program.contains('/') {
            return format!("exec: \"{program}\": executable file not found in $PATH");
        }
        let words = error.to_string();
        let words = words.split(" (os error").next().unwrap_or_default().to_lowercase();
        format!("fork/exec {program}: {words}")
    }

    async fn stream(
        &self,
        mut process: Process,
        limit: Option<Limit>,
        mut deadline: Option<Pin<Box<Sleep>>>,
        exchange: Exchange,
    ) -> Response<Answer> {
        let event = match self.event(&mut process, limit, &mut deadline).await {
            Ok(event) => event,
            Err(failure) => return failed(&failure, exchange),
        };
        let first = match event {
            Event::Bytes(bytes) => bytes,
            Event::Ended(status) => {
                let logged = logged(&status);
                process.release();
                exchange.finish_logged(StatusCode::OK, logged);
                return self.whole(StatusCode::OK, Answer::Empty);
            }
            Event::NoBody(reason) => return failed(&Failure::NoBody(reason), exchange),
        };
        let ends_alone = self.compat && limit.is_some_and(|limit| limit.is_exec);
        let output = Output { first: Some(first), deadline, ends_alone, open: Some((process, exchange)) };
        self.whole(StatusCode::OK, Answer::Other(Box::pin(output)))
    }

    /// The next event up to the deadline. Under of-watchdog what a process has started goes on after that.
    async fn event(
        &self,
        process: &mut Process,
        limit: Option<Limit>,
        deadline: &mut Option<Pin<Box<Sleep>>>,
    ) -> Result<Event, Failure> {
        let (Some(limit), Some(timer)) = (limit, deadline.as_mut()) else { return Ok(process.next().await) };
        tokio::select! {
            biased;
            event = process.next() => return Ok(event),
            () = timer => {}
        }
        if self.compat && limit.is_exec {
            process.kill_alone();
            *deadline = None;
            return Ok(process.next().await);
        }
        Err(Failure::Late(limit))
    }

    async fn serialize(
        &self,
        mut process: Process,
        limit: Option<Limit>,
        mut deadline: Option<Pin<Box<Sleep>>>,
        exchange: Exchange,
    ) -> Response<Answer> {
        let mut output = BytesMut::new();
        loop {
            match self.event(&mut process, limit, &mut deadline).await {
                Ok(Event::Bytes(bytes)) => {
                    if let Some(limit) = self.output_limit.filter(|limit| output.len() + bytes.len() > *limit)
                    {
                        // Its process is killed: the rest has nowhere to go.
                        let words =
                            format!("the output has more than {limit} bytes, allowed is output_limit");
                        log!("{words}");
                        return self.fail(words, exchange);
                    }
                    output.extend_from_slice(&bytes);
                }
                Ok(Event::Ended(Ok(status))) if status.success() => break,
                Ok(Event::Ended(Ok(status))) => return self.fail(describe(status), exchange),
                Ok(Event::Ended(Err(error))) => return self.fail(error.to_string(), exchange),
                Ok(Event::NoBody(reason)) => return failed(&Failure::NoBody(reason), exchange),
                Err(Failure::Late(limit)) if limit.is_exec => {
                    log!("{} ended the function after {}", limit.field(), GoStyle(limit.span));
                    return self.fail("signal: killed".to_string(), exchange);
                }
                Err(failure) => return failed(&failure, exchange),
            }
        }
        process.release();
        let mut answer = self.whole(StatusCode::OK, Answer::Text(Some(output.freeze())));
        set_duration(&mut answer, &exchange);
        let length = answer.body().size_hint().exact().unwrap_or_default();
        finish(exchange, StatusCode::OK, StatusCode::OK, length);
        answer
    }

    /// A failure of a serialized function, told in words.
    fn fail(&self, words: String, exchange: Exchange) -> Response<Answer> {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let length = words.len() as u64;
        let mut answer = self.whole(status, Answer::Text(Some(words.into())));
        set_duration(&mut answer, &exchange);
        finish(exchange, status, if self.compat { StatusCode::OK } else { status }, length);
        answer
    }

    fn whole(&self, status: StatusCode, body: Answer) -> Response<Answer> {
        let mut answer = Response::new(body);
        *answer.status_mut() = status;
        answer.headers_mut().insert(header::CONTENT_TYPE, self.content_type.clone());
        answer
    }
}

/// Nothing has been sent, so the client can be told.
fn failed(failure: &Failure, exchange: Exchange) -> Response<Answer> {
    let status = match failure {
        Failure::Late(limit) => {
            log!("{} ended the function after {}", limit.field(), GoStyle(limit.span));
            StatusCode::GATEWAY_TIMEOUT
        }
        Failure::NoBody(reason) => {
            log!("{reason}");
            if matches!(reason, NoBody::TooSlow) {
                StatusCode::REQUEST_TIMEOUT
            } else {
                StatusCode::BAD_REQUEST
            }
        }
    };
    let mut answer = empty(status);
    answer.headers_mut().insert(INTERNAL, HeaderValue::from_static("of-watchdog"));
    if matches!(failure, Failure::NoBody(_)) {
        // The rest of the body may still come, and is no request.
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    set_duration(&mut answer, &exchange);
    exchange.finish(status);
    answer
}

/// What the log says of an answer that is 200 in any case; the reason is a line of its own.
fn logged(status: &io::Result<std::process::ExitStatus>) -> StatusCode {
    match status {
        Ok(status) if status.success() => return StatusCode::OK,
        Ok(status) => log!("{}", describe(*status)),
        Err(error) => log!("{error}"),
    }
    StatusCode::INTERNAL_SERVER_ERROR
}

fn set_duration(answer: &mut Response<Answer>, exchange: &Exchange) {
    if let Ok(value) = HeaderValue::try_from(format!("{:.6}", exchange.elapsed().as_secs_f64())) {
        answer.headers_mut().insert(DURATION, value);
    }
}

fn finish(mut exchange: Exchange, counted: StatusCode, logged: StatusCode, bytes: u64) {
    exchange.add_bytes(usize::try_from(bytes).unwrap_or(usize::MAX));
    exchange.finish_logged(counted, logged);
}

/// The output of a process on its way to the client.
#[derive(Debug)]
struct Output {
    first: Option<Bytes>,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Whether the deadline ends the process alone, and the answer as if it were complete.
    ends_alone: bool,
    /// `None` when the answer is complete or cut.
    open: Option<(Process, Exchange)>,
}

impl Output {
    fn cut(&mut self, cut: Cut, status: StatusCode) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some((process, exchange)) = self.open.take() {
            log!("Function's output cut: {cut}");
            drop(process);
            exchange.finish(status);
        }
        Poll::Ready(Some(Err(cut)))
    }
}

impl Body for Output {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self;
        let Some((process, exchange)) = &mut this.open else { return Poll::Ready(None) };
        if let Some(bytes) = this.first.take() {
            exchange.add_bytes(bytes.len());
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match process.poll_next(cx) {
            Poll::Ready(Event::Bytes(bytes)) => {
                exchange.add_bytes(bytes.len());
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Poll::Ready(Event::Ended(status)) => {
                let logged = logged(&status);
                if let Some((process, exchange)) = this.open.take() {
                    process.release();
                    exchange.finish_logged(StatusCode::OK, logged);
                }
                Poll::Ready(None)
            }
            Poll::Ready(Event::NoBody(reason)) => {
                let status = match reason {
                    NoBody::TooSlow => StatusCode::REQUEST_TIMEOUT,
                    NoBody::Client(_) => StatusCode::BAD_REQUEST,
                };
                this.cut(Cut::Io(io::Error::other(reason)), status)
            }
            Poll::Pending => {
                let Some(deadline) = &mut this.deadline else { return Poll::Pending };
                ready!(deadline.as_mut().poll(cx));
                if !this.ends_alone {
                    return this.cut(Cut::Late, StatusCode::GATEWAY_TIMEOUT);
                }
                process.kill_alone();
                this.deadline = None;
                Poll::Pending
            }
        }
    }
}
