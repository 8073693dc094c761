//! Profiles: each model that is read has a latency at every SM share and batch.
#![no_main]

use gpu_share::latency::Profiles;
use gpu_share::units::{Nanos, SmShare};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(profiles) = Profiles::parse(text) else { return };
    for model in profiles.models() {
        let surface = profiles.get(model).expect("a model that is listed is there");
        for percent in [1, 7, 50, 100] {
            let sm = SmShare::from_percent(percent).expect("a percent");
            for batch in [1, 3, 64, u32::MAX] {
                assert!(surface.gpu_time(sm, batch) >= Nanos::ZERO);
            }
        }
    }
});
