//! Instructions as they are executed: names are gone, registers and labels are numbers.

use super::types::{Rounding, Space, Type};

/// Number of a register among those of a kernel and the functions that it calls.
pub(super) type Register = u32;

/// The carry flag.
pub(super) const CARRY: Register = 0;
/// Where results go that nobody wants.
pub(super) const SINK: Register = 1;
/// The first register for names.
pub(super) const FIRST: Register = 2;

/// A value to read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Operand {
    Register(Register),
    Bits(u64),
    /// The address of a variable of the module: its place in the kernel's list, and what is added to it.
    Variable(u32, i64),
    /// A place in the shared memory whose size the launch gives.
    Dynamic(i64),
    Special(Special),
}

/// A register that the hardware sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    /// Number of the thread, in x, y or z.
    Thread(u8),
    BlockSize(u8),
    Block(u8),
    GridSize(u8),
    Lane,
    Warp,
    Warps,
    MaskEqual,
    MaskLess,
    MaskLessEqual,
    MaskGreater,
    MaskGreaterEqual,
    Clock,
    DynamicShared,
    TotalShared,
}

/// Computes a result from up to four values.
pub(super) type Apply = fn([u64; 4]) -> u64;

/// Where memory is read or written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Address {
    pub(super) space: Space,
    pub(super) base: Operand,
    pub(super) offset: i64,
}

/// How a comparison is joined with another predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Join {
    And,
    Or,
    Xor,
}

/// A predicate that guards an instruction, or its opposite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guard {
    pub(super) register: Register,
    pub(super) negated: bool,
}

/// Which lane a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What a warp is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// What a barrier gathers from those who meet there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gather {
    Nothing,
    Count,
    And,
    Or,
}

/// What an instruction does.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Compute {
        apply: Apply,
        dst: Register,
        src: [Operand; 4],
    },
    /// The same for both halves of the registers.
    ComputeHalves {
        apply: Apply,
        dst: Register,
        src: [Operand; 4],
    },
    Compare {
        apply: fn(u64, u64) -> bool,
        join: Option<Join>,
        /// The predicate, and its opposite (joined by itself).
        dst: [Register; 2],
        /// What is written for true.
        one: u64,
        src: [Operand; 3],
    },
    Convert {
        from: Type,
        to: Type,
        /// Rounds to a whole number.
        whole: bool,
        rounding: Rounding,
        saturate: bool,
        dst: Register,
        src: Operand,
    },
    Load {
        address: Address,
        kind: Type,
        dst: Vec<Register>,
    },
    Store {
        address: Address,
        kind: Type,
        src: Vec<Operand>,
    },
    /// The new value from the old one and the two operands; the old one is the result.
    Atomic {
        address: Address,
        kind: Type,
        apply: Apply,
        dst: Register,
        src: [Operand; 2],
    },
    /// Turns an address of a space into a generic one, or back.
    ToGeneric {
        space: Space,
        dst: Register,
        src: Operand,
    },
    FromGeneric {
        space: Space,
        dst: Register,
        src: Operand,
    },
    IsSpace {
        space: Space,
        dst: Register,
        src: Operand,
    },
    /// Copies bytes within local memory: arguments and results of calls.
    CopyLocal {
        to: u32,
        from: u32,
        bytes: u32,
    },
    Branch {
        target: u32,
    },
    BranchIndexed {
        targets: Vec<u32>,
        index: Operand,
    },
    Call {
        target: u32,
    },
    /// A call of the function at an address; the arguments lie at these places of local memory.
    CallIndirect {
        function: Operand,
        arguments: Vec<u64>,
    },
    /// Copies the results of a function at an address to these places.
    TakeResults {
        function: Operand,
        results: Vec<u64>,
    },
    Return,
    Exit,
    Trap,
    /// A call of a function that there is no text of.
    Missing {
        name: String,
    },
    Nothing,
    Barrier {
        id: Operand,
        count: Option<Operand>,
        gather: Gather,
        dst: Register,
        src: Option<Operand>,
        /// Those who only arrive do not wait.
        waits: bool,
    },
    Shuffle {
        mode: Shuffle,
        dst: [Register; 2],
        value: Operand,
        lane: Operand,
        clamp: Operand,
    },
    Vote {
        mode: Vote,
        dst: Register,
        src: Operand,
        negated: bool,
    },
    ActiveMask {
        dst: Register,
    },
    /// Lanes with the same value (all: only if all lanes have the same).
    Match {
        all: bool,
        dst: [Register; 2],
        src: Operand,
    },
    /// One result from the values of all lanes.
    Reduce {
        apply: Apply,
        dst: Register,
        src: Operand,
    },
}

/// An instruction.
#[derive(Clone, Debug)]
pub(super) struct Instruction {
    pub(super) guard: Option<Guard>,
    pub(super) op: Op,
}
