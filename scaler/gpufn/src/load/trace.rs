//! Request rates over time, as a CSV of steps tells them, and what can be made of one.
//!
//! Pure. A trace knows rates, not arrivals; when the single requests start is the schedule's matter.

use std::collections::BTreeMap;

use gpu_share::invalid::Invalid;

/// The scenarios that gpufn ships.
const SHIPPED: [&str; 2] =
    [include_str!("../../scenarios/idle-burst.csv"), include_str!("../../scenarios/has-standard.csv")];

const HEAD: &str = "trace,shape,step,start_s,duration_s,rps";

/// Longest step and highest rate that a file or a transform may ask for: a day, and far more than one process can send.
const MOST_SECONDS: f64 = 86_400.0;
const MOST_RPS: f64 = 100_000.0;

/// A part of a trace in which the rate goes linearly from one value to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    /// Its length, above 0.
    pub seconds: f64,
    /// Requests per second at its start.
    pub from: f64,
    /// Requests per second at its end.
    pub to: f64,
}

impl Segment {
    /// Expected number of requests in it.
    pub fn requests(&self) -> f64 {
        self.seconds * f64::midpoint(self.from, self.to)
    }

    /// It in two, `seconds` after its start.
    fn split(self, seconds: f64) -> [Self; 2] {
        let middle = self.from + (self.to - self.from) * seconds / self.seconds;
        [Self { seconds, to: middle, ..self }, Self { seconds: self.seconds - seconds, from: middle, ..self }]
    }
}

/// Request rates over time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    segments: Vec<Segment>,
}

impl Trace {
    /// Its parts, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Its length in seconds.
    pub fn seconds(&self) -> f64 {
        self.segments.iter().map(|segment| segment.seconds).sum()
    }

    /// Expected number of requests.
    pub fn requests(&self) -> f64 {
        self.segments.iter().map(Segment::requests).sum()
    }

    /// Everything `seconds` later; what runs over the end comes first.
    #[must_use]
    pub fn shifted(&self, seconds: f64) -> Self {
        let total = self.seconds();
        if total <= 0.0 {
            return self.clone();
        }
        let cut = total - seconds.rem_euclid(total);
        let (mut before, mut after, mut start) = (Vec::new(), Vec::new(), 0.0);
        for &segment in &self.segments {
            let inside = cut - start;
            if inside >= segment.seconds {
                before.push(segment);
            } else if inside <= 0.0 {
                after.push(segment);
            } else {
                let [first, second] = segment.split(inside);
                before.push(first);
                after.push(second);
            }
            start += segment.seconds;
        }
        after.append(&mut before);
        Self { segments: after }
    }

    /// Busy where it was quiet: each rate becomes the smallest plus the largest minus it.
    #[must_use]
    pub fn inverted(&self) -> Self {
        let rates = || self.segments.iter().flat_map(|segment| [segment.from, segment.to]);
        let sum = rates().fold(f64::INFINITY, f64::min) + rates().fold(0.0, f64::max);
        self.each(|segment| Segment { from: sum - segment.from, to: sum - segment.to, ..segment })
    }

    /// Every rate times `factor`.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        self.each(|segment| Segment { from: segment.from * factor, to: segment.to * factor, ..segment })
    }

    /// Silent where it is below its mean, and busier elsewhere by what that leaves out.
    #[must_use]
    pub fn burst(&self) -> Self {
        let mean = self.requests() / self.seconds().max(f64::MIN_POSITIVE);
        let quiet = |segment: &Segment| f64::midpoint(segment.from, segment.to) < mean;
        let kept: f64 = self.segments.iter().filter(|s| !quiet(s)).map(Segment::requests).sum();
        if kept <= 0.0 {
            return self.clone();
        }
        let factor = self.requests() / kept;
        self.each(|segment| {
            let factor = if quiet(&segment) { 0.0 } else { factor };
            Segment { from: segment.from * factor, to: segment.to * factor, ..segment }
        })
    }

    /// As `transform` says: `shift=SECONDS`, `scale=FACTOR`, `invert` or `burst`.
    pub fn transformed(&self, transform: &str) -> Result<Self, Invalid> {
        let bad = || {
            Invalid::new("transform", transform, "shift=SECONDS, scale=FACTOR (0 to 1000), invert or burst")
        };
        let number = |text: &str| text.parse::<f64>().ok().filter(|n| n.is_finite());
        let changed = match transform.split_once('=') {
            None if transform == "invert" => self.inverted(),
            None if transform == "burst" => self.burst(),
            Some(("shift", seconds)) => self.shifted(number(seconds).ok_or_else(bad)?),
            Some(("scale", factor)) => {
                let factor = number(factor).filter(|factor| (0.0..=1000.0).contains(factor));
                self.scaled(factor.ok_or_else(bad)?)
            }
            _ => return Err(bad()),
        };
        if changed.segments.iter().any(|segment| segment.from.max(segment.to) > MOST_RPS) {
            let allowed = format!("what keeps every rate at most {MOST_RPS} requests a second");
            return Err(Invalid::new("transform", transform, allowed));
        }
        Ok(changed)
    }

    fn each(&self, change: impl Fn(Segment) -> Segment) -> Self {
        Self { segments: self.segments.iter().copied().map(change).collect() }
    }
}

