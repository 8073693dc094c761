//! Published networks, as files.

use super::file::{Attribute, File, Size};

const PICTURE: [Size; 4] = [Size::Named("batch"), Size::Is(3), Size::Is(224), Size::Is(224)];

/// A convolution without bias, its normalisation, and an activation if there is one; the output's name.
fn conv(
    file: &mut File,
    input: &str,
    [channels_in, channels, kernel, stride, groups]: [u64; 5],
    active: bool,
) -> String {
    let weights = file.weights(&[channels, channels_in / groups, kernel, kernel]);
    let [kernel, stride, groups] = [kernel, stride, groups].map(u64::cast_signed);
    let attributes = [
        Attribute::numbers("kernel_shape", &[kernel; 2]),
        Attribute::numbers("strides", &[stride; 2]),
        Attribute::numbers("pads", &[kernel / 2; 4]),
        Attribute::number("group", groups),
    ];
    let sum = file.node("Conv", &[input, &weights], &attributes);
    let statistics = [0; 4].map(|_| file.weights(&[channels]));
    let [a, b, c, d] = statistics.each_ref().map(String::as_str);
    let normal = file.node("BatchNormalization", &[&sum, a, b, c, d], &[]);
    if active { file.node("Relu", &[&normal], &[]) } else { normal }
}

/// `ResNet-50` (He et al., CVPR 2016), or `ResNeXt-50` with that many groups of that many channels each (Xie et al., CVPR
/// 2017): stages of 3, 4, 6 and 3 bottlenecks.
pub(super) fn resnet50(groups: u64, width: u64) -> File {
    let mut file = File::default().input("x", &PICTURE);
    let stem = conv(&mut file, "x", [3, 64, 7, 2, 1], true);
    let pool = [("kernel_shape", 3), ("strides", 2)].map(|(name, size)| Attribute::numbers(name, &[size; 2]));
    let pads = Attribute::numbers("pads", &[1; 4]);
    let mut last = file.node("MaxPool", &[&stem], &[&pool[..], &[pads]].concat());
    let mut channels = 64;
    for (stage, blocks) in [3, 4, 6, 3].into_iter().enumerate() {
        let (inner, outer) = ((groups * width) << stage, 256 << stage);
        for block in 0..blocks {
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            let first = conv(&mut file, &last, [channels, inner, 1, 1, 1], true);
            let second = conv(&mut file, &first, [inner, inner, 3, stride, groups], true);
            let third = conv(&mut file, &second, [inner, outer, 1, 1, 1], false);
            let way = if block == 0 {
                conv(&mut file, &last, [channels, outer, 1, stride, 1], false)
            } else {
                last.clone()
            };
            let sum = file.node("Add", &[&third, &way], &[]);
            last = file.node("Relu", &[&sum], &[]);
            channels = outer;
        }
    }
    let pooled = file.node("GlobalAveragePool", &[&last], &[]);
    let flat = file.node("Flatten", &[&pooled], &[Attribute::number("axis", 1)]);
    let (weights, bias) = (file.weights(&[1000, channels]), file.weights(&[1000]));
    file.node("Gemm", &[&flat, &weights, &bias], &[Attribute::number("transB", 1)]);
    file
}

/// ViT-B/16 (Dosovitskiy et al., ICLR 2021) as exporters write it: shapes are small programs.
pub(super) fn vit_b_16() -> File {
    const WIDTH: u64 = 768;
    let mut file = File::default().input("x", &PICTURE);
    let (kernel, bias) = (file.weights(&[WIDTH, 3, 16, 16]), file.weights(&[WIDTH]));
    let patches = file.node("Conv", &["x", &kernel, &bias], &[Attribute::numbers("strides", &[16; 2])]);
    let batch = batch_of(&mut file, &patches);
    let (width, rest) = (file.numbers(&[768]), file.numbers(&[-1]));
    let shape = file.node("Concat", &[&batch, &width, &rest], &[Attribute::number("axis", 0)]);
    let flat = file.node("Reshape", &[&patches, &shape], &[]);
    let tokens = file.node("Transpose", &[&flat], &[Attribute::numbers("perm", &[0, 2, 1])]);
    // One for each item, as exporters write `expand`.
    let (class, one) = (file.weights(&[1, 1, WIDTH]), file.numbers(&[1]));
    let shape = file.node("Concat", &[&batch, &one, &width], &[Attribute::number("axis", 0)]);
    let class = file.node("Expand", &[&class, &shape], &[]);
    let class = file.node("Concat", &[&class, &tokens], &[Attribute::number("axis", 1)]);
    let places = file.weights(&[1, 197, WIDTH]);
    let mut last = file.node("Add", &[&class, &places], &[]);
    for _ in 0..12 {
        last = encoder(&mut file, &last, WIDTH);
    }
    let normal = norm(&mut file, &last, WIDTH);
    let zero = file.scalar(0);
    let class = file.node("Gather", &[&normal, &zero], &[Attribute::number("axis", 1)]);
    let (weights, bias) = (file.weights(&[1000, WIDTH]), file.weights(&[1000]));
    file.node("Gemm", &[&class, &weights, &bias], &[Attribute::number("transB", 1)]);
    file
}

/// The batch of a tensor, as a list of one number.
fn batch_of(file: &mut File, tensor: &str) -> String {
    let shape = file.node("Shape", &[tensor], &[]);
    let (zero, axes) = (file.scalar(0), file.numbers(&[0]));
    let size = file.node("Gather", &[&shape, &zero], &[Attribute::number("axis", 0)]);
    file.node("Unsqueeze", &[&size, &axes], &[])
}

fn norm(file: &mut File, input: &str, width: u64) -> String {
    let (scale, bias) = (file.weights(&[width]), file.weights(&[width]));
    file.node("LayerNormalization", &[input, &scale, &bias], &[Attribute::number("axis", -1)])
}

fn linear(file: &mut File, input: &str, from: u64, to: u64) -> String {
    let (weights, bias) = (file.weights(&[from, to]), file.weights(&[to]));
    let product = file.node("MatMul", &[input, &weights], &[]);
    file.node("Add", &[&product, &bias], &[])
}

fn encoder(file: &mut File, input: &str, width: u64) -> String {
    let normal = norm(file, input, width);
    let heads = file.numbers(&[0, 0, 12, 64]);
    let [query, key, value] = [[0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]].map(|order| {
        let projected = linear(file, &normal, width, width);
        let by_head = file.node("Reshape", &[&projected, &heads], &[]);
        file.node("Transpose", &[&by_head], &[Attribute::numbers("perm", &order)])
    });
    let scores = file.node("MatMul", &[&query, &key], &[]);
    let weights = file.node("Softmax", &[&scores], &[Attribute::number("axis", -1)]);
    let mixed = file.node("MatMul", &[&weights, &value], &[]);
    let mixed = file.node("Transpose", &[&mixed], &[Attribute::numbers("perm", &[0, 2, 1, 3])]);
    let shape = file.numbers(&[0, 0, -1]);
    let mixed = file.node("Reshape", &[&mixed, &shape], &[]);
    let out = linear(file, &mixed, width, width);
    let middle = file.node("Add", &[input, &out], &[]);
    let normal = norm(file, &middle, width);
    let wide = linear(file, &normal, width, 4 * width);
    let active = file.node("Gelu", &[&wide], &[]);
    let narrow = linear(file, &active, 4 * width, width);
    file.node("Add", &[&middle, &narrow], &[])
}
