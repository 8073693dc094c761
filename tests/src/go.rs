//! Real programs of the Kubernetes world, for tests against the real thing: built from the Go modules in `tests/cluster/`
//! where they are not there yet, and kept outside the checkout, since a build takes minutes.
//!
//! What is kept is named by a hash of all that goes into it, so two checkouts share it only if they would build the same.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ring::digest::{self, SHA256};

use crate::hash::hex;

/// Time between two lines that say how far a build is.
const PROGRESS: Duration = Duration::from_secs(10);
/// Lines of a failed build that are shown.
const TAIL: usize = 20;

/// A Go module in `tests/cluster/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Module {
    Kubernetes,
    Containerd,
    Keda,
    Knative,
}

impl Module {
    fn folder(self) -> PathBuf {
        let name = match self {
            Self::Kubernetes => "kubernetes",
            Self::Containerd => "containerd",
            Self::Keda => "keda",
            Self::Knative => "knative",
        };
        Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(name)
    }

    /// Arguments of `go build`.
    fn arguments(self) -> Result<Vec<String>> {
        let mut link = "-s -w".to_string();
        let mut arguments = vec!["-trimpath".to_string(), "-buildvcs=false".to_string()];
        match self {
            Self::Kubernetes => {
                // Unset, the server calls itself v0.0.0, which clients that ask for a version refuse.
                let version = required(&self.folder().join("go.mod"), "k8s.io/kubernetes")?;
                let minor = version.split('.').nth(1).unwrap_or_default();
                for (name, value) in [("Version", version.as_str()), ("Major", "1"), ("Minor", minor)] {
                    let _ = write!(link, " -X k8s.io/component-base/version.git{name}={value}");
                }
            }
            Self::Containerd => {
                arguments.push("-tags=no_btrfs no_zfs no_devmapper no_aufs".into());
            }
            // Most of it is clients of clouds that no test uses: not to optimise them saves a quarter of the build.
            Self::Keda => arguments.push("-gcflags=all=-N -l".into()),
            Self::Knative => {}
        }
        arguments.push(format!("-ldflags={link}"));
        Ok(arguments)
    }
}

/// A program that can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The kubelet's device manager alone.
    DeviceManager,
    /// A device plugin that does the least.
    ExamplePlugin,
    /// etcd, API server, controller manager, scheduler and kubelet in one.
    Kubernetes,
    /// The first process of every pod.
    Pause,
    /// The container runtime.
    Containerd,
    /// Its process beside each pod; the name is how containerd finds it.
    Shim,
    /// Its command, which imports images.
    Ctr,
    /// What starts containers.
    Runc,
    /// The same for containers whose system calls nobody filters.
    RuncUnfiltered,
    /// CNI: connects pods with a bridge.
    Bridge,
    /// CNI: gives pods addresses.
    HostLocal,
    /// KEDA's operator.
    KedaOperator,
    /// KEDA's server of metrics for the autoscaler.
    KedaAdapter,
    /// The proxy that Knative has before each function.
    QueueProxy,
}

impl Program {
    /// What a cluster and the device manager are made of.
    pub const BASIC: [Self; 11] = [
        Self::DeviceManager,
        Self::ExamplePlugin,
        Self::Kubernetes,
        Self::Pause,
        Self::Containerd,
        Self::Shim,
        Self::Ctr,
        Self::Runc,
        Self::RuncUnfiltered,
        Self::Bridge,
        Self::HostLocal,
    ];
    /// What some tests run on a cluster besides.
    pub const FURTHER: [Self; 3] = [Self::KedaOperator, Self::KedaAdapter, Self::QueueProxy];

