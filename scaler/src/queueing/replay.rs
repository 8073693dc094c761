//! How long requests that came of late would have waited at other servers: what no two moments say of bursts.
//!
//! Owns the replay. Exact for constant service: in a queue of n servers that is first come, first served, a request's
//! server is the one that the n-th request before it had.

use super::Slack;

/// Whether at most a part `most` of `arrivals` (rising, in seconds) are late at `servers` that take `service` seconds each,
/// when the times between arrivals are multiplied by `stretch`. It stops at the first that is too many.
#[allow(clippy::cast_precision_loss)] // A few thousand.
pub fn keeps(
    arrivals: &[f64],
    stretch: f64,
    servers: u32,
    service: f64,
    slacks: &[Slack],
    most: f64,
) -> bool {
    let most = most * arrivals.len() as f64;
    // Who may not wait at all is late already.
    let (none, some): (Vec<Slack>, Vec<Slack>) = slacks.iter().partition(|slack| slack.seconds < 0.0);
    let mut late = none.iter().map(|slack| slack.part).sum::<f64>() * arrivals.len() as f64;
    let shortest = some.iter().map(|slack| slack.seconds).fold(f64::INFINITY, f64::min);
    if late > most {
        return false;
    }
    let servers = usize::try_from(servers.max(1)).unwrap_or(usize::MAX);
    for first in 0..servers.min(arrivals.len()) {
        // What one server gets: it waits for as much as the work that came exceeds the time that passed, from where that was
        // least (Lindley's recursion, written as a running minimum: one step of the processor, where the recursion is three).
        let (mut served, mut least) = (0.0, f64::INFINITY);
        for arrival in arrivals[first..].iter().step_by(servers) {
            let ahead = served - stretch * (arrival - arrivals[first]);
            least = ahead.min(least);
            let wait = ahead - least;
            if wait > shortest {
                late += some.iter().filter(|slack| wait > slack.seconds).map(|slack| slack.part).sum::<f64>();
                if late > most {
                    return false;
                }
            }
            served += service;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Seconds that each request waits, by Lindley's recursion: the direct form.
    fn waits(arrivals: &[f64], stretch: f64, servers: usize, service: f64) -> Vec<f64> {
        let mut waits: Vec<f64> = Vec::new();
        for (index, &arrival) in arrivals.iter().enumerate() {
            let before = index.checked_sub(servers).map_or(0.0, |before| {
                // It began after its own wait, and took the service time.
                waits[before] + service - stretch * (arrival - arrivals[before])
            });
            waits.push(before.max(0.0));
        }
        waits
    }

    fn slack(seconds: f64) -> [Slack; 1] {
        [Slack { seconds, part: 1.0 }]
    }

    #[test]
    fn requests_wait_for_the_first_server_that_is_free() {
        let arrivals = [0.0, 0.1, 0.2, 5.0];
        let part = |stretch, servers, seconds, part| {
            assert!(keeps(&arrivals, stretch, servers, 1.0, &slack(seconds), part));
            assert!(part <= 0.0 || !keeps(&arrivals, stretch, servers, 1.0, &slack(seconds), part - 0.01));
        };
        // Of one server the four wait 0, 0.9, 1.8 and 0 s.
        part(1.0, 1, 0.0, 0.5);
        part(1.0, 1, 1.0, 0.25);
        part(1.0, 1, 2.0, 0.0);
        // Of two the third waits 0.8 s, or 0.9 if they come twice as fast.
        part(1.0, 2, 0.79, 0.25);
        part(1.0, 2, 0.81, 0.0);
        part(0.5, 2, 0.89, 0.25);
        part(0.5, 2, 0.91, 0.0);
        part(1.0, 1, -1.0, 1.0);
    }

    proptest! {
        #[test]
        fn more_servers_and_longer_gaps_never_make_a_request_wait_longer(
            gaps in prop::collection::vec(0.0f64..2.0, 1..80), servers in 1usize..6, service in 0.0f64..3.0,
            stretch in 0.1f64..2.0, more in 1.0f64..2.0,
        ) {
            let mut now = 0.0;
            let arrivals: Vec<f64> = gaps.iter().map(|gap| { now += gap; now }).collect();
            let waited = waits(&arrivals, stretch, servers, service);
            for other in [waits(&arrivals, stretch, servers + 1, service), waits(&arrivals, stretch * more, servers, service)] {
                prop_assert!(waited.iter().zip(&other).all(|(wait, other)| *other <= wait + 1e-9));
            }
        }

        #[test]
        fn as_many_are_late_as_by_the_direct_form(
            gaps in prop::collection::vec(0.0f64..2.0, 1..80), servers in 1u32..6, service in 0.0f64..3.0,
            stretch in 0.1f64..2.0, slacks in prop::collection::vec((-0.2f64..3.0, 0.0f64..1.0), 1..4), most in 0.0f64..1.0,
        ) {
            let mut now = 0.0;
            let arrivals: Vec<f64> = gaps.iter().map(|gap| { now += gap; now }).collect();
            let slacks: Vec<_> = slacks.into_iter().map(|(seconds, part)| Slack { seconds, part }).collect();
            let waited = waits(&arrivals, stretch, servers as usize, service);
            let beyond = |seconds| waited.iter().filter(|&&wait| seconds < 0.0 || wait > seconds).count() as f64;
            let late: f64 = slacks.iter().map(|slack| slack.part * beyond(slack.seconds)).sum::<f64>() / arrivals.len() as f64;
            // What is late by rounding alone may go either way.
            let near = |wait: &f64| slacks.iter().any(|slack| (wait - slack.seconds).abs() < 1e-9);
            prop_assume!(!waited.iter().any(near) && (late - most).abs() > 1e-9);
            prop_assert_eq!(keeps(&arrivals, stretch, servers, service, &slacks, most), late <= most);
        }
    }
}
