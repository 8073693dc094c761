//! Modules, libraries and kernels. A library is a module that belongs to no context, and a kernel is a function of
//! it, so both share their handles.

use std::collections::HashMap;
use std::ffi::{CString, c_char};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use crate::cost::SPIN;
use crate::ptx::{Kernel, Parameter, Program};
use crate::wire::Request;

use super::abi::LaunchConfig;
use super::fatbin;
use super::functional::Routine;
use super::mapping::put;
use super::memory::{Kind, allocate, release_at};
use super::state::{Driver, driver, lock};
use super::{CudaError, Handle, In, Out, Result, Text, driver};

/// The longest kernel name that is taken; it has to fit in a frame.
const LONGEST_NAME: usize = 32_768;

/// What a program loads.
#[derive(Debug)]
enum Image {
    Text(Arc<Program>),
    /// Machine code: its kernels are not read, any name is taken to be one.
    Binary,
}

/// A module or library.
#[derive(Debug)]
pub(super) struct Module {
    image: Image,
    functions: Mutex<HashMap<String, Handle>>,
    /// Variables that have been asked for: address and size.
    variables: Mutex<HashMap<String, (u64, u64)>>,
    /// Texture and surface references that have been asked for.
    pub(super) references: Mutex<HashMap<String, Handle>>,
}

/// A kernel.
#[derive(Debug)]
pub(super) struct Function {
    name: CString,
    /// Its number at the daemon.
    pub(super) number: u32,
    module: Handle,
    /// Known for modules in text form alone.
    program: Option<Arc<Program>>,
    pub(super) routine: Option<Routine>,
    /// Its first argument decides how long it runs.
    pub(super) is_spin: bool,
    /// With as many threads or more it was found to be too long to be computed.
    pub(super) too_long: AtomicU64,
    attributes: Mutex<HashMap<u32, i32>>,
}

impl Function {
    pub(super) fn name(&self) -> &str {
        self.name.to_str().unwrap_or_default()
    }

    /// The text of the kernel, and that around it.
    pub(super) fn text(&self) -> Option<(&Program, &Kernel)> {
        let program = self.program.as_ref()?;
        Some((program, program.kernel(self.name())?))
    }

    /// Known for modules in text form alone.
    pub(super) fn parameters(&self) -> Option<&[Parameter]> {
        self.text().map(|(_, kernel)| kernel.parameters())
    }

    /// The addresses of variables of its module.
    pub(super) fn variables(&self, driver: &Driver, names: &[String]) -> Result<Vec<u64>> {
        let base = |name: &String| variable(driver, self.module, name).map(|(base, _)| base);
        names.iter().map(base).collect()
    }
}

/// Reads what kind of image lies there.
fn read_image(image: In<u8>) -> Result<Image> {
    if image.is_null() {
        return Err(CudaError::INVALID_VALUE);
    }
    // Compared byte by byte: a text may be shorter than a magic number.
    let begins = |image: In<u8>, magic: u32| {
        magic.to_le_bytes().iter().enumerate().all(|(at, &byte)| image.at(at) == Ok(byte))
    };
    if begins(image, u32::from_le_bytes(*b"\x7fELF")) {
        return Ok(Image::Binary);
    }
    let image = if begins(image, fatbin::WRAPPER_MAGIC) { fatbin::unwrap(image)? } else { image };
    if begins(image, fatbin::MAGIC) {
        let capability = driver()?.device(0)?.capability;
        let text = fatbin::ptx(image, capability)?.and_then(|text| Program::parse(&text).ok());
        return Ok(text.map_or(Image::Binary, |program| Image::Text(Arc::new(program))));
    }
    let text = image.cast::<c_char>().text().get().map_err(|_| CudaError::INVALID_IMAGE)?;
    Program::parse(&text).map(|program| Image::Text(Arc::new(program))).map_err(|_| CudaError::INVALID_PTX)
}

fn read_file(path: &str) -> Result<Image> {
    let mut bytes = std::fs::read(path).map_err(|_| CudaError::FILE_NOT_FOUND)?;
    bytes.push(0);
    read_image(In::from_address(bytes.as_ptr().expose_provenance()))
}

fn load(out: Out<Handle>, image: Image) -> Result {
    if out.is_null() {
        return Err(CudaError::INVALID_VALUE);
    }
    let module = Module {
        image,
        functions: Mutex::default(),
        variables: Mutex::default(),
        references: Mutex::default(),
    };
    out.set(driver()?.modules.add(module))
}

