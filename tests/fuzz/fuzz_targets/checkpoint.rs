//! The node agent's checkpoint: what is read can be written and read again.
#![no_main]

use device_plugin::checkpoint::{decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // A checksum that fits is beyond a fuzzer's reach, so the form alone is read too.
    let bindings = decode(text).ok().or_else(|| serde_json::from_str(text).ok());
    if let Some(bindings) = bindings {
        let written = encode(&bindings).expect("what was read can be written");
        assert_eq!(decode(&written).expect("what was written can be read"), bindings);
    }
});
