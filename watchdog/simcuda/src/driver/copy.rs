//! Copies and fills: their bytes move in this process when their time on the GPU is over.

use std::sync::Arc;

use crate::wire::Task;

use super::abi::{Copy2D, Copy3D};
use super::graph::NodeKind;
use super::link::Effect;
use super::memory::Kind;
use super::state::{Driver, driver};
use super::stream::{Operation, Stream};
use super::{CudaError, DefaultStream, Handle, In, Out, Result, driver};

/// Where one side of a copy lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Device,
    /// Host memory that the GPU can reach by itself.
    Pinned,
    /// Host memory that it can't.
    Pageable,
}

/// Rows of bytes, in planes: the general form of all copies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    width: usize,
    rows: usize,
    planes: usize,
    src: Layout,
    dst: Layout,
}

/// Where one side's rows lie.
#[derive(Clone, Copy, Debug)]
struct Layout {
    address: u64,
    /// From one row to the next.
    row: usize,
    /// From one plane to the next.
    plane: usize,
}

impl Layout {
    fn line(address: u64) -> Self {
        Self { address, row: 0, plane: 0 }
    }

    fn row_at(&self, plane: usize, row: usize) -> u64 {
        self.address + (plane * self.plane + row * self.row) as u64
    }
}

impl Shape {
    fn line(dst: u64, src: u64, width: usize) -> Self {
        Self { width, rows: 1, planes: 1, src: Layout::line(src), dst: Layout::line(dst) }
    }

    fn bytes(&self) -> u64 {
        (self.width * self.rows * self.planes) as u64
    }

    /// Bytes from the first to the last of one side.
    fn extent(&self, side: &Layout) -> u64 {
        let last = side.row_at(self.planes.saturating_sub(1), self.rows.saturating_sub(1));
        if self.bytes() == 0 { 0 } else { last - side.address + self.width as u64 }
    }

    fn rows(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let all = (0..self.planes).flat_map(|plane| (0..self.rows).map(move |row| (plane, row)));
        all.map(|(plane, row)| (self.dst.row_at(plane, row), self.src.row_at(plane, row)))
    }

    fn run(&self) {
        for (dst, src) in self.rows() {
            move_bytes(dst, src, self.width);
        }
    }

    /// Reads the source now; the result writes the target.
    fn stage(&self) -> Effect {
        let mut staged = vec![0_u8; self.width * self.rows * self.planes];
        let width = self.width.max(1);
        for (part, (_, src)) in staged.chunks_mut(width).zip(self.rows()) {
            move_bytes(part.as_mut_ptr().expose_provenance() as u64, src, self.width);
        }
        let shape = *self;
        Arc::new(move || {
            for (part, (dst, _)) in staged.chunks(width).zip(shape.rows()) {
                move_bytes(dst, part.as_ptr().expose_provenance() as u64, shape.width);
            }
        })
    }
}

#[allow(clippy::cast_possible_truncation)] // Addresses are 64 bits wide on all platforms with CUDA.
fn move_bytes(dst: u64, src: u64, length: usize) {
    let (dst, src) = (dst as usize, src as usize);
    // SAFETY: device sides were checked against the table of allocations; for host sides the program vouches that
    // they are valid until the copy is done, as with the real driver. `copy` allows them to overlap.
    unsafe {
        std::ptr::copy(
            std::ptr::with_exposed_provenance::<u8>(src),
            std::ptr::with_exposed_provenance_mut::<u8>(dst),
            length,
        );
    }
}

/// What one side is: known from the address, unless the caller says that it is device memory.
fn side(driver: &Driver, address: u64, extent: u64, device: bool) -> Result<Side> {
    let found = driver.memory.find(address);
    match found.map(|found| found.kind) {
        Some(Kind::Host | Kind::Registered) => Ok(Side::Pinned),
        Some(_) if driver.memory.is_device_range(address, extent) => Ok(Side::Device),
        Some(_) => Err(CudaError::INVALID_VALUE),
        None if device => Err(CudaError::INVALID_VALUE),
        None => Ok(Side::Pageable),
    }
}

