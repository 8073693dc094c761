//! Up to 32 threads that go side by side. Those that are behind go first, so that ways that part meet again.

use super::block::{Context, Fault, Meeting};
use super::compile::{Code, Entry};
use super::convert::Conversion;
use super::instruction::{Address, Instruction, Join, Op, Operand, Register, Shuffle, Special, Vote};
use super::program::Unsupported;
use super::spaces::{Memory, from_generic, is_in, to_generic};

const LANES: usize = 32;

/// What an instruction costs the interpreter beside the work for each lane, in units of that.
const STEP: u64 = 15;

/// The threads of a warp: registers lie lane beside lane.
#[derive(Debug)]
pub(super) struct Warp {
    index: u32,
    /// Number of each lane's thread in x, y and z.
    threads: Vec<[u32; 3]>,
    /// Lanes that have a thread.
    all: u32,
    /// Lanes whose thread has not ended.
    live: u32,
    /// Lanes that wait at a barrier.
    waiting: u32,
    meetings: [Option<Meeting>; LANES],
    /// Where each lane is.
    places: [u32; LANES],
    /// Where each lane returns to.
    returns: Vec<Vec<u32>>,
    registers: Vec<u64>,
    local: Vec<u8>,
    local_size: usize,
}

/// How execution goes on behind an instruction.
enum Flow {
    Next,
    Jump(u32),
    /// The lanes know by themselves.
    Parted,
}

fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = (mask != 0).then(|| mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(lane)
    })
}

impl Warp {
    pub(super) fn new(code: &Code, block: [u32; 3], index: u32, threads: u32) -> Self {
        let first = index * 32;
        let count = (threads - first).min(32);
        let [x, y, _] = block;
        let thread = |number: u32| [number % x, number / x % y, number / x / y];
        Self {
            index,
            threads: (first..first + count).map(thread).collect(),
            all: u32::MAX >> (32 - count),
            live: 0,
            waiting: 0,
            meetings: [None; LANES],
            places: [0; LANES],
            returns: vec![Vec::new(); LANES],
            registers: vec![0; code.registers * LANES],
            local: vec![0; code.local * LANES],
            local_size: code.local,
        }
    }

    /// Begins a block.
    pub(super) fn restart(&mut self) {
        self.live = self.all;
        self.waiting = 0;
        self.places = [0; LANES];
        self.returns.iter_mut().for_each(Vec::clear);
    }

    pub(super) fn is_done(&self) -> bool {
        self.live == 0
    }

    pub(super) fn alive(&self) -> u64 {
        self.live.count_ones().into()
    }

