//! Contexts: the primary one of each device, others, and which one is current on a thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::gpu::StreamKind;
use crate::wire::{Request, Target};

use super::abi::{ContextParameters, ExecAffinity};
use super::export_tables::LocalStorage;
use super::green;
use super::state::{
    Context, Driver, current_handle, driver, lock, new_handle, pop_current, push_current, set_current,
};
use super::stream::Stream;
use super::{CudaError, Handle, In, Out, Result, driver};

/// What MPS calls the part of the SMs that a client may use, in percent.
const SM_SHARE: &str = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE";

/// The share that the environment gives to all contexts of this process.
fn share_from_environment() -> u8 {
    std::env::var(SM_SHARE).map_or(100, |text| parse_share(&text))
}

/// Percent, rounded up; what is no share means no limit, as with MPS.
fn parse_share(text: &str) -> u8 {
    let share = text.trim().parse::<f64>().ok().filter(|share| *share > 0.0 && *share <= 100.0);
    share.and_then(|share| (1..=100).find(|&percent| f64::from(percent) >= share)).unwrap_or(100)
}

/// Which of the device's SMs a context may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sms {
    /// All that the environment leaves to the process.
    All,
    /// At most as many.
    Some(u32),
    /// As many, in a context that has no memory of its own.
    Green(u32),
}

/// Makes a context.
pub(super) fn create(
    driver: &Driver,
    ordinal: i32,
    flags: u32,
    sms: Sms,
    primary: bool,
) -> Result<Arc<Context>> {
    let device = driver.device(ordinal)?;
    let gpu = u8::try_from(device.index).map_err(|_| CudaError::INVALID_DEVICE)?;
    let most = match sms {
        Sms::All => device.sms,
        Sms::Some(sms) | Sms::Green(sms) => sms.min(device.sms),
    };
    let wanted = (most * 100).div_ceil(device.sms).clamp(1, 100);
    let sm = share_from_environment().min(u8::try_from(wanted).unwrap_or(100));
    let (id, legacy) = (driver.number(), driver.number());
    let green = matches!(sms, Sms::Green(_));
    driver.link.call(|token| Request::CreateContext { token, gpu, context: id, legacy, sm, green })?;
    let handle = new_handle();
    let context = Arc::new(Context {
        handle,
        ordinal,
        gpu,
        id,
        sms: (device.sms * u32::from(sm)).div_ceil(100).min(most),
        primary,
        flags: AtomicU32::new(flags),
        limits: initial_limits(),
        broken: AtomicU32::new(0),
        legacy: Arc::new(Stream::new(handle, gpu, legacy, StreamKind::Legacy, 0)),
        per_thread: std::sync::Mutex::default(),
        storage: LocalStorage::default(),
    });
    driver.contexts.insert(handle, Arc::clone(&context));
    Ok(context)
}

/// The limits that a context begins with: stack, printf buffer, heap.
fn initial_limits() -> std::sync::Mutex<std::collections::HashMap<u32, usize>> {
    [(0, 1024), (1, 1 << 20), (2, 8 << 20), (3, 2), (4, 2048), (5, 64), (6, 0)]
        .into_iter()
        .collect::<std::collections::HashMap<_, _>>()
        .into()
}

/// Waits for all work of the context, and gives back all that it has.
pub(super) fn destroy(driver: &Driver, context: &Context) -> Result {
    // A context is destroyed also if its work failed.
    let _ = synchronize(driver, context);
    context.storage.end(context.handle);
    driver.contexts.remove(context.handle)?;
    driver.streams.retain(|stream| stream.context != context.handle);
    driver.memory.release_context(driver, context.handle)?;
    let (gpu, id) = (context.gpu, context.id);
    driver.link.call(|token| Request::DestroyContext { token, gpu, context: id }).map(|_| ())
}

fn wait_for(driver: &Driver, context: &Context) -> Result {
    let (gpu, scope) = (context.gpu, Target::Context(context.id));
    driver.link.call(|token| Request::Watch { token, gpu, scope }).map(|_| ())
}

