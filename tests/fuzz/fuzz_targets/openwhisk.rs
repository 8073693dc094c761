//! Messages to an OpenWhisk action and its result: what is read can be given to a process, and a result to a client.
#![no_main]

use http::HeaderMap;
use libfuzzer_sys::fuzz_target;
use watchdog::parsers::{Asked, Entry, Init, Run, response, result};

const MOST: usize = 10_000;

fn are_sound(variables: &[(String, String)]) {
    for (name, value) in variables {
        assert!(!name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'), "{name:?}={value:?}");
    }
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(init) = Init::read(bytes) {
        are_sound(&init.environment);
    }
    if let Ok(run) = Run::read(bytes, MOST) {
        are_sound(&run.context);
        assert!(run.value.to_string().len() <= MOST);
    }
    let headers = HeaderMap::new();
    let is_raw = bytes.len() % 2 == 0;
    let asked =
        Asked { method: "POST", query: "a=1", headers: &headers, namespace: "", is_raw, is_dedicated: false };
    if let Ok(Entry { run: Some(run), .. }) = Entry::read(bytes, &asked, MOST) {
        are_sound(&run.context);
    }
    if let Ok(value) = result(bytes, MOST) {
        assert!(response(value).status().as_u16() >= 200);
    }
});
