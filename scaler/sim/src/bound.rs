//! The least that a schedule can cost under which no request is late, whatever it knows of the future.
//!
//! Of each function, the larger of two bounds in GPU-seconds, neither of which a schedule can be below:
//!
//! - **presence**: a request that is answered in time is answered by a replica that was there. Between two requests a
//!   replica is either kept, or given up and started again, and holds its memory meanwhile or while it starts. The
//!   fewest replicas that the function allows are there all the time.
//! - **work**: a GPU-second of work keeps the SM share that it runs on, or the memory of the replica if that is more; it
//!   is counted at the SM share and batch where a request costs least.
//!
//! What replicas need beside that to answer several requests at once is not counted, nor that cold starts differ: it is a
//! bound, no schedule.

use gpu_share::units::{Area, Bytes, Nanos, SmShare};

use crate::arrivals::{Arrivals, Load};
use crate::random::{Purpose, Stream};
use crate::spec::{FunctionSpec, Spec};

/// GPUs that all functions of `spec` need in the mean.
pub fn least_gpus(spec: &Spec) -> f64 {
    let functions = spec.functions.iter().zip(0..);
    let seconds: f64 = functions.map(|(function, index)| least(spec, function, index)).sum();
    seconds / spec.seconds.max(f64::MIN_POSITIVE)
}

/// GPU-seconds of one function.
fn least(spec: &Spec, function: &FunctionSpec, index: u32) -> f64 {
    let memory = Area::of_memory(function.wish.share.memory, spec.cards.memory).gpus();
    let (present, requests) = presence(spec, function, index);
    (memory * present).max(requests * work(function, spec.cards.memory))
}

/// Replica-seconds for which replicas must be there, and the number of requests.
fn presence(spec: &Spec, function: &FunctionSpec, index: u32) -> (f64, f64) {
    let (start, always) =
        (spec.control.cold_start.mean, f64::from(function.wish.replicas.min) * spec.seconds);
    if matches!(function.load, Load::Client(_)) {
        // A client that waits for answers decides when its requests come.
        return (always, function.load.requests());
    }
    let stream = Stream::new(spec.seed, Purpose::Arrivals, index);
    let mut arrivals = Arrivals::new(function.load.clone(), stream);
    let (mut present, mut requests, mut last) = (0.0, 0.0, None);
    while let Some(at) = arrivals.next().map(Nanos::secs_f64).filter(|&at| at <= spec.seconds) {
        // Before the first request there is nothing to keep.
        present += start.min(at - last.unwrap_or(0.0));
        requests += 1.0;
        last = Some(at);
    }
    (present.max(always), requests)
}

/// GPU-seconds that one request costs at least.
fn work(function: &FunctionSpec, gpu_memory: Bytes) -> f64 {
    let shares = (1..=100).filter_map(|percent| SmShare::from_percent(percent).ok());
    let batches = 1..=function.wish.batch.max(1);
    let cost = |sm: SmShare, batch: u32| {
        let kept = sm.fraction().max(Area::of_memory(function.wish.share.memory, gpu_memory).gpus());
        kept * function.surface.gpu_time(sm, batch).secs_f64() / f64::from(batch)
    };
    shares.flat_map(|sm| batches.clone().map(move |batch| cost(sm, batch))).fold(f64::INFINITY, f64::min)
}
