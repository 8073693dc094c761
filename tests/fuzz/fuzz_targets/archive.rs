//! An action's archive: it never writes elsewhere than below its folder, and never more than it may.
#![no_main]

use std::path::Component;

use libfuzzer_sys::fuzz_target;
use watchdog::parsers::{Limits, unpack};

const LIMITS: Limits = Limits { bytes: 100_000, names: 100 };

fuzz_target!(|bytes: &[u8]| {
    let (mut size, mut names) = (0, 0);
    let _ = unpack(bytes, LIMITS, |entry| {
        assert!(entry.path.components().all(|part| matches!(part, Component::Normal(_))), "{:?}", entry.path);
        names += entry.path.components().count();
        if let Some(content) = entry.content {
            size += std::io::copy(content, &mut std::io::sink())?;
        }
        Ok(())
    });
    // An entry that turns out to be longer than it says has been read one byte too far.
    assert!(size <= LIMITS.bytes + 1 && names <= LIMITS.names, "{size} bytes, {names} names");
});
