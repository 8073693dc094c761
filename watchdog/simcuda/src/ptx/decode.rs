//! What an opcode with its modifiers and operands means. Here: operands, and all that computes from registers alone.

mod control;
mod data;

use super::arithmetic::{comparison, function};
use super::compile::{Body, Result, unsupported};
use super::instruction::{Apply, CARRY, Guard, Join, Op, Operand, Register, SINK};
use super::lex::{Cursor, Spot, Token};
use super::parse::{integer, number_bits};
use super::program::Unsupported;
use super::scope::{Name, special};
use super::types::{Rounding, Type};

/// A single operand as it is written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Atom<'a> {
    /// A name, and what is added to it.
    Name(&'a str, i64),
    Number(&'a str, bool),
    /// `name[register]`: an element of a variable.
    Element(&'a str, &'a str),
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
enum Argument<'a> {
    One(Atom<'a>),
    /// The opposite of a predicate.
    Not(Atom<'a>),
    /// `[base+offset]`
    Address(Atom<'a>),
    /// `{a, b}`
    Several(Vec<Atom<'a>>),
    /// `a|b`
    Pair(Atom<'a>, Atom<'a>),
    /// `(a, b)`
    List(Vec<Atom<'a>>),
}

fn read_atom<'a>(cursor: &mut Cursor<'_, 'a>) -> Option<Atom<'a>> {
    if cursor.take('-') {
        let Token::Number(digits) = cursor.next()? else { return None };
        return Some(Atom::Number(digits, true));
    }
    match cursor.next()? {
        Token::Number(digits) => Some(Atom::Number(digits, false)),
        Token::Word(name) if cursor.take('[') => {
            let atom = match cursor.next()? {
                // The first element of an array is where the array begins.
                Token::Number("0") => Atom::Name(name, 0),
                Token::Word(index) => Atom::Element(name, index),
                _ => return None,
            };
            cursor.take(']').then_some(atom)
        }
        Token::Word(name) => {
            let added = if cursor.take('+') {
                let negative = cursor.take('-');
                read_offset(cursor, negative)?
            } else if cursor.take('-') {
                read_offset(cursor, true)?
            } else {
                0
            };
            Some(Atom::Name(name, added))
        }
        _ => None,
    }
}

fn read_offset(cursor: &mut Cursor<'_, '_>, negative: bool) -> Option<i64> {
    let Token::Number(digits) = cursor.next()? else { return None };
    let value = i64::try_from(integer(digits)?).ok()?;
    Some(if negative { -value } else { value })
}

fn read_atoms<'a>(cursor: &mut Cursor<'_, 'a>, end: char) -> Option<Vec<Atom<'a>>> {
    let mut atoms = Vec::new();
    while !cursor.take(end) {
        atoms.push(read_atom(cursor)?);
        if !cursor.take(',') && cursor.peek() != Some(Token::Mark(end)) {
            return None;
        }
    }
    Some(atoms)
}

fn read_argument<'a>(cursor: &mut Cursor<'_, 'a>) -> Option<Argument<'a>> {
    if cursor.take('[') {
        let atom = read_atom(cursor)?;
        return cursor.take(']').then_some(Argument::Address(atom));
    }
    if cursor.take('{') {
        return read_atoms(cursor, '}').map(Argument::Several);
    }
    if cursor.take('(') {
        return read_atoms(cursor, ')').map(Argument::List);
    }
    if cursor.take('!') {
        return read_atom(cursor).map(Argument::Not);
    }
    let first = read_atom(cursor)?;
    if cursor.take('|') {
        Some(Argument::Pair(first, read_atom(cursor)?))
    } else {
        Some(Argument::One(first))
    }
}

fn read_arguments<'a>(tokens: &[Spot<'a>]) -> Option<Vec<Argument<'a>>> {
    let mut cursor = Cursor::new(tokens);
    let mut arguments = Vec::new();
    while cursor.peek().is_some() {
        arguments.push(read_argument(&mut cursor)?);
        if !cursor.take(',') && cursor.peek().is_some() {
            return None;
        }
    }
    Some(arguments)
}

/// An instruction as it is written.
#[derive(Clone, Debug)]
struct Written<'w, 'a> {
    guard: Option<Guard>,
    opcode: &'a str,
    base: &'a str,
    modifiers: Vec<&'a str>,
    arguments: &'w [Argument<'a>],
}

impl<'a> Written<'_, 'a> {
    fn refuse<T>(&self) -> Result<T> {
        unsupported(self.opcode)
    }

    fn has(&self, modifier: &str) -> bool {
        self.modifiers.contains(&modifier)
    }

    /// The types among the modifiers, in their order.
    fn types(&self) -> Vec<Type> {
        self.modifiers.iter().filter_map(|word| Type::named(word)).collect()
    }

    /// The only type or the last one.
    fn kind(&self) -> Result<Type> {
        self.types().last().copied().ok_or_else(|| Unsupported(self.opcode.into()))
    }

    fn argument(&self, index: usize) -> Result<&Argument<'a>> {
        self.arguments.get(index).ok_or_else(|| Unsupported(self.opcode.into()))
    }

    fn atom(&self, index: usize) -> Result<Atom<'a>> {
        match self.argument(index)? {
            Argument::One(atom) => Ok(*atom),
            _ => self.refuse(),
        }
    }
}

