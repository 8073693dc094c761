//! A binding as a device of the Container Device Interface (CDI): what a container runtime puts into the container.
//!
//! Pure: it makes the specification and writes no file. The forms of the hook's placement are told in the hook's README.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gpu_share::names::env;
use gpu_share::protocol::Bound;
use serde::Serialize;

/// Version of the specification of CDI that this is written to. All that is used has been in it since 0.4.
const VERSION: &str = "0.6.0";
/// Vendor and class of the devices, as in the name of the extended resource.
pub const KIND: &str = "gpufn.dev/gpu";
/// Where the loader's configuration says that the hook's folder comes first. The loader reads these files in the order of
/// their names, and the container toolkit's begins with `00-nvcr`.
const LOADER_FILE: &str = "/etc/ld.so.conf.d/00-gpufn.conf";

/// A file of specifications: `/var/run/cdi/<anything>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    cdi_version: &'static str,
    kind: &'static str,
    /// The devices.
    pub devices: Vec<Device>,
}

/// A binding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// The binding's name; the device is `gpufn.dev/gpu=<name>`.
    pub name: String,
    /// For whoever reads the file; the runtime does not look at them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What is changed in the container.
    pub container_edits: Edits,
}

/// What is changed in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Edits {
    /// Variables, `NAME=value`.
    pub env: Vec<String>,
    /// Bind mounts.
    pub mounts: Vec<Mount>,
    /// Programs that the runtime runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
}

/// A bind mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// On the node.
    pub host_path: PathBuf,
    /// In the container.
    pub container_path: PathBuf,
    /// Of the mount.
    pub options: Vec<&'static str>,
}

/// A program that the runtime runs while it makes a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hook {
    /// When: `createContainer`, after the mounts and before the container's root is entered.
    pub hook_name: &'static str,
    /// The program on the node.
    pub path: PathBuf,
    /// Its arguments, from its own name on.
    pub args: Vec<String>,
}

/// How the hook comes before the driver in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// By the library path, which `fwatchdog` gives to the function.
    LibraryPath,
    /// Also by the loader's cache, for containers without `fwatchdog`.
    Cache {
        /// A file on the node that names the hook's folder.
        configuration: PathBuf,
        /// The container toolkit's `nvidia-cdi-hook`, which renews the cache.
        toolkit: PathBuf,
    },
    /// Over the driver's own files, for programs that open them by their paths.
    Cover {
        /// Folder of the driver's real libraries on the node, mounted elsewhere.
        drivers: PathBuf,
        /// The files that the container toolkit mounts, as the container sees them.
        files: Vec<PathBuf>,
    },
}

/// The device for `bound`, whose environment names the hook's folder and the real driver as the container sees them.
///
/// `None` if the agent has no hook: then there is nothing to put into a container.
pub fn device(bound: &Bound, placement: &Placement) -> Option<Device> {
    let value = |name: &str| bound.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let hook = PathBuf::from(value(env::HOOK)?);
    let page_folder = bound.page.parent()?;
    let mut mounts = vec![
        mount(&hook, &hook, "ro"),
        // The folder, not the file: after a restart of the agent the page is another file.
        mount(page_folder, page_folder, "ro"),
        mount(&bound.socket, &bound.socket, "rw"),
    ];
    let mut hooks = Vec::new();
    match placement {
        Placement::LibraryPath => {}
        Placement::Cache { configuration, toolkit } => {
            mounts.push(mount(configuration, Path::new(LOADER_FILE), "ro"));
            let words = ["nvidia-cdi-hook", "update-ldcache", "--folder"].map(String::from);
            let args = words.into_iter().chain([hook.to_string_lossy().into_owned()]).collect();
            hooks.push(Hook { hook_name: "createContainer", path: toolkit.clone(), args });
        }
        Placement::Cover { drivers, files } => {
            let real = Path::new(value(env::DRIVER)?).parent()?;
            mounts.push(mount(drivers, real, "ro"));
            mounts.extend(files.iter().map(|file| mount(&proxy(&hook, file), file, "ro")));
        }
    }
    let env = bound.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let name = bound.binding.id.to_string();
    Some(Device { name, annotations: BTreeMap::new(), container_edits: Edits { env, mounts, hooks } })
}

/// What the loader's configuration file for [`Placement::Cache`] holds.
pub fn loader_configuration(hook: &Path) -> String {
    format!("{}\n", hook.display())
}

/// A file of `devices`.
pub fn spec(devices: Vec<Device>) -> Spec {
    Spec { cdi_version: VERSION, kind: KIND, devices }
}

/// The proxy's file in `hook` that covers the driver's file at `file`.
fn proxy(hook: &Path, file: &Path) -> PathBuf {
    let name = file.file_name().map(std::ffi::OsStr::to_string_lossy).unwrap_or_default();
    hook.join(if name.starts_with("libnvidia-ml.so") { "libnvidia-ml.so.1" } else { "libcuda.so.1" })
}

