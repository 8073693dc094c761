//! The cluster's processes: how each is called, and the configuration files that they read.
//!
//! All of it follows from where the programs lie; nothing is started here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::certificates::kubeconfig_path;
use super::{API_PORT, NODE, PODS, SERVICES, at};
use crate::go::{self, Program};

/// A process of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// The store.
    Etcd,
    /// The API.
    ApiServer,
    /// Deployments, service accounts, garbage collection, autoscaling and the like.
    ControllerManager,
    /// Says on which node a pod runs.
    Scheduler,
    /// The container runtime.
    Containerd,
    /// Runs the node's pods.
    Kubelet,
}

impl Component {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Etcd,
        Self::ApiServer,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Containerd,
        Self::Kubelet,
    ];

    /// Its name, also the one of its log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "api-server",
            Self::ControllerManager => "controller-manager",
            Self::Scheduler => "scheduler",
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
        }
    }
}

/// Where the programs of the cluster lie.
#[derive(Clone, Debug, Args)]
pub struct Programs {
    /// All of Kubernetes in one.
    #[arg(long)]
    pub kubernetes: PathBuf,
    /// The first process of every pod.
    #[arg(long)]
    pub pause: PathBuf,
    /// The container runtime. What it runs lies beside it: its shim, runc, and the CNI plugins.
    #[arg(long)]
    pub containerd: PathBuf,
    /// Its command.
    #[arg(long)]
    pub ctr: PathBuf,
}

impl Programs {
    /// Builds what is not built yet.
    pub fn build() -> Result<Self> {
        for program in
            [Program::Shim, Program::Runc, Program::RuncUnfiltered, Program::Bridge, Program::HostLocal]
        {
            go::built(program)?;
        }
        Ok(Self {
            containerd: go::built(Program::Containerd)?,
            ctr: go::built(Program::Ctr)?,
            pause: go::built(Program::Pause)?,
            kubernetes: go::built(Program::Kubernetes)?,
        })
    }

    /// The same as arguments of a command that takes them.
    pub fn arguments(&self) -> [OsString; 4] {
        let paths = [
            ("--kubernetes=", &self.kubernetes),
            ("--pause=", &self.pause),
            ("--containerd=", &self.containerd),
            ("--ctr=", &self.ctr),
        ];
        paths.map(|(option, path)| {
            let mut argument = OsString::from(option);
            argument.push(path);
            argument
        })
    }

    /// The folder of containerd and of what it runs.
    pub fn runtime_folder(&self) -> &Path {
        self.containerd.parent().unwrap_or_else(|| Path::new("/"))
    }

    /// How a component is started.
    pub fn command(&self, component: Component) -> Command {
        let mut command = match component {
            Component::Etcd => self.part("etcd", &[("data-dir", &path("etcd"))]),
            Component::ApiServer => self.api_server(),
            Component::ControllerManager => self.controller_manager(),
            Component::Scheduler => self.scheduler(),
            Component::Containerd => self.containerd(),
            Component::Kubelet => self.part(
                "kubelet",
                &[
                    ("config", &path("kubelet.json")),
                    ("kubeconfig", &kubeconfig("kubelet")),
                    ("cert-dir", &path("kubelet-pki")),
                    // An address that is a name too: the kubelet refuses a loopback address as `--node-ip`.
                    ("hostname-override", NODE),
                ],
            ),
        };
        command.env("TMPDIR", at("tmp"));
        command
    }

    fn part(&self, name: &str, flags: &[(&str, &str)]) -> Command {
        let mut command = Command::new(&self.kubernetes);
        command.arg(name).args(flags.iter().map(|(name, value)| format!("--{name}={value}")));
        command
    }

