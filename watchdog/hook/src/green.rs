//! The SM share by green contexts: a context that the program asks for is one on a part of the multiprocessors.
//!
//! It decides how large the part is, makes such contexts and ends them, and counts the contexts for which none can stand.
//! What they take is charged elsewhere. The primary context is never touched.

use core::fmt;
use core::ptr;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::{Discriminant, discriminant};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use gpu_share::units::SmShare;

use crate::abi::{DevResource, GREEN_DEFAULT_STREAM, Handle, RESOURCE_SM, Status};
use crate::config::{SmBy, config, say};
use crate::harvest::current;
use crate::session::Session;
use crate::{driver, unknown};

/// A green context that stands for a context which the program asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    green: usize,
    pub(crate) device: i32,
}

/// Those that there are, by the context that the program knows.
static PARTS: Mutex<BTreeMap<usize, Part>> = Mutex::new(BTreeMap::new());
/// Contexts that were counted as not keeping to the share.
static COUNTED: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a context does not keep to the SM share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gap {
    /// It is a device's primary context.
    Primary,
    /// It was asked for with limits of its own.
    OwnLimits,
    /// It was made by another way than `cuCtxCreate`.
    Elsewhere,
    /// The driver does not do what was asked of it.
    Refused { call: &'static str, status: Status },
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the SM share is not kept ")?;
        match self {
            Self::Primary => f.write_str(
                "in the primary context, which CUDA's runtime uses: no green context can stand for it",
            ),
            Self::OwnLimits => f.write_str("in a context that was asked for with limits of its own"),
            Self::Elsewhere => f.write_str("in a context that cuCtxCreate did not make"),
            Self::Refused { call, status: Status(code) } => {
                write!(
                    f,
                    "by a green context: {call} answers {code} (the driver must be of CUDA 12.4 or later)"
                )
            }
        }
    }
}

impl Gap {
    /// Counts `context`, once, and says why, once for each reason.
    pub(crate) fn note(self, context: usize) {
        static SAID: Mutex<Vec<Discriminant<Gap>>> = Mutex::new(Vec::new());
        if !lock(&COUNTED).insert(context) {
            return;
        }
        let mut said = lock(&SAID);
        if !said.contains(&discriminant(&self)) {
            said.push(discriminant(&self));
            say(&self.to_string());
        }
        drop(said);
        unknown::count();
    }
}

/// Says once if green contexts were asked for and are not used.
pub(crate) fn announce() {
    static SAID: Once = Once::new();
    if config().sm_by == SmBy::Percentage {
        SAID.call_once(|| {
            say("the percentage of MPS is set and keeps the SM share; no green contexts are made");
        });
    }
}

/// The SM share that green contexts have to keep, if they have to, and if it is not the whole.
pub(crate) fn share(session: &Session) -> Option<SmShare> {
    let asked = config().sm_by == SmBy::Green;
    asked.then(|| session.limits()).flatten().map(|limits| limits.sm).filter(|share| *share < SmShare::WHOLE)
}

/// How many of `all` multiprocessors a share is, rounded down.
fn multiprocessors(share: SmShare, all: u32) -> u32 {
    let part = u64::from(all) * u64::from(share.percent()) / 100;
    u32::try_from(part).unwrap_or(all)
}

/// The largest part that has no more than `wanted` multiprocessors, or the smallest that there is. `cut` asks the driver for
/// one of at least so many, which it rounds up as the hardware needs it.
fn fitting(
    wanted: u32,
    mut cut: impl FnMut(u32) -> Result<DevResource, Status>,
) -> Result<DevResource, Status> {
    for least in (1..=wanted).rev() {
        match cut(least) {
            Ok(part) if part.sms <= wanted => return Ok(part),
            // What is rounded up may be more than there are.
            Ok(_) | Err(Status::INVALID_RESOURCE_CONFIGURATION) => {}
            Err(status) => return Err(status),
        }
    }
    cut(1)
}

fn done(call: &'static str, status: Status) -> Result<(), Gap> {
    if status.is_ok() { Ok(()) } else { Err(Gap::Refused { call, status }) }
}

/// What of a device's multiprocessors `share` is; nothing if that is all of them.
pub(crate) fn part(device: i32, share: SmShare) -> Result<Option<DevResource>, Gap> {
    static SAID: Once = Once::new();
    let mut whole = DevResource::zeroed();
    done("cuDeviceGetDevResource", driver::device_resource(device, &mut whole, RESOURCE_SM))?;
    let cut = |least| {
        let (mut part, mut count) = (DevResource::zeroed(), 1);
        let status = driver::split_sms(&mut part, &mut count, &whole, ptr::null_mut(), 0, least);
        match (status.is_ok(), count, part.sms) {
            (true, 0, _) | (true, _, 0) => Err(Status::INVALID_RESOURCE_CONFIGURATION),
            (true, ..) => Ok(part),
            _ => Err(status),
        }
    };
    let part = fitting(multiprocessors(share, whole.sms), cut)
        .map_err(|status| Gap::Refused { call: "cuDevSmResourceSplitByCount", status })?;
    SAID.call_once(|| {
        say(&format!("SM share {share}: {} of {} multiprocessors, by green contexts", part.sms, whole.sms));
    });
    Ok((part.sms < whole.sms).then_some(part))
}

