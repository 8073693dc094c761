//! Loads as scenario files name them: traces, counts of each minute, k6's output, and processes made to order.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use faas_sim::arrivals::{Load, Segment};
use flate2::read::GzDecoder;
use gpu_share::invalid::Invalid;
use gpu_share::units::Nanos;
use serde::Deserialize;

use crate::load::trace::Traces;

/// A load as a scenario file has it; one of the first five.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Wanted {
    /// A trace and its transforms: Poisson arrivals whose rate follows it.
    trace: Option<String>,
    /// The same, through the published client, which waits for what it has sent.
    client: Option<String>,
    /// A row of a file of counts of each minute.
    minutes: Option<Row>,
    /// k6's output: arrivals as they were counted in each second.
    k6: Option<PathBuf>,
    /// Bursts.
    mmpp: Option<Bursts>,
    /// Every rate times this.
    scale: Option<f64>,
}

/// A row of a file of counts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    file: PathBuf,
    function: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bursts {
    /// Requests a second.
    rate: f64,
    /// Index of dispersion of counts.
    dispersion: f64,
    seconds: f64,
}

/// Most rate and length that a load may have.
const MOST_RATE: f64 = 100_000.0;
const MOST_SECONDS: f64 = 366.0 * 86_400.0;

impl Wanted {
    /// The load; `field` is where it stands, and files are taken from `folder`.
    pub(super) fn load(&self, field: &str, folder: &Path, traces: &Traces) -> anyhow::Result<Load> {
        let given = [
            self.trace.is_some(),
            self.client.is_some(),
            self.minutes.is_some(),
            self.k6.is_some(),
            self.mmpp.is_some(),
        ];
        if given.iter().filter(|given| **given).count() != 1 {
            let count = given.iter().filter(|given| **given).count();
            let allowed = "one of trace, client, minutes, k6 and mmpp";
            return Err(Invalid::new(format!("{field}.load"), format!("{count} loads"), allowed).into());
        }
        let found = |error: Invalid| error.within(field);
        let load = if let Some(trace) = &self.trace {
            Load::Poisson(segments(traces, trace).map_err(found)?)
        } else if let Some(trace) = &self.client {
            Load::Client(segments(traces, trace).map_err(found)?)
        } else if let Some(row) = &self.minutes {
            let path = folder.join(&row.file);
            let counts = Minutes::read(&path)?;
            Load::Minutes(
                counts.find(&row.function).map_err(|error| error.within(&path.display().to_string()))?,
            )
        } else if let Some(file) = &self.k6 {
            let path = folder.join(file);
            k6(&text(&path)?).map_err(|error| error.within(&path.display().to_string()))?
        } else {
            self.mmpp.map_or_else(|| Ok(Load::Minutes(Vec::new())), |bursts| bursts.load(field))?
        };
        Ok(self.scaled(load).map_err(found)?)
    }

    fn scaled(&self, load: Load) -> Result<Load, Invalid> {
        match self.scale {
            None => Ok(load),
            Some(factor) if (0.0..=1000.0).contains(&factor) => Ok(scaled(&load, factor)),
            Some(factor) => Err(Invalid::new("load.scale", factor, "0 to 1000")),
        }
    }
}

/// Every rate of `load` times `factor`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Float casts saturate, which is meant.
pub(super) fn scaled(load: &Load, factor: f64) -> Load {
    let each = |segments: &[Segment]| {
        segments.iter().map(|s| Segment { from: s.from * factor, to: s.to * factor, ..*s }).collect()
    };
    match load {
        Load::Poisson(segments) => Load::Poisson(each(segments)),
        Load::Client(segments) => Load::Client(each(segments)),
        Load::Minutes(counts) => {
            Load::Minutes(counts.iter().map(|&count| (f64::from(count) * factor).round() as u32).collect())
        }
        // As many requests in less time.
        Load::Times(times) => {
            Load::Times(times.iter().map(|at| Nanos::from_secs_f64(at.secs_f64() / factor)).collect())
        }
        &Load::Mmpp { rate, dispersion, seconds } => Load::Mmpp { rate: rate * factor, dispersion, seconds },
    }
}

impl Bursts {
    fn load(self, field: &str) -> Result<Load, Invalid> {
        let Self { rate, dispersion, seconds } = self;
        let check = |name: &str, value: f64, least: f64, most: f64| {
            let sound = value.is_finite() && (least..=most).contains(&value);
            let field = format!("{field}.load.mmpp.{name}");
            if sound { Ok(()) } else { Err(Invalid::new(field, value, format!("{least} to {most}"))) }
        };
        check("rate", rate, 0.001, MOST_RATE)?;
        check("dispersion", dispersion, 1.0, 1000.0)?;
        check("seconds", seconds, 1.0, MOST_SECONDS)?;
        Ok(Load::Mmpp { rate, dispersion, seconds })
    }
}