    fn api_server(&self) -> Command {
        let pki = |file: &str| path(&format!("pki/{file}"));
        let (port, authority) = (API_PORT.to_string(), pki("ca.crt"));
        self.part(
            "kube-apiserver",
            &[
                ("etcd-servers", "http://127.0.0.1:2379"),
                // All addresses of this network namespace, which nothing outside reaches: pods use the service's.
                ("bind-address", "0.0.0.0"),
                ("secure-port", &port),
                ("advertise-address", NODE),
                // A loopback address can't be an endpoint, and nothing here needs the endpoint.
                ("endpoint-reconciler-type", "none"),
                ("tls-cert-file", &pki("apiserver.crt")),
                ("tls-private-key-file", &pki("apiserver.key")),
                ("client-ca-file", &authority),
                ("service-account-key-file", &pki("service-account.crt")),
                ("service-account-signing-key-file", &pki("service-account.key")),
                ("service-account-issuer", "https://kubernetes.default.svc"),
                ("service-cluster-ip-range", SERVICES),
                ("authorization-mode", "Node,RBAC"),
                ("allow-privileged", "true"),
                ("kubelet-client-certificate", &pki("apiserver-kubelet.crt")),
                ("kubelet-client-key", &pki("apiserver-kubelet.key")),
                ("kubelet-preferred-address-types", "InternalIP"),
                ("requestheader-client-ca-file", &authority),
                ("requestheader-allowed-names", "front-proxy"),
                ("requestheader-username-headers", "X-Remote-User"),
                ("requestheader-group-headers", "X-Remote-Group"),
                ("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
                ("proxy-client-cert-file", &pki("front-proxy.crt")),
                ("proxy-client-key-file", &pki("front-proxy.key")),
                // An API service is then reached by its name: one may be a process of the node.
                ("enable-aggregator-routing", "false"),
            ],
        )
    }

    fn controller_manager(&self) -> Command {
        let mut command = self.part(
            "kube-controller-manager",
            &[
                ("service-account-private-key-file", &path("pki/service-account.key")),
                ("root-ca-file", &path("pki/ca.crt")),
                ("cluster-signing-cert-file", &path("pki/ca.crt")),
                ("cluster-signing-key-file", &path("pki/ca.key")),
                ("use-service-account-credentials", "true"),
                // It makes an account for each of some forty controllers first, at 20 requests a second by default.
                ("kube-api-qps", "500"),
                ("kube-api-burst", "500"),
                // The autoscaler's 15 s are too long for a test.
                ("horizontal-pod-autoscaler-sync-period", "2s"),
            ],
        );
        command.args(client_flags("controller-manager"));
        command
    }

    fn scheduler(&self) -> Command {
        let mut command = self.part("kube-scheduler", &[]);
        command.args(client_flags("scheduler"));
        command
    }

    fn containerd(&self) -> Command {
        let mut command = Command::new(&self.containerd);
        command.arg("--config").arg(at("containerd.toml"));
        // It finds its shim by name.
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        let folders =
            std::iter::once(self.runtime_folder().to_path_buf()).chain(std::env::split_paths(&inherited));
        command.env("PATH", std::env::join_paths(folders).unwrap_or(inherited));
        command
    }

    /// The files that components read, by their path. `logs` is where pods' logs go, `cgroup` the control group above all
    /// pods.
    pub fn files(&self, logs: &Path, cgroup: &str) -> Vec<(PathBuf, String)> {
        vec![
            (at("containerd.toml"), self.containerd_config()),
            (at("cni/10-bridge.conflist"), network().to_string()),
            (at("kubelet.json"), kubelet(logs, cgroup).to_string()),
            (at("resolv.conf"), String::new()),
        ]
    }

    fn containerd_config(&self) -> String {
        let programs = self.runtime_folder().display();
        let root = super::ROOT;
        // `restrict_oom_score_adj`: in many sandboxes root may not lower a score.
        format!(
            r#"version = 3
root = "{root}/containerd/root"
state = "{root}/containerd/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]

[grpc]
address = "{socket}"

[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
pinned_images.sandbox = "{pause}"

[plugins.'io.containerd.cri.v1.runtime']
cdi_spec_dirs = ["/run/cdi"]
netns_mounts_under_state_dir = true
restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{programs}"]
conf_dir = "{root}/cni"
use_internal_loopback = true

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
options.BinaryName = "{programs}/runc-unfiltered"
options.SystemdCgroup = false
"#,
            socket = socket().display(),
            pause = PAUSE,
        )
    }
}

/// Name of the image whose program holds a pod's namespaces.
pub const PAUSE: &str = "localhost/pause:1";

/// Where containerd listens.
pub fn socket() -> PathBuf {
    at("containerd.sock")
}

/// Kubeconfig of one who calls the API server.
pub fn kubeconfig(client: &str) -> String {
    kubeconfig_path(&at("pki"), client).display().to_string()
}

fn path(name: &str) -> String {
    at(name).display().to_string()
}

/// Flags of a component that calls the API server, and asks it who its own callers are.
fn client_flags(client: &str) -> [String; 5] {
    let kubeconfig = kubeconfig(client);
    [
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        format!("--bind-address={NODE}"),
        "--leader-elect=false".into(),
    ]
}

/// Pods hang on a bridge, from which nothing leads out of the node.
fn network() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": at("cni-addresses"),
                "ranges": [[{"subnet": PODS}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}

fn kubelet(logs: &Path, cgroup: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE,
        "healthzBindAddress": NODE,
        "readOnlyPort": 0,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        // Otherwise it refuses a machine with the first version of control groups.
        "failCgroupV1": false,
        "enforceNodeAllocatable": [],
        "makeIPTablesUtilChains": false,
        "containerRuntimeEndpoint": format!("unix://{}", socket().display()),
        "podLogsDir": logs,
        "resolvConf": at("resolv.conf"),
        "volumePluginDir": at("volume-plugins"),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": false},
            "x509": {"clientCAFile": at("pki/ca.crt")},
        },
        "authorization": {"mode": "AlwaysAllow"},
        // How soon a changed number of devices is seen by the scheduler.
        "nodeStatusUpdateFrequency": "1s",
        "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "100Mi"},
    })
}
