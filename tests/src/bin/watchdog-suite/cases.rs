//! The numbered cases. Each starts what it needs and looks at it from outside.

use std::time::Duration;

use anyhow::Result;

use crate::watchdog::Suite;

mod config;
mod fork;
mod lifecycle;
mod limits;
mod logs;
mod metrics;
mod probes;
mod proxy;
mod streams;

/// A case: its number, what it is about, and what looks at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// Its number.
    pub(crate) number: u16,
    /// What it is about.
    pub(crate) title: &'static str,
    /// Fails with what is not so.
    pub(crate) check: fn(&Suite) -> Result<()>,
}

const fn case(number: u16, title: &'static str, check: fn(&Suite) -> Result<()>) -> Case {
    Case { number, title, check }
}

/// All cases in the order of their numbers.
pub(crate) fn all() -> Vec<Case> {
    let parts: [&[Case]; 9] = [
        probes::CASES,
        proxy::CASES,
        limits::CASES,
        streams::CASES,
        metrics::CASES,
        lifecycle::CASES,
        config::CASES,
        fork::CASES,
        logs::CASES,
    ];
    let mut cases = parts.concat();
    cases.sort_by_key(|case| case.number);
    cases
}

/// Cases that need more than a watchdog, and where they are.
pub(crate) const ELSEWHERE: [(u16, &str); 7] = [
    (92, "function authentication by JWT, against an issuer: the watchdog's own tests"),
    (93, "a key of the issuer that changes: the watchdog's own tests"),
    (95, "a change of quota while a request runs, with a node agent: the end-to-end tests"),
    (96, "a request to a parked function, with a node agent: the end-to-end tests"),
    (97, "a function that writes its page, with a node agent: the end-to-end tests"),
    (98, "an idle function gives its time to others, with a node agent: the end-to-end tests"),
    (99, "the share in the metrics, with a node agent: the watchdog's own tests"),
];

/// Whether a time is about what it should be, on a machine that does other things too.
fn is_about(took: Duration, millis: u64) -> bool {
    let wanted = Duration::from_millis(millis);
    took + Duration::from_millis(60) >= wanted && took <= wanted * 2 + Duration::from_millis(1500)
}
