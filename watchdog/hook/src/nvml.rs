//! Wrappers of the management library: it shows the same memory as the driver does, that of the share.
//!
//! A program may use this library without the driver, so the page alone must do; it never joins the binding. Of other
//! processes nothing is shown: those of other containers are none of the program's business, and the number of a process
//! says little within a container.

use core::ffi::CStr;
use core::time::Duration;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use gpu_share::page::Snapshot;
use gpu_share::units::{Nanos, Quota};

use crate::abi::{
    Handle, NvmlMemory, NvmlMemoryV2, NvmlProcess, NvmlProcessV1, NvmlSample, NvmlUtilization, Status,
};
use crate::config::{Share, config};
use crate::driver;
use crate::memory::Usage;
use crate::session::{Session, session};
use crate::wrappers::wrappers;

/// Longest UUID that the library writes, with its zero (`NVML_DEVICE_UUID_V2_BUFFER_SIZE`).
const UUID: usize = 96;
/// Utilization is that of at least so long a time.
const PERIOD: Duration = Duration::from_millis(100);

/// What the page's copy says, for as long as no session has the page.
fn snapshot() -> Option<Snapshot> {
    let Share::Bound(place) = &config().share else { return None };
    Snapshot::parse(&std::fs::read(&place.page).ok()?).ok()
}

/// What the binding holds and may hold of `device`, if that is its GPU.
fn usage(device: Handle) -> Option<Usage> {
    if let Some(session) = session() {
        let is_own = uuid(device)? == session.page().identity().ok()?.gpu;
        return session.memory.usage(session).filter(|_| is_own);
    }
    let Snapshot { identity, limits, counters, .. } = snapshot()?;
    (uuid(device)? == identity.gpu).then_some(Usage { used: counters.memory, limit: limits.memory })
}

/// Whether `device` is the binding's GPU; what the binding has used of it so far, and its grant.
fn activity(device: Handle) -> Option<(Nanos, Quota)> {
    let (gpu, counters, limits) = match session() {
        Some(session) => {
            let page = session.page();
            (page.identity().ok()?.gpu, page.counters(), page.limits().ok()?)
        }
        None => snapshot().map(|snapshot| (snapshot.identity.gpu, snapshot.counters, snapshot.limits))?,
    };
    (uuid(device)? == gpu).then_some((counters.used, limits.grant))
}

/// How much of its grant the binding used since the last look, in percent. Looks that follow each other too soon are
/// answered as the last one was; the first one has nothing to compare with.
#[derive(Debug, Default)]
struct Utilization {
    last: Option<(Instant, Nanos)>,
    percent: u32,
}

impl Utilization {
    fn look(&mut self, now: Instant, used: Nanos, grant: Quota) -> u32 {
        let Some((then, before)) = self.last else {
            self.last = Some((now, used));
            return 0;
        };
        let span = now.duration_since(then);
        if span >= PERIOD {
            let granted = u128::from(Nanos::from(span).0) * u128::from(grant.ppm());
            let part = 100_000_000 * u128::from(used.since(before).0) / granted.max(1);
            self.percent = if granted == 0 { 0 } else { u32::try_from(part).unwrap_or(100).min(100) };
            self.last = Some((now, used));
        }
        self.percent
    }
}

/// This process as the list of a GPU's processes has it, if it holds anything there.
fn listed(device: Handle) -> Vec<NvmlProcess> {
    let Some(session) = session().filter(|_| usage(device).is_some()) else { return Vec::new() };
    let used = session.memory.held().0;
    let pid = std::process::id();
    let none = u32::MAX;
    let own = NvmlProcess { pid, used, gpu_instance: none, compute_instance: none };
    Vec::from_iter((used > 0).then_some(own))
}

/// Answers as the library does: a list that is too short is told how long it must be.
///
/// # Safety
/// Both pointers are the caller's own arguments to the library.
unsafe fn list<T>(processes: &[T], count: *mut u32, out: *mut T) -> Status {
    // SAFETY: null, or the caller's promise.
    let Some(count) = (unsafe { count.as_mut() }) else { return Status::NVML_INVALID_ARGUMENT };
    let room = core::mem::replace(count, u32::try_from(processes.len()).unwrap_or(0));
    if room < *count || (out.is_null() && *count > 0) {
        return Status::NVML_INSUFFICIENT_SIZE;
    }
    if !out.is_null() {
        // SAFETY: there is room for so many, as the caller says.
        unsafe { core::ptr::copy_nonoverlapping(processes.as_ptr(), out, processes.len()) };
    }
    Status::SUCCESS
}

/// Keeps of the samples only those of this process, which the library lists as `listed`, under the number that it knows itself
/// by.
///
/// # Safety
/// The library has just written so many.
unsafe fn keep_own(listed: u32, samples: *mut NvmlSample, count: *mut u32) {
    // SAFETY: the caller's promise.
    let (samples, count) =
        unsafe { (core::slice::from_raw_parts_mut(samples, *count as usize), &mut *count) };
    let pid = std::process::id();
    let mut kept = 0;
    for at in 0..samples.len() {
        if samples[at].pid == listed {
            samples[kept] = NvmlSample { pid, ..samples[at] };
            kept += 1;
        }
    }
    *count = u32::try_from(kept).unwrap_or(0);
}

fn uuid(device: Handle) -> Option<String> {
    let mut text = [0; UUID];
    let status = driver::nvml_uuid(device, text.as_mut_ptr(), u32::try_from(UUID).unwrap_or(0));
    if !status.is_ok() {
        return None;
    }
    let bytes = text.map(core::ffi::c_char::cast_unsigned);
    Some(CStr::from_bytes_until_nul(&bytes).ok()?.to_string_lossy().into_owned())
}

