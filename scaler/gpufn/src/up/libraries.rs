//! Folders of the hook and of the simulated driver, as programs expect to find CUDA: under the driver's names.
//!
//! A folder is named for what is in it and never changed: a rebuild makes another, and running functions keep theirs.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The driver's names.
const CUDA: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
/// The management library's names.
const NVML: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// What lies in a folder: built files, and the names that each gets there.
pub(crate) type Files = [(&'static str, &'static [&'static str])];

/// The hook, with the form for programs that open the driver by its path.
pub(crate) const HOOK: &Files = &[
    ("libcuda_hook.so", &CUDA),
    ("libgpufn_nvml.so", &NVML),
    ("libgpufn_preload.so", &["libgpufn_preload.so"]),
];

/// The simulated driver.
pub(crate) const SIMULATED: &Files = &[("libsimcuda.so", &CUDA), ("libsimcuda.so", &NVML)];

/// Where a machine with NVIDIA's driver keeps it.
const DRIVER_FOLDERS: [&str; 8] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/cuda/compat",
    "/usr/lib/wsl/lib",
    "/run/opengl-driver/lib",
];

/// Copies `files`, which `built` finds, into a folder of their own below `folder`; returns that folder.
pub(crate) fn install(
    files: &Files,
    built: impl Fn(&str) -> anyhow::Result<PathBuf>,
    folder: &Path,
) -> anyhow::Result<PathBuf> {
    let mut contents = Vec::new();
    let mut hasher = DefaultHasher::new();
    for (file, names) in files {
        let path = built(file)?;
        let content = std::fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
        (&content, names).hash(&mut hasher);
        contents.push((content, names));
    }
    let place = folder.join(format!("{:016x}", hasher.finish()));
    if place.is_dir() {
        return Ok(place);
    }
    // Whole or not at all: a run that was killed half-way leaves a folder of another name.
    let fresh = folder.join(format!(".new-{}", std::process::id()));
    let written = || -> std::io::Result<()> {
        std::fs::create_dir_all(&fresh)?;
        for (content, names) in &contents {
            for name in **names {
                std::fs::write(fresh.join(name), content)?;
            }
        }
        std::fs::rename(&fresh, &place)
    };
    written().with_context(|| format!("failed to install libraries in {}", place.display()))?;
    Ok(place)
}

/// NVIDIA's driver and management library on this machine, by full path: the hook opens them by that.
pub(crate) fn real_driver() -> Option<(PathBuf, PathBuf)> {
    let find = |name: &str| {
        DRIVER_FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists())
    };
    Some((find(CUDA[0])?, find(NVML[0])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_build_has_another_folder_and_the_old_one_stays() {
        let root = tempfile::tempdir().unwrap();
        let library = root.path().join("libx.so");
        let place = root.path().join("lib");
        let install = || install(&[("libx.so", &CUDA)], |file| Ok(root.path().join(file)), &place).unwrap();
        std::fs::write(&library, "one").unwrap();
        let first = install();
        assert_eq!(install(), first);
        std::fs::write(&library, "two").unwrap();
        let second = install();
        assert_ne!(first, second);
        for name in CUDA {
            assert_eq!(std::fs::read_to_string(first.join(name)).unwrap(), "one");
            assert_eq!(std::fs::read_to_string(second.join(name)).unwrap(), "two");
        }
    }
}
