//! The node agent as a driver of dynamic resource allocation: what it says to a kubelet and an API server, and what becomes of
//! claims.
// A test ends where something is wrong with it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use device_plugin::dra::api::v1::Device;
use gpu_share::binding::Binding;
use gpu_share::protocol::BindingStatus;
use gpu_share::units::{Bytes, Quota, Units};
use serde_json::{Value, json};
use tests::apiserver::ApiServer;
use tests::driver::{Registered, claim, sockets};
use tests::peer::Peer;
use tests::plugin::{Builder, Place, Plugin};
use tests::wait::until;

const PATIENCE: Duration = Duration::from_secs(10);

/// A driver that a kubelet has registered.
struct Node {
    kubelet: Registered,
    cluster: ApiServer,
    driver: Plugin,
}

impl Node {
    async fn start() -> Self {
        Self::with(Plugin::builder()).await
    }

    async fn with(builder: Builder) -> Self {
        let place = Place::default();
        let cluster = ApiServer::start().await;
        let (kubeconfig, registry) = (place.path("kubeconfig"), place.path("plugins_registry"));
        cluster.write_kubeconfig(&kubeconfig);
        fs::create_dir(&registry).unwrap();
        let driver = builder.driver().cluster(&kubeconfig).start(place).await;
        let kubelet = Registered::in_folder(&registry).await;
        Self { kubelet, cluster, driver }
    }

    /// Name of the only GPU's device.
    async fn device(&self) -> String {
        let slice = self.cluster.until_slice("a slice", |_| true).await;
        slice["spec"]["devices"][0]["name"].as_str().unwrap().into()
    }

    /// Adds a claim as the scheduler allocates it.
    async fn allocate(&self, name: &str, compute: u32, memory: &str, configuration: Option<Value>) {
        let device = self.device().await;
        self.cluster.put_claim(&allocated(name, &device, compute, memory, configuration));
    }

    async fn prepare(&self, name: &str) -> Result<Vec<Device>, String> {
        self.kubelet.prepare_one(&claim(name, &uid(name))).await
    }

    async fn unprepare(&self, name: &str) {
        self.kubelet.unprepare(&claim(name, &uid(name))).await.unwrap();
    }

    async fn bindings(&self) -> Vec<BindingStatus> {
        self.driver.control().bindings().await.unwrap()
    }

    async fn only_binding(&self) -> Binding {
        let [one] = <[_; 1]>::try_from(self.bindings().await).unwrap();
        one.binding
    }

    /// The binding of a claim.
    async fn binding(&self, name: &str) -> Binding {
        let of_claim =
            |one: &BindingStatus| one.binding.owner.claim.as_ref().is_some_and(|part| part.name == name);
        self.bindings().await.into_iter().find(of_claim).unwrap().binding
    }

    /// CDI files, by name.
    fn files(&self) -> BTreeMap<String, Value> {
        let entries = fs::read_dir(self.driver.path("cdi")).into_iter().flatten().flatten();
        let read = |path: &Path| serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        entries.map(|entry| (entry.file_name().into_string().unwrap(), read(&entry.path()))).collect()
    }

    async fn crash_and_restart(&mut self) {
        self.driver.crash();
        self.restart().await;
    }

    async fn restart(&mut self) {
        self.driver.restart().await;
        self.kubelet = Registered::in_folder(&self.driver.path("plugins_registry")).await;
    }
}

fn uid(name: &str) -> String {
    format!("uid-of-{name}")
}

fn allocated(name: &str, device: &str, compute: u32, memory: &str, configuration: Option<Value>) -> Value {
    let result = json!({
        "request": "gpu", "driver": "gpu.gpufn.dev", "pool": "node-1", "device": device,
        "shareID": format!("share-of-{name}"),
        "consumedCapacity": {"compute": compute.to_string(), "memory": memory},
    });
    let configuration = configuration.map(|mut parameters| {
        parameters["apiVersion"] = json!("gpufn.dev/v1alpha1");
        parameters["kind"] = json!("Share");
        let opaque = json!({"driver": "gpu.gpufn.dev", "parameters": parameters});
        json!({"source": "FromClaim", "requests": ["gpu"], "opaque": opaque})
    });
    json!({
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"namespace": "fn", "name": name, "uid": uid(name)},
        "spec": {"devices": {"requests": [{"name": "gpu"}]}},
        "status": {
            "allocation": {"devices": {"results": [result], "config": configuration.as_slice()}},
            "reservedFor": [{"resource": "pods", "name": format!("pod-of-{name}"), "uid": "uid-1"}],
        },
    })
}

