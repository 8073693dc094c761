//! Arithmetic on floating-point numbers. What the hardware approximates is computed exactly here, and numbers too
//! small for a normal representation are kept (`.ftz` is ignored).

use super::convert::{bf16_from, bf16_value, f16_from, f16_value};
use super::instruction::Apply;
use super::types::{Rounding, Type};

/// A floating-point number. All are computed with 64 bits and rounded: for up to 32 bits, that rounds sums, products,
/// quotients and roots correctly, since 53 digits are more than twice 24 and two.
pub(super) trait Float: Copy {
    fn of(bits: u64) -> Self;
    fn bits(self) -> u64;
    fn value(self) -> f64;
    fn nearest(value: f64) -> Self;
    fn fused(self, b: Self, c: Self) -> Self {
        Self::nearest(self.value().mul_add(b.value(), c.value()))
    }
}

/// IEEE half precision, by its bits.
#[derive(Clone, Copy)]
pub(super) struct Half(u16);

/// The upper half of single precision, by its bits.
#[derive(Clone, Copy)]
pub(super) struct Brain(u16);

#[allow(clippy::cast_possible_truncation)] // The low bits hold the value.
impl Float for f32 {
    fn of(bits: u64) -> Self {
        Self::from_bits(bits as u32)
    }
    fn bits(self) -> u64 {
        self.to_bits().into()
    }
    fn value(self) -> f64 {
        self.into()
    }
    fn nearest(value: f64) -> Self {
        value as Self
    }
    fn fused(self, b: Self, c: Self) -> Self {
        self.mul_add(b, c)
    }
}

impl Float for f64 {
    fn of(bits: u64) -> Self {
        Self::from_bits(bits)
    }
    fn bits(self) -> u64 {
        self.to_bits()
    }
    fn value(self) -> f64 {
        self
    }
    fn nearest(value: f64) -> Self {
        value
    }
}

macro_rules! short {
    ($type:ident, $value:ident, $round:ident) => {
        #[allow(clippy::cast_possible_truncation)] // The low bits hold the value.
        impl Float for $type {
            fn of(bits: u64) -> Self {
                Self(bits as u16)
            }
            fn bits(self) -> u64 {
                self.0.into()
            }
            fn value(self) -> f64 {
                $value(self.0)
            }
            fn nearest(value: f64) -> Self {
                Self($round(value))
            }
        }
    };
}

short!(Half, f16_value, f16_from);
short!(Brain, bf16_value, bf16_from);

macro_rules! by_type {
    ($kind:expr, $function:ident) => {
        match $kind {
            Type::F16 => Some($function::<Half> as Apply),
            Type::Bf16 => Some($function::<Brain> as Apply),
            Type::F32 => Some($function::<f32> as Apply),
            Type::F64 => Some($function::<f64> as Apply),
            _ => None,
        }
    };
}

/// The function that an opcode means for a type; the result is rounded to the nearest number.
pub(super) fn function(opcode: &str, kind: Type) -> Option<Apply> {
    match opcode {
        "add" => by_type!(kind, add),
        "sub" => by_type!(kind, sub),
        "mul" => by_type!(kind, mul),
        "fma" | "mad" => by_type!(kind, fma),
        "fma.relu" => by_type!(kind, fma_relu),
        "div" => by_type!(kind, div),
        "rcp" => by_type!(kind, rcp),
        "sqrt" => by_type!(kind, sqrt),
        "rsqrt" => by_type!(kind, rsqrt),
        "sin" => by_type!(kind, sin),
        "cos" => by_type!(kind, cos),
        "lg2" => by_type!(kind, lg2),
        "ex2" => by_type!(kind, ex2),
        "tanh" => by_type!(kind, tanh),
        "neg" => by_type!(kind, neg),
        "abs" => by_type!(kind, abs),
        "min" => by_type!(kind, min),
        "max" => by_type!(kind, max),
        "min.NaN" => by_type!(kind, min_or_nan),
        "max.NaN" => by_type!(kind, max_or_nan),
        "copysign" => by_type!(kind, copysign),
        "saturate" => by_type!(kind, saturate),
        "testp.finite" => by_type!(kind, is_finite),
        "testp.infinite" => by_type!(kind, is_infinite),
        "testp.number" => by_type!(kind, is_number),
        "testp.notanumber" => by_type!(kind, is_nan),
        "testp.normal" => by_type!(kind, is_normal),
        "testp.subnormal" => by_type!(kind, is_subnormal),
        _ => None,
    }
}

