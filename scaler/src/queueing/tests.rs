//! The closed forms against known values and against an exact simulation of the same queue.

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Waits of `requests` requests at `servers` servers, sorted; constant service of one second.
///
/// `arrival_scv` 1 is Poisson, above 1 hyper-exponential with balanced means.
fn simulated_waits(servers: usize, load: f64, arrival_scv: f64, requests: usize) -> Vec<f64> {
    let mut random = StdRng::seed_from_u64(7);
    let mut exponential = move |mean: f64| -mean * (1.0 - random.random::<f64>()).ln();
    let mean = 1.0 / (load * servers as f64);
    let often = 0.5 * (1.0 + ((arrival_scv - 1.0) / (arrival_scv + 1.0)).sqrt());
    let mut pick = StdRng::seed_from_u64(8);
    let (mut now, mut free) = (0.0, vec![0.0_f64; servers]);
    let mut waits: Vec<f64> = (0..requests)
        .map(|_| {
            let part = if pick.random::<f64>() < often { often } else { 1.0 - often };
            now += exponential(mean / (2.0 * part));
            let next = (0..servers).min_by(|&a, &b| free[a].total_cmp(&free[b])).unwrap();
            let start = free[next].max(now);
            free[next] = start + 1.0;
            start - now
        })
        .collect();
    waits.sort_by(f64::total_cmp);
    waits
}

fn queue(servers: u32, load: f64, arrival_scv: f64) -> Queue {
    Queue { servers, rate: load * f64::from(servers), service: 1.0, arrival_scv, service_scv: 0.0 }
}

#[test]
fn erlang_c_has_its_textbook_values() {
    assert!((erlang_c(1, 0.7) - 0.7).abs() < 1e-12);
    // M/M/2 by hand: a²/(2 + a)·… = 1/3 at a = 1.
    assert!((erlang_c(2, 1.0) - 1.0 / 3.0).abs() < 1e-12);
    assert!(erlang_c(4, 4.0) >= 1.0);
}

#[test]
fn one_server_with_exponential_service_is_exact() {
    let queue = Queue { servers: 1, rate: 0.5, service: 1.0, arrival_scv: 1.0, service_scv: 1.0 };
    for seconds in [0.0, 1.0, 3.0, 8.0] {
        assert!((queue.wait_tail(seconds) - 0.5 * (-0.5 * seconds).exp()).abs() < 1e-9, "{seconds} s");
    }
    assert!((queue.mean_wait() - 1.0).abs() < 1e-12);
}

#[test]
fn the_mean_wait_at_constant_service_is_pollaczek_and_khinchines() {
    let waits = simulated_waits(1, 0.6, 1.0, 200_000);
    let mean = waits.iter().sum::<f64>() / waits.len() as f64;
    let closed = queue(1, 0.6, 1.0).mean_wait();
    assert!((closed - 0.75).abs() < 1e-12);
    assert!((mean - closed).abs() < 0.05, "{mean} simulated");
}

#[test]
fn quantiles_under_poisson_arrivals_are_near_the_simulated_ones() {
    for servers in [1, 2, 4, 8] {
        for load in [0.3, 0.5, 0.7, 0.85] {
            let waits = simulated_waits(servers as usize, load, 1.0, 120_000);
            for (percentile, below, above) in [(0.95, 0.3, 0.6), (0.975, 0.3, 0.7), (0.99, 0.4, 0.9)] {
                let simulated = waits[(waits.len() as f64 * percentile) as usize];
                let error = queue(servers, load, 1.0).wait_quantile(percentile) - simulated;
                assert!(
                    (-below..=above).contains(&error),
                    "{servers} servers, load {load}, {percentile}: {error} off {simulated}"
                );
            }
        }
    }
}

#[test]
fn bursts_are_never_taken_for_much_less_than_they_are() {
    for servers in [1, 2, 4, 8] {
        for load in [0.5, 0.7] {
            let waits = simulated_waits(servers as usize, load, 4.0, 120_000);
            let simulated = waits[(waits.len() as f64 * 0.95) as usize];
            let closed = queue(servers, load, 4.0).wait_quantile(0.95);
            assert!(
                closed >= simulated - 1.0 && closed <= 3.0 * simulated + 3.0,
                "{servers}, {load}: {closed} {simulated}"
            );
        }
    }
}

#[test]
fn a_queue_that_grows_has_no_quantile() {
    assert!(queue(2, 1.0, 1.0).wait_quantile(0.95).is_infinite());
    assert!(queue(2, 1.2, 1.0).mean_wait().is_infinite());
}

proptest! {
    #[test]
    fn the_tail_is_a_probability_that_falls_with_time_and_rises_with_load(
        servers in 1u32..40, load in 0.01f64..0.99, more in 1.01f64..1.5, arrival in 0.5f64..20.0,
        service in 0.0f64..3.0, seconds in 0.0f64..50.0,
    ) {
        let queue = Queue { servers, rate: load * f64::from(servers), service: 1.0, arrival_scv: arrival, service_scv: service };
        let tail = queue.wait_tail(seconds);
        prop_assert!((0.0..=1.0).contains(&tail));
        prop_assert!(queue.wait_tail(seconds + 0.1) <= tail + 1e-12);
        let busier = Queue { rate: queue.rate * more, ..queue };
        prop_assert!(busier.wait_tail(seconds) >= tail - 1e-6);
    }
}
