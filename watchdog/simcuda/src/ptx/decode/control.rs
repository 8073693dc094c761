//! Instructions that decide what runs next, and those in which threads meet.

use super::super::arithmetic::function;
use super::super::compile::{Body, Result};
use super::super::instruction::{Address, Gather, Op, Operand, Register, SINK, Shuffle, Vote};
use super::super::program::Unsupported;
use super::super::scope::Name;
use super::super::types::{Rounding, Space, Type};
use super::{Argument, Atom, Written};

impl<'p, 'a> Body<'_, 'p, 'a>
where
    'p: 'a,
{
    pub(super) fn control(&mut self, written: &Written<'_, 'a>) -> Result {
        match written.base {
            "bra" => {
                let Atom::Name(label, 0) = written.atom(0)? else { return written.refuse() };
                let target = self.label(label);
                self.emit(written.guard, Op::Branch { target });
            }
            "brx" => {
                let index = self.operand(written, 0, Type::U32)?;
                let Atom::Name(table, 0) = written.atom(1)? else { return written.refuse() };
                let here = self.here();
                self.jumps.push((here, table));
                self.emit(written.guard, Op::BranchIndexed { targets: Vec::new(), index });
            }
            "call" => return self.call(written),
            "ret" => self.emit(written.guard, if self.is_kernel { Op::Exit } else { Op::Return }),
            "exit" => self.emit(written.guard, Op::Exit),
            "trap" => self.emit(written.guard, Op::Trap),
            "bar" | "barrier" => return self.barrier(written),
            "shfl" => return self.shuffle(written),
            "vote" => return self.vote(written),
            "activemask" => {
                let dst = self.destination(written, 0)?;
                self.emit(written.guard, Op::ActiveMask { dst });
            }
            "match" => return self.matching(written),
            _ => return self.reduce(written),
        }
        Ok(())
    }

    /// `call (results), function, (arguments)`, of which only the function has to be there.
    fn call(&mut self, written: &Written<'_, 'a>) -> Result {
        let mut arguments = written.arguments.iter();
        let mut next = arguments.next();
        let results = match next {
            Some(Argument::List(atoms)) => {
                next = arguments.next();
                atoms.clone()
            }
            _ => Vec::new(),
        };
        let Some(&Argument::One(Atom::Name(name, 0))) = next else { return written.refuse() };
        let values = match arguments.next() {
            Some(Argument::List(atoms)) => atoms.clone(),
            None => Vec::new(),
            Some(_) => return written.refuse(),
        };
        let is_register = matches!(self.scopes.find(name), Some(Name::Register(_))) || name.starts_with('%');
        if is_register {
            let function = Operand::Register(self.register(name)?);
            return self.call_indirect(written, function, &results, &values);
        }
        let function = self.compiler.program.functions.get(name).filter(|function| function.body.is_some());
        let Some(function) = function else {
            // What is printed is not shown; nothing else can be left out.
            let op = if name == "vprintf" { Op::Nothing } else { Op::Missing { name: name.into() } };
            self.emit(written.guard, op);
            return Ok(());
        };
        let frame = self.compiler.frame(function)?;
        if frame.parameters.len() != values.len() || frame.results.len() < results.len() {
            return written.refuse();
        }
        for (value, (place, size)) in values.into_iter().zip(frame.parameters) {
            self.pass(written, value, place, size)?;
        }
        let called = self.compiler.called(&function.name);
        let here = self.here();
        self.compiler.calls.push((here, called));
        self.emit(written.guard, Op::Call { target: 0 });
        for (result, (place, size)) in results.into_iter().zip(frame.results) {
            self.take_result(written, result, place, size)?;
        }
        Ok(())
    }

    /// A call of the function that a register points to: it is known only then where its arguments and results lie.
    fn call_indirect(
        &mut self,
        written: &Written<'_, 'a>,
        function: Operand,
        results: &[Atom<'a>],
        values: &[Atom<'a>],
    ) -> Result {
        let program = self.compiler.program;
        for name in program.referenced_functions() {
            self.compiler.called(name);
        }
        let arguments = values.iter().map(|&value| self.stage(written, value)).collect::<Result<Vec<_>>>()?;
        self.emit(written.guard, Op::CallIndirect { function, arguments });
        let slots = results.iter().map(|&result| self.slot(written, result)).collect::<Result<Vec<_>>>()?;
        let places = slots.iter().map(|&(place, _)| place).collect();
        self.emit(written.guard, Op::TakeResults { function, results: places });
        for (place, register) in slots {
            if let Some(register) = register {
                let address = Address { space: Space::Local, base: Operand::Bits(place), offset: 0 };
                self.emit(written.guard, Op::Load { address, kind: Type::U64, dst: vec![register] });
            }
        }
        Ok(())
    }

    /// Where an argument lies in local memory; one in a register is put there.
    fn stage(&mut self, written: &Written<'_, 'a>, value: Atom<'a>) -> Result<u64> {
        if let Atom::Name(name, 0) = value
            && let Some(Name::Local(place)) = self.scopes.find(name)
        {
            return Ok(place);
        }
        let place = self.compiler.local(8, 8)?;
        let src = vec![self.value(value, Type::U64)?];
        let address = Address { space: Space::Local, base: Operand::Bits(place), offset: 0 };
        self.emit(written.guard, Op::Store { address, kind: Type::U64, src });
        Ok(place)
    }

    /// Where a result goes in local memory, and the register that it is loaded to from there.
    fn slot(&mut self, written: &Written<'_, 'a>, result: Atom<'a>) -> Result<(u64, Option<Register>)> {
        let Atom::Name(name, 0) = result else { return written.refuse() };
        if let Some(Name::Local(place)) = self.scopes.find(name) {
            return Ok((place, None));
        }
        let place = self.compiler.local(8, 8)?;
        let address = Address { space: Space::Local, base: Operand::Bits(place), offset: 0 };
        self.emit(written.guard, Op::Store { address, kind: Type::U64, src: vec![Operand::Bits(0)] });
        Ok((place, Some(self.register(name)?)))
    }

    /// Copies an argument to where the function expects it.
    fn pass(&mut self, written: &Written<'_, 'a>, value: Atom<'a>, place: u64, size: usize) -> Result {
        if let Atom::Name(name, 0) = value
            && let Some(Name::Local(from)) = self.scopes.find(name)
        {
            return self.copy(written, place, from, size);
        }
        let kind = unsigned(size).ok_or_else(|| Unsupported(written.opcode.into()))?;
        let src = vec![self.value(value, kind)?];
        let address = Address { space: Space::Local, base: Operand::Bits(place), offset: 0 };
        self.emit(written.guard, Op::Store { address, kind, src });
        Ok(())
    }

    fn take_result(&mut self, written: &Written<'_, 'a>, to: Atom<'a>, place: u64, size: usize) -> Result {
        let Atom::Name(name, 0) = to else { return written.refuse() };
        if let Some(Name::Local(to)) = self.scopes.find(name) {
            return self.copy(written, to, place, size);
        }
        let kind = unsigned(size).ok_or_else(|| Unsupported(written.opcode.into()))?;
        let dst = vec![self.register(name)?];
        let address = Address { space: Space::Local, base: Operand::Bits(place), offset: 0 };
        self.emit(written.guard, Op::Load { address, kind, dst });
        Ok(())
    }

    fn copy(&mut self, written: &Written<'_, 'a>, to: u64, from: u64, bytes: usize) -> Result {
        let narrow = |value: u64| u32::try_from(value).map_err(|_| Unsupported(written.opcode.into()));
        let op = Op::CopyLocal { to: narrow(to)?, from: narrow(from)?, bytes: narrow(bytes as u64)? };
        self.emit(written.guard, op);
        Ok(())
    }

    fn barrier(&mut self, written: &Written<'_, 'a>) -> Result {
        if written.has("warp") {
            // The threads of a warp go side by side.
            self.emit(written.guard, Op::Nothing);
            return Ok(());
        }
        if written.has("cluster") {
            return written.refuse();
        }
        let gather = match () {
            () if !written.has("red") => Gather::Nothing,
            () if written.has("popc") => Gather::Count,
            () if written.has("and") => Gather::And,
            () => Gather::Or,
        };
        let first = usize::from(gather != Gather::Nothing);
        let dst = if first == 1 { self.destination(written, 0)? } else { SINK };
        let rest = written.arguments.len().saturating_sub(first * 2);
        let id = if rest == 0 { Operand::Bits(0) } else { self.operand(written, first, Type::U32)? };
        let count = if rest > 1 { Some(self.operand(written, first + 1, Type::U32)?) } else { None };
        let last = written.arguments.len().saturating_sub(1);
        let src = if first == 1 { Some(self.operand(written, last, Type::Pred)?) } else { None };
        let waits = !written.has("arrive");
        self.emit(written.guard, Op::Barrier { id, count, gather, dst, src, waits });
        Ok(())
    }

    fn shuffle(&mut self, written: &Written<'_, 'a>) -> Result {
        let mode = match () {
            () if written.has("up") => Shuffle::Up,
            () if written.has("down") => Shuffle::Down,
            () if written.has("bfly") => Shuffle::Butterfly,
            () if written.has("idx") => Shuffle::Index,
            () => return written.refuse(),
        };
        let dst = self.pair(written)?;
        let value = self.operand(written, 1, Type::U32)?;
        let lane = self.operand(written, 2, Type::U32)?;
        let clamp = self.operand(written, 3, Type::U32)?;
        self.emit(written.guard, Op::Shuffle { mode, dst, value, lane, clamp });
        Ok(())
    }

    /// A result and, if it is wanted, a predicate.
    fn pair(&mut self, written: &Written<'_, 'a>) -> Result<[u32; 2]> {
        match written.argument(0)? {
            Argument::Pair(Atom::Name(first, 0), Atom::Name(second, 0)) => {
                Ok([self.register(first)?, self.register(second)?])
            }
            _ => Ok([self.destination(written, 0)?, SINK]),
        }
    }

    fn vote(&mut self, written: &Written<'_, 'a>) -> Result {
        let mode = match () {
            () if written.has("all") => Vote::All,
            () if written.has("any") => Vote::Any,
            () if written.has("uni") => Vote::Uniform,
            () if written.has("ballot") => Vote::Ballot,
            () => return written.refuse(),
        };
        let dst = self.destination(written, 0)?;
        let (atom, negated) = match written.argument(1)? {
            Argument::One(atom) => (*atom, false),
            Argument::Not(atom) => (*atom, true),
            _ => return written.refuse(),
        };
        let src = self.value(atom, Type::Pred)?;
        self.emit(written.guard, Op::Vote { mode, dst, src, negated });
        Ok(())
    }

    fn matching(&mut self, written: &Written<'_, 'a>) -> Result {
        let dst = self.pair(written)?;
        let src = self.operand(written, 1, written.kind()?)?;
        self.emit(written.guard, Op::Match { all: written.has("all"), dst, src });
        Ok(())
    }

    fn reduce(&mut self, written: &Written<'_, 'a>) -> Result {
        let known = ["add", "min", "max", "and", "or", "xor"];
        let name = known.into_iter().find(|name| written.has(name));
        let apply = name.and_then(|name| function(name, written.kind().ok()?, Rounding::Nearest));
        let apply = apply.ok_or_else(|| Unsupported(written.opcode.into()))?;
        let dst = self.destination(written, 0)?;
        let src = self.operand(written, 1, written.kind()?)?;
        self.emit(written.guard, Op::Reduce { apply, dst, src });
        Ok(())
    }
}

/// The type of as many bytes.
fn unsigned(size: usize) -> Option<Type> {
    [Type::U8, Type::U16, Type::U32, Type::U64].into_iter().find(|kind| kind.size() == size)
}
