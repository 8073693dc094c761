//! `Einsum`: sums of products over indices that letters name, such as `bhqd,bhkd->bhqk`.
//!
//! Pure. An ellipsis, which stands for any number of indices, is refused.

use std::collections::BTreeMap;

use gpu_share::invalid::Invalid;

use super::call::{Call, Shape};
use super::operator::{kind_of_product, times};
use super::shape::Shapes;

/// Sizes of the letters, and the letters of the output.
struct Equation {
    sizes: BTreeMap<char, u64>,
    output: String,
}

impl Equation {
    fn read(call: &Call<'_>) -> Result<Self, Invalid> {
        let text: String = call.text("equation").unwrap_or_default().chars().filter(|c| *c != ' ').collect();
        let bad =
            || Invalid::new("equation", &text, "letters for each dimension of each input, such as ij,jk->ik");
        let (inputs, output) =
            text.split_once("->").map_or((&text[..], None), |(left, right)| (left, Some(right)));
        let terms: Vec<_> = inputs.split(',').collect();
        let mut sizes: BTreeMap<char, u64> = BTreeMap::new();
        if terms.len() != call.inputs.len() {
            return Err(bad());
        }
        for (index, term) in terms.iter().enumerate() {
            let shape = &call.input(index)?.shape;
            if term.chars().count() != shape.len() || !term.chars().all(|c| c.is_ascii_alphabetic()) {
                return Err(bad());
            }
            for (letter, &size) in term.chars().zip(shape) {
                let known = *sizes.entry(letter).or_insert(size);
                if known != size {
                    return Err(Invalid::new(format!("size of {letter}"), size, known.to_string()));
                }
            }
        }
        // Without an output, it has the letters that occur once, in the order of the alphabet.
        let once = |letter: &&char| inputs.matches(**letter).count() == 1;
        let output = output.map_or_else(|| sizes.keys().filter(once).collect(), str::to_string);
        if !output.chars().all(|letter| sizes.contains_key(&letter)) {
            return Err(bad());
        }
        Ok(Self { sizes, output })
    }
}

/// The output's shape.
pub(super) fn shape(call: &Call<'_>) -> Shapes {
    let equation = Equation::read(call)?;
    Ok(vec![equation.output.chars().filter_map(|letter| equation.sizes.get(&letter).copied()).collect()])
}

/// One product for each value of all indices.
pub(super) fn work(call: &Call<'_>, _: &Shape) -> Result<(&'static str, u64), Invalid> {
    let macs = Equation::read(call)?.sizes.into_values().try_fold(1_u64, times)?;
    Ok((kind_of_product(call), macs))
}
