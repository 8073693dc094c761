//! Folders of the hook and of the simulated driver, as programs expect to find CUDA: under the driver's names.
//!
//! A folder is named for what is in it and never changed: a rebuild makes another, and running functions keep theirs.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The driver's names, and those of the management library.
const NAMES: [&str; 4] = ["libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1", "libnvidia-ml.so"];

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

/// Copies `library` into a folder of its own below `folder`, under the driver's names; returns that folder.
pub(crate) fn install(library: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let content = std::fs::read(library).with_context(|| format!("failed to read {}", library.display()))?;
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    let place = folder.join(format!("{:016x}", hasher.finish()));
    if place.is_dir() {
        return Ok(place);
    }
    // Whole or not at all: a run that was killed half-way leaves a folder of another name.
    let fresh = folder.join(format!(".new-{}", std::process::id()));
    let written = || -> std::io::Result<()> {
        std::fs::create_dir_all(&fresh)?;
        let (first, others) = (fresh.join(NAMES[0]), &NAMES[1..]);
        std::fs::write(&first, &content)?;
        for name in others {
            std::fs::hard_link(&first, fresh.join(name))?;
        }
        std::fs::rename(&fresh, &place)
    };
    written().with_context(|| format!("failed to install {} in {}", library.display(), place.display()))?;
    Ok(place)
}

/// NVIDIA's driver and management library on this machine, by full path: the hook opens them by that.
pub(crate) fn real_driver() -> Option<(PathBuf, PathBuf)> {
    let find = |name: &str| {
        DRIVER_FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists())
    };
    Some((find(NAMES[0])?, find(NAMES[2])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_build_has_another_folder_and_the_old_one_stays() {
        let root = tempfile::tempdir().unwrap();
        let library = root.path().join("libx.so");
        std::fs::write(&library, "one").unwrap();
        let first = install(&library, &root.path().join("lib")).unwrap();
        assert_eq!(install(&library, &root.path().join("lib")).unwrap(), first);
        std::fs::write(&library, "two").unwrap();
        let second = install(&library, &root.path().join("lib")).unwrap();
        assert_ne!(first, second);
        for name in NAMES {
            assert_eq!(std::fs::read_to_string(first.join(name)).unwrap(), "one");
            assert_eq!(std::fs::read_to_string(second.join(name)).unwrap(), "two");
        }
    }
}
