//! Arithmetic on integers, each function as PTX defines it for one type. Values are in the low bits of 64; what
//! stands above them is ignored.

use super::instruction::Apply;
use super::types::Type;

/// An integer of some width.
#[allow(clippy::cast_possible_truncation)] // That is what reading the low bits means.
pub(super) trait Integer: Copy + Ord {
    const BITS: u32;
    fn of(bits: u64) -> Self;
    fn bits(self) -> u64;
    fn wide(self) -> i128;
    /// The low bits.
    fn narrow(wide: i128) -> Self;
}

macro_rules! integer {
    ($($type:ty, $unsigned:ty;)*) => {
        $(
            #[allow(
                clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss,
                clippy::cast_lossless
            )] // The low bits are kept as they are.
            impl Integer for $type {
                const BITS: u32 = <$type>::BITS;
                fn of(bits: u64) -> Self {
                    bits as Self
                }
                fn bits(self) -> u64 {
                    self as $unsigned as u64
                }
                fn wide(self) -> i128 {
                    self as i128
                }
                fn narrow(wide: i128) -> Self {
                    wide as Self
                }
            }
        )*
    };
}

integer! {
    u8, u8; u16, u16; u32, u32; u64, u64;
    i8, u8; i16, u16; i32, u32; i64, u64;
}

/// The function for a type: `by_type!(kind, add)` is `add::<u32>` for `u32`.
macro_rules! by_type {
    ($kind:expr, $function:ident) => {
        match $kind {
            Type::U8 => Some($function::<u8> as Apply),
            Type::U16 => Some($function::<u16> as Apply),
            Type::U32 => Some($function::<u32> as Apply),
            Type::U64 => Some($function::<u64> as Apply),
            Type::S8 => Some($function::<i8> as Apply),
            Type::S16 => Some($function::<i16> as Apply),
            Type::S32 => Some($function::<i32> as Apply),
            Type::S64 => Some($function::<i64> as Apply),
            _ => None,
        }
    };
}

/// The integer function that an opcode means for a type.
pub(super) fn function(opcode: &str, kind: Type) -> Option<Apply> {
    match opcode {
        "add" => by_type!(kind, add),
        "sub" => by_type!(kind, sub),
        "mul.lo" => by_type!(kind, mul),
        "mul.hi" => by_type!(kind, mul_hi),
        "mul.wide" => by_type!(kind, mul_wide),
        "mad.lo" => by_type!(kind, mad),
        "mad.hi" => by_type!(kind, mad_hi),
        "mad.wide" => by_type!(kind, mad_wide),
        "mul24.lo" => by_type!(kind, mul24),
        "mad24.lo" => by_type!(kind, mad24),
        "sad" => by_type!(kind, sad),
        "div" => by_type!(kind, div),
        "rem" => by_type!(kind, rem),
        "abs" => by_type!(kind, abs),
        "neg" => by_type!(kind, neg),
        "min" => by_type!(kind, min),
        "max" => by_type!(kind, max),
        "popc" => by_type!(kind, popc),
        "clz" => by_type!(kind, clz),
        "bfind" => by_type!(kind, bfind),
        "bfind.shiftamt" => by_type!(kind, bfind_shift),
        "brev" => by_type!(kind, brev),
        "bfe" => by_type!(kind, bfe),
        "bfi" => by_type!(kind, bfi),
        "shl" => by_type!(kind, shl),
        "shr" => by_type!(kind, shr),
        "add.sat" => by_type!(kind, add_saturating),
        "sub.sat" => by_type!(kind, sub_saturating),
        "addc" => by_type!(kind, add_carry),
        "addc.out" => by_type!(kind, add_carry_out),
        "subc" => by_type!(kind, sub_borrow),
        "subc.out" => by_type!(kind, sub_borrow_out),
        "inc" => by_type!(kind, increment),
        "dec" => by_type!(kind, decrement),
        "cnot" => by_type!(kind, cnot),
        _ => untyped(opcode, kind),
    }
}

