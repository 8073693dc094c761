//! The declared coverage against the names of the driver and the wrappers that there are.

use std::collections::HashSet;

use crate::intercept;
use crate::names::{CUDA, NAMES};

use super::looks_like_work;

#[path = "rules.rs"]
mod rules;

use rules::{fits, rules};

fn cuda() -> impl Iterator<Item = &'static str> {
    NAMES[..CUDA].iter().map(|name| name.to_str().unwrap())
}

#[test]
fn every_name_that_looks_like_work_is_declared_and_treated_as_declared() {
    let rules = rules();
    let watched = intercept::watched().collect::<HashSet<_>>();
    let mut wrong = Vec::new();
    for (index, name) in cuda().enumerate() {
        let rule = rules.iter().find(|rule| fits(rule.pattern, name));
        match rule.map(|rule| rule.treatment) {
            None if looks_like_work(name) => wrong.push(format!("{name} is not declared")),
            None if watched.contains(&index) => wrong.push(format!("{name} is watched and not declared")),
            Some("passed") if watched.contains(&index) => {
                wrong.push(format!("{name} is declared passed, and has a wrapper"));
            }
            Some("gated" | "charged" | "watched") if !watched.contains(&index) => {
                wrong.push(format!("{name} has no wrapper"));
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_rule_fits_a_name() {
    let unused = rules().into_iter().filter(|rule| !cuda().any(|name| fits(rule.pattern, name)));
    assert_eq!(unused.map(|rule| rule.pattern).collect::<Vec<_>>(), Vec::<&str>::new());
}

#[test]
fn what_a_newer_driver_may_bring_looks_like_work() {
    for name in ["cuLaunchKernelFar", "cuMemcpyQuickAsync", "cuMemAllocElsewhere", "cuMemsetPatternAsync"] {
        assert!(looks_like_work(name), "{name}");
    }
    for name in ["cuDeviceGetName", "cuMemHostAlloc", "cuGraphMemAllocNodeGetParams", "cuStreamCreate"] {
        assert!(!looks_like_work(name), "{name}");
    }
}
