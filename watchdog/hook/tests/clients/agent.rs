//! A node agent for one binding, which gives and takes the right as the test says.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use gpu_share::page::{Identity, Limits, PageWriter, SLOTS, handover};
use gpu_share::protocol::{FromContainer, ToContainer};
use gpu_share::units::{Bytes, Nanos, Quota, SmShare};
use tempfile::TempDir;

use crate::PATIENCE;
use crate::node::Node;

pub(crate) struct Builder {
    limits: Limits,
    gpu: String,
    willing: bool,
}

impl Builder {
    pub(crate) fn unwilling(mut self) -> Self {
        self.willing = false;
        self
    }

    pub(crate) fn memory(mut self, memory: Bytes) -> Self {
        self.limits.memory = memory;
        self
    }

    pub(crate) fn sm(mut self, percent: u8) -> Self {
        self.limits.sm = SmShare::from_percent(percent).unwrap();
        self
    }

    pub(crate) fn floor(mut self, floor: Quota) -> Self {
        self.limits.floor = floor;
        self
    }

    pub(crate) fn start(self) -> NodeAgent {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity { binding: "b-test".to_owned().try_into().unwrap(), gpu: self.gpu };
        let page = PageWriter::create(&folder.path().join("page"), &identity, &self.limits).unwrap();
        let state = State {
            limit: self.limits.memory,
            willing: self.willing,
            running: true,
            log: Vec::new(),
            connections: HashMap::new(),
            wanting: Vec::new(),
            holding: HashSet::new(),
        };
        let agent = NodeAgent { folder, shared: Arc::new(Shared { page, state: Mutex::new(state) }) };
        agent.listen();
        agent
    }
}

struct Shared {
    page: PageWriter,
    state: Mutex<State>,
}

struct State {
    limit: Bytes,
    willing: bool,
    running: bool,
    log: Vec<FromContainer>,
    connections: HashMap<usize, (UnixStream, Bytes)>,
    wanting: Vec<usize>,
    /// Slots that were given a right which did not come back yet.
    holding: HashSet<usize>,
}

pub(crate) struct NodeAgent {
    folder: TempDir,
    shared: Arc<Shared>,
}

impl NodeAgent {
    /// An agent for the GPU of `node`, whose container has half of its time and may have all.
    pub(crate) fn builder(node: &Node) -> Builder {
        Self::of_gpu(node.uuid())
    }

    /// The same for the GPU with this UUID.
    pub(crate) fn of_gpu(gpu: String) -> Builder {
        let quota = Quota::from_percent(50).unwrap();
        let (memory, window) = (Bytes::gib(8), Nanos::from_millis(10));
        let limits =
            Limits { sm: SmShare::WHOLE, floor: quota, ceiling: Quota::WHOLE, grant: quota, memory, window };
        Builder { limits, gpu, willing: true }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("node.sock")
    }

    pub(crate) fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        let page = self.folder.path().join("page");
        vec![("GPUFN_BINDING", "b-test".into()), ("GPUFN_PAGE", page), ("GPUFN_SOCKET", self.socket())]
    }

    fn listen(&self) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let shared = self.shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if !shared.state.lock().unwrap().running {
                    return;
                }
                let shared = shared.clone();
                thread::spawn(move || shared.serve(&stream));
            }
        });
    }

    /// Dies: the socket is gone and every connection ends; the page stays.
    pub(crate) fn stop(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.running = false;
        std::fs::remove_file(self.socket()).unwrap_or(());
        state.connections.values().for_each(|(stream, _)| stream.shutdown(Shutdown::Both).unwrap_or(()));
    }

    /// Starts again with the page that is there.
    pub(crate) fn restart(&self) {
        let mut state = self.shared.state.lock().unwrap();
        for slot in 0..self.shared.page.slots.len() {
            self.shared.turn(slot, false);
        }
        state.log.clear();
        state.wanting.clear();
        state.running = true;
        drop(state);
        self.listen();
    }

    /// Gives the right to whoever wants it, now and from now on.
    pub(crate) fn grant(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.willing = true;
        for slot in std::mem::take(&mut state.wanting) {
            state.holding.insert(slot);
            self.shared.turn(slot, true);
        }
    }

    /// Takes every right back, and gives none from now on.
    pub(crate) fn revoke(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.willing = false;
        for slot in 0..self.shared.page.slots.len() {
            self.shared.turn(slot, false);
        }
    }

    /// Forgets what it heard.
    pub(crate) fn clear(&self) {
        self.shared.state.lock().unwrap().log.clear();
    }

    pub(crate) fn wait_for(&self, condition: impl Fn(&[FromContainer]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.shared.state.lock().unwrap().log.clone();
            if condition(&log) {
                return;
            }
            assert!(Instant::now() < deadline, "not in time: {log:?}");
            thread::park_timeout(Duration::from_millis(2));
        }
    }

    /// Waits until no process holds a right that it was given.
    pub(crate) fn wait_for_yield(&self) {
        self.wait_for(|_| self.shared.state.lock().unwrap().holding.is_empty());
    }

    fn sum<T: std::iter::Sum>(&self, of: impl Fn(&FromContainer) -> Option<T>) -> T {
        self.shared.state.lock().unwrap().log.iter().filter_map(of).sum()
    }

    pub(crate) fn used(&self) -> Nanos {
        self.sum(|message| match message {
            FromContainer::Yield { used, .. } => Some(*used),
            _ => None,
        })
    }

    pub(crate) fn launches(&self) -> u64 {
        self.sum(|message| match message {
            FromContainer::Yield { launches, .. } => Some(*launches),
            _ => None,
        })
    }

    /// Ways around the hook that it told of.
    pub(crate) fn unknown(&self) -> u64 {
        self.sum(|message| match message {
            FromContainer::Yield { unknown, .. } => Some(*unknown),
            _ => None,
        })
    }

    pub(crate) fn memory(&self) -> Bytes {
        self.shared.state.lock().unwrap().connections.values().map(|(_, held)| *held).sum()
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.state.lock().unwrap().connections.len()
    }
}

