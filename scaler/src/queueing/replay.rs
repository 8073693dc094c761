//! How long requests that came of late would have waited at other servers: what no two moments say of bursts.
//!
//! Owns the replay. Exact for constant service: in a queue of n servers that is first come, first served, a request's
//! server is the one that the n-th request before it had.

/// Seconds that each of `arrivals` (rising, in seconds) waits for one of `servers` that take `service` seconds each, when
/// the times between arrivals are multiplied by `stretch`.
pub fn waits(arrivals: &[f64], stretch: f64, servers: u32, service: f64) -> Vec<f64> {
    let servers = usize::try_from(servers.max(1)).unwrap_or(usize::MAX);
    let mut waits: Vec<f64> = Vec::with_capacity(arrivals.len());
    for (index, &arrival) in arrivals.iter().enumerate() {
        let before = index.checked_sub(servers).map_or(0.0, |before| {
            // It began after its own wait, and took the service time.
            waits[before] + service - stretch * (arrival - arrivals[before])
        });
        waits.push(before.max(0.0));
    }
    waits
}

/// Part of `waits` that are longer than `seconds`: all for less than none.
#[allow(clippy::cast_precision_loss)] // A few thousand.
pub fn beyond(waits: &[f64], seconds: f64) -> f64 {
    if seconds < 0.0 {
        return 1.0;
    }
    waits.iter().filter(|&&wait| wait > seconds).count() as f64 / waits.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_wait_for_the_first_server_that_is_free() {
        let arrivals = [0.0, 0.1, 0.2, 5.0];
        let close = |found: Vec<f64>, expected: [f64; 4]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}");
        };
        close(waits(&arrivals, 1.0, 1, 1.0), [0.0, 0.9, 1.8, 0.0]);
        close(waits(&arrivals, 1.0, 2, 1.0), [0.0, 0.0, 0.8, 0.0]);
        close(waits(&arrivals, 0.5, 2, 1.0), [0.0, 0.0, 0.9, 0.0]);
        assert!((beyond(&waits(&arrivals, 1.0, 1, 1.0), 0.9 - 1e-6) - 0.5).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn more_servers_and_longer_gaps_never_make_a_request_wait_longer(
            gaps in prop::collection::vec(0.0f64..2.0, 1..80), servers in 1u32..6, service in 0.0f64..3.0,
            stretch in 0.1f64..2.0, more in 1.0f64..2.0,
        ) {
            let mut now = 0.0;
            let arrivals: Vec<f64> = gaps.iter().map(|gap| { now += gap; now }).collect();
            let waited = waits(&arrivals, stretch, servers, service);
            for other in [waits(&arrivals, stretch, servers + 1, service), waits(&arrivals, stretch * more, servers, service)] {
                prop_assert!(waited.iter().zip(&other).all(|(wait, other)| *other <= wait + 1e-9));
            }
        }
    }
}
