//! A `stack.yaml`, with a variable that is set and environment files that exist.
#![no_main]

use gpufn::stack;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let variable = |name: &str| name.len().is_multiple_of(2).then(|| format!("value of {name}"));
    let file = |_: &str| Ok("environment:\n  key: value\n".to_string());
    if let Ok(functions) = stack::read(text, variable, file) {
        assert!(!functions.is_empty());
    }
});
