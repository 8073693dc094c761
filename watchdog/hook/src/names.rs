//! Names that the proxy exports, and which of them the driver offers under which name and version.
//!
//! Made by the build script from `facts/`. It never says what a name does.

use core::ffi::CStr;

/// An export that `cuGetProcAddress` offers.
#[derive(Debug)]
pub(crate) struct Offer {
    /// Name asked for.
    pub(crate) asked: &'static CStr,
    /// First CUDA version with this form.
    pub(crate) version: i32,
    /// Whether its default stream is the thread's own.
    pub(crate) per_thread: bool,
    /// Place in [`NAMES`].
    pub(crate) index: usize,
}

/// Whether the export's default stream is the thread's own.
pub(crate) const fn is_per_thread(name: &CStr) -> bool {
    matches!(name.to_bytes(), [.., b'_', b'p', b't', b's', b'z'] | [.., b'_', b'p', b't', b'd', b's'])
}

include!(concat!(env!("OUT_DIR"), "/names.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_the_management_library_comes_last() {
        let sorted = NAMES.iter().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(sorted.len(), COUNT);
        let cuda = NAMES.iter().take_while(|name| name.to_bytes().starts_with(b"cu")).count();
        assert_eq!(cuda, CUDA);
        assert_eq!(NAMES[index::cuLaunchKernel], c"cuLaunchKernel");
    }

    #[test]
    fn the_per_thread_forms_are_those_that_the_driver_offers_as_such() {
        for offer in OFFERS {
            let named = NAMES[offer.index];
            assert_eq!(is_per_thread(named), offer.per_thread, "{named:?}");
        }
    }
}
