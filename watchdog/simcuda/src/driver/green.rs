//! Green contexts: contexts on a part of a device's SMs. Their memory is the primary context's.
//!
//! Parts of compute capability 7.0 begin at 2 SMs and are multiples of 2:
//! <https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__GREEN__CONTEXTS.html>.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::context::{Sms, create, destroy, release_primary, retain_primary};
use super::state::{Context, Driver, current_handle, driver, lock, new_handle, pop_current};
use super::stream::{NON_BLOCKING, Stream};
use super::{CudaError, DefaultStream, Handle, In, Out, Result, driver};

/// The smallest part, and what its size is a multiple of.
const GRANULE: u32 = 2;

/// Kind of resource: SMs.
const SM: u32 = 1;

/// `CUdevResource`: 144 bytes in all versions.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Resource {
    kind: u32,
    internal: [u32; 23],
    sms: u32,
    smallest: u32,
    alignment: u32,
    flags: u32,
    rest: [u64; 4],
}

impl Resource {
    fn of(sms: u32) -> Self {
        let kind = if sms == 0 { 0 } else { SM };
        Self { kind, internal: [0; 23], sms, smallest: GRANULE, alignment: GRANULE, flags: 0, rest: [0; 4] }
    }
}

/// How many SMs each description stands for.
static DESCRIPTIONS: Mutex<BTreeMap<Handle, u32>> = Mutex::new(BTreeMap::new());

/// The green contexts, by the handle that is also that of their context.
static GREEN: Mutex<BTreeMap<Handle, i32>> = Mutex::new(BTreeMap::new());

/// How many parts of at least `least` SMs `all` can be cut into, and how large each is.
fn split(all: u32, least: u32, wanted: u32) -> (u32, u32) {
    let size = least.max(GRANULE).next_multiple_of(GRANULE);
    ((all / size).min(wanted), size)
}

fn resource_of(sms: u32, kind: u32) -> Result<Resource> {
    if kind == SM { Ok(Resource::of(sms)) } else { Err(CudaError::INVALID_RESOURCE_TYPE) }
}

fn green(handle: Handle) -> Result<std::sync::Arc<Context>> {
    if !is_green(handle) {
        return Err(CudaError::INVALID_HANDLE);
    }
    driver()?.contexts.get(handle)
}

/// Whether `handle` is a green context's, which only its own call ends.
pub(super) fn is_green(handle: Handle) -> bool {
    lock(&GREEN).contains_key(&handle)
}

/// The green contexts of a device.
pub(super) fn of_device(driver: &Driver, device: i32) -> Vec<std::sync::Arc<Context>> {
    let green = lock(&GREEN);
    let mine = green.iter().filter(|(_, of)| **of == device);
    mine.filter_map(|(&handle, _)| driver.contexts.get(handle).ok()).collect()
}

fn create_green(driver: &Driver, description: Handle, device: i32) -> Result<Handle> {
    let sms = lock(&DESCRIPTIONS).get(&description).copied().ok_or(CudaError::INVALID_HANDLE)?;
    let mut primary = 0;
    retain_primary(Out::to(&mut primary), device)?;
    match create(driver, device, 0, Sms::Green(sms), false) {
        Ok(context) => {
            lock(&GREEN).insert(context.handle, device);
            Ok(context.handle)
        }
        Err(error) => {
            release_primary(driver, device, false)?;
            Err(error)
        }
    }
}

fn destroy_green(driver: &Driver, handle: Handle) -> Result {
    let context = green(handle)?;
    let device = lock(&GREEN).remove(&handle).ok_or(CudaError::INVALID_HANDLE)?;
    if current_handle() == Some(handle) {
        pop_current();
    }
    if let Some(primary) = &lock(driver.primary(device)?).context {
        driver.memory.hand_over(handle, primary.handle);
    }
    destroy(driver, &context)?;
    release_primary(driver, device, false)
}

/// Ends the green contexts of a device, whose primary context ends.
pub(super) fn end_all(driver: &Driver, device: i32) -> Result {
    let ended = of_device(driver, device);
    lock(&GREEN).retain(|_, of| *of != device);
    ended.iter().try_for_each(|part| destroy(driver, part))
}

