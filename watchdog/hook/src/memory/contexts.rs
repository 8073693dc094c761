//! What a context takes of the card by itself: measured when it is made, charged until it ends.
//!
//! The management library tells what this process takes, or how much more of the card is taken than before. Where it
//! is not there, a context is not charged. With a context all ends that was taken in it.

use std::sync::OnceLock;

use gpu_share::units::Bytes;

use super::holdings::{Holding, Key};
use crate::abi::{Handle, NvmlMemory, NvmlProcess, Status};
use crate::config::say;
use crate::driver;
use crate::green::{self, Gap};
use crate::harvest::{current, in_context};
use crate::session::{Session, session};

/// More than any context takes: what is beyond it was taken by somebody else meanwhile.
const MOST: Bytes = Bytes::gib(2);
/// Processes of one GPU that are looked through.
const PROCESSES: usize = 256;

/// The card as the management library sees it.
#[derive(Clone, Copy, Debug, Default)]
struct Sight {
    /// What is taken of the card by all.
    taken: Bytes,
    /// What this process takes, if it is listed.
    own: Option<Bytes>,
}

/// The binding's GPU in the management library.
fn device(session: &Session) -> Option<Handle> {
    static DEVICE: OnceLock<Option<usize>> = OnceLock::new();
    let find = || {
        let uuid = std::ffi::CString::new(session.page().identity().ok()?.gpu).ok()?;
        let mut device = core::ptr::null_mut();
        let found = driver::is_open(true)
            && driver::nvml_init().is_ok()
            && driver::nvml_device(uuid.as_ptr(), &mut device).is_ok();
        found.then_some(device as usize)
    };
    DEVICE.get_or_init(find).map(|device| device as Handle)
}

fn look(session: &Session) -> Option<Sight> {
    let device = device(session)?;
    let mut memory = NvmlMemory { total: 0, free: 0, used: 0 };
    driver::nvml_memory(device, &mut memory)
        .is_ok()
        .then(|| Sight { taken: Bytes(memory.used), own: own(session, device) })
}

fn own(session: &Session, device: Handle) -> Option<Bytes> {
    let mut list = vec![NvmlProcess::default(); PROCESSES];
    let mut count = u32::try_from(PROCESSES).unwrap_or(0);
    let listed = driver::nvml_processes(device, &mut count, list.as_mut_ptr()).is_ok();
    let count = if listed { usize::try_from(count).unwrap_or(0) } else { 0 };
    used_by(session.listed_as(), list.get(..count).unwrap_or(&list))
}

fn used_by(pid: u32, list: &[NvmlProcess]) -> Option<Bytes> {
    let found = list.iter().find(|process| process.pid == pid);
    // All ones: the driver does not tell.
    found.map(|process| Bytes(process.used)).filter(|bytes| bytes.0 != u64::MAX)
}

/// What came to the card between the two looks through a context of this process, which holds `held` otherwise.
fn overhead(before: Sight, after: Sight) -> Bytes {
    let grown = match (before.own, after.own) {
        (before, Some(after)) => after.saturating_sub(before.unwrap_or_default()),
        (_, None) => after.taken.saturating_sub(before.taken),
    };
    grown.min(MOST)
}

/// Makes a context with `real`, which writes it to `out`; if the share has no room for it, `undo` ends it again.
///
/// # Safety
/// `out` is the driver's own argument.
pub(crate) unsafe fn created(
    out: *mut Handle,
    real: impl FnOnce() -> Status,
    undo: impl FnOnce(Handle) -> Status,
) -> Status {
    let Some(session) = session() else { return real() };
    let before = look(session);
    let status = real();
    if !status.is_ok() || out.is_null() {
        return status;
    }
    // SAFETY: the driver succeeded, so it wrote to a valid place.
    let context = unsafe { *out };
    let bytes = before.zip(look(session)).map_or(Bytes::ZERO, |(before, after)| overhead(before, after));
    if charge(session, context as usize, bytes) {
        return status;
    }
    undo(context);
    say(&format!("a context takes {bytes}, and the share has no room for it"));
    Status::OUT_OF_MEMORY
}