/// Waits for all work that is queued in the context.
pub(super) fn synchronize(driver: &Driver, context: &Context) -> Result {
    wait_for(driver, context)?;
    if context.primary {
        // Green contexts are parts of the primary one.
        green::of_device(driver, context.ordinal).iter().try_for_each(|part| wait_for(driver, part))?;
    }
    context.check()
}

fn create_current(out: Out<Handle>, ordinal: i32, flags: u32, sms: Sms) -> Result {
    if out.is_null() {
        return Err(CudaError::INVALID_VALUE);
    }
    let context = create(driver()?, ordinal, flags, sms, false)?;
    push_current(context.handle)?;
    out.set(context.handle)
}

fn affinity(list: In<ExecAffinity>, count: i32) -> Result<Sms> {
    if count <= 0 || list.is_null() {
        return Ok(Sms::All);
    }
    let first = list.get()?;
    if first.kind != 0 || first.sms == 0 { Err(CudaError::INVALID_VALUE) } else { Ok(Sms::Some(first.sms)) }
}

/// Gives the device's primary context, which is made if there is none.
pub(super) fn retain_primary(out: Out<Handle>, device: i32) -> Result {
    let driver = driver()?;
    let mut primary = lock(driver.primary(device)?);
    let context = match &primary.context {
        Some(context) => Arc::clone(context),
        None => create(driver, device, primary.flags, Sms::All, true)?,
    };
    out.set(context.handle)?;
    primary.context = Some(context);
    primary.retained += 1;
    Ok(())
}

/// Drops one hold of a device's primary context, or all; without one it is destroyed. The lock is not held meanwhile:
/// owners of values in the context are told, and may call the driver.
pub(super) fn release_primary(driver: &Driver, device: i32, all: bool) -> Result {
    let mut primary = lock(driver.primary(device)?);
    primary.retained =
        if all { 0 } else { primary.retained.checked_sub(1).ok_or(CudaError::INVALID_CONTEXT)? };
    let ended = if primary.retained == 0 { primary.context.take() } else { None };
    drop(primary);
    let Some(context) = ended else { return Ok(()) };
    green::end_all(driver, device)?;
    destroy(driver, &context)
}

