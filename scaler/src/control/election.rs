//! Which of several scalers may write: the rules of client-go's leader election, over a Lease.
//!
//! ```text
//!            nobody holds it, or the holder's record has not changed for its duration
//!  (follows) ─────────────────────────────────────────────────────────────────────────► (leads)
//!      ▲                                                                                   │
//!      └───────────────────────────────────────────────────────────────────────────────────┘
//!         not renewed for the deadline, or another one's record is there
//! ```
//!
//! Time is each scaler's own: how old a record is counts from when its change was seen here, so that clocks need not agree. A
//! leader's own deadline counts from before its write was sent, and is shorter than the duration that others wait for: two
//! never lead at once, as long as their clocks run equally fast. Pure.
//! Source: client-go, `tools/leaderelection`.

use gpu_share::units::Nanos;

/// The times that all candidates keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// A record that has not changed for so long is nobody's any more.
    pub duration: Nanos,
}

impl Terms {
    /// A leader that could not renew for so long stops: two thirds of the duration, as 10 s of client-go's 15 s.
    pub fn deadline(&self) -> Nanos {
        Nanos(self.duration.0 / 3 * 2)
    }

    /// Time between two tries: two fifteenths of the duration, as client-go's 2 s.
    pub fn retry(&self) -> Nanos {
        Nanos(self.duration.0 / 15 * 2)
    }
}

/// What a Lease says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; empty when it was given back.
    pub holder: String,
    /// How long it counts without being renewed, as the holder says.
    pub duration: Nanos,
    /// When the holder renewed it last, on the holder's clock: only whether it changes counts.
    pub renewed: String,
    /// How often it went from one holder to another.
    pub transitions: i32,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write a first record.
    Create,
    /// Write a record of one's own in place of another's.
    Take,
    /// Write one's own record anew.
    Renew,
    /// Wait: another one holds it.
    Wait,
}

/// One candidate.
#[derive(Clone, Debug)]
pub struct Election {
    me: String,
    terms: Terms,
    /// What was seen last, and when it was first seen like that.
    seen: Option<(Record, Nanos)>,
    /// When the last write of one's own that was accepted was sent.
    renewed: Option<Nanos>,
}

impl Election {
    /// A candidate that has seen nothing yet.
    pub fn new(me: String, terms: Terms) -> Self {
        Self { me, terms, seen: None, renewed: None }
    }

    /// Takes in what the API server has, and says what to do.
    pub fn see(&mut self, now: Nanos, record: Option<Record>) -> Step {
        let Some(record) = record else {
            (self.seen, self.renewed) = (None, None);
            return Step::Create;
        };
        let is_mine = record.holder == self.me;
        if !is_mine {
            self.renewed = None;
        }
        match &self.seen {
            Some((seen, _)) if *seen == record => {}
            _ => self.seen = Some((record.clone(), now)),
        }
        let since = self.seen.as_ref().map_or(now, |&(_, since)| since);
        if is_mine {
            Step::Renew
        } else if record.holder.is_empty() || now.since(since) >= record.duration {
            Step::Take
        } else {
            Step::Wait
        }
    }

    /// The record to be written for a step.
    pub fn record(&self, renewed: String) -> Record {
        let before = self.seen.as_ref().map(|(record, _)| record);
        let moved = before.is_some_and(|before| before.holder != self.me);
        let transitions = before.map_or(0, |before| before.transitions);
        Record {
            holder: self.me.clone(),
            duration: self.terms.duration,
            renewed,
            transitions: transitions.saturating_add(moved.into()),
        }
    }

    /// A write that was sent at `sent` was accepted.
    pub fn wrote(&mut self, sent: Nanos, record: Record) {
        self.seen = Some((record, sent));
        self.renewed = Some(sent);
    }

    /// It leads no more, whatever the Lease says.
    pub fn resign(&mut self) {
        self.renewed = None;
    }

    /// Until when it leads, if it does.
    pub fn leads_until(&self) -> Option<Nanos> {
        self.renewed.map(|renewed| renewed + self.terms.deadline())
    }

    /// Who holds it, as far as was seen.
    pub fn holder(&self) -> Option<&str> {
        self.seen.as_ref().map(|(record, _)| record.holder.as_str()).filter(|holder| !holder.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TERMS: Terms = Terms { duration: Nanos::from_secs(15) };

    fn candidate(name: &str) -> Election {
        Election::new(name.into(), TERMS)
    }

    fn at(seconds: u64) -> Nanos {
        Nanos::from_secs(seconds)
    }

    /// Takes a step against what the API server has; whether it wrote.
    fn step(one: &mut Election, now: Nanos, server: &mut Option<Record>) -> bool {
        let step = one.see(now, server.clone());
        if step == Step::Wait {
            return false;
        }
        let record = one.record(format!("{now:?}"));
        one.wrote(now, record.clone());
        *server = Some(record);
        true
    }

    fn leads(one: &Election, now: Nanos) -> bool {
        one.leads_until().is_some_and(|until| now < until)
    }

    #[test]
    fn the_first_leads_and_the_second_waits_until_the_first_is_silent_for_the_duration() {
        let (mut a, mut b, mut server) = (candidate("a"), candidate("b"), None);
        assert!(step(&mut a, at(0), &mut server) && !step(&mut b, at(0), &mut server));
        assert!(step(&mut a, at(2), &mut server) && !step(&mut b, at(2), &mut server));
        assert!(!step(&mut b, at(16), &mut server), "it saw a change at 2 s");
        assert!(leads(&a, at(11)) && !leads(&a, at(12)), "a stops before b begins");
        assert!(step(&mut b, at(17), &mut server));
        assert_eq!(server.as_ref().unwrap().transitions, 1);
        assert!(!step(&mut a, at(18), &mut server) && a.holder() == Some("b"));
    }

    #[test]
    fn what_was_given_back_is_taken_at_once() {
        let (mut a, mut b, mut server) = (candidate("a"), candidate("b"), None);
        step(&mut a, at(0), &mut server);
        step(&mut b, at(1), &mut server);
        server.as_mut().unwrap().holder.clear();
        assert!(step(&mut b, at(2), &mut server));
    }

    #[test]
    fn a_lease_that_somebody_deletes_is_lost_until_it_is_written_again() {
        let (mut a, mut server) = (candidate("a"), None);
        step(&mut a, at(0), &mut server);
        assert_eq!(a.see(at(1), None), Step::Create);
        assert!(!leads(&a, at(1)));
    }

    proptest! {
        #[test]
        fn never_do_two_lead_at_once(
            steps in prop::collection::vec((0usize..3, 0u64..8_000, any::<bool>()), 1..200),
        ) {
            let mut all = [candidate("a"), candidate("b"), candidate("c")];
            let (mut server, mut now) = (None, Nanos::ZERO);
            for (who, millis, is_cut) in steps {
                now += Nanos::from_millis(millis);
                // One that is cut off neither sees nor writes; it may still believe that it leads.
                if !is_cut {
                    step(&mut all[who], now, &mut server);
                }
                prop_assert!(all.iter().filter(|one| leads(one, now)).count() <= 1);
            }
        }
    }
}
