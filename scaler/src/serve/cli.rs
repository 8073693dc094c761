//! The command line: what it accepts, and its exit codes (0 done, 1 failed, 64 bad usage). Owns words only.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use gpu_share::annotations::Shape;
use gpu_share::invalid::Invalid;
use gpu_share::latency::Profiles;
use gpu_share::names::{RESOURCE, annotation};
use gpu_share::units::{Bytes, Units};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::admission;
use super::board::{Settings, nanos};
use super::start::{self, From, Lead, Options};
use super::tls::Files;
use crate::control::election::Terms;
use crate::provider::cli::Provider;

/// Exit code for bad usage or configuration (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;
/// Time between two readings of load, and of a Prometheus, which itself reads that often by default.
const PERIOD: Duration = Duration::from_secs(1);
const PROMETHEUS_PERIOD: Duration = Duration::from_secs(15);

/// Tells KEDA how many replicas GPU functions need, and gives their pods units of GPUs.
#[derive(Debug, Parser)]
#[command(name = "gpufn-scaler", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the external scaler for KEDA.
    Serve(Box<Serve>),
    /// Run the admission webhook, which gives pods that opt in their units.
    Webhook(Box<Webhook>),
    /// Run functions of OpenFaaS on Kubernetes, with parts of GPUs.
    Provider(Box<WithLog<Provider>>),
    /// Print the definition of our kind of objects, profiles of functions, for the API server.
    Crd,
    /// Print the completion script for a shell.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// A command of another module, and the form of its log.
