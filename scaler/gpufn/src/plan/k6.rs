//! What k6 wrote of a load test: its requests over time and how long they took.
//!
//! Pure. Three forms are told apart by their beginning: a summary (`--summary-export`), points as lines of JSON
//! (`--out json`), points as CSV (`--out csv`).

use gpu_share::invalid::Invalid;
use scaler::cost::distribution::{Distribution, Point};
use scaler::cost::load::Load;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The metric that counts requests, and the one that times them.
const REQUESTS: &str = "http_reqs";
const DURATION: &str = "http_req_duration";
/// Longest test, seconds: a week.
const LONGEST: f64 = 7.0 * 86_400.0;
/// Most steps that its requests are counted in.
const MOST_STEPS: f64 = 20_000.0;

/// A load test.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Test {
    /// Its requests.
    pub load: Load,
    /// How long they took.
    pub took: Distribution,
}

/// Reads what k6 wrote.
pub(super) fn read(text: &str) -> Result<Test, Invalid> {
    let first = text.lines().next().unwrap_or_default();
    if first.starts_with("metric_name,") {
        return csv(text);
    }
    if let Ok(whole) = serde_json::from_str::<Value>(text)
        && whole.get("metrics").is_some()
    {
        return summary(&whole);
    }
    if first.trim_start().starts_with('{') {
        return points(text);
    }
    Err(Invalid::new("head of k6's output", first, "a summary, or what --out json or --out csv wrote"))
}

/// The sums of a test: its mean rate, and some percentiles.
fn summary(whole: &Value) -> Result<Test, Invalid> {
    let value = |metric: &str, field: &str| {
        let metric_value = &whole["metrics"][metric];
        // `--summary-export` has the fields in the metric; what `handleSummary` gets has them in `values`.
        let found = metric_value.get(field).or_else(|| metric_value.get("values")?.get(field));
        let number = found.and_then(Value::as_f64).filter(|value| *value >= 0.0);
        number.ok_or_else(|| {
            let value = found.map_or_else(|| "missing".to_string(), ToString::to_string);
            Invalid::new(format!("{field} of {metric} in k6's summary"), value, "a number from 0")
        })
    };
    let rate = value(REQUESTS, "rate")?;
    // A test without requests has no length either.
    Load::constant(rate)?;
    let load = Load::new(value(REQUESTS, "count")? / rate, vec![rate])?;
    let known = [(0.0, "min"), (0.5, "med"), (0.9, "p(90)"), (0.95, "p(95)"), (1.0, "max")];
    let points =
        known.iter().map(|&(part, field)| Ok(Point { part, seconds: value(DURATION, field)? / 1e3 }));
    let points = points.collect::<Result<Vec<_>, Invalid>>()?;
    Ok(Test { load, took: Distribution::with_mean(&points, value(DURATION, "avg")? / 1e3)? })
}

/// Points as they were measured.
#[derive(Default)]
struct Points {
    /// When requests ended, seconds of any clock.
    requests: Vec<(f64, f64)>,
    took: Vec<f64>,
}

impl Points {
    fn add(&mut self, metric: &str, at: f64, value: f64) {
        match metric {
            REQUESTS => self.requests.push((at, value)),
            DURATION => self.took.push(value / 1e3),
            _ => {}
        }
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // At most MOST_STEPS.
    fn test(self) -> Result<Test, Invalid> {
        let times = || self.requests.iter().map(|&(at, _)| at);
        let (first, last) =
            (times().fold(f64::INFINITY, f64::min), times().fold(f64::NEG_INFINITY, f64::max));
        if self.requests.is_empty() {
            return Err(Invalid::new(format!("points of {REQUESTS}"), 0, "one or more"));
        }
        let seconds = last.floor() - first.floor() + 1.0;
        if seconds > LONGEST {
            return Err(Invalid::new(
                "length of the test",
                format!("{seconds} s"),
                format!("at most {LONGEST} s"),
            ));
        }
        let step = (seconds / MOST_STEPS).ceil();
        let mut rates = vec![0.0; (seconds / step).ceil() as usize];
        for (at, count) in self.requests {
            if let Some(rate) = rates.get_mut(((at - first.floor()) / step) as usize) {
                *rate += count / step;
            }
        }
        Ok(Test { load: Load::new(step, rates)?, took: Distribution::measured(self.took)? })
    }
}

fn points(text: &str) -> Result<Test, Invalid> {
    let mut points = Points::default();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let bad = |allowed: &str| Invalid::new(format!("line {} of k6's output", index + 1), line, allowed);
        let value: Value = serde_json::from_str(line).map_err(|_| bad("one object of JSON"))?;
        let metric = value["metric"].as_str().unwrap_or_default();
        if value["type"] != "Point" || ![REQUESTS, DURATION].contains(&metric) {
            continue;
        }
        let at = value["data"]["time"].as_str().and_then(unix_seconds);
        let at = at.ok_or_else(|| bad("data.time as in 2026-11-30T12:00:00Z"))?;
        let number = value["data"]["value"].as_f64().filter(|value| *value >= 0.0);
        points.add(metric, at, number.ok_or_else(|| bad("data.value from 0"))?);
    }
    points.test()
}

