//! A process with a share: joins its binding at the first `cuInit`, and goes on alone while the node agent is away.
//!
//! It owns the parts (gate, harvester, memory, connection) and their threads; each part's rules are its own.

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use core::time::Duration;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Instant;

use gpu_share::page::{Limits, PageReader, SLOTS};
use gpu_share::protocol::{FromContainer, ToContainer};
use gpu_share::quota::WINDOW;
use gpu_share::units::{Bytes, Nanos, Quota};

use crate::abi::Status;
use crate::agent::{self, Agent, Joined, Lines, Reserved};
use crate::config::{Config, Place, Share, config, say};
use crate::cost::Costs;
use crate::gate::{Gate, Outside};
use crate::green;
use crate::harvest::Harvester;
use crate::memory::Memory;
use crate::wrappers::wrappers;

/// An agent whose page shows no beat, or that gives no answer, for so long counts as away.
const SILENCE: Duration = Duration::from_secs(2);
/// Longest wait at the end of the process for work that is in flight.
const FAREWELL: Duration = Duration::from_millis(20);
/// Pause between attempts to reach an agent that went away.
const RETRY: Duration = Duration::from_millis(100);

/// The present session, null for none: none is wanted, or none was made yet, or this is a forked child.
static SESSION: AtomicPtr<Session> = AtomicPtr::new(ptr::null_mut());
/// This process is a fork of one that had a session: the driver is of no use in it.
static FORKED: AtomicBool = AtomicBool::new(false);

/// One process of a binding.
#[derive(Debug)]
pub(crate) struct Session {
    place: Place,
    page: AtomicPtr<PageReader>,
    slot: AtomicUsize,
    listed: AtomicU32,
    pub(crate) agent: Agent,
    pub(crate) gate: Gate,
    pub(crate) costs: Costs,
    pub(crate) harvester: Harvester,
    pub(crate) memory: Memory,
}

/// The session of this process, if it has one.
#[inline]
pub(crate) fn session() -> Option<&'static Session> {
    // SAFETY: null or a session that was leaked.
    unsafe { SESSION.load(Ordering::Acquire).as_ref() }
}

impl Session {
    /// The page as it is mapped now.
    pub(crate) fn page(&self) -> &'static PageReader {
        // SAFETY: always a page that was leaked.
        unsafe { &*self.page.load(Ordering::Acquire) }
    }

    /// The limits now, if the page is sound.
    pub(crate) fn limits(&self) -> Option<Limits> {
        self.page().limits().ok()
    }

    /// The number by which the management library lists this process.
    pub(crate) fn listed_as(&self) -> u32 {
        self.listed.load(Ordering::Relaxed)
    }

    /// Joins the binding at `place`.
    fn join(place: &Place) -> io::Result<&'static Self> {
        let Joined { lines, page, slot, listed } = agent::attach(place, Bytes::ZERO)?;
        let page = keep_page(page, place, slot)?;
        let session: &'static Self = Box::leak(Box::new(Self {
            place: place.clone(),
            page: AtomicPtr::new(ptr::from_ref(page).cast_mut()),
            slot: AtomicUsize::new(slot),
            listed: AtomicU32::new(listed),
            agent: Agent::default(),
            gate: Gate::new(&page.slots[slot].right),
            costs: Costs::default(),
            harvester: Harvester::default(),
            memory: Memory::default(),
        }));
        session.agent.connect(&lines);
        start("gpufn-agent", move || session.listen(lines))?;
        Ok(session)
    }

    /// The connection's thread: hears the agent, and looks for a new one when it goes away.
    fn listen(&self, mut lines: Lines) {
        loop {
            let mut pulse = Pulse::new(self.page());
            loop {
                match lines.next() {
                    Ok(message) => {
                        pulse.asked = None;
                        if let ToContainer::Reserved { granted, used, limit } = message {
                            self.agent.deliver(Reserved { granted, used, limit });
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if pulse.is_lost(self.page()) {
                            break;
                        }
                        self.ask_for_life(&mut pulse);
                    }
                    Err(_) => break,
                }
            }
            self.agent.disconnect();
            self.keep_to_the_floor();
            lines = self.rejoin();
        }
    }

    /// A thread waits for the right, and perhaps nobody has heard that it wants one.
    fn ask_for_life(&self, pulse: &mut Pulse) {
        if self.gate.is_awaited() && pulse.asked.is_none() {
            pulse.asked = Some(Instant::now());
            self.agent.send(&FromContainer::Hello { binding: self.place.binding.clone() });
        }
    }

    fn keep_to_the_floor(&self) {
        let limits = self.limits();
        let floor = limits.map_or(Quota::ZERO, |limits| limits.floor);
        let window = limits.map_or(WINDOW, |limits| limits.window);
        self.gate.detach(floor, window, self.now());
        say(&format!("the node agent is away; going on at {floor} of GPU time, at most"));
    }

    fn rejoin(&self) -> Lines {
        loop {
            thread::park_timeout(RETRY);
            let joined = self.memory.join(|held| {
                let Joined { lines, page, slot, listed } = agent::attach(&self.place, held)?;
                self.listed.store(listed, Ordering::Relaxed);
                let page = keep_page(page, &self.place, slot)?;
                self.agent.connect(&lines);
                io::Result::Ok((lines, slot, page))
            });
            if let Ok((lines, slot, page)) = joined {
                self.page.store(ptr::from_ref(page).cast_mut(), Ordering::Release);
                self.slot.store(slot, Ordering::Release);
                self.gate.attach(&page.slots[slot].right);
                say("the node agent is back");
                return lines;
            }
        }
    }
}