/// Which sides the caller says are device memory; the others are known from their addresses.
#[derive(Clone, Copy, Debug)]
struct Claims {
    dst: bool,
    src: bool,
}

const TO_DEVICE: Claims = Claims { dst: true, src: false };
const TO_HOST: Claims = Claims { dst: false, src: true };
const WITHIN: Claims = Claims { dst: true, src: true };
const ANY: Claims = Claims { dst: false, src: false };

/// Queues a copy. Says whether the caller has to wait for it because of pageable memory.
fn enqueue(driver: &Driver, stream: &Stream, shape: Shape, claims: Claims, may_stage: bool) -> Result<bool> {
    let dst = side(driver, shape.dst.address, shape.extent(&shape.dst), claims.dst)?;
    let src = side(driver, shape.src.address, shape.extent(&shape.src), claims.src)?;
    let bytes = shape.bytes();
    let task = match (src, dst) {
        (Side::Device, Side::Device) => Task::CopyWithin(bytes),
        (Side::Device, _) => Task::CopyOut(bytes),
        _ => Task::CopyIn(bytes),
    };
    // The program may change pageable memory as soon as the call returns.
    let stage = src == Side::Pageable && may_stage;
    let effect: Effect = if stage { shape.stage() } else { Arc::new(move || shape.run()) };
    stream.enqueue(driver, Operation { kind: NodeKind::Memcpy, task: Some(task), effect: Some(effect) })?;
    Ok(dst == Side::Pageable || (src == Side::Pageable && !stage))
}

/// A copy that is done when the call returns.
fn copy_now(shape: Shape, claims: Claims, default: DefaultStream) -> Result {
    if shape.bytes() == 0 {
        return Ok(());
    }
    let driver = driver()?;
    let stream = driver.stream(0, default)?;
    stream.refuse_capture()?;
    enqueue(driver, &stream, shape, claims, false)?;
    stream.synchronize(driver)
}

/// A copy in stream order.
fn copy_later(shape: Shape, claims: Claims, stream: Handle, default: DefaultStream) -> Result {
    if shape.bytes() == 0 {
        return Ok(());
    }
    let driver = driver()?;
    let stream = driver.stream(stream, default)?;
    let blocks = enqueue(driver, &stream, shape, claims, true)?;
    if blocks && !stream.is_capturing() { stream.synchronize(driver) } else { Ok(()) }
}

/// Several copies; they keep their order, which the interface does not ask for. Which one failed.
fn copy_all(
    dsts: In<u64>,
    srcs: In<u64>,
    sizes: In<usize>,
    count: usize,
    (stream, default): (Handle, DefaultStream),
) -> std::result::Result<(), (usize, CudaError)> {
    for index in 0..count {
        let copy = || {
            let shape = Shape::line(dsts.at(index)?, srcs.at(index)?, sizes.at(index)?);
            copy_later(shape, ANY, stream, default)
        };
        copy().map_err(|error| (index, error))?;
    }
    Ok(())
}

/// One side of a copy as `CUDA_MEMCPY2D` and `CUDA_MEMCPY3D` describe it.
struct End {
    kind: u32,
    host: usize,
    device: u64,
    array: Handle,
    offset: [usize; 3],
    /// Bytes from one row to the next; an array has its own.
    row: usize,
    plane: usize,
}

impl End {
    /// Where its rows lie, and whether it has to be device memory.
    fn layout(&self) -> Result<(Layout, bool)> {
        let (base, claimed, row, plane) = match self.kind {
            1 => (self.host as u64, false, self.row, self.plane),
            2 => (self.device, true, self.row, self.plane),
            3 => {
                let array = driver()?.arrays.get(self.array)?;
                (array.base, true, array.row, array.plane)
            }
            4 => (self.device, false, self.row, self.plane),
            _ => return Err(CudaError::INVALID_VALUE),
        };
        let [x, y, z] = self.offset;
        Ok((Layout { address: base + (z * plane + y * row + x) as u64, row, plane }, claimed))
    }
}