/// The function of an opcode that rounds in one direction; not all types and opcodes have one here.
pub(super) fn directed(opcode: &str, kind: Type, rounding: Rounding) -> Option<Apply> {
    macro_rules! each {
        ($function:ident) => {
            match rounding {
                Rounding::Nearest => return function(opcode, kind),
                Rounding::Zero => $function::<ZERO>,
                Rounding::Down => $function::<DOWN>,
                Rounding::Up => $function::<UP>,
            }
        };
    }
    Some(match (opcode, kind) {
        ("add", Type::F32) => each!(add_f32),
        ("sub", Type::F32) => each!(sub_f32),
        ("mul", Type::F32) => each!(mul_f32),
        ("fma" | "mad", Type::F32) => each!(fma_f32),
        ("div", Type::F32) => each!(div_f32),
        ("rcp", Type::F32) => each!(rcp_f32),
        ("sqrt", Type::F32) => each!(sqrt_f32),
        ("add", Type::F64) => each!(add_f64),
        ("sub", Type::F64) => each!(sub_f64),
        ("mul", Type::F64) => each!(mul_f64),
        _ => return function(opcode, kind).filter(|_| rounding == Rounding::Nearest),
    })
}

fn add<T: Float>([a, b, ..]: [u64; 4]) -> u64 {
    T::nearest(T::of(a).value() + T::of(b).value()).bits()
}

fn sub<T: Float>([a, b, ..]: [u64; 4]) -> u64 {
    T::nearest(T::of(a).value() - T::of(b).value()).bits()
}

fn mul<T: Float>([a, b, ..]: [u64; 4]) -> u64 {
    T::nearest(T::of(a).value() * T::of(b).value()).bits()
}

fn fma<T: Float>([a, b, c, _]: [u64; 4]) -> u64 {
    T::of(a).fused(T::of(b), T::of(c)).bits()
}

fn fma_relu<T: Float>(values: [u64; 4]) -> u64 {
    let result = T::of(fma::<T>(values));
    if result.value() < 0.0 { T::nearest(0.0).bits() } else { result.bits() }
}

fn div<T: Float>([a, b, ..]: [u64; 4]) -> u64 {
    T::nearest(T::of(a).value() / T::of(b).value()).bits()
}

fn rcp<T: Float>([a, ..]: [u64; 4]) -> u64 {
    T::nearest(1.0 / T::of(a).value()).bits()
}

fn sqrt<T: Float>([a, ..]: [u64; 4]) -> u64 {
    T::nearest(T::of(a).value().sqrt()).bits()
}

fn rsqrt<T: Float>([a, ..]: [u64; 4]) -> u64 {
    T::nearest(1.0 / T::of(a).value().sqrt()).bits()
}

fn sin<T: Float>([a, ..]: [u64; 4]) -> u64 {
    T::nearest(T::of(a).value().sin()).bits()
}

fn cos<T: Float>([a, ..]: [u64; 4]) -> u64 {
    T::nearest(T::of(a).value().cos()).bits()
}

fn lg2<T: Float>([a, ..]: [u64; 4]) -> u64 {
    T::nearest(T::of(a).value().log2()).bits()
}

fn ex2<T: Float>([a, ..]: [u64; 4]) -> u64 {
    T::nearest(T::of(a).value().exp2()).bits()
}

fn tanh<T: Float>([a, ..]: [u64; 4]) -> u64 {
    T::nearest(T::of(a).value().tanh()).bits()
}

fn neg<T: Float>([a, ..]: [u64; 4]) -> u64 {
    T::nearest(-T::of(a).value()).bits()
}

fn abs<T: Float>([a, ..]: [u64; 4]) -> u64 {
    T::nearest(T::of(a).value().abs()).bits()
}

fn min<T: Float>([a, b, ..]: [u64; 4]) -> u64 {
    T::nearest(T::of(a).value().min(T::of(b).value())).bits()
}

fn max<T: Float>([a, b, ..]: [u64; 4]) -> u64 {
    T::nearest(T::of(a).value().max(T::of(b).value())).bits()
}

fn either_nan<T: Float>(a: u64, b: u64) -> bool {
    T::of(a).value().is_nan() || T::of(b).value().is_nan()
}

fn min_or_nan<T: Float>([a, b, ..]: [u64; 4]) -> u64 {
    if either_nan::<T>(a, b) { T::nearest(f64::NAN).bits() } else { min::<T>([a, b, 0, 0]) }
}

fn max_or_nan<T: Float>([a, b, ..]: [u64; 4]) -> u64 {
    if either_nan::<T>(a, b) { T::nearest(f64::NAN).bits() } else { max::<T>([a, b, 0, 0]) }
}

