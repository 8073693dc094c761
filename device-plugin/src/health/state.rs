//! Whether one GPU takes new bindings. Pure: what was seen and the time in, the GPU's health out.
//!
//! ```text
//!                broken, or doubt                     strikes × broken in a row
//!   ┌─────────┐ ─────────────────► ┌─────────┐ ─────────────────────────► ┌───────────┐ ◄──┐
//!   │ healthy │                    │ suspect │                            │ unhealthy │    │ broken: the pause doubles
//!   └─────────┘ ◄───────────────── └─────────┘    a fault, in any state:  └───────────┘    │
//!        ▲        sound × clear                  ─────────────────────►         │ pause    │
//!        │                                                                      ▼          │
//!        │                     sound × clear                              ┌─────────┐ ─────┘
//!        └─────────────────────────────────────────────────────────────── │ probing │
//!                                                                         └─────────┘
//! ```
//!
//! A suspect takes bindings still: one answer that does not come is no reason to turn pods away. One that was unhealthy takes
//! none before it has shown itself sound several times, and the longer to wait the more often that was in vain.

use gpu_share::protocol::Health;
use gpu_share::units::Nanos;

/// How much is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Broken answers in a row that make a suspect unhealthy.
    pub strikes: u32,
    /// Sound answers in a row that make a GPU healthy again.
    pub clear: u32,
    /// From a fault to the first probe that counts.
    pub pause: Nanos,
    /// The longest such pause; it doubles with each fault that comes back.
    pub longest_pause: Nanos,
    /// A GPU that is healthy for so long has left its faults behind.
    pub lasting: Nanos,
    /// How often GPUs are asked while all are healthy.
    pub calm: Nanos,
    /// How often they are asked while one is not.
    pub alert: Nanos,
    /// NVML is said to hang if nothing is heard of it for so long.
    pub patience: Nanos,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            strikes: 3,
            clear: 3,
            pause: Nanos::from_secs(10),
            longest_pause: Nanos::from_secs(600),
            lasting: Nanos::from_secs(3600),
            calm: Nanos::from_secs(10),
            alert: Nanos::from_secs(1),
            patience: Nanos::from_secs(10),
        }
    }
}

/// What was seen of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It answers as it should.
    Sound,
    /// It does not, and why.
    Broken(String),
    /// It should be asked.
    Doubt(String),
    /// It is faulty, whatever it answers.
    Fault(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Since then.
    Healthy(Nanos),
    /// With so many broken and sound answers in a row.
    Suspect { broken: u32, sound: u32 },
    /// Probes count from then on.
    Unhealthy(Nanos),
    /// With so many sound answers in a row.
    Probing(u32),
}

/// One GPU, as far as it has been seen.
#[derive(Clone, Debug)]
pub(super) struct Monitor {
    rules: Rules,
    state: State,
    why: String,
    /// The next pause.
    pause: Nanos,
}

impl Monitor {
    /// A GPU that is healthy at `now`.
    pub(super) fn healthy(rules: Rules, now: Nanos) -> Self {
        Self { rules, state: State::Healthy(now), why: String::new(), pause: rules.pause }
    }

    /// A GPU that has to show itself sound first, and why.
    pub(super) fn unproven(rules: Rules, why: String) -> Self {
        Self { rules, state: State::Probing(0), why, pause: rules.pause }
    }

    /// What to tell others.
    pub(super) fn health(&self) -> Health {
        let why = self.why.clone();
        match self.state {
            State::Healthy(_) => Health::Healthy,
            State::Suspect { .. } => Health::Suspect { why },
            State::Unhealthy(_) => Health::Unhealthy { why },
            State::Probing(_) => Health::Probing { why },
        }
    }

