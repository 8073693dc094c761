//! Metadata of a trigger: lines `key=value`. Terms that are read keep their rules, and an error is one line.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use scaler::keda::metadata::Terms;

fuzz_target!(|text: &str| {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let metadata: HashMap<_, _> = pairs.map(|(key, value)| (key.into(), value.into())).collect();
    match Terms::read("fn", &metadata) {
        Ok(terms) => {
            assert!((1..=63).contains(&terms.function.len()), "{terms:?}");
            assert!(terms.activation.is_finite() && terms.activation >= 0.0, "{terms:?}");
            assert!(
                terms.concurrency.is_none_or(|at_once| at_once.is_finite() && at_once > 0.0),
                "{terms:?}"
            );
            assert!(terms.most.is_none_or(|most| most >= 1), "{terms:?}");
            assert!(
                metadata.get("namespace").is_none_or(|namespace| namespace.trim() == "fn"),
                "{metadata:?}"
            );
        }
        Err(error) => assert_eq!(error.to_string().lines().count(), 1, "{error}"),
    }
});
