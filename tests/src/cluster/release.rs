//! A release of the chart `gpufn-node` on the cluster's node: the agent is a pod, as where it is in production.
//!
//! The node has simulated GPUs; what NVIDIA's driver and toolkit would bring, the chart's own values bring instead: the
//! management library at a path in a mounted folder, and the kind of the CDI devices that stand for the GPUs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use gpu_share::names::state;
use serde_json::{Value, json};

use super::gpu_node::{self, CDI, GPU_KIND, driver_folder};
use super::image::Image;
use super::installed::{Installed, merge};
use super::tenant::{self, Tenant};
use crate::control::Control;
use crate::node::{library_folder, says_ready};
use crate::plugin::Place;
use crate::process::Process;
use crate::programs::{self, Turn};
use crate::wait::until;

/// Name of the release, of its `DaemonSet` and of its account.
pub const NAME: &str = "gpufn-node";
const PATIENCE: Duration = Duration::from_mins(1);

/// An installed release. It is uninstalled with this.
#[derive(Debug)]
pub struct Release {
    // In the order in which they end.
    chart: Installed,
    /// The namespace of the release and of the pods.
    pub tenant: Tenant,
    _gpu: Process,
    place: Place,
    _turn: Turn,
}

impl Release {
    /// Starts a GPU of 20 units, and installs the chart with these values beside those that the cluster asks for.
    pub async fn install(values: &Value) -> Self {
        let turn = Turn::take();
        let tenant = Tenant::new().await;
        gpu_node::until_free(&tenant).await;
        for image in [agent(), shell()] {
            tenant::load(&image);
        }
        let place = Place::on_node();
        library_folder(&place.path("sim"), "libsimcuda.so", "libsimcuda.so");
        let mut command = Command::new(programs::built("simgpu"));
        command.arg("--socket").arg(place.path("simgpu.sock")).args(["--mode", "mps", "--gpus", "1"]);
        let mut gpu = Process::spawn(&mut command, &place.path("simgpu.log"));
        says_ready(&mut gpu, "listening on").await;

        let mut all = own_values(&place);
        merge(&mut all, values);
        let installed = Installed::new(NAME, tenant.namespace(), all, place.path("values.json"));
        let chart = installed.unwrap_or_else(|error| panic!("{error:#}"));
        let release = Self { chart, tenant, _gpu: gpu, place, _turn: turn };
        until("the agent's answer", PATIENCE, async || release.control().status().await.ok()).await;
        let socket = release.place.path("simgpu.sock");
        gpu_node::write_gpus(&release.control(), &socket, &release.place.path("sim")).await;
        release
    }

    /// Installs the same chart with further values in its place.
    pub fn upgrade(&mut self, values: &Value) {
        self.chart.upgrade(values).unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Runs the chart's own test.
    ///
    /// # Errors
    /// What Helm says if it fails.
    pub fn test(&self) -> Result<String> {
        self.chart.test()
    }

    /// Uninstalls it, once.
    ///
    /// # Errors
    /// What Helm says if it is not there.
    pub fn uninstall(&self) -> Result<String> {
        self.chart.uninstall()
    }

    /// The agent's control API.
    pub fn control(&self) -> Control {
        Control(self.state().join(state::CONTROL_SOCKET))
    }

    /// Waits until the scheduler sees so many units.
    pub async fn until_allocatable(&self, units: usize) {
        gpu_node::until_allocatable(&self.tenant, units).await;
    }

    /// The process of a pod's function.
    pub async fn function_of(&self, pod: &str) -> u32 {
        let bindings = self.control().bindings().await.unwrap_or_else(|error| panic!("{error:#}"));
        let found = bindings.into_iter().find(|one| one.binding.owner.instance == pod);
        let binding = found.unwrap_or_else(|| panic!("pod {pod} has no binding"));
        gpu_node::function_of(&self.state(), &binding).await
    }

    fn state(&self) -> PathBuf {
        self.place.path("node")
    }
}

/// Values by which the chart finds what this cluster has instead of NVIDIA's.
fn own_values(place: &Place) -> Value {
    let folder = place.path("");
    let socket = place.path("simgpu.sock");
    json!({
        "image": {"registry": "localhost", "pullPolicy": "Never"},
        "test": {"image": shell().name()},
        "runtimeClassName": "",
        "gpuKind": GPU_KIND,
        "driver": {
            "library": driver_folder().join("libcuda.so.1"),
            "nvml": place.path("sim").join("libnvidia-ml.so.1"),
        },
        "paths": {"state": place.path("node"), "install": place.path("opt"), "cdi": CDI},
        "extraEnv": [{"name": "SIMCUDA_SOCKET", "value": socket}],
        "extraVolumes": [{"name": "simulated", "hostPath": {"path": folder}}],
        "extraVolumeMounts": [{"name": "simulated", "mountPath": folder}],
        "sharing": "mps",
        "grace": "1s",
    })
}

/// What `device-plugin/Dockerfile` puts together.
fn agent() -> Image {
    let image = Image::new(concat!("localhost/gpufn-node:", env!("CARGO_PKG_VERSION")));
    let image = image.program(&programs::built("gpufn-node"), "/gpufn-node");
    let hook = |name: &str| Path::new("/hook").join(name);
    let libraries = [
        ("libcuda_hook.so", ["libcuda.so.1", "libcuda.so"]),
        ("libgpufn_nvml.so", ["libnvidia-ml.so.1", "libnvidia-ml.so"]),
        ("libgpufn_preload.so", ["libgpufn_preload.so"; 2]),
    ];
    let files = libraries.into_iter().flat_map(|(library, names)| names.map(|name| (library, name)));
    let image = files.fold(image, |image, (library, name)| image.file(&programs::built(library), hook(name)));
    image.entrypoint(&["/gpufn-node"])
}

/// The machine's own shell.
fn shell() -> Image {
    Image::new("localhost/shell:1").program(Path::new("/bin/sh"), "/bin/sh")
}