fn segments(traces: &Traces, spec: &str) -> Result<Vec<Segment>, Invalid> {
    let trace = traces.find(spec)?;
    let of = |s: &crate::load::trace::Segment| Segment { seconds: s.seconds, from: s.from, to: s.to };
    Ok(trace.segments().iter().map(of).collect())
}

/// A file as text; one that ends in `.gz` is unpacked.
pub(super) fn text(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
    if path.extension().is_some_and(|extension| extension == "gz") {
        return unpacked(&bytes).with_context(|| format!("failed to unpack {}", path.display()));
    }
    String::from_utf8(bytes).with_context(|| format!("{} is no text", path.display()))
}

/// Largest size of an unpacked file.
const MOST_BYTES: u64 = 1 << 30;

/// The text in a gzip file.
pub(super) fn unpacked(bytes: &[u8]) -> std::io::Result<String> {
    let mut text = String::new();
    GzDecoder::new(bytes).take(MOST_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Counts of each minute, by function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Minutes(pub(super) BTreeMap<String, Vec<u32>>);

/// Columns that name a function: ours, and those of the Azure Functions Trace 2019.
const NAMES: [&str; 2] = ["function", "HashFunction"];

impl Minutes {
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        Ok(Self::parse(&text(path)?).map_err(|error| error.within(&path.display().to_string()))?)
    }

    /// Reads a table whose columns are a name and minutes one after the other: `m480,m481,…`, or `1,2,…` as Azure has
    /// them. Lines that start with `#` are skipped, other columns too.
    pub(super) fn parse(text: &str) -> Result<Self, Invalid> {
        let mut lines =
            text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty());
        let head = lines.next().map_or("", |(_, line)| line);
        let columns: Vec<_> = head.split(',').map(str::trim).collect();
        let name = columns.iter().position(|column| NAMES.contains(column));
        let allowed = "a column function (or HashFunction) and minutes m1,m2,… (or 1,2,…) without a gap";
        let name = name.ok_or_else(|| Invalid::new("head of the counts", head, allowed))?;
        let minute = |column: &str| column.strip_prefix('m').unwrap_or(column).parse::<u32>().ok();
        let minutes: Vec<_> =
            columns.iter().enumerate().filter_map(|(at, column)| Some((at, minute(column)?))).collect();
        let in_turn = |pair: &[(usize, u32)]| pair[1].1.checked_sub(1) == Some(pair[0].1);
        if let Some(pair) = minutes.windows(2).find(|pair| !in_turn(pair)) {
            let gap = format!("{} after {}", pair[1].1, pair[0].1);
            return Err(Invalid::new("minutes of the counts", gap, "each minute after the one before"));
        }
        if minutes.is_empty() {
            return Err(Invalid::new("head of the counts", head, allowed));
        }
        let mut counts = Self::default();
        for (index, line) in lines {
            let bad =
                |allowed: &str| Invalid::new(format!("line {} of the counts", index + 1), line, allowed);
            let cells: Vec<_> = line.split(',').map(str::trim).collect();
            if cells.len() != columns.len() {
                return Err(bad("as many columns as the head has"));
            }
            let of =
                |&(at, _): &(usize, u32)| cells[at].parse::<u32>().map_err(|_| bad("whole numbers from 0"));
            let row = minutes.iter().map(of).collect::<Result<_, _>>()?;
            if counts.0.insert(cells[name].to_string(), row).is_some() {
                return Err(bad("each function once"));
            }
        }
        Ok(counts)
    }

    pub(super) fn find(&self, function: &str) -> Result<Vec<u32>, Invalid> {
        self.0.get(function).cloned().ok_or_else(|| {
            let names = self.0.keys().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
            Invalid::new("function", function, format!("one of its {} functions: {names}, …", self.0.len()))
        })
    }
}

