//! What `gpufn plan` is asked, made of its arguments and files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use gpu_share::annotations::Wish;
use gpu_share::invalid::Invalid;
use gpu_share::latency::{Profiles, Surface};
use gpu_share::names::annotation;
use gpu_share::units::{Bytes, SmShare};
use scaler::cost::distribution::Distribution;
use scaler::cost::load::Load;
use scaler::cost::{GpuTime, Workload};
use scaler::profile::sheet::Sheet;

use super::k6;
use crate::load::trace::Trace;
use crate::load::{duration, read_traces};

/// SM shares that are tried where none is given, percent.
const SMS: [u8; 8] = [10, 15, 20, 30, 40, 50, 75, 100];
/// Largest memory of a card that a share may ask for.
const CARD: Bytes = Bytes::gib(1024);
/// Most steps that a trace is cut into.
const MOST_STEPS: f64 = 20_000.0;

/// What is to be served.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct WorkloadArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// Time that a request computes on one core: 20ms, a median and a 95th percentile such as 20ms..80ms, k6 for what
    /// --k6 measured, or a file with milliseconds, one a line [default: k6 with --k6].
    #[arg(long, value_name = "TIME")]
    cpu: Option<String>,
    /// Time of a request on a whole GPU, in the same forms.
    #[arg(long, value_name = "TIME", conflicts_with = "model")]
    gpu: Option<String>,
    /// Model whose profile tells the GPU time, on any SM share.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Profile that `gpufn profile` wrote, beside the shipped ones.
    #[arg(long, value_name = "FILE", requires = "model")]
    profile: Option<PathBuf>,
    /// Items of a request.
    #[arg(long, default_value = "1", requires = "model")]
    batch: String,
    /// SM share of a replica, percent [default: the one that costs least].
    #[arg(long, value_name = "PERCENT", requires = "model")]
    sm: Option<String>,
    /// Guaranteed quota of a replica, percent.
    #[arg(long, value_name = "PERCENT", default_value = "5")]
    quota: String,
    /// Largest quota of a replica, percent.
    #[arg(long, value_name = "PERCENT", default_value = "100")]
    quota_limit: String,
    /// GPU memory of a replica.
    #[arg(long, default_value = "2Gi")]
    memory: String,
    /// Objective by which GPUs and shares are sized, such as p95<100ms [default: 70 % of what is granted is used].
    #[arg(long)]
    slo: Option<String>,
    /// Time of a request in which it holds neither core nor GPU: waiting for others, transfers.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    beside: Option<std::time::Duration>,
    /// Squared coefficient of variation of the times between arrivals; 1 for requests that come at random.
    #[arg(long, value_name = "NUMBER", default_value_t = 1.0)]
    arrival_scv: f64,
    /// Bytes that a request writes to the log.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    log_bytes: u32,
}

/// The load: one of these.
#[derive(Clone, Debug, clap::Args)]
#[group(multiple = false)]
struct LoadArgs {
    /// A constant rate, requests a second.
    #[arg(long, value_name = "RPS", allow_negative_numbers = true)]
    rate: Option<f64>,
    /// A trace, as of `gpufn load`; TRANSFORM is shift=SECONDS, scale=FACTOR, invert or burst, and may be repeated.
    #[arg(long, value_name = "TRACE[:TRANSFORM]")]
    load: Option<String>,
    /// What k6 wrote: a summary (--summary-export), or points (--out json or csv).
    #[arg(long, value_name = "FILE")]
    k6: Option<PathBuf>,
    /// CSV file of requests in each minute (columns `function,m1,m2,…`), the row of one function of it.
    #[arg(long, value_name = "FILE:FUNCTION")]
    minutes: Option<String>,
}

impl WorkloadArgs {
    /// The workload that they describe; `traces` is a file of traces beside the shipped ones.
    pub(super) fn workload(&self, traces: Option<&Path>) -> anyhow::Result<Workload> {
        let test = self.load.k6.as_deref().map(|path| in_file(path, k6::read)).transpose()?;
        let wish = self.wish()?;
        let took = test.as_ref().map(|test| &test.took);
        let gpu = match (&self.gpu, &self.model) {
            (Some(time), _) => Some(GpuTime::whole_only(times("gpu", time, took)?)),
            (None, Some(model)) => Some(self.by_model(model, &wish)?),
            (None, None) => None,
        };
        let cpu = self.cpu.as_deref().or_else(|| test.as_ref().filter(|_| gpu.is_none()).map(|_| "k6"));
        let cpu = cpu.map(|text| times("cpu", text, took)).transpose()?;
        if cpu.is_none() && gpu.is_none() {
            return Err(Invalid::new(
                "cpu, gpu and model",
                "",
                "one or more of them: how long a request takes",
            )
            .into());
        }
        if !(0.0..=1000.0).contains(&self.arrival_scv) {
            return Err(Invalid::new("arrival-scv", self.arrival_scv, "0 to 1000").into());
        }
        Ok(Workload {
            load: test.map_or_else(|| self.load.read(traces), |test| Ok(test.load))?,
            arrival_scv: self.arrival_scv,
            cpu,
            gpu,
            beside: self.beside.unwrap_or_default().as_secs_f64(),
            memory: wish.share.memory,
            quota: wish.share.floor,
            quota_limit: wish.share.ceiling,
            slo: wish.slo,
            log_bytes: f64::from(self.log_bytes),
        })
    }

