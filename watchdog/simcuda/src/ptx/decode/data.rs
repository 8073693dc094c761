//! Instructions that move data: loads, stores, atomics, moves, conversions, and addresses between spaces.

use super::super::arithmetic::function;
use super::super::compile::{Body, Result};
use super::super::instruction::{Address, Op, Operand, Register};
use super::super::program::Unsupported;
use super::super::scope::Name;
use super::super::types::{Rounding, Space, Type};
use super::{Argument, Atom, Written};

/// Modifiers that order or cache accesses: one thread of this process does them all, in order.
fn is_about_order(word: &str) -> bool {
    matches!(
        word,
        "volatile"
            | "relaxed"
            | "acquire"
            | "release"
            | "acq_rel"
            | "weak"
            | "gpu"
            | "sys"
            | "cta"
            | "cluster"
            | "nc"
            | "ca"
            | "cg"
            | "cs"
            | "lu"
            | "cv"
            | "wb"
            | "wt"
            | "noftz"
            | "mmio"
    ) || word.starts_with("L1::")
        || word.starts_with("L2::")
}

/// What the modifiers of a load or store say.
struct Access {
    space: Space,
    kind: Type,
    lanes: usize,
    /// What atomics do.
    operation: Option<String>,
}

fn access(written: &Written<'_, '_>) -> Result<Access> {
    let (mut space, mut kind, mut lanes, mut operation) = (Space::Generic, None, 1, None);
    for &word in &written.modifiers {
        match word {
            "v2" => lanes = 2,
            "v4" => lanes = 4,
            "v8" => lanes = 8,
            _ if is_about_order(word) => {}
            _ => {
                if let Some(found) = Space::named(word) {
                    space = found;
                } else if let Some(found) = Type::named(word) {
                    kind = Some(found);
                } else if operation.replace(word.to_owned()).is_some() {
                    return written.refuse();
                }
            }
        }
    }
    let kind = kind.ok_or_else(|| Unsupported(written.opcode.into()))?;
    Ok(Access { space, kind, lanes, operation })
}

