//! A review that the API server, or whoever reaches the webhook, sends.
#![no_main]

use gpu_share::units::{Bytes, Units};
use libfuzzer_sys::fuzz_target;
use scaler::webhook::Settings;
use scaler::webhook::review::answer;

fuzz_target!(|body: &[u8]| {
    let settings = Settings {
        resource: "gpufn.dev/gpu".into(),
        per_gpu: Units(20),
        gpu_memory: Bytes::gib(16),
        runtime_class: Some("nvidia".into()),
        grace_seconds: 60,
        steer: true,
    };
    let (review, _) = answer(body, &settings);
    assert!(review.response.is_some());
});
