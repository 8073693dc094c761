//! A container that attacks: it writes to its page, floods the socket, says what is not so, or never gives back. Measured
//! is what its neighbour still gets, as the simulated GPU counts it, and what the node agent's books say.
//!
//! The attacker runs as the agent's own user here, which is the most that any container can be. What a function can do by
//! going around the hook is not tested: the hook is no security boundary.
// Helpers of tests report by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gpu_share::protocol::{BindingStatus, Bound, FromContainer, ToContainer};
use gpu_share::units::{Bytes, Nanos};
use tests::delivery::{Claim, Stretch, settle};
use tests::node::Node;
use tests::peer::Peer;
use tests::process::Process;
use tests::wait::until;

/// What the neighbour is guaranteed, percent.
const FLOOR: u8 = 60;
/// What it may lose to an attack, in points.
const LOSS: f64 = 2.0;
const SPAN: Duration = Duration::from_secs(2);
/// Longest time until a turn: on a busy machine each is held for longer than it is used, which is charged, and waited for.
const PATIENCE: Duration = Duration::from_mins(1);

/// A neighbour that uses all that it is given, and a binding of the attacker.
struct Scene {
    node: Node,
    neighbour: Process,
    own: Bound,
    attacker: Bound,
}

impl Scene {
    async fn start() -> Self {
        let node = Node::start("exclusive").await;
        let own = node.bind("neighbour", 100, FLOOR, FLOOR, Bytes::gib(2)).await;
        let attacker = node.bind("attacker", 100, 20, 20, Bytes::gib(1)).await;
        let mut neighbour = node.client(&own, &["spin", "1000"]).await;
        neighbour.tell("take 500");
        until("memory to be taken", SPAN * 5, async || neighbour.output().contains("took").then_some(()))
            .await;
        settle(&node, &[neighbour.pid()]).await;
        Self { node, neighbour, own, attacker }
    }

    fn peer(&self) -> Peer {
        self.try_peer().unwrap()
    }

    fn try_peer(&self) -> anyhow::Result<Peer> {
        Peer::attach(&self.node.socket(), &self.attacker.binding.id, Bytes::ZERO)
    }

    fn claim(&self) -> Claim {
        // An attack must not cost it more; what a busy machine kept from it before, it catches up.
        Claim::between([&self.neighbour], f64::from(FLOOR) - LOSS, f64::from(FLOOR) + 3.0 * LOSS)
    }

    /// Runs `attack` in a thread of its own, again and again until `SPAN` is over, and checks the neighbour's delivery and
    /// the books.
    async fn during(&self, what: &str, attack: impl FnMut() + Send + 'static) {
        self.during_claim(what, self.claim(), attack).await;
    }

    async fn during_claim(&self, what: &str, claim: Claim, mut attack: impl FnMut() + Send + 'static) {
        let over = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let (flag, count) = (Arc::clone(&over), Arc::clone(&rounds));
        let thread = thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                attack();
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        let stretch = Stretch::watch(&self.node, &[self.neighbour.pid()], SPAN).await;
        over.store(true, Ordering::Relaxed);
        thread.join().unwrap_or_else(|_| panic!("{what}: the attack itself failed"));
        let rounds = rounds.load(Ordering::Relaxed);
        stretch.check(&format!("{what}, {rounds} times"), &[claim]);
        self.check_books(what).await;
    }

    async fn status(&self, bound: &Bound) -> BindingStatus {
        let bindings = self.node.control().bindings().await.unwrap();
        bindings.into_iter().find(|status| status.binding.id == bound.binding.id).unwrap()
    }

    /// Nothing of the neighbour's has changed, and the attacker has what it had.
    async fn check_books(&self, what: &str) {
        let (own, attacker) = (self.status(&self.own).await, self.status(&self.attacker).await);
        assert_eq!(own.binding, self.own.binding, "{what}");
        assert_eq!(own.processes, [self.neighbour.pid()], "{what}");
        assert!(own.memory_used >= Bytes::mib(500), "{what}: {}", own.memory_used);
        assert_eq!(attacker.binding, self.attacker.binding, "{what}");
        assert!(attacker.memory_used <= Bytes::gib(1), "{what}: {}", attacker.memory_used);
    }
}

