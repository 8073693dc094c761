//! What kube-proxy does, for one Service: its address, which is nobody's otherwise, leads to a pod that is ready.

use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Api;
use kube::api::ListParams;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::tenant::{Tenant, address, is_ready};
use crate::go::{self, Program};
use crate::wait::until;

/// Longest time until the Service has an address.
const PATIENCE: Duration = Duration::from_secs(20);

/// A Service that can be reached, from the node and from its pods, until this is dropped.
#[derive(Debug)]
pub struct Forward {
    /// Its address.
    pub address: String,
    _ports: JoinSet<()>,
}

impl Forward {
    /// Makes a Service of the tenant reachable, at each of its ports.
    pub async fn start(tenant: &Tenant, name: &str) -> Self {
        let services = Api::<Service>::namespaced(tenant.client(), tenant.namespace());
        let what = format!("the Service {name}");
        let spec = until(&what, PATIENCE, async || services.get_opt(name).await.ok()??.spec).await;
        let own = spec.cluster_ip.expect("a Service has an address");
        claim(&own);
        let selector = spec.selector.into_iter().flatten().map(|(key, value)| format!("{key}={value}"));
        let pods = Pods {
            api: Api::namespaced(tenant.client(), tenant.namespace()),
            selector: ListParams::default().labels(&selector.collect::<Vec<_>>().join(",")),
        };
        let mut ports = JoinSet::new();
        for port in spec.ports.into_iter().flatten() {
            let number = u16::try_from(port.port).expect("a port is a number of 16 bits");
            let listener = TcpListener::bind((own.as_str(), number)).await;
            let listener = listener.unwrap_or_else(|error| panic!("{own}:{number}: {error}"));
            let target = port.target_port.unwrap_or(IntOrString::Int(port.port));
            ports.spawn(forward(listener, pods.clone(), target));
        }
        Self { address: own, _ports: ports }
    }
}

/// Makes an address one of the node.
fn claim(address: &str) {
    let program = go::built(Program::Kubernetes).unwrap_or_else(|error| panic!("{error:#}"));
    let output = Command::new(program).args(["loopback", &format!("{address}/32")]).output();
    let output = output.expect("the cluster's own program starts");
    assert!(output.status.success(), "{address}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn forward(listener: TcpListener, pods: Pods, target: IntOrString) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((mut client, _)) = listener.accept().await else { continue };
        let (pods, target) = (pods.clone(), target.clone());
        connections.spawn(async move {
            // Without a pod that is ready a client finds its connection closed, as it would be refused elsewhere.
            if let Some(mut pod) = pods.connect(&target).await {
                let _ = copy_bidirectional(&mut client, &mut pod).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// The pods of a Service.
#[derive(Clone)]
struct Pods {
    api: Api<Pod>,
    selector: ListParams,
}

impl Pods {
    async fn connect(&self, target: &IntOrString) -> Option<TcpStream> {
        let pods = self.api.list(&self.selector).await.ok()?.items.into_iter();
        let mut ready = pods.filter(|pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none());
        let pod = ready.next()?;
        TcpStream::connect((address(&pod)?, port(&pod, target)?)).await.ok()
    }
}

/// The port of a pod that a Service means, by number or by name.
fn port(pod: &Pod, target: &IntOrString) -> Option<u16> {
    let number = match target {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            ports.find(|port| port.name.as_deref() == Some(name))?.container_port
        }
    };
    u16::try_from(number).ok()
}
