//! One operator and the tensors that it gets: what shapes and costs are worked out from.
//!
//! Pure. Where ONNX moved a setting from an attribute to an input between its versions, either is found.

use gpu_share::invalid::Invalid;

use super::message::{Attribute, MOST_DIMENSIONS, Node, Values};

/// Sizes of a tensor, outermost first.
pub(super) type Shape = Vec<u64>;

/// Most elements of a tensor, some TiB of numbers.
const MOST_ELEMENTS: u64 = 1 << 40;

/// What is known of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub(super) shape: Shape,
    /// Its numbers, if they follow from the file and from shapes, and are few.
    pub(super) values: Option<Values>,
    /// Whether it is the same for each request: a weight, or what follows from weights and shapes.
    pub(super) is_constant: bool,
}

impl Tensor {
    /// Number of elements.
    pub(super) fn elements(&self) -> u64 {
        // A shape is checked before it becomes a tensor's.
        self.shape.iter().product()
    }
}

/// Number of elements of a shape, which must not be beyond reason.
pub(super) fn elements(shape: &[u64]) -> Result<u64, Invalid> {
    // A size of 0 must not hide others: they may become a shape of their own.
    let most = shape.iter().try_fold(1_u64, |count, &size| count.checked_mul(size.max(1)));
    let is_sound = most.is_some_and(|most| most <= MOST_ELEMENTS) && shape.len() <= MOST_DIMENSIONS;
    is_sound.then(|| shape.iter().product()).ok_or_else(|| {
        let allowed = format!("at most {MOST_DIMENSIONS} dimensions and 2^40 elements");
        Invalid::new("shape", format!("{shape:?}"), allowed)
    })
}

/// An operator with its inputs.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) node: &'a Node<'a>,
    /// In order; those that are left out are `None`.
    pub(super) inputs: Vec<Option<&'a Tensor>>,
}

impl<'a> Call<'a> {
    /// An input that must be there.
    pub(super) fn input(&self, index: usize) -> Result<&'a Tensor, Invalid> {
        self.optional(index).ok_or_else(|| Invalid::new(format!("input {}", index + 1), "", "a tensor"))
    }

    /// An input that may be left out.
    pub(super) fn optional(&self, index: usize) -> Option<&'a Tensor> {
        self.inputs.get(index).copied().flatten()
    }

    /// The shape of an input that must have `least` dimensions or more.
    pub(super) fn shape(&self, index: usize, least: usize) -> Result<&'a [u64], Invalid> {
        let shape = &self.input(index)?.shape;
        let allowed = || format!("{least} dimensions or more");
        let sound = shape.len() >= least;
        sound.then_some(&shape[..]).ok_or_else(|| {
            Invalid::new(format!("shape of input {}", index + 1), format!("{shape:?}"), allowed())
        })
    }

    /// Numbers of an input, which must be known before the model runs.
    pub(super) fn values(&self, index: usize) -> Result<&'a [i64], Invalid> {
        match &self.input(index)?.values {
            Some(Values::Numbers(numbers)) => Ok(numbers),
            _ => Err(Invalid::new(
                format!("input {}", index + 1),
                "what only a run of the model tells",
                "whole numbers that follow from shapes",
            )),
        }
    }

    /// A number among the attributes.
    pub(super) fn number(&self, name: &str) -> Option<i64> {
        match self.node.attribute(name) {
            Some(Attribute::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// Whether an attribute is a number other than zero; `or` if it is not there.
    pub(super) fn flag(&self, name: &str, or: bool) -> bool {
        self.number(name).map_or(or, |number| number != 0)
    }

    /// Numbers among the attributes.
    pub(super) fn numbers(&self, name: &str) -> Option<&'a [i64]> {
        match self.node.attribute(name) {
            Some(Attribute::Numbers(numbers)) => Some(numbers),
            _ => None,
        }
    }

    /// Text among the attributes.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        match self.node.attribute(name) {
            Some(Attribute::Text(text)) => core::str::from_utf8(text).ok(),
            _ => None,
        }
    }

    /// Numbers of an attribute or of an input, whichever this version of the operator has.
    pub(super) fn setting(&self, name: &str, index: usize) -> Result<Option<&'a [i64]>, Invalid> {
        match (self.numbers(name), self.optional(index)) {
            (Some(numbers), _) => Ok(Some(numbers)),
            (None, Some(_)) => self.values(index).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// The axis that an attribute names, of `rank`; `or` if it is not there.
    pub(super) fn axis(&self, name: &str, or: i64, rank: usize) -> Result<usize, Invalid> {
        axis(self.number(name).unwrap_or(or), rank)
    }
}

/// An axis of `rank`, of which negative ones count from the end.
pub(super) fn axis(number: i64, rank: usize) -> Result<usize, Invalid> {
    let size = i64::try_from(rank).unwrap_or(i64::MAX);
    let from_start = if number < 0 { number.saturating_add(size) } else { number };
    let sound = usize::try_from(from_start).ok().filter(|&axis| axis < rank);
    sound.ok_or_else(|| Invalid::new("axis", number, format!("one of {rank}")))
}

/// A size that is told as a signed number.
pub(super) fn size(what: &str, number: i64) -> Result<u64, Invalid> {
    u64::try_from(number).map_err(|_| Invalid::new(what, number, "0 or more"))
}
