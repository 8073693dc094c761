//! A kubelet as a device plugin meets it: its folder of sockets, its registry, its list of who holds which device, and its
//! calls in the order in which it makes them.
//!
//! It does what the kubelet's device manager is known to do: it calls back before it answers a registration, it takes every
//! message of the stream as the whole list, it chooses devices as it likes where the plugin's preference does not bind it,
//! and it says nothing when devices are free again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use device_plugin::kubelet::api::podresources as listing;
use device_plugin::kubelet::api::podresources::pod_resources_lister_server::{
    PodResourcesLister, PodResourcesListerServer,
};
use device_plugin::kubelet::api::v1beta1 as api;
use device_plugin::kubelet::api::v1beta1::device_plugin_client::DevicePluginClient;
use device_plugin::kubelet::api::v1beta1::registration_server::{Registration, RegistrationServer};
use device_plugin::kubelet::api::{HEALTHY, KUBELET_SOCKET, VERSION};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Response, Status};

use crate::wait::until;

/// Longest wait for what the plugin should do by itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a kubelet is to behave.
#[derive(Clone, Debug)]
pub struct Builder {
    root: PathBuf,
    resource: String,
    ignores_preference: bool,
}

impl Builder {
    /// It chooses the highest of the devices that it has, whatever the plugin prefers (as with an aligned NUMA node).
    #[must_use]
    pub fn ignores_preference(mut self) -> Self {
        self.ignores_preference = true;
        self
    }

    /// Another resource than `gpufn.dev/gpu`.
    #[must_use]
    pub fn resource(mut self, name: &str) -> Self {
        self.resource = name.into();
        self
    }

    /// Makes the folders and starts it.
    pub fn start(self) -> Kubelet {
        let mut kubelet = self.stopped();
        kubelet.start();
        kubelet
    }

    /// Makes the folders; nobody listens yet.
    pub fn stopped(self) -> Kubelet {
        for folder in ["device-plugins", "pod-resources"] {
            std::fs::create_dir_all(self.root.join(folder)).expect("the kubelet's folders can be made");
        }
        Kubelet { options: self, state: Arc::default(), servers: JoinSet::new() }
    }
}

/// A kubelet.
#[derive(Debug)]
pub struct Kubelet {
    options: Builder,
    state: Arc<Mutex<State>>,
    servers: JoinSet<()>,
}

/// What a kubelet knows.
#[derive(Debug, Default)]
struct State {
    registrations: Vec<Registered>,
    allocations: Vec<Allocation>,
    /// So many calls for the list are answered by "too many".
    refusals: u32,
}

/// A registration of a plugin.
#[derive(Clone, Debug)]
pub struct Registered {
    /// What it sent.
    pub request: api::RegisterRequest,
    /// When.
    pub at: Instant,
    /// Whether it answered the call back for its options before the registration was answered.
    pub options: Option<api::DevicePluginOptions>,
    /// Its last list: devices, and whether containers may get them.
    pub devices: BTreeMap<String, bool>,
    /// The NUMA nodes that its last list says devices are near.
    pub nodes: BTreeMap<String, Vec<i64>>,
    /// When its first list came.
    pub first_list: Option<Instant>,
    /// How many lists came.
    pub lists: usize,
    /// Whether its stream goes on.
    pub is_open: bool,
    /// One connection for everything, as the kubelet has it.
    client: DevicePluginClient<Channel>,
}

/// Devices that a container was given.
#[derive(Clone, Debug)]
pub struct Allocation {
    /// The pod.
    pub pod: String,
    /// The container.
    pub container: String,
    /// Whether the list does not show it, as with init containers.
    pub is_init: bool,
    /// The devices.
    pub devices: BTreeSet<String>,
    /// What the container's runtime is told.
    pub answer: api::ContainerAllocateResponse,
}

impl Kubelet {
    /// A kubelet whose folders are below `root`.
    pub fn builder(root: &Path) -> Builder {
        Builder { root: root.into(), resource: "gpufn.dev/gpu".into(), ignores_preference: false }
    }

    /// Its folder of plugins.
    pub fn plugins(&self) -> PathBuf {
        self.options.root.join("device-plugins")
    }

    /// Its pod-resources socket.
    pub fn pod_resources(&self) -> PathBuf {
        self.options.root.join("pod-resources").join(KUBELET_SOCKET)
    }

    /// Starts it as the kubelet starts: every socket in the folder is removed; what was allocated is remembered.
    pub fn start(&mut self) {
        for entry in std::fs::read_dir(self.plugins()).expect("the folder can be read").flatten() {
            // The plugin may be faster.
            let _ = std::fs::remove_file(entry.path());
        }
        let _ = std::fs::remove_file(self.pod_resources());
        let state = || Arc::clone(&self.state);
        let registry = RegistrationServer::new(Registry { state: state(), plugins: self.plugins() });
        let lister =
            PodResourcesListerServer::new(Lister { state: state(), resource: self.options.resource.clone() });
        let bind =
            |path: &Path| UnixListenerStream::new(UnixListener::bind(path).expect("a socket can be bound"));
        let registering = bind(&self.plugins().join(KUBELET_SOCKET));
        let listing = bind(&self.pod_resources());
        self.servers.spawn(async move {
            Server::builder()
                .add_service(registry)
                .serve_with_incoming(registering)
                .await
                .expect("it serves");
        });
        self.servers.spawn(async move {
            Server::builder().add_service(lister).serve_with_incoming(listing).await.expect("it serves");
        });
    }