    /// Takes in what was seen at `now`.
    pub(super) fn step(&mut self, seen: Seen, now: Nanos) {
        match (self.state, seen) {
            (State::Unhealthy(due), Seen::Sound | Seen::Doubt(_)) if now < due => {}
            (State::Unhealthy(due), Seen::Broken(why)) if now < due => self.why = why,
            (_, Seen::Fault(why)) | (State::Unhealthy(_) | State::Probing(_), Seen::Broken(why)) => {
                self.fail(why, now);
            }
            (State::Healthy(_), Seen::Sound) => {}
            (State::Healthy(_), Seen::Broken(why)) => self.suspect(why, 1, now),
            (State::Healthy(_), Seen::Doubt(why)) => self.suspect(why, 0, now),
            (State::Suspect { sound, .. }, Seen::Sound) => {
                if sound + 1 >= self.rules.clear {
                    self.recover(now);
                } else {
                    self.state = State::Suspect { broken: 0, sound: sound + 1 };
                }
            }
            (State::Suspect { broken, .. }, Seen::Broken(why)) => self.suspect(why, broken + 1, now),
            (State::Suspect { broken, .. }, Seen::Doubt(why)) => self.suspect(why, broken, now),
            (State::Unhealthy(_), Seen::Sound) => self.probe(0, now),
            (State::Probing(sound), Seen::Sound) => self.probe(sound, now),
            (State::Unhealthy(_) | State::Probing(_), Seen::Doubt(why)) => {
                self.why = why;
                self.state = State::Probing(0);
            }
        }
    }

    fn suspect(&mut self, why: String, broken: u32, now: Nanos) {
        if let State::Healthy(since) = self.state
            && now.since(since) >= self.rules.lasting
        {
            self.pause = self.rules.pause;
        }
        if broken >= self.rules.strikes {
            return self.fail(why, now);
        }
        self.why = why;
        self.state = State::Suspect { broken, sound: 0 };
    }

    fn fail(&mut self, why: String, now: Nanos) {
        if let State::Healthy(since) = self.state
            && now.since(since) >= self.rules.lasting
        {
            self.pause = self.rules.pause;
        }
        self.why = why;
        self.state = State::Unhealthy(now + self.pause);
        self.pause = (self.pause + self.pause).min(self.rules.longest_pause);
    }

    fn probe(&mut self, sound: u32, now: Nanos) {
        if sound + 1 >= self.rules.clear {
            self.recover(now);
        } else {
            self.state = State::Probing(sound + 1);
        }
    }

    fn recover(&mut self, now: Nanos) {
        self.why.clear();
        self.state = State::Healthy(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: Rules = Rules {
        strikes: 3,
        clear: 2,
        pause: Nanos::from_secs(10),
        longest_pause: Nanos::from_secs(40),
        lasting: Nanos::from_secs(100),
        calm: Nanos::from_secs(5),
        alert: Nanos::from_secs(1),
        patience: Nanos::from_secs(10),
    };

    fn broken() -> Seen {
        Seen::Broken("no answer".into())
    }

    fn fault() -> Seen {
        Seen::Fault("Xid 79".into())
    }

    fn name(monitor: &Monitor) -> &'static str {
        match monitor.health() {
            Health::Healthy => "healthy",
            Health::Suspect { .. } => "suspect",
            Health::Unhealthy { .. } => "unhealthy",
            Health::Probing { .. } => "probing",
        }
    }

    /// The states after each of what is seen, a second apart.
    fn states(monitor: &mut Monitor, from: u64, seen: &[Seen]) -> Vec<&'static str> {
        let step = |(seen, second): (&Seen, u64)| {
            monitor.step(seen.clone(), Nanos::from_secs(second));
            name(monitor)
        };
        seen.iter().zip(from..).map(step).collect()
    }

    #[test]
    fn one_broken_answer_makes_a_suspect_and_three_in_a_row_an_unhealthy_gpu() {
        let mut monitor = Monitor::healthy(RULES, Nanos::ZERO);
        let seen = [
            broken(),
            Seen::Sound,
            Seen::Sound,
            broken(),
            broken(),
            Seen::Sound,
            broken(),
            broken(),
            broken(),
        ];
        let expected = [
            "suspect",
            "suspect",
            "healthy",
            "suspect",
            "suspect",
            "suspect",
            "suspect",
            "suspect",
            "unhealthy",
        ];
        assert_eq!(states(&mut monitor, 1, &seen), expected);
        assert_eq!(monitor.health(), Health::Unhealthy { why: "no answer".into() });
    }

