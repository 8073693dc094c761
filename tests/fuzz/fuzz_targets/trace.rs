//! Traces: each that is read has a finite length and number of requests, transformed too.
#![no_main]

use gpufn::load::trace::{Trace, Traces};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // The first line is a trace with its transforms, as people type it.
    let (spec, text) = text.split_once('\n').unwrap_or(("", text));
    let Ok(traces) = Traces::parse(text) else { return };
    finite(&traces.find(traces.first()).expect("the first trace is there"));
    // As many transforms as could be meant: enough factors in a row exceed every number.
    let spec = spec.split(':').take(8).collect::<Vec<_>>().join(":");
    if let Ok(trace) = traces.find(&spec) {
        finite(&trace);
    }
});

fn finite(trace: &Trace) {
    assert!(trace.seconds().is_finite() && trace.seconds() >= 0.0, "{trace:?}");
    assert!(trace.requests().is_finite() && trace.requests() >= 0.0, "{trace:?}");
}