    /// Stops it as a crash would: its sockets stay.
    pub async fn stop(&mut self) {
        self.servers.shutdown().await;
    }

    /// Stops it and starts it again.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.start();
    }

    /// Every registration so far.
    pub fn registrations(&self) -> Vec<Registered> {
        self.state().registrations.clone()
    }

    /// Waits for registration number `count`, and for its first list.
    pub async fn registered(&self, count: usize) -> Registered {
        until("a plugin to register and list its devices", PATIENCE, async || {
            let registered = self.state().registrations.get(count - 1).cloned();
            registered.filter(|registered| registered.first_list.is_some())
        })
        .await
    }

    /// The last list of the last plugin that registered.
    pub fn devices(&self) -> BTreeMap<String, bool> {
        self.state().registrations.last().map(|last| last.devices.clone()).unwrap_or_default()
    }

    /// Devices that it could give to a container.
    pub fn available(&self) -> BTreeSet<String> {
        let taken: BTreeSet<_> =
            self.state().allocations.iter().flat_map(|one| one.devices.clone()).collect();
        let devices = self.devices().into_iter().filter(|(id, healthy)| *healthy && !taken.contains(id));
        devices.map(|(id, _)| id).collect()
    }

    /// Waits until so many devices are available.
    pub async fn until_available(&self, count: usize) {
        let what = format!("{count} devices to be available");
        until(&what, PATIENCE, async || (self.available().len() == count).then_some(())).await;
    }

    /// A client of the last plugin that registered.
    pub fn client(&self) -> DevicePluginClient<Channel> {
        let state = self.state();
        state.registrations.last().expect("a plugin has registered").client.clone()
    }

    /// Admits a container that asks for `count` devices.
    pub async fn admit(&self, pod: &str, container: &str, count: usize) -> Result<Allocation, Status> {
        let available = self.available();
        let devices = self.choose(&available, &BTreeSet::new(), count).await?;
        self.allocate(pod, container, devices, false).await
    }

    /// Admits an init container; containers after it reuse its devices.
    pub async fn admit_init(&self, pod: &str, container: &str, count: usize) -> Result<Allocation, Status> {
        let devices = self.choose(&self.available(), &BTreeSet::new(), count).await?;
        self.allocate(pod, container, devices, true).await
    }

    /// Admits a container after an init container of the same pod, whose devices it has first.
    pub async fn admit_after(
        &self,
        init: &Allocation,
        container: &str,
        count: usize,
    ) -> Result<Allocation, Status> {
        let mut devices: BTreeSet<_> = init.devices.iter().take(count).cloned().collect();
        if devices.len() < count {
            let available = &self.available() | &devices;
            devices = self.choose(&available, &devices, count).await?;
        }
        self.allocate(&init.pod, container, devices, false).await
    }

    /// Gives a container devices that the test chose.
    pub async fn allocate(
        &self,
        pod: &str,
        container: &str,
        devices: BTreeSet<String>,
        is_init: bool,
    ) -> Result<Allocation, Status> {
        let request = api::AllocateRequest {
            container_requests: vec![api::ContainerAllocateRequest {
                device_ids: devices.iter().cloned().collect(),
            }],
        };
        let answer = self.client().allocate(request).await?.into_inner();
        let [answer] = <[_; 1]>::try_from(answer.container_responses).expect("one answer to one request");
        let allocation =
            Allocation { pod: pod.into(), container: container.into(), is_init, devices, answer };
        self.state().allocations.push(allocation.clone());
        Ok(allocation)
    }

    /// Starts a container: what comes before its runtime is called.
    pub async fn start_container(&self, allocation: &Allocation) -> Result<(), Status> {
        let device_ids = allocation.devices.iter().cloned().collect();
        self.client().pre_start_container(api::PreStartContainerRequest { device_ids }).await.map(drop)
    }

    /// Forgets a pod: its devices are free, and nobody is told.
    pub fn remove(&self, pod: &str) {
        self.state().allocations.retain(|allocation| allocation.pod != pod);
    }

    /// Answers the next `count` calls for the list by "too many".
    pub fn refuse_lists(&self, count: u32) {
        self.state().refusals = count;
    }

    /// Chooses devices as the kubelet does: it asks for the plugin's preference, and fills up with what it likes.
    pub async fn choose(
        &self,
        available: &BTreeSet<String>,
        included: &BTreeSet<String>,
        count: usize,
    ) -> Result<BTreeSet<String>, Status> {
        let request = preference(available, included, count);
        let answer = self.client().get_preferred_allocation(request).await?.into_inner();
        Ok(self.pick(available, included, count, answer))
    }

    /// The devices that it gives to a container where the plugin has answered with its preference.
    pub fn pick(
        &self,
        available: &BTreeSet<String>,
        included: &BTreeSet<String>,
        count: usize,
        answer: api::PreferredAllocationResponse,
    ) -> BTreeSet<String> {
        let preferred = answer.container_responses.into_iter().flat_map(|one| one.device_ids);
        let preferred: BTreeSet<_> = preferred.filter(|id| available.contains(id)).collect();
        let preferred = if self.options.ignores_preference { included.clone() } else { preferred };
        let others = available.iter().rev().filter(|id| !preferred.contains(*id));
        preferred.iter().chain(others).take(count).cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The question which `count` of the `available` devices a container should get, among them those that are `included`.
pub fn preference(
    available: &BTreeSet<String>,
    included: &BTreeSet<String>,
    count: usize,
) -> api::PreferredAllocationRequest {
    let request = api::ContainerPreferredAllocationRequest {
        available_device_ids: available.iter().cloned().collect(),
        must_include_device_ids: included.iter().cloned().collect(),
        allocation_size: i32::try_from(count).expect("a count fits"),
    };
    api::PreferredAllocationRequest { container_requests: vec![request] }
}

/// A client of the plugin behind `socket`.
pub fn connect(socket: PathBuf) -> DevicePluginClient<Channel> {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    DevicePluginClient::new(Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector))
}

