//! The published client of HAS-GPU: each step's requests go through a pool of workers, and the next step begins when all
//! of them are answered. A system that is slow sees less load and later, so that it looks better than it is.

use gpu_share::units::Nanos;

use crate::arrivals::Segment;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Send one now, if so, and come again at that time.
    Come { sends: bool, at: Nanos },
    /// Send one now, if so, and come again when one is answered.
    Wait { sends: bool },
    /// It has sent all.
    Ended,
}

/// Where the client is.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    steps: Vec<Segment>,
    step: usize,
    started: Nanos,
    /// Requests of the step that are due so far, that workers have begun, and that workers are at.
    due: u32,
    begun: u32,
    busy: u32,
    /// The step's time is over, and not all is answered.
    waits: bool,
}

impl Client {
    pub(crate) fn new(steps: Vec<Segment>) -> Self {
        Self { steps, step: 0, started: Nanos::ZERO, due: 0, begun: 0, busy: 0, waits: false }
    }

    /// A request falls due at `now`, or a step ends.
    pub(crate) fn come(&mut self, now: Nanos) -> Next {
        let Some(&step) = self.steps.get(self.step) else { return Next::Ended };
        let (requests, end) = (requests(step), self.started + Nanos::from_secs_f64(step.seconds));
        if self.due >= requests {
            return if now < end { Next::Come { sends: false, at: end } } else { self.after_step(now) };
        }
        self.due += 1;
        let part = f64::from(self.due) / f64::from(requests);
        let at =
            if self.due == requests { end } else { self.started + Nanos::from_secs_f64(part * step.seconds) };
        Next::Come { sends: self.begin(step), at }
    }

    /// A request was answered at `now`.
    pub(crate) fn answered(&mut self, now: Nanos) -> Next {
        self.busy = self.busy.saturating_sub(1);
        let Some(&step) = self.steps.get(self.step) else { return Next::Ended };
        let sends = self.begun < self.due && self.begin(step);
        if self.waits && self.busy == 0 { self.after_step(now) } else { Next::Wait { sends } }
    }

    /// All of a step's requests have been due, and its time is over.
    fn after_step(&mut self, now: Nanos) -> Next {
        self.waits = self.busy > 0;
        if self.waits {
            return Next::Wait { sends: false };
        }
        self.step += 1;
        (self.started, self.due, self.begun) = (now, 0, 0);
        if self.step < self.steps.len() { Next::Come { sends: false, at: now } } else { Next::Ended }
    }

    /// Whether a worker is free for one that is due.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Twice a rate.
    fn begin(&mut self, step: Segment) -> bool {
        let free = self.busy < (2.0 * step.from.max(step.to)).round().max(1.0) as u32;
        self.begun += u32::from(free);
        self.busy += u32::from(free);
        free
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Requests of some seconds.
fn requests(step: Segment) -> u32 {
    (step.seconds * f64::midpoint(step.from, step.to)).round().max(0.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(seconds: f64, rate: f64) -> Segment {
        Segment { seconds, from: rate, to: rate }
    }

    /// Sends until the end, each answered after `latency`; the times of sending.
    fn sent(steps: Vec<Segment>, latency: Nanos) -> Vec<f64> {
        let mut client = Client::new(steps);
        let (mut times, mut answers) = (Vec::new(), std::collections::VecDeque::new());
        let mut comes = Some(Nanos::ZERO);
        loop {
            let answer = answers.front().copied();
            let (now, next) = match (comes, answer) {
                (Some(at), answer) if answer.is_none_or(|answer| at <= answer) => {
                    comes = None;
                    (at, client.come(at))
                }
                (_, Some(answer)) => {
                    answers.pop_front();
                    (answer, client.answered(answer))
                }
                _ => break,
            };
            let sends = match next {
                Next::Come { sends, at } => {
                    comes = Some(at);
                    sends
                }
                Next::Wait { sends } => sends,
                Next::Ended => break,
            };
            if sends {
                times.push(now.secs_f64());
                answers.push_back(now + latency);
            }
        }
        times
    }

    #[test]
    fn a_fast_system_gets_each_request_when_it_is_due() {
        let times = sent(vec![step(5.0, 2.0), step(5.0, 4.0)], Nanos::from_millis(10));
        assert_eq!(times.len(), 30);
        assert!((times[9] - 4.5).abs() < 1e-6 && (times[10] - 5.0).abs() < 1e-6, "{times:?}");
        assert!((times[29] - 9.75).abs() < 1e-6);
    }

    #[test]
    fn a_slow_system_gets_its_requests_later() {
        // Four workers that take 4 s each: ten requests need three rounds, and the next step waits for the last.
        let times = sent(vec![step(5.0, 2.0), step(5.0, 2.0)], Nanos::from_secs(4));
        assert_eq!(times.len(), 20);
        assert!(times[10] >= 11.9, "{times:?}");
    }
}
