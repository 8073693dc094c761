//! The page as the watchdog copies it: any bytes give a snapshot within bounds, or an error.
#![no_main]

use gpu_share::page::Snapshot;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(snapshot) = Snapshot::parse(bytes) {
        let limits = snapshot.limits;
        assert!((1..=100).contains(&limits.sm.percent()), "{limits:?}");
        for quota in [limits.floor, limits.ceiling, limits.grant] {
            assert!(quota.ppm() <= 1_000_000, "{limits:?}");
        }
    }
});