/// Functions that do the same for all types.
fn untyped(opcode: &str, kind: Type) -> Option<Apply> {
    Some(match opcode {
        "and" => |[a, b, ..]| a & b,
        "or" => |[a, b, ..]| a | b,
        "xor" => |[a, b, ..]| a ^ b,
        "not" if kind == Type::Pred => |[a, ..]| a ^ 1,
        "not" => |[a, ..]| !a,
        "mov" => |[a, ..]| a,
        "exch" => |[_, b, ..]| b,
        "selp" => |[a, b, p, _]| if p & 1 == 0 { b } else { a },
        "lop3" => lop3,
        "prmt" => prmt,
        "shf.l.wrap" => |[low, high, n, _]| funnel(low, high, 32 - (n & 31)),
        "shf.l.clamp" => |[low, high, n, _]| funnel(low, high, 32 - low32(n).min(32)),
        "shf.r.wrap" => |[low, high, n, _]| funnel(low, high, n & 31),
        "shf.r.clamp" => |[low, high, n, _]| funnel(low, high, low32(n).min(32)),
        "cas" => match kind.size() {
            2 => |[old, expected, new, _]| if old & 0xffff == expected & 0xffff { new } else { old },
            4 => |[old, expected, new, _]| if low32(old) == low32(expected) { new } else { old },
            8 => |[old, expected, new, _]| if old == expected { new } else { old },
            _ => return None,
        },
        _ => return None,
    })
}

fn low32(bits: u64) -> u64 {
    bits & 0xffff_ffff
}

/// 32 bits of the 64 in `high` and `low`, from bit `n` on, which is at most 32.
fn funnel(low: u64, high: u64, n: u64) -> u64 {
    low32((low32(high) << 32 | low32(low)) >> n)
}

fn add<T: Integer>([a, b, ..]: [u64; 4]) -> u64 {
    T::narrow(T::of(a).wide() + T::of(b).wide()).bits()
}

fn sub<T: Integer>([a, b, ..]: [u64; 4]) -> u64 {
    T::narrow(T::of(a).wide() - T::of(b).wide()).bits()
}

/// The low 128 bits of the product.
fn product<T: Integer>(a: u64, b: u64) -> i128 {
    T::of(a).wide().wrapping_mul(T::of(b).wide())
}

fn mul<T: Integer>([a, b, ..]: [u64; 4]) -> u64 {
    T::narrow(product::<T>(a, b)).bits()
}

