//! What a watchdog and a gateway show: numbers that are read can be counted with.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scaler::control::reading::{Durations, Shown};
use scaler::traffic::Counters;
use scaler::traffic::exposition::samples;

fuzz_target!(|text: &str| {
    for sample in samples(text) {
        assert!(!sample.name.is_empty() && !sample.value.is_nan(), "{sample:?}");
        let _ = sample.label("function_name");
    }
    if let Some(shown) = Shown::read(text) {
        let latencies = shown.durations.since(&Durations::default());
        assert!(latencies.len() <= 20_000, "{} latencies", latencies.len());
        assert_eq!(shown.durations.since(&shown.durations), []);
    }
    let watchdog = Counters::of_watchdog(text);
    for counters in Counters::of_gateway(text).into_values().chain(watchdog) {
        assert!(counters.in_flight >= 0.0 && counters.answered >= counters.served, "{counters:?}");
    }
});
