//! Lines and bodies that node agent, watchdog and hook send each other: what is read can be written and read again.
#![no_main]

use std::fmt::Debug;

use gpu_share::protocol::{Bind, FromContainer, SetGrant, ToContainer};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|bytes: &[u8]| {
    survives::<FromContainer>(bytes);
    survives::<ToContainer>(bytes);
    survives::<Bind>(bytes);
    survives::<SetGrant>(bytes);
});

fn survives<T: Debug + DeserializeOwned + PartialEq + Serialize>(bytes: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<T>(bytes) {
        let written = serde_json::to_vec(&message).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<T>(&written).expect("what was written can be read"), message);
    }
}
