//! Shapes of what operators make, from the shapes of what they get.
//!
//! Pure. The rules are those of github.com/onnx/onnx/blob/main/docs/Operators.md. A shape that only a run of the model
//! would tell is refused.

use gpu_share::invalid::Invalid;

use super::call::{Call, Shape, axis, size};
use super::message::{Attribute, Values};

/// Shapes of the outputs of one operator.
pub(super) type Shapes = Result<Vec<Shape>, Invalid>;

/// Largest size of a window, stride, dilation or pad.
const MOST_OF_WINDOW: i64 = 1 << 30;

/// As the first input; of two outputs, both.
pub(super) fn same(call: &Call<'_>) -> Shapes {
    let shape = &call.input(0)?.shape;
    Ok(vec![shape.clone(); call.node.outputs.len().clamp(1, 2)])
}

/// As all inputs, sizes of 1 stretched.
pub(super) fn broadcast(call: &Call<'_>) -> Shapes {
    let mut inputs = call.inputs.iter().flatten();
    let shape = inputs.try_fold(Shape::new(), |shape, input| stretched(&shape, &input.shape))?;
    Ok(vec![shape])
}

fn stretched(a: &[u64], b: &[u64]) -> Result<Shape, Invalid> {
    let rank = a.len().max(b.len());
    let at =
        |shape: &[u64], place: usize| (place + shape.len()).checked_sub(rank).map_or(1, |place| shape[place]);
    let both = |place: usize| match (at(a, place), at(b, place)) {
        (a, 1) => Ok(a),
        (1, b) => Ok(b),
        (a, b) if a == b => Ok(a),
        _ => Err(Invalid::new("shape of an input", format!("{b:?}"), format!("one that stretches to {a:?}"))),
    };
    (0..rank).map(both).collect()
}

/// A convolution: items, channels, and then what the window slides over.
pub(super) fn conv(call: &Call<'_>) -> Shapes {
    let (input, weights) = (call.shape(0, 3)?, call.shape(1, 3)?);
    let groups = groups(call)?;
    let fits = input.len() == weights.len() && Some(input[1]) == weights[1].checked_mul(groups);
    if !fits {
        return Err(misfit(weights, &format!("one that fits {input:?} in {groups} groups")));
    }
    let window = Window::of(call, &weights[2..])?;
    let slid = window.slide(&input[2..], Window::outcome)?;
    Ok(vec![[&[input[0], weights[0]], &slid[..]].concat()])
}

/// The convolution that goes backwards.
pub(super) fn conv_transpose(call: &Call<'_>) -> Shapes {
    let (input, weights) = (call.shape(0, 3)?, call.shape(1, 3)?);
    if input.len() != weights.len() || input[1] != weights[0] {
        return Err(misfit(weights, &format!("one that fits {input:?}")));
    }
    let channels = groups(call)?.checked_mul(weights[1]);
    let channels = channels.ok_or_else(|| misfit(weights, "channels that can be counted"))?;
    let told = call.numbers("output_shape");
    let slid = if let Some(told) = told {
        told.iter().map(|&number| size("output_shape", number)).collect::<Result<Shape, _>>()?
    } else {
        let padding = call.numbers("output_padding").unwrap_or_default();
        let window = Window::of(call, &weights[2..])?;
        window.slide(&input[2..], |window, place, size| window.income(place, size, padding))?
    };
    if slid.len() != input.len() - 2 {
        return Err(Invalid::new("output_shape", format!("{slid:?}"), "a size for each dimension"));
    }
    Ok(vec![[&[input[0], channels], &slid[..]].concat()])
}

/// A window that slides and keeps one number of each place.
pub(super) fn pool(call: &Call<'_>) -> Shapes {
    let input = call.shape(0, 3)?;
    let kernel = call.numbers("kernel_shape").unwrap_or_default();
    let kernel = kernel.iter().map(|&number| size("kernel_shape", number)).collect::<Result<Shape, _>>()?;
    if kernel.len() + 2 != input.len() {
        return Err(Invalid::new("kernel_shape", format!("{kernel:?}"), format!("one that fits {input:?}")));
    }
    let window = Window::of(call, &kernel)?;
    let slid = window.slide(&input[2..], Window::outcome)?;
    Ok(vec![[&input[..2], &slid[..]].concat(); call.node.outputs.len().clamp(1, 2)])
}

