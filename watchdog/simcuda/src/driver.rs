//! The CUDA driver interface of the simulated GPU: one exported function for every name of the real one.
//!
//! Memory and answers live in the program's process, time and the card's memory book in the daemon. Each function
//! is defined by the macro `driver!`, whose bracket holds all its exported names; names that nothing defines
//! become stubs that answer "not supported".

mod abi;
mod array;
mod backing;
mod context;
mod copy;
mod device;
mod error;
mod event;
mod export_tables;
mod fatbin;
mod functional;
mod graph;
mod green;
mod interpret;
mod ipc;
mod jit;
mod launch;
mod link;
mod mapping;
mod memory;
mod module;
mod pool;
mod resolve;
mod state;
mod stream;
mod stream_values;
mod texture;
mod virtual_memory;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use self::abi::{Handle, In, Out, Text};
pub(crate) use self::device::DRIVER_VERSION;
pub(crate) use self::error::{CudaError, Result};

/// Which stream a stream argument of zero means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DefaultStream {
    /// The legacy default stream.
    Legacy,
    /// The default stream of the calling thread.
    PerThread,
}

/// Runs the body of an exported function: its result as a number, and no panic across the border.
pub(crate) fn entry(body: impl FnOnce() -> Result) -> u32 {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => error.code(),
        Err(_) => CudaError::UNKNOWN.code(),
    }
}

/// Defines exported functions. All names in the bracket have the same arguments; those behind the bar take the
/// default stream of the thread where the others take the legacy one, and the body sees which as the name that
/// follows the bracket.
macro_rules! driver {
    () => {};
    (fn [$($name:ident)+] $args:tt $body:block $($rest:tt)*) => {
        $( $crate::driver::define!($name $args $body); )+
        $crate::driver::driver!($($rest)*);
    };
    (fn [$($name:ident)+ | $($twin:ident)+] $stream:ident $args:tt $body:block $($rest:tt)*) => {
        $( $crate::driver::define!($stream = Legacy, $name $args $body); )+
        $( $crate::driver::define!($stream = PerThread, $twin $args $body); )+
        $crate::driver::driver!($($rest)*);
    };
}

macro_rules! define {
    ($stream:ident = $which:ident, $name:ident ($($arg:ident : $type:ty),* $(,)?) $body:block) => {
        #[unsafe(no_mangle)]
        extern "C" fn $name($($arg: $type),*) -> u32 {
            let $stream = $crate::driver::DefaultStream::$which;
            $crate::driver::entry(|| $body)
        }
    };
    ($name:ident ($($arg:ident : $type:ty),* $(,)?) $body:block) => {
        #[unsafe(no_mangle)]
        extern "C" fn $name($($arg: $type),*) -> u32 {
            $crate::driver::entry(|| $body)
        }
    };
}

pub(crate) use {define, driver};

/// Says once that `name` is not simulated.
pub(crate) fn log_unsupported(name: &str, logged: &AtomicBool) {
    use std::io::Write;
    if !logged.swap(true, Ordering::Relaxed) {
        let _ = writeln!(std::io::stderr(), "simcuda: {name} is not simulated; it answers \"not supported\"");
    }
}

mod stubs {
    //! Names that are not simulated.

    macro_rules! stub {
        ($name:ident) => {
            #[unsafe(no_mangle)]
            extern "C" fn $name() -> u32 {
                static LOGGED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
                super::log_unsupported(stringify!($name), &LOGGED);
                super::CudaError::NOT_SUPPORTED.code()
            }
        };
    }

    include!(concat!(env!("OUT_DIR"), "/cuda_stubs.rs"));
}
