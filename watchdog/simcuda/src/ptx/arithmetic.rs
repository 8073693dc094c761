//! Comparisons, and the choice between arithmetic on integers and on floating-point numbers.

use super::floats::{Brain, Float, Half, directed};
use super::instruction::Apply;
use super::integers::{self, Integer};
use super::types::{Rounding, Type};

/// Two values that are compared.
pub(super) type Comparison = fn(u64, u64) -> bool;

/// The function that an opcode means for a type.
pub(super) fn function(opcode: &str, kind: Type, rounding: Rounding) -> Option<Apply> {
    if kind.is_float()
        && let Some(apply) = directed(opcode, kind, rounding)
    {
        return Some(apply);
    }
    integers::function(opcode, kind)
}

/// The comparison that a modifier such as `lt` means for a type.
pub(super) fn comparison(name: &str, kind: Type) -> Option<Comparison> {
    match kind {
        Type::Pred | Type::U8 => integer_comparison::<u8>(name),
        Type::U16 => integer_comparison::<u16>(name),
        Type::U32 => integer_comparison::<u32>(name),
        Type::U64 => integer_comparison::<u64>(name),
        Type::S8 => integer_comparison::<i8>(name),
        Type::S16 => integer_comparison::<i16>(name),
        Type::S32 => integer_comparison::<i32>(name),
        Type::S64 => integer_comparison::<i64>(name),
        Type::F16 => float_comparison::<Half>(name),
        Type::Bf16 => float_comparison::<Brain>(name),
        Type::F32 => float_comparison::<f32>(name),
        Type::F64 => float_comparison::<f64>(name),
        Type::F16x2 | Type::Bf16x2 => None,
    }
}

fn integer_comparison<T: Integer>(name: &str) -> Option<Comparison> {
    Some(match name {
        "eq" => |a, b| T::of(a) == T::of(b),
        "ne" => |a, b| T::of(a) != T::of(b),
        "lt" | "lo" => |a, b| T::of(a) < T::of(b),
        "le" | "ls" => |a, b| T::of(a) <= T::of(b),
        "gt" | "hi" => |a, b| T::of(a) > T::of(b),
        "ge" | "hs" => |a, b| T::of(a) >= T::of(b),
        _ => return None,
    })
}

/// Those that end in `u` are true as well if one of the two is no number.
#[allow(clippy::neg_cmp_op_on_partial_ord, clippy::float_cmp)] // That is what the unordered ones are.
fn float_comparison<T: Float>(name: &str) -> Option<Comparison> {
    Some(match name {
        "eq" => |a, b| T::of(a).value() == T::of(b).value(),
        "ne" => |a, b| {
            let (a, b) = (T::of(a).value(), T::of(b).value());
            a != b && !a.is_nan() && !b.is_nan()
        },
        "lt" => |a, b| T::of(a).value() < T::of(b).value(),
        "le" => |a, b| T::of(a).value() <= T::of(b).value(),
        "gt" => |a, b| T::of(a).value() > T::of(b).value(),
        "ge" => |a, b| T::of(a).value() >= T::of(b).value(),
        "equ" => |a, b| {
            let (a, b) = (T::of(a).value(), T::of(b).value());
            a == b || a.is_nan() || b.is_nan()
        },
        "neu" => |a, b| T::of(a).value() != T::of(b).value(),
        "ltu" => |a, b| !(T::of(a).value() >= T::of(b).value()),
        "leu" => |a, b| !(T::of(a).value() > T::of(b).value()),
        "gtu" => |a, b| !(T::of(a).value() <= T::of(b).value()),
        "geu" => |a, b| !(T::of(a).value() < T::of(b).value()),
        "num" => |a, b| !T::of(a).value().is_nan() && !T::of(b).value().is_nan(),
        "nan" => |a, b| T::of(a).value().is_nan() || T::of(b).value().is_nan(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_ordered_as_the_modifier_says() {
        let nan = f32::NAN.bits();
        let one = 1.0_f32.bits();
        for (name, expected) in [("lt", false), ("ltu", true), ("ne", false), ("neu", true), ("nan", true)] {
            assert_eq!(comparison(name, Type::F32).unwrap()(nan, one), expected, "{name}");
        }
        assert!(comparison("lt", Type::S32).unwrap()(0xffff_ffff, 0));
        assert!(!comparison("lo", Type::U32).unwrap()(0xffff_ffff, 0));
    }
}