/// One number of each channel.
pub(super) fn global_pool(call: &Call<'_>) -> Shapes {
    let input = call.shape(0, 3)?;
    Ok(vec![input.iter().enumerate().map(|(place, &size)| if place < 2 { size } else { 1 }).collect()])
}

fn misfit(weights: &[u64], allowed: &str) -> Invalid {
    Invalid::new("shape of the weights", format!("{weights:?}"), allowed)
}

/// Number of groups of channels.
pub(super) fn groups(call: &Call<'_>) -> Result<u64, Invalid> {
    let number = call.number("group").unwrap_or(1);
    let sound = u64::try_from(number).ok().filter(|&groups| groups > 0);
    sound.ok_or_else(|| Invalid::new("group", number, "1 or more"))
}

/// How a window slides.
struct Window<'a> {
    kernel: Vec<i64>,
    strides: &'a [i64],
    dilations: &'a [i64],
    pads: &'a [i64],
    auto_pad: &'a str,
    rounds_up: bool,
}

impl<'a> Window<'a> {
    fn of(call: &Call<'a>, kernel: &[u64]) -> Result<Self, Invalid> {
        let settings = |name: &str, least: i64, count: usize| {
            let numbers = call.numbers(name).unwrap_or_default();
            let sound = numbers.is_empty() || numbers.len() == count;
            let sound = sound && numbers.iter().all(|number| (least..=MOST_OF_WINDOW).contains(number));
            let allowed = || format!("{count} numbers from {least}");
            sound.then_some(numbers).ok_or_else(|| Invalid::new(name, format!("{numbers:?}"), allowed()))
        };
        let number =
            |&size: &u64| i64::try_from(size).ok().filter(|size| (1..=MOST_OF_WINDOW).contains(size));
        let sizes = kernel.iter().map(number).collect::<Option<Vec<_>>>();
        let rank = kernel.len();
        Ok(Self {
            kernel: sizes.ok_or_else(|| Invalid::new("kernel_shape", format!("{kernel:?}"), "1 or more"))?,
            strides: settings("strides", 1, rank)?,
            dilations: settings("dilations", 1, rank)?,
            pads: settings("pads", 0, 2 * rank)?,
            auto_pad: call.text("auto_pad").unwrap_or("NOTSET"),
            rounds_up: call.flag("ceil_mode", false),
        })
    }

    fn slide(&self, sizes: &[u64], one: impl Fn(&Self, usize, i64) -> Option<i64>) -> Result<Shape, Invalid> {
        let slid = |(place, &size): (usize, &u64)| {
            let outcome = i64::try_from(size).ok().and_then(|size| one(self, place, size));
            outcome.and_then(|size| u64::try_from(size).ok()).filter(|&size| size > 0).ok_or_else(|| {
                Invalid::new("shape of the input", format!("{sizes:?}"), "one that the window fits into")
            })
        };
        sizes.iter().enumerate().map(slid).collect()
    }

    fn stride(&self, place: usize) -> i64 {
        self.strides.get(place).copied().unwrap_or(1)
    }

    /// What the window covers, and the pads of both ends.
    fn extent(&self, place: usize) -> (i64, i64) {
        let dilation = self.dilations.get(place).copied().unwrap_or(1);
        let pad = |at: usize| self.pads.get(at).copied().unwrap_or(0);
        (dilation * (self.kernel[place] - 1) + 1, pad(place) + pad(place + self.kernel.len()))
    }