    /// What the function asks for, as its annotations would say it.
    fn wish(&self) -> Result<Wish, Invalid> {
        let given = [
            (annotation::SM, "sm", self.sm.as_deref()),
            (annotation::QUOTA, "quota", Some(self.quota.as_str())),
            (annotation::QUOTA_LIMIT, "quota-limit", Some(self.quota_limit.as_str())),
            (annotation::MEMORY, "memory", Some(self.memory.as_str())),
            (annotation::SLO, "slo", self.slo.as_deref()),
            (annotation::BATCH, "batch", Some(self.batch.as_str())),
        ];
        let given: Vec<_> =
            given.iter().filter_map(|&(key, flag, value)| Some((key, flag, value?))).collect();
        let read =
            |annotations: BTreeMap<String, String>| Wish::read(&annotations, CARD, &Profiles::default());
        // Each alone first, so that a complaint names the flag.
        for (key, flag, value) in given.iter().filter(|(key, ..)| *key != annotation::QUOTA_LIMIT) {
            read(BTreeMap::from([((*key).to_string(), (*value).to_string())]))
                .map_err(|e| e.in_field(flag))?;
        }
        let all = given.iter().map(|(key, _, value)| ((*key).to_string(), (*value).to_string())).collect();
        let wish = read(all).map_err(|error| error.in_field("quota-limit"))?;
        wish.ok_or_else(|| Invalid::new("memory", &self.memory, "an amount such as 2Gi"))
    }

    /// GPU time by the profile of `model`, on the SM share that is wanted or on several.
    fn by_model(&self, model: &str, wish: &Wish) -> anyhow::Result<GpuTime> {
        let own = self
            .profile
            .as_deref()
            .map(|path| in_file(path, |text| Sheet::read(text)?.profiles()))
            .transpose()?;
        let profiles = Profiles::shipped().with(own.unwrap_or_default());
        let surface = profiles.get(model).ok_or_else(|| {
            let models: Vec<_> = profiles.models().collect();
            Invalid::new("model", model, format!("one of {}", models.join(", ")))
        })?;
        let wanted = if self.sm.is_some() { vec![wish.share.sm.percent()] } else { SMS.to_vec() };
        let of = |percent: u8| {
            let sm = SmShare::from_percent(percent)?;
            Ok::<_, Invalid>((sm, on(surface, sm, wish.batch)?))
        };
        Ok(GpuTime {
            whole: on(surface, SmShare::WHOLE, wish.batch)?,
            shares: wanted.into_iter().map(of).collect::<Result<_, Invalid>>()?,
        })
    }
}

impl LoadArgs {
    fn read(&self, traces: Option<&Path>) -> anyhow::Result<Load> {
        if let Some(rate) = self.rate {
            return Ok(
                Load::constant(rate).map_err(|_| Invalid::new("rate", rate, "above 0, at most 1000000"))?
            );
        }
        if let Some(minutes) = &self.minutes {
            let form = || Invalid::new("minutes", minutes, "FILE:FUNCTION");
            let (file, function) = minutes.rsplit_once(':').ok_or_else(form)?;
            return in_file(Path::new(file), |text| by_minute(text, function));
        }
        let Some(name) = &self.load else {
            return Err(Invalid::new(
                "rate, load, k6 and minutes",
                "",
                "one of them: the load that is planned for",
            )
            .into());
        };
        Ok(of_trace(&read_traces(traces)?.find(name).map_err(|error| error.in_field("load"))?)?)
    }
}

/// GPU time of a batch by the profile.
fn on(surface: &Surface, sm: SmShare, batch: u32) -> Result<Distribution, Invalid> {
    Distribution::constant(surface.gpu_time(sm, batch).secs_f64())
}

/// What `read` makes of the file; complaints name it.
pub(super) fn in_file<T>(path: &Path, read: impl FnOnce(&str) -> Result<T, Invalid>) -> anyhow::Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    Ok(read(&text).map_err(|error| error.within(&path.display().to_string()))?)
}