/// The second operand with the sign of the first.
fn copysign<T: Float>([a, b, ..]: [u64; 4]) -> u64 {
    T::nearest(T::of(b).value().copysign(T::of(a).value())).bits()
}

/// Between 0 and 1; what is no number becomes 0.
fn saturate<T: Float>([a, ..]: [u64; 4]) -> u64 {
    let value = T::of(a).value();
    T::nearest(if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) }).bits()
}

fn is_finite<T: Float>([a, ..]: [u64; 4]) -> u64 {
    T::of(a).value().is_finite().into()
}

fn is_infinite<T: Float>([a, ..]: [u64; 4]) -> u64 {
    T::of(a).value().is_infinite().into()
}

fn is_number<T: Float>([a, ..]: [u64; 4]) -> u64 {
    (!T::of(a).value().is_nan()).into()
}

fn is_nan<T: Float>([a, ..]: [u64; 4]) -> u64 {
    T::of(a).value().is_nan().into()
}

/// The exponent bits tell, in the representation of the type itself.
fn exponent_is_zero<T: Float>(bits: u64) -> bool {
    let value = T::of(bits).value();
    let smallest = match size_of::<T>() {
        8 => f64::MIN_POSITIVE,
        4 => f64::from(f32::MIN_POSITIVE),
        // Half precision; the other short type has the exponents of single precision.
        _ if T::nearest(1e6).value().is_infinite() => 2.0_f64.powi(-14),
        _ => f64::from(f32::MIN_POSITIVE),
    };
    value.abs() < smallest
}

fn is_normal<T: Float>([a, ..]: [u64; 4]) -> u64 {
    let value = T::of(a).value();
    (value.is_finite() && value != 0.0 && !exponent_is_zero::<T>(a)).into()
}

fn is_subnormal<T: Float>([a, ..]: [u64; 4]) -> u64 {
    (T::of(a).value() != 0.0 && exponent_is_zero::<T>(a)).into()
}

const ZERO: u8 = 0;
const DOWN: u8 = 1;
const UP: u8 = 2;

/// Moves `nearest` by one step if it lies on the wrong side of the true value, which is `difference` above it.
fn step<const MODE: u8>(nearest: f32, difference: f64) -> u64 {
    let (too_high, too_low) = (difference < 0.0, difference > 0.0);
    let toward_zero = MODE == ZERO;
    let down = too_high && (MODE == DOWN || toward_zero && nearest > 0.0);
    let up = too_low && (MODE == UP || toward_zero && nearest < 0.0);
    let result = if down {
        nearest.next_down()
    } else if up {
        nearest.next_up()
    } else {
        nearest
    };
    result.bits()
}

/// Rounds `value + error`, where `error` is less than half a digit of `value`.
fn settle<const MODE: u8>(value: f64, error: f64) -> u64 {
    let nearest = <f32 as Float>::nearest(value);
    let difference = value - f64::from(nearest);
    step::<MODE>(nearest, if difference == 0.0 { error } else { difference })
}

/// What the sum of two numbers loses by being rounded.
fn lost(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let of_b = sum - a;
    let lost = (a - (sum - of_b)) + (b - of_b);
    if lost.is_finite() { lost } else { 0.0 }
}

fn add_f32<const MODE: u8>([a, b, ..]: [u64; 4]) -> u64 {
    let (a, b) = (f32::of(a).value(), f32::of(b).value());
    settle::<MODE>(a + b, lost(a, b))
}

fn sub_f32<const MODE: u8>([a, b, ..]: [u64; 4]) -> u64 {
    let (a, b) = (f32::of(a).value(), -f32::of(b).value());
    settle::<MODE>(a + b, lost(a, b))
}

fn mul_f32<const MODE: u8>([a, b, ..]: [u64; 4]) -> u64 {
    settle::<MODE>(f32::of(a).value() * f32::of(b).value(), 0.0)
}

fn fma_f32<const MODE: u8>([a, b, c, _]: [u64; 4]) -> u64 {
    let (product, c) = (f32::of(a).value() * f32::of(b).value(), f32::of(c).value());
    settle::<MODE>(product + c, lost(product, c))
}

fn div_f32<const MODE: u8>([a, b, ..]: [u64; 4]) -> u64 {
    let (a, b) = (f32::of(a).value(), f32::of(b).value());
    let quotient = a / b;
    let rest = (-quotient).mul_add(b, a) * b.signum();
    settle::<MODE>(quotient, if rest.is_finite() { rest } else { 0.0 })
}

