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
///
/// With `try {launch}` before the body, a launch (stream and job, if there is one) that can join an open batch does so at
/// once. What is left of the body is a function of its own with the same arguments, so that nothing of it costs the others
/// anything.
macro_rules! wrappers {
    ($([$($name:ident),+ $(,)?] $args:tt |$real:ident, $per_thread:ident| $(try $fast:block)? $body:block)+) => {
        $($crate::wrappers::each! { [$($name),+] $args $real $per_thread [$($fast)?] $body })+

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
    ([$($name:ident),+] $args:tt $real:ident $per_thread:ident $fast:tt $body:tt) => {
        $($crate::wrappers::one! { $name $args $real $per_thread $fast $body })+
    };
}

macro_rules! one {
    ($name:ident $args:tt $real:ident $per_thread:ident [] $body:block) => {
        $crate::wrappers::function! { [pub(super)] $name $name $args $real $per_thread $body }
    };
    ($name:ident ($($arg:ident: $kind:ty),* $(,)?) $real:ident $per_thread:ident [$fast:block] $body:block) => {
        $crate::wrappers::function! { [pub(super)] $name $name ($($arg: $kind),*) $real $per_thread {
            if let Some((asked, job)) = $fast
                && let Some(seat) = $crate::lane::seat::join(asked, job)
            {
                let status = $real();
                return if seat.leave() { $crate::launch::ended(seat, status) } else { status };
            }
            $crate::wrappers::function! {
                [#[cold] #[inline(never)]] slowly $name ($($arg: $kind),*) $real $per_thread $body
            }
            // SAFETY: these are the caller's own arguments, which it vouches for.
            unsafe { slowly($($arg),*) }
        } }
    };
}

macro_rules! function {
    (
        [$($attribute:tt)*] $own:ident $name:ident ($($arg:ident: $kind:ty),* $(,)?)
        $real:ident $per_thread:ident $body:block
    ) => {
        #[allow(non_snake_case)] // The name is the driver's.
        $($attribute)*
        unsafe extern "C" fn $own($($arg: $kind),*) -> $crate::abi::Status {
            #[allow(unused_variables)] // Not every body looks at it.
            let $per_thread =
                const { $crate::names::is_per_thread($crate::names::NAMES[$crate::names::index::$name]) };
            let $real = move || {
                let address = $crate::forward::watched($crate::names::index::$name);
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

pub(crate) use {each, function, one, wrappers};