#[derive(Debug)]
struct Registry {
    state: Arc<Mutex<State>>,
    plugins: PathBuf,
}

#[tonic::async_trait]
impl Registration for Registry {
    async fn register(&self, request: Request<api::RegisterRequest>) -> Result<Response<api::Empty>, Status> {
        let request = request.into_inner();
        if request.version != VERSION {
            return Err(Status::invalid_argument(format!("version {} is not supported", request.version)));
        }
        let client = connect(self.plugins.join(&request.endpoint));
        let call =
            tokio::time::timeout(PATIENCE, client.clone().get_device_plugin_options(api::Empty {})).await;
        let options =
            call.map_err(|_| Status::deadline_exceeded("the plugin does not answer"))??.into_inner();
        let registered = Registered {
            request,
            at: Instant::now(),
            options: Some(options),
            devices: BTreeMap::new(),
            nodes: BTreeMap::new(),
            first_list: None,
            lists: 0,
            is_open: true,
            client: client.clone(),
        };
        let number = {
            let mut state = lock(&self.state);
            state.registrations.push(registered);
            state.registrations.len() - 1
        };
        tokio::spawn(watch(client, Arc::clone(&self.state), number));
        Ok(Response::new(api::Empty {}))
    }
}

/// Follows a plugin's lists until its stream ends; then none of its devices is to be had.
async fn watch(mut client: DevicePluginClient<Channel>, state: Arc<Mutex<State>>, number: usize) {
    let Ok(stream) = client.list_and_watch(api::Empty {}).await else { return };
    let mut stream = stream.into_inner();
    while let Ok(Some(list)) = stream.message().await {
        let mut state = lock(&state);
        let registered = &mut state.registrations[number];
        let nodes = |device: &api::Device| {
            let topology = device.topology.as_ref()?;
            Some((device.id.clone(), topology.nodes.iter().map(|node| node.id).collect()))
        };
        registered.nodes = list.devices.iter().filter_map(nodes).collect();
        registered.devices =
            list.devices.into_iter().map(|device| (device.id, device.health == HEALTHY)).collect();
        registered.first_list.get_or_insert_with(Instant::now);
        registered.lists += 1;
    }
    let mut state = lock(&state);
    let registered = &mut state.registrations[number];
    registered.is_open = false;
    registered.devices.values_mut().for_each(|healthy| *healthy = false);
}

#[derive(Debug)]
struct Lister {
    state: Arc<Mutex<State>>,
    resource: String,
}

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(
        &self,
        _: Request<listing::ListPodResourcesRequest>,
    ) -> Result<Response<listing::ListPodResourcesResponse>, Status> {
        let mut state = lock(&self.state);
        if state.refusals > 0 {
            state.refusals -= 1;
            return Err(Status::resource_exhausted("rejected by rate limit"));
        }
        let mut pods = BTreeMap::<String, Vec<listing::ContainerResources>>::new();
        for allocation in state.allocations.iter().filter(|allocation| !allocation.is_init) {
            let devices = listing::ContainerDevices {
                resource_name: self.resource.clone(),
                device_ids: allocation.devices.iter().cloned().collect(),
            };
            let container =
                listing::ContainerResources { name: allocation.container.clone(), devices: vec![devices] };
            pods.entry(allocation.pod.clone()).or_default().push(container);
        }
        let pod = |(name, containers)| listing::PodResources { name, namespace: "fn".into(), containers };
        Ok(Response::new(listing::ListPodResourcesResponse {
            pod_resources: pods.into_iter().map(pod).collect(),
        }))
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