/// Loads an image into the current context.
pub(super) fn load_module(out: Out<Handle>, image: In<u8>) -> Result {
    driver()?.current()?;
    load(out, read_image(image)?)
}

/// The number of a kernel's name at the daemon, which is told of it the first time.
fn number(driver: &Driver, name: &str) -> Result<u32> {
    let mut kernels = lock(&driver.kernels);
    if let Some(&number) = kernels.get(name) {
        return Ok(number);
    }
    let number = u32::try_from(kernels.len()).map_err(|_| CudaError::OUT_OF_MEMORY)?;
    driver.link.send(&Request::Kernel { id: number, name: name.into() })?;
    kernels.insert(name.into(), number);
    Ok(number)
}

fn function(driver: &Driver, handle: Handle, name: &str) -> Result<Handle> {
    let module = driver.modules.get(handle)?;
    let mut functions = lock(&module.functions);
    if let Some(&known) = functions.get(name) {
        return Ok(known);
    }
    let program = match &module.image {
        Image::Binary => None,
        Image::Text(program) => {
            program.kernel(name).ok_or(CudaError::NOT_FOUND)?;
            Some(Arc::clone(program))
        }
    };
    if name.is_empty() || name.len() > LONGEST_NAME {
        return Err(CudaError::NOT_FOUND);
    }
    let function = driver.functions.add(Function {
        name: CString::new(name).map_err(|_| CudaError::INVALID_VALUE)?,
        number: number(driver, name)?,
        module: handle,
        program,
        routine: Routine::named(name),
        is_spin: name == SPIN,
        too_long: AtomicU64::new(u64::MAX),
        attributes: Mutex::default(),
    });
    functions.insert(name.into(), function);
    Ok(function)
}

fn get_function(out: Out<Handle>, module: Handle, name: Text) -> Result {
    out.set(function(driver()?, module, &name.get()?)?)
}

fn get_variable(address: Out<u64>, bytes: Out<usize>, handle: Handle, name: Text) -> Result {
    let (base, size) = variable(driver()?, handle, &name.get()?)?;
    address.set_if_wanted(base);
    bytes.set_if_wanted(usize::try_from(size).unwrap_or(usize::MAX));
    Ok(())
}

/// A variable's memory and its size. It is made, and filled with its first value, when it is first asked for.
fn variable(driver: &Driver, handle: Handle, name: &str) -> Result<(u64, u64)> {
    /// Variables of machine code are not read: this is room for most.
    const UNKNOWN_SIZE: u64 = 64 << 10;
    let module = driver.modules.get(handle)?;
    let mut variables = lock(&module.variables);
    if let Some(&known) = variables.get(name) {
        return Ok(known);
    }
    let text = match &module.image {
        Image::Binary => None,
        Image::Text(program) => Some(program.variable(name).ok_or(CudaError::NOT_FOUND)?),
    };
    let size = text.map_or(UNKNOWN_SIZE, |text| text.size.max(1));
    let base = allocate(driver, &*driver.current()?, size, Kind::Device, 0)?;
    if let Some(initial) = text.and_then(|text| text.initial.as_ref()) {
        put(base, initial);
    }
    variables.insert(name.into(), (base, size));
    // Those that it points to may point back to it.
    drop(variables);
    for (place, other, added) in text.map_or(&[][..], |text| &text.references) {
        let target = match (&module.image, variable(driver, handle, other)) {
            (_, Ok((target, _))) => target,
            (Image::Text(program), Err(CudaError::NOT_FOUND)) => {
                // A function, or a name that nothing is behind.
                let Some(address) = program.function_address(other) else { continue };
                address
            }
            (_, Err(error)) => return Err(error),
        };
        put(base + place, &target.wrapping_add_signed(*added).to_le_bytes());
    }
    Ok((base, size))
}

fn unload(handle: Handle) -> Result {
    let driver = driver()?;
    let module = driver.modules.remove(handle)?;
    driver.functions.retain(|function| function.module != handle);
    for (base, _) in lock(&module.variables).drain().map(|(_, place)| place) {
        // With its context, a variable may be gone already.
        let _ = release_at(base);
    }
    Ok(())
}

fn count_functions(out: Out<u32>, handle: Handle) -> Result {
    let module = driver()?.modules.get(handle)?;
    let count = match &module.image {
        Image::Text(program) => program.kernels().len(),
        Image::Binary => lock(&module.functions).len(),
    };
    out.set(u32::try_from(count).unwrap_or(u32::MAX))
}