fn rcp_f32<const MODE: u8>([a, ..]: [u64; 4]) -> u64 {
    div_f32::<MODE>([1.0_f32.bits(), a, 0, 0])
}

fn sqrt_f32<const MODE: u8>([a, ..]: [u64; 4]) -> u64 {
    let a = f32::of(a).value();
    let root = a.sqrt();
    let rest = (-root).mul_add(root, a);
    settle::<MODE>(root, if rest.is_finite() { rest } else { 0.0 })
}

/// The neighbour of `nearest` on the side that the rounding wants, if the true value lies there.
fn step_f64<const MODE: u8>(nearest: f64, error: f64) -> u64 {
    let down = error < 0.0 && (MODE == DOWN || MODE == ZERO && nearest > 0.0);
    let up = error > 0.0 && (MODE == UP || MODE == ZERO && nearest < 0.0);
    let result = match (down, up) {
        (true, _) => nearest.next_down(),
        (_, true) => nearest.next_up(),
        _ => nearest,
    };
    result.to_bits()
}

fn add_f64<const MODE: u8>([a, b, ..]: [u64; 4]) -> u64 {
    let (a, b) = (f64::from_bits(a), f64::from_bits(b));
    step_f64::<MODE>(a + b, lost(a, b))
}

fn sub_f64<const MODE: u8>([a, b, ..]: [u64; 4]) -> u64 {
    let (a, b) = (f64::from_bits(a), -f64::from_bits(b));
    step_f64::<MODE>(a + b, lost(a, b))
}

fn mul_f64<const MODE: u8>([a, b, ..]: [u64; 4]) -> u64 {
    let (a, b) = (f64::from_bits(a), f64::from_bits(b));
    let product = a * b;
    let error = a.mul_add(b, -product);
    step_f64::<MODE>(product, if error.is_finite() { error } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn single(opcode: &str, rounding: Rounding, values: [f32; 3]) -> f32 {
        let [a, b, c] = values.map(f32::bits);
        f32::of(directed(opcode, Type::F32, rounding).unwrap()([a, b, c, 0]))
    }

    proptest! {
        #[test]
        fn single_precision_rounds_as_the_machine_does(a in any::<f32>(), b in any::<f32>(), c in any::<f32>()) {
            let same = |opcode, expected: f32| {
                let computed = single(opcode, Rounding::Nearest, [a, b, c]);
                assert!(computed.to_bits() == expected.to_bits() || computed.is_nan() && expected.is_nan(), "{opcode} {computed} {expected}");
            };
            same("add", a + b);
            same("sub", a - b);
            same("mul", a * b);
            same("div", a / b);
            same("fma", a.mul_add(b, c));
            same("sqrt", a.sqrt());
        }

        #[test]
        fn rounding_down_and_up_encloses_the_nearest(a in -1e6_f32..1e6, b in -1e6_f32..1e6, c in -1e6_f32..1e6) {
            for opcode in ["add", "sub", "mul", "fma", "div"] {
                let [down, nearest, up, zero] =
                    [Rounding::Down, Rounding::Nearest, Rounding::Up, Rounding::Zero].map(|mode| single(opcode, mode, [a, b, c]));
                prop_assert!(down <= nearest && nearest <= up, "{} {} {} {}", opcode, down, nearest, up);
                prop_assert!(up <= down.next_up(), "{} {} {}", opcode, down, up);
                prop_assert_eq!(zero.to_bits(), if nearest > 0.0 { down } else { up }.to_bits());
            }
        }
    }

    #[test]
    fn a_tiny_addend_still_turns_the_rounding() {
        let sum = |mode, c| single("fma", mode, [1.0, 1.0, c]).to_bits();
        assert_eq!(sum(Rounding::Down, -1e-30), 1.0_f32.next_down().to_bits());
        assert_eq!(sum(Rounding::Up, 1e-30), 1.0_f32.next_up().to_bits());
        assert_eq!(sum(Rounding::Up, 0.0), 1.0_f32.to_bits());
    }

    #[test]
    fn half_precision_is_computed_and_rounded() {
        let half = |value: f64| Half::nearest(value).bits();
        let sum = function("add", Type::F16).unwrap()([half(1.0), half(0.0004), 0, 0]);
        assert_eq!(sum, half(1.0));
        let product = function("fma", Type::F16).unwrap()([half(3.0), half(0.5), half(0.25), 0]);
        assert_eq!(product, half(1.75));
        assert_eq!(function("testp.subnormal", Type::F16).unwrap()([1, 0, 0, 0]), 1);
    }
}
