//! Decisions as lines for people who watch: what happens now, and not too much of it.
//!
//! Pure: it is told what was decided and when, and says what is worth a line.

use std::collections::BTreeMap;

use crate::view::DecisionRecord;

/// Smallest change of a quota that is worth a line, percentage points.
const LARGE: f64 = 10.0;

/// Shortest time between two lines on the quota of one function, seconds.
const APART_S: f64 = 3.0;

/// What was told so far.
#[derive(Debug, Default)]
pub(super) struct Story {
    last_grant: BTreeMap<String, f64>,
}

impl Story {
    /// The line on `decision`, made `at_s` seconds into the load on a replica with process `pid`, if it is worth one.
    pub(super) fn line(&mut self, decision: &DecisionRecord, at_s: f64, pid: Option<u32>) -> Option<String> {
        let DecisionRecord { action, function, from, to, reason, .. } = decision;
        let change = |unit: &str| match (from, to) {
            (Some(from), Some(to)) => format!("{from:.0} → {to:.0}{unit}"),
            (None, Some(to)) => format!("{to:.0}{unit}"),
            _ => String::new(),
        };
        let process = pid.map_or_else(String::new, |pid| format!("(pid {pid} unchanged)"));
        let (what, why) = match action.as_str() {
            "grant" => {
                let size = (to.unwrap_or_default() - from.unwrap_or_default()).abs();
                let last = self.last_grant.get(function).copied().unwrap_or(f64::NEG_INFINITY);
                if size < LARGE || at_s - last < APART_S {
                    return None;
                }
                self.last_grant.insert(function.clone(), at_s);
                (change(" %"), process)
            }
            "park" => ("its time is free for others".to_string(), process),
            "wake" => (change(" %"), process),
            "scale" => (change(" replicas"), reason.clone()),
            "died" => (String::new(), reason.clone()),
            _ => return None,
        };
        let line = format!("{at_s:>6.1} s  {action:<6} {function:<14} {what}  {why}");
        Some(line.trim_end().chars().filter(|letter| !letter.is_control()).take(110).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(action: &str, from: f64, to: f64) -> DecisionRecord {
        DecisionRecord {
            action: action.into(),
            function: "resnet50".into(),
            from: Some(from),
            to: Some(to),
            reason: "6 requests a second\nmore".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_large_change_is_told_with_its_process_and_a_small_or_quick_one_is_not() {
        let mut story = Story::default();
        let line = story.line(&decision("grant", 20.0, 45.0), 1.0, Some(4711)).unwrap();
        assert_eq!(line, "   1.0 s  grant  resnet50       20 → 45 %  (pid 4711 unchanged)");
        assert_eq!(story.line(&decision("grant", 45.0, 50.0), 9.0, None), None);
        assert_eq!(story.line(&decision("grant", 45.0, 90.0), 2.0, None), None);
        assert!(story.line(&decision("grant", 45.0, 90.0), 9.0, None).is_some());
    }

    #[test]
    fn scaling_is_always_told_in_one_line_with_its_reason() {
        let mut story = Story::default();
        for _ in 0..2 {
            let line = story.line(&decision("scale", 1.0, 2.0), 1.0, None).unwrap();
            assert_eq!(line, "   1.0 s  scale  resnet50       1 → 2 replicas  6 requests a secondmore");
        }
        assert!(story.line(&decision("park", 30.0, 0.0), 1.0, Some(1)).is_some());
        assert_eq!(story.line(&decision("start", 0.0, 1.0), 1.0, None), None);
    }
}
