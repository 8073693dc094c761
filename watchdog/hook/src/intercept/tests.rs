//! The list of wrappers.

use std::collections::HashSet;

use super::*;
use crate::names::NAMES;

#[test]
fn no_export_has_two_wrappers() {
    let mut seen = HashSet::new();
    for wrapper in all() {
        assert!(seen.insert(wrapper.index), "{:?}", NAMES[wrapper.index]);
    }
}

#[test]
fn a_watched_form_with_a_per_thread_twin_has_both_watched() {
    let watched = all().map(|wrapper| NAMES[wrapper.index].to_bytes()).collect::<HashSet<_>>();
    for name in NAMES {
        for suffix in [&b"_ptsz"[..], b"_ptds"] {
            if let Some(base) = name.to_bytes().strip_suffix(suffix) {
                assert_eq!(watched.contains(base), watched.contains(name.to_bytes()), "{name:?}");
            }
        }
    }
}