/// Whether the agent lives, by the beats on its page and by its answers: one that hangs keeps its connections.
struct Pulse {
    beat: u64,
    since: Instant,
    /// Since when a question has no answer.
    asked: Option<Instant>,
}

impl Pulse {
    fn new(page: &PageReader) -> Self {
        Self { beat: page.heartbeat.load(Ordering::Acquire), since: Instant::now(), asked: None }
    }

    /// Measured on this process's own clock: containers may have clocks of their own. A page without any beat tells
    /// nothing.
    fn is_lost(&mut self, page: &PageReader) -> bool {
        let beat = page.heartbeat.load(Ordering::Acquire);
        if beat != self.beat {
            (self.beat, self.since) = (beat, Instant::now());
        }
        let is_mute = self.asked.is_some_and(|asked| asked.elapsed() >= SILENCE);
        is_mute || beat != 0 && self.since.elapsed() >= SILENCE
    }
}

impl Outside for Session {
    fn now(&self) -> Nanos {
        static START: OnceLock<Instant> = OnceLock::new();
        // Not from zero: what was never touched lies well before.
        Nanos::from_secs(1) + START.get_or_init(Instant::now).elapsed().into()
    }

    fn send(&self, message: &FromContainer) {
        self.agent.send(message);
    }

    fn wait(&self, seen: u32, most: Duration) {
        self.page().wait(self.slot.load(Ordering::Acquire), seen, most);
    }

    fn grant(&self) -> Option<Quota> {
        self.limits().map(|limits| limits.grant)
    }
}

/// Keeps the page for good, if it is the right one: threads may look at it until the process ends.
fn keep_page(page: PageReader, place: &Place, slot: usize) -> io::Result<&'static PageReader> {
    let identity = page.identity().map_err(io::Error::other)?;
    if identity.binding != place.binding {
        let (found, wanted) = (identity.binding, &place.binding);
        return Err(io::Error::other(format!("page is of binding {found}, allowed is {wanted}")));
    }
    if slot >= SLOTS {
        return Err(io::Error::other(format!("slot is {slot}, allowed is 0 to {}", SLOTS - 1)));
    }
    page.limits().map_err(io::Error::other)?;
    Ok(Box::leak(Box::new(page)))
}

/// Starts a thread that takes none of the program's signals.
fn start(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut all = core::mem::MaybeUninit::uninit();
    let mut before = core::mem::MaybeUninit::uninit();
    // SAFETY: both sets have their type's size; the second is filled by the call that is given the first.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let started = thread::Builder::new().name(name.to_owned()).spawn(body);
    // SAFETY: it was filled above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    started.map(drop)
}

/// In a child that a fork made: neither the connection nor the slot is its own.
extern "C" fn forget_in_child() {
    SESSION.store(ptr::null_mut(), Ordering::SeqCst);
    crate::lane::seat::forget_all();
    FORKED.store(true, Ordering::SeqCst);
    agent::close_in_child();
}

/// Makes the session if a share is wanted and there is none; otherwise says why there can be none.
fn ensure(config: &Config) -> Result<Option<&'static Session>, String> {
    static MAKING: Mutex<()> = Mutex::new(());
    let place = match &config.share {
        Share::None => return Ok(None),
        Share::Broken(why) => return Err(why.clone()),
        Share::Bound(place) => place,
    };
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(session) = session() {
        return Ok(Some(session));
    }
    let made = Session::join(place);
    let session =
        made.map_err(|error| format!("binding {} at {}: {error}", place.binding, place.socket.display()))?;
    // SAFETY: the handler only stores to atomics and closes a descriptor, which a child may do.
    unsafe { libc::pthread_atfork(None, None, Some(forget_in_child)) };
    SESSION.store(ptr::from_ref(session).cast_mut(), Ordering::Release);
    Ok(Some(session))
}

/// Registers [`leave`] once, after the driver has registered what it does at the end: so it comes first.
fn tell_at_the_end() {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if !REGISTERED.swap(true, Ordering::SeqCst) {
        // SAFETY: the library stays loaded until the process ends.
        unsafe { libc::atexit(leave) };
    }
}

/// The process ends: what it used is told, if that is known soon. If not, the agent charges all of the time that the right
/// was held, as it does for a process that is killed.
extern "C" fn leave() {
    if let Some(session) = session() {
        session.harvester.drain_within(session, 0, FAREWELL);
        session.gate.give_back_for_good(session);
    }
}

/// The first call of every program: no share, no GPU.
fn init(real: impl FnOnce() -> Status) -> Status {
    if FORKED.load(Ordering::SeqCst) {
        return Status::NOT_INITIALIZED;
    }
    let config = config();
    match ensure(config) {
        Ok(session) => {
            let status = real();
            if let Some(session) = session.filter(|_| status.is_ok()) {
                green::announce();
                session.start_harvester();
                tell_at_the_end();
            }
            status
        }
        Err(why) if config.open => {
            say(&format!("{why}; going on without a share, as the policy allows"));
            real()
        }
        Err(why) => {
            say(&why);
            Status::NOT_PERMITTED
        }
    }
}

impl Session {
    fn start_harvester(&'static self) {
        static STARTED: AtomicBool = AtomicBool::new(false);
        if !STARTED.swap(true, Ordering::SeqCst)
            && let Err(error) = start("gpufn-harvest", || self.harvester.run(self))
        {
            say(&format!("no thread to measure with: {error}"));
            STARTED.store(false, Ordering::SeqCst);
        }
    }
}

wrappers! {
    [cuInit](flags: u32) |real, per_thread| { init(real) }
}