    /// Places of a window over `size`.
    fn outcome(&self, place: usize, size: i64) -> Option<i64> {
        let stride = self.stride(place);
        if self.auto_pad.starts_with("SAME") {
            return Some(size.div_euclid(stride) + i64::from(size % stride != 0));
        }
        let (extent, pads) = self.extent(place);
        let pads = if self.auto_pad == "VALID" { 0 } else { pads };
        let way = size.checked_add(pads)?.checked_sub(extent).filter(|&way| way >= 0)?;
        let up = i64::from(self.rounds_up && way % stride != 0);
        // A window that would start in the pad behind the end is left out, as PyTorch does, which most models come from.
        let first_pad = self.pads.get(place).copied().unwrap_or(0);
        let starts_inside = (way / stride + up) * stride < size + first_pad;
        Some(way / stride + if starts_inside { up } else { 0 } + 1)
    }

    /// Size that a window makes of `size` places.
    fn income(&self, place: usize, size: i64, padding: &[i64]) -> Option<i64> {
        let stride = self.stride(place);
        if self.auto_pad.starts_with("SAME") {
            return size.checked_mul(stride);
        }
        let (extent, pads) = self.extent(place);
        let padding = padding.get(place).copied().unwrap_or(0);
        let whole = stride.checked_mul(size.checked_sub(1)?)?.checked_add(extent)?;
        whole.checked_add(padding)?.checked_sub(pads)
    }
}

/// A product of two matrices, each turned if it says so.
pub(super) fn gemm(call: &Call<'_>) -> Shapes {
    let turned = |index: usize, name: &str| {
        let shape = call.shape(index, 2)?;
        let [rows, columns] = *shape else {
            return Err(Invalid::new("shape of an input", format!("{shape:?}"), "two dimensions"));
        };
        Ok(if call.flag(name, false) { [columns, rows] } else { [rows, columns] })
    };
    let ([rows, inner], [other, columns]) = (turned(0, "transA")?, turned(1, "transB")?);
    meets(inner, other)?;
    Ok(vec![vec![rows, columns]])
}

/// A product of matrices, as many as the outer dimensions say; vectors count as one row or column.
pub(super) fn matmul(call: &Call<'_>) -> Shapes {
    let (a, b) = (call.shape(0, 1)?, call.shape(1, 1)?);
    let (rows, inner, outer_a) = match *a {
        [ref outer @ .., rows, inner] => (Some(rows), inner, outer),
        [ref outer @ .., inner] => (None, inner, outer),
        [] => (None, 1, a),
    };
    let (other, columns, outer_b) = match *b {
        [ref outer @ .., other, columns] => (other, Some(columns), outer),
        [ref outer @ .., other] => (other, None, outer),
        [] => (1, None, b),
    };
    meets(inner, other)?;
    let outer = stretched(outer_a, outer_b)?;
    Ok(vec![outer.into_iter().chain(rows).chain(columns).collect()])
}

fn meets(inner: u64, other: u64) -> Result<(), Invalid> {
    let sound = inner == other;
    sound.then_some(()).ok_or_else(|| Invalid::new("rows of the second input", other, inner.to_string()))
}

/// Some dimensions are gone, or are 1.
pub(super) fn reduce(call: &Call<'_>) -> Shapes {
    let shape = &call.input(0)?.shape;
    let told = call.setting("axes", 1)?.unwrap_or_default();
    let axes = told.iter().map(|&number| axis(number, shape.len())).collect::<Result<Vec<_>, _>>()?;
    if axes.is_empty() && call.flag("noop_with_empty_axes", false) {
        return Ok(vec![shape.clone()]);
    }
    Ok(vec![reduced(call, shape, |place| axes.is_empty() || axes.contains(&place))])
}

/// One dimension is gone, or is 1.
pub(super) fn arg(call: &Call<'_>) -> Shapes {
    let shape = call.shape(0, 1)?;
    let axis = call.axis("axis", 0, shape.len())?;
    Ok(vec![reduced(call, shape, |place| place == axis)])
}

