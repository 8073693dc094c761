//! A root file system with a C library and some programs, and what a runtime does to it: mounts, hooks, variables.
//!
//! Nothing of the machine's own is changed: it is all done in a mount namespace that ends with the programs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use device_plugin::cdi::Spec;
use serde_json::Value;
use tempfile::TempDir;
use tests::programs;

/// The hook's folder in the container.
pub(crate) const HOOK: &str = "/opt/gpufn/1/lib";
/// The driver's files, as its version names them.
pub(crate) const DRIVER: &str = "libcuda.so.550.54.15";
pub(crate) const NVML: &str = "libnvidia-ml.so.550.54.15";

/// The programs: their name in the README's table, and how they are called. `@` is the driver's folder.
pub(crate) const CLIENTS: [(&str, &str); 12] = [
    ("`libcuda.so.1`", "/client open libcuda.so.1"),
    ("`libcuda.so`", "/client open libcuda.so"),
    ("being linked with it", "/linked linked"),
    ("being linked with it, and a `RUNPATH`", "/linked-runpath linked"),
    ("being linked with it, and an `RPATH`", "/linked-rpath linked"),
    ("the path of `libcuda.so.1`", "/client open @/libcuda.so.1"),
    ("the path with the driver's version", "/client open @/libcuda.so.550.54.15"),
    ("`libnvidia-ml.so.1`", "/client open libnvidia-ml.so.1"),
    ("`libnvidia-ml.so`", "/client open libnvidia-ml.so"),
    ("`libnvidia-ml.so.1`, when the hook has opened the real one", "/client after libnvidia-ml.so.1"),
    ("the path of `libnvidia-ml.so.1`", "/client open @/libnvidia-ml.so.1"),
    ("the path of the management library with its version", "/client open @/libnvidia-ml.so.550.54.15"),
];

/// What the container toolkit's hook does for `update-ldcache`: the folders come into the loader's configuration, under a
/// name that sorts early, and the cache is renewed.
const CDI_HOOK: &str = r#"
[ "$1" = update-ldcache ] && [ "$2" = --folder ] || exit 64
echo "$3" >"$ROOT/etc/ld.so.conf.d/00-nvcr-$$.conf"
exec chroot "$ROOT" /sbin/ldconfig
"#;