fn charge(session: &Session, context: usize, bytes: Bytes) -> bool {
    if session.memory.account().holdings.contains(Key::Context(context)) {
        return true;
    }
    let granted = session.memory.reserve_or_reclaim(session, || bytes).is_some();
    if granted {
        let holding = Holding { bytes, context: 0 };
        let lost = session.memory.account().holdings.insert(Key::Context(context), holding);
        session.memory.free(session, lost.unwrap_or_default());
    }
    granted
}

/// A context that was made by a way of the driver's own (old runtimes have one) is charged when memory is first taken in
/// it, if the management library lists this process.
pub(super) fn charge_current(session: &Session) {
    let context = current();
    if context == 0 || session.memory.account().holdings.contains(Key::Context(context)) {
        return;
    }
    if green::share(session).is_some() && !green::is_part(context) {
        Gap::Elsewhere.note(context);
    }
    let own = device(session).and_then(|device| own(session, device)).unwrap_or_default();
    let bytes = own.saturating_sub(session.memory.held()).min(MOST);
    if !charge(session, context, bytes) {
        // It is there: it counts as nothing rather than being asked about again and again.
        charge(session, context, Bytes::ZERO);
    }
}

/// Frees what was taken in `context`, a part of `primary` in whose memory it would stay. What can't be freed is that one's.
pub(crate) fn empty(session: &Session, context: usize, primary: usize) {
    let keys = session.memory.account().holdings.taken_in(context);
    let free = |key| match key {
        Key::Pointer(pointer) => driver::free_memory(pointer),
        Key::Array(array) => driver::destroy_array(array as Handle),
        Key::Mipmapped(array) => driver::destroy_mipmapped_array(array as Handle),
        Key::Context(_) => Status::SUCCESS,
    };
    in_context(primary, || {
        for key in keys {
            // It is forgotten first: the driver may hand the same name out to another thread at once.
            let Some(holding) = session.memory.account().holdings.remove(key) else { continue };
            if free(key).is_ok() {
                session.memory.free(session, holding.bytes);
            } else {
                session.memory.account().holdings.insert(key, Holding { context: primary, ..holding });
            }
        }
    });
}

/// The context is gone, a part of `primary`; what was taken in it is that one's now.
pub(crate) fn handed_over(session: &Session, context: usize, primary: usize) {
    session.memory.account().holdings.hand_over(context, primary);
}

/// The context is gone, and with it all that was taken in it.
pub(crate) fn ended(session: &Session, context: usize) {
    green::forget(context);
    session.memory.change(session, |holdings| holdings.end_context(context));
    session.memory.settle_pools(session);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(taken: u64, own: Option<u64>) -> Sight {
        Sight { taken: Bytes::mib(taken), own: own.map(Bytes::mib) }
    }

    #[test]
    fn a_context_takes_what_the_process_takes_more() {
        assert_eq!(overhead(sight(100, None), sight(1000, Some(300))), Bytes::mib(300));
        assert_eq!(overhead(sight(100, Some(300)), sight(1000, Some(550))), Bytes::mib(250));
    }

    #[test]
    fn a_process_is_found_by_the_number_that_the_node_has_for_it() {
        let process = |pid, mib| NvmlProcess { pid, used: Bytes::mib(mib).0, ..NvmlProcess::default() };
        // The first is of the node, and has by chance the number that this process has in its container.
        let list = [process(7, 900), process(4021, 300)];
        assert_eq!(used_by(4021, &list), Some(Bytes::mib(300)));
        assert_eq!(used_by(8, &list), None);
        assert_eq!(used_by(9, &[NvmlProcess { used: u64::MAX, ..process(9, 0) }]), None);
    }

    #[test]
    fn an_unlisted_process_is_charged_what_the_card_lost() {
        assert_eq!(overhead(sight(100, None), sight(400, None)), Bytes::mib(300));
        assert_eq!(overhead(sight(400, None), sight(100, None)), Bytes::ZERO);
        assert_eq!(overhead(sight(0, None), sight(9000, None)), Bytes::gib(2));
    }
}
