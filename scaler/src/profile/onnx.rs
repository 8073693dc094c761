//! Model files in the ONNX format, read as descriptions: what a model's operators compute, read and write.
//!
//! Pure. A file is outside input: every number of it is checked, what it may cost to read is bounded by its length, and
//! weights are not touched. Operators are counted as the file has them, each one as one launch: exporters that fold the
//! normalisation into convolutions, or write one layer as several operators, describe what will run.
//!
//! | module | what it owns |
//! |---|---|
//! | `wire` | fields in bytes |
//! | `message` | graph, nodes, attributes, tensors, inputs |
//! | `call` | an operator and its tensors |
//! | `operator` | the operators that are known, and what they multiply |
//! | `shape` | shapes of what they make |
//! | `fold` | numbers that follow from shapes |
//! | `einsum` | sums of products over named indices |

use std::collections::{BTreeMap, BTreeSet, HashMap};

use gpu_share::invalid::Invalid;

use self::call::{Call, Shape, Tensor, elements, size};
use self::message::{Dimension, Graph, Input, Literal, MOST_VALUES, Node};
use self::operator::Work;
use super::description::Description;

mod call;
mod einsum;
mod fold;
mod message;
mod operator;
mod shape;
#[cfg(test)]
mod tests;
mod wire;

/// Longest file: no message of protocol buffers is longer (protobuf.dev/programming-guides/proto-limits).
pub const MOST_BYTES: u64 = 2 << 30;

/// A model that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Name of its graph.
    pub name: String,
    /// What it is fed with: names and sizes, one item.
    pub inputs: Vec<(String, Vec<u64>)>,
    /// Its operators by kind, as descriptions name them.
    pub operators: BTreeMap<&'static str, Counts>,
}

/// What the operators of one kind come to, for one item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operators.
    pub count: u64,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Weights that are read.
    pub weights: u64,
    /// Elements besides that are read.
    pub reads: u64,
    /// Elements that are written.
    pub writes: u64,
}

impl Model {
    /// Reads a file. `sizes` are those of dimensions that only have a name in it; the first dimension of an input is its
    /// batch, and 1 unless `sizes` says otherwise.
    pub fn read(file: &[u8], sizes: &BTreeMap<String, u64>) -> Result<Self, Invalid> {
        let graph = Graph::of_model(file)?;
        let inputs = inputs(&graph, sizes)?;
        let mut known = HashMap::new();
        for initializer in &graph.initializers {
            let tensor = literal(&initializer.literal)
                .map_err(|e| e.within(&quoted("initializer", initializer.name)))?;
            known.insert(initializer.name, tensor);
        }
        for (name, shape) in &inputs {
            let tensor = Tensor { shape: shape.clone(), values: None, is_constant: false };
            known.insert(name, tensor);
        }
        let mut operators = BTreeMap::new();
        for (index, node) in graph.nodes.iter().enumerate() {
            run(node, &mut known, &mut operators).map_err(|error| error.within(&place(index, node)))?;
        }
        let inputs = inputs.into_iter().map(|(name, shape)| (name.to_string(), shape)).collect();
        Ok(Self { name: graph.name.to_string(), inputs, operators })
    }

    /// The model as one of an architecture such as `resnet`.
    pub fn description(&self, family: &str) -> Result<Description, Invalid> {
        Description::of(family, self.operators.iter().map(|(kind, counts)| (*kind, counts.numbers())))
    }

    /// All operators together.
    pub fn total(&self) -> Counts {
        self.operators.values().fold(Counts::default(), Counts::and)
    }
}

impl Counts {
    fn and(self, other: &Self) -> Self {
        Self {
            count: self.count.saturating_add(other.count),
            macs: self.macs.saturating_add(other.macs),
            weights: self.weights.saturating_add(other.weights),
            reads: self.reads.saturating_add(other.reads),
            writes: self.writes.saturating_add(other.writes),
        }
    }

    #[allow(clippy::cast_precision_loss)] // Relative errors of 1e-16.
    fn numbers(&self) -> [f64; 5] {
        [self.count, self.macs, self.weights, self.reads, self.writes].map(|count| count as f64)
    }
}

/// Where a node is, in words.
fn place(index: usize, node: &Node<'_>) -> String {
    quoted(&format!("node {}", index + 1), node.name)
}

/// A name out of a file, as part of one line.
fn quoted(what: &str, name: &str) -> String {
    let name: String = name.chars().take(80).collect();
    format!("{what} {name:?}")
}

/// Names and shapes of the inputs that are not in the file.
fn inputs<'a>(graph: &Graph<'a>, sizes: &BTreeMap<String, u64>) -> Result<Vec<(&'a str, Shape)>, Invalid> {
    let initialized: BTreeSet<_> = graph.initializers.iter().map(|initializer| initializer.name).collect();
    let inputs: Vec<_> = graph.inputs.iter().filter(|input| !initialized.contains(input.name)).collect();
    let batch = |input: &&Input<'a>| match input.dimensions.as_deref() {
        Some([Dimension::Named(name), ..]) => Some(*name),
        _ => None,
    };
    let batches: BTreeSet<_> = inputs.iter().filter_map(batch).collect();
    let name = |dimension: &Dimension<'a>| match *dimension {
        Dimension::Named(name) => Some(name),
        _ => None,
    };
    let dimensions = inputs.iter().flat_map(|input| input.dimensions.iter().flatten());
    let known: BTreeSet<_> = dimensions.filter_map(name).collect();
    if let Some(other) = sizes.keys().find(|name| !known.contains(name.as_str())) {
        let names: Vec<_> = known.into_iter().take(20).map(|name| name.escape_debug().to_string()).collect();
        let allowed =
            if names.is_empty() { "none: the model's inputs have sizes".into() } else { names.join(", ") };
        return Err(Invalid::new("dimension", other, allowed));
    }
    let size_of = |name: &str| sizes.get(name).copied().or_else(|| batches.contains(name).then_some(1));
    let shape = |input: &&Input<'a>| {
        let shape = sized(input, size_of).map_err(|error| error.within(&quoted("input", input.name)))?;
        Ok((input.name, shape))
    };
    inputs.iter().map(shape).collect()
}

