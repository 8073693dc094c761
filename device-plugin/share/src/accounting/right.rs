//! The right to run as one process sees it: when to ask for it, when it is held, when it goes back.
//!
//! Pure: callers pass the page's word, whether work is in flight, and the time, and send what they are told to.

use crate::page::Slot;
use crate::protocol::FromContainer;
use crate::quota::{QuotaServer, Verdict};
use crate::units::{Nanos, Quota};

/// An idle process keeps the right for so long, since most launch again at once.
pub const LINGER: Nanos = Nanos::from_micros(200);
/// Longest wait before the page is looked at again, whether or not somebody woke us.
pub const RECHECK: Nanos = Nanos::from_millis(50);

/// Who says when this process may run.
#[derive(Debug)]
enum Source {
    /// The node agent, through the page.
    Agent,
    /// This process itself at its floor, while the agent is away; with the present right, odd while held.
    Local(QuotaServer, u32),
}

/// What a thread that wants to launch does next.
#[derive(Debug, PartialEq)]
pub enum Ask {
    /// Launch under this right.
    Run(u32),
    /// Send these in order, then wait for the word to change, at most so long.
    Wait(Vec<FromContainer>, Nanos),
}

/// The right to run and what was done under it.
#[derive(Debug)]
pub struct Right {
    source: Source,
    /// The right that this process runs under, 0 for none.
    held: u32,
    /// The last right that went back; the page may show it for a moment longer.
    returned: u32,
    /// The word when the right was asked for.
    asked_at: Option<u32>,
    /// When work last started or ended.
    touched: Nanos,
    used: Nanos,
    launches: u64,
    throttled: Nanos,
    /// Threads that wait.
    pub waiting: u32,
}

impl Right {
    /// Nothing held, in a slot whose word is `word`: what it shows now was given to another process.
    pub fn new(word: u32) -> Self {
        Self {
            source: Source::Agent,
            held: 0,
            returned: word,
            asked_at: None,
            touched: Nanos::ZERO,
            used: Nanos::ZERO,
            launches: 0,
            throttled: Nanos::ZERO,
            waiting: 0,
        }
    }

    /// The agent is gone: from now on keep to `floor`, work in flight included.
    pub fn detach(&mut self, floor: Quota, window: Nanos, now: Nanos) {
        self.source = Source::Local(QuotaServer::new(floor, window, now), 0);
        self.forget();
    }

    /// The agent is back, with a slot whose word is `word`.
    pub fn attach(&mut self, word: u32) {
        self.source = Source::Agent;
        self.forget();
        self.returned = word;
    }

    fn forget(&mut self) {
        self.held = 0;
        self.asked_at = None;
    }

    /// The word to compare with: the page's, or this process's own while the agent is away.
    pub fn word(&self, page: u32) -> u32 {
        match &self.source {
            Source::Agent => page,
            Source::Local(_, right) => *right,
        }
    }

    /// Whether the right that is held was taken back.
    pub fn is_revoked(&self, page: u32) -> bool {
        self.held != 0 && self.held != self.word(page)
    }

    /// A thread wants to launch.
    pub fn ask(&mut self, page: u32, busy: bool, now: Nanos) -> Ask {
        if let Source::Local(server, right) = &mut self.source {
            return ask_locally(server, right, &mut self.held, &mut self.touched, now);
        }
        if self.held != 0 && self.held == page {
            self.touched = now;
            return Ask::Run(page);
        }
        if self.held != 0 {
            // Taken back: it goes back when all is done, and who finds that out asks anew.
            let messages = if busy { Vec::new() } else { self.renew(page) };
            return Ask::Wait(messages, RECHECK);
        }
        if Slot::is_held(page) && page != self.returned {
            self.held = page;
            self.asked_at = None;
            self.touched = now;
            return Ask::Run(page);
        }
        Ask::Wait(self.want(page), RECHECK)
    }

    /// Asks once, and again where a right came and went unnoticed.
    fn want(&mut self, page: u32) -> Vec<FromContainer> {
        let Some(asked_at) = self.asked_at else {
            self.asked_at = Some(page);
            return vec![FromContainer::Want];
        };
        let given_back = Slot::is_held(asked_at) && page == asked_at.wrapping_add(1);
        if page == asked_at || given_back || Slot::is_held(page) {
            return Vec::new();
        }
        self.held = page.wrapping_sub(1);
        self.renew(page)
    }