/// What the modifiers of an arithmetic opcode say.
struct Flavour {
    /// The opcode with those modifiers that choose the function.
    name: String,
    rounding: Rounding,
    saturate: bool,
    carries: bool,
}

fn flavour(written: &Written<'_, '_>) -> Result<Flavour> {
    let mut flavour =
        Flavour { name: written.base.into(), rounding: Rounding::Nearest, saturate: false, carries: false };
    for &word in &written.modifiers {
        match word {
            // What is approximate on the hardware is exact here.
            "ftz" | "approx" | "full" | "noftz" => {}
            "sat" => flavour.saturate = true,
            "cc" => flavour.carries = true,
            "lo" | "hi" | "wide" | "l" | "r" | "wrap" | "clamp" | "shiftamt" | "NaN" | "relu" | "finite"
            | "infinite" | "number" | "notanumber" | "normal" | "subnormal" => {
                flavour.name.push('.');
                flavour.name.push_str(word);
            }
            _ if Type::named(word).is_some() => {}
            _ => match Rounding::named(word) {
                Some(rounding) => flavour.rounding = rounding,
                None => return written.refuse(),
            },
        }
    }
    Ok(flavour)
}

impl<'p, 'a> Body<'_, 'p, 'a>
where
    'p: 'a,
{
    /// Adds what an instruction does.
    pub(super) fn decode(&mut self, guard: Option<Guard>, opcode: &'a str, operands: &[Spot<'a>]) -> Result {
        let arguments = read_arguments(operands).ok_or_else(|| Unsupported(opcode.into()))?;
        let mut words = opcode.split('.');
        let base = words.next().unwrap_or_default();
        let written = Written { guard, opcode, base, modifiers: words.collect(), arguments: &arguments };
        match base {
            "ld" | "ldu" => self.load(&written),
            "st" => self.store(&written),
            "atom" | "red" => self.atomic(&written),
            "mov" => self.mov(&written),
            "cvt" => self.cvt(&written),
            "cvta" => self.cvta(&written),
            "isspacep" => self.is_space(&written),
            "setp" | "set" => self.set(&written),
            "slct" => self.select_by_sign(&written),
            "addc" | "subc" | "madc" => self.carrying(&written),
            "add" | "sub" | "mad" if written.has("cc") => self.carrying(&written),
            "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "bar" | "barrier" | "shfl" | "vote"
            | "activemask" | "match" | "redux" => self.control(&written),
            // Nothing runs at the same time here, and no cache is in the way.
            "membar" | "fence" | "prefetch" | "prefetchu" | "nanosleep" | "pmevent" | "discard"
            | "applypriority" | "brkpt" | "griddepcontrol" => {
                self.emit(guard, Op::Nothing);
                Ok(())
            }
            _ => self.compute(&written),
        }
    }

    /// The register of a name; a name of a family is made up when it is first used.
    pub(super) fn register(&mut self, name: &'a str) -> Result<Register> {
        match self.scopes.find(name) {
            Some(Name::Register(register)) => Ok(register),
            None if name == "_" => Ok(SINK),
            None if name.starts_with('%') && special(name).is_none() => {
                let register = self.compiler.register()?;
                self.scopes.declare_outermost(name, Name::Register(register));
                Ok(register)
            }
            _ => unsupported(format!("register {name}")),
        }
    }

    fn destination(&mut self, written: &Written<'_, 'a>, index: usize) -> Result<Register> {
        match written.atom(index)? {
            Atom::Name(name, 0) => self.register(name),
            _ => written.refuse(),
        }
    }

    /// The value of an operand of a type.
    fn value(&mut self, atom: Atom<'a>, kind: Type) -> Result<Operand> {
        match atom {
            Atom::Number(digits, negative) => {
                let bits = number_bits(digits, kind, negative);
                bits.map(Operand::Bits).ok_or_else(|| Unsupported(format!("number {digits}")))
            }
            Atom::Name(name, added) => self.named(name, added),
            Atom::Element(name, _) => unsupported(format!("an element of {name}")),
        }
    }

    fn named(&mut self, name: &'a str, added: i64) -> Result<Operand> {
        let place = |base: u64| Ok(Operand::Bits(base.wrapping_add_signed(added)));
        match self.scopes.find(name) {
            Some(Name::Register(register)) if added == 0 => return Ok(Operand::Register(register)),
            Some(Name::Register(_)) => return unsupported(format!("a sum with {name}")),
            Some(Name::Local(base) | Name::Parameter(base) | Name::Shared(base)) => return place(base),
            Some(Name::Dynamic) => return Ok(Operand::Dynamic(added)),
            None => {}
        }
        if let Some(value) = special(name) {
            return Ok(value);
        }
        if name.starts_with('%') {
            return Ok(Operand::Register(self.register(name)?));
        }
        match self.compiler.module_shared(name)? {
            Some(Name::Shared(base)) => return place(base),
            Some(_) => return Ok(Operand::Dynamic(added)),
            None => {}
        }
        if let Some(index) = self.compiler.variable(name)? {
            return Ok(Operand::Variable(index, added));
        }
        match self.compiler.function_address(name) {
            Some(address) => place(address),
            None => unsupported(format!("the address of {name}")),
        }
    }

    fn operand(&mut self, written: &Written<'_, 'a>, index: usize, kind: Type) -> Result<Operand> {
        match written.argument(index)? {
            Argument::One(atom) => self.value(*atom, kind),
            Argument::Not(atom) => {
                let src =
                    [self.value(*atom, Type::Pred)?, Operand::Bits(0), Operand::Bits(0), Operand::Bits(0)];
                let dst = self.compiler.register()?;
                self.emit(written.guard, Op::Compute { apply: |[a, ..]| a ^ 1, dst, src });
                Ok(Operand::Register(dst))
            }
            _ => written.refuse(),
        }
    }

    /// The operands from `first` on, up to four.
    fn sources(&mut self, written: &Written<'_, 'a>, first: usize, kind: Type) -> Result<[Operand; 4]> {
        let mut src = [Operand::Bits(0); 4];
        if written.arguments.len() > first + src.len() {
            return written.refuse();
        }
        for (slot, index) in src.iter_mut().zip(first..written.arguments.len()) {
            *slot = self.operand(written, index, kind)?;
        }
        Ok(src)
    }

    fn compute(&mut self, written: &Written<'_, 'a>) -> Result {
        let (kind, mut flavour) = (written.kind()?, flavour(written)?);
        if flavour.saturate && !kind.is_float() && kind.halves().is_none() {
            flavour.name.push_str(".sat");
            flavour.saturate = false;
        }
        let element = kind.halves().unwrap_or(kind);
        let apply = function(&flavour.name, element, flavour.rounding);
        let apply = apply.ok_or_else(|| Unsupported(written.opcode.into()))?;
        let dst = self.destination(written, 0)?;
        let immediate = if kind.halves().is_some() { Type::U32 } else { kind };
        let src = self.sources(written, 1, immediate)?;
        self.emit_compute(written.guard, kind, apply, dst, src);
        if flavour.saturate {
            let apply = function("saturate", element, Rounding::Nearest);
            let apply = apply.ok_or_else(|| Unsupported(written.opcode.into()))?;
            let src = [Operand::Register(dst), Operand::Bits(0), Operand::Bits(0), Operand::Bits(0)];
            self.emit_compute(written.guard, kind, apply, dst, src);
        }
        Ok(())
    }

    fn emit_compute(
        &mut self,
        guard: Option<Guard>,
        kind: Type,
        apply: Apply,
        dst: Register,
        src: [Operand; 4],
    ) {
        let halves = kind.halves().is_some();
        let op = if halves { Op::ComputeHalves { apply, dst, src } } else { Op::Compute { apply, dst, src } };
        self.emit(guard, op);
    }

    /// Additions and subtractions that read or write the carry flag.
    fn carrying(&mut self, written: &Written<'_, 'a>) -> Result {
        let (kind, flavour) = (written.kind()?, flavour(written)?);
        let dst = self.destination(written, 0)?;
        let [mut a, mut b, c, _] = self.sources(written, 1, kind)?;
        let find = |name: &str| {
            function(name, kind, Rounding::Nearest).ok_or_else(|| Unsupported(written.opcode.into()))
        };
        if let Some(part) = flavour.name.strip_prefix("madc.").or_else(|| flavour.name.strip_prefix("mad.")) {
            let apply = find(&format!("mul.{part}"))?;
            let dst = self.compiler.register()?;
            self.emit(
                written.guard,
                Op::Compute { apply, dst, src: [a, b, Operand::Bits(0), Operand::Bits(0)] },
            );
            (a, b) = (Operand::Register(dst), c);
        }
        let reads = written.base.ends_with('c');
        let carry = if reads { Operand::Register(CARRY) } else { Operand::Bits(0) };
        let name = if written.base.starts_with("sub") { "subc" } else { "addc" };
        let src = [a, b, carry, Operand::Bits(0)];
        let out = self.compiler.register()?;
        self.emit(written.guard, Op::Compute { apply: find(&format!("{name}.out"))?, dst: out, src });
        self.emit(written.guard, Op::Compute { apply: find(name)?, dst, src });
        if flavour.carries {
            let src = [Operand::Register(out), Operand::Bits(0), Operand::Bits(0), Operand::Bits(0)];
            self.emit(written.guard, Op::Compute { apply: find("mov")?, dst: CARRY, src });
        }
        Ok(())
    }

    /// `setp` gives one or two predicates; `set` gives a number.
    fn set(&mut self, written: &Written<'_, 'a>) -> Result {
        let types = written.types();
        let kind = written.kind()?;
        let name = *written.modifiers.first().ok_or_else(|| Unsupported(written.opcode.into()))?;
        let apply = comparison(name, kind).ok_or_else(|| Unsupported(written.opcode.into()))?;
        let join = written.modifiers.iter().find_map(|word| match *word {
            "and" => Some(Join::And),
            "or" => Some(Join::Or),
            "xor" => Some(Join::Xor),
            _ => None,
        });
        let one = match (written.base, types.first()) {
            ("set", Some(Type::F32)) => 1.0_f32.to_bits().into(),
            ("set", Some(Type::F16)) => super::convert::f16_from(1.0).into(),
            ("set", Some(Type::Bf16)) => super::convert::bf16_from(1.0).into(),
            ("set", Some(Type::U32 | Type::S32)) => 0xffff_ffff,
            ("set", Some(Type::U16 | Type::S16)) => 0xffff,
            ("set", _) => return written.refuse(),
            _ => 1,
        };
        let dst = match written.argument(0)? {
            Argument::Pair(Atom::Name(p, 0), Atom::Name(q, 0)) => [self.register(p)?, self.register(q)?],
            _ => [self.destination(written, 0)?, SINK],
        };
        let mut src = [Operand::Bits(0); 3];
        for (index, slot) in src.iter_mut().enumerate().take(if join.is_some() { 3 } else { 2 }) {
            *slot = self.operand(written, index + 1, if index == 2 { Type::Pred } else { kind })?;
        }
        self.emit(written.guard, Op::Compare { apply, join, dst, one, src });
        Ok(())
    }

    /// The first of two values if the third operand is not negative, else the second.
    fn select_by_sign(&mut self, written: &Written<'_, 'a>) -> Result {
        let (types, kind) = (written.types(), written.kind()?);
        let first = *types.first().ok_or_else(|| Unsupported(written.opcode.into()))?;
        let dst = self.destination(written, 0)?;
        let (a, b) = (self.operand(written, 1, first)?, self.operand(written, 2, first)?);
        let sign = self.operand(written, 3, kind)?;
        let apply = comparison("ge", kind).ok_or_else(|| Unsupported(written.opcode.into()))?;
        let chosen = self.compiler.register()?;
        let src = [sign, Operand::Bits(0), Operand::Bits(0)];
        self.emit(written.guard, Op::Compare { apply, join: None, dst: [chosen, SINK], one: 1, src });
        let src = [a, b, Operand::Register(chosen), Operand::Bits(0)];
        self.emit(
            written.guard,
            Op::Compute { apply: |[a, b, p, _]| if p & 1 == 0 { b } else { a }, dst, src },
        );
        Ok(())
    }
}