fn shape_of(src: &End, dst: &End, [width, rows, planes]: [usize; 3]) -> Result<(Shape, Claims)> {
    let (src, src_claim) = src.layout()?;
    let (dst, dst_claim) = dst.layout()?;
    Ok((Shape { width, rows, planes, src, dst }, Claims { dst: dst_claim, src: src_claim }))
}

fn shape_2d(copy: &Copy2D) -> Result<(Shape, Claims)> {
    let pitch = |pitch: usize| if pitch == 0 { copy.width } else { pitch };
    let src = End {
        kind: copy.src_type,
        host: copy.src_host,
        device: copy.src_device,
        array: copy.src_array,
        offset: [copy.src_x, copy.src_y, 0],
        row: pitch(copy.src_pitch),
        plane: 0,
    };
    let dst = End {
        kind: copy.dst_type,
        host: copy.dst_host,
        device: copy.dst_device,
        array: copy.dst_array,
        offset: [copy.dst_x, copy.dst_y, 0],
        row: pitch(copy.dst_pitch),
        plane: 0,
    };
    shape_of(&src, &dst, [copy.width, copy.height, 1])
}

fn shape_3d(copy: &Copy3D) -> Result<(Shape, Claims)> {
    let strides = |pitch: usize, height: usize| {
        let row = if pitch == 0 { copy.width } else { pitch };
        (row, row * if height == 0 { copy.height } else { height })
    };
    let (row, plane) = strides(copy.src_pitch, copy.src_height);
    let src = End {
        kind: copy.src_type,
        host: copy.src_host,
        device: copy.src_device,
        array: copy.src_array,
        offset: [copy.src_x, copy.src_y, copy.src_z],
        row,
        plane,
    };
    let (row, plane) = strides(copy.dst_pitch, copy.dst_height);
    let dst = End {
        kind: copy.dst_type,
        host: copy.dst_host,
        device: copy.dst_device,
        array: copy.dst_array,
        offset: [copy.dst_x, copy.dst_y, copy.dst_z],
        row,
        plane,
    };
    shape_of(&src, &dst, [copy.width, copy.height, copy.depth])
}

/// The address of a byte of an array.
fn in_array(array: Handle, offset: usize) -> Result<u64> {
    Ok(driver()?.arrays.get(array)?.base + offset as u64)
}

/// The node of a graph that does a copy.
pub(super) fn copy_node(driver: &Driver, copy: &Copy3D) -> Result<Operation> {
    let (shape, claims) = shape_3d(copy)?;
    let dst = side(driver, shape.dst.address, shape.extent(&shape.dst), claims.dst)?;
    let src = side(driver, shape.src.address, shape.extent(&shape.src), claims.src)?;
    let task = match (src, dst) {
        (Side::Device, Side::Device) => Task::CopyWithin(shape.bytes()),
        (Side::Device, _) => Task::CopyOut(shape.bytes()),
        _ => Task::CopyIn(shape.bytes()),
    };
    Ok(Operation { kind: NodeKind::Memcpy, task: Some(task), effect: Some(Arc::new(move || shape.run())) })
}

/// A fill of rows with a pattern of 1, 2 or 4 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fill {
    pub(super) dst: u64,
    pub(super) pitch: usize,
    pub(super) value: u32,
    pub(super) element: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

impl Fill {
    fn line(dst: u64, value: u32, element: usize, width: usize) -> Self {
        Self { dst, pitch: 0, value, element, width, height: 1 }
    }

    #[allow(clippy::cast_possible_truncation)] // Addresses are 64 bits wide on all platforms with CUDA; the value
    // holds as many bits as the element has.
    fn run(&self) {
        for row in 0..self.height {
            let start = self.dst as usize + row * self.pitch;
            match self.element {
                1 => fill(start, self.value as u8, self.width),
                2 => fill(start, self.value as u16, self.width),
                _ => fill(start, self.value, self.width),
            }
        }
    }