driver! {
    fn [cuDeviceGetDevResource] (device: i32, out: Out<Resource>, kind: u32) {
        out.set(resource_of(driver()?.device(device)?.sms, kind)?)
    }

    fn [cuCtxGetDevResource] (context: Handle, out: Out<Resource>, kind: u32) {
        out.set(resource_of(driver()?.context(context)?.sms, kind)?)
    }

    fn [cuGreenCtxGetDevResource] (context: Handle, out: Out<Resource>, kind: u32) {
        out.set(resource_of(green(context)?.sms, kind)?)
    }

    fn [cuStreamGetDevResource | cuStreamGetDevResource_ptsz] default
        (stream: Handle, out: Out<Resource>, kind: u32) {
        let driver = driver()?;
        let context = driver.context(driver.stream(stream, default)?.context)?;
        out.set(resource_of(context.sms, kind)?)
    }

    fn [cuDevSmResourceSplitByCount] (
        parts: Out<Resource>, count: Out<u32>, whole: In<Resource>, rest: Out<Resource>, _flags: u32, least: u32,
    ) {
        let whole = whole.get()?;
        if whole.kind != SM {
            return Err(CudaError::INVALID_RESOURCE_TYPE);
        }
        let wanted = if parts.is_null() { u32::MAX } else { count.get()? };
        let (number, size) = split(whole.sms, least, wanted);
        if number == 0 {
            return Err(CudaError::INVALID_RESOURCE_CONFIGURATION);
        }
        count.set(number)?;
        if !parts.is_null() {
            (0..number as usize).try_for_each(|index| parts.set_at(index, Resource::of(size)))?;
        }
        rest.set_if_wanted(Resource::of(whole.sms - number * size));
        Ok(())
    }

    fn [cuDevResourceGenerateDesc] (out: Out<Handle>, resources: In<Resource>, count: u32) {
        let mut sms = 0;
        for index in 0..count as usize {
            let resource = resources.at(index)?;
            if resource.kind != SM || resource.sms == 0 {
                return Err(CudaError::INVALID_RESOURCE_TYPE);
            }
            sms += resource.sms.min(1 << 16);
        }
        if sms == 0 {
            return Err(CudaError::INVALID_RESOURCE_CONFIGURATION);
        }
        let handle = new_handle();
        out.set(handle)?;
        lock(&DESCRIPTIONS).insert(handle, sms);
        Ok(())
    }

    fn [cuGreenCtxCreate] (out: Out<Handle>, description: Handle, device: i32, _flags: u32) {
        if out.is_null() {
            return Err(CudaError::INVALID_VALUE);
        }
        out.set(create_green(driver()?, description, device)?)
    }

    fn [cuGreenCtxDestroy] (handle: Handle) {
        destroy_green(driver()?, handle)
    }

    fn [cuCtxFromGreenCtx] (out: Out<Handle>, handle: Handle) {
        out.set(green(handle)?.handle)
    }

    fn [cuGreenCtxGetId] (handle: Handle, id: Out<u64>) {
        id.set(green(handle)?.id.into())
    }

    fn [cuGreenCtxStreamCreate] (out: Out<Handle>, handle: Handle, flags: u32, priority: i32) {
        // Streams of green contexts never wait for the legacy default stream.
        if out.is_null() || flags != NON_BLOCKING {
            return Err(CudaError::INVALID_VALUE);
        }
        let driver = driver()?;
        let kind = crate::gpu::StreamKind::NonBlocking;
        let stream = Stream::create(driver, &*green(handle)?, kind, priority.clamp(-5, 0))?;
        out.set(driver.streams.add(stream))
    }

    fn [cuStreamGetGreenCtx] (stream: Handle, out: Out<Handle>) {
        let context = driver()?.stream(stream, DefaultStream::Legacy)?.context;
        out.set(if is_green(context) { context } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_multiples_of_two_and_as_many_as_fit() {
        assert_eq!(split(80, 20, 10), (4, 20));
        assert_eq!(split(80, 19, 2), (2, 20));
        assert_eq!(split(80, 0, 100), (40, 2));
        assert_eq!(split(80, 81, 1).0, 0);
    }

    #[test]
    fn a_resource_is_laid_out_as_in_the_interface() {
        assert_eq!(size_of::<Resource>(), 144);
        assert_eq!(std::mem::offset_of!(Resource, sms), 96);
    }
}