fn enumerate(out: Out<Handle>, limit: u32, handle: Handle) -> Result {
    let driver = driver()?;
    let module = driver.modules.get(handle)?;
    let names: Vec<String> = match &module.image {
        Image::Text(program) => program.kernels().iter().map(|kernel| kernel.name().to_owned()).collect(),
        Image::Binary => lock(&module.functions).keys().cloned().collect(),
    };
    for (index, name) in names.iter().take(limit as usize).enumerate() {
        out.set_at(index, function(driver, handle, name)?)?;
    }
    Ok(())
}

fn attribute(out: Out<i32>, number: u32, handle: Handle) -> Result {
    let function = driver()?.functions.get(handle)?;
    let set = lock(&function.attributes).get(&number).copied();
    // Numbers of CUfunction_attribute; those that depend on machine code are modest guesses.
    let value = set.map_or_else(
        || match number {
            0 => Ok(1024),
            4 => Ok(32),
            5 | 6 => Ok(70),
            8 => Ok(49_152),
            9 => Ok(-1),
            1..=17 => Ok(0),
            _ => Err(CudaError::INVALID_VALUE),
        },
        Ok,
    )?;
    out.set(value)
}

fn set_attribute(handle: Handle, number: u32, value: i32) -> Result {
    lock(&driver()?.functions.get(handle)?.attributes).insert(number, value);
    Ok(())
}

fn parameter(handle: Handle, index: usize) -> Result<Parameter> {
    let function = driver()?.functions.get(handle)?;
    let parameters = function.parameters().ok_or(CudaError::NOT_SUPPORTED)?;
    parameters.get(index).copied().ok_or(CudaError::INVALID_VALUE)
}

/// Blocks of `threads` threads that fit on one SM: at most 32 blocks and 2048 threads, or half of that.
fn blocks_per_sm(threads: i32) -> Result<i32> {
    let driver = driver()?;
    let is_small = driver.device(driver.current()?.ordinal)?.capability >= (7, 5);
    let (most_blocks, most_threads) = if is_small { (16, 1024) } else { (32, 2048) };
    if threads < 1 { Err(CudaError::INVALID_VALUE) } else { Ok((most_threads / threads).min(most_blocks)) }
}

fn best_block(grid: Out<i32>, block: Out<i32>, handle: Handle, limit: i32) -> Result {
    let driver = driver()?;
    driver.functions.get(handle)?;
    let sms = i32::try_from(driver.device(driver.current()?.ordinal)?.sms).unwrap_or(i32::MAX);
    let threads = if limit > 0 { limit.min(1024) } else { 1024 };
    block.set(threads)?;
    grid.set(sms.saturating_mul(blocks_per_sm(threads)?))
}

