//! Published runs as their controller recorded them: a policy that decides at each moment what was decided there.
//!
//! It tells the serving of a run from the deciding: what the simulation is off by under these pods is no fault of a rule.

use std::collections::BTreeMap;

use gpu_share::annotations::Wish;
use gpu_share::invalid::Invalid;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos, Quota, SmShare};
use scaler::policy::{Action, Decision, FunctionView, Policy, ReplicaState, ReplicaView};

/// Pods of the published runs.
const PODS: &str = include_str!("../../../../scenarios/published-pods.csv");
/// Columns of that file.
const HEAD: &str = "run,t_s,pods,sm,quota";

/// So many equal pods from one moment on.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Step {
    /// Seconds since the record began, which is before the first request.
    at: f64,
    pods: usize,
    sm: SmShare,
    quota: Quota,
}

/// The policy `recorded`.
#[derive(Clone, Debug)]
pub(super) struct Recorded {
    /// Seconds from the beginning of the record to the first request.
    pub(super) lead: f64,
    steps: Vec<Step>,
}

impl Recorded {
    /// What was recorded of `run`, if anything.
    pub(super) fn of(run: &str) -> Result<Option<Self>, Invalid> {
        Ok(read(PODS)?.remove(run).map(|mut steps| {
            let began = steps.first().map_or(0.0, |step| step.at);
            for step in &mut steps {
                step.at -= began;
            }
            Self { lead: -began, steps }
        }))
    }

    fn step(&self, now: Nanos) -> Option<Step> {
        let past = self.steps.iter().take_while(|step| step.at <= now.secs_f64());
        past.last().copied()
    }
}

impl Policy for Recorded {
    fn name(&self) -> &'static str {
        "recorded"
    }

    fn share(&self, wish: &Wish, _: Bytes) -> Share {
        wish.share
    }

    fn places(&self) -> bool {
        true
    }

    fn decide(&mut self, now: Nanos, functions: &[FunctionView]) -> Vec<Decision> {
        let Some((step, view)) = self.step(now).zip(functions.first()) else { return Vec::new() };
        let mut pods: Vec<_> =
            view.replicas.iter().filter(|pod| pod.state != ReplicaState::Draining).collect();
        pods.sort_by_key(|pod| core::cmp::Reverse(pod.age));
        let stops = pods.iter().skip(step.pods).map(|pod| Action::Stop { replica: pod.id.clone() });
        let stay = pods.iter().take(step.pods);
        let resized = stay.filter(|pod| pod.grant != step.quota);
        let grants = resized.map(|pod| Action::Grant { replica: pod.id.clone(), quota: step.quota });
        let missing = step.pods.saturating_sub(pods.len());
        let share = Share::new(step.sm, step.quota, Quota::WHOLE, view.wish.share.memory);
        let starts = share.into_iter().flat_map(|share| {
            let gpus = first_fit(&pods, missing, share.memory, view.gpu_memory);
            gpus.into_iter().map(move |gpu| Action::Start { function: view.name.clone(), share, gpu })
        });
        stops.chain(grants).chain(starts).map(|action| Decision { action, reason: String::new() }).collect()
    }
}

/// GPUs for `missing` more pods: each the first one with memory left. Where the pods were is not recorded.
fn first_fit(pods: &[&ReplicaView], missing: usize, memory: Bytes, card: Bytes) -> Vec<u32> {
    let per_card = usize::try_from(card.0 / memory.0.max(1)).unwrap_or(usize::MAX).max(1);
    let mut on: BTreeMap<u32, usize> = BTreeMap::new();
    for pod in pods {
        *on.entry(pod.gpu).or_default() += 1;
    }
    let mut gpu = 0;
    let next = core::iter::repeat_with(|| {
        while on.get(&gpu).copied().unwrap_or_default() >= per_card {
            gpu += 1;
        }
        *on.entry(gpu).or_default() += 1;
        gpu
    });
    next.take(missing).collect()
}

/// Steps by run, in their order, at seconds since the first request.
fn read(text: &str) -> Result<BTreeMap<String, Vec<Step>>, Invalid> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
    let head = lines.next().map_or("", |(_, line)| line);
    if head != HEAD {
        return Err(Invalid::new("head of the pods", head, HEAD));
    }
    let mut runs: BTreeMap<String, Vec<Step>> = BTreeMap::new();
    for (index, line) in lines {
        let allowed = "a run, seconds, a number of pods, an SM share and a quota from 1 to 100 percent";
        let bad = || Invalid::new(format!("line {} of the pods", index + 1), line, allowed);
        let cells: Vec<_> = line.split(',').collect();
        let &[run, at, pods, sm, quota] = cells.as_slice() else { return Err(bad()) };
        let percent = |cell: &str| cell.parse::<u8>().map_err(|_| bad());
        let step = Step {
            at: at.parse().ok().filter(|at: &f64| at.is_finite()).ok_or_else(bad)?,
            pods: pods.parse().map_err(|_| bad())?,
            sm: SmShare::from_percent(percent(sm)?)?,
            quota: Quota::from_percent(percent(quota)?)?,
        };
        let steps = runs.entry(run.into()).or_default();
        if steps.last().is_some_and(|last| last.at >= step.at) {
            return Err(bad());
        }
        steps.push(step);
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_last_holds_until_the_next_record() {
        let percent = |percent| Quota::from_percent(percent).unwrap();
        let percents = [30, 20, 30, 40, 40];
        let recorded = Recorded::of("has-resnet-standard-5").unwrap().unwrap();
        let quota = |since: f64| recorded.step(Nanos::from_secs_f64(recorded.lead + since)).unwrap().quota;
        assert_eq!([-14.0, 40.0, 51.0, 53.0, 400.0].map(quota), percents.map(percent));
        assert!(Recorded::of("kserve-resnet-standard-1").unwrap().is_none());
    }

    #[test]
    fn pods_fill_one_gpu_after_the_other() {
        assert_eq!(first_fit(&[], 5, Bytes::gib(4), Bytes::gib(16)), [0, 0, 0, 0, 1]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let lines = ["a,0,1,30", "a,x,1,30,30", "a,0,1,0,30", "a,0,1,30,30\na,0,2,30,30"];
        for line in lines {
            let text = format!("{HEAD}\n{line}\n");
            assert!(read(&text).is_err(), "{line}");
        }
        assert!(read("run,t_s\n").unwrap_err().to_string().starts_with("head of the pods"));
    }
}