/// A management library with a name of its own: the simulated driver's file is named for the driver.
const MANAGEMENT: &str = "
int nvmlInit_v2(void) { return 0; }
const char *nvmlErrorString(int status) { return status ? \"error\" : \"success\"; }
";

/// A container that is about to start.
pub(crate) struct Container {
    folder: TempDir,
    /// The driver's folder in the container: the C library's own.
    drivers: PathBuf,
    env: Vec<(String, String)>,
    /// Shell commands that make it, in their order.
    steps: Vec<String>,
}

impl Container {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let libc = programs::linked(&programs::built("libsimcuda.so"))
            .into_iter()
            .find(|path| path.file_name() == Some(OsStr::new("libc.so.6")));
        let drivers = libc.unwrap().canonicalize().unwrap().parent().unwrap().to_path_buf();
        let container = Self { folder, drivers, env: Vec::new(), steps: Vec::new() };
        for name in ["root", "driver", "hook", "bindings/b-1"] {
            fs::create_dir_all(container.host(name)).unwrap();
        }
        for (name, text) in [("nvidia-cdi-hook", CDI_HOOK), ("bindings/b-1/page", ""), ("node.sock", "")] {
            fs::write(container.host(name), text).unwrap();
        }
        container.make_driver();
        container.make_hook();
        container.make_root();
        container
    }

    /// A path on the node.
    pub(crate) fn host(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Path of one of the driver's files in the container.
    pub(crate) fn driver(&self, name: &str) -> String {
        self.drivers.join(name).to_str().unwrap().to_owned()
    }

    /// Whether `file` is one of the hook's. Where it covers the driver's files, those are the hook's too.
    pub(crate) fn is_hook(&self, file: &str) -> bool {
        let proxy = self.host("hook/libcuda.so.1").display().to_string();
        let covered = self.steps.iter().any(|step| step.contains(&proxy));
        // `/lib` and `/usr/lib` are one folder on most systems.
        let folder = |path: &Path| path.to_string_lossy().trim_start_matches("/usr").to_owned();
        let is_drivers = Path::new(file).parent().map(folder) == Some(folder(&self.drivers));
        file.starts_with(HOOK) || (covered && is_drivers)
    }

    pub(crate) fn env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// A file of the image.
    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.host("root").join(name), text).unwrap();
    }

    pub(crate) fn mount_hook(&mut self) {
        self.mount(&self.host("hook"), Path::new(HOOK), "ro");
    }

    /// The driver's files, as the container toolkit mounts them.
    pub(crate) fn mount_driver(&mut self) {
        for name in [DRIVER, NVML] {
            let place = self.drivers.join(name);
            self.mount(&self.host("driver").join(name), &place, "ro");
        }
    }

    /// All that the container toolkit does: mounts, the loader's cache with its links, and links without a version.
    pub(crate) fn toolkit(&mut self) {
        self.mount_driver();
        self.ldconfig();
    }

    /// The toolkit's hooks: the loader's cache, and the links without a version.
    pub(crate) fn ldconfig(&mut self) {
        let drivers = self.drivers.display();
        let hook = self.host("nvidia-cdi-hook");
        self.steps.push(format!("sh {} update-ldcache --folder {drivers}", hook.display()));
        for library in ["libcuda", "libnvidia-ml"] {
            self.steps.push(format!("ln -sfn {library}.so.1 \"$ROOT{drivers}/{library}.so\""));
        }
    }

    /// Applies the edits of a specification, read as a runtime reads it.
    pub(crate) fn apply(&mut self, spec: &Spec) {
        let spec = serde_json::to_value(spec).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        for device in spec["devices"].as_array().unwrap() {
            let edits = &device["containerEdits"];
            for variable in edits["env"].as_array().unwrap() {
                let (name, value) = variable.as_str().unwrap().split_once('=').unwrap();
                self.env(name, value);
            }
            for mount in edits["mounts"].as_array().unwrap() {
                let access =
                    if mount["options"].as_array().unwrap().contains(&"ro".into()) { "ro" } else { "rw" };
                // The hook's folder on the node is another in this test.
                let host = text(&mount["hostPath"]).replace(HOOK, self.host("hook").to_str().unwrap());
                self.mount(Path::new(&host), Path::new(&text(&mount["containerPath"])), access);
            }
            for hook in edits["hooks"].as_array().into_iter().flatten() {
                assert_eq!(hook["hookName"], "createContainer");
                let arguments = hook["args"].as_array().unwrap().iter().skip(1).map(text).collect::<Vec<_>>();
                self.steps.push(format!("sh {} {}", text(&hook["path"]), arguments.join(" ")));
            }
        }
    }

    fn mount(&mut self, from: &Path, to: &Path, access: &str) {
        let (from, to) = (from.display(), to.display());
        let make = if Path::new(&from.to_string()).is_dir() { "mkdir -p" } else { "touch" };
        self.steps.push(format!(
            "mkdir -p \"$(dirname \"$ROOT{to}\")\" && {{ [ -e \"$ROOT{to}\" ] || {make} \"$ROOT{to}\"; }}"
        ));
        self.steps.push(format!("mount --rbind {from} \"$ROOT{to}\""));
        if access == "ro" {
            self.steps.push(format!("mount -o remount,bind,ro,nosuid,nodev \"$ROOT{to}\""));
        }
    }

    /// Makes the container and runs every client in it, and once more after another `ldconfig`.
    pub(crate) fn run(&self) -> [BTreeMap<String, Said>; 2] {
        let variables =
            self.env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ");
        let clients = CLIENTS.iter().enumerate().map(|(number, (_, call))| {
            let call = call.replace('@', self.drivers.to_str().unwrap());
            // A client that fails says why.
            format!("echo '== {number}'\nenv -i {variables} \"$CHROOT\" \"$ROOT\" {call} 2>&1 || true\n")
        });
        let clients = clients.collect::<String>();
        let script = format!(
            "set -e\nexport ROOT={} CHROOT=\"$(command -v chroot)\"\n{}\n{clients}echo '==== later'\nchroot \"$ROOT\" /sbin/ldconfig\n{clients}",
            self.host("root").display(),
            self.steps.join("\n")
        );
        let output = in_namespace(&script);
        let (first, later) = output.split_once("==== later\n").unwrap_or_else(|| panic!("{output}"));
        [first, later].map(answers)
    }

    fn make_driver(&self) {
        fs::copy(programs::built("libsimcuda.so"), self.host("driver").join(DRIVER)).unwrap();
        fs::write(self.host("management.c"), MANAGEMENT).unwrap();
        let name = format!("driver/{NVML}");
        self.compile(&["management.c", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", &name]);
    }

    /// The folder as the hook's README has it.
    fn make_hook(&self) {
        let folder = self.host("hook");
        for (library, name) in [("libcuda_hook.so", "libcuda.so"), ("libgpufn_nvml.so", "libnvidia-ml.so")] {
            fs::copy(programs::built(library), folder.join(format!("{name}.1"))).unwrap();
            symlink(format!("{name}.1"), folder.join(name)).unwrap();
        }
    }

    fn make_root(&self) {
        let root = self.host("root");
        for folder in ["lib", "lib64", "bin", "sbin"] {
            let own = Path::new("/").join(folder);
            if let Ok(target) = fs::read_link(&own) {
                fs::create_dir_all(root.join(target.strip_prefix("/").unwrap_or(&target))).unwrap();
                symlink(&target, root.join(folder)).unwrap();
            } else {
                fs::create_dir_all(root.join(folder)).unwrap();
            }
        }
        fs::create_dir_all(root.join("etc/ld.so.conf.d")).unwrap();
        fs::write(root.join("etc/ld.so.conf"), "include /etc/ld.so.conf.d/*.conf\n").unwrap();
        self.write("etc/ld.so.conf.d/image.conf", &format!("{}\n", self.drivers.display()));
        let client = concat!(env!("CARGO_MANIFEST_DIR"), "/../watchdog/hook/preload/tests/preload/client.c");
        let driver = self.host("driver").join(DRIVER).display().to_string();
        let runpath = format!("-Wl,--enable-new-dtags,-rpath,{}", self.drivers.display());
        let rpath = format!("-Wl,--disable-new-dtags,-rpath,{}", self.drivers.display());
        self.compile(&[client, "-o", "root/client"]);
        self.compile(&[client, "-DLINKED", &driver, "-o", "root/linked"]);
        self.compile(&[client, "-DLINKED", &driver, &runpath, "-o", "root/linked-runpath"]);
        self.compile(&[client, "-DLINKED", &driver, &rpath, "-o", "root/linked-rpath"]);
        // Ubuntu's `ldconfig` is a script that runs this one.
        let real = Path::new("/sbin/ldconfig.real");
        let ldconfig = if real.exists() { real } else { Path::new("/sbin/ldconfig") };
        fs::copy(ldconfig, root.join("sbin/ldconfig")).unwrap();
        for program in [&programs::built("libsimcuda.so"), &root.join("client"), &ldconfig.to_path_buf()] {
            for file in programs::linked(program) {
                let place = root.join(file.strip_prefix("/").unwrap());
                fs::create_dir_all(place.parent().unwrap()).unwrap();
                fs::copy(&file, &place).unwrap();
                fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
    }

    fn compile(&self, arguments: &[&str]) {
        let output = Command::new("cc").args(arguments).current_dir(self.folder.path()).output().unwrap();
        assert!(output.status.success(), "cc {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Runs a script where it may mount: in a user namespace, or as root in a mount namespace.
fn in_namespace(script: &str) -> String {
    let mut complaints = Vec::new();
    for flags in [&["--user", "--map-root-user", "--mount"][..], &["--mount"]] {
        let possible = Command::new("unshare").args(flags).arg("true").output().unwrap();
        if !possible.status.success() {
            complaints.push(format!("unshare {flags:?}: {}", String::from_utf8_lossy(&possible.stderr)));
            continue;
        }
        let output = Command::new("unshare").args(flags).args(["sh", "-c", script]).output().unwrap();
        let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}: {why}\n{said}\nof\n{script}", output.status);
        return said.into_owned();
    }
    panic!(
        "this test mounts, for which it must be root or be allowed to make a user namespace:\n{}",
        complaints.concat()
    );
}

/// What each client said.
fn answers(text: &str) -> BTreeMap<String, Said> {
    let parts = text.split("== ").skip(1).filter_map(|part| part.split_once('\n'));
    let lines = |text: &str| Said(text.lines().map(str::to_owned).collect());
    parts.zip(CLIENTS).map(|((_, said), (name, _))| (name.to_owned(), lines(said))).collect()
}

/// The lines that a client printed.
#[derive(Debug)]
pub(crate) struct Said(Vec<String>);

impl Said {
    pub(crate) fn has(&self, beginning: &str) -> bool {
        self.0.iter().any(|line| line.starts_with(beginning))
    }

    /// The file that the program's first function of the driver lies in; of one that it was linked with, if it was.
    pub(crate) fn symbol(&self) -> String {
        let found = ["direct ", "symbol "]
            .iter()
            .find_map(|way| self.0.iter().find_map(|line| line.strip_prefix(way)));
        found.map_or_else(|| format!("no file: {self:?}"), ToString::to_string)
    }

    /// The files of the driver's names that are loaded.
    pub(crate) fn loaded(&self) -> Vec<String> {
        self.0.iter().filter_map(|line| line.strip_prefix("loaded ")).map(str::to_owned).collect()
    }
}