fn reduced(call: &Call<'_>, shape: &[u64], is_gone: impl Fn(usize) -> bool) -> Shape {
    let keeps = call.flag("keepdims", true);
    let left = |(place, &size): (usize, &u64)| if is_gone(place) { keeps.then_some(1) } else { Some(size) };
    shape.iter().enumerate().filter_map(left).collect()
}

/// The largest of one dimension, and their places.
pub(super) fn top_k(call: &Call<'_>) -> Shapes {
    let mut shape = call.shape(0, 1)?.to_vec();
    let axis = call.axis("axis", -1, shape.len())?;
    let count = call.values(1)?.first().copied().unwrap_or_default();
    shape[axis] = size("k", count)?.min(shape[axis]);
    Ok(vec![shape.clone(), shape])
}

/// The same elements in another shape: 0 keeps a size, -1 is what is left.
pub(super) fn reshape(call: &Call<'_>) -> Shapes {
    let input = call.input(0)?;
    let told = call.values(1)?;
    let keeps = !call.flag("allowzero", false);
    let one = |(place, &number): (usize, &i64)| match number {
        0 if keeps => input.shape.get(place).copied(),
        -1 => Some(1),
        number => u64::try_from(number).ok(),
    };
    let bad = || {
        let allowed = format!("one of {} elements", input.elements());
        Invalid::new("shape", format!("{told:?}"), allowed)
    };
    let mut shape = told.iter().enumerate().map(one).collect::<Option<Shape>>().ok_or_else(bad)?;
    let rest: Vec<_> = told.iter().enumerate().filter(|(_, number)| **number == -1).collect();
    let product = shape.iter().try_fold(1_u64, |product, &size| product.checked_mul(size)).ok_or_else(bad)?;
    match rest[..] {
        [] if product == input.elements() => {}
        [(place, _)] if product > 0 && input.elements() % product == 0 => {
            shape[place] = input.elements() / product;
        }
        _ => return Err(bad()),
    }
    Ok(vec![shape])
}

/// Two dimensions.
pub(super) fn flatten(call: &Call<'_>) -> Shapes {
    let shape = &call.input(0)?.shape;
    let number = call.number("axis").unwrap_or(1);
    // An axis at the very end is allowed, so there is one more than dimensions.
    let at = axis(if number < 0 { number.saturating_sub(1) } else { number }, shape.len() + 1)?;
    Ok(vec![vec![shape[..at].iter().product(), shape[at..].iter().product()]])
}

/// Without dimensions of 1.
pub(super) fn squeeze(call: &Call<'_>) -> Shapes {
    let shape = &call.input(0)?.shape;
    let told = call.setting("axes", 1)?;
    let axes =
        told.map(|told| told.iter().map(|&number| axis(number, shape.len())).collect::<Result<Vec<_>, _>>());
    let axes = axes.transpose()?;
    let is_gone = |place: usize, size: u64| axes.as_ref().map_or(size == 1, |axes| axes.contains(&place));
    let left = shape.iter().enumerate().filter(|&(place, &size)| !is_gone(place, size));
    Ok(vec![left.map(|(_, &size)| size).collect()])
}

/// With further dimensions of 1.
pub(super) fn unsqueeze(call: &Call<'_>) -> Shapes {
    let shape = &call.input(0)?.shape;
    let told = call.setting("axes", 1)?.unwrap_or_default();
    let rank = shape.len() + told.len();
    let axes = told.iter().map(|&number| axis(number, rank)).collect::<Result<Vec<_>, _>>()?;
    let mut rest = shape.iter();
    let one = |place: usize| if axes.contains(&place) { Some(1) } else { rest.next().copied() };
    Ok(vec![(0..rank).filter_map(one).collect()])
}

/// Dimensions in another order.
pub(super) fn transpose(call: &Call<'_>) -> Shapes {
    let shape = &call.input(0)?.shape;
    let Some(order) = call.numbers("perm") else { return Ok(vec![shape.iter().rev().copied().collect()]) };
    let places = order.iter().map(|&number| axis(number, shape.len())).collect::<Result<Vec<_>, _>>()?;
    let mut sorted = places.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..shape.len()) {
        return Err(Invalid::new(
            "perm",
            format!("{order:?}"),
            format!("{} dimensions in some order", shape.len()),
        ));
    }
    Ok(vec![places.into_iter().map(|place| shape[place]).collect()])
}

