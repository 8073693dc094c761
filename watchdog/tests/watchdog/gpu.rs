//! The share of a GPU: the handshake with the node agent, the function's environment, and the page in the metrics.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gpu_share::binding::{Binding, BindingId, GpuId, Owner};
use gpu_share::page::{Counters, Identity, Limits, Page, SIZE};
use gpu_share::protocol::{FromContainer, ToContainer};
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos, Quota, SmShare};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;

use crate::fixture::{Builder, with_process};

fn quota(percent: u8) -> Quota {
    Quota::from_percent(percent).unwrap()
}

fn binding() -> Binding {
    Binding {
        id: BindingId::try_from("b-1".to_string()).unwrap(),
        owner: Owner::default(),
        gpu: GpuId("GPU-0".to_string()),
        share: Share::new(SmShare::from_percent(50).unwrap(), quota(20), quota(80), Bytes::gib(2)).unwrap(),
        grant: quota(30),
        row: 0,
    }
}

/// A node agent that answers every line the same.
struct Agent {
    heard: Arc<Mutex<Vec<FromContainer>>>,
}

impl Agent {
    fn welcoming(socket: &Path) -> Self {
        Self::answering(socket, &serde_json::to_string(&ToContainer::Welcome { binding: binding() }).unwrap())
    }

    fn refusing(socket: &Path, error: &str) -> Self {
        Self::answering(
            socket,
            &serde_json::to_string(&ToContainer::Refused { error: error.to_string() }).unwrap(),
        )
    }

    fn answering(socket: &Path, answer: &str) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&heard), format!("{answer}\n"));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (reader, mut writer) = stream.split();
                let mut line = String::new();
                BufReader::new(reader).read_line(&mut line).await.unwrap();
                seen.lock().unwrap().push(serde_json::from_str(&line).unwrap());
                writer.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { heard }
    }
}

/// A function with the environment that the node agent gives a container.
fn with_share() -> Builder {
    let builder = with_process();
    let (socket, page) = (builder.path("node.sock"), builder.path("page"));
    builder
        .env("GPUFN_BINDING", "b-1")
        .env("GPUFN_SOCKET", socket.display())
        .env("GPUFN_PAGE", page.display())
        .env("GPUFN_HOOK", "/opt/hook/lib")
}

/// The bytes of a page, put where the layout says that they are.
fn page(limits: &Limits, counters: &Counters, heartbeat: u64) -> Vec<u8> {
    let identity = Identity { binding: binding().id, gpu: "GPU-0".to_string() };
    let page = Page::new(&identity, limits);
    page.set_counters(counters);
    let mut bytes = vec![0; SIZE];
    // The fixed part, from the layout's description; its checksum is FNV-1a over what comes before it.
    bytes[..8].copy_from_slice(&gpu_share::page::MAGIC.to_le_bytes());
    bytes[8..12].copy_from_slice(&gpu_share::page::VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&4096_u32.to_le_bytes());
    bytes[16..19].copy_from_slice(b"b-1");
    bytes[48..53].copy_from_slice(b"GPU-0");
    let checksum = bytes[..112].iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    bytes[112..120].copy_from_slice(&checksum.to_le_bytes());
    let words = [1, limits.sm.percent().into(), limits.floor.ppm(), limits.ceiling.ppm(), limits.grant.ppm()];
    for (n, word) in words.into_iter().enumerate() {
        bytes[128 + 4 * n..132 + 4 * n].copy_from_slice(&u32::to_le_bytes(word));
    }
    let longs = [
        limits.memory.0,
        limits.window.0,
        heartbeat,
        counters.used.0,
        counters.throttled.0,
        counters.memory.0,
    ];
    for (n, long) in longs.into_iter().enumerate() {
        bytes[152 + 8 * n..160 + 8 * n].copy_from_slice(&long.to_le_bytes());
    }
    bytes
}

fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

#[tokio::test]
async fn without_a_share_it_is_a_plain_watchdog() {
    let watchdog = with_process().env("LD_LIBRARY_PATH", "/mine").start().await;
    assert!(watchdog.line(" listens, ").await.ends_with("library path \"/mine\""));
    assert!(!watchdog.metrics().await.contains("gpufn_"));
}

#[tokio::test]
async fn a_confirmed_share_gives_the_function_the_hook() {
    let builder = with_share();
    let agent = Agent::welcoming(&builder.path("node.sock"));
    let watchdog = builder.env("LD_LIBRARY_PATH", "/mine").start().await;
    assert!(watchdog.line(" listens, ").await.ends_with("library path \"/opt/hook/lib:/mine\""));
    assert_eq!(*agent.heard.lock().unwrap(), [FromContainer::Hello { binding: binding().id }]);
}

#[tokio::test]
async fn the_preload_form_is_given_where_it_is_asked_for_and_not_otherwise() {
    for (asked, variable, other) in
        [("true", "LD_PRELOAD", "LD_AUDIT"), ("audit", "LD_AUDIT", "LD_PRELOAD"), ("false", "", "LD_")]
    {
        let builder = with_share();
        let _agent = Agent::welcoming(&builder.path("node.sock"));
        let library = builder.path("libgpufn_preload.so");
        // The loader says that it can't load it, and goes on.
        std::fs::write(&library, "").unwrap();
        let hook = library.parent().unwrap().display().to_string();
        let builder = builder.env("GPUFN_HOOK", &hook).env("gpufn_preload", asked);
        let watchdog = builder.start().await;
        assert!(watchdog.line(" listens, ").await.ends_with(&format!("library path {hook:?}")));
        if !variable.is_empty() {
            let line = watchdog.line(&format!("function has {variable}")).await;
            assert!(line.ends_with(&format!("{:?}", library.display().to_string())), "{line}");
        }
        let unwanted = format!("function has {other}");
        assert!(!watchdog.lines().iter().any(|line| line.contains(&unwanted)), "{asked}");
    }
}