#[derive(Debug, Args)]
struct WithLog<T: Args> {
    #[command(flatten)]
    command: T,
    /// Form of the log on stderr.
    #[arg(long, env = "GPUFN_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Debug, Args)]
struct Serve {
    /// Address for KEDA (gRPC).
    #[arg(long, env = "GPUFN_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:9090")]
    listen: SocketAddr,
    /// Address for health, metrics and explanations (HTTP).
    #[arg(long, env = "GPUFN_HTTP", value_name = "ADDRESS", default_value = "127.0.0.1:8090")]
    http: SocketAddr,
    /// Certificate of this server, PEM; with it, KEDA has to use TLS. Read again when it changes, as the next two.
    #[arg(long, env = "GPUFN_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, env = "GPUFN_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Authorities, PEM: only clients with a certificate of one of them may connect.
    #[arg(long, env = "GPUFN_TLS_CLIENT_CA", value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// The only namespace whose functions are looked at; else all.
    #[arg(long, env = "GPUFN_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
    /// Port on which watchdogs show their metrics, which are read where neither of the next two is given.
    #[arg(long, env = "GPUFN_WATCHDOG_PORT", value_name = "PORT", default_value_t = 8081)]
    watchdog_port: u16,
    /// Prometheus that reads the watchdogs already, by the URL below which its API is.
    #[arg(long, env = "GPUFN_PROMETHEUS", value_name = "URL", value_parser = url, conflicts_with = "gateway")]
    prometheus: Option<reqwest::Url>,
    /// Metrics of an OpenFaaS gateway: the whole URL, with /metrics.
    #[arg(long, env = "GPUFN_GATEWAY", value_name = "URL", value_parser = url)]
    gateway: Option<reqwest::Url>,
    /// Time between two readings of load, 5ms to 5m [default: 1s, of Prometheus 15s].
    #[arg(long, env = "GPUFN_PERIOD", value_name = "TIME", value_parser = span)]
    period: Option<Duration>,
    /// Longest time that one answer may take when load is read, 5ms to 5m.
    #[arg(long, env = "GPUFN_PATIENCE", value_name = "TIME", value_parser = span, default_value = "1s")]
    patience: Duration,
    /// What was read so long ago is not told any more, 5ms to 5m.
    #[arg(long, env = "GPUFN_STALE", value_name = "TIME", value_parser = span, default_value = "30s")]
    stale: Duration,
    /// How long a cold start takes where no replica has shown it, 5ms to 5m.
    #[arg(long, env = "GPUFN_COLD_START", value_name = "TIME", value_parser = span, default_value = "20s")]
    cold_start: Duration,
    /// Memory of the GPUs.
    #[arg(long, env = "GPUFN_GPU_MEMORY", value_name = "BYTES", value_parser = memory, default_value = "80Gi")]
    gpu_memory: Bytes,
    /// Window over which the nodes keep quotas, 1ms to 1s.
    #[arg(long, env = "GPUFN_WINDOW", value_name = "TIME", value_parser = window, default_value = "10ms")]
    window: Duration,
    /// Profiles of models beside those that are shipped: lines model,batch,sm,ms.
    #[arg(long, env = "GPUFN_PROFILES", value_name = "FILE")]
    profiles: Option<PathBuf>,
    /// Time between two decisions about grants, 100ms to 5s.
    #[arg(long, env = "GPUFN_CONTROL_PERIOD", value_name = "TIME", value_parser = control_period, default_value = "250ms")]
    control_period: Duration,
    /// Leave grants alone.
    #[arg(long, env = "GPUFN_NO_VERTICAL")]
    no_vertical: bool,
    /// Leave numbers of replicas alone, also where nobody else scales.
    #[arg(long, env = "GPUFN_NO_HORIZONTAL")]
    no_horizontal: bool,
    /// Decide and tell, and change nothing.
    #[arg(long, env = "GPUFN_DRY_RUN")]
    dry_run: bool,
    /// Most changes that are written in a second, 1 to 10000.
    #[arg(long, env = "GPUFN_WRITES", value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    writes: u32,
    /// Name of the Lease by which one of several scalers leads.
    #[arg(long, env = "GPUFN_LEASE", value_name = "NAME", default_value = "gpufn-scaler")]
    lease: String,
    /// Namespace of the Lease [default: that of the service account or KUBECONFIG].
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME")]
    lease_namespace: Option<String>,
    /// A leader that is silent for so long is replaced, 1s to 5m, whole seconds.
    #[arg(long, env = "GPUFN_LEASE_DURATION", value_name = "TIME", value_parser = lease_duration, default_value = "15s")]
    lease_duration: Duration,
    /// Form of the log on stderr.
    #[arg(long, env = "GPUFN_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Debug, Args)]
struct Webhook {
    /// Address for the API server (HTTPS).
    #[arg(long, env = "GPUFN_WEBHOOK", value_name = "ADDRESS", default_value = "127.0.0.1:9443")]
    listen: SocketAddr,
    /// Certificate of this server, PEM. Read again when it changes, as its key.
    #[arg(long, env = "GPUFN_TLS_CERT", value_name = "FILE")]
    tls_cert: PathBuf,
    /// Its key, PEM.
    #[arg(long, env = "GPUFN_TLS_KEY", value_name = "FILE")]
    tls_key: PathBuf,
    /// Authorities, PEM: only an API server with a certificate of one of them may ask.
    #[arg(long, env = "GPUFN_TLS_CLIENT_CA", value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    #[command(flatten)]
    pods: Pods,
    /// Form of the log on stderr.
    #[arg(long, env = "GPUFN_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
}

/// What pods get that ask for a part of a GPU: the same options wherever they are given it.
#[derive(Debug, Args)]
pub(crate) struct Pods {
    /// Name of the extended resource.
    #[arg(long, env = "GPUFN_RESOURCE", value_name = "NAME", default_value = RESOURCE)]
    resource: String,
    /// Units that a GPU is divided into, as the node agents have it.
    #[arg(long, env = "GPUFN_UNITS", value_name = "UNITS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    units: u32,
    /// Memory of the smallest GPU, by which memory is counted in units.
    #[arg(long, env = "GPUFN_GPU_MEMORY", value_name = "BYTES", value_parser = memory, default_value = "80Gi")]
    gpu_memory: Bytes,
    /// Runtime class of pods with a part of a GPU that name none.
    #[arg(long, env = "GPUFN_RUNTIME_CLASS", value_name = "NAME")]
    runtime_class: Option<String>,
    /// Seconds that a pod has at least to end.
    #[arg(long, env = "GPUFN_GRACE_SECONDS", value_name = "SECONDS", default_value_t = 60)]
    grace_seconds: u64,
    /// Let pods go to nodes whose units are left on several GPUs.
    #[arg(long, env = "GPUFN_NO_STEERING")]
    no_steering: bool,
}

impl Pods {
    /// The webhook's settings.
    pub(crate) fn settings(self) -> crate::webhook::Settings {
        crate::webhook::Settings {
            resource: self.resource,
            per_gpu: Units(self.units),
            gpu_memory: self.gpu_memory,
            runtime_class: self.runtime_class.filter(|class| !class.is_empty()),
            grace_seconds: self.grace_seconds,
            steer: !self.no_steering,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Does what the arguments of this process say.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; where to print and whether that works is clap's and the pipe's business.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let ended = match cli.command {
        Command::Serve(options) => serve(*options),
        Command::Webhook(options) => webhook(*options),
        Command::Provider(options) => provider(*options),
        Command::Crd => crate::kind::definition()
            .map_err(Into::into)
            .and_then(|text| Ok(std::io::stdout().write_all(text.as_bytes())?)),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "gpufn-scaler", &mut std::io::stdout());
            Ok(())
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever the causes are; a closed stderr is no reason for another exit code.
            let _ = writeln!(std::io::stderr(), "gpufn-scaler: {error:#}");
            if error.is::<Invalid>() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
        }
    }
}

fn serve(serve: Serve) -> anyhow::Result<()> {
    log_to_stderr(serve.log_format);
    let options = serve.options()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(stop_at(terminate, interrupt, stop.clone()));
        start::run(options, stop, say_ready).await
    })
}

