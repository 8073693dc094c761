//! The agent with real files, sockets and threads, on GPUs that are made up.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use gpu_share::binding::{BindingId, GpuId, Owner as Function};
use gpu_share::ledger::Gpu;
use gpu_share::page::{PageReader, Slot, handover};
use gpu_share::protocol::{Bind, Bound, Event, FromContainer, NodeStatus, Problem, ToContainer};
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Quota, SmShare};
use reqwest::StatusCode;
use serde_json::json;

use tempfile::TempDir;

use super::*;
use crate::checkpoint::{Saved, decode, encode};
use crate::health::{Closed, Desk, Report, Rules as HealthRules, Source};

const PATIENCE: Duration = Duration::from_secs(20);

/// GPUs that are made up, and what is reported of them.
#[derive(Clone, Debug, Default)]
struct FakeInventory(Vec<(String, Bytes)>, Reports);

type Reports = Option<Arc<Mutex<mpsc::Receiver<Report>>>>;

impl FakeInventory {
    fn gpu(mut self, uuid: &str, memory: Bytes) -> Self {
        self.0.push((uuid.into(), memory));
        self
    }

    fn reports(self, reports: mpsc::Receiver<Report>) -> Self {
        Self(self.0, Some(Arc::new(Mutex::new(reports))))
    }
}

/// Hands in what a test sends.
struct FakeSource(Arc<Mutex<mpsc::Receiver<Report>>>);

impl Source for FakeSource {
    fn observe(&mut self, _: &[GpuId], desk: &Desk) -> Closed {
        while let Ok(report) = self.0.lock().unwrap().recv() {
            desk.report(report);
        }
        Closed::Blind("no more reports".into())
    }
}

impl Inventory for FakeInventory {
    fn gpus(&self, sharing: Sharing, _: Duration) -> Result<Vec<Gpu>, InventoryError> {
        let gpus = self.0.iter().zip(0..).map(|((uuid, memory), index)| Gpu {
            id: GpuId(uuid.clone()),
            index,
            name: "made up".into(),
            memory: *memory,
            sharing,
        });
        Ok(gpus.collect())
    }

    fn source(&self) -> Option<Box<dyn Source>> {
        self.1.clone().map(|reports| Box::new(FakeSource(reports)) as Box<dyn Source>)
    }
}

/// Starts an agent. A program that another test starts has a copy of the lock of the agent before until it runs.
fn start(config: &Config, inventory: &FakeInventory) -> Agent {
    let begin = Instant::now();
    loop {
        match Agent::start(config, inventory) {
            Err(StartError::InUse(_)) if begin.elapsed() < PATIENCE => thread::yield_now(),
            agent => return agent.unwrap(),
        }
    }
}

/// An agent in a folder of its own, and an HTTP client of its control socket.
struct Node {
    folder: TempDir,
    agent: Option<Agent>,
    runtime: tokio::runtime::Runtime,
}