/// The times that `text` means in `field`; `k6` are those that a test took.
fn times(field: &str, text: &str, k6: Option<&Distribution>) -> anyhow::Result<Distribution> {
    if text == "k6" {
        let none = || Invalid::new(field, text, "another form where --k6 is not given");
        return Ok(k6.cloned().ok_or_else(none)?);
    }
    let seconds = |text: &str| Ok::<_, Invalid>(duration(text)?.as_secs_f64());
    if let Some((median, p95)) =
        text.split_once("..").filter(|(median, p95)| duration(median).is_ok() && duration(p95).is_ok())
    {
        let times = Distribution::log_normal(seconds(median)?, seconds(p95)?);
        return Ok(times.map_err(|_| Invalid::new(field, text, "a median and a larger 95th percentile"))?);
    }
    if let Ok(seconds) = seconds(text) {
        return Ok(Distribution::constant(seconds)?);
    }
    if Path::new(text).is_file() {
        return in_file(Path::new(text), milliseconds);
    }
    let allowed =
        "a time such as 20ms, 20ms..80ms (median and 95th percentile), k6, or a file of milliseconds";
    Err(Invalid::new(field, text, allowed).into())
}

/// Milliseconds, one a line; the first line may be a name.
fn milliseconds(text: &str) -> Result<Distribution, Invalid> {
    let lines = text
        .lines()
        .map(str::trim)
        .enumerate()
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let mut seconds = Vec::new();
    for (index, line) in lines {
        match line.parse::<f64>().ok().filter(|ms| ms.is_finite() && *ms >= 0.0) {
            Some(ms) => seconds.push(ms / 1e3),
            None if index == 0 && line.chars().any(char::is_alphabetic) => {}
            None => return Err(Invalid::new(format!("line {}", index + 1), line, "milliseconds from 0")),
        }
    }
    Distribution::measured(seconds)
}

/// The requests of `function` in each minute.
fn by_minute(text: &str, function: &str) -> Result<Load, Invalid> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty());
    let head = lines.next().map_or("", |(_, line)| line);
    let minutes: Option<Vec<u32>> = head
        .strip_prefix("function,")
        .and_then(|head| head.split(',').map(|m| m.strip_prefix('m')?.parse().ok()).collect());
    let bad = || Invalid::new("head", head, "function,m1,m2,… with each minute once and none left out");
    let minutes = minutes
        .filter(|minutes| minutes.windows(2).all(|pair| pair[0].checked_add(1) == Some(pair[1])))
        .ok_or_else(bad)?;
    let row = |line: &&str| line.split(',').next() == Some(function);
    let Some((index, line)) = lines.clone().find(|(_, line)| row(line)) else {
        let names: Vec<_> = lines.filter_map(|(_, line)| line.split(',').next()).take(5).collect();
        return Err(Invalid::new("function", function, format!("one of {}, …", names.join(", "))));
    };
    let counts =
        line.split(',').skip(1).map(|cell| cell.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0));
    let counts: Option<Vec<f64>> = counts.collect();
    let bad =
        || Invalid::new(format!("line {}", index + 1), line, format!("{} counts from 0", minutes.len()));
    let counts = counts.filter(|counts| counts.len() == minutes.len()).ok_or_else(bad)?;
    Load::new(60.0, counts.into_iter().map(|count| count / 60.0).collect())
}