driver! {
    fn [cuDevicePrimaryCtxRetain] (out: Out<Handle>, device: i32) {
        retain_primary(out, device)
    }

    fn [cuDevicePrimaryCtxRelease cuDevicePrimaryCtxRelease_v2] (device: i32) {
        release_primary(driver()?, device, false)
    }

    fn [cuDevicePrimaryCtxReset cuDevicePrimaryCtxReset_v2] (device: i32) {
        release_primary(driver()?, device, true)
    }

    fn [cuDevicePrimaryCtxSetFlags cuDevicePrimaryCtxSetFlags_v2] (device: i32, flags: u32) {
        let mut primary = lock(driver()?.primary(device)?);
        primary.flags = flags;
        if let Some(context) = &primary.context {
            context.flags.store(flags, Ordering::Relaxed);
        }
        Ok(())
    }

    fn [cuDevicePrimaryCtxGetState] (device: i32, flags: Out<u32>, active: Out<i32>) {
        let primary = lock(driver()?.primary(device)?);
        flags.set_if_wanted(primary.flags);
        active.set_if_wanted(i32::from(primary.context.is_some()));
        Ok(())
    }

    fn [cuCtxCreate_v2] (out: Out<Handle>, flags: u32, device: i32) {
        create_current(out, device, flags, Sms::All)
    }

    fn [cuCtxCreate_v3] (out: Out<Handle>, affinities: In<ExecAffinity>, count: i32, flags: u32, device: i32) {
        create_current(out, device, flags, affinity(affinities, count)?)
    }

    fn [cuCtxCreate_v4] (out: Out<Handle>, parameters: In<ContextParameters>, flags: u32, device: i32) {
        let sms = match parameters.get() {
            Ok(parameters) => affinity(parameters.affinities, parameters.affinity_count)?,
            Err(_) => Sms::All,
        };
        create_current(out, device, flags, sms)
    }

    fn [cuCtxDestroy cuCtxDestroy_v2 cuCtxDetach] (handle: Handle) {
        let driver = driver()?;
        let context = driver.contexts.get(handle).map_err(|_| CudaError::INVALID_CONTEXT)?;
        if context.primary || green::is_green(handle) {
            return Err(CudaError::INVALID_CONTEXT);
        }
        if current_handle() == Some(handle) {
            pop_current();
        }
        destroy(driver, &context)
    }

    fn [cuCtxAttach] (out: Out<Handle>, _flags: u32) {
        out.set(driver()?.current()?.handle)
    }

    fn [cuCtxPushCurrent cuCtxPushCurrent_v2] (handle: Handle) {
        driver()?.contexts.get(handle).map_err(|_| CudaError::INVALID_CONTEXT)?;
        push_current(handle)
    }

    fn [cuCtxPopCurrent cuCtxPopCurrent_v2] (out: Out<Handle>) {
        driver()?;
        let handle = pop_current().ok_or(CudaError::INVALID_CONTEXT)?;
        out.set_if_wanted(handle);
        Ok(())
    }

    fn [cuCtxSetCurrent] (handle: Handle) {
        let driver = driver()?;
        if handle != 0 {
            driver.contexts.get(handle).map_err(|_| CudaError::INVALID_CONTEXT)?;
        }
        set_current(handle)
    }

    fn [cuCtxGetCurrent] (out: Out<Handle>) {
        driver()?;
        out.set(current_handle().unwrap_or(0))
    }

    fn [cuCtxGetDevice] (device: Out<i32>) {
        device.set(driver()?.current()?.ordinal)
    }

    fn [cuCtxGetId] (context: Handle, id: Out<u64>) {
        id.set(driver()?.context(context)?.id.into())
    }

    fn [cuCtxGetFlags] (flags: Out<u32>) {
        flags.set(driver()?.current()?.flags.load(Ordering::Relaxed))
    }

    fn [cuCtxSetFlags] (flags: u32) {
        driver()?.current()?.flags.store(flags, Ordering::Relaxed);
        Ok(())
    }

    fn [cuCtxSynchronize] () {
        let driver = driver()?;
        synchronize(driver, &*driver.current()?)
    }

    fn [cuCtxGetLimit] (value: Out<usize>, limit: u32) {
        let context = driver()?.current()?;
        let known = lock(&context.limits).get(&limit).copied();
        value.set(known.ok_or(CudaError::UNSUPPORTED_LIMIT)?)
    }

    fn [cuCtxSetLimit] (limit: u32, value: usize) {
        let context = driver()?.current()?;
        let mut limits = lock(&context.limits);
        *limits.get_mut(&limit).ok_or(CudaError::UNSUPPORTED_LIMIT)? = value;
        Ok(())
    }

    fn [cuCtxGetCacheConfig cuCtxGetSharedMemConfig] (config: Out<u32>) {
        driver()?.current()?;
        config.set(0)
    }

    fn [cuCtxSetCacheConfig cuCtxSetSharedMemConfig] (_config: u32) {
        driver()?.current().map(|_| ())
    }

    fn [cuCtxResetPersistingL2Cache] () {
        driver()?.current().map(|_| ())
    }

    fn [cuCtxGetApiVersion] (context: Handle, version: Out<u32>) {
        driver()?.context(context)?;
        version.set(3020)
    }

    fn [cuCtxGetStreamPriorityRange] (least: Out<i32>, greatest: Out<i32>) {
        driver()?.current()?;
        least.set_if_wanted(0);
        greatest.set_if_wanted(-5);
        Ok(())
    }

    fn [cuCtxGetExecAffinity] (affinity: Out<ExecAffinity>, kind: u32) {
        let sms = driver()?.current()?.sms;
        if kind == 0 { affinity.set(ExecAffinity { kind, sms }) } else { Err(CudaError::INVALID_VALUE) }
    }

    fn [cuCtxEnablePeerAccess] (peer: Handle, _flags: u32) {
        driver()?.context(peer).map(|_| ())
    }

    fn [cuCtxDisablePeerAccess] (peer: Handle) {
        driver()?.context(peer).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_rounded_up_and_nonsense_means_no_limit() {
        assert_eq!(parse_share("30"), 30);
        assert_eq!(parse_share(" 12.5 "), 13);
        assert_eq!(parse_share("0"), 100);
        assert_eq!(parse_share("120"), 100);
        assert_eq!(parse_share("half"), 100);
    }
}
