//! Who has how many replicas where the GPUs are not enough for all.
//!
//! Owns the division. What each function wants is [`super::Problem::cheapest`]'s to say; what is done about it, the
//! policy's.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use gpu_share::annotations::Priority;
use gpu_share::units::Area;

/// What one function wants of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What one replica costs.
    pub each: Area,
    /// Replicas that it is to have in any case, if there is room.
    pub least: u32,
    /// Replicas that bear its demand.
    pub wanted: u32,
    /// Its class.
    pub priority: Priority,
}

/// Replicas of each claim, as far as `pool` goes.
///
/// Of divisible replicas it is the division of the largest utility `Σ weight · wanted · each · ln(part of what is wanted)`
/// (proportional fairness: Kelly, "Charging and rate control for elastic traffic", 1997; Faro, arXiv 2409.19488, divides a
/// fixed pool of GPUs by a concave utility too). All of a class have the same part of what they want; one of 16 times
/// another's weight has 16 times the part, till it has all. What the first replica brings is without bound, so nobody
/// is left without one for another's second.
///
/// Replicas are given out one by one by what each brings for its cost, and the first that does not fit ends it, so less than
/// that one's cost is left over. The order does not depend on the pool, which gives what holds: never more than the pool,
/// never more than is wanted, never less of a larger pool, never less for a higher class. Where there is not even room for
/// the first replica of each, higher classes and then earlier claims have theirs.
pub fn divide(pool: Area, claims: &[Claim]) -> Vec<u32> {
    let mut parts = vec![0; claims.len()];
    let mut next: BinaryHeap<_> = claims
        .iter()
        .enumerate()
        .filter_map(|(index, claim)| claim.next(0).map(|turn| (turn, Reverse(index))))
        .collect();
    let mut left = pool;
    while let Some((_, Reverse(index))) = next.pop() {
        let claim = &claims[index];
        if claim.each > left {
            break;
        }
        left = left.saturating_sub(claim.each);
        parts[index] += 1;
        next.extend(claim.next(parts[index]).map(|turn| (turn, Reverse(index))));
    }
    parts
}

/// When a replica's turn is: the larger, the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    /// By what it brings for its cost. Positive floats are in the order of their bits.
    More(u64),
    /// One of those that it is to have in any case.
    Least(Priority),
    /// The first.
    First(Priority),
}

impl Claim {
    /// The turn of the replica after the first `given` ones, if it is wanted.
    fn next(&self, given: u32) -> Option<Turn> {
        if given >= self.wanted.max(self.least) {
            return None;
        }
        Some(match given {
            0 => Turn::First(self.priority),
            _ if given < self.least => Turn::Least(self.priority),
            // Growth of the utility by one replica, over what that costs.
            _ => Turn::More(
                (weight(self.priority) * f64::from(self.wanted) * (1.0 / f64::from(given)).ln_1p()).to_bits(),
            ),
        })
    }
}

/// A higher class has all that it wants before a lower one has more than a sixteenth of what it wants.
fn weight(priority: Priority) -> f64 {
    match priority {
        Priority::Low => 1.0,
        Priority::Normal => 16.0,
        Priority::High => 256.0,
    }
}

#[cfg(test)]
mod tests {
    use gpu_share::units::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn claim(percent: u64, wanted: u32, priority: Priority) -> Claim {
        Claim { each: gpus(percent), least: 1, wanted, priority }
    }

    /// So many hundredths of a GPU.
    fn gpus(percent: u64) -> Area {
        Area::of_memory(Bytes(percent), Bytes(100))
    }

    #[test]
    fn what_is_enough_for_all_is_what_all_want() {
        let claims = [claim(10, 4, Priority::Low), claim(30, 2, Priority::High)];
        assert_eq!(divide(gpus(100), &claims), [4, 2]);
    }

    #[test]
    fn equals_have_the_same_part_of_what_they_want() {
        let claims =
            [claim(10, 4, Priority::Normal), claim(10, 8, Priority::Normal), claim(20, 4, Priority::Normal)];
        assert_eq!(divide(gpus(100), &claims), [2, 4, 2]);
    }

    #[test]
    fn the_higher_class_has_all_before_the_lower_has_its_second() {
        let claims =
            [claim(10, 16, Priority::Low), claim(10, 9, Priority::High), claim(10, 6, Priority::Normal)];
        assert_eq!(divide(gpus(100), &claims), [1, 8, 1]);
        assert_eq!(divide(gpus(160), &claims), [1, 9, 6]);
        assert_eq!(divide(gpus(170), &claims), [2, 9, 6]);
    }