/// Makes a context on `part` of a device and makes it current.
pub(crate) fn create(device: i32, part: &mut DevResource) -> Result<Handle, Gap> {
    let (mut description, mut green, mut context) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    done("cuDevResourceGenerateDesc", driver::describe_resource(&mut description, part, 1))?;
    done("cuGreenCtxCreate", driver::create_green(&mut green, description, device, GREEN_DEFAULT_STREAM))?;
    let usable = done("cuCtxFromGreenCtx", driver::context_of_green(&mut context, green))
        .and_then(|()| done("cuCtxPushCurrent", driver::push_context(context)));
    if let Err(gap) = usable {
        driver::destroy_green(green);
        return Err(gap);
    }
    lock(&PARTS).insert(context as usize, Part { green: green as usize, device });
    Ok(context)
}

/// Takes the green context that stands for `context` out of the book, to end it.
pub(crate) fn take(context: usize) -> Option<Part> {
    lock(&PARTS).remove(&context)
}

/// Takes out all of a device, which have ended.
pub(crate) fn take_all(device: i32) -> Vec<usize> {
    lock(&PARTS).extract_if(.., |_, part| part.device == device).map(|(context, _)| context).collect()
}

/// `context` is gone; another one may get its handle.
pub(crate) fn forget(context: usize) {
    lock(&COUNTED).remove(&context);
}

/// Whether a green context of this library stands for `context`.
pub(crate) fn is_part(context: usize) -> bool {
    lock(&PARTS).contains_key(&context)
}

/// Ends what stands for `context`; like `cuCtxDestroy` it takes it from the thread whose current one it is.
pub(crate) fn end(context: usize, part: Part) -> Status {
    let is_current = current() == context;
    if is_current {
        let mut popped = ptr::null_mut();
        driver::pop_context(&mut popped);
    }
    let status = driver::destroy_green(part.green as Handle);
    if !status.is_ok() {
        lock(&PARTS).insert(context, part);
        if is_current {
            driver::push_context(context as Handle);
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A driver whose parts begin at `least` and are multiples of `step`, of `all`.
    fn cutting(all: u32, least: u32, step: u32) -> impl FnMut(u32) -> Result<DevResource, Status> {
        move |wish| {
            let sms = wish.max(least).next_multiple_of(step);
            if sms > all { Err(Status::INVALID_RESOURCE_CONFIGURATION) } else { Ok(DevResource::of(sms)) }
        }
    }

    fn size(percent: u8, all: u32, least: u32, step: u32) -> u32 {
        let share = SmShare::from_percent(percent).unwrap();
        fitting(multiprocessors(share, all), cutting(all, least, step)).unwrap().sms
    }

    #[test]
    fn a_part_is_the_share_rounded_down_to_what_the_hardware_allows() {
        // V100, A100 and H100 by the driver's reference.
        assert_eq!([30, 33, 50, 99].map(|percent| size(percent, 80, 2, 2)), [24, 26, 40, 78]);
        assert_eq!([30, 33, 50, 99].map(|percent| size(percent, 108, 4, 2)), [32, 34, 54, 106]);
        assert_eq!([30, 33, 50, 99].map(|percent| size(percent, 132, 8, 8)), [32, 40, 64, 128]);
    }

    #[test]
    fn a_share_below_the_smallest_part_gets_that_one() {
        assert_eq!([size(1, 80, 2, 2), size(2, 108, 4, 2), size(5, 132, 8, 8)], [2, 4, 8]);
    }

    #[test]
    fn the_whole_share_is_the_whole() {
        assert_eq!(multiprocessors(SmShare::WHOLE, 132), 132);
    }

    #[test]
    fn a_driver_without_green_contexts_is_asked_once() {
        let mut asked = 0;
        let answer = fitting(40, |_| {
            asked += 1;
            Err(Status::NOT_SUPPORTED)
        });
        assert_eq!((answer.map(|part| part.sms), asked), (Err(Status::NOT_SUPPORTED), 1));
    }

    #[test]
    fn a_gap_names_the_call_and_what_it_answers() {
        let gap = Gap::Refused { call: "cuGreenCtxCreate", status: Status::NOT_SUPPORTED };
        assert!(gap.to_string().contains("cuGreenCtxCreate answers 801"), "{gap}");
    }

    proptest::proptest! {
        #[test]
        fn a_part_is_never_larger_than_the_share_but_for_the_smallest(
            percent in 1u8..=100, all in 16u32..256, least in 1u32..9, step in 1u32..9,
        ) {
            let least = least.next_multiple_of(step);
            let (part, wanted) = (size(percent, all, least, step), all * u32::from(percent) / 100);
            proptest::prop_assert!(part <= wanted.max(least) && part >= least);
            // No larger one would have fitted.
            proptest::prop_assert!(part + step > wanted || part == least && wanted < least);
        }
    }
}
