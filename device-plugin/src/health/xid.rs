//! What an Xid means for a GPU that is shared.
//!
//! Xids are the driver's error events. The table follows NVIDIA's catalogue of Xids and its device plugin, which takes
//! every Xid for a fault of the GPU but those of applications: <https://docs.nvidia.com/deploy/xid-errors/>.

/// What follows from an Xid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A program's fault: its context is gone, the GPU is sound.
    Application,
    /// Something to know about a GPU that goes on working.
    Notice,
    /// It depends on what the driver says when it is asked.
    Doubt,
    /// The GPU needs a reset, or worse.
    Fault,
}

/// Xids of applications. 13: exception of the graphics engine (an illegal address, an illegal instruction). 31: page fault.
/// 43: the GPU stopped processing a program that misbehaved. 45: clean-up of what was pending when a program ended.
/// 68: exception of the video processor. 94: a memory error that was contained to the program that met it.
/// 109: timeout of a context switch.
const APPLICATION: [u64; 7] = [13, 31, 43, 45, 68, 94, 109];
/// 63: a row or page of memory is retired at the next reset. 92: many single-bit errors, all of them corrected.
const NOTICE: [u64; 2] = [63, 92];
/// 154: what is to be done for the GPU has changed, which NVML's event does not say.
const DOUBT: [u64; 1] = [154];

/// What `xid` means.
pub(super) fn meaning(xid: u64) -> Meaning {
    let is_in = |list: &[u64]| list.contains(&xid);
    match () {
        () if is_in(&APPLICATION) => Meaning::Application,
        () if is_in(&NOTICE) => Meaning::Notice,
        () if is_in(&DOUBT) => Meaning::Doubt,
        () => Meaning::Fault,
    }
}

/// A few words for those whose number is not known by heart.
pub(crate) fn describe(xid: u64) -> &'static str {
    match xid {
        13 => "exception of the graphics engine",
        31 => "page fault",
        43 => "a program was stopped",
        45 => "clean-up after a program",
        48 => "double-bit memory error",
        61 | 62 => "halt of the internal micro-controller",
        63 => "memory is to be retired",
        64 => "memory could not be retired",
        68 => "exception of the video processor",
        74 => "NVLink error",
        79 => "fell off the bus",
        92 => "many corrected memory errors",
        94 => "contained memory error",
        95 => "uncontained memory error",
        109 => "timeout of a context switch",
        119 | 120 => "the GPU's system processor does not answer",
        154 => "another recovery action is needed",
        _ => "see NVIDIA's catalogue of Xids",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_s_fault_is_none_of_the_gpu_and_what_nobody_knows_is_one() {
        for (xid, expected) in [
            (13, Meaning::Application),
            (31, Meaning::Application),
            (43, Meaning::Application),
            (45, Meaning::Application),
            (68, Meaning::Application),
            (94, Meaning::Application),
            (63, Meaning::Notice),
            (154, Meaning::Doubt),
            (48, Meaning::Fault),
            (74, Meaning::Fault),
            (79, Meaning::Fault),
            (95, Meaning::Fault),
            (119, Meaning::Fault),
            (9_999, Meaning::Fault),
        ] {
            assert_eq!(meaning(xid), expected, "{xid}");
        }
    }
}