    #[test]
    fn a_fault_counts_at_once_and_nothing_counts_before_the_pause_is_over() {
        let mut monitor = Monitor::healthy(RULES, Nanos::ZERO);
        let sound = vec![Seen::Sound; 12];
        monitor.step(fault(), Nanos::ZERO);
        let mut expected = vec!["unhealthy"; 9];
        expected.extend(["probing", "healthy", "healthy"]);
        assert_eq!(states(&mut monitor, 1, &sound), expected);
    }

    #[test]
    fn the_pause_doubles_while_faults_come_back_and_is_short_again_after_a_lasting_recovery() {
        let mut monitor = Monitor::healthy(RULES, Nanos::ZERO);
        let mut now = Nanos::ZERO;
        let mut pause = |monitor: &mut Monitor, healthy_before: u64| {
            now += Nanos::from_secs(healthy_before);
            monitor.step(fault(), now);
            let began = now;
            while name(monitor) != "healthy" {
                now += Nanos::from_secs(1);
                monitor.step(Seen::Sound, now);
            }
            // The second probe that counts.
            now.since(began).0 / 1_000_000_000 - 1
        };
        assert_eq!([1, 1, 1, 1].map(|healthy| pause(&mut monitor, healthy)), [10, 20, 40, 40]);
        assert_eq!(pause(&mut monitor, 100), 10);
    }

    #[test]
    fn a_probe_that_fails_begins_another_pause() {
        let mut monitor = Monitor::healthy(RULES, Nanos::ZERO);
        monitor.step(fault(), Nanos::ZERO);
        assert_eq!(
            states(&mut monitor, 10, &[Seen::Sound, broken(), Seen::Sound]),
            ["probing", "unhealthy", "unhealthy"]
        );
        assert_eq!(states(&mut monitor, 31, &[Seen::Sound, Seen::Sound]), ["probing", "healthy"]);
    }

    #[test]
    fn a_doubt_is_settled_by_what_the_gpu_answers() {
        let doubt = || Seen::Doubt("Xid 154".into());
        let mut monitor = Monitor::healthy(RULES, Nanos::ZERO);
        assert_eq!(
            states(&mut monitor, 1, &[doubt(), Seen::Sound, Seen::Sound]),
            ["suspect", "suspect", "healthy"]
        );
        let reset = || Seen::Broken("a reset is needed".into());
        assert_eq!(
            states(&mut monitor, 9, &[doubt(), reset(), reset(), reset()]),
            ["suspect", "suspect", "suspect", "unhealthy"]
        );
    }

    #[test]
    fn a_gpu_that_nobody_has_seen_yet_takes_nothing_before_it_is_proven() {
        let mut monitor = Monitor::unproven(RULES, "not seen since the agent started".into());
        assert!(!monitor.health().takes_bindings());
        assert_eq!(states(&mut monitor, 1, &[Seen::Sound, Seen::Sound]), ["probing", "healthy"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// No sequence makes a GPU that was unhealthy healthy before its pause, and without enough sound answers in a row.
        #[test]
        fn a_gpu_is_trusted_again_only_after_a_pause_and_enough_sound_answers_in_a_row(
            seen in proptest::collection::vec((0..4_u8, 0..30_u64), 1..200)
        ) {
            let mut monitor = Monitor::healthy(RULES, Nanos::ZERO);
            let (mut now, mut sound, mut closed_at) = (Nanos::ZERO, 0, None);
            for (kind, seconds) in seen {
                now += Nanos::from_secs(seconds);
                let took = monitor.health().takes_bindings();
                let seen = match kind {
                    0 | 1 => Seen::Sound,
                    2 => broken(),
                    _ => fault(),
                };
                sound = if seen == Seen::Sound { sound + 1 } else { 0 };
                let was_fault = kind == 3;
                monitor.step(seen, now);
                let takes = monitor.health().takes_bindings();
                if was_fault {
                    prop_assert!(!takes);
                    closed_at = Some(now);
                } else if took && !takes {
                    prop_assert_eq!(kind, 2);
                    closed_at = Some(now);
                }
                if !took && takes {
                    prop_assert!(sound >= RULES.clear);
                    prop_assert!(closed_at.is_some_and(|at| now >= at + RULES.pause));
                }
            }
        }
    }
}
