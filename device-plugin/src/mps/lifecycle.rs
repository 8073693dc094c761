//! When the control daemon is started, and what is known of it. Pure: observations and times in, decisions out.

use gpu_share::units::Nanos;

/// Longest time from the start of a daemon until it answers.
pub(super) const START: Nanos = Nanos::from_secs(10);
/// First pause before another start, doubled after each.
const FIRST_PAUSE: Nanos = Nanos::from_secs(1);
/// Longest pause before another start.
const LONGEST_PAUSE: Nanos = Nanos::from_secs(60);
/// A daemon that answered for so long is a sound one: the next fault is a new one.
const SOUND: Nanos = Nanos::from_secs(60);

/// What was seen of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It answers, and none of its servers is at fault.
    Sound,
    /// It answers, but a server is at fault: it takes no clients until those that it has are gone.
    Fault(u32),
    /// It does not answer as it should, and why.
    Silent(String),
}

/// Whether processes can use a GPU beside each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// They can.
    Up,
    /// They can't, and why.
    Broken(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It answers since then.
    Up(Nanos),
    /// It was started, and has until then to answer.
    Starting(Nanos),
    /// It is not there, and is started then.
    Down(Nanos),
}

/// The daemon's life so far.
#[derive(Clone, Debug)]
pub(super) struct Lifecycle {
    state: State,
    standing: Standing,
    /// To the next start after the one that was last.
    pause: Nanos,
    last_start: Option<Nanos>,
}

impl Lifecycle {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        let standing = Standing::Broken("it has not answered yet".into());
        Self { state: State::Down(Nanos::ZERO), standing, pause: FIRST_PAUSE, last_start: None }
    }

    /// What to tell those who want to know.
    pub(super) fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Takes in what was seen at `now`; whether the daemon is to be started.
    #[must_use]
    pub(super) fn step(&mut self, seen: Seen, now: Nanos) -> bool {
        let why = match seen {
            Seen::Sound => {
                self.answered(now);
                self.standing = Standing::Up;
                return false;
            }
            Seen::Fault(server) => {
                self.answered(now);
                self.standing = Standing::Broken(format!("server {server} is at fault"));
                return false;
            }
            Seen::Silent(why) => why,
        };
        self.standing = Standing::Broken(why);
        let due = match self.state {
            State::Starting(deadline) if now < deadline => return false,
            State::Up(_) | State::Starting(_) => self.last_start.map_or(now, |last| last + self.pause),
            State::Down(due) => due,
        };
        if now < due {
            self.state = State::Down(due);
            return false;
        }
        if self.last_start.is_some() {
            self.pause = (self.pause + self.pause).min(LONGEST_PAUSE);
        }
        self.last_start = Some(now);
        self.state = State::Starting(now + START);
        true
    }

    fn answered(&mut self, now: Nanos) {
        let since = if let State::Up(since) = self.state { since } else { now };
        self.state = State::Up(since);
        if now.since(since) >= SOUND {
            (self.pause, self.last_start) = (FIRST_PAUSE, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn silent() -> Seen {
        Seen::Silent("no answer".into())
    }

    #[test]
    fn a_daemon_that_is_not_there_is_started_at_once_and_given_time() {
        let mut life = Lifecycle::new();
        let t = Nanos::from_secs;
        assert!(life.step(silent(), t(5)));
        assert!(!life.step(silent(), t(6)));
        assert_eq!(life.standing(), &Standing::Broken("no answer".into()));
        assert!(!life.step(Seen::Sound, t(7)));
        assert_eq!(life.standing(), &Standing::Up);
    }

    #[test]
    fn one_that_is_there_is_left_alone() {
        let mut life = Lifecycle::new();
        for second in 0..1000 {
            assert!(!life.step(Seen::Sound, Nanos::from_secs(second)));
        }
    }

    #[test]
    fn a_sound_daemon_that_dies_is_started_at_once() {
        let mut life = Lifecycle::new();
        assert!(life.step(silent(), Nanos::ZERO));
        for second in 1..100 {
            assert!(!life.step(Seen::Sound, Nanos::from_secs(second)));
        }
        assert!(life.step(silent(), Nanos::from_secs(100)));
    }

    #[test]
    fn a_fault_of_a_server_breaks_sharing_and_starts_nothing() {
        let mut life = Lifecycle::new();
        for second in 0..1000 {
            assert!(!life.step(Seen::Fault(7), Nanos::from_secs(second)));
            assert_eq!(life.standing(), &Standing::Broken("server 7 is at fault".into()));
        }
        assert!(!life.step(Seen::Sound, Nanos::from_secs(1000)));
        assert_eq!(life.standing(), &Standing::Up);
    }

    #[test]
    fn starts_that_lead_to_nothing_become_rare() {
        let mut life = Lifecycle::new();
        let starts = (0..3600).filter(|&second| life.step(silent(), Nanos::from_secs(second))).count();
        // At 0, 10, 20, 30 and 40 s (each has 10 s to answer), at 56, 88 and 148 s, and then every minute.
        assert_eq!(starts, 8 + 57);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_is_seen_starts_are_apart_and_the_standing_is_what_was_seen_last(
            seen in proptest::collection::vec((0..3_u8, 0..20_u64), 1..300)
        ) {
            let (mut life, mut now, mut last) = (Lifecycle::new(), Nanos::ZERO, None);
            for (kind, seconds) in seen {
                now += Nanos::from_secs(seconds);
                let what = match kind {
                    0 => Seen::Sound,
                    1 => Seen::Fault(1),
                    _ => silent(),
                };
                let sound = what == Seen::Sound;
                let start = life.step(what, now);
                prop_assert_eq!(life.standing() == &Standing::Up, sound);
                if start {
                    prop_assert_eq!(kind, 2);
                    prop_assert!(last.is_none_or(|last| now >= last + FIRST_PAUSE), "{:?} {:?}", last, now);
                    last = Some(now);
                }
            }
        }
    }
}
