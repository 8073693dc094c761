//! Options of `gpufn-scaler provider`. Owns words only.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use openfaas::names;
use tokio_util::sync::CancellationToken;

use super::start::{self, Options, read_login};
use super::{Role, Settings};
use crate::serve::cli::{Pods, span, url};

/// The command.
#[derive(Debug, Args)]
pub(crate) struct Provider {
    /// Address for the gateway, or for faas-cli (HTTP).
    #[arg(long, env = "GPUFN_PROVIDER", value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// Who asks: a gateway whose `functions_provider_url` this is, or, without one, faas-cli and callers of functions.
    #[arg(long, env = "GPUFN_ROLE", value_enum, default_value = "provider")]
    role: Role,
    /// Ask for the user and password in basic-auth-user and basic-auth-password, below the next.
    #[arg(long, env = "basic_auth")]
    basic_auth: bool,
    /// Folder of those files.
    #[arg(long, env = "secret_mount_path", value_name = "FOLDER", default_value = "/run/secrets")]
    secret_mount_path: PathBuf,
    /// Namespace of functions that name none. Others are those with the label openfaas=1.
    #[arg(long, env = "GPUFN_FUNCTION_NAMESPACE", value_name = "NAME", default_value = names::DEFAULT_NAMESPACE, value_parser = namespace)]
    function_namespace: String,
    /// Have no functions in other namespaces, which then are not looked at.
    #[arg(long, env = "GPUFN_SINGLE_NAMESPACE")]
    single_namespace: bool,
    /// Scaler that is told of requests that wait for a first replica, by the URL below which its /v1/functions is.
    #[arg(long, env = "GPUFN_SCALER", value_name = "URL", value_parser = url)]
    scaler: Option<reqwest::Url>,
    /// Longest time that a request waits for a first replica, 5ms to 5m.
    #[arg(long, env = "GPUFN_HOLD", value_name = "TIME", value_parser = span, default_value = "1m")]
    hold: Duration,
    /// When the kubelet looks for newer images of functions.
    #[arg(long, env = "GPUFN_IMAGE_PULL_POLICY", value_enum, default_value = "always")]
    image_pull_policy: PullPolicy,
    /// Run functions as user 12000, without capabilities.
    #[arg(long, env = "GPUFN_NON_ROOT")]
    non_root: bool,
    /// Port of the functions' watchdogs.
    #[arg(long, env = "GPUFN_FUNCTION_PORT", value_name = "PORT", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    function_port: u16,
    /// Path by which a watchdog says that it lives.
    #[arg(long, env = "GPUFN_HEALTH_PATH", value_name = "PATH", default_value = "/_/health")]
    health_path: String,
    /// Path by which it says that it is ready; classic watchdogs have /_/health only.
    #[arg(long, env = "GPUFN_READY_PATH", value_name = "PATH", default_value = "/_/ready")]
    ready_path: String,
    /// Seconds that a replica may take until it is ready.
    #[arg(long, env = "GPUFN_START_SECONDS", value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    start_seconds: u64,
    #[command(flatten)]
    pods: Pods,
}

/// When the kubelet looks for a newer image.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PullPolicy {
    /// At each start.
    Always,
    /// Where the node has none.
    IfNotPresent,
    /// Nodes have it.
    Never,
}

impl Provider {
    /// Runs until `stop`. `ready` is told where it listens.
    pub(crate) async fn run(
        self,
        stop: CancellationToken,
        ready: impl FnOnce(SocketAddr) -> std::io::Result<()>,
    ) -> anyhow::Result<()> {
        start::run(self.options()?, stop, ready).await
    }

    fn options(self) -> anyhow::Result<Options> {
        let login = self.basic_auth.then(|| read_login(&self.secret_mount_path)).transpose()?;
        let image_pull_policy = match self.image_pull_policy {
            PullPolicy::Always => "Always",
            PullPolicy::IfNotPresent => "IfNotPresent",
            PullPolicy::Never => "Never",
        };
        let settings = Settings {
            namespace: self.function_namespace,
            is_only: self.single_namespace,
            role: self.role,
            image_pull_policy: image_pull_policy.into(),
            non_root: self.non_root,
            port: self.function_port,
            health_path: self.health_path,
            ready_path: self.ready_path,
            start: Duration::from_secs(self.start_seconds),
            hold: self.hold,
            gpus: self.pods.settings(),
        };
        Ok(Options { listen: self.listen, login, scaler: self.scaler, settings })
    }
}

fn namespace(text: &str) -> Result<String, String> {
    names::dns_label("", text).map_err(|_| "allowed is a DNS label such as openfaas-fn".to_string())?;
    Ok(text.into())
}
