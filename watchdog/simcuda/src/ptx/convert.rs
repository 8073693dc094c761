//! Conversions between types (`cvt`), and the short floating-point types.

use super::floats::Float;
use super::types::{Rounding, Type};

/// The value of half-precision bits.
pub(super) fn f16_value(bits: u16) -> f64 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    match exponent {
        0 => sign * fraction * 2.0_f64.powi(-24),
        0x1f if fraction == 0.0 => sign * f64::INFINITY,
        0x1f => f64::NAN,
        _ => sign * (1024.0 + fraction) * 2.0_f64.powi(exponent - 25),
    }
}

/// The nearest half-precision number, ties to even.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Bounded by the comparisons before.
pub(super) fn f16_from(value: f64) -> u16 {
    let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
    let magnitude = value.abs();
    if value.is_nan() {
        return 0x7fff;
    }
    // 65520 lies half way between the largest number and what would come after it.
    if magnitude >= 65_520.0 {
        return sign | 0x7c00;
    }
    // The distance between neighbours: 2^(e - 10) for numbers from 2^e on, and never less than 2^-24.
    let exponent = if magnitude < 2.0_f64.powi(-14) { -14 } else { exponent_of(magnitude) };
    let units = (magnitude / 2.0_f64.powi(exponent - 10)).round_ties_even();
    // A carry into the next exponent gives the right bits by itself.
    let biased = (exponent + 14) as u32 * 1024 + units as u32;
    sign | biased as u16
}

/// The exponent of a normal number.
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // Eleven bits.
fn exponent_of(magnitude: f64) -> i32 {
    (magnitude.to_bits() >> 52 & 0x7ff) as i32 - 1023
}

pub(super) fn bf16_value(bits: u16) -> f64 {
    f32::from_bits(u32::from(bits) << 16).into()
}

/// The nearest number with the upper half of single precision, ties to even.
#[allow(clippy::cast_possible_truncation)] // The upper half is what is wanted.
pub(super) fn bf16_from(value: f64) -> u16 {
    let single = value as f32;
    if single.is_nan() {
        return 0x7fff;
    }
    let bits = single.to_bits();
    let odd = bits >> 16 & 1;
    ((bits + 0x7fff + odd) >> 16) as u16
}

/// The number in `bits`, for any floating-point type.
fn float_value(bits: u64, kind: Type) -> f64 {
    match kind {
        Type::F16 => super::floats::Half::of(bits).value(),
        Type::Bf16 => super::floats::Brain::of(bits).value(),
        Type::F32 => f32::of(bits).value(),
        _ => f64::of(bits),
    }
}

fn float_bits(value: f64, kind: Type, rounding: Rounding) -> u64 {
    match kind {
        Type::F16 => f16_from(value).into(),
        Type::Bf16 => bf16_from(value).into(),
        Type::F32 => single_bits(value, rounding),
        _ => value.to_bits(),
    }
}

fn single_bits(value: f64, rounding: Rounding) -> u64 {
    let nearest = <f32 as Float>::nearest(value);
    let difference = value - f64::from(nearest);
    let down =
        difference < 0.0 && (rounding == Rounding::Down || rounding == Rounding::Zero && nearest > 0.0);
    let up = difference > 0.0 && (rounding == Rounding::Up || rounding == Rounding::Zero && nearest < 0.0);
    match (down, up) {
        (true, _) => nearest.next_down().bits(),
        (_, true) => nearest.next_up().bits(),
        _ => nearest.bits(),
    }
}

