//! Inference requests that become one: whatever two clients send, what is merged is JSON with the rows of both, and an
//! answer that gives the inputs back is split into as many answers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use watchdog::batch::{Infer, merge, split};

fuzz_target!(|bytes: &[u8]| {
    let mut bodies = bytes.splitn(2, |byte| *byte == 0);
    let (first, second) = (bodies.next().unwrap_or_default(), bodies.next().unwrap_or_default());
    let _ = split(first, &[(1, None), (2, Some("\"a\""))]);
    let Some(one) = Infer::read(first) else { return };
    let other = Infer::read(second).filter(|other| other.kind() == one.kind()).unwrap_or_else(|| one.clone());
    let requests = [one, other];
    let merged = merge(&requests);
    let both = Infer::read(merged.as_bytes()).expect("what was merged can be merged again");
    assert_eq!(Some(both.rows()), requests[0].rows().checked_add(requests[1].rows()));
    let wanted = requests.each_ref().map(|request| (request.rows(), request.id()));
    let answer = merged.replacen("\"inputs\":[", "\"outputs\":[", 1);
    if let Some(answers) = split(answer.as_bytes(), &wanted) {
        assert_eq!(answers.len(), 2);
        for answer in answers {
            serde_json::from_str::<serde::de::IgnoredAny>(&answer).expect("a part of an answer is JSON");
        }
    }
});