impl Drop for NodeAgent {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn turn(&self, slot: usize, held: bool) {
        let right = &self.page.slots[slot].right;
        if (right.load(Ordering::SeqCst) & 1 == 1) != held {
            right.fetch_add(1, Ordering::SeqCst);
            self.page.wake(slot);
        }
    }

    fn serve(&self, stream: &UnixStream) {
        let mut slot = None;
        for line in BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok) {
            let message = serde_json::from_str::<FromContainer>(&line).unwrap();
            let mut state = self.state.lock().unwrap();
            state.log.push(message.clone());
            let answer = self.handle(&mut state, stream, &mut slot, &message);
            drop(state);
            if let Some(answer) = answer {
                let line = serde_json::to_string(&answer).unwrap() + "\n";
                let mut stream = stream;
                let sent = match answer {
                    ToContainer::Attached { .. } => {
                        handover::send_with(stream, line.as_bytes(), self.page.descriptor())
                    }
                    _ => stream.write_all(line.as_bytes()),
                };
                if sent.is_err() {
                    break;
                }
            }
        }
        if let Some(slot) = slot {
            let mut state = self.state.lock().unwrap();
            state.connections.remove(&slot);
            state.holding.remove(&slot);
            self.turn(slot, false);
        }
    }

    fn handle(
        &self,
        state: &mut State,
        stream: &UnixStream,
        slot: &mut Option<usize>,
        message: &FromContainer,
    ) -> Option<ToContainer> {
        if let FromContainer::Attach { memory, .. } = message {
            let free = (0..SLOTS).find(|slot| !state.connections.contains_key(slot)).unwrap();
            state.connections.insert(free, (stream.try_clone().unwrap(), *memory));
            *slot = Some(free);
            return Some(ToContainer::Attached { slot: free, pid: None });
        }
        let slot = slot.unwrap();
        match message {
            FromContainer::Want => self.want(state, slot),
            FromContainer::Yield { right, more, .. } => {
                state.holding.remove(&slot);
                if self.page.slots[slot].right.load(Ordering::SeqCst) == *right {
                    self.turn(slot, false);
                }
                if *more {
                    self.want(state, slot);
                }
            }
            FromContainer::Reserve { bytes } => return Some(reserve(state, slot, *bytes)),
            FromContainer::Free { bytes } => {
                let held = &mut state.connections.get_mut(&slot).unwrap().1;
                assert!(*held >= *bytes, "freed {bytes} of {held}");
                *held = held.saturating_sub(*bytes);
            }
            // Any answer shows that it lives.
            FromContainer::Hello { .. } => return Some(ToContainer::Refused { error: "no watchdog".into() }),
            FromContainer::Attach { .. } => panic!("{message:?}"),
        }
        None
    }

    fn want(&self, state: &mut State, slot: usize) {
        if state.willing {
            state.holding.insert(slot);
            self.turn(slot, true);
        } else {
            state.wanting.push(slot);
        }
    }
}

fn reserve(state: &mut State, slot: usize, bytes: Bytes) -> ToContainer {
    let used = state.connections.values().map(|(_, held)| *held).sum::<Bytes>();
    let granted = used + bytes <= state.limit;
    if granted {
        state.connections.get_mut(&slot).unwrap().1 += bytes;
    }
    ToContainer::Reserved { granted, used: if granted { used + bytes } else { used }, limit: state.limit }
}
