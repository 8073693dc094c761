//! Log lines as of-watchdog writes them, and the function's own output. Whole lines in each write, so that those of
//! several threads never mix. It never stops reading the function's pipes, or the function would block on them.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Read, Write};
use std::time::Duration;

use time::OffsetDateTime;

use crate::config::LogConfig;

/// Bytes of lines that are written at once, at the latest: what a pipe takes whole (pipe(7), `PIPE_BUF`).
const BATCH: usize = 4 << 10;

/// The most memory, in bytes, that a thread keeps for its next lines.
const KEPT: usize = 2 * BATCH;

thread_local! {
    /// Lines that are still to be written, and memory for the next one.
    static WAITING: Cell<String> = const { Cell::new(String::new()) };
    /// Whether this thread calls [`write_waiting`] whenever it has nothing else to do.
    static IS_WRITTEN_WHEN_IDLE: Cell<bool> = const { Cell::new(false) };
    /// The second of the last line, and how it is shown: many lines are of the same one.
    static SECOND: Cell<(i64, [u8; SHOWN])> = const { Cell::new((i64::MIN, [b' '; SHOWN])) };
}

/// Writes one line with the time to stderr, behind those that wait.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    write(with_line(text));
}

/// The same as soon as the thread has nothing else to do, or enough to write: a write for each request is a large part
/// of what a small one costs.
pub(crate) fn line_soon(text: fmt::Arguments<'_>) {
    let lines = with_line(text);
    if IS_WRITTEN_WHEN_IDLE.get() && lines.len() < BATCH {
        WAITING.set(lines);
    } else {
        write(lines);
    }
}

/// From now on this thread's lines may wait: it calls [`write_waiting`] whenever it is idle.
pub(crate) fn write_when_idle() {
    IS_WRITTEN_WHEN_IDLE.set(true);
}

/// Writes the lines that wait.
pub(crate) fn write_waiting() {
    let lines = WAITING.take();
    if lines.is_empty() {
        WAITING.set(lines);
    } else {
        write(lines);
    }
}

/// The lines that wait, and one more.
fn with_line(text: fmt::Arguments<'_>) -> String {
    let mut lines = WAITING.take();
    // A string takes everything.
    let _ = fmt::write(&mut lines, format_args!("{} {text}\n", Timestamp::now()));
    lines
}

fn write(mut lines: String) {
    // A closed stderr must not end the service, so what can't be written is lost. The lock is needed: what is too long
    // for a pipe is written in parts.
    let _ = io::stderr().write_all(lines.as_bytes());
    if lines.capacity() <= KEPT {
        lines.clear();
        WAITING.set(lines);
    }
}

/// Writes one log line, with arguments like [`format!`].
macro_rules! log {
    ($($argument:tt)*) => { $crate::logs::line(format_args!($($argument)*)) };
}
pub(crate) use log;

/// Length of a [`Timestamp`].
const SHOWN: usize = "2026/07/30 10:00:00".len();

/// The time as Go's logger writes it, `2026/07/30 10:00:00`, in UTC.
struct Timestamp([u8; SHOWN]);

impl Timestamp {
    fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse).tv_sec;
        let (last, mut shown) = SECOND.get();
        if last != now {
            let time = OffsetDateTime::from_unix_timestamp(now).unwrap_or(OffsetDateTime::UNIX_EPOCH);
            let (year, month, day) = time.to_calendar_date();
            let (hour, minute, second) = time.to_hms();
            // A year has four digits until 9999.
            let _ = write!(
                shown.as_mut_slice(),
                "{year:04}/{:02}/{day:02} {hour:02}:{minute:02}:{second:02}",
                u8::from(month)
            );
            SECOND.set((now, shown));
        }
        Self(shown)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.0).unwrap_or_default())
    }
}

/// A number of bytes with four significant digits, as Go's `units.HumanSize` shows it: `205B`, `1.024kB`.
pub(crate) struct HumanSize(pub(crate) u64);

impl fmt::Display for HumanSize {
    #[allow(clippy::cast_precision_loss)] // Four digits are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1000 {
            return write!(f, "{}B", self.0);
        }
        let (mut size, mut unit) = (self.0 as f64, 0);
        while size >= 1000.0 && unit < 5 {
            size /= 1000.0;
            unit += 1;
        }
        let decimals = if size < 9.9995 {
            3
        } else if size < 99.995 {
            2
        } else {
            usize::from(size < 999.95)
        };
        let digits = format!("{size:.decimals$}");
        let digits = if decimals > 0 { digits.trim_end_matches('0').trim_end_matches('.') } else { &digits };
        write!(f, "{digits}{}", ["B", "kB", "MB", "GB", "TB", "PB"][unit])
    }
}

/// One request and its answer.
#[derive(Debug)]
pub(crate) struct Access<'a> {
    /// The request's method.
    pub(crate) method: &'a http::Method,
    /// Path and query of the request, as they were received.
    pub(crate) target: &'a str,
    /// The answer's status.
    pub(crate) status: http::StatusCode,
    /// Bytes of the answer's body.
    pub(crate) bytes: u64,
    /// Time from the request's head to the end of the answer.
    pub(crate) took: Duration,
    /// The call's name, where it is logged.
    pub(crate) call_id: Option<&'a str>,
}