/// One behind the other.
pub(super) fn concat(call: &Call<'_>) -> Shapes {
    let mut shape = call.shape(0, 1)?.to_vec();
    let axis = call.axis("axis", 1, shape.len())?;
    for other in call.inputs.iter().skip(1).flatten() {
        let fits = other.shape.len() == shape.len()
            && other.shape.iter().zip(&shape).enumerate().all(|(place, (a, b))| place == axis || a == b);
        let sum = other.shape.get(axis).and_then(|&size| shape[axis].checked_add(size)).filter(|_| fits);
        shape[axis] = sum.ok_or_else(|| {
            let allowed = format!("one like {shape:?} but in dimension {axis}");
            Invalid::new("shape of an input", format!("{:?}", other.shape), allowed)
        })?;
    }
    Ok(vec![shape])
}

/// Parts of one dimension.
pub(super) fn split(call: &Call<'_>) -> Shapes {
    let shape = call.shape(0, 1)?;
    let axis = call.axis("axis", 0, shape.len())?;
    let whole = shape[axis];
    let parts = if let Some(told) = call.setting("split", 1)? {
        told.iter().map(|&number| size("split", number)).collect::<Result<Vec<_>, _>>()?
    } else {
        let count = (call.node.outputs.len() as u64).max(1);
        let part = whole.div_ceil(count);
        (0..count).map(|index| part.min(whole.saturating_sub(index * part))).collect()
    };
    let sum = parts.iter().try_fold(0_u64, |sum, &part| sum.checked_add(part));
    if sum != Some(whole) {
        return Err(Invalid::new("split", format!("{parts:?}"), format!("parts of {whole}")));
    }
    let with = |part| {
        shape.iter().enumerate().map(|(place, &size)| if place == axis { part } else { size }).collect()
    };
    Ok(parts.into_iter().map(with).collect())
}

/// Part of some dimensions.
pub(super) fn slice(call: &Call<'_>) -> Shapes {
    let mut shape = call.input(0)?.shape.clone();
    let need = |name: &str, index: usize| {
        call.setting(name, index)?.ok_or_else(|| Invalid::new(name, "", "whole numbers"))
    };
    let (starts, ends) = (need("starts", 1)?, need("ends", 2)?);
    let (axes, steps) = (call.setting("axes", 3)?, call.setting("steps", 4)?);
    for (index, (&start, &end)) in starts.iter().zip(ends).enumerate() {
        let place = match axes.and_then(|axes| axes.get(index)) {
            Some(&number) => axis(number, shape.len())?,
            None => axis(i64::try_from(index).unwrap_or(i64::MAX), shape.len())?,
        };
        let step = steps.and_then(|steps| steps.get(index)).copied().unwrap_or(1);
        shape[place] = kept(shape[place], start, end, step)
            .ok_or_else(|| Invalid::new("steps", step, "a number other than 0"))?;
    }
    Ok(vec![shape])
}

/// How many of `size` elements a slice keeps: ends are clamped as `NumPy` does.
fn kept(size: u64, start: i64, end: i64, step: i64) -> Option<u64> {
    let size = i64::try_from(size).ok()?;
    let from_start = |number: i64| if number < 0 { number.saturating_add(size) } else { number };
    let (start, end) = (from_start(start), from_start(end));
    let count = match step {
        1.. => {
            let (start, end) = (start.clamp(0, size), end.clamp(0, size));
            (end - start).max(0).checked_add(step - 1)? / step
        }
        0 => return None,
        _ => {
            let (start, end) = (start.clamp(-1, size - 1), end.clamp(-1, size - 1));
            let back = step.checked_neg()?;
            (start - end).max(0).checked_add(back - 1)? / back
        }
    };
    u64::try_from(count).ok()
}