#[tokio::test]
async fn a_preload_form_that_is_not_there_never_starts_the_function() {
    let builder = with_share().env("gpufn_preload", "true");
    let _agent = Agent::welcoming(&builder.path("node.sock"));
    let (status, stderr) = builder.run(&[]).await;
    assert_eq!(status.code(), Some(1));
    let wanted = "gpufn_preload is set, and \"/opt/hook/lib/libgpufn_preload.so\" is not there";
    assert!(stderr.contains(wanted) && !stderr.contains("Forking"), "{stderr}");
    let (status, stderr) = with_share().env("gpufn_preload", "maybe").run(&[]).await;
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("gpufn_preload is \"maybe\", allowed is true, audit or false"), "{stderr}");
}

#[tokio::test]
async fn an_agent_that_starts_later_is_waited_for() {
    let builder = with_share();
    let socket = builder.path("node.sock");
    let start = tokio::spawn(builder.start());
    tokio::time::sleep(Duration::from_millis(500)).await;
    let agent = Agent::welcoming(&socket);
    start.await.unwrap();
    assert_eq!(agent.heard.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_refused_share_never_starts_the_function() {
    let builder = with_share();
    let _agent = Agent::refusing(&builder.path("node.sock"), "no such binding");
    let (status, stderr) = builder.run(&[]).await;
    assert_eq!(status.code(), Some(1));
    let wanted = "GPUFN_BINDING is \"b-1\", and the node agent refuses it: no such binding";
    assert!(stderr.lines().last().unwrap().ends_with(wanted), "{stderr}");
    assert!(!stderr.contains("Forking"), "{stderr}");
}

#[tokio::test]
async fn an_agent_that_is_not_there_or_talks_nonsense_never_starts_the_function() {
    let (status, stderr) = with_share().run(&[]).await;
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("and no node agent answers there") && !stderr.contains("Forking"), "{stderr}");
    let builder = with_share();
    let _agent = Agent::answering(&builder.path("node.sock"), "{\"answer\":\"maybe\"}");
    let (status, stderr) = builder.run(&[]).await;
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("allowed is welcome or refused") && !stderr.contains("Forking"), "{stderr}");
    let (status, stderr) = with_process().env("GPUFN_POLICY", "strict").run(&[]).await;
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("GPUFN_BINDING is not set"), "{stderr}");
}

#[tokio::test]
async fn with_the_open_policy_the_function_starts_without_the_hook() {
    let builder = with_share().env("GPUFN_POLICY", "open");
    let _agent = Agent::refusing(&builder.path("node.sock"), "no such binding");
    let watchdog = builder.start().await;
    assert!(watchdog.line("warning: ").await.contains("no such binding"));
    assert!(watchdog.line(" listens, ").await.ends_with("library path \"\""));
    assert!(!watchdog.metrics().await.contains("gpufn_"));
}

#[tokio::test]
async fn metrics_follow_the_page() {
    let builder = with_share();
    let path = builder.path("page");
    let _agent = Agent::welcoming(&builder.path("node.sock"));
    let mut limits = Limits {
        sm: SmShare::from_percent(50).unwrap(),
        floor: quota(20),
        ceiling: quota(80),
        grant: quota(30),
        memory: Bytes::gib(2),
        window: Nanos::from_millis(10),
    };
    let counters = Counters {
        used: Nanos::from_millis(2500),
        throttled: Nanos::from_millis(500),
        memory: Bytes::gib(1),
    };
    std::fs::write(&path, page(&limits, &counters, monotonic())).unwrap();
    let watchdog = builder.start().await;
    std::fs::write(&path, page(&limits, &counters, monotonic())).unwrap();
    let text = watchdog.metrics().await;
    for line in [
        "gpufn_function_quota_floor_ratio 0.2",
        "gpufn_function_quota_grant_ratio 0.3",
        "gpufn_function_quota_ceiling_ratio 0.8",
        "gpufn_function_gpu_used_seconds_total 2.5",
        "gpufn_function_gpu_throttled_seconds_total 0.5",
        "gpufn_function_gpu_memory_bytes 1073741824",
        "gpufn_function_gpu_memory_limit_bytes 2147483648",
        "gpufn_function_node_agent_up 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    limits.grant = quota(60);
    let long_ago = monotonic().saturating_sub(3_000_000_000);
    std::fs::write(&path, page(&limits, &counters, long_ago)).unwrap();
    watchdog.until_metric("gpufn_function_quota_grant_ratio 0.6").await;
    watchdog.until_metric("gpufn_function_node_agent_up 0").await;
    std::fs::write(&path, "damaged").unwrap();
    watchdog.until_metric("gpufn_function_gpu_used_seconds_total 2.5").await;
    watchdog.until_metric("gpufn_function_node_agent_up 0").await;
}
