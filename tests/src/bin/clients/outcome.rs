//! What came of a client, held against the bars, as a row of the table and as figures.

use std::fmt::{self, Write as _};

use gpu_share::units::Bytes;
use gpufn::figures::{Bar, Figure};

use crate::client::Client;

/// The clients' quota, percent.
pub(crate) const QUOTA: u8 = 25;
/// How far from it what they get may be, percentage points.
pub(crate) const TOLERANCE: f64 = 1.5;
/// The least part of the quota that is due on a busy machine.
const LEAST_DUE: f64 = 0.75;

/// What a client's kernels gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Numbers {
    Right,
    /// They took time, and left what was there before.
    TimeOnly,
    Wrong(String),
}

impl Numbers {
    /// In the client's words.
    pub(crate) fn parse(text: &str) -> Self {
        match text {
            "right" => Self::Right,
            "time only" => Self::TimeOnly,
            other => Self::Wrong(other.into()),
        }
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Right => "right",
            Self::TimeOnly => "time only",
            Self::Wrong(what) => what,
        })
    }
}

/// What a client got in a window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivered {
    /// Part of the time, percent.
    pub(crate) percent: f64,
    /// Part of the quota that was due, as busy as other programs made the machine.
    pub(crate) due: f64,
}

impl Delivered {
    /// How far it is from the quota, percentage points. A busy machine excuses too little, never too much.
    pub(crate) fn error(self) -> f64 {
        let (quota, due) = (f64::from(QUOTA), self.due.max(LEAST_DUE));
        let missing = quota - self.percent;
        if missing <= TOLERANCE { missing.abs() } else { (quota * due - self.percent).max(0.0) }
    }
}

/// What came of a client.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) client: Client,
    pub(crate) numbers: Numbers,
    /// What it got in each window. The largest counts: less than the quota is measured again, more never.
    pub(crate) delivered: Vec<Delivered>,
    /// How often it was refused memory, in which words, and how much it took then.
    pub(crate) refused: u64,
    pub(crate) error: String,
    pub(crate) taken: Bytes,
    /// Launches that the hook saw and that the GPU had.
    pub(crate) seen: u64,
    pub(crate) kernels: u64,
    /// The last lines that it printed.
    pub(crate) tail: String,
}

impl Outcome {
    fn got(&self) -> Delivered {
        let all = self.delivered.iter().copied();
        all.max_by(|a, b| a.percent.total_cmp(&b.percent)).unwrap_or(Delivered { percent: 0.0, due: 1.0 })
    }

    /// The figures, each named for the client.
    #[allow(clippy::cast_precision_loss)] // Counts of launches.
    pub(crate) fn figures(&self) -> Vec<Figure> {
        let id = |what: &str| format!("client-{}-{what}", self.client);
        let share = format!(
            "|delivered - {QUOTA}| over 5 s of kernels of 2 ms; too little is excused by the part of the processors that \
             other programs had; measured: {}",
            self.delivered.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        );
        let numbers = match self.numbers {
            Numbers::Right => 2.0,
            Numbers::TimeOnly => 1.0,
            Numbers::Wrong(_) => 0.0,
        };
        let due = if self.client.computes() { 2.0 } else { 1.0 };
        let unseen = self.kernels.saturating_sub(self.seen) as f64;
        let refused = format!("refusals before it took {}; each was caught: {}", self.taken, self.error);
        let launches =
            format!("the GPU had {}, the hook saw {}; a graph is one launch", self.kernels, self.seen);
        vec![
            Figure::new(id("share-error"), self.got().error(), "pp", Bar::AtMost(TOLERANCE), share),
            Figure::new(
                id("numbers"),
                numbers,
                "",
                Bar::AtLeast(due),
                "2: right, 1: its kernels take time only, 0: wrong",
            ),
            Figure::new(id("refused"), self.refused as f64, "", Bar::AtLeast(1.0), refused),
            Figure::new(id("unseen-launches"), unseen, "", Bar::AtMost(0.0), launches),
        ]
    }

    /// Whether every bar is kept.
    pub(crate) fn ok(&self) -> bool {
        self.figures().iter().all(|figure| figure.ok)
    }
}

impl fmt::Display for Delivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} %", self.percent)?;
        let due = self.due.max(LEAST_DUE);
        if due < 1.0 && self.percent < f64::from(QUOTA) - TOLERANCE {
            write!(f, " ({:.0} % of the quota due on a busy machine)", 100.0 * due)
        } else {
            Ok(())
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, numbers, refused, taken, seen, kernels, .. } = self;
        write!(
            f,
            "{client}: {numbers}, {} of the time, refused {refused} times and took {taken}, {seen} launches seen of {kernels}",
            self.got()
        )
    }
}

/// All clients, a row each.
pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let mut table = format!(
        "{:<16} {:<10} {:>13} {:>10}  {:<28} {}\n",
        "client", "numbers", "of 25 % got", "refused", "launches seen / of the GPU", "ok"
    );
    for outcome in outcomes {
        let launches = format!("{} / {}", outcome.seen, outcome.kernels);
        let ok = if outcome.ok() { "yes" } else { "NO" };
        let _ = writeln!(
            table,
            "{:<16} {:<10} {:>11.2} % {:>8} x  {launches:<28} {ok}",
            outcome.client.to_string(),
            outcome.numbers.to_string(),
            outcome.got().percent,
            outcome.refused
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn got(percent: f64, due: f64) -> Delivered {
        Delivered { percent, due }
    }

    fn outcome() -> Outcome {
        Outcome {
            client: Client::Cudarc,
            numbers: Numbers::Right,
            delivered: vec![got(20.0, 1.0), got(25.5, 1.0)],
            refused: 2,
            error: "CUDA_ERROR_OUT_OF_MEMORY".into(),
            taken: Bytes::gib(1),
            seen: 100,
            kernels: 100,
            tail: String::new(),
        }
    }

    #[test]
    fn other_programs_excuse_too_little_but_never_too_much() {
        assert!(got(23.4, 1.0).error() > TOLERANCE);
        assert!(got(21.5, 0.9).error() <= TOLERANCE);
        assert!(got(17.0, 0.3).error() > TOLERANCE, "not beyond the bound");
        assert!(got(26.6, 0.3).error() > TOLERANCE);
    }

    #[test]
    fn a_client_fails_by_any_one_of_its_bars() {
        assert!(outcome().ok());
        assert!(!Outcome { delivered: vec![got(27.0, 0.3)], ..outcome() }.ok());
        assert!(!Outcome { delivered: Vec::new(), ..outcome() }.ok());
        assert!(!Outcome { refused: 0, ..outcome() }.ok());
        assert!(!Outcome { seen: 99, ..outcome() }.ok());
        assert!(!Outcome { numbers: Numbers::TimeOnly, ..outcome() }.ok());
        assert!(Outcome { client: Client::Pytorch, numbers: Numbers::TimeOnly, ..outcome() }.ok());
        assert!(!Outcome { client: Client::Pytorch, numbers: Numbers::parse("wrong: 1"), ..outcome() }.ok());
    }
}