impl Node {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut node = Self { folder: tempfile::tempdir().unwrap(), agent: None, runtime };
        node.restart(&FakeInventory::default().gpu("GPU-1", Bytes::gib(16)));
        node
    }

    fn config(&self) -> Config {
        Config {
            state: self.folder.path().join("state"),
            nvml: "/lib/nvml.so".into(),
            driver: Some("/lib/libcuda.so.1".into()),
            hook: Some("/opt/hook".into()),
            sharing: Sharing::Exclusive,
            mps: Mps::Off,
            window: Nanos::from_millis(10),
            units: Units::PER_GPU,
            metrics: Some("127.0.0.1:0".parse().unwrap()),
            env: vec![("EXTRA".into(), "1".into())],
            health: health::Options::default(),
        }
    }

    /// Kills the agent, as far as that is possible within one process, and starts another in its folder.
    fn restart(&mut self, inventory: &FakeInventory) {
        drop(self.agent.take());
        self.agent = Some(start(&self.config(), inventory));
    }

    fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }

    fn request(&self, method: &str, path: &str, body: &impl ToString) -> (StatusCode, String) {
        self.runtime.block_on(async {
            let client =
                reqwest::Client::builder().unix_socket(self.agent().control_socket()).timeout(PATIENCE);
            let url = format!("http://localhost{path}");
            let request =
                client.build().unwrap().request(method.parse().unwrap(), url).body(body.to_string());
            let response = request.send().await.unwrap();
            (response.status(), response.text().await.unwrap())
        })
    }

    fn bind(&self, floor: u8, memory: Bytes) -> Bound {
        let share =
            Share::new(SmShare::WHOLE, Quota::from_percent(floor).unwrap(), Quota::WHOLE, memory).unwrap();
        let owner = Function {
            namespace: "fn".into(),
            function: "f".into(),
            instance: "0".into(),
            ..Function::default()
        };
        let (status, body) =
            self.request("POST", "/v1/bindings", &serde_json::to_string(&Bind { owner, share }).unwrap());
        assert_eq!(status, StatusCode::CREATED, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    fn status(&self) -> NodeStatus {
        serde_json::from_str(&self.request("GET", "/v1/status", &"").1).unwrap()
    }

    /// Waits until the status is as wanted.
    fn until(&self, wanted: impl Fn(&NodeStatus) -> bool) {
        let start = Instant::now();
        loop {
            let status = self.status();
            if wanted(&status) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{status:?}");
        }
    }
}

/// A process of a container.
struct Process {
    stream: BufReader<UnixStream>,
    /// Once it is attached.
    page: Option<PageReader>,
    slot: usize,
}

impl Process {
    fn connect(bound: &Bound) -> Self {
        let stream = UnixStream::connect(&bound.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream), page: None, slot: 0 }
    }

    fn attach(bound: &Bound, memory: Bytes) -> Self {
        let mut process = Self::connect(bound);
        let binding = bound.binding.id.clone();
        process.say(&FromContainer::Attach { binding, pid: 1, memory });
        let mut line = [0; 256];
        let (count, page) = handover::receive(process.stream.get_ref(), &mut line).unwrap();
        let ToContainer::Attached { slot, .. } = serde_json::from_slice(&line[..count]).unwrap() else {
            panic!("not attached")
        };
        Self { slot, page: Some(PageReader::map(page.unwrap()).unwrap()), ..process }
    }

    fn page(&self) -> &PageReader {
        self.page.as_ref().unwrap()
    }

    fn say(&mut self, line: &FromContainer) {
        let line = serde_json::to_string(line).unwrap() + "\n";
        self.stream.get_mut().write_all(line.as_bytes()).unwrap();
    }

    fn hear(&mut self) -> ToContainer {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn ask(&mut self, line: &FromContainer) -> ToContainer {
        self.say(line);
        self.hear()
    }

    /// Waits until the right is held, or is not; returns the word.
    fn right(&self, held: bool) -> u32 {
        let start = Instant::now();
        loop {
            let right = self.page().slots[self.slot].right.load(Ordering::Acquire);
            if Slot::is_held(right) == held {
                return right;
            }
            assert!(start.elapsed() < PATIENCE, "the right is {right}");
            self.page().wait(self.slot, right, Duration::from_millis(100));
        }
    }

    fn ended(&mut self) -> bool {
        self.stream.read(&mut [0; 64]).is_ok_and(|read| read == 0)
    }
}

fn yielded(right: u32) -> FromContainer {
    FromContainer::Yield {
        right,
        used: Nanos::from_micros(10),
        launches: 1,
        throttled: Nanos::from_micros(1),
        more: false,
        unknown: 0,
    }
}

#[test]
fn a_bound_container_gets_page_environment_and_the_right_to_run() {
    let node = Node::start();
    let bound = node.bind(30, Bytes::gib(2));
    let variable =
        |name: &str| bound.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    assert_eq!(variable("GPUFN_PAGE"), bound.page.to_str());
    assert_eq!(variable("GPUFN_SOCKET"), bound.socket.to_str());
    assert_eq!(variable("GPUFN_BINDING"), Some(bound.binding.id.as_str()));
    assert_eq!(variable("GPUFN_POLICY"), Some("strict"));
    assert_eq!(variable("GPUFN_DRIVER"), Some("/lib/libcuda.so.1"));
    assert_eq!(variable("GPUFN_NVML"), Some("/lib/nvml.so"));
    assert_eq!(variable("GPUFN_HOOK"), Some("/opt/hook"));
    assert_eq!(variable("CUDA_VISIBLE_DEVICES"), Some("GPU-1"));
    assert_eq!(variable("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"), None);
    assert_eq!(variable("EXTRA"), Some("1"));

    let mut process = Process::connect(&bound);
    let binding = bound.binding.id.clone();
    assert_eq!(
        process.ask(&FromContainer::Hello { binding }),
        ToContainer::Welcome { binding: bound.binding.clone() }
    );
    let mut process = Process::attach(&bound, Bytes::ZERO);
    process.say(&FromContainer::Want);
    let right = process.right(true);
    process.say(&yielded(right));
    process.right(false);
    node.until(|status| status.gpus[0].bindings[0].launches == 1);
    assert_eq!(node.status().gpus[0].bindings[0].processes, [std::process::id()]);
}

#[test]
fn two_containers_take_turns() {
    let node = Node::start();
    let (a, b) = (node.bind(50, Bytes::gib(1)), node.bind(50, Bytes::gib(1)));
    let (mut a, mut b) = (Process::attach(&a, Bytes::ZERO), Process::attach(&b, Bytes::ZERO));
    a.say(&FromContainer::Want);
    for _ in 0..20 {
        let right = a.right(true);
        b.say(&FromContainer::Want);
        // The holder goes on until it is told to stop.
        a.right(false);
        assert!(!Slot::is_held(b.page().slots[b.slot].right.load(Ordering::Acquire)));
        a.say(&yielded(right));
        std::mem::swap(&mut a, &mut b);
    }
}

#[test]
fn memory_over_the_limit_is_refused_and_comes_back_when_the_connection_ends() {
    let node = Node::start();
    let bound = node.bind(30, Bytes::gib(2));
    let (mut first, mut second) =
        (Process::attach(&bound, Bytes::ZERO), Process::attach(&bound, Bytes::mib(512)));
    let (bytes, limit) = (Bytes::gib(1), Bytes::gib(2));
    let used = Bytes::mib(1536);
    assert_eq!(
        first.ask(&FromContainer::Reserve { bytes }),
        ToContainer::Reserved { granted: true, used, limit }
    );
    assert_eq!(
        second.ask(&FromContainer::Reserve { bytes }),
        ToContainer::Reserved { granted: false, used, limit }
    );
    drop(first);
    node.until(|status| status.gpus[0].bindings[0].memory_used == Bytes::mib(512));
    assert_eq!(
        second.ask(&FromContainer::Reserve { bytes }),
        ToContainer::Reserved { granted: true, used, limit }
    );
}

#[test]
fn a_holder_whose_connection_ends_frees_the_gpu() {
    let node = Node::start();
    let (a, b) = (node.bind(50, Bytes::gib(1)), node.bind(50, Bytes::gib(1)));
    let (mut a, mut b) = (Process::attach(&a, Bytes::ZERO), Process::attach(&b, Bytes::ZERO));
    a.say(&FromContainer::Want);
    a.right(true);
    b.say(&FromContainer::Want);
    drop(a);
    b.right(true);
}

#[test]
fn a_killed_agent_is_followed_by_one_that_knows_its_bindings() {
    let mut node = Node::start();
    let bound = node.bind(30, Bytes::gib(2));
    let gone = node.bind(20, Bytes::gib(1));
    let path = format!("/v1/bindings/{}/grant", bound.binding.id);
    assert_eq!(node.request("PUT", &path, &json!({"quota": 500_000})).0, StatusCode::OK);
    let mut process = Process::attach(&bound, Bytes::mib(7));
    process.say(&FromContainer::Want);
    process.right(true);
    std::fs::remove_dir_all(gone.page.parent().unwrap()).unwrap();
    std::fs::create_dir(node.folder.path().join("state/bindings/unknown")).unwrap();

    node.restart(&FakeInventory::default().gpu("GPU-1", Bytes::gib(16)));
    assert!(process.ended(), "its right has ended with the agent that gave it");
    let status = node.status();
    assert_eq!(status.gpus[0].bindings.len(), 2);
    let restored = status.gpus[0].bindings.iter().find(|b| b.binding.id == bound.binding.id).unwrap();
    assert_eq!(restored.binding.grant, Quota::from_percent(50).unwrap());
    let mut process = Process::attach(&bound, Bytes::mib(7));
    process.say(&FromContainer::Want);
    process.right(true);
    assert!(gone.page.exists(), "a page that is gone is made anew");
    assert!(!node.folder.path().join("state/bindings/unknown").exists());
}

/// Changes the checkpoint of an agent that has stopped, as another machine's run would have left it.
fn of_another_boot(node: &Node) {
    let path = node.folder.path().join("state/ledger.json");
    let saved = decode(&fs::read_to_string(&path).unwrap()).unwrap();
    fs::write(&path, encode(&Saved { boot: Some("another".into()), ..saved }).unwrap()).unwrap();
}

#[test]
fn a_binding_whose_gpu_does_not_answer_is_kept_on_a_gpu_that_takes_nothing_new() {
    let mut node = Node::start();
    let bound = node.bind(30, Bytes::gib(2));
    node.restart(&FakeInventory::default().gpu("GPU-2", Bytes::gib(16)));
    let status = node.status();
    let missing = status.gpus.iter().find(|gpu| gpu.gpu.id == bound.binding.gpu).unwrap();
    assert!(!missing.health.takes_bindings());
    assert_eq!(missing.bindings[0].binding, bound.binding);
    assert!(bound.page.exists());
    for _ in 0..3 {
        assert_eq!(node.bind(30, Bytes::gib(2)).binding.gpu, GpuId("GPU-2".into()));
    }
    // Its process goes on.
    let mut process = Process::attach(&bound, Bytes::ZERO);
    process.say(&FromContainer::Want);
    process.right(true);
}

#[test]
fn a_gpu_that_is_gone_after_the_machine_was_started_again_takes_its_bindings_with_it() {
    let mut node = Node::start();
    let bound = node.bind(30, Bytes::gib(2));
    drop(node.agent.take());
    of_another_boot(&node);
    node.restart(&FakeInventory::default().gpu("GPU-2", Bytes::gib(16)));
    assert_eq!(node.status().gpus.len(), 1);
    assert_eq!(node.status().gpus[0].bindings, []);
    assert!(!bound.page.exists());
}

#[test]
fn after_the_machine_was_started_again_bindings_have_their_floors_and_nothing_counted() {
    let mut node = Node::start();
    let bound = node.bind(30, Bytes::gib(2));
    let path = format!("/v1/bindings/{}/grant", bound.binding.id);
    assert_eq!(node.request("PUT", &path, &json!({"quota": 500_000})).0, StatusCode::OK);
    let mut process = Process::attach(&bound, Bytes::ZERO);
    process.say(&FromContainer::Want);
    let right = process.right(true);
    process.say(&yielded(right));
    node.until(|status| status.gpus[0].bindings[0].used > Nanos::ZERO);
    drop(node.agent.take());
    of_another_boot(&node);
    node.restart(&FakeInventory::default().gpu("GPU-1", Bytes::gib(16)));
    // Only once: the next agent goes on with what there is.
    assert_eq!(node.request("PUT", &path, &json!({"quota": 0})).0, StatusCode::OK);
    node.restart(&FakeInventory::default().gpu("GPU-1", Bytes::gib(16)));
    assert!(node.status().gpus[0].bindings[0].binding.is_parked());
    assert_eq!(node.request("PUT", &path, &json!({"quota": 1})).0, StatusCode::OK);
    let status = &node.status().gpus[0].bindings[0];
    assert_eq!(status.binding, bound.binding, "with the name that its container knows, and its floor");
    assert_eq!((status.used, status.throttled), (Nanos::ZERO, Nanos::ZERO));
}

#[test]
fn a_damaged_checkpoint_is_kept_aside_and_bindings_come_back_from_their_pages() {
    let mut node = Node::start();
    let (one, other) = (node.bind(30, Bytes::gib(2)), node.bind(40, Bytes::gib(3)));
    drop(node.agent.take());
    let path = node.folder.path().join("state/ledger.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    // Somebody's folder with a page that is not its own.
    let alien = node.folder.path().join("state/bindings/alien");
    fs::create_dir(&alien).unwrap();
    fs::copy(&one.page, alien.join("page")).unwrap();

    node.restart(&FakeInventory::default().gpu("GPU-1", Bytes::gib(16)));
    let status = node.status();
    assert_eq!(status.gpus[0].bindings.len(), 2);
    for bound in [&one, &other] {
        let back = status.gpus[0].bindings.iter().find(|b| b.binding.id == bound.binding.id).unwrap();
        assert_eq!((back.binding.share, &back.binding.gpu), (bound.binding.share, &bound.binding.gpu));
        assert_eq!(back.binding.owner, Function::default(), "whom it is for is not in a page");
        let mut process = Process::attach(bound, Bytes::ZERO);
        process.say(&FromContainer::Want);
        drop(process);
    }
    assert_eq!(fs::read_to_string(path.with_extension("json.bad")).unwrap(), text[..text.len() / 2]);
    assert!(!alien.exists());
}

#[test]
fn an_unhealthy_gpu_takes_no_new_binding_and_leaves_the_others_alone_until_it_is_back() {
    let mut node = Node::start();
    drop(node.agent.take());
    let (script, reports) = mpsc::channel();
    let rules = HealthRules { pause: Nanos::from_millis(1), ..HealthRules::default() };
    let config = Config { health: health::Options { rules, ..Default::default() }, ..node.config() };
    let inventory = FakeInventory::default().gpu("GPU-1", Bytes::gib(16)).reports(reports);
    node.agent = Some(start(&config, &inventory));
    let gpu = GpuId("GPU-1".into());
    let mut followed = node.agent().handle().health();
    let bound = node.bind(30, Bytes::gib(2));
    let mut process = Process::attach(&bound, Bytes::ZERO);

    let xid = |xid| Report::Xid { gpu: gpu.clone(), bus: String::new(), xid };
    script.send(xid(31)).unwrap();
    node.until(|status| status.gpus[0].bindings[0].faults == 1);
    assert_eq!(node.status().gpus[0].health, Health::Healthy, "a program's fault is none of the GPU");

    script.send(xid(79)).unwrap();
    node.until(|status| !status.gpus[0].health.takes_bindings());
    assert!(
        !node.runtime.block_on(followed.wait_for(|known| !known[&gpu].takes_bindings())).unwrap().is_empty()
    );
    let bind = Bind { owner: Function::default(), share: bound.binding.share };
    let (status, answer) = node.request("POST", "/v1/bindings", &serde_json::to_string(&bind).unwrap());
    assert_eq!(status, StatusCode::CONFLICT, "{answer}");
    process.say(&FromContainer::Want);
    process.right(true);

    let url = format!("http://{}/metrics", node.agent().metrics().unwrap());
    let metrics = node.runtime.block_on(async { reqwest::get(url).await.unwrap().text().await.unwrap() });
    for line in
        ["gpufn_node_gpu_healthy{gpu=\"GPU-1\"} 0", "gpufn_node_xids_total{gpu=\"GPU-1\",xid=\"79\"} 1"]
    {
        assert!(metrics.contains(line), "{metrics}");
    }

    for _ in 0..10 {
        script.send(Report::Probed(gpu.clone(), Ok(()))).unwrap();
    }
    node.until(|status| status.gpus[0].health == Health::Healthy);
    node.bind(30, Bytes::gib(2));
}

#[test]
fn a_folder_belongs_to_one_agent() {
    let node = Node::start();
    let inventory = FakeInventory::default().gpu("GPU-1", Bytes::gib(16));
    let error = Agent::start(&node.config(), &inventory).unwrap_err().to_string();
    assert!(error.ends_with("is in use by another node agent"), "{error}");
    assert_eq!(node.status().gpus.len(), 1, "and its sockets still work");
}

#[test]
fn a_stopped_agent_leaves_pages_and_checkpoint_but_no_sockets() {
    let mut node = Node::start();
    let bound = node.bind(30, Bytes::gib(2));
    let agent = node.agent.take().unwrap();
    let sockets = [agent.socket().to_path_buf(), agent.control_socket().to_path_buf()];
    agent.stop();
    assert!(sockets.iter().all(|socket| !socket.exists()));
    assert!(bound.page.exists() && node.folder.path().join("state/ledger.json").exists());
}

#[test]
fn a_bad_line_is_refused_in_one_line_and_others_are_unaffected() {
    let node = Node::start();
    let bound = node.bind(30, Bytes::gib(2));
    let mut good = Process::attach(&bound, Bytes::ZERO);
    let long = vec![b' '; gpu_share::protocol::MAX_LINE + 1];
    let bad: [&[u8]; 5] = [
        b"{\"op\":\n",
        b"\xff\xfe\n",
        b"{\"op\":\"want\"}\n",
        b"{\"op\":\"attach\",\"binding\":\"none\",\"pid\":1,\"memory\":0}\n",
        &long,
    ];
    for bytes in bad {
        let mut process = Process::connect(&bound);
        process.stream.get_mut().write_all(bytes).unwrap();
        let ToContainer::Refused { error } = process.hear() else { panic!("not refused") };
        assert!(!error.is_empty() && !error.contains('\n'), "{error}");
        assert!(process.ended());
    }
    good.say(&FromContainer::Want);
    good.right(true);
}

#[test]
fn the_control_api_answers_with_the_documented_status_codes() {
    let node = Node::start();
    let bound = node.bind(30, Bytes::gib(2));
    let grant = format!("/v1/bindings/{}/grant", bound.binding.id);
    let too_much = json!({"owner": {"namespace": "", "function": "", "instance": ""},
        "share": {"sm": 100, "floor": 800_000, "ceiling": 1_000_000, "memory": 1}});
    let cases = [
        ("GET", "/healthz", String::new(), 200),
        ("GET", "/nothing", String::new(), 404),
        ("PATCH", "/v1/status", String::new(), 405),
        ("POST", "/v1/bindings", "{".into(), 400),
        ("POST", "/v1/bindings", json!({"owner": {}}).to_string(), 400),
        ("POST", "/v1/bindings", too_much.to_string(), 409),
        ("PUT", &grant, json!({"quota": 2_000_000}).to_string(), 400),
        ("PUT", &grant, json!({"quota": 400_000}).to_string(), 200),
        ("PUT", "/v1/bindings/none/grant", json!({"quota": 1}).to_string(), 404),
        ("DELETE", "/v1/bindings/none", String::new(), 404),
        ("DELETE", "/v1/bindings/NONE", String::new(), 400),
    ];
    for (method, path, body, expected) in cases {
        let (status, answer) = node.request(method, path, &body);
        assert_eq!(status.as_u16(), expected, "{method} {path} {body}: {answer}");
        if expected >= 400 {
            let problem: Problem = serde_json::from_str(&answer).unwrap();
            assert!(!problem.error.is_empty() && !problem.error.contains('\n'), "{problem:?}");
        }
    }
    let mode = std::fs::metadata(node.agent().control_socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_released_binding_is_gone_with_its_page_and_connections() {
    let node = Node::start();
    let bound = node.bind(30, Bytes::gib(2));
    let mut process = Process::attach(&bound, Bytes::ZERO);
    let path = format!("/v1/bindings/{}", bound.binding.id);
    assert_eq!(node.request("DELETE", &path, &"").0, StatusCode::NO_CONTENT);
    assert!(process.ended() && !bound.page.exists());
    let stream = UnixStream::connect(&bound.socket).unwrap();
    let mut late = Process { stream: BufReader::new(stream), ..process };
    let binding: BindingId = bound.binding.id;
    assert!(matches!(late.ask(&FromContainer::Hello { binding }), ToContainer::Refused { .. }));
}

#[test]
fn a_release_that_nobody_waits_for_reaches_the_disk_by_itself() {
    let node = Node::start();
    let [kept, gone] = [30, 20].map(|floor| node.bind(floor, Bytes::gib(2)).binding);
    node.agent().handle().release_unwaited(gone.id).unwrap();
    let path = node.folder.path().join("state").join(state::LEDGER);
    let start = Instant::now();
    while decode(&fs::read_to_string(&path).unwrap()).unwrap().bindings != [kept.clone()] {
        assert!(start.elapsed() < PATIENCE);
        thread::yield_now();
    }
}

#[test]
fn an_agent_that_stops_leaves_nothing_unsaved() {
    let mut node = Node::start();
    let gone = node.bind(30, Bytes::gib(2)).binding;
    node.agent().handle().release_unwaited(gone.id).unwrap();
    node.restart(&FakeInventory::default().gpu("GPU-1", Bytes::gib(16)));
    assert_eq!(node.status().bindings().count(), 0);
}

#[test]
fn a_parked_binding_wakes_on_its_page_and_in_the_events() {
    let node = Node::start();
    let bound = node.bind(30, Bytes::gib(2));
    let path = format!("/v1/bindings/{}/grant", bound.binding.id);
    let mut process = Process::attach(&bound, Bytes::ZERO);
    assert_eq!(node.request("PUT", &path, &json!({"quota": 0})).1, r#"{"grant":0}"#);
    assert_eq!(process.page().limits().unwrap().grant, Quota::ZERO);
    let mut events = UnixStream::connect(node.agent().control_socket()).unwrap();
    events.set_read_timeout(Some(PATIENCE)).unwrap();
    events.write_all(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut lines = BufReader::new(events).lines().map(Result::unwrap);
    // The head is sent when the stream is open: from then on events are seen.
    assert!(lines.any(|line| line.is_empty()));
    process.say(&FromContainer::Want);
    process.right(true);
    let grant = Quota::from_percent(30).unwrap();
    assert_eq!(process.page().limits().unwrap().grant, grant);
    let event = lines.find(|line| line.starts_with('{')).unwrap();
    let woken = Event::Woken { binding: bound.binding.id, grant };
    assert_eq!(serde_json::from_str::<Event>(&event).unwrap(), woken);
}

#[test]
fn pages_show_that_the_agent_lives_and_what_is_counted() {
    let node = Node::start();
    let bound = node.bind(30, Bytes::gib(2));
    let process = Process::attach(&bound, Bytes::mib(3));
    let start = Instant::now();
    while process.page().counters().memory != Bytes::mib(3) {
        assert!(start.elapsed() < PATIENCE);
        process.page().wait(process.slot, 0, Duration::from_millis(20));
    }
    assert!(process.page().heartbeat.load(Ordering::Acquire) > 0);
}

#[test]
fn metrics_are_served() {
    let node = Node::start();
    let bound = node.bind(30, Bytes::gib(2));
    let url = format!("http://{}/metrics", node.agent().metrics().unwrap());
    let text = node.runtime.block_on(async { reqwest::get(url).await.unwrap().text().await.unwrap() });
    assert!(text.contains(&format!("gpufn_node_floor_ratio{{binding=\"{}\"", bound.binding.id)), "{text}");
}

#[test]
fn the_service_that_the_agent_keeps_comes_and_goes_with_it_and_binds_wait_while_it_is_broken() {
    let mut node = Node::start();
    drop(node.agent.take());
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake-mps-control");
    let config = Config { sharing: Sharing::Mps, mps: Mps::Start(program.into()), ..node.config() };
    let inventory = FakeInventory::default().gpu("GPU-1", Bytes::gib(16));
    node.agent = Some(start(&config, &inventory));
    let pipes = config.state.canonicalize().unwrap().join("mps/pipe");
    let daemon = pipes.join("nvidia-cuda-mps-control.pid");
    assert!(daemon.exists());

    let bound = node.bind(30, Bytes::gib(2));
    let variable =
        |name: &str| bound.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    assert_eq!(variable("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"), Some("100"));
    assert_eq!(variable("CUDA_MPS_PIPE_DIRECTORY"), pipes.to_str());
    assert_eq!(variable("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"), Some("0=2048M"));

    // It can't come back before the test lets it.
    fs::write(pipes.join("refuse"), "").unwrap();
    fs::remove_file(&daemon).unwrap();
    let share =
        Share::new(SmShare::WHOLE, Quota::from_percent(30).unwrap(), Quota::WHOLE, Bytes::gib(1)).unwrap();
    let owner = Function {
        namespace: "fn".into(),
        function: "g".into(),
        instance: "0".into(),
        ..Function::default()
    };
    let bind = serde_json::to_string(&Bind { owner, share }).unwrap();
    let begin = Instant::now();
    let answer = loop {
        let (status, body) = node.request("POST", "/v1/bindings", &bind);
        if status != StatusCode::CREATED {
            break (status, body);
        }
        let id = serde_json::from_str::<Bound>(&body).unwrap().binding.id;
        node.request("DELETE", &format!("/v1/bindings/{id}"), &"");
        assert!(begin.elapsed() < PATIENCE);
    };
    assert_eq!(answer.0, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.1.contains("while the multi-process service is broken"), "{}", answer.1);
    fs::remove_file(pipes.join("refuse")).unwrap();
    let begin = Instant::now();
    while node.request("POST", "/v1/bindings", &bind).0 != StatusCode::CREATED {
        assert!(begin.elapsed() < 2 * PATIENCE);
    }

    // With something bound it outlives the agent, and ends with the agent that has nothing bound.
    node.agent.take().unwrap().stop();
    assert!(daemon.exists());
    node.agent = Some(start(&config, &inventory));
    for status in node.status().gpus[0].bindings.clone() {
        node.request("DELETE", &format!("/v1/bindings/{}", status.binding.id), &"");
    }
    node.agent.take().unwrap().stop();
    assert!(!daemon.exists());
}
