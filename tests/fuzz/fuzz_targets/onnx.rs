//! Model files: whatever the bytes are, they are a model or an error in one line.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use scaler::profile::onnx::Model;

fuzz_target!(|bytes: &[u8]| {
    let told = match Model::read(bytes, &BTreeMap::new()) {
        Ok(model) => model.description("net").map(|_| ()),
        Err(error) => Err(error),
    };
    if let Err(error) = told {
        assert!(!error.to_string().contains('\n'));
    }
});
