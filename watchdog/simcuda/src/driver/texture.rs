//! Texture and surface references and objects: what a program sets it can read again. Nothing samples them here.

use std::sync::Mutex;

use super::state::{driver, lock};
use super::{CudaError, Handle, In, Out, Result, Text, driver};

/// A texture or surface reference of a module.
#[derive(Debug, Default)]
pub(super) struct Reference(Mutex<Settings>);

/// What is set in a reference; numbers are those of the interface.
#[derive(Clone, Copy, Debug, Default)]
struct Settings {
    array: Handle,
    mipmapped: Handle,
    address: u64,
    format: u32,
    channels: i32,
    address_modes: [u32; 3],
    filter: u32,
    mipmap_filter: u32,
    mipmap_bias: f32,
    mipmap_clamp: [f32; 2],
    anisotropy: u32,
    border: [f32; 4],
    flags: u32,
}

/// A texture or surface object: the descriptions that it was made of.
#[derive(Debug)]
pub(super) struct Object {
    resource: ResourceDescription,
    texture: TextureDescription,
    view: Option<ViewDescription>,
}

/// `CUDA_RESOURCE_DESC`: kind, a union, flags.
type ResourceDescription = [u64; 18];
/// `CUDA_TEXTURE_DESC`.
type TextureDescription = [u32; 26];
/// `CUDA_RESOURCE_VIEW_DESC`.
type ViewDescription = [u64; 14];

fn change(reference: Handle, change: impl FnOnce(&mut Settings)) -> Result {
    change(&mut lock(&driver()?.references.get(reference)?.0));
    Ok(())
}

fn settings(reference: Handle) -> Result<Settings> {
    Ok(*lock(&driver()?.references.get(reference)?.0))
}

/// The handle of a reference of a module: always the same for a name.
fn of_module(out: Out<Handle>, module: Handle, name: Text) -> Result {
    let (driver, name) = (driver()?, name.get()?);
    let module = driver.modules.get(module)?;
    let mut known = lock(&module.references);
    out.set(*known.entry(name).or_insert_with(|| driver.references.add(Reference::default())))
}

/// An object's description, or the error for an object that never had it.
fn describe<T>(out: Out<T>, object: u64, of: impl FnOnce(&Object) -> Option<T>) -> Result {
    let handle = Handle::try_from(object).map_err(|_| CudaError::INVALID_VALUE)?;
    let object = driver()?.textures.get(handle).map_err(|_| CudaError::INVALID_VALUE)?;
    out.set(of(&object).ok_or(CudaError::INVALID_VALUE)?)
}

fn create(
    out: Out<u64>,
    resource: In<ResourceDescription>,
    texture: TextureDescription,
    view: Option<ViewDescription>,
) -> Result {
    let driver = driver()?;
    driver.current()?;
    if out.is_null() {
        return Err(CudaError::INVALID_VALUE);
    }
    out.set(driver.textures.add(Object { resource: resource.get()?, texture, view }) as u64)
}

fn destroy(object: u64) -> Result {
    let handle = Handle::try_from(object).map_err(|_| CudaError::INVALID_VALUE)?;
    driver()?.textures.remove(handle).map(|_| ())
}

