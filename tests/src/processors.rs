//! How much of the machine's processors others use: what they take, a test can't expect the programs under test to have.

use std::fs;

use crate::process::fields;

/// Processor time since the machine and some processes began, in clock ticks (proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    total: u64,
    busy: u64,
    own: u64,
}

impl Sample {
    /// Now; `own` are the processes that belong to the test, to which this one is added.
    pub fn take(own: impl IntoIterator<Item = u32>) -> Self {
        let text = fs::read_to_string("/proc/stat").expect("/proc/stat can be read");
        let (busy, total) = machine(&text).unwrap_or_else(|| panic!("/proc/stat has {text:?}"));
        let own = own.into_iter().chain([std::process::id()]).filter_map(|pid| {
            // What has ended uses nothing any more.
            process(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
        });
        Self { total, busy, own: own.sum() }
    }

    /// Part of all processors that was neither idle nor used by the test's processes since `earlier`.
    #[allow(clippy::cast_precision_loss)] // Ticks of seconds.
    pub fn others_since(&self, earlier: &Self) -> f64 {
        let busy = self.busy - earlier.busy;
        let others = busy.saturating_sub(self.own.saturating_sub(earlier.own));
        others as f64 / (self.total - earlier.total).max(1) as f64
    }
}

/// Busy and total ticks of the first line: user, nice, system, idle, iowait, irq, softirq, steal.
fn machine(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let [_, _, _, idle, iowait, ..] = ticks[..] else { return None };
    let total = ticks.iter().sum::<u64>();
    Some((total - idle - iowait, total))
}

/// Ticks that a process used: fields 14 and 15.
fn process(stat: &str) -> Option<u64> {
    let mut fields = fields(stat)?.skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_idle_nor_own_is_others() {
        assert_eq!(machine("cpu  10 1 5 80 2 1 1 0 0 0\ncpu0 1"), Some((18, 100)));
        assert_eq!(process("7 (a ) b) S 1 7 7 0 -1 0 0 0 0 0 3 4 0 0 20 0"), Some(7));
        let (earlier, later) =
            (Sample { total: 100, busy: 10, own: 5 }, Sample { total: 200, busy: 60, own: 35 });
        assert!((later.others_since(&earlier) - 0.2).abs() < f64::EPSILON);
    }
}
