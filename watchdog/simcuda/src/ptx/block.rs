//! Runs a kernel: its blocks one after the other, the warps of a block in turns from barrier to barrier.

use std::fmt;

use super::compile::Code;
use super::instruction::{Gather, Register};
use super::program::Unsupported;
use super::spaces::{Memory, Spaces};
use super::warp::Warp;

/// What a launch gives to a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z: at most 1024 in all.
    pub block: [u32; 3],
    /// Bytes of shared memory beside what the kernel declares.
    pub shared: u32,
    /// The bytes of all parameters, each at its place.
    pub parameters: &'a [u8],
    /// The addresses of the variables that the kernel uses, in the order of [`Code::variables`].
    pub variables: &'a [u64],
    /// The most steps that may be run: an instruction takes one for each thread, and 15 for each warp.
    pub steps: u64,
}

/// Why a kernel did not run to its end. What it has written by then stays written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It reached beyond memory that it may use.
    #[error("address {address:#x} is not the kernel's to use")]
    IllegalAddress {
        /// Where.
        address: u64,
    },
    /// An address is no multiple of what is read or written there.
    #[error("address {address:#x} is not aligned")]
    Misaligned {
        /// Where.
        address: u64,
    },
    /// It ran into a `trap`.
    #[error("the kernel gave up by a trap")]
    Trap,
    /// It takes more steps than the launch allows.
    #[error("the kernel takes more steps than a launch may")]
    TooLong,
    /// All threads wait for each other.
    #[error("the threads of a block wait at barriers where they never meet")]
    Stuck,
    /// It does something that is not interpreted.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
}

/// What a lane that waits at a barrier brings along.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meeting {
    pub(super) id: u64,
    /// How many have to come; by default all that live.
    pub(super) count: Option<u64>,
    pub(super) gather: Gather,
    pub(super) dst: Register,
    pub(super) value: bool,
}

/// What all warps of a block share.
pub(super) struct Context<'a, M> {
    pub(super) code: &'a Code,
    pub(super) launch: Launch<'a>,
    pub(super) spaces: Spaces<'a, M>,
    /// Which block of the grid this is.
    pub(super) block: [u32; 3],
    pub(super) warps: u32,
    pub(super) steps_left: u64,
    /// Where the shared memory begins that the launch adds.
    pub(super) dynamic: u64,
    /// Those that came to a barrier and did not wait, by its number.
    pub(super) arrived: [u64; 16],
}

impl<M> fmt::Debug for Context<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("block", &self.block).finish_non_exhaustive()
    }
}

/// The most threads of a block.
const MOST_THREADS: u32 = 1024;
/// The most shared memory of a block that any card has.
const MOST_SHARED: u64 = 228 << 10;

impl Code {
    /// Runs the kernel.
    pub fn run(&self, launch: &Launch<'_>, memory: &mut impl Memory) -> Result<(), Fault> {
        let threads = launch.block.iter().try_fold(1_u32, |all, &n| all.checked_mul(n));
        let threads = threads.filter(|threads| (1..=MOST_THREADS).contains(threads));
        let threads = threads.ok_or_else(|| Unsupported(format!("a block of {:?} threads", launch.block)))?;
        let dynamic = (self.shared as u64).next_multiple_of(128);
        let shared = dynamic + u64::from(launch.shared);
        if shared > MOST_SHARED {
            return Err(Unsupported(format!("{shared} bytes of shared memory")).into());
        }
        let shared = vec![0; usize::try_from(shared).unwrap_or_default()];
        let mut context = Context {
            code: self,
            launch: *launch,
            spaces: Spaces { memory, shared, parameters: launch.parameters },
            block: [0; 3],
            warps: threads.div_ceil(32),
            steps_left: launch.steps,
            dynamic,
            arrived: [0; 16],
        };
        let mut warps: Vec<Warp> =
            (0..context.warps).map(|index| Warp::new(self, launch.block, index, threads)).collect();
        let [columns, rows, layers] = launch.grid;
        for z in 0..layers {
            for y in 0..rows {
                for x in 0..columns {
                    context.block = [x, y, z];
                    context.run_block(&mut warps)?;
                }
            }
        }
        Ok(())
    }
}

impl<M: Memory> Context<'_, M> {
    fn run_block(&mut self, warps: &mut [Warp]) -> Result<(), Fault> {
        self.spaces.shared.fill(0);
        self.arrived = [0; 16];
        warps.iter_mut().for_each(Warp::restart);
        loop {
            for warp in &mut *warps {
                warp.run(self)?;
            }
            if warps.iter().all(Warp::is_done) {
                return Ok(());
            }
            self.open_barriers(warps)?;
        }
    }

    /// Lets those go on who are complete at their barrier. Called when nobody can go on by itself.
    fn open_barriers(&mut self, warps: &mut [Warp]) -> Result<(), Fault> {
        let alive: u64 = warps.iter().map(Warp::alive).sum();
        let mut opened = false;
        for id in 0..self.arrived.len() as u64 {
            let here: Vec<Meeting> = warps.iter().flat_map(|warp| warp.meeting_at(id)).collect();
            let Some(first) = here.first() else { continue };
            let arrived = &mut self.arrived[usize::try_from(id).unwrap_or_default()];
            if (here.len() as u64) + *arrived < first.count.unwrap_or(alive) {
                continue;
            }
            *arrived = 0;
            let yes = here.iter().filter(|meeting| meeting.value).count() as u64;
            let result = match first.gather {
                Gather::Nothing => None,
                Gather::Count => Some(yes),
                Gather::And => Some(u64::from(yes == here.len() as u64)),
                Gather::Or => Some(u64::from(yes > 0)),
            };
            for warp in &mut *warps {
                warp.leave_barrier(id, result);
            }
            opened = true;
        }
        if opened { Ok(()) } else { Err(Fault::Stuck) }
    }
}
