//! The operators that are known: which shapes they make, and what they cost.
//!
//! Pure. An operator that is not listed is refused by its name: a description that leaves out what it does not know would
//! be of another model.

use gpu_share::invalid::Invalid;

use super::call::{Call, Shape, elements};
use super::einsum;
use super::shape::{self, Shapes};

/// What an operator does with what it gets.
#[derive(Clone, Copy)]
pub(super) enum Work {
    /// Nothing: the same numbers under another shape, or numbers that are known beforehand.
    None,
    /// Reads all and writes all; the kind of operator.
    Moves(&'static str),
    /// Reads what it writes.
    Picks(&'static str),
    /// Multiplies; the kind of operator, and multiply-accumulates.
    Multiplies(Macs),
}

/// Kind and multiply-accumulates of an operator that makes such a shape.
type Macs = fn(&Call<'_>, &Shape) -> Result<(&'static str, u64), Invalid>;

/// An operator by name.
pub(super) struct Operator {
    pub(super) shape: fn(&Call<'_>) -> Shapes,
    pub(super) work: Work,
}

/// The operators of ONNX with these names make such shapes and do such work.
type Group = (&'static [&'static str], fn(&Call<'_>) -> Shapes, Work);

const KNOWN: [Group; 36] = [
    (&["Conv"], shape::conv, Work::Multiplies(conv)),
    (&["ConvTranspose"], shape::conv_transpose, Work::Multiplies(conv_transpose)),
    (&["Gemm"], shape::gemm, Work::Multiplies(gemm)),
    (&["MatMul"], shape::matmul, Work::Multiplies(matmul)),
    (&["Einsum"], einsum::shape, Work::Multiplies(einsum::work)),
    (&["BatchNormalization", "InstanceNormalization", "LRN"], shape::same, Work::Moves("norm")),
    (
        &["LayerNormalization", "GroupNormalization", "RMSNormalization", "LpNormalization"],
        shape::same,
        Work::Moves("layernorm"),
    ),
    (&["MeanVarianceNormalization"], shape::same, Work::Moves("layernorm")),
    (&["Softmax", "LogSoftmax", "Hardmax"], shape::same, Work::Moves("softmax")),
    (
        &[
            "Relu",
            "LeakyRelu",
            "ThresholdedRelu",
            "Elu",
            "Selu",
            "Celu",
            "Sigmoid",
            "HardSigmoid",
            "HardSwish",
            "Tanh",
        ],
        shape::same,
        Work::Moves("activation"),
    ),
    (
        &[
            "Gelu",
            "Mish",
            "Swish",
            "Softplus",
            "Softsign",
            "Clip",
            "Erf",
            "Exp",
            "Log",
            "Sqrt",
            "Reciprocal",
            "Neg",
        ],
        shape::same,
        Work::Moves("activation"),
    ),
    (
        &[
            "Abs", "Sign", "Floor", "Ceil", "Round", "Sin", "Cos", "Not", "Cast", "IsNaN", "IsInf", "CumSum",
            "Trilu",
        ],
        shape::same,
        Work::Moves("activation"),
    ),
    (&["PRelu"], shape::broadcast, Work::Moves("activation")),
    (&["Add", "Sub", "Sum", "Mean", "Min", "Max", "Where"], shape::broadcast, Work::Moves("add")),
    (
        &["And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"],
        shape::broadcast,
        Work::Moves("add"),
    ),
    (&["Mul", "Div", "Pow", "Mod"], shape::broadcast, Work::Moves("multiply")),
    (&["MaxPool", "AveragePool", "LpPool"], shape::pool, Work::Moves("pool")),
    (&["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"], shape::global_pool, Work::Moves("pool")),
    (
        &["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"],
        shape::reduce,
        Work::Moves("pool"),
    ),
    (&["ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"], shape::reduce, Work::Moves("pool")),
    (&["ArgMax", "ArgMin"], shape::arg, Work::Moves("pool")),
    (&["TopK"], shape::top_k, Work::Moves("pool")),
    (&["Concat"], shape::concat, Work::Moves("concat")),
    (&["Expand"], shape::expand, Work::Moves("concat")),
    (&["Tile"], shape::tile, Work::Moves("concat")),
    (&["Pad"], shape::pad, Work::Moves("concat")),
    (&["Resize", "Upsample"], shape::resize, Work::Moves("concat")),
    (&["ScatterElements", "ScatterND"], shape::same, Work::Moves("concat")),
    (&["Split"], shape::split, Work::Picks("concat")),
    (&["Slice"], shape::slice, Work::Picks("concat")),
    (&["Gather"], shape::gather, Work::Picks("concat")),
    (&["GatherElements"], shape::as_second, Work::Picks("concat")),
    (&["Transpose"], shape::transpose, Work::Moves("permute")),
    (&["DepthToSpace"], shape::depth_to_space, Work::Moves("permute")),
    (&["SpaceToDepth"], shape::space_to_depth, Work::Moves("permute")),
    (&["Dropout", "Identity"], shape::same, Work::None),
];

const VIEWS: [Group; 9] = [
    (&["Reshape"], shape::reshape, Work::None),
    (&["Flatten"], shape::flatten, Work::None),
    (&["Squeeze"], shape::squeeze, Work::None),
    (&["Unsqueeze"], shape::unsqueeze, Work::None),
    (&["Shape"], shape::shape_of, Work::None),
    (&["Size"], shape::scalar, Work::None),
    (&["Constant"], shape::constant, Work::None),
    (&["ConstantOfShape"], shape::constant_of_shape, Work::None),
    (&["Range"], shape::range, Work::None),
];

/// The operator of a node.
pub(super) fn find(domain: &str, name: &str) -> Result<Operator, Invalid> {
    let is_onnx = matches!(domain, "" | "ai.onnx");
    let group = KNOWN.iter().chain(&VIEWS).find(|(names, ..)| is_onnx && names.contains(&name));
    let unknown = || {
        let full = if is_onnx { name.to_string() } else { format!("{domain}.{name}") };
        let allowed =
            "an operator of ONNX on dense tensors, without recurrence, control flow and quantisation";
        Invalid::new("operator", full, allowed)
    };
    group.map(|&(_, shape, work)| Operator { shape, work }).ok_or_else(unknown)
}

/// Each output is a sum over the channels of its group and over the window.
fn conv(call: &Call<'_>, output: &Shape) -> Result<(&'static str, u64), Invalid> {
    let (input, weights) = (call.shape(0, 3)?, call.shape(1, 3)?);
    let each = elements(&weights[1..])?;
    Ok((kind_of_conv(call, input[1], &weights[2..])?, times(elements(output)?, each)?))
}

/// Each input goes into the channels of its group and over the window.
fn conv_transpose(call: &Call<'_>, _: &Shape) -> Result<(&'static str, u64), Invalid> {
    let (input, weights) = (call.shape(0, 3)?, call.shape(1, 3)?);
    let each = elements(&weights[1..])?;
    Ok((kind_of_conv(call, input[1], &weights[2..])?, times(elements(input)?, each)?))
}

fn kind_of_conv(call: &Call<'_>, channels: u64, kernel: &[u64]) -> Result<&'static str, Invalid> {
    Ok(match shape::groups(call)? {
        1 if kernel.iter().all(|&size| size == 1) => "pointwise",
        1 => "conv",
        groups if groups == channels => "depthwise",
        _ => "grouped",
    })
}

fn gemm(call: &Call<'_>, output: &Shape) -> Result<(&'static str, u64), Invalid> {
    let left = call.shape(0, 2)?;
    let inner = if call.flag("transA", false) { left[0] } else { left[1] };
    Ok((kind_of_product(call), times(elements(output)?, inner)?))
}

fn matmul(call: &Call<'_>, output: &Shape) -> Result<(&'static str, u64), Invalid> {
    let inner = call.shape(0, 1)?.last().copied().unwrap_or(1);
    Ok((kind_of_product(call), times(elements(output)?, inner)?))
}

/// With weights, or of two things that are computed.
pub(super) fn kind_of_product(call: &Call<'_>) -> &'static str {
    if call.inputs.iter().flatten().any(|tensor| tensor.is_constant) { "linear" } else { "matmul" }
}

/// Multiply-accumulates, which must be countable.
pub(super) fn times(count: u64, each: u64) -> Result<u64, Invalid> {
    count.checked_mul(each).ok_or_else(|| Invalid::new("multiply-accumulates", "2^64 or more", "fewer"))
}
