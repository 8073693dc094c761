//! The messages of the ONNX format, as far as a description needs them.
//!
//! Pure. Field numbers are those of `onnx.proto` (github.com/onnx/onnx, Apache-2.0). Weights stay in the file: of a tensor
//! only its shape is kept, and its numbers where they are few, for these may be shapes of others.

use gpu_share::invalid::Invalid;

use super::wire::{Fields, Value};

/// Most messages of one kind in another one, and most of what lies in a node: models have thousands of nodes.
const MOST: usize = 50_000;
const MOST_OF_NODE: usize = 256;
/// Most dimensions of a tensor.
pub(super) const MOST_DIMENSIONS: usize = 16;
/// Most numbers of a tensor that are kept.
pub(super) const MOST_VALUES: usize = 256;
/// Types of elements whose numbers are kept, as `TensorProto.DataType` numbers them.
const FLOAT: i64 = 1;
const INT32: i64 = 6;
const INT64: i64 = 7;
const BOOL: i64 = 9;

/// The graph of a model.
#[derive(Debug, Default)]
pub(super) struct Graph<'a> {
    pub(super) name: &'a str,
    pub(super) nodes: Vec<Node<'a>>,
    /// Tensors that are in the file.
    pub(super) initializers: Vec<Initializer<'a>>,
    pub(super) inputs: Vec<Input<'a>>,
}

/// One operator at work.
#[derive(Debug, Default)]
pub(super) struct Node<'a> {
    pub(super) name: &'a str,
    /// Name of the operator.
    pub(super) operator: &'a str,
    /// Whose operator it is; ONNX' own have none, or `ai.onnx`.
    pub(super) domain: &'a str,
    /// Names of tensors; an empty one is an input that is left out.
    pub(super) inputs: Vec<&'a str>,
    pub(super) outputs: Vec<&'a str>,
    pub(super) attributes: Vec<(&'a str, Attribute<'a>)>,
}

/// Value of an attribute.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Attribute<'a> {
    Number(i64),
    Float(f32),
    Text(&'a [u8]),
    Numbers(Vec<i64>),
    Floats(Vec<f32>),
    Tensor(Literal),
    /// Graphs, and whatever else describes no tensor.
    #[default]
    Other,
}

/// A tensor in the file, and its name.
#[derive(Debug, Default)]
pub(super) struct Initializer<'a> {
    pub(super) name: &'a str,
    pub(super) literal: Literal,
}

/// A tensor in the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Literal {
    pub(super) dimensions: Vec<i64>,
    /// Its numbers, if they are few and of a type that shapes and scales have.
    pub(super) values: Option<Values>,
}

/// Numbers of a small tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Values {
    Numbers(Vec<i64>),
    Floats(Vec<f32>),
}

/// What the model is fed with.
#[derive(Debug, Default)]
pub(super) struct Input<'a> {
    pub(super) name: &'a str,
    /// Nothing if it is no tensor, or one without a shape.
    pub(super) dimensions: Option<Vec<Dimension<'a>>>,
}

/// Size of an input in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Dimension<'a> {
    Size(i64),
    Named(&'a str),
    #[default]
    Unknown,
}

impl<'a> Graph<'a> {
    /// The graph of the model in `file`.
    pub(super) fn of_model(file: &'a [u8]) -> Result<Self, Invalid> {
        let mut graph = None;
        for field in Fields(file) {
            if let (7, value) = field? {
                graph = Some(Self::read(value.bytes()?)?);
            }
        }
        let graph = graph.filter(|graph| !graph.nodes.is_empty());
        graph.ok_or_else(|| Invalid::new("file", "a message without a graph", "a model in the ONNX format"))
    }

    fn read(bytes: &'a [u8]) -> Result<Self, Invalid> {
        let mut graph = Self::default();
        for field in Fields(bytes) {
            match field? {
                (1, value) => push("nodes", &mut graph.nodes, MOST, Node::read(value.bytes()?)?)?,
                (2, value) => graph.name = value.text()?,
                (5, value) => {
                    let initializer = Initializer::read(value.bytes()?)?;
                    push("initializers", &mut graph.initializers, MOST, initializer)?;
                }
                (11, value) => push("inputs", &mut graph.inputs, MOST, Input::read(value.bytes()?)?)?,
                (15, _) => return Err(Invalid::new("initializer", "a sparse tensor", "dense ones")),
                _ => {}
            }
        }
        Ok(graph)
    }
}

impl<'a> Node<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Invalid> {
        let mut node = Self::default();
        for field in Fields(bytes) {
            match field? {
                (1, value) => push("inputs of a node", &mut node.inputs, MOST_OF_NODE, value.text()?)?,
                (2, value) => push("outputs of a node", &mut node.outputs, MOST_OF_NODE, value.text()?)?,
                (3, value) => node.name = value.text()?,
                (4, value) => node.operator = value.text()?,
                (5, value) => {
                    let attribute = attribute(value.bytes()?)?;
                    push("attributes of a node", &mut node.attributes, MOST_OF_NODE, attribute)?;
                }
                (7, value) => node.domain = value.text()?,
                _ => {}
            }
        }
        Ok(node)
    }

    /// An attribute, if the node has it.
    pub(super) fn attribute(&self, name: &str) -> Option<&Attribute<'a>> {
        self.attributes.iter().find(|(own, _)| *own == name).map(|(_, attribute)| attribute)
    }
}