/// Elements that numbers pick along one dimension.
pub(super) fn gather(call: &Call<'_>) -> Shapes {
    let (shape, picked) = (call.shape(0, 1)?, &call.input(1)?.shape);
    let axis = call.axis("axis", 0, shape.len())?;
    Ok(vec![[&shape[..axis], picked, &shape[axis + 1..]].concat()])
}

/// As the second input.
pub(super) fn as_second(call: &Call<'_>) -> Shapes {
    Ok(vec![call.input(1)?.shape.clone()])
}

/// Stretched to a shape that is told.
pub(super) fn expand(call: &Call<'_>) -> Shapes {
    let told = call.values(1)?.iter().map(|&number| size("shape", number)).collect::<Result<Shape, _>>()?;
    Ok(vec![stretched(&call.input(0)?.shape, &told)?])
}

/// Repeated.
pub(super) fn tile(call: &Call<'_>) -> Shapes {
    let (shape, times) = (&call.input(0)?.shape, call.values(1)?);
    let bad = || Invalid::new("repeats", format!("{times:?}"), format!("a number for each of {shape:?}"));
    let one = |(&size, &times): (&u64, &i64)| size.checked_mul(u64::try_from(times).ok()?);
    let tiled = shape.iter().zip(times).map(one).collect::<Option<Shape>>();
    Ok(vec![tiled.filter(|tiled| tiled.len() == shape.len() && times.len() == shape.len()).ok_or_else(bad)?])
}

/// With more, or less, at the ends.
pub(super) fn pad(call: &Call<'_>) -> Shapes {
    let mut shape = call.input(0)?.shape.clone();
    let pads = call.setting("pads", 1)?.unwrap_or_default();
    let rank = shape.len();
    let axes = match call.optional(3) {
        Some(_) => call.values(3)?.iter().map(|&number| axis(number, rank)).collect::<Result<Vec<_>, _>>()?,
        None => (0..rank).collect(),
    };
    let bad =
        || Invalid::new("pads", format!("{pads:?}"), format!("two numbers for each of {rank} dimensions"));
    if pads.len() != 2 * axes.len() {
        return Err(bad());
    }
    for (index, place) in axes.iter().enumerate() {
        let both = pads[index].checked_add(pads[index + axes.len()]);
        shape[*place] = both.and_then(|both| shape[*place].checked_add_signed(both)).ok_or_else(bad)?;
    }
    Ok(vec![shape])
}

