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

use super::components::kubeconfig;
use super::gpu_node::{self, CDI, GPU_KIND, driver_folder};
use super::image::Image;
use super::tenant::{self, Tenant};
use crate::control::Control;
use crate::helm::{Helm, chart};
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
    /// The namespace of the release and of the pods.
    pub tenant: Tenant,
    values: Value,
    // In the order in which they end.
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
        let release = Self { tenant, values: all, _gpu: gpu, place, _turn: turn };
        release.put("install").unwrap_or_else(|error| panic!("{error:#}"));
        until("the agent's answer", PATIENCE, async || release.control().status().await.ok()).await;
        let socket = release.place.path("simgpu.sock");
        gpu_node::write_gpus(&release.control(), &socket, &release.place.path("sim")).await;
        release
    }

    /// Installs the same chart with further values in its place.
    pub fn upgrade(&mut self, values: &Value) {
        merge(&mut self.values, values);
        self.put("upgrade").unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Runs the chart's own test.
    ///
    /// # Errors
    /// What Helm says if it fails.
    pub fn test(&self) -> Result<String> {
        self.helm(&["test", NAME, "--timeout", "60s"])
    }

    /// Uninstalls it, once.
    ///
    /// # Errors
    /// What Helm says if it is not there.
    pub fn uninstall(&self) -> Result<String> {
        self.helm(&["uninstall", NAME, "--wait"])
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

    /// Gives the chart to Helm, with the release's values, and waits until what came of it is ready.
    fn put(&self, action: &str) -> Result<String> {
        let values = self.place.path("values.json");
        std::fs::write(&values, self.values.to_string())?;
        let (values, chart) = (values.display().to_string(), chart(NAME).display().to_string());
        self.helm(&[action, NAME, &chart, "--values", &values, "--wait=watcher", "--timeout", "60s"])
    }

    /// Runs Helm on the tenant's namespace.
    fn helm(&self, arguments: &[&str]) -> Result<String> {
        let config = kubeconfig("admin");
        let to = ["--namespace", self.tenant.namespace(), "--kubeconfig", &config];
        Helm::installed().run(&[arguments, &to].concat())
    }
}

impl Drop for Release {
    /// What a release has outside its namespace does not end with that.
    fn drop(&mut self) {
        // A test may have done it already.
        drop(self.uninstall());
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

fn merge(values: &mut Value, further: &Value) {
    match (values, further) {
        (Value::Object(values), Value::Object(further)) => {
            for (name, value) in further {
                merge(values.entry(name).or_insert(Value::Null), value);
            }
        }
        (values, further) => *values = further.clone(),
    }
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
