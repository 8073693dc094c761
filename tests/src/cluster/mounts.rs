//! The node's file system: the machine's own, with what the cluster writes to kept in memory.
//!
//! All of it happens in a mount namespace that the caller is in, and ends with it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};

use super::{ROOT, at};

/// What the kubelet sets to its liking. It gets files of its own in their place, so that the machine's stay as they are.
const SETTINGS: [&str; 6] = [
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

/// Folders of the machine that the node has its own of, or a changed view of.
pub const COVERED: [&str; 3] = ["/run", "/var/log", "/var/lib"];

/// Makes the node's file system.
pub fn make() -> Result<()> {
    let [run, logs, state] = COVERED.map(Path::new);
    in_memory(run)?;
    in_memory(logs)?;
    fs::create_dir_all(ROOT)?;
    overlay(state)?;
    kubelet_folder()?;
    settings()
}

fn in_memory(target: &Path) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", target, "tmpfs", flags, c"mode=755")
        .with_context(|| format!("mounting memory on {}", target.display()))
}

/// What is written below `target` goes to memory; what is there already is seen through it.
fn overlay(target: &Path) -> Result<()> {
    let name = target.to_string_lossy().replace('/', "-");
    let (upper, work) = (at(&format!("overlay/upper{name}")), at(&format!("overlay/work{name}")));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options =
        format!("lowerdir={},upperdir={},workdir={}", target.display(), upper.display(), work.display());
    let options = std::ffi::CString::new(options)?;
    mount("overlay", target, "overlay", MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("mounting an overlay on {}", target.display()))
}

/// The kubelet's folder, whose path plugins know. Volumes that are mounted in it must reach pods.
fn kubelet_folder() -> Result<()> {
    let (own, known) = (at("kubelet"), PathBuf::from("/var/lib/kubelet"));
    fs::create_dir_all(&own)?;
    fs::create_dir_all(&known)?;
    mount_bind(&own, &known).context("binding /var/lib/kubelet")?;
    mount_change(&known, MountPropagationFlags::SHARED).context("sharing /var/lib/kubelet")
}

fn settings() -> Result<()> {
    let own = at("settings");
    fs::create_dir_all(&own)?;
    for name in SETTINGS {
        let setting = Path::new("/proc/sys").join(name);
        // A kernel without key management has no settings of it.
        let Ok(value) = fs::read(&setting) else { continue };
        let copy = own.join(name.replace('/', "-"));
        fs::write(&copy, value)?;
        mount_bind(&copy, &setting).with_context(|| format!("binding {}", setting.display()))?;
    }
    Ok(())
}