fn csv(text: &str) -> Result<Test, Invalid> {
    let mut points = Points::default();
    for (index, line) in text.lines().enumerate().skip(1).filter(|(_, line)| !line.is_empty()) {
        let bad = || {
            let allowed = "metric_name,timestamp,metric_value: a name, a time and a number from 0";
            Invalid::new(format!("line {} of k6's output", index + 1), line, allowed)
        };
        let mut cells = line.split(',');
        let (metric, at, value) = (cells.next(), cells.next(), cells.next());
        let metric = metric.ok_or_else(bad)?;
        if ![REQUESTS, DURATION].contains(&metric) {
            continue;
        }
        let number = |text: &str| text.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
        let at = at.and_then(|text| number(text).or_else(|| unix_seconds(text))).ok_or_else(bad)?;
        points.add(metric, at, value.and_then(number).ok_or_else(bad)?);
    }
    points.test()
}

#[allow(clippy::cast_precision_loss)] // To a microsecond until the year 2200.
fn unix_seconds(text: &str) -> Option<f64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some(time.unix_timestamp_nanos() as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_summary_gives_the_mean_rate_and_the_percentiles_in_both_forms() {
        let duration = r#""avg":25.94,"min":16.73,"med":24.04,"max":1860,"p(90)":34.23,"p(95)":38.36"#;
        let exported = format!(
            r#"{{"metrics":{{"http_reqs":{{"count":325239,"rate":180.7}},"http_req_duration":{{{duration}}}}}}}"#
        );
        let handled = format!(
            r#"{{"metrics":{{"http_reqs":{{"type":"counter","values":{{"count":325239,"rate":180.7}}}},
               "http_req_duration":{{"type":"trend","values":{{{duration}}}}}}}}}"#
        );
        for text in [exported, handled] {
            let test = read(&text).unwrap();
            assert!((test.load.mean() - 180.7).abs() < 1e-9);
            assert!((test.load.requests() - 325_239.0).abs() < 1e-6);
            assert!((test.took.quantile(0.95) - 0.03836).abs() < 1e-9);
            assert!((test.took.mean() / 0.02594 - 1.0).abs() < 0.01);
        }
    }

    #[test]
    fn points_in_both_forms_give_the_same_test() {
        let mut json =
            String::from("{\"type\":\"Metric\",\"data\":{\"type\":\"counter\"},\"metric\":\"http_reqs\"}\n");
        let mut csv = String::from("metric_name,timestamp,metric_value,check\n");
        for (second, count) in [(0, 3), (1, 0), (2, 5)] {
            for _ in 0..count {
                for (metric, value) in [(REQUESTS, 1.0), (DURATION, 20.0), ("vus", 7.0)] {
                    writeln!(
                        json,
                        r#"{{"type":"Point","data":{{"time":"2026-11-30T12:00:0{second}.25Z","value":{value},"tags":null}},"metric":"{metric}"}}"#
                    )
                    .unwrap();
                    writeln!(csv, "{metric},{},{value},,", 1_796_040_000 + second).unwrap();
                }
            }
        }
        let (json, csv) = (read(&json).unwrap(), read(&csv).unwrap());
        assert_eq!(json, csv);
        assert_eq!(json.load.rates(), [3.0, 0.0, 5.0]);
        assert!((json.took.mean() - 0.02).abs() < 1e-12);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("", "head of k6's output is \"\""),
            ("time,value\n1,2\n", "head of k6's output is \"time,value\""),
            ("metric_name,timestamp,metric_value\nhttp_reqs,x,1\n", "line 2 of k6's output"),
            ("metric_name,timestamp,metric_value\nhttp_reqs,1,-1\n", "line 2 of k6's output"),
            ("metric_name,timestamp,metric_value\nvus,1,1\n", "points of http_reqs is \"0\""),
            ("metric_name,timestamp,metric_value\nhttp_reqs,1,1\n", "times of requests is \"\""),
            ("{\"metrics\":{\"http_reqs\":{\"rate\":0}}}", "requests of the load is \"0\""),
            (
                "{\"metrics\":{\"http_reqs\":{\"rate\":5,\"count\":9}}}",
                "min of http_req_duration in k6's summary is \"missing\"",
            ),
            ("{\"type\":\"Point\"\n", "line 1 of k6's output"),
        ];
        for (text, complaint) in cases {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,120}", line in "[a-z0-9_,.:{}\"\\-]{0,60}") {
            let _ = read(&text);
            let _ = read(&format!("metric_name,timestamp,metric_value\nhttp_reqs,{line}\n"));
            let _ = read(&format!("{{{line}}}\n"));
        }
    }
}