    fn module(self) -> Module {
        match self {
            Self::DeviceManager | Self::ExamplePlugin | Self::Kubernetes | Self::Pause => Module::Kubernetes,
            Self::KedaOperator | Self::KedaAdapter => Module::Keda,
            Self::QueueProxy => Module::Knative,
            _ => Module::Containerd,
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::DeviceManager => "./cmd/device-manager",
            Self::ExamplePlugin => "./cmd/example-plugin",
            Self::Kubernetes => "./cmd/kubernetes",
            Self::Pause => "./cmd/pause",
            Self::Containerd => "github.com/containerd/containerd/v2/cmd/containerd",
            Self::Shim => "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            Self::Ctr => "github.com/containerd/containerd/v2/cmd/ctr",
            Self::Runc => "github.com/opencontainers/runc",
            Self::RuncUnfiltered => "./cmd/runc-unfiltered",
            Self::Bridge => "github.com/containernetworking/plugins/plugins/main/bridge",
            Self::HostLocal => "github.com/containernetworking/plugins/plugins/ipam/host-local",
            Self::KedaOperator => "github.com/kedacore/keda/v2/cmd/operator",
            Self::KedaAdapter => "github.com/kedacore/keda/v2/cmd/adapter",
            Self::QueueProxy => "knative.dev/serving/cmd/queue",
        }
    }

    fn name(self) -> &'static str {
        self.package().rsplit('/').next().unwrap_or_default()
    }

    /// What joins a container's namespaces before the Go runtime starts is C in runc, and in nothing else.
    fn needs_c(self) -> bool {
        self == Self::Runc
    }
}

/// The path of a program, which is built first if need be.
pub fn built(program: Program) -> Result<PathBuf> {
    let module = program.module();
    let arguments = module.arguments()?;
    let folder = kept(module, &arguments)?;
    let path = folder.join(program.name());
    let lock = folder.join("lock");
    let lock = File::create(&lock).with_context(|| lock.display().to_string())?;
    lock.lock().context("waiting for another build")?;
    if !path.is_file() {
        // Under another name until it is whole: a build that is killed leaves nothing that looks like a program.
        let unfinished = folder.join("unfinished");
        build(program, &arguments, &unfinished).with_context(|| format!("building {}", program.name()))?;
        fs::rename(&unfinished, &path).with_context(|| path.display().to_string())?;
    }
    Ok(path)
}

/// The folder of KEDA's own files, of the version that is built. It is downloaded if it is not there.
pub fn keda_files() -> Result<PathBuf> {
    let mut go = Command::new("go");
    go.args(["mod", "download", "-json", "github.com/kedacore/keda/v2"]).current_dir(Module::Keda.folder());
    let output = go.output().context("go")?;
    ensure!(output.status.success(), "go mod download: {}", String::from_utf8_lossy(&output.stderr).trim());
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).context("go mod download")?;
    Ok(said["Dir"].as_str().context("go mod download tells no folder")?.into())
}

fn build(program: Program, arguments: &[String], out: &Path) -> Result<()> {
    let start = Instant::now();
    eprintln!("building {} from Go modules, once, at low priority", program.name());
    let mut go = Command::new("nice");
    go.args(["-n", "19", "go", "build", "-v"]).args(arguments).arg("-o").arg(out).arg(program.package());
    go.current_dir(program.module().folder());
    go.env("CGO_ENABLED", if program.needs_c() { "1" } else { "0" });
    let mut go = go.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let lines = BufReader::new(go.stderr.take().context("its standard error is piped")?).lines();
    let (mut packages, mut shown, mut tail) = (0, Instant::now(), VecDeque::new());
    for line in lines.map_while(Result::ok) {
        // `-v` prints the path of each package when it is compiled. What else there is has spaces.
        if line.contains(' ') {
            tail.push_back(line);
            if tail.len() > TAIL {
                tail.pop_front();
            }
        } else {
            packages += 1;
        }
        if shown.elapsed() > PROGRESS {
            shown = Instant::now();
            eprintln!(
                "building {}: {packages} packages after {} s",
                program.name(),
                start.elapsed().as_secs()
            );
        }
    }
    let status = go.wait()?;
    ensure!(status.success(), "go build: {status}\n{}", Vec::from(tail).join("\n"));
    eprintln!("built {} in {} s", program.name(), start.elapsed().as_secs());
    Ok(())
}