/// The rates of a trace, in steps of a second or, if it is long, of so many that there are not too many.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // At most MOST_STEPS.
fn of_trace(trace: &Trace) -> Result<Load, Invalid> {
    let step = (trace.seconds() / MOST_STEPS).ceil().max(1.0);
    let mut counts = vec![0.0; (trace.seconds() / step - 1e-9).ceil().max(1.0) as usize];
    let mut start = 0.0;
    for segment in trace.segments() {
        let rate = |at: f64| segment.from + (segment.to - segment.from) * (at - start) / segment.seconds;
        let end = start + segment.seconds;
        let mut from = start;
        while from < end - 1e-9 {
            let index = (from / step + 1e-9) as usize;
            #[allow(clippy::cast_precision_loss)] // At most MOST_STEPS.
            let to = ((index + 1) as f64 * step).min(end);
            if let Some(count) = counts.get_mut(index) {
                *count += (to - from) * f64::midpoint(rate(from), rate(to));
            }
            from = to;
        }
        start = end;
    }
    Load::new(step, counts.into_iter().map(|count| count / step).collect())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::load::trace::Traces;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: WorkloadArgs,
    }

    fn workload(line: &str) -> anyhow::Result<Workload> {
        Cli::try_parse_from(std::iter::once("plan").chain(line.split_whitespace()))?.args.workload(None)
    }

    #[test]
    fn a_trace_keeps_its_requests() {
        let traces = Traces::shipped().unwrap();
        for name in ["has-standard", "idle-burst", "has-standard:shift=0.4"] {
            let trace = traces.find(name).unwrap();
            let load = of_trace(&trace).unwrap();
            assert!((load.requests() / trace.requests() - 1.0).abs() < 1e-6, "{name}: {}", load.requests());
            assert!((load.seconds() - trace.seconds()).abs() < 1e-6);
        }
    }

    #[test]
    fn a_model_is_known_on_every_sm_share_and_a_measured_time_on_the_whole_gpu() {
        let work = workload("--rate 5 --model resnet50 --slo p95<100ms").unwrap();
        let gpu = work.gpu.unwrap();
        assert_eq!(gpu.shares.len(), SMS.len());
        assert!(gpu.shares.first_key_value().unwrap().1.mean() > gpu.whole.mean());
        assert_eq!(workload("--rate 5 --model resnet50 --sm 25").unwrap().gpu.unwrap().shares.len(), 1);
        let measured = workload("--rate 5 --gpu 20ms..60ms").unwrap().gpu.unwrap();
        assert!((measured.whole.quantile(0.95) - 0.06).abs() < 1e-9);
    }

    #[test]
    fn what_is_wrong_is_refused_by_its_name() {
        let cases = [
            ("--rate 0 --cpu 1ms", "rate is \"0\", allowed is above 0"),
            ("--rate -1 --cpu 1ms", "rate is \"-1\""),
            ("--cpu 1ms", "rate, load, k6 and minutes is \"\""),
            ("--rate 5", "cpu, gpu and model is \"\""),
            ("--rate 5 --cpu fast", "cpu is \"fast\", allowed is a time such as 20ms"),
            ("--rate 5 --cpu k6", "cpu is \"k6\""),
            ("--rate 5 --gpu 80ms..20ms", "gpu is \"80ms..20ms\", allowed is a median and a larger"),
            ("--rate 5 --model gpt-9", "model is \"gpt-9\", allowed is one of bert"),
            ("--rate 5 --model bert --sm 0", "sm is \"0\""),
            ("--rate 5 --model bert --quota 101", "quota is \"101\""),
            ("--rate 5 --model bert --quota 50 --quota-limit 20", "quota-limit is \"20\""),
            ("--rate 5 --model bert --memory lots", "memory is \"lots\""),
            ("--rate 5 --model bert --slo p95", "slo is \"p95\""),
            ("--rate 5 --model bert --batch 0", "batch is \"0\""),
            ("--load nothing --cpu 1ms", "load is \"nothing\", allowed is one of has-standard"),
            ("--minutes file --cpu 1ms", "minutes is \"file\", allowed is FILE:FUNCTION"),
            ("--rate 5 --cpu 1ms --arrival-scv nan", "arrival-scv is \"NaN\""),
        ];
        for (line, complaint) in cases {
            let error = workload(line).unwrap_err();
            assert!(error.is::<Invalid>() && error.to_string().starts_with(complaint), "{line}: {error}");
        }
        for line in ["--rate 5 --load has-standard --cpu 1ms", "--rate 5 --cpu 1ms --sm 20"] {
            assert!(workload(line).unwrap_err().is::<clap::Error>(), "{line}");
        }
    }

    #[test]
    fn minutes_that_are_left_out_and_rows_that_are_too_short_are_refused() {
        let load = by_minute("# source\nfunction,m1,m2,m3\na,0,60,120\nb,0,0,0\n", "a").unwrap();
        assert_eq!((load.step(), load.rates()), (60.0, &[0.0, 1.0, 2.0][..]));
        let cases = [
            ("function,m1,m3\na,1,2\n", "a", "head is \"function,m1,m3\""),
            ("name,m1\na,1\n", "a", "head is \"name,m1\""),
            ("function,m1,m2\na,1\n", "a", "line 2 is \"a,1\", allowed is 2 counts from 0"),
            ("function,m1\na,-1\n", "a", "line 2"),
            ("function,m1\na,1\n", "c", "function is \"c\", allowed is one of a, …"),
            ("function,m1\nb,0\n", "b", "requests of the load is \"0\""),
        ];
        for (text, function, complaint) in cases {
            let error = by_minute(text, function).unwrap_err().to_string();
            assert!(error.starts_with(complaint), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_of_milliseconds_may_have_a_head() {
        assert!((milliseconds("ms\n10\n30\n").unwrap().mean() - 0.02).abs() < 1e-12);
        for text in ["10\nx\n", "ms\n-1\n", ""] {
            assert!(milliseconds(text).is_err(), "{text}");
        }
    }
}