    /// The operation that does the fill, if its target is memory of the device.
    pub(super) fn operation(self, driver: &Driver) -> Result<Operation> {
        let row = self.width * self.element;
        let extent = (self.pitch * self.height.saturating_sub(1) + row) as u64;
        let known =
            driver.memory.find(self.dst).is_some_and(|found| extent <= found.size - (self.dst - found.base));
        let aligned = self.dst.is_multiple_of(self.element as u64) && self.pitch.is_multiple_of(self.element);
        if !known || !aligned {
            return Err(CudaError::INVALID_VALUE);
        }
        let task = Some(Task::CopyWithin((row * self.height) as u64));
        Ok(Operation { kind: NodeKind::Memset, task, effect: Some(Arc::new(move || self.run())) })
    }

    fn enqueue(self, stream: Handle, default: DefaultStream) -> Result {
        if self.width == 0 || self.height == 0 {
            return Ok(());
        }
        let driver = driver()?;
        driver.stream(stream, default)?.enqueue(driver, self.operation(driver)?)
    }
}

fn fill<T: Copy>(start: usize, value: T, count: usize) {
    let start = std::ptr::with_exposed_provenance_mut::<T>(start);
    // SAFETY: when the fill was queued, the range was in the table of allocations, and aligned to the element.
    unsafe { std::slice::from_raw_parts_mut(start, count) }.fill(value);
}

fn rows(dst: u64, pitch: usize, value: u32, element: usize, width: usize, height: usize) -> Fill {
    Fill { dst, pitch, value, element, width, height }
}

