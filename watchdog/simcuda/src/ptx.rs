//! PTX, NVIDIA's portable assembly: reads a module in text form, and computes what its kernels compute.
//!
//! Pure: memory of the device is behind a trait, and nothing here knows of time. What is not understood is said, and
//! such a kernel is not run at all. After the PTX ISA: <https://docs.nvidia.com/cuda/parallel-thread-execution/>.

mod arithmetic;
mod block;
mod compile;
mod convert;
mod decode;
mod floats;
mod instruction;
mod integers;
mod lex;
mod parse;
mod program;
mod scope;
mod spaces;
#[cfg(test)]
mod tests;
mod types;
mod warp;

pub use self::block::{Fault, Launch};
pub use self::compile::Code;
pub use self::parse::Malformed;
pub use self::program::{Kernel, Parameter, Program, Unsupported, Variable};
pub use self::spaces::Memory;