pub(crate) fn mount(host: &Path, container: &Path, access: &'static str) -> Mount {
    let options = vec!["rbind", access, "nosuid", "nodev"];
    Mount { host_path: host.into(), container_path: container.into(), options }
}

#[cfg(test)]
mod tests {
    use gpu_share::binding::{Binding, BindingId, GpuId, Owner};
    use gpu_share::share::Share;
    use gpu_share::units::{Bytes, Quota, SmShare};
    use serde_json::json;

    use super::*;

    fn bound(hook: bool) -> Bound {
        let quota = Quota::from_percent(20).unwrap();
        let binding = Binding {
            id: BindingId::try_from("b-1".to_string()).unwrap(),
            owner: Owner::default(),
            gpu: GpuId("GPU-0".into()),
            share: Share::new(SmShare::WHOLE, quota, quota, Bytes::gib(1)).unwrap(),
            grant: quota,
            row: 0,
        };
        let mut env = vec![("GPUFN_BINDING".to_string(), "b-1".to_string())];
        env.push(("GPUFN_DRIVER".into(), "/run/gpufn/driver/libcuda.so.1".into()));
        if hook {
            env.push(("GPUFN_HOOK".into(), "/opt/gpufn/1/lib".into()));
        }
        let (page, socket) = ("/run/gpufn/bindings/b-1/page".into(), "/run/gpufn/node.sock".into());
        Bound { binding, page, socket, env }
    }

    #[test]
    fn a_binding_reads_as_the_specification_of_cdi_has_it() {
        let cache =
            Placement::Cache { configuration: "/h/conf".into(), toolkit: "/usr/bin/nvidia-cdi-hook".into() };
        let device = device(&bound(true), &cache).unwrap();
        let options = |access: &str| json!(["rbind", access, "nosuid", "nodev"]);
        let wanted = json!({
            "cdiVersion": "0.6.0",
            "kind": "gpufn.dev/gpu",
            "devices": [{
                "name": "b-1",
                "containerEdits": {
                    "env": [
                        "GPUFN_BINDING=b-1",
                        "GPUFN_DRIVER=/run/gpufn/driver/libcuda.so.1",
                        "GPUFN_HOOK=/opt/gpufn/1/lib",
                    ],
                    "mounts": [
                        {"hostPath": "/opt/gpufn/1/lib", "containerPath": "/opt/gpufn/1/lib", "options": options("ro")},
                        {
                            "hostPath": "/run/gpufn/bindings/b-1",
                            "containerPath": "/run/gpufn/bindings/b-1",
                            "options": options("ro"),
                        },
                        {"hostPath": "/run/gpufn/node.sock", "containerPath": "/run/gpufn/node.sock", "options": options("rw")},
                        {
                            "hostPath": "/h/conf",
                            "containerPath": "/etc/ld.so.conf.d/00-gpufn.conf",
                            "options": options("ro"),
                        },
                    ],
                    "hooks": [{
                        "hookName": "createContainer",
                        "path": "/usr/bin/nvidia-cdi-hook",
                        "args": ["nvidia-cdi-hook", "update-ldcache", "--folder", "/opt/gpufn/1/lib"],
                    }],
                },
            }],
        });
        assert_eq!(serde_json::to_value(spec(vec![device])).unwrap(), wanted);
    }

    #[test]
    fn a_cover_lies_over_each_of_the_drivers_files_with_the_real_ones_elsewhere() {
        let files = vec!["/usr/lib64/libcuda.so.550.54".into(), "/usr/lib64/libnvidia-ml.so.550.54".into()];
        let cover = Placement::Cover { drivers: "/h/driver".into(), files };
        let edits = device(&bound(true), &cover).unwrap().container_edits;
        let pair = |mount: &Mount| {
            let text = |path: &Path| path.to_string_lossy().into_owned();
            (text(&mount.host_path), text(&mount.container_path))
        };
        let mounts = edits.mounts.iter().skip(3).map(pair).collect::<Vec<_>>();
        let wanted = [
            ("/h/driver", "/run/gpufn/driver"),
            ("/opt/gpufn/1/lib/libcuda.so.1", "/usr/lib64/libcuda.so.550.54"),
            ("/opt/gpufn/1/lib/libnvidia-ml.so.1", "/usr/lib64/libnvidia-ml.so.550.54"),
        ];
        assert_eq!(mounts, wanted.map(|(host, container)| (host.to_string(), container.to_string())));
        assert!(edits.hooks.is_empty());
    }

    #[test]
    fn without_a_hook_there_is_no_device() {
        assert_eq!(device(&bound(false), &Placement::LibraryPath), None);
        assert_eq!(loader_configuration(Path::new("/opt/gpufn/1/lib")), "/opt/gpufn/1/lib\n");
    }
}