driver! {
    fn [cuMemcpy | cuMemcpy_ptds] default (dst: u64, src: u64, size: usize) {
        copy_now(Shape::line(dst, src, size), ANY, default)
    }
    fn [cuMemcpyHtoD_v2 | cuMemcpyHtoD_v2_ptds] default (dst: u64, src: u64, size: usize) {
        copy_now(Shape::line(dst, src, size), TO_DEVICE, default)
    }
    fn [cuMemcpyDtoH_v2 | cuMemcpyDtoH_v2_ptds] default (dst: u64, src: u64, size: usize) {
        copy_now(Shape::line(dst, src, size), TO_HOST, default)
    }
    fn [cuMemcpyDtoD_v2 | cuMemcpyDtoD_v2_ptds] default (dst: u64, src: u64, size: usize) {
        copy_now(Shape::line(dst, src, size), WITHIN, default)
    }
    fn [cuMemcpyPeer | cuMemcpyPeer_ptds] default (dst: u64, _to: Handle, src: u64, _from: Handle, size: usize) {
        copy_now(Shape::line(dst, src, size), WITHIN, default)
    }
    fn [cuMemcpyAsync | cuMemcpyAsync_ptsz] default (dst: u64, src: u64, size: usize, stream: Handle) {
        copy_later(Shape::line(dst, src, size), ANY, stream, default)
    }
    fn [cuMemcpyWithAttributesAsync | cuMemcpyWithAttributesAsync_ptsz] default
        (dst: u64, src: u64, size: usize, _attributes: usize, stream: Handle) {
        copy_later(Shape::line(dst, src, size), ANY, stream, default)
    }
    fn [cuMemcpyBatchAsync | cuMemcpyBatchAsync_ptsz] default (
        dsts: In<u64>, srcs: In<u64>, sizes: In<usize>, count: usize, _attributes: usize, _indices: usize,
        _attribute_count: usize, failed: Out<usize>, stream: Handle,
    ) {
        let at = copy_all(dsts, srcs, sizes, count, (stream, default));
        at.map_err(|(index, error)| {
            failed.set_if_wanted(index);
            error
        })
    }
    fn [cuMemcpyBatchAsync_v2 | cuMemcpyBatchAsync_v2_ptsz] default (
        dsts: In<u64>, srcs: In<u64>, sizes: In<usize>, count: usize, _attributes: usize, _indices: usize,
        _attribute_count: usize, stream: Handle,
    ) {
        copy_all(dsts, srcs, sizes, count, (stream, default)).map_err(|(_, error)| error)
    }
    fn [cuMemcpyHtoDAsync_v2 | cuMemcpyHtoDAsync_v2_ptsz] default
        (dst: u64, src: u64, size: usize, stream: Handle) {
        copy_later(Shape::line(dst, src, size), TO_DEVICE, stream, default)
    }
    fn [cuMemcpyDtoHAsync_v2 | cuMemcpyDtoHAsync_v2_ptsz] default
        (dst: u64, src: u64, size: usize, stream: Handle) {
        copy_later(Shape::line(dst, src, size), TO_HOST, stream, default)
    }
    fn [cuMemcpyDtoDAsync_v2 | cuMemcpyDtoDAsync_v2_ptsz] default
        (dst: u64, src: u64, size: usize, stream: Handle) {
        copy_later(Shape::line(dst, src, size), WITHIN, stream, default)
    }
    fn [cuMemcpyPeerAsync | cuMemcpyPeerAsync_ptsz] default
        (dst: u64, _to: Handle, src: u64, _from: Handle, size: usize, stream: Handle) {
        copy_later(Shape::line(dst, src, size), WITHIN, stream, default)
    }
    fn [cuMemcpy2D_v2 cuMemcpy2DUnaligned_v2 | cuMemcpy2D_v2_ptds cuMemcpy2DUnaligned_v2_ptds] default
        (copy: In<Copy2D>) {
        let (shape, claims) = shape_2d(&copy.get()?)?;
        copy_now(shape, claims, default)
    }
    fn [cuMemcpy2DAsync_v2 | cuMemcpy2DAsync_v2_ptsz] default (copy: In<Copy2D>, stream: Handle) {
        let (shape, claims) = shape_2d(&copy.get()?)?;
        copy_later(shape, claims, stream, default)
    }
    // The form for two contexts has them where the other one has nothing.
    fn [cuMemcpy3D_v2 cuMemcpy3DPeer | cuMemcpy3D_v2_ptds cuMemcpy3DPeer_ptds] default (copy: In<Copy3D>) {
        let (shape, claims) = shape_3d(&copy.get()?)?;
        copy_now(shape, claims, default)
    }
    fn [cuMemcpy3DAsync_v2 cuMemcpy3DPeerAsync | cuMemcpy3DAsync_v2_ptsz cuMemcpy3DPeerAsync_ptsz] default (copy: In<Copy3D>, stream: Handle) {
        let (shape, claims) = shape_3d(&copy.get()?)?;
        copy_later(shape, claims, stream, default)
    }
    fn [cuMemcpyHtoA_v2 | cuMemcpyHtoA_v2_ptds] default (dst: Handle, offset: usize, src: u64, size: usize) {
        copy_now(Shape::line(in_array(dst, offset)?, src, size), TO_DEVICE, default)
    }
    fn [cuMemcpyAtoH_v2 | cuMemcpyAtoH_v2_ptds] default (dst: u64, src: Handle, offset: usize, size: usize) {
        copy_now(Shape::line(dst, in_array(src, offset)?, size), TO_HOST, default)
    }
    fn [cuMemcpyDtoA_v2 | cuMemcpyDtoA_v2_ptds] default (dst: Handle, offset: usize, src: u64, size: usize) {
        copy_now(Shape::line(in_array(dst, offset)?, src, size), WITHIN, default)
    }
    fn [cuMemcpyAtoD_v2 | cuMemcpyAtoD_v2_ptds] default (dst: u64, src: Handle, offset: usize, size: usize) {
        copy_now(Shape::line(dst, in_array(src, offset)?, size), WITHIN, default)
    }
    fn [cuMemcpyAtoA_v2 | cuMemcpyAtoA_v2_ptds] default
        (dst: Handle, dst_offset: usize, src: Handle, src_offset: usize, size: usize) {
        copy_now(Shape::line(in_array(dst, dst_offset)?, in_array(src, src_offset)?, size), WITHIN, default)
    }
    fn [cuMemcpyHtoAAsync_v2 | cuMemcpyHtoAAsync_v2_ptsz] default
        (dst: Handle, offset: usize, src: u64, size: usize, stream: Handle) {
        copy_later(Shape::line(in_array(dst, offset)?, src, size), TO_DEVICE, stream, default)
    }
    fn [cuMemcpyAtoHAsync_v2 | cuMemcpyAtoHAsync_v2_ptsz] default
        (dst: u64, src: Handle, offset: usize, size: usize, stream: Handle) {
        copy_later(Shape::line(dst, in_array(src, offset)?, size), TO_HOST, stream, default)
    }
    // Fills of device memory return at once, as the real ones do.
    fn [cuMemsetD8_v2 | cuMemsetD8_v2_ptds] default (dst: u64, value: u8, count: usize) {
        Fill::line(dst, value.into(), 1, count).enqueue(0, default)
    }
    fn [cuMemsetD16_v2 | cuMemsetD16_v2_ptds] default (dst: u64, value: u16, count: usize) {
        Fill::line(dst, value.into(), 2, count).enqueue(0, default)
    }
    fn [cuMemsetD32_v2 | cuMemsetD32_v2_ptds] default (dst: u64, value: u32, count: usize) {
        Fill::line(dst, value, 4, count).enqueue(0, default)
    }
    fn [cuMemsetD8Async | cuMemsetD8Async_ptsz] default (dst: u64, value: u8, count: usize, stream: Handle) {
        Fill::line(dst, value.into(), 1, count).enqueue(stream, default)
    }
    fn [cuMemsetD16Async | cuMemsetD16Async_ptsz] default (dst: u64, value: u16, count: usize, stream: Handle) {
        Fill::line(dst, value.into(), 2, count).enqueue(stream, default)
    }
    fn [cuMemsetD32Async | cuMemsetD32Async_ptsz] default (dst: u64, value: u32, count: usize, stream: Handle) {
        Fill::line(dst, value, 4, count).enqueue(stream, default)
    }
    fn [cuMemsetD2D8_v2 | cuMemsetD2D8_v2_ptds] default
        (dst: u64, pitch: usize, value: u8, width: usize, height: usize) {
        rows(dst, pitch, value.into(), 1, width, height).enqueue(0, default)
    }
    fn [cuMemsetD2D16_v2 | cuMemsetD2D16_v2_ptds] default
        (dst: u64, pitch: usize, value: u16, width: usize, height: usize) {
        rows(dst, pitch, value.into(), 2, width, height).enqueue(0, default)
    }
    fn [cuMemsetD2D32_v2 | cuMemsetD2D32_v2_ptds] default
        (dst: u64, pitch: usize, value: u32, width: usize, height: usize) {
        rows(dst, pitch, value, 4, width, height).enqueue(0, default)
    }
    fn [cuMemsetD2D8Async | cuMemsetD2D8Async_ptsz] default
        (dst: u64, pitch: usize, value: u8, width: usize, height: usize, stream: Handle) {
        rows(dst, pitch, value.into(), 1, width, height).enqueue(stream, default)
    }
    fn [cuMemsetD2D16Async | cuMemsetD2D16Async_ptsz] default
        (dst: u64, pitch: usize, value: u16, width: usize, height: usize, stream: Handle) {
        rows(dst, pitch, value.into(), 2, width, height).enqueue(stream, default)
    }
    fn [cuMemsetD2D32Async | cuMemsetD2D32Async_ptsz] default
        (dst: u64, pitch: usize, value: u32, width: usize, height: usize, stream: Handle) {
        rows(dst, pitch, value, 4, width, height).enqueue(stream, default)
    }
}