fn percent(percent: u8) -> Quota {
    Quota::from_percent(percent).unwrap()
}

fn variable(file: &Value, name: &str) -> String {
    let edits = &file["devices"][0]["containerEdits"];
    let mut pairs = edits["env"].as_array().unwrap().iter().filter_map(|pair| pair.as_str()?.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_string()).unwrap()
}

#[tokio::test]
async fn it_registers_describes_the_node_and_leaves_no_socket_behind() {
    let folder = tempfile::tempdir().unwrap();
    let pci = folder.path();
    for address in ["0000:51:00.0", "0000:52:00.0"] {
        fs::create_dir(pci.join(address)).unwrap();
        fs::write(pci.join(address).join("numa_node"), "1\n").unwrap();
    }
    let options = ["--pci-devices", pci.to_str().unwrap()];
    let mut node = Node::with(Plugin::builder().gpus(2).with(&options)).await;
    let info = &node.kubelet.info;
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("DRAPlugin", "gpu.gpufn.dev"));
    assert_eq!(
        (info.endpoint.as_str(), &*info.supported_versions.join(" ")),
        ("", "v1.DRAPlugin v1.DRAResourceHealth")
    );

    let slice = node.cluster.until_slice("a slice", |_| true).await;
    assert_eq!(slice["metadata"]["ownerReferences"][0]["uid"], "node-uid-1");
    assert_eq!(slice["spec"]["pool"], json!({"name": "node-1", "generation": 1, "resourceSliceCount": 1}));
    let devices = slice["spec"]["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 2);
    for device in devices {
        assert_eq!(device["allowMultipleAllocations"], true);
        assert_eq!(
            (&device["capacity"]["compute"]["value"], &device["capacity"]["memory"]["value"]),
            (&json!("100"), &json!("16Gi"))
        );
        assert_eq!(device["attributes"]["multiprocessors"]["int"], 80);
        assert_eq!(device["attributes"]["cudaComputeCapability"]["version"], "7.0.0");
        assert_eq!(device["attributes"]["resource.kubernetes.io/numaNode"]["int"], 1);
        let address = &device["attributes"]["resource.kubernetes.io/pciBusID"]["string"];
        assert!(["0000:51:00.0", "0000:52:00.0"].contains(&address.as_str().unwrap()), "{address}");
        assert!(device["attributes"]["uuid"]["string"].as_str().unwrap().starts_with("GPU-"));
        assert_eq!(device["taints"], Value::Null);
    }

    let registry = node.driver.path("plugins_registry");
    let (status, by_itself) = node.driver.agent().stop(PATIENCE);
    assert!(status.success() && by_itself, "{status}");
    assert_eq!(sockets(&registry), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn two_claims_share_a_gpu_and_what_is_given_back_is_free_again() {
    let node = Node::start().await;
    node.allocate("a", 25, "4Gi", Some(json!({"sm": 50, "quotaLimit": 80}))).await;
    node.allocate("b", 50, "12Gi", Some(json!({"sm": 50}))).await;
    let first = node.prepare("a").await.unwrap();
    let second = node.prepare("b").await.unwrap();

    let (a, b) = (node.binding("a").await, node.binding("b").await);
    assert_eq!((a.share.floor, a.share.ceiling, a.share.memory), (percent(50), percent(80), Bytes::gib(4)));
    assert_eq!(
        (b.share.floor, b.share.ceiling, b.share.memory),
        (Quota::WHOLE, Quota::WHOLE, Bytes::gib(12))
    );
    assert_eq!((a.share.sm.percent(), b.share.sm.percent()), (50, 50));
    assert_eq!((a.gpu == b.gpu, a.owner.instance.as_str()), (true, "pod-of-a"));
    let [device] = &first[..] else { panic!("{first:?}") };
    assert_eq!(device.cdi_device_ids, [format!("gpufn.dev/gpu={}", a.id)]);
    assert_eq!(
        (device.pool_name.as_str(), device.request_names.as_slice()),
        ("node-1", &["gpu".to_string()][..])
    );
    assert_eq!(device.share_id.as_deref(), Some("share-of-a"));
    assert_ne!(first, second);
    let files = node.files();
    let file = &files[&format!("gpufn.dev-gpu_{}.json", b.id)];
    assert_eq!(variable(file, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"), "50");
    assert_eq!(variable(file, "GPUFN_BINDING"), b.id.to_string());
    let socket = node.driver.path("node").join("sockets").join("node.sock");
    assert!(Peer::attach(&socket, &a.id, Bytes::ZERO).is_ok(), "a container finds its page");

    node.unprepare("a").await;
    node.unprepare("b").await;
    assert_eq!(node.bindings().await.len(), 0);
    assert_eq!(node.files().len(), 0);
    let status = node.driver.control().status().await.unwrap();
    assert_eq!(status.gpus[0].free_units, Units(20));
    node.unprepare("b").await;
}

#[tokio::test]
async fn a_call_that_comes_again_is_answered_the_same_and_keeps_the_grant() {
    let node = Node::start().await;
    node.allocate("a", 25, "4Gi", None).await;
    let first = node.prepare("a").await.unwrap();
    let id = node.only_binding().await.id;
    node.driver.control().grant(&id, percent(60)).await.unwrap();
    fs::remove_dir_all(node.driver.path("cdi")).unwrap();
    assert_eq!(node.prepare("a").await.unwrap(), first);
    assert_eq!(node.only_binding().await.grant, percent(60));
    assert_eq!(node.files().len(), 1, "the file is there again");
}

#[tokio::test]
async fn a_claim_of_two_requests_has_a_binding_for_each() {
    let node = Node::start().await;
    let device = node.device().await;
    let mut both = allocated("a", &device, 25, "4Gi", None);
    let results = both["status"]["allocation"]["devices"]["results"].as_array_mut().unwrap();
    let mut other = results[0].clone();
    other["request"] = json!("other");
    other["shareID"] = json!("another-share");
    results.push(other);
    node.cluster.put_claim(&both);
    let devices = node.prepare("a").await.unwrap();
    let requests: Vec<_> = devices.iter().flat_map(|device| device.request_names.clone()).collect();
    assert_eq!((requests, node.bindings().await.len()), (vec!["gpu".to_string(), "other".to_string()], 2));
    node.unprepare("a").await;
    assert_eq!(node.bindings().await.len(), 0);
}

#[tokio::test]
async fn what_is_wrong_with_a_claim_is_its_answer_and_touches_no_other() {
    let node = Node::start().await;
    let device = node.device().await;
    node.allocate("good", 25, "4Gi", None).await;
    node.allocate("greedy", 25, "4Gi", Some(json!({"quota": 40}))).await;
    node.allocate("misspelt", 25, "4Gi", Some(json!({"quotaLimt": 40}))).await;
    let mut elsewhere = allocated("elsewhere", &device, 25, "4Gi", None);
    elsewhere["status"]["allocation"]["devices"]["results"][0]["pool"] = json!("node-2");
    node.cluster.put_claim(&elsewhere);
    let mut waiting = allocated("waiting", &device, 25, "4Gi", None);
    waiting["status"] = json!({});
    node.cluster.put_claim(&waiting);

    let names = ["greedy", "good", "misspelt", "elsewhere", "waiting", "unknown"];
    let mut claims: Vec<_> = names.iter().map(|name| claim(name, &uid(name))).collect();
    claims.push(claim("good", "an-older-uid"));
    let errors: Vec<_> = node
        .kubelet
        .prepare(&claims)
        .await
        .into_iter()
        .map(|answer| answer.err().unwrap_or_default())
        .collect();
    let expected = [
        "request gpu: configuration, quota is \"40 %\", allowed is at most 25 %",
        "",
        "request gpu: configuration, field is \"quotaLimt\", allowed is sm, quota, quotaLimit or memory",
        "device node-2/",
        "the claim is not allocated",
        "the claim is not known: ",
        "the claim's UID is \"an-older-uid\", allowed is \"uid-of-good\"",
    ];
    for (error, expected) in errors.iter().zip(expected) {
        assert!(error.starts_with(expected) && error.is_empty() == expected.is_empty(), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    assert_eq!(node.only_binding().await.owner.claim.unwrap().name, "good");
}

#[tokio::test]
async fn without_an_api_server_a_claim_waits_and_what_is_prepared_goes_on() {
    let node = Node::with(Plugin::builder().with(&["--grace", "2ms"])).await;
    node.allocate("a", 25, "4Gi", None).await;
    node.allocate("b", 25, "4Gi", None).await;
    node.prepare("a").await.unwrap();
    node.cluster.set_down(true);
    let error = node.prepare("b").await.unwrap_err();
    assert!(error.starts_with("the claim is not known: "), "{error}");
    // Looks at the claim that find nothing out.
    node.cluster.until_asked_for_claims(3).await;
    assert_eq!(node.only_binding().await.owner.claim.unwrap().name, "a");
    node.cluster.set_down(false);
    node.prepare("b").await.unwrap();
}

#[tokio::test]
async fn an_agent_that_is_killed_goes_on_with_its_claims() {
    let mut node = Node::start().await;
    node.allocate("a", 25, "4Gi", Some(json!({"sm": 50}))).await;
    let before = node.prepare("a").await.unwrap();
    let binding = node.only_binding().await;
    for _ in 0..2 {
        node.crash_and_restart().await;
        assert_eq!(node.only_binding().await, binding);
        assert_eq!(node.prepare("a").await.unwrap(), before);
    }
    assert_eq!(node.only_binding().await, binding);
    node.unprepare("a").await;
    assert_eq!((node.bindings().await.len(), node.files().len()), (0, 0));
}

#[tokio::test]
async fn a_damaged_checkpoint_is_made_good_from_what_containers_were_told() {
    let mut node = Node::start().await;
    node.allocate("a", 25, "4Gi", None).await;
    let before = node.prepare("a").await.unwrap();
    let binding = node.only_binding().await;
    node.driver.crash();
    fs::write(node.driver.path("node").join("ledger.json"), "{\"version\": 2, \"bind").unwrap();
    node.restart().await;
    assert_eq!(node.only_binding().await, binding);
    assert_eq!(node.prepare("a").await.unwrap(), before);
}

#[tokio::test]
async fn claims_that_are_gone_without_the_kubelet_telling_are_released_unless_they_run() {
    let node = Node::with(Plugin::builder().with(&["--grace", "5ms"])).await;
    for name in ["running", "gone", "there", "elsewhere"] {
        node.allocate(name, 25, "4Gi", None).await;
        node.prepare(name).await.unwrap();
    }
    let running = node.binding("running").await;
    let socket = node.driver.path("node").join("sockets").join("node.sock");
    let peer = Peer::attach(&socket, &running.id, Bytes::ZERO).unwrap();
    node.cluster.delete_claim("running");
    node.cluster.delete_claim("gone");
    let mut moved = allocated("elsewhere", "gpu-00000000", 25, "4Gi", None);
    moved["status"]["allocation"]["devices"]["results"][0]["pool"] = json!("node-2");
    node.cluster.put_claim(&moved);

    let names = async || {
        let mut names: Vec<_> =
            node.bindings().await.into_iter().filter_map(|one| Some(one.binding.owner.claim?.name)).collect();
        names.sort();
        names
    };
    until("two claims to be released", PATIENCE, async || {
        (names().await == ["running", "there"]).then_some(())
    })
    .await;
    drop(peer);
    until("the third to be released", PATIENCE, async || (names().await == ["there"]).then_some(())).await;
    until("their files to go", PATIENCE, async || (node.files().len() == 1).then_some(())).await;
}

#[tokio::test]
async fn a_slice_that_a_kubelet_deletes_or_somebody_changes_is_written_again() {
    let node = Node::start().await;
    let first = node.cluster.until_slice("a slice", |_| true).await;
    node.cluster.wipe_slices();
    let generation = |slice: &Value| slice["spec"]["pool"]["generation"].as_i64().unwrap();
    let second =
        node.cluster.until_slice("the slice again", |slice| generation(slice) > generation(&first)).await;
    assert_eq!(first["spec"]["devices"], second["spec"]["devices"]);

    let mut changed = second.clone();
    changed["spec"]["devices"][0]["capacity"]["compute"]["value"] = json!("50");
    node.cluster.put_slice(&changed);
    let as_before = |slice: &Value| slice["spec"]["devices"] == second["spec"]["devices"];
    node.cluster.until_slice("the slice as it was", as_before).await;

    let mut other = first.clone();
    other["metadata"]["name"] = json!("left-by-an-earlier-version");
    node.cluster.put_slice(&other);
    let own = |slice: &Value| slice["metadata"]["name"] == "node-1-gpu.gpufn.dev";
    node.cluster.until_slice("the other slice to go", own).await;
}

#[tokio::test]
async fn an_agent_that_starts_again_finds_its_slice_as_it_should_be_and_writes_nothing() {
    let mut node = Node::start().await;
    node.cluster.until_slice("a slice", |_| true).await;
    let (writes, lists) = (node.cluster.slice_writes(), node.cluster.slice_lists());
    node.crash_and_restart().await;
    until("the slice to be seen", PATIENCE, async || (node.cluster.slice_lists() > lists).then_some(()))
        .await;
    // Whatever it writes comes before what it writes now.
    node.cluster.wipe_slices();
    node.cluster.until_slice("the slice again", |_| true).await;
    assert_eq!(node.cluster.slice_writes(), writes + 1);
}

#[tokio::test]
async fn an_unhealthy_gpu_is_tainted_takes_no_claims_and_keeps_those_that_it_has() {
    let node = Node::start().await;
    node.allocate("a", 25, "4Gi", None).await;
    node.allocate("b", 25, "4Gi", None).await;
    node.cluster.put("pod-of-a", &[]);
    let before = node.prepare("a").await.unwrap();
    assert_eq!(node.kubelet.until_health(true).await, "");
    node.driver.order(&json!({"request": "xid", "gpu": 0, "xid": 79}));
    assert!(node.kubelet.until_health(false).await.contains("79"));
    let tainted = |slice: &Value| slice["spec"]["devices"][0]["taints"][0]["key"] == "gpufn.dev/unhealthy";
    let slice = node.cluster.until_slice("a taint", tainted).await;
    assert_eq!(slice["spec"]["devices"][0]["taints"][0]["effect"], "NoSchedule");
    let event = node.cluster.until_event("GpuUnhealthy").await;
    assert!(event.contains("what runs on it goes on"), "{event}");
    let error = node.prepare("b").await.unwrap_err();
    assert!(error.contains("is unhealthy"), "{error}");
    assert_eq!(node.prepare("a").await.unwrap(), before);
    assert_eq!(node.only_binding().await.share.floor, percent(25));
}

#[tokio::test]
async fn where_no_form_has_room_a_claim_starts_with_less_and_gets_the_rest_later() {
    let node = Node::start().await;
    node.cluster.put("pod-of-c", &[]);
    // Rows of 60 % and 40 % of the SMs, each for half of the time: no place for half of the time of all SMs.
    node.allocate("a", 30, "1Gi", Some(json!({"sm": 60}))).await;
    node.allocate("b", 20, "1Gi", Some(json!({"sm": 40}))).await;
    node.allocate("c", 50, "1Gi", None).await;
    for name in ["a", "b", "c"] {
        node.prepare(name).await.unwrap();
    }
    let area =
        |binding: &Binding| u64::from(binding.share.sm.percent()) * u64::from(binding.share.floor.ppm());
    let less = node.binding("c").await;
    assert!(area(&less) < 50 * 1_000_000, "{less:?}");
    let event = node.cluster.until_event("GpuShareDegraded").await;
    assert!(event.starts_with("request gpu has SM share "), "{event}");
    node.unprepare("b").await;
    until("the claim to have all that it consumed", PATIENCE, async || {
        (area(&node.binding("c").await) >= 50 * 1_000_000).then_some(())
    })
    .await;
}

#[tokio::test]
async fn memory_that_somebody_else_has_is_not_given_to_a_claim() {
    let node = Node::start().await;
    node.allocate("a", 25, "12Gi", None).await;
    let owner =
        gpu_share::binding::Owner { namespace: "by".into(), function: "hand".into(), ..Default::default() };
    let share = gpu_share::share::Share::new(
        gpu_share::units::SmShare::WHOLE,
        percent(10),
        Quota::WHOLE,
        Bytes::gib(8),
    )
    .unwrap();
    let bound = node.driver.control().bind(&gpu_share::protocol::Bind { owner, share }).await.unwrap();
    let error = node.prepare("a").await.unwrap_err();
    assert!(error.contains("has 8.0 GiB left where 12.0 GiB are needed"), "{error}");
    assert_eq!(node.only_binding().await.id, bound.binding.id, "nothing of the claim stays");
}

#[tokio::test]
async fn annotations_of_a_pod_with_a_claim_change_its_grant_within_floor_and_ceiling() {
    let node = Node::start().await;
    node.cluster.put("pod-of-a", &[("quota", "40")]);
    node.allocate("a", 25, "4Gi", Some(json!({"quotaLimit": 60}))).await;
    node.prepare("a").await.unwrap();
    let until_grant = async |wanted: Quota| {
        until("a grant", PATIENCE, async || (node.only_binding().await.grant == wanted).then_some(())).await;
    };
    until_grant(percent(40)).await;
    node.cluster.until_annotation("pod-of-a", "gpufn.dev/grant", "40").await;
    node.cluster.put("pod-of-a", &[("quota", "90")]);
    until_grant(percent(60)).await;
    node.cluster.put("pod-of-a", &[("quota", "10")]);
    until_grant(percent(25)).await;
    node.cluster.put("pod-of-a", &[("quota", "much")]);
    let event = node.cluster.until_event("GpuAnnotationInvalid").await;
    assert!(event.starts_with("gpufn.dev/quota is \"much\", allowed is "), "{event}");
    assert_eq!(node.only_binding().await.grant, percent(25));
}

#[tokio::test]
async fn the_device_plugin_leaves_alone_what_is_bound_for_claims() {
    let node = Node::start().await;
    node.allocate("a", 25, "4Gi", None).await;
    node.prepare("a").await.unwrap();
    let (binding, files) = (node.only_binding().await, node.files());
    let Node { mut driver, .. } = node;
    driver.crash();
    driver.replace_arguments(&[]);
    driver.restart().await;
    let [one] = <[_; 1]>::try_from(driver.control().bindings().await.unwrap()).unwrap();
    assert_eq!(one.binding, binding);
    let file = driver.path("cdi").join(files.into_keys().next().unwrap());
    assert!(file.exists(), "a container of the claim may start again");
    assert!(driver.agent().output().contains("bindings of claims stay until they are released by hand"));
}

#[tokio::test]
async fn options_that_do_not_go_with_claims_are_bad_usage() {
    let place = Place::default();
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(tests::programs::built("gpufn-node"))
            .args(["serve", "--metrics", "127.0.0.1:0"])
            .args(arguments)
            .arg("--state")
            .arg(place.path("node"))
            .env_remove("NODE_NAME")
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let cases = [
        (&["--front-end", "dra"][..], "--node-name is not given, allowed is the node's name"),
        (
            &["--front-end", "dra", "--node-name", "node-1", "--inject", "classic"],
            "--inject is classic, allowed is cdi with --front-end dra",
        ),
        (&["--front-end", "both"], "plugin, dra"),
    ];
    for (arguments, expected) in cases {
        let (code, said) = run(arguments);
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}