    pub(super) fn meeting_at(&self, id: u64) -> impl Iterator<Item = Meeting> + '_ {
        lanes(self.waiting).filter_map(move |lane| self.meetings[lane].filter(|meeting| meeting.id == id))
    }

    /// Lets the lanes go on that wait at barrier `id`.
    pub(super) fn leave_barrier(&mut self, id: u64, result: Option<u64>) {
        for lane in lanes(self.waiting) {
            if let Some(meeting) = self.meetings[lane].take_if(|meeting| meeting.id == id) {
                self.waiting &= !(1 << lane);
                if let Some(result) = result {
                    self.write(meeting.dst, lane, result);
                }
            }
        }
    }

    /// The lanes that are furthest behind, where they are, and where the next ones are.
    fn group(&self) -> Option<(u32, u32, u32)> {
        let runnable = self.live & !self.waiting;
        let place = lanes(runnable).map(|lane| self.places[lane]).min()?;
        let (mut mask, mut next) = (0, u32::MAX);
        for lane in lanes(runnable) {
            match self.places[lane] {
                here if here == place => mask |= 1 << lane,
                other => next = next.min(other),
            }
        }
        Some((place, mask, next))
    }

    /// Runs until all lanes have ended or wait at a barrier.
    pub(super) fn run<M: Memory>(&mut self, context: &mut Context<'_, M>) -> Result<(), Fault> {
        while let Some((mut place, mask, next)) = self.group() {
            let cost = STEP + u64::from(mask.count_ones());
            loop {
                context.steps_left = context.steps_left.checked_sub(cost).ok_or(Fault::TooLong)?;
                let code = context.code;
                let instruction = code.instructions.get(place as usize).ok_or(Fault::Stuck)?;
                let active = mask & self.guarded(instruction);
                match self.execute(context, &instruction.op, place, mask, active)? {
                    Flow::Next => place += 1,
                    Flow::Jump(target) => place = target,
                    Flow::Parted => break,
                }
                if place >= next {
                    self.send(mask, place);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Lanes whose guard lets them through.
    fn guarded(&self, instruction: &Instruction) -> u32 {
        let Some(guard) = instruction.guard else { return u32::MAX };
        let row = guard.register as usize * LANES;
        let values = &self.registers[row..row + LANES];
        let set = values
            .iter()
            .enumerate()
            .fold(0_u32, |mask, (lane, value)| mask | u32::from(value & 1 == 1) << lane);
        if guard.negated { !set } else { set }
    }

    fn send(&mut self, mask: u32, place: u32) {
        lanes(mask).for_each(|lane| self.places[lane] = place);
    }

    fn write(&mut self, register: Register, lane: usize, value: u64) {
        self.registers[register as usize * LANES + lane] = value;
    }

    fn read<M>(&self, context: &Context<'_, M>, operand: Operand, lane: usize) -> u64 {
        match operand {
            Operand::Register(register) => self.registers[register as usize * LANES + lane],
            Operand::Bits(bits) => bits,
            Operand::Variable(index, added) => {
                let base = context.launch.variables.get(index as usize).copied();
                base.unwrap_or_default().wrapping_add_signed(added)
            }
            Operand::Dynamic(added) => context.dynamic.wrapping_add_signed(added),
            Operand::Special(special) => self.special(context, special, lane),
        }
    }

    fn special<M>(&self, context: &Context<'_, M>, special: Special, lane: usize) -> u64 {
        let axis = |values: &[u32; 3], axis: u8| u64::from(values[usize::from(axis)]);
        let bit = 1_u64 << lane;
        let launch = &context.launch;
        match special {
            Special::Thread(n) => axis(&self.threads[lane], n),
            Special::BlockSize(n) => axis(&launch.block, n),
            Special::Block(n) => axis(&context.block, n),
            Special::GridSize(n) => axis(&launch.grid, n),
            Special::Lane => lane as u64,
            Special::Warp => self.index.into(),
            Special::Warps => context.warps.into(),
            Special::MaskEqual => bit,
            Special::MaskLess => bit - 1,
            Special::MaskLessEqual => bit | (bit - 1),
            Special::MaskGreater => 0xffff_ffff & !(bit | (bit - 1)),
            Special::MaskGreaterEqual => 0xffff_ffff & !(bit - 1),
            Special::Clock => launch.steps - context.steps_left,
            Special::DynamicShared => launch.shared.into(),
            Special::TotalShared => context.spaces.shared.len() as u64,
        }
    }

    fn execute<M: Memory>(
        &mut self,
        context: &mut Context<'_, M>,
        op: &Op,
        place: u32,
        mask: u32,
        active: u32,
    ) -> Result<Flow, Fault> {
        if active == 0 {
            return Ok(Flow::Next);
        }
        match op {
            Op::Compute { apply, dst, src } => {
                for lane in lanes(active) {
                    let values = src.map(|operand| self.read(context, operand, lane));
                    self.write(*dst, lane, apply(values));
                }
            }
            Op::Load { .. } | Op::Store { .. } | Op::Atomic { .. } | Op::CopyLocal { .. } => {
                self.access(context, op, active)?;
            }
            Op::TakeResults { function, results } => {
                for lane in lanes(active) {
                    let frame = &self.entry(context, *function, lane)?.frame;
                    let copies =
                        frame.results.iter().zip(results).map(|(&(from, size), &to)| (from, to, size));
                    self.copy_local(lane, copies)?;
                }
            }
            Op::Branch { .. }
            | Op::BranchIndexed { .. }
            | Op::Call { .. }
            | Op::CallIndirect { .. }
            | Op::Return
            | Op::Exit
            | Op::Barrier { .. } => return self.part(context, op, place, mask, active),
            Op::Trap => return Err(Fault::Trap),
            Op::Missing { name } => return Err(Unsupported(format!("a call of {name}")).into()),
            Op::Nothing => {}
            Op::Shuffle { .. }
            | Op::Vote { .. }
            | Op::ActiveMask { .. }
            | Op::Match { .. }
            | Op::Reduce { .. } => {
                self.meet(context, op, active);
            }
            _ => self.work(context, op, active),
        }
        Ok(Flow::Next)
    }

    /// What each lane does for itself, beside the plain computations.
    fn work<M>(&mut self, context: &Context<'_, M>, op: &Op, active: u32) {
        for lane in lanes(active) {
            let read = |operand: &Operand| self.read(context, *operand, lane);
            let (dst, value) = match op {
                Op::ComputeHalves { apply, dst, src } => {
                    let values = [read(&src[0]), read(&src[1]), read(&src[2]), read(&src[3])];
                    let half = |shift: u32| apply(values.map(|value| value >> shift & 0xffff)) & 0xffff;
                    (*dst, half(16) << 16 | half(0))
                }
                Op::Compare { apply, join, dst, one, src } => {
                    let (result, other) = (apply(read(&src[0]), read(&src[1])), read(&src[2]) & 1 == 1);
                    let joined = |value: bool| match join {
                        None => value,
                        Some(Join::And) => value && other,
                        Some(Join::Or) => value || other,
                        Some(Join::Xor) => value ^ other,
                    };
                    let number = |value: bool| if joined(value) { *one } else { 0 };
                    let (yes, no) = (number(result), number(!result));
                    self.write(dst[1], lane, no);
                    (dst[0], yes)
                }
                &Op::Convert { from, to, whole, rounding, saturate, dst, ref src } => {
                    (dst, Conversion { from, to, whole, rounding, saturate }.apply(read(src)))
                }
                Op::ToGeneric { space, dst, src } => (*dst, to_generic(*space, read(src))),
                Op::FromGeneric { space, dst, src } => (*dst, from_generic(*space, read(src))),
                Op::IsSpace { space, dst, src } => (*dst, u64::from(is_in(*space, read(src)))),
                _ => return,
            };
            self.write(dst, lane, value);
        }
    }

    fn local_of(&self, lane: usize) -> std::ops::Range<usize> {
        lane * self.local_size..(lane + 1) * self.local_size
    }

    /// The address that a lane means. Several values lie at a multiple of their size together.
    fn locate<M>(
        &self,
        context: &Context<'_, M>,
        address: &Address,
        lane: usize,
        size: usize,
    ) -> Result<u64, Fault> {
        let at = self.read(context, address.base, lane).wrapping_add_signed(address.offset);
        if at.is_multiple_of(size as u64) { Ok(at) } else { Err(Fault::Misaligned { address: at }) }
    }

    fn access<M: Memory>(&mut self, context: &mut Context<'_, M>, op: &Op, active: u32) -> Result<(), Fault> {
        for lane in lanes(active) {
            let local = self.local_of(lane);
            match op {
                Op::Load { address, kind, dst } => {
                    let at = self.locate(context, address, lane, kind.size() * dst.len())?;
                    for (index, &register) in dst.iter().enumerate() {
                        let at = at.wrapping_add((index * kind.size()) as u64);
                        let own = &self.local[local.clone()];
                        let value = context.spaces.load(own, address.space, at, *kind)?;
                        self.write(register, lane, value);
                    }
                }
                Op::Store { address, kind, src } => {
                    let at = self.locate(context, address, lane, kind.size() * src.len())?;
                    for (index, &operand) in src.iter().enumerate() {
                        let at = at.wrapping_add((index * kind.size()) as u64);
                        let value = self.read(context, operand, lane);
                        let own = &mut self.local[local.clone()];
                        context.spaces.store(own, address.space, at, kind.size(), value)?;
                    }
                }
                Op::Atomic { address, kind, apply, dst, src } => {
                    let at = self.locate(context, address, lane, kind.size())?;
                    let [first, second] = src.map(|operand| self.read(context, operand, lane));
                    let own = &mut self.local[local];
                    let old = context.spaces.load(own, address.space, at, *kind)?;
                    let new = apply([old, first, second, 0]);
                    context.spaces.store(own, address.space, at, kind.size(), new)?;
                    self.write(*dst, lane, old);
                }
                Op::CopyLocal { to, from, bytes } => {
                    let (to, from, bytes) = (*to as usize, *from as usize, *bytes as usize);
                    self.local[local].copy_within(from..from + bytes, to);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn call<M>(
        &mut self,
        context: &Context<'_, M>,
        lane: usize,
        place: u32,
        target: u32,
    ) -> Result<(), Fault> {
        if self.returns[lane].len() >= context.code.functions {
            return Err(Unsupported("a function that calls itself".into()).into());
        }
        self.returns[lane].push(place + 1);
        self.places[lane] = target;
        Ok(())
    }

    /// The function that a lane's operand points to.
    fn entry<'c, M>(
        &self,
        context: &Context<'c, M>,
        function: Operand,
        lane: usize,
    ) -> Result<&'c Entry, Fault> {
        let address = self.read(context, function, lane);
        context.code.entries.get(&address).ok_or(Fault::IllegalAddress { address })
    }

    /// Copies within a lane's local memory: from, to and bytes of each.
    fn copy_local(
        &mut self,
        lane: usize,
        copies: impl Iterator<Item = (u64, u64, usize)>,
    ) -> Result<(), Fault> {
        let range = self.local_of(lane);
        let local = &mut self.local[range];
        for (from, to, size) in copies {
            let place = |address: u64| usize::try_from(address).ok().filter(|at| at + size <= local.len());
            let (Some(from), Some(to)) = (place(from), place(to)) else {
                return Err(Fault::IllegalAddress { address: from.max(to) });
            };
            local.copy_within(from..from + size, to);
        }
        Ok(())
    }

    /// Instructions behind which lanes may go different ways.
    fn part<M>(
        &mut self,
        context: &mut Context<'_, M>,
        op: &Op,
        place: u32,
        mask: u32,
        active: u32,
    ) -> Result<Flow, Fault> {
        if let (Op::Branch { target }, true) = (op, active == mask) {
            return Ok(Flow::Jump(*target));
        }
        self.send(mask, place + 1);
        for lane in lanes(active) {
            match op {
                Op::Branch { target } => self.places[lane] = *target,
                Op::BranchIndexed { targets, index } => {
                    let index = self.read(context, *index, lane) & 0xffff_ffff;
                    let target = targets.get(usize::try_from(index).unwrap_or(usize::MAX));
                    self.places[lane] = *target.ok_or(Fault::Trap)?;
                }
                Op::Call { target } => self.call(context, lane, place, *target)?,
                Op::CallIndirect { function, arguments } => {
                    let Entry { start, frame } = self.entry(context, *function, lane)?;
                    if frame.parameters.len() != arguments.len() {
                        return Err(Unsupported("a call with other arguments than declared".into()).into());
                    }
                    let parameters = frame.parameters.iter().zip(arguments);
                    self.copy_local(lane, parameters.map(|(&(to, size), &from)| (from, to, size)))?;
                    self.call(context, lane, place, *start)?;
                }
                Op::Return => match self.returns[lane].pop() {
                    Some(back) => self.places[lane] = back,
                    None => self.live &= !(1 << lane),
                },
                Op::Exit => self.live &= !(1 << lane),
                _ => self.wait(context, op, lane)?,
            }
        }
        Ok(Flow::Parted)
    }

    fn wait<M>(&mut self, context: &mut Context<'_, M>, op: &Op, lane: usize) -> Result<(), Fault> {
        let Op::Barrier { id, count, gather, dst, src, waits } = op else { return Ok(()) };
        let low = |value: u64| value & 0xffff_ffff;
        let id = low(self.read(context, *id, lane));
        let slot = usize::try_from(id).ok().and_then(|id| context.arrived.get_mut(id));
        let slot = slot.ok_or_else(|| Unsupported(format!("barrier {id}")))?;
        if !waits {
            *slot += 1;
            return Ok(());
        }
        let count = count.map(|count| low(self.read(context, count, lane)));
        let value = src.is_some_and(|src| self.read(context, src, lane) & 1 == 1);
        self.meetings[lane] = Some(Meeting { id, count, gather: *gather, dst: *dst, value });
        self.waiting |= 1 << lane;
        Ok(())
    }

    /// Instructions in which the lanes of a warp see each other's values.
    fn meet<M>(&mut self, context: &Context<'_, M>, op: &Op, active: u32) {
        match op {
            Op::Shuffle { .. } => self.shuffle(context, op, active),
            Op::Vote { mode, dst, src, negated } => {
                let holds = |lane: usize| (self.read(context, *src, lane) & 1 == 1) != *negated;
                let votes =
                    lanes(active).filter(|&lane| holds(lane)).fold(0_u32, |all, lane| all | 1 << lane);
                let result = match mode {
                    Vote::All => u64::from(votes == active),
                    Vote::Any => u64::from(votes != 0),
                    Vote::Uniform => u64::from(votes == active || votes == 0),
                    Vote::Ballot => votes.into(),
                };
                lanes(active).for_each(|lane| self.write(*dst, lane, result));
            }
            Op::ActiveMask { dst } => lanes(active).for_each(|lane| self.write(*dst, lane, active.into())),
            Op::Match { all, dst, src } => {
                let values: Vec<(usize, u64)> =
                    lanes(active).map(|lane| (lane, self.read(context, *src, lane))).collect();
                for &(lane, value) in &values {
                    let same = values.iter().filter(|other| other.1 == value);
                    let same = same.fold(0_u32, |mask, other| mask | 1 << other.0);
                    let agreed = same == active;
                    let result = if *all && !agreed { 0 } else { same };
                    self.write(dst[0], lane, result.into());
                    self.write(dst[1], lane, agreed.into());
                }
            }
            Op::Reduce { apply, dst, src } => {
                let values = lanes(active).map(|lane| self.read(context, *src, lane));
                let result = values.reduce(|a, b| apply([a, b, 0, 0])).unwrap_or_default();
                lanes(active).for_each(|lane| self.write(*dst, lane, result));
            }
            _ => {}
        }
    }

    /// The third operand holds the highest lane in its low bits, and above them which bits of the lane's number
    /// choose the part of the warp.
    fn shuffle<M>(&mut self, context: &Context<'_, M>, op: &Op, active: u32) {
        let Op::Shuffle { mode, dst, value, lane: by, clamp } = op else { return };
        let mut values = [0; LANES];
        for lane in lanes(self.all) {
            values[lane] = self.read(context, *value, lane);
        }
        for lane in lanes(active) {
            let low = |operand: &Operand, shift: u32| self.read(context, *operand, lane) >> shift & 31;
            let (own, by, clamp, part) = (lane as u64, low(by, 0), low(clamp, 0), low(clamp, 8));
            let highest = own & part | clamp & !part;
            let (from, inside) = match mode {
                Shuffle::Up => (own.wrapping_sub(by), own >= by && own - by >= highest),
                Shuffle::Down => (own + by, own + by <= highest),
                Shuffle::Butterfly => (own ^ by, own ^ by <= highest),
                Shuffle::Index => {
                    let from = own & part | by & !part;
                    (from, from <= highest)
                }
            };
            let from = if inside { usize::try_from(from).unwrap_or(lane) } else { lane };
            self.write(dst[0], lane, values.get(from).copied().unwrap_or_default());
            self.write(dst[1], lane, inside.into());
        }
    }
}
