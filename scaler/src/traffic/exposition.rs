//! Metrics as programs show them over HTTP: Prometheus' text format, as far as samples need it.
//!
//! Pure. What is no sample is left out: a foreign line must not cost those around it.
//! Source: Prometheus' documentation, "Exposition formats", text format 0.0.4.

use std::collections::BTreeMap;

use gpu_share::units::Quota;

use super::Counters;

/// One sample: the name of the metric, its labels as written, its value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample<'a> {
    /// Name of the metric.
    pub name: &'a str,
    /// What stands between the braces.
    labels: &'a str,
    /// Its value; never NaN.
    pub value: f64,
}

impl<'a> Sample<'a> {
    /// The value of a label without escapes, as all labels are that are asked for here.
    pub fn label(&self, name: &str) -> Option<&'a str> {
        let mut rest = self.labels;
        loop {
            let (key, after) = rest.split_once("=\"")?;
            let (value, after) = split_value(after)?;
            if key.trim_start_matches([',', ' ']) == name {
                return Some(value);
            }
            rest = after;
        }
    }
}

/// The samples in `text`.
pub fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter_map(sample)
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' ', '\t'])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inner) => split_labels(inner)?,
        None => ("", rest),
    };
    // A time stamp may follow.
    let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
    (!name.is_empty() && !value.is_nan()).then_some(Sample { name, labels, value })
}

/// What stands before the brace that closes the labels, and after it. A brace within quotes closes nothing.
fn split_labels(inner: &str) -> Option<(&str, &str)> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let end = inner.bytes().position(|byte| {
        let closes = byte == b'}' && !is_quoted;
        is_quoted ^= byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        closes
    })?;
    Some((&inner[..end], &inner[end + 1..]))
}

/// A label's value up to the quote that closes it, and what stands behind that.
fn split_value(text: &str) -> Option<(&str, &str)> {
    let mut is_escaped = false;
    let end = text.bytes().position(|byte| {
        let closes = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        closes
    })?;
    Some((&text[..end], &text[end + 1..]))
}

/// Largest value that is believed: sums of a few thousand of them stay exact.
const MOST: f64 = 1e12;

/// The metrics of a watchdog that [`Counters`] are made from.
pub const WATCHDOG: [&str; 6] = [
    "http_requests_total",
    "http_requests_in_flight",
    "gpufn_function_queue_length",
    "gpufn_function_queue_age_seconds",
    "gpufn_function_gpu_used_seconds_total",
    "gpufn_function_quota_grant_ratio",
];

impl Counters {
    /// What a watchdog shows; nothing if it is no watchdog that answers: its gauge of requests in flight is always there.
    pub fn of_watchdog(text: &str) -> Option<Self> {
        let (mut counters, mut is_watchdog) = (Self::default(), false);
        for sample in samples(text) {
            is_watchdog |= sample.name == "http_requests_in_flight";
            counters.take_in(sample.name, sample.label("code"), sample.value);
        }
        is_watchdog.then_some(counters)
    }

    /// Takes in one sample of a watchdog's metric, by its name and the label `code`; what is no use of a counter is left out.
    pub fn take_in(&mut self, name: &str, code: Option<&str>, value: f64) {
        if !(0.0..=MOST).contains(&value) {
            return;
        }
        match name {
            "http_requests_total" => {
                self.answered += value;
                if code.is_some_and(|code| code.starts_with('2')) {
                    self.served += value;
                }
            }
            "http_requests_in_flight" => self.in_flight = value,
            "gpufn_function_queue_length" => self.waiting = value,
            "gpufn_function_queue_age_seconds" => self.oldest = value,
            "gpufn_function_gpu_used_seconds_total" => self.used = Some(value),
            "gpufn_function_quota_grant_ratio" => self.grant = Some(Quota::saturating_from_fraction(value)),
            _ => {}
        }
    }

    /// What a gateway shows of each function, by the name that it gives it (`name.namespace`): requests that were begun and
    /// those that were answered. How long they wait and what they use of GPUs it does not know.
    pub fn of_gateway(text: &str) -> BTreeMap<String, Self> {
        let mut functions: BTreeMap<String, (f64, Self)> = BTreeMap::new();
        for sample in samples(text).filter(|sample| (0.0..=MOST).contains(&sample.value)) {
            let Some(function) = sample.label("function_name") else { continue };
            match sample.name {
                "gateway_function_invocation_started" => {
                    functions.entry(function.into()).or_default().0 += sample.value;
                }
                "gateway_function_invocation_total" => {
                    let (_, counters) = functions.entry(function.into()).or_default();
                    counters.take_in("http_requests_total", sample.label("code"), sample.value);
                }
                _ => {}
            }
        }
        let in_flight = |(started, counters): (f64, Self)| Self {
            in_flight: (started - counters.answered).max(0.0),
            ..counters
        };
        functions.into_iter().map(|(name, seen)| (name, in_flight(seen))).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_watchdog_is_read() {
        let text = "# HELP http_requests_total Requests.\n# TYPE http_requests_total counter\n\
            http_requests_total{code=\"200\",method=\"post\"} 41\nhttp_requests_total{code=\"500\",method=\"get\"} 2\n\
            http_requests_in_flight 5\ngpufn_function_queue_length 3\ngpufn_function_queue_age_seconds 0.25\n\
            gpufn_function_gpu_used_seconds_total 7.5 1700000000000\ngpufn_function_quota_grant_ratio 0.4\n";
        let counters = Counters::of_watchdog(text).unwrap();
        assert_eq!((counters.answered, counters.served, counters.in_flight), (43.0, 41.0, 5.0));
        assert_eq!((counters.waiting, counters.oldest, counters.used), (3.0, 0.25, Some(7.5)));
        assert_eq!(counters.grant, Quota::from_percent(40).ok());
        assert_eq!(Counters::of_watchdog("go_goroutines 7\n"), None, "another program answers there");
    }

    #[test]
    fn a_gateway_is_read() {
        let text = "gateway_function_invocation_started{function_name=\"resnet.fn\"} 12\n\
            gateway_function_invocation_total{code=\"200\",function_name=\"resnet.fn\"} 8\n\
            gateway_function_invocation_total{code=\"502\",function_name=\"resnet.fn\"} 1\n\
            gateway_service_count{function_name=\"resnet.fn\"} 2\n";
        let functions = Counters::of_gateway(text);
        let resnet = functions["resnet.fn"];
        assert_eq!((resnet.answered, resnet.served, resnet.in_flight), (9.0, 8.0, 3.0));
    }

    #[test]
    fn labels_may_hold_what_looks_like_their_end() {
        let line = r#"m{path="/a}b\"c",code="200"} 3"#;
        let sample = samples(line).next().unwrap();
        assert_eq!((sample.label("code"), sample.value), (Some("200"), 3.0));
        assert_eq!(sample.label("method"), None);
    }

    #[test]
    fn what_is_no_sample_is_left_out() {
        let text = "m\nm{a=\"b\" 3\n{} 3\nm NaN\nm{} x\n\nm 4";
        let values: Vec<_> = samples(text).map(|sample| sample.value).collect();
        assert_eq!(values, [4.0]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "(\\PC|\n|\"|\\{|\\}|=|\\\\){0,200}") {
            for sample in samples(&text) {
                let _ = sample.label("code");
            }
            let _ = (Counters::of_watchdog(&text), Counters::of_gateway(&text));
        }
    }
}
