//! The model on the GPU: its weights, its kernels, one inference.

use std::sync::Arc;

use anyhow::{Context, Result};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DriverError, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;

/// Layers and memory of a model.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Name of its profile.
    pub(crate) model: String,
    /// Kernels of one inference.
    layers: u32,
    /// Memory of its weights and activations.
    weights_mib: usize,
}

impl Shape {
    /// Reads `model`, `layers` and `weights_mib` from `variable`.
    pub(crate) fn from_env(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let model = variable("model").unwrap_or_else(|| "resnet50".into());
        let named = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        // The name becomes part of a kernel's name in the PTX text.
        if model.is_empty() || !model.bytes().all(named) {
            anyhow::bail!("model is {model:?}, allowed are letters, digits and underscores");
        }
        let number = |name: &str, default: u32, most: u32| match variable(name) {
            None => Ok(default),
            Some(text) => (text.parse().ok().filter(|n| (1..=most).contains(n)))
                .with_context(|| format!("{name} is {text:?}, allowed is 1 to {most}")),
        };
        Ok(Self {
            layers: number("layers", 16, 1000)?,
            weights_mib: number("weights_mib", 100, 65_536)? as usize,
            model,
        })
    }

    /// One kernel that stands for a layer, and one that computes.
    fn ptx(&self) -> String {
        format!(
            ".version 6.0\n.target sm_60\n.address_size 64\n\
             .visible .entry {}_layer(.param .u64 weights)\n{{\nret;\n}}\n\
             .visible .entry vector_add(.param .u64 out, .param .u64 a, .param .u64 b, .param .u32 n)\n{{\n\
             .reg .pred %p<2>;\n.reg .f32 %f<4>;\n.reg .b32 %r<6>;\n.reg .b64 %rd<11>;\n\
             ld.param.u64 %rd1, [out];\nld.param.u64 %rd2, [a];\nld.param.u64 %rd3, [b];\nld.param.u32 %r2, [n];\n\
             mov.u32 %r3, %ctaid.x;\nmov.u32 %r4, %ntid.x;\nmov.u32 %r5, %tid.x;\n\
             mad.lo.s32 %r1, %r3, %r4, %r5;\nsetp.ge.s32 %p1, %r1, %r2;\n@%p1 bra DONE;\n\
             cvta.to.global.u64 %rd4, %rd2;\nmul.wide.s32 %rd5, %r1, 4;\nadd.s64 %rd6, %rd4, %rd5;\n\
             cvta.to.global.u64 %rd7, %rd3;\nadd.s64 %rd8, %rd7, %rd5;\n\
             ld.global.f32 %f1, [%rd8];\nld.global.f32 %f2, [%rd6];\nadd.f32 %f3, %f2, %f1;\n\
             cvta.to.global.u64 %rd9, %rd1;\nadd.s64 %rd10, %rd9, %rd5;\nst.global.f32 [%rd10], %f3;\nDONE:\nret;\n}}\n",
            self.model
        )
    }
}

/// A model that is loaded.
#[derive(Debug)]
pub(crate) struct Model {
    stream: Arc<CudaStream>,
    layer: CudaFunction,
    layers: u32,
    add: CudaFunction,
    weights: CudaSlice<u8>,
    left: CudaSlice<f32>,
    right: CudaSlice<f32>,
}

/// Length of the checked vectors.
const LENGTH: u16 = 256;

impl Model {
    /// What the checked kernel's results sum to: Σ (i + 2i) for i below [`LENGTH`], exact in an `f32`.
    pub(crate) const CHECKSUM: f32 = 97_920.0;

    /// Takes the model's memory, fills it, and finds its kernels.
    pub(crate) fn load(shape: &Shape) -> Result<Self> {
        let context = CudaContext::new(0).context("failed to open GPU 0")?;
        let stream = context.new_stream()?;
        let mut weights = stream.alloc_zeros::<u8>(shape.weights_mib << 20).with_context(|| {
            format!("failed to take {} MiB of GPU memory for {}", shape.weights_mib, shape.model)
        })?;
        // What a framework does when it loads a checkpoint: through host memory, piece by piece.
        let piece = vec![0u8; 4 << 20];
        for at in (0..weights.len()).step_by(piece.len()) {
            let end = weights.len().min(at + piece.len());
            stream.memcpy_htod(&piece[..end - at], &mut weights.slice_mut(at..end))?;
        }
        let module = context.load_module(Ptx::from_src(shape.ptx())).context("failed to load the kernels")?;
        let numbers: Vec<f32> = (0..LENGTH).map(f32::from).collect();
        let doubled: Vec<f32> = numbers.iter().map(|n| n * 2.0).collect();
        let model = Self {
            layer: module.load_function(&format!("{}_layer", shape.model))?,
            layers: shape.layers,
            add: module.load_function("vector_add")?,
            weights,
            left: stream.clone_htod(&numbers)?,
            right: stream.clone_htod(&doubled)?,
            stream,
        };
        model.stream.synchronize()?;
        Ok(model)
    }

    /// Runs one inference of one item; returns the sum of the checked kernel's results.
    pub(crate) fn infer(&self) -> Result<f32, DriverError> {
        let layer =
            LaunchConfig { grid_dim: (self.layers, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
        for _ in 0..self.layers {
            let mut launch = self.stream.launch_builder(&self.layer);
            launch.arg(&self.weights);
            launch_checked(&mut launch, layer)?;
        }
        let mut out = self.stream.alloc_zeros::<f32>(LENGTH.into())?;
        let mut launch = self.stream.launch_builder(&self.add);
        let length = u32::from(LENGTH);
        launch.arg(&mut out).arg(&self.left).arg(&self.right).arg(&length);
        launch_checked(&mut launch, LaunchConfig::for_num_elems(length))?;
        Ok(self.stream.clone_dtoh(&out)?.iter().sum())
    }
}

/// Launches a kernel of this file's PTX.
#[allow(unsafe_code)] // A launch hands raw addresses to the GPU; there is no safe form of it.
fn launch_checked(
    launch: &mut cudarc::driver::LaunchArgs<'_>,
    config: LaunchConfig,
) -> Result<(), DriverError> {
    // SAFETY: every argument list in this file has the number, order and types of its entry's parameters in
    // `Shape::ptx`, and the kernels stay within the lengths that they are given.
    unsafe { launch.launch(config) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_sum_that_the_kernel_computes() {
        let sum: f32 = (0..LENGTH).map(|i| f32::from(i) * 3.0).sum();
        assert!((sum - Model::CHECKSUM).abs() < f32::EPSILON, "{sum}");
    }

    #[test]
    fn a_wrong_shape_is_refused_with_what_is_allowed() {
        let with = |name: &'static str, value: &'static str| {
            Shape::from_env(move |asked| (asked == name).then(|| value.to_string())).unwrap_err().to_string()
        };
        assert_eq!(with("layers", "0"), "layers is \"0\", allowed is 1 to 1000");
        assert_eq!(with("model", "a b"), "model is \"a b\", allowed are letters, digits and underscores");
    }
}