/// Traces by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traces {
    by_name: BTreeMap<String, Trace>,
    /// Name of the first one in the file that was read last.
    first: String,
}

impl Traces {
    /// The scenarios that gpufn ships: `has-standard` and `idle-burst`.
    pub fn shipped() -> Result<Self, Invalid> {
        SHIPPED.iter().try_fold(Self::default(), |all, text| Ok(all.with(Self::parse(text)?)))
    }

    /// Reads steps `trace,shape,step,start_s,duration_s,rps`; lines that start with `#` are skipped.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let lines = text.lines().map(str::trim_end).enumerate();
        let mut lines = lines.filter(|(_, line)| !line.starts_with('#') && !line.is_empty());
        let head = lines.next().map_or("", |(_, line)| line);
        if head != HEAD {
            return Err(Invalid::new("head of the traces", head, HEAD));
        }
        let mut traces = Self::default();
        for (index, line) in lines {
            traces.add(index + 1, line)?;
        }
        if traces.by_name.is_empty() {
            Err(Invalid::new("traces", "", "at least one step"))
        } else {
            Ok(traces)
        }
    }

    fn add(&mut self, number: usize, line: &str) -> Result<(), Invalid> {
        let bad = |allowed: String| Invalid::new(format!("line {number} of the traces"), line, allowed);
        let cells = line.split(',').map(str::trim).collect::<Vec<_>>();
        let [name, shape, step, start, seconds, rps]: [&str; 6] =
            cells.try_into().map_err(|_| bad(HEAD.into()))?;
        if name.is_empty() || name.contains([':', '=']) {
            return Err(bad("a trace whose name is not empty and has no : or =".into()));
        }
        let trace = self.by_name.entry(name.into()).or_default();
        let (expected, end) = (trace.segments.len(), trace.seconds());
        if step.parse() != Ok(expected) {
            return Err(bad(format!("step {expected} of {name} next")));
        }
        if !start.parse::<f64>().is_ok_and(|start| (start - end).abs() < 1e-6) {
            return Err(bad(format!("start_s {end}, where the step before ends")));
        }
        let in_range = |text: &str, most: f64| text.parse::<f64>().ok().filter(|n| (0.0..=most).contains(n));
        let seconds = in_range(seconds, MOST_SECONDS).filter(|&seconds| seconds > 0.0);
        let seconds = seconds.ok_or_else(|| bad(format!("duration_s above 0 and at most {MOST_SECONDS}")))?;
        let to = in_range(rps, MOST_RPS).ok_or_else(|| bad(format!("rps from 0 to {MOST_RPS}")))?;
        let before = trace.segments.last().map_or(0.0, |segment| segment.to);
        let from = match shape {
            "hold" => to,
            "ramp" => before,
            _ => return Err(bad("shape hold or ramp".into())),
        };
        trace.segments.push(Segment { seconds, from, to });
        if self.first.is_empty() {
            self.first = name.into();
        }
        Ok(())
    }

    /// These and `others`, which win where names are the same.
    #[must_use]
    pub fn with(mut self, others: Self) -> Self {
        self.by_name.extend(others.by_name);
        if !others.first.is_empty() {
            self.first = others.first;
        }
        self
    }

    /// Name of the first trace of the file that was read last.
    pub fn first(&self) -> &str {
        &self.first
    }

    /// The trace that `spec` names: a name, and transforms behind colons, applied from left to right.
    pub fn find(&self, spec: &str) -> Result<Trace, Invalid> {
        let mut parts = spec.split(':');
        let name = parts.next().unwrap_or_default();
        let trace = self.by_name.get(name).ok_or_else(|| {
            let names: Vec<_> = self.by_name.keys().map(String::as_str).collect();
            Invalid::new("trace", name, format!("one of {}", names.join(", ")))
        })?;
        parts.try_fold(trace.clone(), |trace, transform| trace.transformed(transform))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-6 * a.abs().max(b.abs()).max(1.0)
    }

    #[test]
    fn the_shipped_scenarios_are_read() {
        let traces = Traces::shipped().unwrap();
        let standard = traces.find("has-standard").unwrap();
        assert_eq!((standard.segments().len(), standard.seconds()), (50, 250.0));
        assert!(close(standard.requests(), 2690.0), "{}", standard.requests());
        assert!(close(traces.find("idle-burst").unwrap().seconds(), 250.0));
        assert_eq!(traces.first(), "has-standard");
    }

    #[test]
    fn a_ramp_starts_at_the_rate_before() {
        let text = format!("{HEAD}\nr,ramp,0,0,10,20\nr,hold,1,10,5,4\nr,ramp,2,15,5,0\n");
        let trace = Traces::parse(&text).unwrap().find("r").unwrap();
        let rates: Vec<_> = trace.segments().iter().map(|s| (s.from, s.to)).collect();
        assert_eq!(rates, [(0.0, 20.0), (4.0, 4.0), (4.0, 0.0)]);
        assert!(close(trace.requests(), 130.0));
    }

    #[test]
    fn a_bad_line_is_named() {
        let lines = [
            "t,hold,0,0,5",
            "t,hold,1,0,5,1",
            "t,hold,0,1,5,1",
            "t,hold,0,0,0,1",
            "t,hold,0,0,5,-1",
            "t,hold,0,0,5,inf",
            "t,saw,0,0,5,1",
            "a:b,hold,0,0,5,1",
        ];
        for line in lines {
            let error = Traces::parse(&format!("# source\n{HEAD}\n{line}\n")).unwrap_err().to_string();
            assert!(error.starts_with(&format!("line 3 of the traces is {line:?}, allowed is ")), "{error}");
        }
        assert!(Traces::parse("").is_err());
    }

    #[test]
    fn an_unknown_trace_or_transform_is_refused_with_what_there_is() {
        let traces = Traces::shipped().unwrap();
        let error = traces.find("none").unwrap_err().to_string();
        assert_eq!(error, "trace is \"none\", allowed is one of has-standard, idle-burst");
        for spec in
            ["has-standard:x", "has-standard:shift=", "has-standard:scale=-1", "has-standard:shift=nan"]
        {
            assert!(traces.find(spec).is_err(), "{spec}");
        }
        assert!(traces.find("has-standard:shift=20:invert:scale=0.5").is_ok());
        let chain = format!("has-standard{}", ":scale=1000".repeat(120));
        assert!(traces.find(&chain).is_err(), "a chain of transforms must not make a rate infinite");
    }

    fn any_trace() -> impl Strategy<Value = Trace> {
        let segment = (0.1..20.0_f64, 0.0..50.0_f64, 0.0..50.0_f64);
        proptest::collection::vec(segment, 1..20).prop_map(|parts| Trace {
            segments: parts.into_iter().map(|(seconds, from, to)| Segment { seconds, from, to }).collect(),
        })
    }

    proptest! {
        #[test]
        fn shifting_and_bursts_keep_the_total(trace in any_trace(), seconds in -500.0..500.0_f64) {
            for changed in [trace.shifted(seconds), trace.burst()] {
                prop_assert!(close(changed.requests(), trace.requests()));
                prop_assert!(close(changed.seconds(), trace.seconds()));
            }
        }

        #[test]
        fn a_trace_and_its_inverse_sum_to_a_constant_rate(trace in any_trace()) {
            let inverse = trace.inverted();
            let sum = trace.segments[0].from + inverse.segments[0].from;
            prop_assert!(close(trace.requests() + inverse.requests(), sum * trace.seconds()));
            prop_assert!(inverse.segments.iter().all(|s| s.from >= -1e-9 && s.to >= -1e-9));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,80}", line in "[a-z0-9,.\\-]{0,40}") {
            let _ = Traces::parse(&text);
            let _ = Traces::parse(&format!("{HEAD}\n{line}\n"));
        }
    }
}