/// The folder of a module's programs. What it is made of is read once in a process, which must not see it change.
fn kept(module: Module, arguments: &[String]) -> Result<PathBuf> {
    static KNOWN: Mutex<BTreeMap<Module, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(folder) = known.get(&module) {
        return Ok(folder.clone());
    }
    let folder = cache()?.join(hash(&module.folder(), arguments)?);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    known.insert(module, folder.clone());
    Ok(folder)
}

fn cache() -> Result<PathBuf> {
    let own = |name: &str| std::env::var_os(name).filter(|value| Path::new(value).is_absolute());
    let cache = own("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || own("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = cache.or_else(home).context("neither XDG_CACHE_HOME nor HOME is set to an absolute path")?;
    Ok(cache.join("gpufn-cluster"))
}

/// The hash of a module's sources, its build's arguments, and the compiler's version.
fn hash(folder: &Path, arguments: &[String]) -> Result<String> {
    let mut sources = Vec::new();
    collect(folder, &mut sources)?;
    sources.sort();
    let mut context = digest::Context::new(&SHA256);
    let mut add = |part: &[u8]| {
        context.update(&part.len().to_le_bytes());
        context.update(part);
    };
    add(compiler(folder)?.as_bytes());
    for argument in arguments {
        add(argument.as_bytes());
    }
    for path in sources {
        let name = path.strip_prefix(folder).unwrap_or(&path);
        add(name.as_os_str().as_encoded_bytes());
        add(&fs::read(&path).with_context(|| path.display().to_string())?);
    }
    Ok(hex(&context.finish().as_ref()[..8]))
}

/// Version and architecture of the compiler that would build in `folder`.
fn compiler(folder: &Path) -> Result<String> {
    let output = match Command::new("go").args(["env", "GOVERSION", "GOARCH"]).current_dir(folder).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("go is not on PATH: the real Kubernetes is built with Go 1.26 or newer (https://go.dev/dl)")
        }
        other => other.context("go env")?,
    };
    ensure!(output.status.success(), "go env: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn collect(folder: &Path, sources: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let extension = path.extension().map(OsString::from).unwrap_or_default();
        if path.is_dir() {
            collect(&path, sources)?;
        } else if ["go", "mod", "sum"].iter().any(|&known| extension == known) {
            sources.push(path);
        }
    }
    Ok(())
}

/// The version of a module that a `go.mod` requires.
fn required(go_mod: &Path, module: &str) -> Result<String> {
    let text = fs::read_to_string(go_mod).with_context(|| go_mod.display().to_string())?;
    let version = text.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|&word| word == "require");
        (words.next() == Some(module)).then(|| words.next())?
    });
    Ok(version.with_context(|| format!("{} does not require {module}", go_mod.display()))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_source_argument_or_name_is_another_program() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let hash = |argument: &str| hash(folder.path(), &[argument.to_string()]).unwrap();
        write("go.mod", "module example\n\ngo 1.26.0\n");
        write("main.go", "package main");
        let first = hash("-trimpath");
        assert_eq!(first, hash("-trimpath"));
        assert_ne!(first, hash("-race"));
        write("README.md", "no source");
        assert_eq!(first, hash("-trimpath"));
        write("main.go", "package main\n");
        assert_ne!(first, hash("-trimpath"));
        let second = hash("-trimpath");
        fs::rename(folder.path().join("main.go"), folder.path().join("other.go")).unwrap();
        assert_ne!(second, hash("-trimpath"));
    }

    #[test]
    fn the_required_version_is_found_in_both_forms() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("go.mod");
        fs::write(&path, "require a.b/c v1.2.3\n\nrequire (\n\td.e/f v0.1.0 // indirect\n)\n").unwrap();
        assert_eq!(required(&path, "a.b/c").unwrap(), "v1.2.3");
        assert_eq!(required(&path, "d.e/f").unwrap(), "v0.1.0");
        assert!(required(&path, "a.b").unwrap_err().to_string().ends_with("does not require a.b"));
    }
}
