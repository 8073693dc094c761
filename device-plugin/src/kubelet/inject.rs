//! What a container gets of its binding: by a file of the Container Device Interface that its runtime reads, or by the
//! variables and mounts of the kubelet's answer, for runtimes without CDI.
//!
//! The kubelet remembers its answer for as long as the pod lives, from before anybody knows what the pod asks for. So the
//! answer only names the CDI device, and the file behind the name is written when the container starts, with the SM share
//! that it has then. Variables in the answer can't say an SM share.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use gpu_share::binding::{Binding, BindingId};
use gpu_share::names::{env, state};
use gpu_share::protocol::Bound;

use super::api::v1beta1::{CdiDevice, ContainerAllocateResponse, Mount};
use crate::cdi::{self, Edits, Placement};
use crate::checkpoint;
use crate::mps::PIPES;

/// How a container gets at its binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// By a CDI device (containerd from 1.7, CRI-O from 1.23).
    Cdi,
    /// By variables and mounts in the answer to the kubelet.
    Classic,
}

/// Puts bindings into containers.
#[derive(Clone, Debug)]
pub(crate) struct Injector {
    pub(crate) form: Form,
    /// Folder with another name of the containers' socket, for mounts.
    pub(crate) sockets: PathBuf,
    /// Folder of CDI files.
    pub(crate) folder: PathBuf,
    /// Kind of the CDI devices that stand for the GPUs themselves, such as `nvidia.com/gpu`, if a toolkit writes them.
    pub(crate) gpu_kind: Option<String>,
}

impl Injector {
    /// What the kubelet is answered.
    pub(crate) fn answer(&self, bound: &Bound) -> ContainerAllocateResponse {
        let gpu = self.gpu_kind.iter().map(|kind| format!("{kind}={}", bound.binding.gpu));
        match self.form {
            Form::Cdi => {
                let own = format!("{}={}", cdi::KIND, bound.binding.id);
                let cdi_devices = [own].into_iter().chain(gpu).map(|name| CdiDevice { name }).collect();
                ContainerAllocateResponse { cdi_devices, ..ContainerAllocateResponse::default() }
            }
            Form::Classic => {
                let Edits { env, mounts, .. } = self.edits(bound);
                let envs = env.iter().filter_map(|pair| pair.split_once('='));
                let envs = envs.filter(|(name, _)| *name != env::MPS_PERCENTAGE);
                ContainerAllocateResponse {
                    envs: envs.map(|(name, value)| (name.into(), value.into())).collect(),
                    mounts: mounts.iter().map(classic).collect(),
                    cdi_devices: gpu.map(|name| CdiDevice { name }).collect(),
                    ..ContainerAllocateResponse::default()
                }
            }
        }
    }

    /// Writes what the container's runtime reads when it makes the container.
    pub(crate) fn publish(&self, bound: &Bound) -> io::Result<()> {
        if self.form == Form::Classic {
            return Ok(());
        }
        fs::create_dir_all(&self.folder)?;
        let record = serde_json::to_string(&bound.binding).map_err(io::Error::other)?;
        let device = cdi::Device {
            name: bound.binding.id.to_string(),
            annotations: BTreeMap::from([(RECORD.to_string(), record)]),
            container_edits: self.edits(bound),
        };
        let text = serde_json::to_string_pretty(&cdi::spec(vec![device])).map_err(io::Error::other)?;
        checkpoint::replace(&self.path(&bound.binding.id), &text)
    }

    /// Removes it.
    pub(crate) fn remove(&self, id: &BindingId) {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(binding = %id, %error, "CDI file of a released binding stays");
            }
            _ => {}
        }
    }

    /// Removes the files of bindings that are not `known`.
    pub(crate) fn retain(&self, known: impl Fn(&BindingId) -> bool) {
        self.files().iter().filter(|id| !known(id)).for_each(|id| self.remove(id));
    }

    /// The bindings that the files stand for, as they were when their containers started.
    pub(crate) fn recorded(&self) -> Vec<Binding> {
        let read = |id: &BindingId| {
            let spec: serde_json::Value = serde_json::from_slice(&fs::read(self.path(id)).ok()?).ok()?;
            let record = spec["devices"][0]["annotations"][RECORD].as_str()?;
            serde_json::from_str(record).ok().filter(|binding: &Binding| binding.id == *id)
        };
        self.files().iter().filter_map(read).collect()
    }

    fn files(&self) -> Vec<BindingId> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let ids = names.filter_map(|name| {
            let id = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
            BindingId::try_from(id.to_string()).ok()
        });
        ids.collect()
    }

    /// Gives the agent's socket its name in the folder that pods see. A mount of the socket itself would be of no use after
    /// the agent's next start, when the socket is another file.
    pub(crate) fn link(&self, socket: &Path) -> io::Result<()> {
        fs::create_dir_all(&self.sockets)?;
        let link = self.sockets.join(state::SOCKET);
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::hard_link(socket, link),
        }
    }

    /// What is changed in the container of `bound`.
    fn edits(&self, bound: &Bound) -> Edits {
        let device = cdi::device(&self.as_pods_see(bound), &Placement::LibraryPath);
        let mut edits = device.map(|device| device.container_edits).unwrap_or_default();
        for mount in edits.mounts.iter_mut().filter(|mount| mount.host_path.parent() == Some(&self.sockets)) {
            *mount = cdi::mount(&self.sockets, &self.sockets, "ro");
        }
        // What NVIDIA's container toolkit makes of it is the GPU itself: its device nodes and its driver.
        edits.env.push(format!("{}={}", env::NVIDIA_VISIBLE_DEVICES, bound.binding.gpu));
        let pipes = bound.env.iter().find(|(name, _)| name == PIPES);
        edits.mounts.extend(pipes.map(|(_, pipes)| cdi::mount(Path::new(pipes), Path::new(pipes), "rw")));
        edits
    }

    /// The binding with the socket's other name.
    fn as_pods_see(&self, bound: &Bound) -> Bound {
        let mut bound = bound.clone();
        bound.socket = self.sockets.join(state::SOCKET);
        for (_, value) in bound.env.iter_mut().filter(|(name, _)| name == env::SOCKET) {
            *value = bound.socket.to_string_lossy().into_owned();
        }
        bound
    }

    fn path(&self, id: &BindingId) -> PathBuf {
        self.folder.join(format!("{PREFIX}{id}{SUFFIX}"))
    }
}

/// Vendor, class and device, as CDI advises for files that come and go.
const PREFIX: &str = "gpufn.dev-gpu_";
const SUFFIX: &str = ".json";
/// Annotation of a CDI device that has the binding, for an agent that has lost its checkpoint.
const RECORD: &str = "gpufn.dev/binding";

fn classic(mount: &cdi::Mount) -> Mount {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    Mount {
        container_path: text(&mount.container_path),
        host_path: text(&mount.host_path),
        read_only: mount.options.contains(&"ro"),
    }
}
