//! Durations as Go writes and reads them, since that is what of-watchdog's variables and log lines hold.
//! Never panics and never loses the sign.

use std::fmt;
use std::time::Duration;

/// Nanoseconds of each unit, longest name first where one name begins another.
const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10), ("h", 3.6e12)];

/// Reads what Go's `time.ParseDuration` reads, such as `1m30s`, `-1.5h` or `0`; `None` for anything else.
///
/// The sign matters to callers: a limit of zero or less is no limit.
pub(crate) fn parse(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(SignedDuration(Ok(Duration::ZERO)));
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos = 0.0_f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number = rest[..end].parse::<f64>().ok()?;
        rest = &rest[end..];
        // "m" also begins "ms", so the name ends where the next number begins.
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = UNITS.iter().find(|(name, _)| *name == &rest[..end])?.1;
        rest = &rest[end..];
        nanos += number * unit;
    }
    SignedDuration::from_nanos(nanos, negative)
}

/// Reads a duration, or an integer as seconds, as all of of-watchdog's timeouts do.
#[allow(clippy::cast_precision_loss)] // Exact to 285 million years.
pub(crate) fn parse_or_seconds(text: &str) -> Option<SignedDuration> {
    match text.parse::<i64>() {
        Ok(seconds) => SignedDuration::from_nanos(seconds.unsigned_abs() as f64 * 1e9, seconds < 0),
        Err(_) => parse(text),
    }
}

/// A span of time that may be below zero: `Err` holds how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SignedDuration(pub(crate) Result<Duration, Duration>);

impl SignedDuration {
    /// The span, if it is above zero.
    pub(crate) fn above_zero(self) -> Option<Duration> {
        self.0.ok().filter(|span| !span.is_zero())
    }

    fn from_nanos(nanos: f64, negative: bool) -> Option<Self> {
        // Go's durations are 64-bit nanoseconds; what is beyond is refused there too.
        let sound = nanos < 9.2e18;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // Bounded just above, and not negative.
        let span = Duration::from_nanos(nanos.round() as u64);
        sound.then_some(Self(if negative && !span.is_zero() { Err(span) } else { Ok(span) }))
    }
}

/// Shows a span as Go does: `30s`, `1m30s`, `1.5s`, `500ms`, `0s`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GoStyle(pub(crate) Duration);

impl fmt::Display for GoStyle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = self.0;
        let fraction = |whole: u64, nanos: u32, digits: usize| {
            let text = format!("{whole}.{nanos:0digits$}");
            text.trim_end_matches('0').trim_end_matches('.').to_string()
        };
        if span.is_zero() {
            return f.write_str("0s");
        }
        if span < Duration::from_micros(1) {
            return write!(f, "{}ns", span.as_nanos());
        }
        if span < Duration::from_millis(1) {
            return write!(
                f,
                "{}µs",
                fraction(u64::from(span.subsec_micros()), span.subsec_nanos() % 1_000, 3)
            );
        }
        if span < Duration::from_secs(1) {
            let nanos = span.subsec_nanos();
            return write!(f, "{}ms", fraction(u64::from(nanos / 1_000_000), nanos % 1_000_000, 6));
        }
        let (hours, minutes) = (span.as_secs() / 3600, span.as_secs() / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        write!(f, "{}s", fraction(span.as_secs() % 60, span.subsec_nanos(), 9))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[allow(clippy::unnecessary_wraps)] // It is compared with what the reader returns.
    fn millis(n: u64) -> Option<SignedDuration> {
        Some(SignedDuration(Ok(Duration::from_millis(n))))
    }

    #[test]
    fn durations_read_as_go_reads_them() {
        let cases = [
            ("500ms", millis(500)),
            ("1.5s", millis(1_500)),
            (".5s", millis(500)),
            ("1m30s", millis(90_000)),
            ("1h", millis(3_600_000)),
            ("+2s", millis(2_000)),
            ("0", millis(0)),
            ("0s", millis(0)),
            ("-0s", millis(0)),
            ("-1s", Some(SignedDuration(Err(Duration::from_secs(1))))),
            ("1", None),
            ("", None),
            ("s", None),
            ("1 s", None),
            ("1d", None),
            ("--1s", None),
            (".s", None),
            ("1s5", None),
            ("1e3s", None),
            ("infs", None),
            ("99999999999h", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(parse(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn an_integer_is_a_number_of_seconds() {
        assert_eq!(parse_or_seconds("10"), millis(10_000));
        assert_eq!(parse_or_seconds("-10").unwrap().above_zero(), None);
        assert_eq!(parse_or_seconds("10x"), None);
    }

    #[test]
    fn durations_show_as_go_shows_them() {
        let cases = [
            (0, "0s"),
            (1_500, "1.5µs"),
            (500_000_000, "500ms"),
            (1_500_000_000, "1.5s"),
            (30_000_000_000, "30s"),
            (60_000_000_000, "1m0s"),
            (3_661_000_000_000, "1h1m1s"),
        ];
        for (nanos, wanted) in cases {
            assert_eq!(GoStyle(Duration::from_nanos(nanos)).to_string(), wanted);
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(nanos in 0u64..10_000_000_000_000) {
            let span = Duration::from_nanos(nanos);
            let read = parse(&GoStyle(span).to_string()).unwrap().0.unwrap();
            prop_assert!(read.abs_diff(span) <= Duration::from_nanos(2), "{read:?} {span:?}");
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "[-+.0-9a-zµ]{0,20}|\\PC{0,12}") {
            let _ = parse_or_seconds(&text);
        }
    }
}
