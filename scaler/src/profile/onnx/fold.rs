//! Numbers that follow from shapes before a model runs: exporters write shapes as small programs.
//!
//! Pure. What is not known here makes a shape unknown later, which is refused there; it is never guessed.

use super::call::{Call, axis};
use super::message::{Attribute, Values};
use super::shape::shape_part;

/// The numbers of the first output, of `count` elements, if they are known.
pub(super) fn values(call: &Call<'_>, count: usize) -> Option<Values> {
    let first = || call.optional(0)?.values.clone();
    let found = match call.node.operator {
        "Constant" => literal(call)?,
        "Shape" => Values::Numbers(signed(shape_part(call).ok()?)?),
        "Size" => Values::Numbers(signed(&[call.optional(0)?.elements()])?),
        "Identity" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => first()?,
        "Cast" => cast(first()?, call.number("to")?)?,
        "ConstantOfShape" => filled(call, count)?,
        "Range" => Values::Numbers(ranged(call, count)?),
        "Expand" => Values::Numbers(stretched(call.values(0).ok()?, count)?),
        "Concat" => Values::Numbers(joined(call)?),
        "Gather" => Values::Numbers(gathered(call)?),
        "Slice" => Values::Numbers(sliced(call, count)?),
        "Neg" => {
            Values::Numbers(call.values(0).ok()?.iter().map(|a| a.checked_neg()).collect::<Option<_>>()?)
        }
        "Where" => Values::Numbers(chosen(call, count)?),
        "ReduceProd" if count == 1 => Values::Numbers(vec![product(call.values(0).ok()?)?]),
        operator => Values::Numbers(combined(call, pairwise(operator)?, count)?),
    };
    Some(found)
}

fn literal(call: &Call<'_>) -> Option<Values> {
    match &call.node.attributes.first()?.1 {
        Attribute::Tensor(literal) => literal.values.clone(),
        Attribute::Number(number) => Some(Values::Numbers(vec![*number])),
        Attribute::Numbers(numbers) => Some(Values::Numbers(numbers.clone())),
        Attribute::Float(number) => Some(Values::Floats(vec![*number])),
        Attribute::Floats(numbers) => Some(Values::Floats(numbers.clone())),
        _ => None,
    }
}

fn signed(sizes: &[u64]) -> Option<Vec<i64>> {
    sizes.iter().map(|&size| i64::try_from(size).ok()).collect()
}

/// To whole numbers (`TensorProto.DataType` 2 to 7, 9, 12 and 13) from whole ones; nothing that is computed of floats is a size.
fn cast(values: Values, to: i64) -> Option<Values> {
    let is_whole = matches!(to, 2..=7 | 9 | 12 | 13);
    matches!((&values, is_whole), (Values::Numbers(_), true)).then_some(values)
}

fn filled(call: &Call<'_>, count: usize) -> Option<Values> {
    match call.node.attribute("value") {
        Some(Attribute::Tensor(literal)) => match literal.values.as_ref()? {
            Values::Numbers(numbers) => Some(Values::Numbers(vec![*numbers.first()?; count])),
            Values::Floats(numbers) => Some(Values::Floats(vec![*numbers.first()?; count])),
        },
        _ => Some(Values::Floats(vec![0.0; count])),
    }
}

fn ranged(call: &Call<'_>, count: usize) -> Option<Vec<i64>> {
    let (start, step) = (*call.values(0).ok()?.first()?, *call.values(2).ok()?.first()?);
    let number = |index: usize| start.checked_add(step.checked_mul(i64::try_from(index).ok()?)?);
    (0..count).map(number).collect()
}

/// As they are, or one number in all places.
fn stretched(numbers: &[i64], count: usize) -> Option<Vec<i64>> {
    match numbers {
        [one] => Some(vec![*one; count]),
        all if all.len() == count => Some(all.to_vec()),
        _ => None,
    }
}

fn joined(call: &Call<'_>) -> Option<Vec<i64>> {
    let is_flat = call.inputs.iter().flatten().all(|tensor| tensor.shape.len() == 1);
    let parts = (0..call.inputs.len()).map(|index| call.values(index).ok()).collect::<Option<Vec<_>>>()?;
    is_flat.then(|| parts.concat())
}

fn gathered(call: &Call<'_>) -> Option<Vec<i64>> {
    let from = call.values(0).ok()?;
    let is_flat = call.optional(0)?.shape.len() == 1;
    let picked = call.values(1).ok()?.iter().map(|&at| Some(from[axis(at, from.len()).ok()?]));
    picked.collect::<Option<Vec<_>>>().filter(|_| is_flat)
}

fn sliced(call: &Call<'_>, count: usize) -> Option<Vec<i64>> {
    let from = call.values(0).ok()?;
    let is_flat = call.optional(0)?.shape.len() == 1;
    let steps = call.setting("steps", 4).ok()?.unwrap_or(&[1]);
    let start = *call.setting("starts", 1).ok()??.first()?;
    let size = i64::try_from(from.len()).ok()?;
    let start =
        usize::try_from(if start < 0 { start.saturating_add(size) } else { start }.clamp(0, size)).ok()?;
    (is_flat && steps == [1]).then(|| from.get(start..start + count).map(<[i64]>::to_vec))?
}

fn chosen(call: &Call<'_>, count: usize) -> Option<Vec<i64>> {
    let [condition, yes, no] = [0, 1, 2].map(|index| stretched(call.values(index).ok()?, count));
    let choices = condition?.into_iter().zip(yes?).zip(no?);
    Some(choices.map(|((condition, yes), no)| if condition != 0 { yes } else { no }).collect())
}

fn product(numbers: &[i64]) -> Option<i64> {
    numbers.iter().try_fold(1_i64, |product, &number| product.checked_mul(number))
}

type Pairwise = fn(i64, i64) -> Option<i64>;

fn pairwise(operator: &str) -> Option<Pairwise> {
    Some(match operator {
        "Add" => i64::checked_add,
        "Sub" => i64::checked_sub,
        "Mul" => i64::checked_mul,
        "Div" => i64::checked_div,
        "Mod" => i64::checked_rem_euclid,
        "Min" => |a, b| Some(a.min(b)),
        "Max" => |a, b| Some(a.max(b)),
        "Equal" => |a, b| Some((a == b).into()),
        "Less" => |a, b| Some((a < b).into()),
        "Greater" => |a, b| Some((a > b).into()),
        _ => return None,
    })
}

fn combined(call: &Call<'_>, with: Pairwise, count: usize) -> Option<Vec<i64>> {
    let [a, b] = [0, 1].map(|index| stretched(call.values(index).ok()?, count));
    a?.into_iter().zip(b?).map(|(a, b)| with(a, b)).collect::<Option<_>>().filter(|_| call.inputs.len() == 2)
}
