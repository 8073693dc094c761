//! Frames between the simulated driver and its daemon: what is decoded can be encoded and decoded again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use simcuda::wire::{Reply, Request, split_frame};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some((frame, taken))) = split_frame(bytes) {
        assert_eq!(frame.len() + 4, taken);
    }
    if let Ok(request) = Request::decode(bytes) {
        let mut written = Vec::new();
        request.encode(&mut written);
        assert_eq!(Request::decode(whole(&written)).expect("what was encoded can be decoded"), request);
    }
    if let Ok(reply) = Reply::decode(bytes) {
        let mut written = Vec::new();
        reply.encode(&mut written);
        assert_eq!(Reply::decode(whole(&written)).expect("what was encoded can be decoded"), reply);
    }
});

fn whole(written: &[u8]) -> &[u8] {
    let (frame, taken) = split_frame(written).expect("an encoded frame is well formed").expect("it is whole");
    assert_eq!(taken, written.len());
    frame
}