fn mul_hi<T: Integer>([a, b, ..]: [u64; 4]) -> u64 {
    T::narrow(product::<T>(a, b) >> T::BITS).bits()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // At most 64 bits are wanted.
fn mul_wide<T: Integer>([a, b, ..]: [u64; 4]) -> u64 {
    product::<T>(a, b) as u64
}

fn mad<T: Integer>([a, b, c, _]: [u64; 4]) -> u64 {
    T::narrow(product::<T>(a, b).wrapping_add(T::of(c).wide())).bits()
}

fn mad_hi<T: Integer>([a, b, c, _]: [u64; 4]) -> u64 {
    T::narrow((product::<T>(a, b) >> T::BITS).wrapping_add(T::of(c).wide())).bits()
}

/// The third operand is twice as wide as the others.
fn mad_wide<T: Integer>([a, b, c, _]: [u64; 4]) -> u64 {
    mul_wide::<T>([a, b, 0, 0]).wrapping_add(c)
}

/// The value of the low 24 bits.
fn low24<T: Integer>(bits: u64) -> i128 {
    let value = T::narrow(T::of(bits).wide() << (T::BITS - 24)).wide();
    value >> (T::BITS - 24)
}

fn mul24<T: Integer>([a, b, ..]: [u64; 4]) -> u64 {
    if T::BITS < 24 { mul::<T>([a, b, 0, 0]) } else { T::narrow(low24::<T>(a) * low24::<T>(b)).bits() }
}

fn mad24<T: Integer>([a, b, c, _]: [u64; 4]) -> u64 {
    add::<T>([mul24::<T>([a, b, 0, 0]), c, 0, 0])
}

fn sad<T: Integer>([a, b, c, _]: [u64; 4]) -> u64 {
    let distance = (T::of(a).wide() - T::of(b).wide()).abs();
    T::narrow(distance + T::of(c).wide()).bits()
}

/// All ones for a division by zero, as the hardware gives.
fn div<T: Integer>([a, b, ..]: [u64; 4]) -> u64 {
    let quotient = T::of(a).wide().checked_div(T::of(b).wide());
    quotient.map_or(u64::MAX, |quotient| T::narrow(quotient).bits())
}

fn rem<T: Integer>([a, b, ..]: [u64; 4]) -> u64 {
    let rest = T::of(a).wide().checked_rem(T::of(b).wide());
    rest.map_or(a, |rest| T::narrow(rest).bits())
}

fn abs<T: Integer>([a, ..]: [u64; 4]) -> u64 {
    T::narrow(T::of(a).wide().abs()).bits()
}

fn neg<T: Integer>([a, ..]: [u64; 4]) -> u64 {
    T::narrow(-T::of(a).wide()).bits()
}

fn min<T: Integer>([a, b, ..]: [u64; 4]) -> u64 {
    T::of(a).min(T::of(b)).bits()
}

fn max<T: Integer>([a, b, ..]: [u64; 4]) -> u64 {
    T::of(a).max(T::of(b)).bits()
}

fn cnot<T: Integer>([a, ..]: [u64; 4]) -> u64 {
    u64::from(T::of(a).bits() == 0)
}

fn popc<T: Integer>([a, ..]: [u64; 4]) -> u64 {
    T::of(a).bits().count_ones().into()
}

fn clz<T: Integer>([a, ..]: [u64; 4]) -> u64 {
    (T::of(a).bits().leading_zeros() - (64 - T::BITS)).into()
}

/// The highest bit that differs from the sign; all ones if there is none.
fn bfind<T: Integer>([a, ..]: [u64; 4]) -> u64 {
    let value = T::of(a).wide();
    let magnitude = if value < 0 { !value } else { value };
    let top = 127_u32.checked_sub(magnitude.leading_zeros());
    top.map_or(0xffff_ffff, u64::from)
}

fn bfind_shift<T: Integer>([a, ..]: [u64; 4]) -> u64 {
    let top = bfind::<T>([a, 0, 0, 0]);
    if top == 0xffff_ffff { top } else { u64::from(T::BITS) - 1 - top }
}

fn brev<T: Integer>([a, ..]: [u64; 4]) -> u64 {
    T::of(a).bits().reverse_bits() >> (64 - T::BITS)
}

/// Bits `position` to `position + length` of `a`, with the sign of the highest of them for signed types.
#[allow(clippy::cast_possible_truncation)] // Both are masked to a byte.
fn bfe<T: Integer>([a, position, length, _]: [u64; 4]) -> u64 {
    let (position, length) = ((position & 0xff) as u32, (length & 0xff) as u32);
    if length == 0 {
        return 0;
    }
    let value = T::of(a).wide();
    // Beyond the type's bits stand copies of its sign.
    let shifted = value >> position.min(127);
    let length = length.min(T::BITS);
    let field = shifted & ((1_i128 << length) - 1);
    let is_signed = T::narrow(-1).wide() < 0;
    let last = (position + length - 1).min(T::BITS - 1);
    let negative = is_signed && value >> last & 1 == 1;
    T::narrow(if negative { field | -1_i128 << length } else { field }).bits()
}

#[allow(clippy::cast_possible_truncation)] // Both are masked to a byte.
fn bfi<T: Integer>([field, base, position, length]: [u64; 4]) -> u64 {
    let (position, length) = ((position & 0xff) as u32, (length & 0xff) as u32);
    let length = length.min(T::BITS);
    if position >= T::BITS {
        return T::of(base).bits();
    }
    let mask = ((1_i128 << length) - 1) << position;
    T::narrow(T::of(base).wide() & !mask | (T::of(field).wide() << position) & mask).bits()
}

/// Shifts by more than the width leave nothing.
fn shl<T: Integer>([a, n, ..]: [u64; 4]) -> u64 {
    let n = low32(n);
    if n >= u64::from(T::BITS) { 0 } else { T::narrow(T::of(a).wide() << n).bits() }
}

fn shr<T: Integer>([a, n, ..]: [u64; 4]) -> u64 {
    T::narrow(T::of(a).wide() >> low32(n).min(127)).bits()
}

/// The nearest value that the type has.
fn clamp<T: Integer>(value: i128) -> T {
    let one = 1_i128;
    let (low, high) = if T::narrow(-1).wide() < 0 {
        (-(one << (T::BITS - 1)), (one << (T::BITS - 1)) - 1)
    } else {
        (0, (one << T::BITS) - 1)
    };
    T::narrow(value.clamp(low, high))
}

fn add_saturating<T: Integer>([a, b, ..]: [u64; 4]) -> u64 {
    clamp::<T>(T::of(a).wide() + T::of(b).wide()).bits()
}

fn sub_saturating<T: Integer>([a, b, ..]: [u64; 4]) -> u64 {
    clamp::<T>(T::of(a).wide() - T::of(b).wide()).bits()
}

fn add_carry<T: Integer>([a, b, carry, _]: [u64; 4]) -> u64 {
    T::narrow(T::of(a).wide() + T::of(b).wide() + i128::from(carry & 1)).bits()
}

/// The carry out of an addition of the bits as unsigned numbers.
fn add_carry_out<T: Integer>([a, b, carry, _]: [u64; 4]) -> u64 {
    let sum = i128::from(T::of(a).bits()) + i128::from(T::of(b).bits()) + i128::from(carry & 1);
    u64::from(sum >> T::BITS != 0)
}

fn sub_borrow<T: Integer>([a, b, borrow, _]: [u64; 4]) -> u64 {
    T::narrow(T::of(a).wide() - T::of(b).wide() - i128::from(borrow & 1)).bits()
}

fn sub_borrow_out<T: Integer>([a, b, borrow, _]: [u64; 4]) -> u64 {
    let rest = i128::from(T::of(a).bits()) - i128::from(T::of(b).bits()) - i128::from(borrow & 1);
    u64::from(rest < 0)
}

/// Counts up to a limit and then begins at zero.
fn increment<T: Integer>([old, limit, ..]: [u64; 4]) -> u64 {
    let old = T::of(old);
    if old >= T::of(limit) { 0 } else { T::narrow(old.wide() + 1).bits() }
}

/// Counts down, and from zero or above the limit begins at the limit.
fn decrement<T: Integer>([old, limit, ..]: [u64; 4]) -> u64 {
    let (old, limit) = (T::of(old), T::of(limit));
    if old.bits() == 0 || old > limit { limit.bits() } else { T::narrow(old.wide() - 1).bits() }
}

/// Each bit of the result is looked up in a table of eight by the bits of the three inputs.
fn lop3([a, b, c, table]: [u64; 4]) -> u64 {
    let term = |index: u64| {
        let pick = |bits: u64, wanted: u64| if wanted == 0 { !bits } else { bits };
        if table >> index & 1 == 0 {
            0
        } else {
            pick(a, index >> 2 & 1) & pick(b, index >> 1 & 1) & pick(c, index & 1)
        }
    };
    low32((0..8).map(term).fold(0, |all, part| all | part))
}

/// Four bytes of eight, by the four low digits of the selector; its highest bit copies the sign.
fn prmt([a, b, selector, _]: [u64; 4]) -> u64 {
    let both = low32(b) << 32 | low32(a);
    let byte = |index: u64| {
        let choice = selector >> (index * 4) & 0xf;
        let byte = both >> ((choice & 7) * 8) & 0xff;
        let chosen = if choice & 8 == 0 { byte } else { (byte >> 7) * 0xff };
        chosen << (index * 8)
    };
    (0..4).map(byte).fold(0, |all, part| all | part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(opcode: &str, kind: Type, values: [u64; 4]) -> u64 {
        function(opcode, kind).unwrap()(values)
    }

    fn signed(value: i32) -> u64 {
        value.cast_unsigned().into()
    }

    #[test]
    fn the_edges_are_those_of_the_isa() {
        assert_eq!(run("div", Type::U32, [7, 0, 0, 0]) & 0xffff_ffff, 0xffff_ffff);
        assert_eq!(run("shl", Type::U32, [1, 32, 0, 0]), 0);
        assert_eq!(run("shr", Type::S32, [signed(-8), 40, 0, 0]), signed(-1));
        assert_eq!(run("bfe", Type::U32, [0xabcd, 4, 8, 0]), 0xbc);
        assert_eq!(run("bfe", Type::S32, [0xf0, 4, 4, 0]), signed(-1));
        assert_eq!(run("bfi", Type::U32, [0xf, 0, 8, 4]), 0xf00);
        assert_eq!(run("bfind", Type::U32, [0, 0, 0, 0]), 0xffff_ffff);
        assert_eq!(run("bfind", Type::S32, [signed(-1), 0, 0, 0]), 0xffff_ffff);
        assert_eq!(run("bfind", Type::U32, [0x80, 0, 0, 0]), 7);
        assert_eq!(run("prmt", Type::U32, [0x3322_1100, 0x7766_5544, 0x4321, 0]), 0x4433_2211);
        assert_eq!(run("lop3", Type::U32, [0xf0, 0xcc, 0xaa, 0x80]), 0x80);
        assert_eq!(run("shf.l.wrap", Type::U32, [0x8000_0001, 0x2, 1, 0]), 0x5);
        assert_eq!(run("shf.r.wrap", Type::U32, [0x8000_0001, 0x3, 1, 0]), 0xc000_0000);
        assert_eq!(run("shf.r.clamp", Type::U32, [1, 0x7, 99, 0]), 0x7);
        assert_eq!(run("not", Type::Pred, [1, 0, 0, 0]), 0);
    }

    proptest! {
        #[test]
        fn integers_compute_as_the_machine_does(a in any::<i32>(), b in any::<i32>(), c in any::<i32>(), n in 0_u32..32) {
            let (x, y, z) = (signed(a), signed(b), signed(c));
            let as_u32 = |value: i32| u32::from_ne_bytes(value.to_ne_bytes());
            let check = |opcode: &str, kind, values, expected: u64| {
                assert_eq!(run(opcode, kind, values) & 0xffff_ffff, expected, "{opcode}");
            };
            check("add", Type::S32, [x, y, 0, 0], signed(a.wrapping_add(b)));
            check("sub", Type::U32, [x, y, 0, 0], signed(a.wrapping_sub(b)));
            check("mul.lo", Type::S32, [x, y, 0, 0], signed(a.wrapping_mul(b)));
            check("mad.lo", Type::S32, [x, y, z, 0], signed(a.wrapping_mul(b).wrapping_add(c)));
            check("mul.hi", Type::U32, [x, y, 0, 0], (x * y) >> 32);
            check("max", Type::S32, [x, y, 0, 0], signed(a.max(b)));
            check("max", Type::U32, [x, y, 0, 0], x.max(y));
            check("shr", Type::S32, [x, n.into(), 0, 0], signed(a >> n));
            check("shl", Type::U32, [x, n.into(), 0, 0], u64::from(as_u32(a) << n));
            check("popc", Type::U32, [x, 0, 0, 0], a.count_ones().into());
            check("clz", Type::U32, [x, 0, 0, 0], a.leading_zeros().into());
            check("brev", Type::U32, [x, 0, 0, 0], signed(a.reverse_bits()));
            if b != 0 {
                check("div", Type::S32, [x, y, 0, 0], signed(a.wrapping_div(b)));
                check("rem", Type::S32, [x, y, 0, 0], signed(a.wrapping_rem(b)));
            }
            prop_assert_eq!(run("mul.wide", Type::S32, [x, y, 0, 0]), (i64::from(a) * i64::from(b)).cast_unsigned());
            let long = run("mul.hi", Type::U64, [x << 32 | y, y << 32 | z, 0, 0]);
            prop_assert_eq!(u128::from(long), (u128::from(x << 32 | y) * u128::from(y << 32 | z)) >> 64);
        }

        #[test]
        fn no_function_panics(
            opcode in prop::sample::select(vec!["bfe", "bfi", "div", "rem", "shl", "shr", "sad", "mul24.lo", "mad.hi",
                "abs", "neg", "addc.out", "subc.out", "inc", "dec", "bfind.shiftamt", "add.sat", "shf.l.clamp", "shf.r.clamp", "mad.wide"]),
            values in any::<[u64; 4]>(),
        ) {
            for kind in [Type::U8, Type::U16, Type::U32, Type::U64, Type::S8, Type::S16, Type::S32, Type::S64] {
                if let Some(apply) = function(opcode, kind) {
                    apply(values);
                }
            }
        }
    }
}