/// An attribute and its name.
fn attribute(bytes: &[u8]) -> Result<(&str, Attribute<'_>), Invalid> {
    let (mut name, mut attribute) = ("", Attribute::Other);
    let (mut numbers, mut floats) = (Vec::new(), Vec::new());
    for field in Fields(bytes) {
        match field? {
            (1, value) => name = value.text()?,
            (2, value) => attribute = Attribute::Float(value.float()?),
            (3, value) => attribute = Attribute::Number(value.number()?),
            (4, value) => attribute = Attribute::Text(value.bytes()?),
            (5, value) => attribute = Attribute::Tensor(Initializer::read(value.bytes()?)?.literal),
            (7, value) => value.floats(&mut floats, MOST_VALUES)?,
            (8, value) => value.numbers(&mut numbers, MOST_VALUES)?,
            _ => {}
        }
    }
    if !numbers.is_empty() {
        attribute = Attribute::Numbers(numbers);
    } else if !floats.is_empty() {
        attribute = Attribute::Floats(floats);
    }
    Ok((name, attribute))
}

impl<'a> Initializer<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Invalid> {
        let (mut name, mut dimensions, mut kind, mut raw) = ("", Vec::new(), 0, &[][..]);
        let (mut numbers, mut floats) = (Vec::new(), Vec::new());
        for field in Fields(bytes) {
            match field? {
                (1, value) => value.numbers(&mut dimensions, MOST_DIMENSIONS + 1)?,
                (2, value) => kind = value.number()?,
                (4, value) => value.floats(&mut floats, MOST_VALUES + 1)?,
                (5 | 7, value) => value.numbers(&mut numbers, MOST_VALUES + 1)?,
                (8, value) => name = value.text()?,
                (9, value) => raw = value.bytes()?,
                _ => {}
            }
        }
        let count = dimensions.iter().try_fold(1_i64, |count, &dimension| count.checked_mul(dimension));
        let few = count.and_then(|count| usize::try_from(count).ok()).filter(|&count| count <= MOST_VALUES);
        let values = few.and_then(|count| {
            let values = if kind == FLOAT {
                Values::Floats(if raw.is_empty() { floats } else { raw_floats(raw) })
            } else {
                Values::Numbers(if raw.is_empty() { numbers } else { raw_numbers(kind, raw)? })
            };
            (values.len() == count && [FLOAT, INT32, INT64, BOOL].contains(&kind)).then_some(values)
        });
        Ok(Self { name, literal: Literal { dimensions, values } })
    }
}

fn raw_floats(raw: &[u8]) -> Vec<f32> {
    raw.as_chunks().0.iter().take(MOST_VALUES + 1).map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn raw_numbers(kind: i64, raw: &[u8]) -> Option<Vec<i64>> {
    let most = MOST_VALUES + 1;
    match kind {
        INT64 => Some(raw.as_chunks().0.iter().take(most).map(|&bytes| i64::from_le_bytes(bytes)).collect()),
        INT32 => Some(raw.as_chunks().0.iter().take(most).map(|&b| i32::from_le_bytes(b).into()).collect()),
        BOOL => Some(raw.iter().take(most).map(|&byte| byte.into()).collect()),
        _ => None,
    }
}

impl Values {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Numbers(numbers) => numbers.len(),
            Self::Floats(numbers) => numbers.len(),
        }
    }
}

impl<'a> Input<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Invalid> {
        let mut input = Self::default();
        for field in Fields(bytes) {
            match field? {
                (1, value) => input.name = value.text()?,
                (2, value) => input.dimensions = dimensions(value)?,
                _ => {}
            }
        }
        Ok(input)
    }
}

/// The dimensions in a message of `TypeProto`, nothing if it is of another type than a tensor.
fn dimensions(kind: Value<'_>) -> Result<Option<Vec<Dimension<'_>>>, Invalid> {
    let Some(tensor) = last(kind, 1)? else { return Ok(None) };
    let Some(shape) = last(tensor, 2)? else { return Ok(None) };
    let mut dimensions = Vec::new();
    for field in Fields(shape.bytes()?) {
        if let (1, value) = field? {
            push("dimensions of an input", &mut dimensions, MOST_DIMENSIONS, dimension(value.bytes()?)?)?;
        }
    }
    Ok(Some(dimensions))
}

fn dimension(bytes: &[u8]) -> Result<Dimension<'_>, Invalid> {
    let mut dimension = Dimension::Unknown;
    for field in Fields(bytes) {
        match field? {
            (1, value) => dimension = Dimension::Size(value.number()?),
            (2, value) => {
                let name = Some(value.text()?).filter(|name| !name.is_empty());
                dimension = name.map_or(dimension, Dimension::Named);
            }
            _ => {}
        }
    }
    Ok(dimension)
}

/// The field with `number` of a message, the last one if there are several.
fn last(message: Value<'_>, number: u64) -> Result<Option<Value<'_>>, Invalid> {
    let mut found = None;
    for field in Fields(message.bytes()?) {
        let (own, value) = field?;
        found = if own == number { Some(value) } else { found };
    }
    Ok(found)
}

fn push<T>(what: &str, all: &mut Vec<T>, most: usize, one: T) -> Result<(), Invalid> {
    if all.len() == most {
        return Err(Invalid::new(what, format!("more than {most}"), format!("at most {most}")));
    }
    all.push(one);
    Ok(())
}