    #[test]
    fn without_room_for_one_of_each_the_higher_classes_are_first() {
        let claims =
            [claim(40, 1, Priority::Low), claim(40, 5, Priority::High), claim(40, 5, Priority::Normal)];
        assert_eq!(divide(gpus(100), &claims), [0, 1, 1]);
    }

    fn any_claim() -> impl Strategy<Value = Claim> {
        let priority = prop::sample::select(vec![Priority::Low, Priority::Normal, Priority::High]);
        (0u64..60, 0u32..4, 0u32..20, priority).prop_map(|(percent, least, wanted, priority)| Claim {
            each: gpus(percent),
            least,
            wanted,
            priority,
        })
    }

    fn cost(claims: &[Claim], parts: &[u32]) -> u64 {
        claims.iter().zip(parts).map(|(claim, &part)| claim.each.ppm() * u64::from(part)).sum()
    }

    proptest! {
        #[test]
        fn nobody_has_more_than_is_wanted_and_all_together_no_more_than_there_is(
            pool in 0u64..2_000, claims in prop::collection::vec(any_claim(), 0..12),
        ) {
            let parts = divide(gpus(pool), &claims);
            prop_assert!(cost(&claims, &parts) <= gpus(pool).ppm());
            for (claim, part) in claims.iter().zip(&parts) {
                prop_assert!(*part <= claim.wanted.max(claim.least));
            }
            // Less than one replica of somebody who wants more is left over.
            let largest = claims.iter().map(|claim| claim.each.ppm()).max().unwrap_or(0);
            let is_short = claims.iter().zip(&parts).any(|(claim, &part)| part < claim.wanted.max(claim.least));
            prop_assert!(!is_short || gpus(pool).ppm() - cost(&claims, &parts) < largest);
        }

        #[test]
        fn nobody_starves_while_another_has_two(
            pool in 0u64..2_000, claims in prop::collection::vec(any_claim(), 0..12),
        ) {
            let parts = divide(gpus(pool), &claims);
            let starves = claims.iter().zip(&parts).any(|(claim, &part)| part == 0 && claim.wanted.max(claim.least) > 0);
            prop_assert!(!starves || parts.iter().all(|&part| part <= 1), "{parts:?}");
        }

        #[test]
        fn a_larger_pool_gives_nobody_less(
            pool in 0u64..1_000, more in 0u64..1_000, claims in prop::collection::vec(any_claim(), 0..12),
        ) {
            let (before, after) = (divide(gpus(pool), &claims), divide(gpus(pool + more), &claims));
            prop_assert!(before.iter().zip(&after).all(|(before, after)| before <= after), "{before:?} {after:?}");
        }

        #[test]
        fn a_higher_class_gives_nobody_less_of_its_own(
            pool in 0u64..1_000, claims in prop::collection::vec(any_claim(), 1..12), which in 0usize..12,
        ) {
            let which = which % claims.len();
            let before = divide(gpus(pool), &claims)[which];
            let mut higher = claims.clone();
            higher[which].priority = Priority::High;
            prop_assert!(divide(gpus(pool), &higher)[which] >= before);
        }

        #[test]
        fn no_other_division_of_equally_large_replicas_has_a_larger_utility(
            pool in 3u32..12, wanted in prop::collection::vec((1u32..8, 0u8..3), 3),
        ) {
            let classes = [Priority::Low, Priority::Normal, Priority::High];
            let claims: Vec<_> =
                wanted.iter().map(|&(wanted, class)| claim(10, wanted, classes[usize::from(class)])).collect();
            let utility = |parts: &[u32]| -> f64 {
                let of = |(claim, &part): (&Claim, &u32)| {
                    let wanted = f64::from(claim.wanted);
                    weight(claim.priority) * wanted * (f64::from(part) / wanted).ln()
                };
                claims.iter().zip(parts).map(of).sum()
            };
            let found = utility(&divide(gpus(u64::from(10 * pool)), &claims));
            for a in 1..=claims[0].wanted {
                for b in 1..=claims[1].wanted {
                    for c in 1..=claims[2].wanted {
                        if a + b + c <= pool {
                            prop_assert!(utility(&[a, b, c]) <= found + 1e-9, "{a} {b} {c}");
                        }
                    }
                }
            }
        }
    }
}