driver! {
    fn [cuModuleGetTexRef cuModuleGetSurfRef] (out: Out<Handle>, module: Handle, name: Text) {
        of_module(out, module, name)
    }
    fn [cuTexRefCreate] (out: Out<Handle>) {
        out.set(driver()?.references.add(Reference::default()))
    }
    fn [cuTexRefDestroy] (reference: Handle) {
        driver()?.references.remove(reference).map(|_| ())
    }
    fn [cuTexRefSetArray cuSurfRefSetArray] (reference: Handle, array: Handle, _flags: u32) {
        driver()?.arrays.get(array)?;
        change(reference, |settings| settings.array = array)
    }
    fn [cuTexRefGetArray cuSurfRefGetArray] (array: Out<Handle>, reference: Handle) {
        array.set(settings(reference)?.array)
    }
    fn [cuTexRefSetMipmappedArray] (reference: Handle, array: Handle, _flags: u32) {
        driver()?.mipmaps.get(array)?;
        change(reference, |settings| settings.mipmapped = array)
    }
    fn [cuTexRefGetMipmappedArray] (array: Out<Handle>, reference: Handle) {
        array.set(settings(reference)?.mipmapped)
    }
    fn [cuTexRefSetAddress_v2] (offset: Out<usize>, reference: Handle, address: u64, _bytes: usize) {
        change(reference, |settings| settings.address = address)?;
        offset.set_if_wanted(0);
        Ok(())
    }
    fn [cuTexRefSetAddress2D_v2 cuTexRefSetAddress2D_v3]
        (reference: Handle, _description: In<u8>, address: u64, _pitch: usize) {
        change(reference, |settings| settings.address = address)
    }
    fn [cuTexRefGetAddress_v2] (address: Out<u64>, reference: Handle) {
        address.set(settings(reference)?.address)
    }
    fn [cuTexRefSetFormat] (reference: Handle, format: u32, channels: i32) {
        change(reference, |settings| (settings.format, settings.channels) = (format, channels))
    }
    fn [cuTexRefGetFormat] (format: Out<u32>, channels: Out<i32>, reference: Handle) {
        let settings = settings(reference)?;
        format.set_if_wanted(settings.format);
        channels.set_if_wanted(settings.channels);
        Ok(())
    }
    fn [cuTexRefSetAddressMode] (reference: Handle, dimension: i32, mode: u32) {
        let dimension = usize::try_from(dimension).ok().filter(|&at| at < 3).ok_or(CudaError::INVALID_VALUE)?;
        change(reference, |settings| settings.address_modes[dimension] = mode)
    }
    fn [cuTexRefGetAddressMode] (mode: Out<u32>, reference: Handle, dimension: i32) {
        let dimension = usize::try_from(dimension).ok().filter(|&at| at < 3).ok_or(CudaError::INVALID_VALUE)?;
        mode.set(settings(reference)?.address_modes[dimension])
    }
    fn [cuTexRefSetFilterMode] (reference: Handle, mode: u32) {
        change(reference, |settings| settings.filter = mode)
    }
    fn [cuTexRefGetFilterMode] (mode: Out<u32>, reference: Handle) {
        mode.set(settings(reference)?.filter)
    }
    fn [cuTexRefSetMipmapFilterMode] (reference: Handle, mode: u32) {
        change(reference, |settings| settings.mipmap_filter = mode)
    }
    fn [cuTexRefGetMipmapFilterMode] (mode: Out<u32>, reference: Handle) {
        mode.set(settings(reference)?.mipmap_filter)
    }
    fn [cuTexRefSetMipmapLevelBias] (reference: Handle, bias: f32) {
        change(reference, |settings| settings.mipmap_bias = bias)
    }
    fn [cuTexRefGetMipmapLevelBias] (bias: Out<f32>, reference: Handle) {
        bias.set(settings(reference)?.mipmap_bias)
    }
    fn [cuTexRefSetMipmapLevelClamp] (reference: Handle, least: f32, most: f32) {
        change(reference, |settings| settings.mipmap_clamp = [least, most])
    }
    fn [cuTexRefGetMipmapLevelClamp] (least: Out<f32>, most: Out<f32>, reference: Handle) {
        let clamp = settings(reference)?.mipmap_clamp;
        least.set_if_wanted(clamp[0]);
        most.set_if_wanted(clamp[1]);
        Ok(())
    }
    fn [cuTexRefSetMaxAnisotropy] (reference: Handle, most: u32) {
        change(reference, |settings| settings.anisotropy = most)
    }
    fn [cuTexRefGetMaxAnisotropy] (most: Out<u32>, reference: Handle) {
        most.set(settings(reference)?.anisotropy)
    }
    fn [cuTexRefSetBorderColor] (reference: Handle, color: In<[f32; 4]>) {
        let color = color.get()?;
        change(reference, |settings| settings.border = color)
    }
    fn [cuTexRefGetBorderColor] (color: Out<[f32; 4]>, reference: Handle) {
        color.set(settings(reference)?.border)
    }
    fn [cuTexRefSetFlags] (reference: Handle, flags: u32) {
        change(reference, |settings| settings.flags = flags)
    }
    fn [cuTexRefGetFlags] (flags: Out<u32>, reference: Handle) {
        flags.set(settings(reference)?.flags)
    }
    fn [cuTexObjectCreate] (
        out: Out<u64>, resource: In<ResourceDescription>, texture: In<TextureDescription>,
        view: In<ViewDescription>,
    ) {
        let view = if view.is_null() { None } else { Some(view.get()?) };
        create(out, resource, texture.get()?, view)
    }
    fn [cuSurfObjectCreate] (out: Out<u64>, resource: In<ResourceDescription>) {
        create(out, resource, [0; 26], None)
    }
    fn [cuTexObjectDestroy cuSurfObjectDestroy] (object: u64) {
        destroy(object)
    }
    fn [cuTexObjectGetResourceDesc cuSurfObjectGetResourceDesc] (out: Out<ResourceDescription>, object: u64) {
        describe(out, object, |object| Some(object.resource))
    }
    fn [cuTexObjectGetTextureDesc] (out: Out<TextureDescription>, object: u64) {
        describe(out, object, |object| Some(object.texture))
    }
    fn [cuTexObjectGetResourceViewDesc] (out: Out<ViewDescription>, object: u64) {
        describe(out, object, |object| object.view)
    }
}
