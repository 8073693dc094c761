//! Units as types: no bare number crosses a crate's border.
//!
//! Parts of a whole are integers (percent for SM shares, parts per million for time), so that sums over many
//! bindings are exact and two programs that add them up agree.

use core::fmt;
use core::iter::Sum;
use core::ops::{Add, AddAssign, Sub};
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::invalid::Invalid;

/// Part of the streaming multiprocessors of one GPU, 1 to 100 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct SmShare(u8);

impl SmShare {
    /// All of the GPU's streaming multiprocessors.
    pub const WHOLE: Self = Self(100);

    /// A share of `percent` of the streaming multiprocessors.
    pub fn from_percent(percent: u8) -> Result<Self, Invalid> {
        if (1..=100).contains(&percent) {
            Ok(Self(percent))
        } else {
            Err(Invalid::new("SM share", percent, "a whole number from 1 to 100 (percent)"))
        }
    }

    /// Percent, 1 to 100.
    pub fn percent(self) -> u8 {
        self.0
    }

    /// As a fraction in (0, 1].
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl TryFrom<u8> for SmShare {
    type Error = Invalid;

    fn try_from(percent: u8) -> Result<Self, Invalid> {
        Self::from_percent(percent)
    }
}

impl From<SmShare> for u8 {
    fn from(share: SmShare) -> Self {
        share.0
    }
}

impl fmt::Display for SmShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.0)
    }
}

/// Part of a GPU's time, 0 to 100 %, kept in parts per million.
///
/// Zero is a quota too: a parked binding has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Quota(u32);

impl Quota {
    /// No time at all.
    pub const ZERO: Self = Self(0);
    /// All of the time.
    pub const WHOLE: Self = Self(1_000_000);

    /// A quota of `percent` of the time, 0 to 100.
    pub fn from_percent(percent: u8) -> Result<Self, Invalid> {
        Self::from_ppm(u32::from(percent) * 10_000)
            .map_err(|_| Invalid::new("quota", percent, "a whole number from 0 to 100 (percent)"))
    }

    /// A quota in parts per million of the time, 0 to 1,000,000.
    pub fn from_ppm(ppm: u32) -> Result<Self, Invalid> {
        if ppm <= Self::WHOLE.0 {
            Ok(Self(ppm))
        } else {
            Err(Invalid::new("quota", ppm, "0 to 1000000 (parts per million)"))
        }
    }

    /// The nearest quota to `fraction`; what lies outside 0 to 1 is moved to the end it passed.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped to 0..=1e6 just before.
    pub fn saturating_from_fraction(fraction: f64) -> Self {
        Self(nearest(fraction.clamp(0.0, 1.0) * 1e6) as u32)
    }

    /// Parts per million, 0 to 1,000,000.
    pub fn ppm(self) -> u32 {
        self.0
    }

    /// As a fraction in [0, 1].
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 1e6
    }

    /// Percent, 0 to 100.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 1e4
    }

    /// Whether this is no time at all.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// What is left after taking `other` away, at least zero.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl TryFrom<u32> for Quota {
    type Error = Invalid;

    fn try_from(ppm: u32) -> Result<Self, Invalid> {
        Self::from_ppm(ppm)
    }
}

impl From<Quota> for u32 {
    fn from(quota: Quota) -> Self {
        quota.0
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.percent())
    }
}

/// Part of one GPU in parts per million, or a sum of such parts over several GPUs.
///
/// The unit of cost: `Area::GPU` is one whole GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Area(u64);

impl Area {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// One whole GPU.
    pub const GPU: Self = Self(1_000_000);

    /// The area that `quota` of the time of `sm` covers, rounded up.
    pub fn of_time(sm: SmShare, quota: Quota) -> Self {
        Self((u64::from(quota.ppm()) * u64::from(sm.percent())).div_ceil(100))
    }

    /// The part of `whole` that `part` is, rounded up. Nothing of nothing is nothing.
    #[allow(clippy::cast_possible_truncation)] // A card's memory is far below 2^64 / 10^6 bytes times the card.
    pub fn of_memory(part: Bytes, whole: Bytes) -> Self {
        if part.0 == 0 {
            return Self::ZERO;
        }
        Self((u128::from(part.0) * 1_000_000).div_ceil(u128::from(whole.0.max(1))) as u64)
    }

