//! What this process knows of its driver: devices, contexts and all other objects behind handles.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use crate::card::Device;

use super::array::{Array, Mipmap};
use super::event::Event;
use super::export_tables::LocalStorage;
use super::graph::{Executable, Graph, Node, UserObject};
use super::jit::Linking;
use super::link::Link;
use super::memory::Allocations;
use super::module::{Function, Module};
use super::pool::Pools;
use super::stream::Stream;
use super::texture::{Object, Reference};
use super::virtual_memory::Physical;
use super::{CudaError, DefaultStream, Handle, Result};

/// The path of the daemon's socket.
const SOCKET: &str = "SIMCUDA_SOCKET";

static DRIVER: OnceLock<Driver> = OnceLock::new();
/// Set in a child that was forked from an initialised process, which can't use the GPU.
static FORKED: AtomicBool = AtomicBool::new(false);
/// The connection, for the forked child to close: it must not keep its parent's GPU state alive.
static DESCRIPTOR: AtomicI32 = AtomicI32::new(-1);

thread_local! {
    /// The stack of contexts of this thread. It has no destructor: programs call the driver until the process has ended.
    static CURRENT: RefCell<ContextStack> =
        const { RefCell::new(ContextStack { contexts: [0; DEEPEST_STACK], depth: 0 }) };
}

/// How many contexts can lie on a thread's stack.
const DEEPEST_STACK: usize = 64;

/// The contexts of a thread; the last one is current.
struct ContextStack {
    contexts: [Handle; DEEPEST_STACK],
    depth: usize,
}

impl ContextStack {
    fn last(&self) -> Option<Handle> {
        self.depth.checked_sub(1).map(|top| self.contexts[top])
    }

    /// Puts a context on top, unless the stack is full.
    fn push(&mut self, context: Handle) -> Result {
        *self.contexts.get_mut(self.depth).ok_or(CudaError::OUT_OF_MEMORY)? = context;
        self.depth += 1;
        Ok(())
    }

    fn pop(&mut self) -> Option<Handle> {
        let last = self.last();
        self.depth = self.depth.saturating_sub(1);
        last
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Objects by handle. Handles are never used twice.
#[derive(Debug)]
pub(super) struct Registry<T> {
    objects: RwLock<HashMap<Handle, Arc<T>>>,
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self { objects: RwLock::default() }
    }
}

impl<T> Registry<T> {
    pub(super) fn insert(&self, handle: Handle, object: Arc<T>) {
        self.objects.write().unwrap_or_else(PoisonError::into_inner).insert(handle, object);
    }

    /// Adds an object under a new handle.
    pub(super) fn add(&self, object: T) -> Handle {
        let handle = new_handle();
        self.insert(handle, Arc::new(object));
        handle
    }

    pub(super) fn get(&self, handle: Handle) -> Result<Arc<T>> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.get(&handle).cloned().ok_or(CudaError::INVALID_HANDLE)
    }

    pub(super) fn remove(&self, handle: Handle) -> Result<Arc<T>> {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        objects.remove(&handle).ok_or(CudaError::INVALID_HANDLE)
    }

    /// All objects, in no order.
    pub(super) fn all(&self) -> Vec<Arc<T>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn retain(&self, keep: impl Fn(&T) -> bool) {
        self.objects.write().unwrap_or_else(PoisonError::into_inner).retain(|_, object| keep(object));
    }
}

/// A handle that looks like a pointer and is none.
pub(super) fn new_handle() -> Handle {
    static NEXT: AtomicUsize = AtomicUsize::new(0x5151_0000_0100);
    NEXT.fetch_add(0x40, Ordering::Relaxed)
}

/// A context.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) handle: Handle,
    /// Number of the device among those that this process sees.
    pub(super) ordinal: i32,
    /// Number of the GPU at the daemon.
    pub(super) gpu: u8,
    /// Number of the context at the daemon.
    pub(super) id: u32,
    pub(super) sms: u32,
    pub(super) primary: bool,
    pub(super) flags: AtomicU32,
    pub(super) limits: Mutex<HashMap<u32, usize>>,
    /// Code of the error that made the context unusable, or 0.
    pub(super) broken: AtomicU32,
    pub(super) legacy: Arc<Stream>,
    pub(super) per_thread: Mutex<HashMap<std::thread::ThreadId, Arc<Stream>>>,
    /// What NVIDIA's runtime keeps with the context.
    pub(super) storage: LocalStorage,
}