impl<'p, 'a> Body<'_, 'p, 'a>
where
    'p: 'a,
{
    fn address(
        &mut self,
        written: &Written<'_, 'a>,
        index: usize,
        space: Space,
        kind: Type,
    ) -> Result<Address> {
        let atom = match *written.argument(index)? {
            Argument::One(Atom::Element(name, by)) => return self.element(written, (space, kind), name, by),
            Argument::Address(atom) => atom,
            _ => return written.refuse(),
        };
        let Atom::Name(name, added) = atom else {
            return Ok(Address { space, base: self.value(atom, Type::U64)?, offset: 0 });
        };
        let meaning = self.scopes.find(name);
        // Parameters of functions, and those of calls, lie in local memory.
        let local = matches!(meaning, Some(Name::Local(_))) || !self.is_kernel;
        let space = if space == Space::Param && local { Space::Local } else { space };
        let is_register =
            matches!(meaning, Some(Name::Register(_))) || meaning.is_none() && name.starts_with('%');
        if is_register {
            return Ok(Address { space, base: Operand::Register(self.register(name)?), offset: added });
        }
        Ok(Address { space, base: self.named(name, 0)?, offset: added })
    }

    /// An element of a variable whose elements are of the kind that is read or written.
    fn element(
        &mut self,
        written: &Written<'_, 'a>,
        (space, kind): (Space, Type),
        name: &'a str,
        index: &'a str,
    ) -> Result<Address> {
        let (start, index) = (self.named(name, 0)?, Operand::Register(self.register(index)?));
        let dst = self.compiler.register()?;
        let src = [start, index, Operand::Bits(kind.size() as u64), Operand::Bits(0)];
        let apply = |[start, index, size, _]: [u64; 4]| start.wrapping_add(index.wrapping_mul(size));
        self.emit(written.guard, Op::Compute { apply, dst, src });
        Ok(Address { space, base: Operand::Register(dst), offset: 0 })
    }

    /// The registers that a load fills.
    fn destinations(&mut self, written: &Written<'_, 'a>, index: usize) -> Result<Vec<Register>> {
        let atoms = match written.argument(index)? {
            Argument::One(atom) => vec![*atom],
            Argument::Several(atoms) => atoms.clone(),
            _ => return written.refuse(),
        };
        let register = |atom: Atom<'a>| match atom {
            Atom::Name(name, 0) => self.register(name),
            _ => written.refuse(),
        };
        atoms.into_iter().map(register).collect()
    }

    pub(super) fn load(&mut self, written: &Written<'_, 'a>) -> Result {
        let access = access(written)?;
        let dst = self.destinations(written, 0)?;
        if access.operation.is_some() || dst.len() != access.lanes || written.arguments.len() != 2 {
            return written.refuse();
        }
        let address = self.address(written, 1, access.space, access.kind)?;
        self.emit(written.guard, Op::Load { address, kind: access.kind, dst });
        Ok(())
    }

    pub(super) fn store(&mut self, written: &Written<'_, 'a>) -> Result {
        let access = access(written)?;
        let atoms = match written.argument(1)? {
            Argument::One(atom) => vec![*atom],
            Argument::Several(atoms) => atoms.clone(),
            _ => return written.refuse(),
        };
        if access.operation.is_some() || atoms.len() != access.lanes || written.arguments.len() != 2 {
            return written.refuse();
        }
        let src = atoms.into_iter().map(|atom| self.value(atom, access.kind)).collect::<Result<Vec<_>>>()?;
        let address = self.address(written, 0, access.space, access.kind)?;
        self.emit(written.guard, Op::Store { address, kind: access.kind, src });
        Ok(())
    }

    pub(super) fn atomic(&mut self, written: &Written<'_, 'a>) -> Result {
        let Access { space, kind, lanes, operation } = access(written)?;
        let operation = operation.ok_or_else(|| Unsupported(written.opcode.into()))?;
        let known = matches!(
            operation.as_str(),
            "add" | "min" | "max" | "inc" | "dec" | "and" | "or" | "xor" | "exch" | "cas"
        );
        let apply = function(&operation, kind, Rounding::Nearest).filter(|_| known && lanes == 1);
        let apply = apply.ok_or_else(|| Unsupported(written.opcode.into()))?;
        let first = usize::from(written.base == "atom");
        let dst = if first == 1 { self.destination(written, 0)? } else { super::SINK };
        let address = self.address(written, first, space, kind)?;
        let mut src = [Operand::Bits(0); 2];
        for (slot, index) in src.iter_mut().zip(first + 1..written.arguments.len()) {
            *slot = self.operand(written, index, kind)?;
        }
        if written.arguments.len() != first + if operation == "cas" { 3 } else { 2 } {
            return written.refuse();
        }
        self.emit(written.guard, Op::Atomic { address, kind, apply, dst, src });
        Ok(())
    }

    /// Copies a value, takes one register apart, or puts one together.
    pub(super) fn mov(&mut self, written: &Written<'_, 'a>) -> Result {
        let kind = written.kind()?;
        match (written.argument(0)?.clone(), written.argument(1)?.clone()) {
            (Argument::Several(parts), Argument::One(whole)) => self.take_apart(written, kind, &parts, whole),
            (Argument::One(Atom::Name(whole, 0)), Argument::Several(parts)) => {
                self.put_together(written, kind, whole, &parts)
            }
            (Argument::One(_), Argument::One(_)) => {
                let dst = self.destination(written, 0)?;
                let src = self.sources(written, 1, kind)?;
                self.emit(written.guard, Op::Compute { apply: |[a, ..]| a, dst, src });
                Ok(())
            }
            _ => written.refuse(),
        }
    }

    fn take_apart(
        &mut self,
        written: &Written<'_, 'a>,
        kind: Type,
        parts: &[Atom<'a>],
        whole: Atom<'a>,
    ) -> Result {
        let width = part_width(kind, parts.len()).ok_or_else(|| Unsupported(written.opcode.into()))?;
        let value = self.value(whole, kind)?;
        // A part may be the register that is taken apart.
        let copy = self.compiler.register()?;
        let zero = Operand::Bits(0);
        self.emit(
            written.guard,
            Op::Compute { apply: |[a, ..]| a, dst: copy, src: [value, zero, zero, zero] },
        );
        for (index, part) in parts.iter().enumerate() {
            let &Atom::Name(name, 0) = part else { return written.refuse() };
            let dst = self.register(name)?;
            let shift = Operand::Bits(index as u64 * width);
            let src = [Operand::Register(copy), shift, Operand::Bits(mask(width)), zero];
            self.emit(written.guard, Op::Compute { apply: |[a, n, mask, _]| a >> n & mask, dst, src });
        }
        Ok(())
    }

    fn put_together(
        &mut self,
        written: &Written<'_, 'a>,
        kind: Type,
        whole: &'a str,
        parts: &[Atom<'a>],
    ) -> Result {
        let width = part_width(kind, parts.len()).ok_or_else(|| Unsupported(written.opcode.into()))?;
        let sum = self.compiler.register()?;
        let zero = Operand::Bits(0);
        self.emit(written.guard, Op::Compute { apply: |[a, ..]| a, dst: sum, src: [zero; 4] });
        for (index, &part) in parts.iter().enumerate() {
            let part = self.value(part, Type::U64)?;
            let shift = Operand::Bits(index as u64 * width);
            let src = [Operand::Register(sum), part, shift, Operand::Bits(mask(width))];
            let apply = |[sum, part, n, mask]: [u64; 4]| sum | (part & mask) << n;
            self.emit(written.guard, Op::Compute { apply, dst: sum, src });
        }
        let dst = self.register(whole)?;
        let src = [Operand::Register(sum), zero, zero, zero];
        self.emit(written.guard, Op::Compute { apply: |[a, ..]| a, dst, src });
        Ok(())
    }

    pub(super) fn cvt(&mut self, written: &Written<'_, 'a>) -> Result {
        let (mut rounding, mut whole, mut saturate) = (Rounding::Nearest, false, false);
        for &word in &written.modifiers {
            match word {
                "ftz" => {}
                "sat" => saturate = true,
                _ if Type::named(word).is_some() => {}
                _ => match Rounding::named(word) {
                    Some(found) => (rounding, whole) = (found, word.ends_with('i')),
                    None => return written.refuse(),
                },
            }
        }
        let &[to, from] = written.types().as_slice() else { return written.refuse() };
        if from == Type::Pred || to == Type::Pred || from.halves().is_some() {
            return written.refuse();
        }
        let dst = self.destination(written, 0)?;
        let convert = |to, dst, src| Op::Convert { from, to, whole, rounding, saturate, dst, src };
        let Some(half) = to.halves() else {
            let src = self.operand(written, 1, from)?;
            self.emit(written.guard, convert(to, dst, src));
            return Ok(());
        };
        let (high, low) = (self.compiler.register()?, self.compiler.register()?);
        for (register, index) in [(high, 1), (low, 2)] {
            let src = self.operand(written, index, from)?;
            self.emit(written.guard, convert(half, register, src));
        }
        let src = [Operand::Register(high), Operand::Register(low), Operand::Bits(0), Operand::Bits(0)];
        let apply = |[high, low, ..]: [u64; 4]| (high & 0xffff) << 16 | low & 0xffff;
        self.emit(written.guard, Op::Compute { apply, dst, src });
        Ok(())
    }

    fn space(written: &Written<'_, 'a>) -> Result<Space> {
        let named = written.modifiers.iter().find_map(|word| Space::named(word));
        named.ok_or_else(|| Unsupported(written.opcode.into()))
    }

    pub(super) fn cvta(&mut self, written: &Written<'_, 'a>) -> Result {
        let space = Self::space(written)?;
        let dst = self.destination(written, 0)?;
        let src = self.operand(written, 1, written.kind()?)?;
        let back = written.has("to");
        let op = if back { Op::FromGeneric { space, dst, src } } else { Op::ToGeneric { space, dst, src } };
        self.emit(written.guard, op);
        Ok(())
    }

    pub(super) fn is_space(&mut self, written: &Written<'_, 'a>) -> Result {
        let space = Self::space(written)?;
        let dst = self.destination(written, 0)?;
        let src = self.operand(written, 1, Type::U64)?;
        self.emit(written.guard, Op::IsSpace { space, dst, src });
        Ok(())
    }
}

/// Bits of each of `count` parts.
fn part_width(kind: Type, count: usize) -> Option<u64> {
    let bits = kind.size() * 8;
    (count > 0 && bits.is_multiple_of(count)).then(|| (bits / count) as u64)
}

fn mask(width: u64) -> u64 {
    if width >= 64 { u64::MAX } else { (1 << width) - 1 }
}