impl fmt::Display for Access<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = self.status.canonical_reason().unwrap_or_default();
        let (method, target, status) = (self.method, self.target, self.status.as_u16());
        let bytes = HumanSize(self.bytes);
        // Whole numbers: they are written faster.
        let parts = (self.took.as_micros() + 50) / 100;
        let (seconds, parts) = (parts / 10_000, parts % 10_000);
        write!(f, "{method} {target} - {status} {reason} - ContentLength: {bytes} ({seconds}.{parts:04}s)")?;
        self.call_id.map_or(Ok(()), |id| write!(f, " [{id}]"))
    }
}

/// Copies a pipe of the function, called `name`, to `output` until it ends, line by line.
pub(crate) fn copy_lines(
    mut pipe: impl Read,
    name: &'static str,
    config: LogConfig,
    output: &mut impl Write,
) {
    let mut lines = Lines::new(name, config);
    let mut bytes = [0; 8192];
    loop {
        if lines.has_given_up() {
            // It stays open: there, the function waits for ever when it writes on.
            return std::mem::forget(pipe);
        }
        match pipe.read(&mut bytes) {
            Ok(count) if count > 0 => lines.push(&bytes[..count], output),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => return lines.end(output),
        }
    }
}

/// The lines of one pipe of the function, of which the last may not be complete.
#[derive(Debug)]
pub(crate) struct Lines {
    name: &'static str,
    config: LogConfig,
    text: Vec<u8>,
    /// The line was too long, and its beginning has been written.
    is_split: bool,
    has_given_up: bool,
}

impl Lines {
    /// Nothing yet from the pipe called `name`.
    pub(crate) fn new(name: &'static str, config: LogConfig) -> Self {
        Self { name, config, text: Vec::new(), is_split: false, has_given_up: false }
    }

    /// Writes the lines that `bytes` completes.
    pub(crate) fn push(&mut self, mut bytes: &[u8], output: &mut impl Write) {
        let limit = self.config.line_limit.unwrap_or(usize::MAX);
        while !bytes.is_empty() {
            let room = limit - self.text.len();
            let end = bytes.iter().take(room).position(|byte| *byte == b'\n');
            let (part, rest) = bytes.split_at(end.unwrap_or_else(|| room.min(bytes.len())));
            self.text.extend_from_slice(part);
            bytes = rest;
            if end.is_some() {
                bytes = &bytes[1..];
                // Else the line ended just where it was split.
                if !(self.is_split && self.text.is_empty()) {
                    self.write(output);
                }
                self.is_split = false;
            } else if self.text.len() == limit && self.config.gives_up {
                line(format_args!("Error reading {}: bufio.Scanner: token too long", self.name));
                self.text.clear();
                self.has_given_up = true;
                return;
            } else if self.text.len() == limit {
                self.write(output);
                self.is_split = true;
            }
        }
    }

    /// Whether a line was too long, and that ends the log.
    pub(crate) fn has_given_up(&self) -> bool {
        self.has_given_up
    }

    /// Writes what is left.
    pub(crate) fn end(&mut self, output: &mut impl Write) {
        if !self.text.is_empty() {
            self.write(output);
        }
    }

    fn write(&mut self, output: &mut impl Write) {
        let prefix = if self.config.prefix {
            format!("{} {}: ", Timestamp::now(), self.name).into_bytes()
        } else {
            Vec::new()
        };
        let line = [&prefix[..], &self.text, b"\n"].concat();
        self.text.clear();
        let _ = output.write_all(&line);
        let _ = output.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied(text: &[u8], limit: Option<usize>, prefix: bool) -> String {
        let mut output = Vec::new();
        copy_lines(
            text,
            "stdout",
            LogConfig { prefix, line_limit: limit, gives_up: false, call_id: false },
            &mut output,
        );
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn sizes_show_as_in_of_watchdog() {
        let cases = [
            (0, "0B"),
            (205, "205B"),
            (999, "999B"),
            (1000, "1kB"),
            (1024, "1.024kB"),
            (123_456, "123.5kB"),
            (999_999, "1000kB"),
            (10_485_760, "10.49MB"),
            (1_500_000_000, "1.5GB"),
        ];
        for (bytes, wanted) in cases {
            assert_eq!(HumanSize(bytes).to_string(), wanted);
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_split_and_the_next_one_still_comes() {
        assert_eq!(copied(b"abcdef\nafter\n", Some(5), false), "abcde\nf\nafter\n");
        assert_eq!(copied(b"abcde\n\nafter\n", Some(5), false), "abcde\n\nafter\n");
        assert_eq!(copied(b"abcdef\nafter", None, false), "abcdef\nafter\n");
    }

    #[test]
    fn a_prefixed_line_has_the_time_and_the_stream() {
        let text = copied(b"x\n", Some(100), true);
        let shape = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect::<String>();
        assert_eq!(shape, "0000/00/00 00:00:00 stdout: x\n");
    }

    #[test]
    fn bytes_that_are_no_text_are_copied_as_they_are() {
        let mut output = Vec::new();
        let config = LogConfig { prefix: false, line_limit: Some(10), gives_up: false, call_id: false };
        copy_lines(&b"\xff\xfe\n"[..], "stderr", config, &mut output);
        assert_eq!(output, b"\xff\xfe\n");
    }
}