impl Context {
    /// Fails with the error that made the context unusable.
    pub(super) fn check(&self) -> Result {
        CudaError::from_code(self.broken.load(Ordering::Relaxed)).map_or(Ok(()), Err)
    }
}

/// A device's primary context and who holds it.
#[derive(Debug, Default)]
pub(super) struct Primary {
    pub(super) context: Option<Arc<Context>>,
    pub(super) retained: u32,
    pub(super) flags: u32,
}

/// The initialised driver.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) link: Arc<Link>,
    pub(super) devices: Vec<Device>,
    pub(super) primaries: Vec<Mutex<Primary>>,
    pub(super) contexts: Registry<Context>,
    pub(super) streams: Registry<Stream>,
    pub(super) events: Registry<Event>,
    pub(super) modules: Registry<Module>,
    pub(super) functions: Registry<Function>,
    pub(super) graphs: Registry<Graph>,
    pub(super) nodes: Registry<Node>,
    pub(super) user_objects: Registry<UserObject>,
    pub(super) executables: Registry<Executable>,
    pub(super) physical: Registry<Physical>,
    pub(super) arrays: Registry<Array>,
    pub(super) mipmaps: Registry<Mipmap>,
    pub(super) references: Registry<Reference>,
    pub(super) textures: Registry<Object>,
    pub(super) links: Registry<Linking>,
    pub(super) pools: Pools,
    pub(super) memory: Arc<Allocations>,
    /// Numbers of kernels at the daemon, by name.
    pub(super) kernels: Mutex<HashMap<String, u32>>,
    numbers: AtomicU32,
}

impl Driver {
    /// A number for the daemon that was never used before.
    pub(super) fn number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn device(&self, ordinal: i32) -> Result<&Device> {
        let index = usize::try_from(ordinal).map_err(|_| CudaError::INVALID_DEVICE)?;
        self.devices.get(index).ok_or(CudaError::INVALID_DEVICE)
    }

    pub(super) fn primary(&self, ordinal: i32) -> Result<&Mutex<Primary>> {
        let index = usize::try_from(ordinal).map_err(|_| CudaError::INVALID_DEVICE)?;
        self.primaries.get(index).ok_or(CudaError::INVALID_DEVICE)
    }

    /// The current context of this thread, if it is usable.
    pub(super) fn current(&self) -> Result<Arc<Context>> {
        let handle = current_handle().ok_or(CudaError::INVALID_CONTEXT)?;
        let context = self.contexts.get(handle).map_err(|_| CudaError::INVALID_CONTEXT)?;
        context.check()?;
        Ok(context)
    }

    /// The context behind `handle`, or the current one for zero.
    pub(super) fn context(&self, handle: Handle) -> Result<Arc<Context>> {
        if handle == 0 {
            return self.current();
        }
        self.contexts.get(handle).map_err(|_| CudaError::INVALID_CONTEXT)
    }

    /// The stream behind `handle`, which may be one of the numbers that mean a default stream.
    pub(super) fn stream(&self, handle: Handle, default: DefaultStream) -> Result<Arc<Stream>> {
        const LEGACY: Handle = 1;
        const PER_THREAD: Handle = 2;
        match (handle, default) {
            (LEGACY, _) | (0, DefaultStream::Legacy) => Ok(Arc::clone(&self.current()?.legacy)),
            (PER_THREAD, _) | (0, DefaultStream::PerThread) => {
                Stream::of_this_thread(self, &*self.current()?)
            }
            _ => self.streams.get(handle),
        }
    }
}

/// The driver of this process.
pub(super) fn driver() -> Result<&'static Driver> {
    if FORKED.load(Ordering::Relaxed) {
        return Err(CudaError::NOT_INITIALIZED);
    }
    DRIVER.get().ok_or(CudaError::NOT_INITIALIZED)
}

