//! The hook library on the node: copied once under a path of its own, and never changed there.
//!
//! A running container has the files mapped. To write over them would crash it (`HAMi` #727), so another version, or another
//! build of the same version, gets another path, and what is there stays.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Copies the files of `source` to `<root>/<version>/lib`, unless they are there; returns that folder.
///
/// If other files are there, an earlier build of the same version put them there, and the folder is
/// `<root>/<version>-<hash of the files>/lib`.
pub fn install(source: &Path, root: &Path, version: &str) -> io::Result<PathBuf> {
    let files = read(source)?;
    if files.is_empty() {
        let text = format!("{} has no files, allowed is the folder of the hook library", source.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    let folders = [version.to_string(), format!("{version}-{:08x}", hash(&files))];
    for name in folders {
        let folder = root.join(name).join("lib");
        match read(&folder) {
            Ok(present) if present == files => return Ok(folder),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return write(&files, &folder).map(|()| folder);
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!("{} has files that this agent did not put there", root.display())))
}

/// Contents by name. Links are followed: a folder of libraries has them for versions.
fn read(folder: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.insert(name, fs::read(&path)?);
        }
    }
    Ok(files)
}

/// All files or none: a container must not find half of them.
fn write(files: &BTreeMap<String, Vec<u8>>, folder: &Path) -> io::Result<()> {
    let parent = folder.parent().unwrap_or(folder);
    fs::create_dir_all(parent)?;
    let unfinished = parent.join(format!("lib.new-{}", std::process::id()));
    fs::create_dir_all(&unfinished)?;
    for (name, content) in files {
        let path = unfinished.join(name);
        fs::write(&path, content)?;
        File::open(&path)?.sync_all()?;
    }
    match fs::rename(&unfinished, folder) {
        // Another agent was faster.
        Err(_) if read(folder).is_ok_and(|present| present == *files) => fs::remove_dir_all(&unfinished),
        result => result,
    }
}

/// FNV-1a: tells builds apart, and need not resist anybody.
fn hash(files: &BTreeMap<String, Vec<u8>>) -> u32 {
    let bytes = files.iter().flat_map(|(name, content)| name.bytes().chain(content.iter().copied()));
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(folder: &Path, content: &str) -> PathBuf {
        let source = folder.join(content);
        fs::create_dir(&source).unwrap();
        fs::write(source.join("libcuda.so.1"), content).unwrap();
        source
    }

    #[test]
    fn what_is_installed_is_never_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (source(folder.path(), "one"), source(folder.path(), "other"));
        let root = folder.path().join("opt");
        let first = install(&one, &root, "0.1.0").unwrap();
        assert_eq!(first, root.join("0.1.0/lib"));
        assert_eq!(install(&one, &root, "0.1.0").unwrap(), first);

        let second = install(&other, &root, "0.1.0").unwrap();
        assert_ne!(second, first);
        assert_eq!(install(&other, &root, "0.1.0").unwrap(), second);
        assert_eq!(fs::read_to_string(first.join("libcuda.so.1")).unwrap(), "one");
        assert_eq!(fs::read_to_string(second.join("libcuda.so.1")).unwrap(), "other");
    }

    #[test]
    fn a_folder_without_files_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = install(folder.path(), &folder.path().join("opt"), "0.1.0").unwrap_err();
        assert!(error.to_string().contains("has no files"), "{error}");
    }
}
