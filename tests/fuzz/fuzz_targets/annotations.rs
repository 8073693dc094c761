//! Annotations of a function: the nth line is the value of the nth annotation. A wish that is read keeps its rules.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use gpu_share::annotations::Wish;
use gpu_share::latency::Profiles;
use gpu_share::names::annotation::{
    BATCH, MEMORY, MODEL, POLICY, PRIORITY, QUOTA, QUOTA_LIMIT, REPLICAS, SLO, SM,
};
use gpu_share::units::Bytes;
use libfuzzer_sys::fuzz_target;

const KEYS: [&str; 10] =
    [SM, QUOTA, QUOTA_LIMIT, MEMORY, SLO, POLICY, MODEL, BATCH, REPLICAS, PRIORITY];

static PROFILES: LazyLock<Profiles> = LazyLock::new(Profiles::shipped);

fuzz_target!(|text: &str| {
    let values = KEYS.into_iter().zip(text.lines());
    // An empty line leaves the annotation out.
    let values = values.filter(|(_, value)| !value.is_empty());
    let annotations: BTreeMap<_, _> = values.map(|(key, value)| (key.into(), value.into())).collect();
    let gpu_memory = Bytes::gib(16);
    if let Ok(Some(wish)) = Wish::read(&annotations, gpu_memory, &PROFILES) {
        assert!((1..=100).contains(&wish.share.sm.percent()), "{wish:?}");
        assert!(wish.share.floor <= wish.share.ceiling, "{wish:?}");
        assert!(wish.share.memory <= gpu_memory, "{wish:?}");
        assert!(wish.batch >= 1, "{wish:?}");
    }
});