fn whole(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

/// The integer in `bits`.
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // The low bits hold the value.
fn integer_value(bits: u64, kind: Type) -> i128 {
    match kind {
        Type::U8 => (bits as u8).into(),
        Type::U16 => (bits as u16).into(),
        Type::U32 => (bits as u32).into(),
        Type::S8 => (bits as i8).into(),
        Type::S16 => (bits as i16).into(),
        Type::S32 => (bits as i32).into(),
        Type::S64 => (bits as i64).into(),
        _ => bits.into(),
    }
}

/// The lowest and the highest integer of a type.
fn range(kind: Type) -> (i128, i128) {
    let bits = kind.size() * 8;
    if kind.is_signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

/// The low bits of an integer, for a register: signed ones fill all 64 with their sign.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // The low bits are what is wanted.
fn integer_bits(value: i128, kind: Type) -> u64 {
    let bits = value as u64;
    integer_value(bits, kind) as u64
}

/// How a conversion is to be done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conversion {
    pub(super) from: Type,
    pub(super) to: Type,
    /// Rounds to a whole number.
    pub(super) whole: bool,
    pub(super) rounding: Rounding,
    pub(super) saturate: bool,
}

impl Conversion {
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)] // Out of range, they give the nearest
    // number, as PTX wants it; what is no number becomes zero.
    pub(super) fn apply(self, bits: u64) -> u64 {
        let Self { from, to, rounding, saturate, .. } = self;
        match (from.is_float(), to.is_float()) {
            (true, true) => self.between_floats(bits),
            (true, false) => {
                let (low, high) = range(to);
                let value = whole(float_value(bits, from), rounding) as i128;
                integer_bits(value.clamp(low, high), to)
            }
            (false, true) => {
                let value = integer_value(bits, from);
                // A 64-bit integer may not fit 53 digits: it is rounded once, straight to the type.
                if to == Type::F32 && rounding == Rounding::Nearest {
                    return (value as f32).bits();
                }
                float_bits(value as f64, to, rounding)
            }
            (false, false) => {
                let (low, high) = range(to);
                let value = integer_value(bits, from);
                integer_bits(if saturate { value.clamp(low, high) } else { value }, to)
            }
        }
    }

    fn between_floats(self, bits: u64) -> u64 {
        let Self { from, to, rounding, saturate, .. } = self;
        let mut value = float_value(bits, from);
        if self.whole {
            value = whole(value, rounding);
        }
        if saturate {
            value = if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) };
        }
        float_bits(value, to, rounding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn convert(from: Type, to: Type, rounding: Rounding, bits: u64) -> u64 {
        Conversion { from, to, whole: false, rounding, saturate: false }.apply(bits)
    }

    #[test]
    fn out_of_range_gives_the_nearest_integer_and_nan_gives_zero() {
        let to = |value: f32, kind| convert(Type::F32, kind, Rounding::Zero, value.bits());
        assert_eq!(to(-1.5, Type::U32), 0);
        assert_eq!(to(1e20, Type::U32), u64::from(u32::MAX));
        assert_eq!(to(f32::NAN, Type::S32), 0);
        assert_eq!(to(-2.9, Type::S32), (-2_i64).cast_unsigned());
        assert_eq!(to(300.0, Type::U8), 255);
    }

    #[test]
    fn integers_are_cut_or_extended_by_their_sign() {
        assert_eq!(convert(Type::S8, Type::S32, Rounding::Nearest, 0xff), u64::MAX);
        assert_eq!(convert(Type::U8, Type::U64, Rounding::Nearest, 0x1ff), 0xff);
        assert_eq!(convert(Type::U32, Type::F32, Rounding::Nearest, 7), 7.0_f32.bits());
    }

    #[test]
    fn half_precision_has_its_known_values() {
        for (bits, value) in [(0x3c00, 1.0), (0x7bff, 65504.0), (1, 2.0_f64.powi(-24)), (0xc000, -2.0)] {
            assert!((f16_value(bits) - value).abs() < f64::EPSILON * value.abs());
            assert_eq!(f16_from(value), bits);
        }
        assert_eq!(f16_from(1e9), 0x7c00);
        assert_eq!(f16_from(f64::from(0.1_f32)), 0x2e66);
        assert_eq!(bf16_from(3.140_625), 0x4049);
    }

    proptest! {
        #[test]
        fn every_short_number_comes_back(bits in any::<u16>()) {
            let value = f16_value(bits);
            if !value.is_nan() {
                prop_assert_eq!(f16_from(value), bits);
            }
            let value = bf16_value(bits);
            if !value.is_nan() {
                prop_assert_eq!(bf16_from(value), bits);
            }
        }
    }
}
