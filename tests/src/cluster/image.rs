//! Container images made of files of this machine: no registry, no daemon.
//!
//! The form is the one of `docker save` (OCI image specification, image-layout's older relative): a tar of one layer, its
//! configuration, and a manifest that names both.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::components;
use crate::hash::hex;
use crate::programs;

/// An image that is being put together. Its pods say `imagePullPolicy: Never`.
#[derive(Clone, Debug)]
pub struct Image {
    name: String,
    /// Files by their path in the image.
    files: BTreeMap<PathBuf, PathBuf>,
    entrypoint: Vec<String>,
}

impl Image {
    /// An empty image; `name` is such as `localhost/function:1`.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), files: BTreeMap::new(), entrypoint: Vec::new() }
    }

    /// With a file of this machine.
    #[must_use]
    pub fn file(mut self, from: &Path, to: impl Into<PathBuf>) -> Self {
        self.files.insert(to.into(), from.into());
        self
    }

    /// With a program, and the libraries that it is linked with, where they lie on this machine.
    #[must_use]
    pub fn program(self, from: &Path, to: impl Into<PathBuf>) -> Self {
        let libraries = programs::linked(from);
        libraries
            .into_iter()
            .fold(self.file(from, to), |image, library| image.file(&library.clone(), library))
    }

    /// What a container runs, if its pod says nothing else.
    #[must_use]
    pub fn entrypoint(mut self, command: &[&str]) -> Self {
        self.entrypoint = command.iter().map(ToString::to_string).collect();
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives it to the containerd of the node that this process is on.
    pub fn load(&self, ctr: &Path) -> Result<()> {
        let archive = tempfile::NamedTempFile::new()?;
        self.write(archive.as_file())?;
        let mut command = Command::new(ctr);
        command.arg("--address").arg(components::socket()).args(["--namespace", "k8s.io"]);
        command.args(["images", "import", "--local"]).arg(archive.path());
        let output = command.output().with_context(|| ctr.display().to_string())?;
        ensure!(output.status.success(), "{}: {}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    fn write(&self, archive: &File) -> Result<()> {
        let layer = self.layer()?;
        let (config, manifest) = (self.config(&layer).to_string(), self.manifest().to_string());
        let mut tar = Builder::new(archive);
        for (name, content) in [
            ("layer.tar", &*layer),
            ("config.json", config.as_bytes()),
            ("manifest.json", manifest.as_bytes()),
        ] {
            append(&mut tar, Path::new(name), content, 0o644)?;
        }
        tar.finish()?;
        Ok(())
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        let folders = self.files.keys().flat_map(|path| path.ancestors().skip(1)).map(Path::to_path_buf);
        // A folder comes before what is in it, as in their order.
        let folders: std::collections::BTreeSet<_> = folders.chain([PathBuf::from("/tmp")]).collect();
        for folder in folders.iter().filter_map(|folder| folder.strip_prefix("/").ok()) {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Directory);
            header.set_mode(if folder == Path::new("tmp") { 0o1777 } else { 0o755 });
            header.set_size(0);
            if !folder.as_os_str().is_empty() {
                tar.append_data(&mut header, folder, std::io::empty())?;
            }
        }
        for (to, from) in &self.files {
            let content = fs::read(from).with_context(|| from.display().to_string())?;
            let mode = fs::metadata(from).with_context(|| from.display().to_string())?.permissions().mode();
            append(&mut tar, to.strip_prefix("/").unwrap_or(to), &content, mode & 0o777)?;
        }
        Ok(tar.into_inner()?)
    }

    fn config(&self, layer: &[u8]) -> Value {
        json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Env": ["PATH=/usr/bin:/bin"], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer)]},
        })
    }

    fn manifest(&self) -> Value {
        json!([{"Config": "config.json", "RepoTags": [self.name], "Layers": ["layer.tar"]}])
    }
}

fn append(tar: &mut Builder<impl std::io::Write>, path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content).with_context(|| path.display().to_string())
}

fn sha256(content: &[u8]) -> String {
    format!("sha256:{}", hex(digest(&SHA256, content).as_ref()))
}

/// This machine's, as images call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use tar::Archive;

    use super::*;

    fn entries(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut archive = Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let (mode, mut content) = (entry.header().mode().unwrap(), Vec::new());
            entry.read_to_end(&mut content).unwrap();
            (name, (mode, content))
        });
        entries.collect()
    }

    #[test]
    fn an_image_has_the_files_their_folders_and_a_digest_that_is_right() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, "#!").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o750)).unwrap();
        let image =
            Image::new("localhost/test:1").file(&program, "/usr/bin/program").entrypoint(&["program"]);
        let archive = folder.path().join("image.tar");
        image.write(&File::create(&archive).unwrap()).unwrap();

        let parts = entries(&fs::read(&archive).unwrap());
        let json = |name: &str| serde_json::from_slice::<Value>(&parts[name].1).unwrap();
        assert_eq!(json("manifest.json")[0]["RepoTags"][0], "localhost/test:1");
        let layer = &parts["layer.tar"].1;
        assert_eq!(json("config.json")["rootfs"]["diff_ids"][0], sha256(layer));
        assert_eq!(json("config.json")["config"]["Entrypoint"][0], "program");
        let files = entries(layer);
        assert_eq!(files["usr/bin/program"], (0o750, b"#!".to_vec()));
        assert_eq!(
            files.keys().map(String::as_str).collect::<Vec<_>>(),
            ["tmp", "usr", "usr/bin", "usr/bin/program"]
        );
        assert_eq!(files["tmp"].0, 0o1777);
    }
}
