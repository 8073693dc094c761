//! How a wrapper is written: one macro that gives each wrapped name its real function.
//!
//! It knows no name and no rule; those are in the modules that use it.

use core::ffi::c_void;

/// A wrapper and the export that it stands for.
pub(crate) struct Wrapper {
    /// Place in [`crate::names::NAMES`].
    pub(crate) index: usize,
    /// The wrapper's address.
    pub(crate) address: *const c_void,
}

// SAFETY: the address is a function's, which is the same and valid in every thread.
unsafe impl Sync for Wrapper {}

/// Defines wrappers: `[names](arguments) |real, per_thread| body`, where `real()` calls the real function with the
/// wrapper's arguments and `per_thread` says whether stream 0 is the thread's own. All names of one entry have one
/// signature. Ends as a list `WRAPPERS`.
macro_rules! wrappers {
    ($([$($name:ident),+ $(,)?] $args:tt |$real:ident, $per_thread:ident| $body:block)+) => {
        $($crate::wrappers::each! { [$($name),+] $args $real $per_thread $body })+

        /// Every wrapper of this module.
        pub(crate) static WRAPPERS: &[$crate::wrappers::Wrapper] = &[$($(
            $crate::wrappers::Wrapper {
                index: $crate::names::index::$name,
                address: $name as *const core::ffi::c_void,
            },
        )+)+];
    };
}

macro_rules! each {
    ([$($name:ident),+] $args:tt $real:ident $per_thread:ident $body:tt) => {
        $($crate::wrappers::one! { $name $args $real $per_thread $body })+
    };
}

macro_rules! one {
    ($name:ident ($($arg:ident: $kind:ty),* $(,)?) $real:ident $per_thread:ident $body:block) => {
        #[allow(non_snake_case)] // The name is the driver's.
        unsafe extern "C" fn $name($($arg: $kind),*) -> $crate::abi::Status {
            #[allow(unused_variables)] // Not every body looks at it.
            let $per_thread =
                const { $crate::names::is_per_thread($crate::names::NAMES[$crate::names::index::$name]) };
            let $real = || {
                let address = $crate::forward::real($crate::names::index::$name);
                // SAFETY: the export of this name has this signature (the API's reference), or is a stand-in that
                // reads no argument.
                let function = unsafe {
                    core::mem::transmute::<
                        *mut core::ffi::c_void,
                        unsafe extern "C" fn($($kind),*) -> $crate::abi::Status,
                    >(address)
                };
                // SAFETY: these are the caller's own arguments, which it vouches for.
                unsafe { function($($arg),*) }
            };
            $body
        }
    };
}

pub(crate) use {each, one, wrappers};