    /// Gives the held right back and asks for the next one.
    fn renew(&mut self, page: u32) -> Vec<FromContainer> {
        self.asked_at = Some(page);
        self.give_back_held(true)
    }

    fn give_back_held(&mut self, more: bool) -> Vec<FromContainer> {
        let right = core::mem::take(&mut self.held);
        self.returned = right;
        vec![FromContainer::Yield {
            right,
            used: core::mem::take(&mut self.used),
            launches: core::mem::take(&mut self.launches),
            throttled: core::mem::take(&mut self.throttled),
            more,
            unknown: 0,
        }]
    }

    /// Whether the right should go back, as far as is known without looking at what is in flight; else when to look again.
    pub fn is_due(&self, page: u32, now: Nanos) -> Result<bool, Nanos> {
        let until = self.touched + LINGER;
        match self.held {
            0 => Ok(false),
            _ if self.is_revoked(page) || now >= until => Ok(true),
            _ => Err(until),
        }
    }

    /// Nothing is in flight and nothing can start: gives the right back, and asks again if somebody waits.
    pub fn give_back(&mut self, page: u32, now: Nanos) -> Vec<FromContainer> {
        if let Source::Local(server, right) = &mut self.source {
            server.end(Nanos::ZERO, now);
            *right = even(*right);
            self.held = 0;
            return Vec::new();
        }
        if self.waiting > 0 { self.renew(page) } else { self.give_back_held(false) }
    }

    /// The present right, if one is held.
    pub fn held(&self) -> u32 {
        self.held
    }

    /// Work that occupied the GPU for `used` has ended.
    pub fn charge(&mut self, used: Nanos, launches: u64, now: Nanos) {
        self.used += used;
        self.launches += launches;
        self.touched = now;
        if let Source::Local(server, right) = &mut self.source {
            server.end(used, now);
            if self.held == 0 {
                return;
            }
            if server.has_credit(now) {
                server.begin(now);
            } else {
                *right = even(*right);
            }
        }
    }

    /// A thread waited so long for the right.
    pub fn waited(&mut self, span: Nanos) {
        self.throttled += span;
    }
}

fn ask_locally(
    server: &mut QuotaServer,
    right: &mut u32,
    held: &mut u32,
    touched: &mut Nanos,
    now: Nanos,
) -> Ask {
    if *held != 0 && *held == *right {
        *touched = now;
        return Ask::Run(*held);
    }
    if *held != 0 {
        // Taken back, and work is still in flight: its end is what is waited for.
        return Ask::Wait(Vec::new(), RECHECK);
    }
    match server.ask(now) {
        Verdict::Run(_) => {
            server.begin(now);
            *right = even(*right) + 1;
            *held = *right;
            *touched = now;
            Ask::Run(*held)
        }
        Verdict::WaitUntil(then) => Ask::Wait(Vec::new(), then.since(now).min(RECHECK)),
        Verdict::Never => Ask::Wait(Vec::new(), RECHECK),
    }
}

