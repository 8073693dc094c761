//! Wrappers of arrays and mipmapped arrays. What one takes is computed from its shape, without the driver's padding.

use gpu_share::units::Bytes;

use super::holdings::Key;
use super::{give_back, here, take};
use crate::abi::{ArrayShape, ArrayShape3d, Handle, Status, format_bytes};
use crate::wrappers::wrappers;

/// Shapes of the first API, which had 32 bits: width, height, (depth,) format, channels.
type Shape32 = [u32; 4];
type Shape3d32 = [u32; 6];

fn volume(sides: [u64; 3], format: u32, channels: u32) -> u64 {
    let element = format_bytes(format).saturating_mul(u64::from(channels.max(1)));
    sides.into_iter().fold(element, |bytes, side| bytes.saturating_mul(side.max(1)))
}

fn flat(shape: &ArrayShape) -> u64 {
    volume([shape.width as u64, shape.height as u64, 1], shape.format, shape.channels)
}

fn deep(shape: &ArrayShape3d) -> u64 {
    volume([shape.width as u64, shape.height as u64, shape.depth as u64], shape.format, shape.channels)
}

/// All levels: each has half the sides of the one before.
fn levels(shape: &ArrayShape3d, count: u32) -> u64 {
    (0..count.min(64))
        .map(|level| {
            let half = |side: usize| side.checked_shr(level).unwrap_or(0);
            deep(&ArrayShape3d {
                width: half(shape.width),
                height: half(shape.height),
                depth: half(shape.depth),
                ..*shape
            })
        })
        .fold(0, u64::saturating_add)
}

/// Takes an array whose shape is at `shape` and whose handle goes to `out`.
///
/// # Safety
/// Both are the driver's own arguments.
unsafe fn take_array<S>(
    out: *mut Handle,
    shape: *const S,
    bytes: impl FnOnce(&S) -> u64,
    key: fn(usize) -> Key,
    real: impl FnOnce() -> Status,
) -> Status {
    // SAFETY: null, or what the driver reads too.
    let Some(shape) = (unsafe { shape.as_ref() }) else { return real() };
    let bytes = bytes(shape);
    take(bytes, real, |holdings| {
        // SAFETY: the driver succeeded, so it wrote to a valid place.
        let array = unsafe { *out };
        holdings.insert(key(array as usize), here(Bytes(bytes)))
    })
}

wrappers! {
    [cuArrayCreate_v2](out: *mut Handle, shape: *const ArrayShape) |real, per_thread| {
        // SAFETY: they are the driver's own arguments.
        unsafe { take_array(out, shape, flat, Key::Array, real) }
    }
    [cuArrayCreate](out: *mut Handle, shape: *const Shape32) |real, per_thread| {
        let bytes = |[width, height, format, channels]: &Shape32| {
            volume([(*width).into(), (*height).into(), 1], *format, *channels)
        };
        // SAFETY: they are the driver's own arguments.
        unsafe { take_array(out, shape, bytes, Key::Array, real) }
    }
    [cuArray3DCreate_v2](out: *mut Handle, shape: *const ArrayShape3d) |real, per_thread| {
        // SAFETY: they are the driver's own arguments.
        unsafe { take_array(out, shape, deep, Key::Array, real) }
    }
    [cuArray3DCreate](out: *mut Handle, shape: *const Shape3d32) |real, per_thread| {
        let bytes = |[width, height, depth, format, channels, _]: &Shape3d32| {
            volume([(*width).into(), (*height).into(), (*depth).into()], *format, *channels)
        };
        // SAFETY: they are the driver's own arguments.
        unsafe { take_array(out, shape, bytes, Key::Array, real) }
    }
    [cuMipmappedArrayCreate](out: *mut Handle, shape: *const ArrayShape3d, count: u32) |real, per_thread| {
        // SAFETY: they are the driver's own arguments.
        unsafe { take_array(out, shape, |shape| levels(shape, count), Key::Mipmapped, real) }
    }
    [cuArrayDestroy](array: Handle) |real, per_thread| { give_back(Key::Array(array as usize), real) }
    [cuMipmappedArrayDestroy](array: Handle) |real, per_thread| {
        give_back(Key::Mipmapped(array as usize), real)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_takes_its_elements_and_mipmaps_a_third_more() {
        let shape = ArrayShape3d { width: 64, height: 64, depth: 0, format: 0x20, channels: 4, flags: 0 };
        assert_eq!(deep(&shape), 64 * 64 * 16);
        assert_eq!(levels(&shape, 7), (0..7).map(|level| (64u64 >> level).pow(2) * 16).sum::<u64>());
        let huge = ArrayShape3d { width: usize::MAX, height: usize::MAX, ..shape };
        assert_eq!(deep(&huge), u64::MAX);
    }
}
