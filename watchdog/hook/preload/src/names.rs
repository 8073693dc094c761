//! Which of NVIDIA's libraries a file name means. Pure: it opens nothing.

use core::ffi::{CStr, c_char, c_int};

/// A library that the proxy stands in for.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Library {
    /// Any other file.
    Other = 0,
    /// The CUDA driver.
    Cuda = 1,
    /// The management library.
    Nvml = 2,
}

impl Library {
    /// The proxy's file for it, in the folder of the hook.
    pub(crate) fn proxy(self) -> &'static CStr {
        if self == Self::Nvml { c"libnvidia-ml.so.1" } else { c"libcuda.so.1" }
    }
}

/// What `file`, a name or a path, means: the last part decides, with any version at its end.
///
/// # Safety
/// `file` is null or ends with a zero.
pub(crate) unsafe fn library(file: *const c_char) -> Library {
    if file.is_null() {
        return Library::Other;
    }
    // SAFETY: the caller passes a text that ends with a zero.
    let slash = unsafe { libc::strrchr(file, c_int::from(b'/')) };
    let base = if slash.is_null() { file } else { slash.wrapping_add(1).cast_const() };
    // SAFETY: it is the end of that text.
    unsafe {
        if is_version_of(c"libcuda.so", base) {
            Library::Cuda
        } else if is_version_of(c"libnvidia-ml.so", base) {
            Library::Nvml
        } else {
            Library::Other
        }
    }
}

/// Whether `name` is `stem`, or `stem` and a version such as `.1` or `.550.54.15`.
unsafe fn is_version_of(stem: &CStr, name: *const c_char) -> bool {
    // SAFETY: both end with a zero, and no more of `name` is read than is known to be there.
    unsafe {
        let length = stem.count_bytes();
        if libc::strncmp(name, stem.as_ptr(), length) != 0 {
            return false;
        }
        let version = name.wrapping_add(length);
        let dotted = libc::strspn(version, c".0123456789".as_ptr());
        let ended = libc::strcmp(version.wrapping_add(dotted), c"".as_ptr()) == 0;
        ended && (dotted == 0 || libc::strncmp(version, c".".as_ptr(), 1) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(file: &CStr) -> Library {
        // SAFETY: a C string ends with a zero.
        unsafe { library(file.as_ptr()) }
    }

    #[test]
    fn the_drivers_names_are_known_with_any_version_and_in_any_folder() {
        for name in [
            c"libcuda.so",
            c"libcuda.so.1",
            c"libcuda.so.550.54.15",
            c"/usr/lib64/libcuda.so.1",
            c"./libcuda.so",
        ] {
            assert_eq!(of(name), Library::Cuda, "{name:?}");
        }
        assert_eq!(of(Library::Cuda.proxy()), Library::Cuda);
        assert_eq!(of(Library::Nvml.proxy()), Library::Nvml);
        for name in [c"libnvidia-ml.so", c"libnvidia-ml.so.1", c"/a b/libnvidia-ml.so.535.1"] {
            assert_eq!(of(name), Library::Nvml, "{name:?}");
        }
    }

    #[test]
    fn names_that_only_resemble_them_are_left_alone() {
        for name in [
            c"",
            c"/",
            c"libcuda.so.1/libother.so",
            c"libcudart.so.10.2",
            c"libcuda.so1",
            c"libcuda.so.1.bak",
            c"libcuda.sox",
            c"xlibcuda.so.1",
            c"libnvidia-ml.so.1 ",
            c"libcuda",
            c"libcudadebugger.so.1",
        ] {
            assert_eq!(of(name), Library::Other, "{name:?}");
        }
        // SAFETY: null is allowed.
        assert_eq!(unsafe { library(core::ptr::null()) }, Library::Other);
    }
}