    /// In GPUs.
    #[allow(clippy::cast_precision_loss)] // Exact up to 2^53 millionths.
    pub fn gpus(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// Parts per million of a GPU.
    pub fn ppm(self) -> u64 {
        self.0
    }

    /// The whole number of `per_gpu`-ths of a GPU that covers this area (the kubelet's units).
    #[allow(clippy::cast_possible_truncation)] // At most per_gpu for one binding, far below 2^32 for any sum.
    pub fn units(self, per_gpu: Units) -> Units {
        Units((self.0 * u64::from(per_gpu.0)).div_ceil(Self::GPU.0) as u32)
    }

    /// The whole number of `per_gpu`-ths of a GPU that this area covers.
    #[allow(clippy::cast_possible_truncation)] // At most what `units` gives.
    pub fn whole_units(self, per_gpu: Units) -> Units {
        Units((self.0 * u64::from(per_gpu.0) / Self::GPU.0) as u32)
    }

    /// What is left after taking `other` away, at least nothing.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Add for Area {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Sum for Area {
    fn sum<I: Iterator<Item = Self>>(areas: I) -> Self {
        areas.fold(Self::ZERO, Add::add)
    }
}

/// What the kubelet counts: equal parts of a GPU, 20 to the GPU unless configured otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Units(pub u32);

impl Units {
    /// Units that one GPU is divided into by default.
    pub const PER_GPU: Self = Self(20);
}

/// An amount of memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Bytes(pub u64);

impl Bytes {
    /// No memory.
    pub const ZERO: Self = Self(0);

    /// `n` mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` gibibytes.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// What is left after taking `other` away, at least zero.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Add for Bytes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for Bytes {
    #[allow(clippy::cast_precision_loss)] // For people; a rounded figure is meant.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n >= 1 << 30 => write!(f, "{:.1} GiB", n as f64 / f64::from(1 << 30)),
            n if n >= 1 << 20 => write!(f, "{:.0} MiB", n as f64 / f64::from(1 << 20)),
            n => write!(f, "{n} B"),
        }
    }
}

/// A span of time, or a point on the monotonic clock, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Nanos(pub u64);

impl Nanos {
    /// No time; the clock's origin.
    pub const ZERO: Self = Self(0);

    /// `n` microseconds.
    pub const fn from_micros(n: u64) -> Self {
        Self(n * 1_000)
    }

    /// `n` milliseconds.
    pub const fn from_millis(n: u64) -> Self {
        Self(n * 1_000_000)
    }

    /// `n` seconds.
    pub const fn from_secs(n: u64) -> Self {
        Self(n * 1_000_000_000)
    }

    /// `seconds` to the nearest nanosecond; what is negative or not a number is zero.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Float casts saturate, and NaN is 0.
    pub fn from_secs_f64(seconds: f64) -> Self {
        Self(nearest(seconds * 1e9))
    }

    /// In seconds.
    #[allow(clippy::cast_precision_loss)] // Exact to a nanosecond for 100 days.
    pub fn secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// In milliseconds.
    pub fn millis_f64(self) -> f64 {
        self.secs_f64() * 1e3
    }

    /// From `earlier` to this point, zero if it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

impl Add for Nanos {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Nanos {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Nanos {
    type Output = Self;

    /// Saturates at zero, like [`Nanos::since`].
    fn sub(self, other: Self) -> Self {
        self.since(other)
    }
}

impl Sum for Nanos {
    fn sum<I: Iterator<Item = Self>>(spans: I) -> Self {
        spans.fold(Self::ZERO, Add::add)
    }
}

impl From<Duration> for Nanos {
    fn from(span: Duration) -> Self {
        Self(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl From<Nanos> for Duration {
    fn from(span: Nanos) -> Self {
        Self::from_nanos(span.0)
    }
}

/// The nearest whole number, of two the larger; what is negative or not a number is 0, what is too large the largest there is.
///
/// What `f64::round` does, without the call into the math library that it is where a processor may lack the instruction.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Float casts saturate, and NaN is 0.
#[allow(clippy::cast_precision_loss)] // Back again: it is the whole part of a float, so it is one.
fn nearest(value: f64) -> u64 {
    let below = value as u64;
    below.saturating_add(u64::from(value - below as f64 >= 0.5))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_nearest_whole_number_is_the_standard_librarys(bits in any::<u64>(), small in -1e3f64..1e18, half in 0u64..1 << 51) {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // As it is meant.
            let (half, nearest_of) = (half as f64 + 0.5, |value: f64| value.round() as u64);
            for value in [f64::from_bits(bits), small, half, half.next_down()] {
                prop_assert_eq!(nearest(value), nearest_of(value), "{}", value);
            }
        }
    }

    #[test]
    fn units_are_rounded_up() {
        let five_percent = Area::of_time(SmShare(50), Quota(100_000));
        assert_eq!(five_percent.units(Units::PER_GPU), Units(1));
        let a_little_more = Area::of_time(SmShare(51), Quota(100_000));
        assert_eq!(a_little_more.units(Units::PER_GPU), Units(2));
    }

    #[test]
    fn a_share_outside_its_range_is_refused_with_what_is_allowed() {
        let error = SmShare::from_percent(101).unwrap_err().to_string();
        assert_eq!(error, "SM share is \"101\", allowed is a whole number from 1 to 100 (percent)");
        assert!(Quota::from_ppm(1_000_001).is_err());
    }

    #[test]
    fn an_area_of_memory_on_a_card_of_unknown_size_is_no_small_share() {
        assert!(Area::of_memory(Bytes::mib(1), Bytes::ZERO) > Area::GPU);
    }
}