fn webhook(webhook: Webhook) -> anyhow::Result<()> {
    log_to_stderr(webhook.log_format);
    let files = Files {
        certificate: webhook.tls_cert,
        key: webhook.tls_key,
        client_authorities: webhook.tls_client_ca,
        protocol: "http/1.1",
    };
    let settings = webhook.pods.settings();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(stop_at(terminate, interrupt, stop.clone()));
        admission::run(webhook.listen, files, settings, stop, say_webhook_ready).await
    })
}

fn provider(options: WithLog<Provider>) -> anyhow::Result<()> {
    log_to_stderr(options.log_format);
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(stop_at(terminate, interrupt, stop.clone()));
        options.command.run(stop, say_provider_ready).await
    })
}

fn say_provider_ready(address: SocketAddr) -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {address} for functions")?;
    stdout.flush()
}

fn say_webhook_ready(address: SocketAddr) -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {address} for the API server")?;
    stdout.flush()
}

async fn stop_at(mut terminate: Signal, mut interrupt: Signal, stop: CancellationToken) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
}

/// Where people and their scripts look for it.
fn say_ready(grpc: SocketAddr, http: SocketAddr) -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {grpc} for KEDA, on {http} for HTTP")?;
    stdout.flush()
}

impl Serve {
    fn options(self) -> anyhow::Result<Options> {
        let profiles = match &self.profiles {
            None => Profiles::shipped(),
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .with_context(|| format!("failed to read {}", file.display()))?;
                Profiles::shipped()
                    .with(Profiles::parse(&text).map_err(|bad| bad.within(&file.display().to_string()))?)
            }
        };
        let shows_empty = self.gateway.is_some();
        let source = match (self.prometheus, self.gateway) {
            (Some(url), _) => From::Prometheus(url),
            (None, Some(url)) => From::Gateway(url.into()),
            (None, None) => From::Watchdogs(self.watchdog_port),
        };
        let usual = if matches!(source, From::Prometheus(_)) { PROMETHEUS_PERIOD } else { PERIOD };
        let files = |(certificate, key)| Files {
            certificate,
            key,
            client_authorities: self.tls_client_ca,
            protocol: "h2",
        };
        Ok(Options {
            listen: self.listen,
            http: self.http,
            tls: self.tls_cert.zip(self.tls_key).map(files),
            namespace: self.namespace,
            source,
            period: self.period.unwrap_or(usual),
            patience: self.patience,
            settings: Settings {
                profiles,
                gpu_memory: self.gpu_memory,
                window: nanos(self.window),
                cold_start: nanos(self.cold_start),
                stale: nanos(self.stale),
                shows_empty,
            },
            lead: Lead {
                namespace: self.lease_namespace.filter(|namespace| !namespace.is_empty()),
                lease: self.lease,
                terms: Terms { duration: nanos(self.lease_duration) },
                period: self.control_period,
                grants: !self.no_vertical,
                counts: !self.no_horizontal,
                is_dry_run: self.dry_run,
                rate: self.writes,
            },
        })
    }
}