/// Numbers without any order, the same ones for the same seed (xorshift, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_container_writes_to_its_page_changes_nothing() {
    let mut scene = Scene::start().await;
    let client = scene.node.client(&scene.attacker, &["spin", "1000"]).await;
    let mode = scene.attacker.page.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7137, 0, "others than the agent's user can't write to it: {mode:o}");
    settle(&scene.node, &[client.pid()]).await;

    // Every field, and all between them, with many values, also those that only differ a little from what is there.
    let (page, peer) = (scene.attacker.page.clone(), scene.peer());
    let descriptor = format!("/proc/self/fd/{}", peer.page().as_raw_fd());
    let files = [page.as_path(), descriptor.as_ref()];
    let files = files.map(|path| OpenOptions::new().write(true).open(path).unwrap());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let attack = move || {
        for at in (0..4096).step_by(4) {
            let value = random.next();
            let bytes = if value.is_multiple_of(3) { (value % 7).to_le_bytes() } else { value.to_le_bytes() };
            let length = if value & 8 == 0 { 4 } else { 8.min(4096 - at) };
            // That the page itself refuses is checked below.
            let results = files.each_ref().map(|file| file.write_at(&bytes[..length], at as u64));
            assert!(results[0].is_ok() && results[1].is_err());
        }
        thread::park_timeout(Duration::from_millis(1));
    };
    let start = scene.node.stats();
    scene.during("its page overwritten", attack).await;
    let got = 100.0 * scene.node.stats().part_since(&start, client.pid());
    println!("the attacker got {got:.2} %");
    assert!((2.0..=22.0).contains(&got), "{got:.2} % where 20 % are set");
    assert!(peer.page().set_len(0).is_err() && File::open(&descriptor).is_ok());

    // An agent that starts with what was written believes none of it.
    scene.node.crash_agent();
    scene.node.restart_agent().await;
    until("the neighbour to be back", Duration::from_secs(5), async || {
        (scene.status(&scene.own).await.processes == [scene.neighbour.pid()]).then_some(())
    })
    .await;
    scene.check_books("a new agent").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_and_nonsense_on_the_socket_disturb_nobody() {
    let scene = Scene::start().await;
    let socket = scene.node.socket();

    let (path, binding) = (socket.clone(), scene.attacker.binding.id.clone());
    let mut held = Vec::new();
    let flood = move || {
        // Those that the agent refuses are part of the flood.
        if let Ok(mut peer) = Peer::connect(&path) {
            if held.len().is_multiple_of(2) {
                let _ = peer.say(&FromContainer::Hello { binding: binding.clone() });
            }
            held.push(peer);
        }
        if held.len() >= 2000 {
            held.clear();
        }
        thread::park_timeout(Duration::from_micros(500));
    };
    scene.during("connections that say nothing or hello", flood).await;
    // The agent sees the ends of the flood's connections one by one.
    until("the attacker to attach", SPAN, async || scene.try_peer().ok()).await;

    let path = socket.clone();
    let nonsense: [&[u8]; 6] = [
        b"{\"op\":\"attach\",\"bind",
        b"\0\xff\xfe\n",
        b"[]\n{}\nnull\n",
        b"{\"op\":\"want\"}\n",
        b"{\"op\":\"hello\",\"binding\":\"../../etc/passwd\"}\n",
        b"{\"op\":\"attach\",\"binding\":\"0000000000000000\",\"pid\":1,\"memory\":0}\n",
    ];
    let speak = move || {
        for line in nonsense {
            let mut peer = Peer::connect(&path).unwrap();
            // The agent may have ended the connection already.
            let _ = peer.say_bytes(line);
        }
        thread::park_timeout(Duration::from_millis(2));
    };
    scene.during("half lines and nonsense", speak).await;

    let path = socket.clone();
    let long = vec![b'x'; 10 << 20];
    let shout = move || {
        let mut peer = Peer::connect(&path).unwrap();
        assert!(peer.say_bytes(&long).is_err(), "a line of 10 MB is cut off");
        thread::park_timeout(Duration::from_millis(10));
    };
    scene.during("lines of 10 MB", shout).await;

    let mut peer = scene.peer();
    let storm = move || {
        for _ in 0..100 {
            peer.say(&FromContainer::Want).unwrap();
            // A right that comes while it looks away would be held for a whole grace: another attack.
            let right = peer.await_right(true, PATIENCE).expect("it has a turn");
            peer.give_back(right, Nanos::ZERO).unwrap();
            peer.await_right(false, PATIENCE).expect("its turn ends");
        }
        thread::park_timeout(Duration::from_millis(10));
    };
    scene.during("100 rights taken and given back", storm).await;
    drop(scene.peer());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_process_says_of_itself_counts_for_itself_alone() {
    let scene = Scene::start().await;
    let (socket, id) = (scene.node.socket(), scene.attacker.binding.id.clone());

    // Names of bindings can't be guessed, and a process has one.
    let mut random = Random(7);
    let path = socket.clone();
    let guess = move || {
        let name = format!("{:016x}", random.next()).try_into().unwrap();
        assert!(Peer::attach(&path, &name, Bytes::ZERO).is_err());
    };
    scene.during("names guessed", guess).await;
    let mut peer = scene.peer();
    let again = FromContainer::Attach { binding: scene.own.binding.id.clone(), pid: 1, memory: Bytes::ZERO };
    assert!(matches!(peer.ask(&again).unwrap(), ToContainer::Refused { .. }));
    assert!(peer.hear().is_err(), "and the connection ends");

    // Memory: nothing is had by asking for too much, or by giving back more than was taken.
    let mut peer = scene.peer();
    let granted = |answer| matches!(answer, ToContainer::Reserved { granted: true, .. });
    let mut reserve = |bytes| peer.ask(&FromContainer::Reserve { bytes }).unwrap();
    assert!(!granted(reserve(Bytes(u64::MAX))) && !granted(reserve(Bytes::mib(1025))));
    assert!(granted(reserve(Bytes::mib(1000))) && !granted(reserve(Bytes::mib(1000))));
    peer.say(&FromContainer::Free { bytes: Bytes(u64::MAX) }).unwrap();
    let answer = peer.ask(&FromContainer::Reserve { bytes: Bytes::ZERO }).unwrap();
    assert!(matches!(answer, ToContainer::Reserved { used: Bytes::ZERO, .. }), "{answer:?}");
    let boaster = Peer::attach(&socket, &id, Bytes(u64::MAX)).unwrap();
    assert!(!granted(peer.ask(&FromContainer::Reserve { bytes: Bytes(1) }).unwrap()), "it has spent its own");
    drop((peer, boaster));

    // Rights that it does not hold, and times that can't be.
    let mut peer = scene.peer();
    let lie = move || {
        for right in [1, 3, 0, u32::MAX] {
            for used in [Nanos::ZERO, Nanos(u64::MAX)] {
                peer.give_back(right, used).unwrap();
            }
        }
        thread::park_timeout(Duration::from_millis(1));
    };
    scene.during("foreign rights given back", lie).await;
    let mut peer = scene.peer();
    peer.say_bytes(b"{\"op\":\"yield\",\"right\":1,\"used\":-5,\"launches\":0,\"throttled\":0}\n").unwrap();
    assert!(matches!(peer.hear().unwrap(), ToContainer::Refused { .. }));
    // Some processes of the attacker may be on their way out still.
    until("the attacker's processes to be gone", SPAN, async || {
        scene.status(&scene.attacker).await.processes.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_the_right_and_says_that_it_used_nothing_takes_nothing_from_others() {
    let scene = Scene::start().await;
    let mut peer = scene.peer();
    let held_us = Arc::new(AtomicU64::new(0));
    let total = Arc::clone(&held_us);
    let hold = move || {
        peer.say(&FromContainer::Want).unwrap();
        let Some(right) = peer.await_right(true, Duration::from_secs(1)) else { return };
        let start = Instant::now();
        // Until it is taken back, or for as long as a right lasts.
        peer.await_right(false, Duration::from_millis(500));
        total.fetch_add(u64::try_from(start.elapsed().as_micros()).unwrap(), Ordering::Relaxed);
        peer.give_back(right, Nanos::ZERO).unwrap();
        while peer.right() == right {
            thread::park_timeout(Duration::from_micros(100));
        }
    };
    scene.during("held and said to be unused", hold).await;
    let part = Duration::from_micros(held_us.load(Ordering::Relaxed)).div_duration_f64(SPAN) * 100.0;
    println!("the attacker, with 20 % set, held the right for {part:.1} % of the time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_gives_back_costs_one_grace_and_is_not_served_before_that_is_repaid() {
    let scene = Scene::start().await;
    let mut peers: Vec<_> = (0..3).map(|_| scene.peer()).collect();
    let stretch = Stretch::during(&scene.node, &[scene.neighbour.pid()], async {
        for peer in &mut peers {
            peer.say(&FromContainer::Want).unwrap();
        }
        tokio::time::sleep(Duration::from_secs(8)).await;
    })
    .await;
    // A second without anything of eight, and what it may catch up of that.
    stretch.check("a right that is never given back", &[Claim::between([&scene.neighbour], 52.0, 62.0)]);
}