/// The word after the right that it shows is taken back; far from wrapping, since it starts at 0.
fn even(word: u32) -> u32 {
    word.wrapping_add(word & 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = Nanos::from_millis(1);

    fn yielded(right: u32, more: bool) -> FromContainer {
        FromContainer::Yield {
            right,
            used: Nanos::ZERO,
            launches: 0,
            throttled: Nanos::ZERO,
            more,
            unknown: 0,
        }
    }

    #[test]
    fn the_right_is_asked_for_once_and_taken_when_given() {
        let mut right = Right::new(4);
        assert_eq!(right.ask(4, false, MS), Ask::Wait(vec![FromContainer::Want], RECHECK));
        assert_eq!(right.ask(4, false, MS), Ask::Wait(vec![], RECHECK));
        assert_eq!(right.ask(5, false, MS), Ask::Run(5));
    }

    #[test]
    fn what_an_earlier_process_held_in_this_slot_is_not_ours() {
        let mut right = Right::new(5);
        assert_eq!(right.ask(5, false, MS), Ask::Wait(vec![FromContainer::Want], RECHECK));
        assert_eq!(right.ask(6, false, MS), Ask::Wait(vec![], RECHECK));
        assert_eq!(right.ask(7, false, MS), Ask::Run(7));
    }

    #[test]
    fn a_right_that_went_back_is_not_taken_again_while_the_page_still_shows_it() {
        let mut right = Right::new(0);
        right.ask(0, false, MS);
        assert_eq!(right.ask(1, false, MS), Ask::Run(1));
        assert_eq!(right.give_back(1, MS), [yielded(1, false)]);
        assert_eq!(right.ask(1, false, MS), Ask::Wait(vec![FromContainer::Want], RECHECK));
        assert_eq!(right.ask(2, false, MS), Ask::Wait(vec![], RECHECK));
        assert_eq!(right.ask(3, false, MS), Ask::Run(3));
    }

    #[test]
    fn a_revoked_right_goes_back_only_when_nothing_is_in_flight() {
        let mut right = Right::new(0);
        right.ask(0, false, MS);
        right.ask(1, false, MS);
        assert_eq!(right.ask(2, true, MS), Ask::Wait(vec![], RECHECK));
        assert_eq!(right.ask(2, false, MS), Ask::Wait(vec![yielded(1, true)], RECHECK));
    }

    #[test]
    fn a_right_that_came_and_went_unnoticed_is_given_back() {
        let mut right = Right::new(0);
        right.ask(0, false, MS);
        assert_eq!(right.ask(2, false, MS), Ask::Wait(vec![yielded(1, true)], RECHECK));
    }

    #[test]
    fn an_idle_right_goes_back_after_a_while() {
        let mut right = Right::new(0);
        right.ask(0, false, MS);
        right.ask(1, false, MS);
        right.charge(Nanos(700), 3, MS + MS);
        assert_eq!(right.is_due(1, MS + MS), Err(MS + MS + LINGER));
        assert_eq!(right.is_due(1, MS + MS + LINGER), Ok(true));
        assert_eq!(right.is_due(2, MS + MS), Ok(true));
        let FromContainer::Yield { used, launches, .. } = right.give_back(1, MS).remove(0) else { panic!() };
        assert_eq!((used, launches), (Nanos(700), 3));
        assert_eq!(right.is_due(1, Nanos::from_secs(9)), Ok(false));
    }

    /// One backlogged client with kernels of `kernel` for `span` on a fake clock.
    fn run_alone(right: &mut Right, kernel: Nanos, span: Nanos) -> Nanos {
        let (mut now, mut used) = (Nanos::ZERO, Nanos::ZERO);
        while now < span {
            match right.ask(0, false, now) {
                Ask::Run(_) => {
                    now += kernel;
                    used += kernel;
                    right.charge(kernel, 1, now);
                    if right.is_revoked(0) {
                        assert_eq!(right.give_back(0, now), []);
                    }
                }
                Ask::Wait(messages, most) => {
                    assert_eq!(messages, []);
                    now += most.max(Nanos(1));
                }
            }
        }
        used
    }

    #[test]
    fn without_an_agent_the_floor_is_kept() {
        for percent in [10, 30, 60] {
            for kernel in [Nanos::from_micros(50), MS, Nanos::from_millis(20)] {
                let mut right = Right::new(7);
                right.detach(Quota::from_percent(percent).unwrap(), Nanos::from_millis(10), Nanos::ZERO);
                let span = Nanos::from_secs(10);
                let got = 100.0 * run_alone(&mut right, kernel, span).secs_f64() / span.secs_f64();
                assert!((got - f64::from(percent)).abs() < 1.0, "{percent} %, {kernel:?}: {got}");
            }
        }
    }

    #[test]
    fn a_new_agent_is_asked_anew() {
        let mut right = Right::new(0);
        right.ask(0, false, MS);
        right.ask(1, false, MS);
        right.detach(Quota::WHOLE, Nanos::from_millis(10), MS);
        assert!(matches!(right.ask(1, false, MS), Ask::Run(_)));
        right.attach(2);
        assert_eq!(right.ask(2, false, MS), Ask::Wait(vec![FromContainer::Want], RECHECK));
        assert_eq!(right.ask(3, false, MS), Ask::Run(3));
    }
}
