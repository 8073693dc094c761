//! Whether and when a function that ended by itself starts again: a pure decision, in the words of Kubernetes and Docker.

use std::time::Duration;

use gpu_share::invalid::Invalid;

/// Pause before the first restart; it doubles with each that follows.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A function that has run for this long is taken for a good one: the next pause is the first again.
const GOOD_RUN: Duration = Duration::from_mins(10);

/// After which ends the function starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Never,
    OnFailure,
    Always,
}

/// What happens when the function ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RestartPolicy {
    when: When,
    /// Most restarts in a row; `None` for any number.
    most: Option<u32>,
    /// Whether a function that ended with status 0 is left alone, as of-watchdog does.
    ignores_success: bool,
}

/// What to do about a function that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Start it again after this pause.
    Restart(Duration),
    /// The watchdog ends too.
    GiveUp,
    /// Go on without it.
    Ignore,
}

impl RestartPolicy {
    /// Reads `no`, `on-failure`, `on-failure:3` or `always`, and Kubernetes' `Never`, `OnFailure` and `Always`.
    pub(crate) fn read(value: Option<&str>) -> Result<Self, Invalid> {
        let Some(value) = value else {
            return Ok(Self { when: When::Never, most: None, ignores_success: false });
        };
        let invalid = || Invalid::new("restart_policy", value, "no, on-failure, on-failure:COUNT or always");
        let (name, most) = match value.split_once(':') {
            Some((name, count)) => (name, Some(count.parse::<u32>().map_err(|_| invalid())?)),
            None => (value, None),
        };
        let when = match name {
            "no" | "Never" => When::Never,
            "on-failure" | "OnFailure" => When::OnFailure,
            "always" | "Always" => When::Always,
            _ => return Err(invalid()),
        };
        if most.is_some() && when != When::OnFailure {
            return Err(invalid());
        }
        Ok(Self { when, most, ignores_success: false })
    }

    /// The same, but an end with status 0 is ignored.
    pub(crate) fn ignoring_success(self) -> Self {
        Self { ignores_success: true, ..self }
    }

    /// What to do about a function that has ended: well or not, after `ran`, and after `restarts` restarts in a row.
    pub(crate) fn decide(self, ended_well: bool, ran: Duration, restarts: u32) -> Decision {
        let wanted = match self.when {
            When::Never => false,
            When::OnFailure => !ended_well,
            When::Always => true,
        };
        let restarts = if ran >= GOOD_RUN { 0 } else { restarts };
        if wanted && self.most.is_none_or(|most| restarts < most) {
            let pause = FIRST_PAUSE.saturating_mul(1 << restarts.min(16));
            return Decision::Restart(pause.min(LONGEST_PAUSE));
        }
        if ended_well && self.ignores_success { Decision::Ignore } else { Decision::GiveUp }
    }

    /// Restarts in a row after one more, if the last run took `ran`.
    pub(crate) fn count(ran: Duration, restarts: u32) -> u32 {
        if ran >= GOOD_RUN { 1 } else { restarts.saturating_add(1) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(value: &str) -> RestartPolicy {
        RestartPolicy::read(Some(value)).unwrap()
    }

    #[test]
    fn the_words_of_docker_and_of_kubernetes_are_understood() {
        assert_eq!(RestartPolicy::read(None).unwrap(), policy("no"));
        assert_eq!(policy("Never"), policy("no"));
        assert_eq!(policy("OnFailure"), policy("on-failure"));
        assert_eq!(policy("Always"), policy("always"));
        for value in ["", "yes", "no:3", "always:3", "on-failure:", "on-failure:-1", "on-failure:x"] {
            let error = RestartPolicy::read(Some(value)).unwrap_err().to_string();
            assert!(error.starts_with("restart_policy is "), "{error}");
        }
    }

    #[test]
    fn only_what_the_policy_names_is_started_again() {
        let second = Duration::from_secs(1);
        let first = Decision::Restart(FIRST_PAUSE);
        for (value, well, wanted) in [
            ("no", true, Decision::GiveUp),
            ("no", false, Decision::GiveUp),
            ("on-failure", true, Decision::GiveUp),
            ("on-failure", false, first),
            ("always", true, first),
            ("always", false, first),
        ] {
            assert_eq!(policy(value).decide(well, second, 0), wanted, "{value} {well}");
        }
        assert_eq!(policy("on-failure:2").decide(false, second, 1), Decision::Restart(FIRST_PAUSE * 2));
        assert_eq!(policy("on-failure:2").decide(false, second, 2), Decision::GiveUp);
        assert_eq!(policy("on-failure:2").decide(false, GOOD_RUN, 2), first);
        assert_eq!(policy("no").ignoring_success().decide(true, second, 0), Decision::Ignore);
        assert_eq!(policy("no").ignoring_success().decide(false, second, 0), Decision::GiveUp);
    }

    proptest! {
        #[test]
        fn pauses_grow_and_are_bounded(restarts in 0u32..1000, ran in 0u64..600) {
            let pause = |n| match policy("always").decide(false, Duration::from_secs(ran), n) {
                Decision::Restart(pause) => pause,
                other => panic!("{other:?}"),
            };
            prop_assert!(pause(restarts) <= pause(restarts + 1) && pause(restarts) <= LONGEST_PAUSE);
        }
    }
}