fn sized(input: &Input<'_>, size_of: impl Fn(&str) -> Option<u64>) -> Result<Shape, Invalid> {
    let dimensions = input.dimensions.as_ref();
    let dimensions = dimensions.ok_or_else(|| Invalid::new("type", "no tensor with a shape", "one"))?;
    let one = |(place, dimension): (usize, &Dimension<'_>)| {
        let (size, told) = match *dimension {
            Dimension::Size(number) => (u64::try_from(number).ok(), number.to_string()),
            Dimension::Named(name) => (size_of(name), name.to_string()),
            Dimension::Unknown => (if place == 0 { Some(1) } else { None }, String::new()),
        };
        let field = format!("dimension {}", place + 1);
        match size {
            Some(size) if place == 0 && size != 1 && matches!(dimension, Dimension::Size(_)) => {
                Err(Invalid::new(field, size, "1, since a description is of one item, or a name"))
            }
            Some(size) if size > 0 => Ok(size),
            _ => Err(Invalid::new(field, told, "a size of 1 or more, or a name for which one is given")),
        }
    };
    let shape = dimensions.iter().enumerate().map(one).collect::<Result<Shape, _>>()?;
    elements(&shape).map(|_| shape)
}

/// A tensor that is in the file.
fn literal(literal: &Literal) -> Result<Tensor, Invalid> {
    let shape =
        literal.dimensions.iter().map(|&number| size("dimension", number)).collect::<Result<Shape, _>>()?;
    elements(&shape)?;
    Ok(Tensor { shape, values: literal.values.clone(), is_constant: true })
}

/// Works out what a node makes and what that costs.
fn run<'a>(
    node: &'a Node<'a>,
    known: &mut HashMap<&'a str, Tensor>,
    operators: &mut BTreeMap<&'static str, Counts>,
) -> Result<(), Invalid> {
    let operator = operator::find(node.domain, node.operator)?;
    let input = |name: &&'a str| {
        let missing = || Invalid::new("input", name, "an input of the model, or what a node before made");
        if name.is_empty() { Ok(None) } else { known.get(name).map(Some).ok_or_else(missing) }
    };
    let inputs = node.inputs.iter().map(input).collect::<Result<Vec<_>, _>>()?;
    let call = Call { node, inputs };
    let within = |error: Invalid| error.within(node.operator);
    let shapes = (operator.shape)(&call).map_err(within)?;
    shapes.iter().try_for_each(|shape| elements(shape).map(drop)).map_err(within)?;
    // What depends on shapes and weights alone is known before a request comes.
    let is_constant =
        matches!(node.operator, "Shape" | "Size") || call.inputs.iter().flatten().all(|t| t.is_constant);
    let work = if is_constant { Work::None } else { operator.work };
    if let Some((kind, counts)) = cost(&call, work, &shapes).map_err(within)? {
        let sum = operators.entry(kind).or_default();
        *sum = sum.and(&counts);
    }
    let tensor = |(index, shape): (usize, Shape)| {
        let count = elements(&shape)?;
        let few =
            usize::try_from(count).ok().filter(|&count| index == 0 && is_constant && count <= MOST_VALUES);
        let values = few.and_then(|count| fold::values(&call, count).filter(|values| values.len() == count));
        Ok(Tensor { shape, values, is_constant })
    };
    let tensors = shapes.into_iter().enumerate().map(tensor).collect::<Result<Vec<_>, Invalid>>()?;
    for (name, tensor) in node.outputs.iter().zip(tensors).filter(|(name, _)| !name.is_empty()) {
        if known.insert(name, tensor).is_some() {
            return Err(Invalid::new("output", name, "a name that no other tensor has"));
        }
    }
    Ok(())
}

/// Kind and cost of an operator at work, if it has any.
fn cost(call: &Call<'_>, work: Work, outputs: &[Shape]) -> Result<Option<(&'static str, Counts)>, Invalid> {
    // Outputs without a name are not made.
    let made = outputs.iter().zip(&call.node.outputs).filter(|(_, name)| !name.is_empty());
    let writes = made
        .map(|(shape, _)| elements(shape))
        .try_fold(0, |sum, count| Ok(u64::saturating_add(sum, count?)))?;
    let sum = |constant: bool| {
        // Few whole numbers are settings, not weights.
        let counted = |t: &&&Tensor| {
            t.is_constant == constant && !matches!(t.values, Some(message::Values::Numbers(_)))
        };
        let tensors = call.inputs.iter().flatten().filter(counted);
        tensors.fold(0_u64, |sum, tensor| sum.saturating_add(tensor.elements()))
    };
    let counts = Counts { count: 1, macs: 0, weights: sum(true), reads: sum(false), writes };
    Ok(match work {
        Work::None => None,
        Work::Moves(kind) => Some((kind, counts)),
        Work::Picks(kind) => Some((kind, Counts { weights: 0, reads: writes, ..counts })),
        Work::Multiplies(of) => {
            let output = outputs.first().ok_or_else(|| Invalid::new("outputs", 0, "one or more"))?;
            let (kind, macs) = of(call, output)?;
            Some((kind, Counts { macs, ..counts }))
        }
    })
}