fn log_to_stderr(format: LogFormat) {
    // The client of the API server says at each try what `cluster` says once.
    let usual = || EnvFilter::new("info,kube_client=off");
    let filter = EnvFilter::try_from_env("GPUFN_LOG").unwrap_or_else(|_| usual());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Fails only if a log is there already, which is as good.
    let _ = match format {
        LogFormat::Text => log.with_ansi(false).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
}

pub(crate) fn url(text: &str) -> Result<reqwest::Url, String> {
    let url = reqwest::Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    url.ok_or_else(|| "allowed is http://HOST:PORT or https://HOST:PORT, and a path".into())
}

pub(crate) fn span(text: &str) -> Result<Duration, String> {
    let allowed = Duration::from_millis(5)..=Duration::from_mins(5);
    time(text).filter(|time| allowed.contains(time)).ok_or_else(|| "allowed is 5ms to 5m, such as 1s".into())
}

fn control_period(text: &str) -> Result<Duration, String> {
    let allowed = Duration::from_millis(100)..=Duration::from_secs(5);
    time(text)
        .filter(|time| allowed.contains(time))
        .ok_or_else(|| "allowed is 100ms to 5s, such as 250ms".into())
}

fn lease_duration(text: &str) -> Result<Duration, String> {
    let allowed = Duration::from_secs(1)..=Duration::from_mins(5);
    time(text)
        .filter(|time| allowed.contains(time) && time.subsec_nanos() == 0)
        .ok_or_else(|| "allowed is 1s to 5m in whole seconds, such as 15s".into())
}

fn window(text: &str) -> Result<Duration, String> {
    let allowed = Duration::from_millis(1)..=Duration::from_secs(1);
    time(text)
        .filter(|time| allowed.contains(time))
        .ok_or_else(|| "allowed is 1ms to 1s, such as 10ms".into())
}

/// A whole number of milliseconds, seconds or minutes.
fn time(text: &str) -> Option<Duration> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000)];
    let (number, unit) = units.iter().find_map(|&(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)))?;
    Some(Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(unit)?))
}

fn memory(text: &str) -> Result<Bytes, String> {
    // The one reader of quantities is that of annotations.
    let annotations = BTreeMap::from([(annotation::MEMORY.into(), text.into())]);
    let shape = Shape::read(&annotations, Bytes::gib(4096)).ok();
    shape
        .and_then(|shape| shape.memory)
        .ok_or_else(|| "allowed is a quantity up to 4096Gi, such as 80Gi".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_addresses_and_sizes_are_read_or_refused() {
        assert_eq!(span("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(span("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["0s", "1h", "10", "-1s", "1.5s", "99999999999999999999m", ""] {
            assert!(span(bad).is_err(), "{bad}");
        }
        assert_eq!(memory("16Gi"), Ok(Bytes::gib(16)));
        assert!(memory("much").is_err() && memory("0").is_err());
        assert!(url("http://prometheus:9090").is_ok());
        for bad in ["prometheus:9090", "ftp://x", "", "/metrics"] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let parse =
            |arguments: &[&str]| Cli::try_parse_from(["gpufn-scaler", "serve"].iter().chain(arguments));
        assert!(parse(&["--prometheus", "http://p", "--gateway", "http://g"]).is_err());
        assert!(parse(&["--tls-cert", "c"]).is_err() && parse(&["--tls-client-ca", "c"]).is_err());
        assert!(parse(&["--tls-cert", "c", "--tls-key", "k", "--tls-client-ca", "c"]).is_ok());
    }

    #[test]
    fn the_readme_lists_every_option() {
        let (readme, command) = (include_str!("../../README.md"), Cli::command());
        for name in ["serve", "webhook"] {
            let options = command.find_subcommand(name).unwrap().get_arguments();
            for option in options.filter_map(clap::Arg::get_long) {
                assert!(readme.contains(&format!("| `--{option}")), "--{option}");
            }
        }
    }
}