driver! {
    fn [cuModuleLoad] (out: Out<Handle>, path: Text) {
        driver()?.current()?;
        load(out, read_file(&path.get()?)?)
    }
    fn [cuModuleLoadData cuModuleLoadFatBinary] (out: Out<Handle>, image: In<u8>) {
        load_module(out, image)
    }
    fn [cuModuleLoadDataEx] (out: Out<Handle>, image: In<u8>, _count: u32, _options: In<u32>, _values: In<usize>) {
        load_module(out, image)
    }
    fn [cuModuleUnload cuLibraryUnload] (module: Handle) {
        unload(module)
    }
    fn [cuModuleGetFunction cuLibraryGetKernel] (out: Out<Handle>, module: Handle, name: Text) {
        get_function(out, module, name)
    }
    fn [cuModuleGetGlobal_v2 cuLibraryGetGlobal cuLibraryGetManaged]
        (address: Out<u64>, bytes: Out<usize>, module: Handle, name: Text) {
        get_variable(address, bytes, module, name)
    }
    fn [cuModuleGetFunctionCount cuLibraryGetKernelCount] (count: Out<u32>, module: Handle) {
        count_functions(count, module)
    }
    fn [cuModuleEnumerateFunctions cuLibraryEnumerateKernels] (out: Out<Handle>, limit: u32, module: Handle) {
        enumerate(out, limit, module)
    }
    fn [cuModuleGetLoadingMode] (mode: Out<u32>) {
        // Lazy.
        mode.set(2)
    }
    fn [cuLibraryLoadData] (
        out: Out<Handle>, image: In<u8>, _options: In<u32>, _values: In<usize>, _count: u32,
        _library_options: In<u32>, _library_values: In<usize>, _library_count: u32,
    ) {
        load(out, read_image(image)?)
    }
    fn [cuLibraryLoadFromFile] (
        out: Out<Handle>, path: Text, _options: In<u32>, _values: In<usize>, _count: u32,
        _library_options: In<u32>, _library_values: In<usize>, _library_count: u32,
    ) {
        load(out, read_file(&path.get()?)?)
    }
    fn [cuLibraryGetModule] (module: Out<Handle>, library: Handle) {
        driver()?.modules.get(library)?;
        module.set(library)
    }
    fn [cuKernelGetFunction] (function: Out<Handle>, kernel: Handle) {
        driver()?.functions.get(kernel)?;
        function.set(kernel)
    }
    fn [cuKernelGetLibrary cuFuncGetModule] (library: Out<Handle>, kernel: Handle) {
        library.set(driver()?.functions.get(kernel)?.module)
    }
    fn [cuKernelGetName cuFuncGetName] (name: Out<*const c_char>, function: Handle) {
        // The name lives as long as the module is loaded, which the interface asks of the caller.
        name.set(driver()?.functions.get(function)?.name.as_ptr())
    }
    fn [cuFuncGetAttribute] (value: Out<i32>, number: u32, function: Handle) {
        attribute(value, number, function)
    }
    fn [cuKernelGetAttribute] (value: Out<i32>, number: u32, kernel: Handle, _device: i32) {
        attribute(value, number, kernel)
    }
    fn [cuFuncSetAttribute] (function: Handle, number: u32, value: i32) {
        set_attribute(function, number, value)
    }
    fn [cuKernelSetAttribute] (number: u32, value: i32, kernel: Handle, _device: i32) {
        set_attribute(kernel, number, value)
    }
    fn [cuFuncSetCacheConfig cuFuncSetSharedMemConfig] (function: Handle, _config: u32) {
        driver()?.functions.get(function).map(|_| ())
    }
    fn [cuKernelSetCacheConfig] (kernel: Handle, _config: u32, _device: i32) {
        driver()?.functions.get(kernel).map(|_| ())
    }
    fn [cuFuncLoad] (function: Handle) {
        driver()?.functions.get(function).map(|_| ())
    }
    fn [cuFuncIsLoaded] (state: Out<u32>, function: Handle) {
        driver()?.functions.get(function)?;
        state.set(1)
    }
    fn [cuFuncGetParamInfo cuKernelGetParamInfo]
        (function: Handle, index: usize, offset: Out<usize>, size: Out<usize>) {
        let found = parameter(function, index)?;
        offset.set_if_wanted(found.offset);
        size.set_if_wanted(found.size);
        Ok(())
    }
    fn [cuFuncGetParamCount cuKernelGetParamCount] (function: Handle, count: Out<usize>) {
        let function = driver()?.functions.get(function)?;
        count.set(function.parameters().ok_or(CudaError::NOT_SUPPORTED)?.len())
    }
    fn [cuOccupancyMaxActiveBlocksPerMultiprocessor] (out: Out<i32>, _function: Handle, threads: i32, _shared: usize) {
        out.set(blocks_per_sm(threads)?)
    }
    fn [cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags]
        (out: Out<i32>, _function: Handle, threads: i32, _shared: usize, _flags: u32) {
        out.set(blocks_per_sm(threads)?)
    }
    fn [cuOccupancyMaxPotentialBlockSize]
        (grid: Out<i32>, block: Out<i32>, function: Handle, _shared_of: usize, _shared: usize, limit: i32) {
        best_block(grid, block, function, limit)
    }
    fn [cuOccupancyMaxPotentialBlockSizeWithFlags]
        (grid: Out<i32>, block: Out<i32>, function: Handle, _shared_of: usize, _shared: usize, limit: i32, _flags: u32) {
        best_block(grid, block, function, limit)
    }
    fn [cuOccupancyAvailableDynamicSMemPerBlock] (out: Out<usize>, _function: Handle, blocks: i32, _threads: i32) {
        let blocks = usize::try_from(blocks).ok().filter(|&blocks| blocks > 0).ok_or(CudaError::INVALID_VALUE)?;
        out.set((98_304 / blocks).min(49_152))
    }
    fn [cuOccupancyMaxPotentialClusterSize cuOccupancyMaxActiveClusters]
        (out: Out<i32>, _function: Handle, config: In<LaunchConfig>) {
        config.get()?;
        out.set(1)
    }
}