wrappers! {
    [nvmlDeviceGetMemoryInfo](device: Handle, memory: *mut NvmlMemory) |real, per_thread| {
        let status = real();
        if let Some(usage) = usage(device).filter(|_| status.is_ok()) {
            // SAFETY: the library succeeded, so it wrote to a valid place.
            let memory = unsafe { &mut *memory };
            memory.free = usage.free(memory.free);
            memory.total = usage.limit.0;
            memory.used = memory.total.saturating_sub(memory.free);
        }
        status
    }
    [nvmlDeviceGetMemoryInfo_v2](device: Handle, memory: *mut NvmlMemoryV2) |real, per_thread| {
        let status = real();
        if let Some(usage) = usage(device).filter(|_| status.is_ok()) {
            // SAFETY: the library succeeded, so it wrote to a valid place.
            let memory = unsafe { &mut *memory };
            memory.free = usage.free(memory.free);
            memory.total = usage.limit.0;
            memory.reserved = 0;
            memory.used = memory.total.saturating_sub(memory.free);
        }
        status
    }
    [nvmlDeviceGetUtilizationRates](device: Handle, rates: *mut NvmlUtilization) |real, per_thread| {
        static SEEN: Mutex<Utilization> = Mutex::new(Utilization { last: None, percent: 0 });
        let status = real();
        if let Some((used, grant)) = activity(device).filter(|_| status.is_ok()) {
            let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
            let gpu = seen.look(Instant::now(), used, grant);
            // SAFETY: the library succeeded, so it wrote to a valid place.
            let rates = unsafe { &mut *rates };
            *rates = NvmlUtilization { gpu, memory: rates.memory.min(gpu) };
        }
        status
    }
    [
        nvmlDeviceGetComputeRunningProcesses_v2, nvmlDeviceGetComputeRunningProcesses_v3,
        nvmlDeviceGetMPSComputeRunningProcesses_v2, nvmlDeviceGetMPSComputeRunningProcesses_v3,
    ](device: Handle, count: *mut u32, out: *mut NvmlProcess) |real, per_thread| {
        if activity(device).is_none() {
            return real();
        }
        // SAFETY: they are the library's own arguments.
        unsafe { list(&listed(device), count, out) }
    }
    [nvmlDeviceGetComputeRunningProcesses, nvmlDeviceGetMPSComputeRunningProcesses](
        device: Handle, count: *mut u32, out: *mut NvmlProcessV1
    ) |real, per_thread| {
        if activity(device).is_none() {
            return real();
        }
        let own = |process: NvmlProcess| NvmlProcessV1 { pid: process.pid, used: process.used };
        // SAFETY: they are the library's own arguments.
        unsafe { list(&listed(device).into_iter().map(own).collect::<Vec<_>>(), count, out) }
    }
    [nvmlDeviceGetProcessUtilization](
        device: Handle, samples: *mut NvmlSample, count: *mut u32, since: u64
    ) |real, per_thread| {
        let status = real();
        if status.is_ok() && !samples.is_null() && activity(device).is_some() {
            // SAFETY: the library succeeded, so it wrote as many as it says.
            unsafe { keep_own(session().map_or(0, Session::listed_as), samples, count) };
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utilization_is_the_part_of_the_grant_that_was_used() {
        let start = Instant::now();
        let half = Quota::from_percent(50).unwrap();
        let mut seen = Utilization::default();
        assert_eq!(seen.look(start, Nanos::from_secs(3), half), 0);
        let used = Nanos::from_secs(3) + Nanos::from_millis(50);
        assert_eq!(seen.look(start + PERIOD / 2, used, half), 0, "too soon");
        assert_eq!(seen.look(start + PERIOD * 2, used, half), 50);
        assert_eq!(seen.look(start + PERIOD * 2, used + used, half), 50, "too soon");
        assert_eq!(seen.look(start + PERIOD * 4, used + used, half), 100);
        assert_eq!(seen.look(start + PERIOD * 6, used + used, Quota::ZERO), 0);
    }

    #[test]
    fn a_list_that_is_too_short_is_told_how_long_it_must_be() {
        let (mut count, mut out) = (0, [0u8; 4]);
        // SAFETY: the places are those of this test.
        unsafe {
            assert_eq!(
                list(&[7u8, 8], &raw mut count, core::ptr::null_mut()),
                Status::NVML_INSUFFICIENT_SIZE
            );
            assert_eq!(count, 2);
            count = 4;
            assert_eq!(list(&[7u8, 8], &raw mut count, out.as_mut_ptr()), Status::SUCCESS);
            assert_eq!((count, out), (2, [7, 8, 0, 0]));
            assert_eq!(list::<u8>(&[], &raw mut count, core::ptr::null_mut()), Status::SUCCESS);
            assert_eq!(count, 0);
            assert_eq!(
                list::<u8>(&[], core::ptr::null_mut(), core::ptr::null_mut()),
                Status::NVML_INVALID_ARGUMENT
            );
        }
    }

    #[test]
    fn samples_of_other_processes_are_left_out() {
        let (own, listed) = (std::process::id(), 4021);
        let sample = |pid| NvmlSample { pid, time: u64::from(pid), percent: [1; 4] };
        let (mut samples, mut count) = ([sample(listed + 1), sample(listed), sample(listed + 2)], 3);
        // SAFETY: there are three.
        unsafe { keep_own(listed, samples.as_mut_ptr(), &raw mut count) };
        assert_eq!((count, samples[0].pid, samples[0].time), (1, own, listed.into()));
    }
}