/// Connects to the daemon, once per process.
pub(super) fn initialise() -> Result {
    static STARTING: Mutex<()> = Mutex::new(());
    let _starting = lock(&STARTING);
    if FORKED.load(Ordering::Relaxed) {
        return Err(CudaError::NOT_INITIALIZED);
    }
    if DRIVER.get().is_some() {
        return Ok(());
    }
    let (link, devices) = connect().map_err(|reason| {
        complain(&reason);
        CudaError::NO_DEVICE
    })?;
    DESCRIPTOR.store(link.descriptor(), Ordering::Relaxed);
    // SAFETY: the handler only touches two atomics and closes a descriptor, which a forked child may do.
    unsafe { libc::pthread_atfork(None, None, Some(forget_parent)) };
    let driver = Driver {
        link,
        primaries: devices.iter().map(|_| Mutex::default()).collect(),
        pools: Pools::new(devices.iter().map(|device| u8::try_from(device.index).unwrap_or(u8::MAX))),
        devices,
        contexts: Registry::default(),
        streams: Registry::default(),
        events: Registry::default(),
        modules: Registry::default(),
        functions: Registry::default(),
        graphs: Registry::default(),
        nodes: Registry::default(),
        user_objects: Registry::default(),
        executables: Registry::default(),
        physical: Registry::default(),
        arrays: Registry::default(),
        mipmaps: Registry::default(),
        references: Registry::default(),
        textures: Registry::default(),
        links: Registry::default(),
        memory: Arc::default(),
        kernels: Mutex::default(),
        numbers: AtomicU32::new(1),
    };
    DRIVER.set(driver).map_err(|_| CudaError::UNKNOWN)
}

fn connect() -> std::result::Result<(Arc<Link>, Vec<Device>), String> {
    let path = std::env::var(SOCKET)
        .map_err(|_| format!("{SOCKET} is not set, allowed is the path of simgpu's socket"))?;
    let (link, devices) = Link::connect(&path)
        .map_err(|error| format!("{SOCKET} is {path:?}, and nobody serves GPUs there: {error}"))?;
    let wanted = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let devices = visible(&devices, wanted.as_deref());
    if devices.is_empty() {
        return Err(format!("CUDA_VISIBLE_DEVICES is {:?} and leaves no GPU", wanted.unwrap_or_default()));
    }
    Ok((link, devices))
}

fn complain(reason: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "simcuda: no GPU: {reason}");
}

extern "C" fn forget_parent() {
    FORKED.store(true, Ordering::Relaxed);
    let descriptor = DESCRIPTOR.swap(-1, Ordering::Relaxed);
    if descriptor >= 0 {
        // SAFETY: the descriptor is the child's copy, and all functions that would use it fail from now on.
        unsafe { libc::close(descriptor) };
    }
}

/// The devices that `CUDA_VISIBLE_DEVICES` leaves: by index or (the beginning of) a UUID, up to the first that does
/// not exist. A device named twice leaves none.
fn visible(devices: &[Device], wanted: Option<&str>) -> Vec<Device> {
    let Some(wanted) = wanted else { return devices.to_vec() };
    let mut seen: Vec<Device> = Vec::new();
    for name in wanted.split(',').map(str::trim) {
        let by_index = name.parse::<usize>().ok().and_then(|index| devices.get(index));
        let by_uuid =
            || devices.iter().find(|device| name.starts_with("GPU-") && device.uuid.starts_with(name));
        let Some(device) = by_index.or_else(by_uuid) else { break };
        if seen.contains(device) {
            return Vec::new();
        }
        seen.push(device.clone());
    }
    seen
}

/// The current context's handle, also if the context is gone.
pub(super) fn current_handle() -> Option<Handle> {
    CURRENT.with_borrow(ContextStack::last).filter(|&handle| handle != 0)
}

pub(super) fn push_current(handle: Handle) -> Result {
    CURRENT.with_borrow_mut(|stack| stack.push(handle))
}

pub(super) fn pop_current() -> Option<Handle> {
    CURRENT.with_borrow_mut(ContextStack::pop)
}

/// Replaces the top of the stack; zero takes it away.
pub(super) fn set_current(handle: Handle) -> Result {
    CURRENT.with_borrow_mut(|stack| {
        stack.pop();
        if handle == 0 { Ok(()) } else { stack.push(handle) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::Card;
    use gpu_share::units::Bytes;

    fn indices(wanted: Option<&str>) -> Vec<u32> {
        let devices: Vec<Device> = (0..3)
            .map(|index| Device::new(&Card::V100, Bytes::gib(16), std::path::Path::new("/s"), index))
            .collect();
        let wanted = wanted.map(|text| text.replace("UUID1", &devices[1].uuid));
        visible(&devices, wanted.as_deref()).iter().map(|device| device.index).collect()
    }

    #[test]
    fn visible_devices_are_named_by_index_or_uuid_up_to_the_first_unknown() {
        assert_eq!(indices(None), [0, 1, 2]);
        assert_eq!(indices(Some("2,0")), [2, 0]);
        assert_eq!(indices(Some("UUID1")), [1]);
        assert_eq!(indices(Some("1,7,0")), [1]);
        assert!(indices(Some("")).is_empty());
        assert!(indices(Some("-1")).is_empty());
        assert!(indices(Some("1,1")).is_empty());
    }
}
