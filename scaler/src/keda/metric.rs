//! A need of replicas as the value of a metric: hundredths of a replica, of which each replica is to have a hundred.
//!
//! Kubernetes' horizontal pod autoscaler takes such a metric (type `AverageValue`) to ⌈value / target⌉ replicas, unless the
//! value is within a tenth of target times replicas. The target never changes, so it works with every version of KEDA and
//! however the quota of a replica changes: only the value does.

/// Name of the metric; KEDA puts `s<index>-` before it.
pub const NAME: &str = "gpufn-demand";

/// What each replica is to have of it.
pub const TARGET: f64 = 100.0;

/// Deviations that are not acted on, as a part (Kubernetes' `--horizontal-pod-autoscaler-tolerance`, by default).
const TOLERANCE: f64 = 0.1;

/// Largest value that is told: more replicas than any cluster has.
const MOST: f64 = 1e7;

/// The value for `equivalents` replicas where there are `present` ones: finite, not negative, in thousandths as KEDA sends
/// it on.
///
/// Where more are needed than there are, requests are late already, or soon: then the value leaves the tolerance also if the
/// one replica that is missing is less than a tenth of them.
pub fn value(equivalents: f64, present: u32) -> f64 {
    if equivalents.is_nan() || equivalents <= 0.0 {
        return 0.0;
    }
    let present = f64::from(present);
    let least = if equivalents > present { TARGET * present * (1.0 + TOLERANCE) + 1.0 } else { 0.0 };
    let value = (TARGET * equivalents).max(if present > 0.0 { least } else { 0.0 });
    ((value * 1e3).ceil() / 1e3).min(MOST)
}

/// The same as a whole number, for versions of KEDA that know no other: never less, so zero only where the value is.
#[allow(clippy::cast_possible_truncation)] // At most MOST.
pub fn whole(value: f64) -> i64 {
    value.ceil() as i64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::hpa::desired;
    use super::*;

    #[test]
    fn the_name_is_short_enough_with_the_index_before_it() {
        assert!(NAME.len() + "s999-".len() <= 63);
    }

    #[test]
    fn at_eleven_replicas_a_need_of_twelve_is_acted_on() {
        assert_eq!(desired(1_200.0, TARGET, 11), 11, "told as it is, it is within the tolerance");
        assert!(desired(value(12.0, 11), TARGET, 11) >= 12);
    }

    #[test]
    fn nothing_is_needed_is_zero_in_both_fields() {
        for nothing in [0.0, -0.0, -3.0, f64::NAN, f64::NEG_INFINITY] {
            assert_eq!((value(nothing, 3), whole(value(nothing, 3))), (0.0, 0));
        }
    }

    proptest! {
        #[test]
        fn a_value_is_finite_and_not_negative(bits in any::<u64>(), present in any::<u32>()) {
            let value = value(f64::from_bits(bits), present);
            prop_assert!(value.is_finite() && value >= 0.0);
            prop_assert!(whole(value) >= 0 && (whole(value) == 0) == (value == 0.0));
        }

        #[test]
        fn the_autoscaler_never_goes_below_what_is_needed(need in 0.01f64..500.0, present in 1u32..500) {
            let next = desired(value(need, present), TARGET, present);
            prop_assert!(f64::from(next) >= need.ceil().min(f64::from(present)), "{next}");
            prop_assert!(need <= f64::from(present) || f64::from(next) >= need, "{next}");
        }
    }
}