/// Requests as `k6 run --out csv=FILE` counts them: rows of the metric `http_reqs`, by their second.
fn k6(text: &str) -> Result<Load, Invalid> {
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let columns: Vec<_> = head.split(',').collect();
    let column = |name: &str| columns.iter().position(|column| *column == name);
    let allowed = "k6's columns, metric_name,timestamp,metric_value among them";
    let (Some(metric), Some(time), Some(value)) =
        (column("metric_name"), column("timestamp"), column("metric_value"))
    else {
        return Err(Invalid::new("head of k6's output", head, allowed));
    };
    let mut counts: BTreeMap<u64, f64> = BTreeMap::new();
    for (index, line) in lines.enumerate().filter(|(_, line)| line.starts_with("http_reqs,") || metric != 0) {
        let cells: Vec<_> = line.split(',').collect();
        if cells.get(metric) != Some(&"http_reqs") {
            continue;
        }
        let bad = || Invalid::new(format!("line {} of k6's output", index + 2), line, "a time and a count");
        let second: u64 = cells.get(time).and_then(|cell| cell.parse().ok()).ok_or_else(bad)?;
        let count: f64 = cells.get(value).and_then(|cell| cell.parse().ok()).ok_or_else(bad)?;
        if !(0.0..=MOST_RATE).contains(&count) {
            return Err(bad());
        }
        *counts.entry(second).or_default() += count;
    }
    let (Some((&first, _)), Some((&last, _))) = (counts.first_key_value(), counts.last_key_value()) else {
        return Err(Invalid::new("k6's output", "no http_reqs", "at least one"));
    };
    if last - first > 7 * 86_400 {
        return Err(Invalid::new("k6's output", format!("{} s", last - first), "a week at most, in seconds"));
    }
    let rate = |second: u64| counts.get(&second).copied().unwrap_or(0.0);
    let each = |second| Segment { seconds: 1.0, from: rate(second), to: rate(second) };
    Ok(Load::Poisson((first..=last).map(each).collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counts_of_minutes_are_read_in_our_form_and_in_azures() {
        let ours = Minutes::parse("# source\nfunction,m480,m481\na,3,0\nb,1,2\n").unwrap();
        assert_eq!(ours.find("b").unwrap(), [1, 2]);
        let azure =
            Minutes::parse("HashOwner,HashApp,HashFunction,Trigger,1,2,3\no,p,f,http,7,0,9\n").unwrap();
        assert_eq!(azure.find("f").unwrap(), [7, 0, 9]);
        assert!(azure.find("g").unwrap_err().to_string().contains("one of its 1 functions: f"));
    }

    #[test]
    fn a_gap_a_wrong_head_and_a_bad_row_are_refused() {
        let cases = [
            ("function,m1,m3\na,1,2\n", "minutes of the counts is \"3 after 1\""),
            ("name,m1\na,1\n", "head of the counts is"),
            ("function,x\na,1\n", "head of the counts is"),
            ("function,m1\na,-1\n", "line 2 of the counts is \"a,-1\", allowed is whole numbers"),
            ("function,m1\na\n", "line 2 of the counts is \"a\", allowed is as many columns"),
            ("function,m1\na,1\na,2\n", "line 3 of the counts is \"a,2\", allowed is each function once"),
        ];
        for (text, message) in cases {
            let error = Minutes::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn k6_counts_requests_of_each_second() {
        let text = "metric_name,timestamp,metric_value,status\nhttp_reqs,100,1.0,200\nhttp_req_duration,100,9.5,200\n\
                    http_reqs,100,1,200\nhttp_reqs,102,1,200\n";
        let Load::Poisson(segments) = k6(text).unwrap() else { panic!("it is a rate") };
        assert_eq!(segments.iter().map(|s| s.from).collect::<Vec<_>>(), [2.0, 0.0, 1.0]);
        for text in [
            "",
            "a,b\n",
            "metric_name,timestamp,metric_value\n",
            "metric_name,timestamp,metric_value\nhttp_reqs,x,1\n",
        ] {
            assert!(k6(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_load_is_one_thing() {
        let traces = Traces::shipped().unwrap();
        let load = |yaml: &str| {
            serde_yaml::from_str::<Wanted>(yaml).unwrap().load("functions[0]", Path::new("."), &traces)
        };
        assert!(matches!(load("trace: has-standard:scale=2").unwrap(), Load::Poisson(_)));
        assert!(matches!(load("client: has-standard").unwrap(), Load::Client(_)));
        let scaled = load("{mmpp: {rate: 20, dispersion: 4, seconds: 600}, scale: 2}").unwrap();
        assert_eq!(scaled, Load::Mmpp { rate: 40.0, dispersion: 4.0, seconds: 600.0 });
        for (yaml, message) in [
            ("{}", "functions[0].load is \"0 loads\""),
            ("{trace: has-standard, client: has-standard}", "functions[0].load is \"2 loads\""),
            ("trace: none", "functions[0], trace is \"none\""),
            (
                "{mmpp: {rate: 20, dispersion: 0.5, seconds: 600}}",
                "functions[0].load.mmpp.dispersion is \"0.5\"",
            ),
            ("{trace: has-standard, scale: -1}", "functions[0], load.scale is \"-1\""),
        ] {
            let error = load(yaml).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_readers_panic(text in "\\PC{0,80}", line in "[a-z0-9,.\\-]{0,40}") {
            let _ = Minutes::parse(&text);
            let _ = Minutes::parse(&format!("function,m1\n{line}\n"));
            let _ = k6(&text);
            let _ = k6(&format!("metric_name,timestamp,metric_value\nhttp_reqs{line}\n"));
        }
    }
}