/// Larger or smaller pictures.
pub(super) fn resize(call: &Call<'_>) -> Shapes {
    let shape = &call.input(0)?.shape;
    // Scales are the second input of the older forms and the third of the newer one, in which sizes are the fourth.
    let scales = |index: usize| match call.optional(index).and_then(|tensor| tensor.values.as_ref()) {
        Some(Values::Floats(scales)) if scales.len() == shape.len() => Some(&scales[..]),
        _ => None,
    };
    let old = match call.node.attribute("scales") {
        Some(Attribute::Floats(scales)) if scales.len() == shape.len() => Some(&scales[..]),
        _ => None,
    };
    if let Some(scales) = scales(2).or_else(|| scales(1)).or(old) {
        return Ok(vec![shape.iter().zip(scales).map(|(&size, &scale)| scaled(size, scale)).collect()]);
    }
    let sizes = call.values(3)?.iter().map(|&number| size("sizes", number)).collect::<Result<Shape, _>>()?;
    if sizes.len() != shape.len() {
        return Err(Invalid::new("sizes", format!("{sizes:?}"), format!("a size for each of {shape:?}")));
    }
    Ok(vec![sizes])
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
// Sizes of pictures are small, and what is negative or no number becomes 0.
fn scaled(size: u64, scale: f32) -> u64 {
    (size as f64 * f64::from(scale)).floor() as u64
}

/// Channels become places, or the other way around.
pub(super) fn depth_to_space(call: &Call<'_>) -> Shapes {
    let (shape, block) = (call.shape(0, 4)?, block(call)?);
    let square = block.checked_mul(block).filter(|square| shape[1] % square == 0);
    let square = square.ok_or_else(|| Invalid::new("blocksize", block, "one that divides the channels"))?;
    let wider =
        |size: u64| size.checked_mul(block).ok_or_else(|| Invalid::new("blocksize", block, "a small one"));
    Ok(vec![vec![shape[0], shape[1] / square, wider(shape[2])?, wider(shape[3])?]])
}

/// Places become channels.
pub(super) fn space_to_depth(call: &Call<'_>) -> Shapes {
    let (shape, block) = (call.shape(0, 4)?, block(call)?);
    let channels = block.checked_mul(block).and_then(|square| shape[1].checked_mul(square));
    let channels = channels.ok_or_else(|| Invalid::new("blocksize", block, "a small one"))?;
    Ok(vec![vec![shape[0], channels, shape[2] / block, shape[3] / block]])
}

fn block(call: &Call<'_>) -> Result<u64, Invalid> {
    let number = call.number("blocksize").unwrap_or(0);
    let sound = u64::try_from(number).ok().filter(|&block| block > 0);
    sound.ok_or_else(|| Invalid::new("blocksize", number, "1 or more"))
}

/// A shape, or part of it.
pub(super) fn shape_of(call: &Call<'_>) -> Shapes {
    Ok(vec![vec![shape_part(call)?.len() as u64]])
}

/// The part of the first input's shape that is asked for.
pub(super) fn shape_part<'a>(call: &Call<'a>) -> Result<&'a [u64], Invalid> {
    let shape = &call.input(0)?.shape;
    let rank = i64::try_from(shape.len()).unwrap_or(i64::MAX);
    let place = |number: i64| {
        let from_start = if number < 0 { number.saturating_add(rank) } else { number };
        usize::try_from(from_start.clamp(0, rank)).unwrap_or_default()
    };
    let (start, end) = (place(call.number("start").unwrap_or(0)), place(call.number("end").unwrap_or(rank)));
    Ok(shape.get(start..end).unwrap_or_default())
}

/// One number.
#[allow(clippy::unnecessary_wraps)] // As all shapes are worked out.
pub(super) fn scalar(_: &Call<'_>) -> Shapes {
    Ok(vec![Shape::new()])
}

/// What is in the file.
pub(super) fn constant(call: &Call<'_>) -> Shapes {
    let shape = match call.node.attributes.first() {
        Some((_, Attribute::Tensor(literal))) => literal
            .dimensions
            .iter()
            .map(|&number| size("dimension", number))
            .collect::<Result<Shape, _>>()?,
        Some((_, Attribute::Number(_) | Attribute::Float(_))) => Shape::new(),
        Some((_, Attribute::Numbers(numbers))) => vec![numbers.len() as u64],
        Some((_, Attribute::Floats(numbers))) => vec![numbers.len() as u64],
        other => {
            let name = other.map_or("", |(name, _)| *name);
            return Err(Invalid::new(
                "constant",
                name,
                "value, value_int, value_ints, value_float or value_floats",
            ));
        }
    };
    Ok(vec![shape])
}

/// As its input says.
pub(super) fn constant_of_shape(call: &Call<'_>) -> Shapes {
    Ok(vec![call.values(0)?.iter().map(|&number| size("shape", number)).collect::<Result<Shape, _>>()?])
}

/// Numbers from one to another.
pub(super) fn range(call: &Call<'_>) -> Shapes {
    let number = |index: usize| Ok(call.values(index)?.first().copied().unwrap_or_default());
    let (start, limit, step): (i64, i64, i64) = (number(0)?, number(1)?, number(2)?);
    let way = limit.checked_sub(start);
    let count = way.and_then(|way| {
        way.checked_div(step).map(|count| count + i64::from(way % step != 0 && (way < 0) == (step < 0)))
    });
    let count = count.ok_or_else(|| Invalid::new("delta", step, "a number other than 0"))?;
    Ok(vec![vec![u64::try_from(count).unwrap_or(0)]])
}
