//! When there are not enough GPUs for all: who gives replicas back, and who may have more.
//!
//! Owns when. Who has how many is [`pool::divide`]'s to say. How large the pool is nobody tells: where a replica finds no
//! room, it is what all replicas have that there are, whatever kinds of GPUs and holes between shares there may be.

use std::collections::BTreeMap;

use gpu_share::annotations::Scaling;
use gpu_share::units::{Area, Nanos};

use super::Known;
use crate::plan::pool::{self, Claim};
use crate::policy::FunctionView;

/// A function has found no room for so long before others give replicas back for it: one that ends may make room.
const PATIENCE: Nanos = Nanos::from_secs(1);

/// Whether there is a shortage, and what was done about it.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    /// Some function has a most.
    is_on: bool,
    /// Since when somebody has had less than its part.
    since: Option<Nanos>,
    /// When replicas were given back last.
    given: Option<Nanos>,
}

/// One function that takes part.
struct Member<'a> {
    view: &'a FunctionView,
    claim: Claim,
    present: u32,
    /// It wants more, and there is no room.
    lacks: bool,
}

impl Shortage {
    /// Says to each function how many replicas it may have at most, until it is said again.
    ///
    /// Who has more than its part gives it back when somebody who has less finds no room; again only when what was started
    /// for that can be ready, since what it brings is seen only then. Where all have their parts, whoever is next in line may
    /// try for one more: there may be room again.
    pub(super) fn look(
        &mut self,
        now: Nanos,
        views: &[FunctionView],
        functions: &mut BTreeMap<String, Known>,
    ) {
        let members: Vec<Member<'_>> = views.iter().filter_map(|view| member(view, functions)).collect();
        if !members.iter().any(|member| member.lacks) {
            if core::mem::take(self).is_on {
                for known in functions.values_mut() {
                    known.function.set_most(None);
                }
            }
            return;
        }
        self.is_on = true;
        let claims: Vec<Claim> = members.iter().map(|member| member.claim).collect();
        let there_is = members.iter().map(|member| bound(member.view)).sum();
        let parts = pool::divide(there_is, &claims);
        let short: Vec<_> = members
            .iter()
            .zip(&parts)
            .filter(|(member, part)| member.lacks && member.present < **part)
            .map(|(member, _)| member.view.cold_start)
            .collect();
        let most = match short.iter().max() {
            Some(&starts_in) if self.is_due(now, starts_in) => parts,
            Some(_) => at_least_present(parts, &members),
            None => {
                self.since = None;
                let lacking = members.iter().filter(|member| member.lacks);
                let one = lacking.map(|member| member.claim.each).max().unwrap_or_default();
                at_least_present(pool::divide(there_is + one, &claims), &members)
            }
        };
        for (member, most) in members.iter().zip(most) {
            if let Some(known) = functions.get_mut(&member.view.name) {
                known.function.set_most(Some(most));
            }
        }
    }

    /// Whether replicas are given back now, for some that can be ready after `starts_in`.
    fn is_due(&mut self, now: Nanos, starts_in: Nanos) -> bool {
        let since = *self.since.get_or_insert(now);
        let is_due = now.since(since) >= PATIENCE
            && self.given.is_none_or(|given| now.since(given) >= starts_in.max(PATIENCE));
        if is_due {
            self.given = Some(now);
        }
        is_due
    }
}

/// Nothing of a function whose number of replicas is not the policy's to choose.
fn member<'a>(view: &'a FunctionView, functions: &BTreeMap<String, Known>) -> Option<Member<'a>> {
    if !matches!(view.wish.scaling, Scaling::Hybrid | Scaling::Horizontal) {
        return None;
    }
    let (present, least) = (super::counts::present(view), super::counts::least(view));
    let wanted = functions.get(&view.name)?.function.counts().wanted().max(least);
    let each = view.wish.share.dominant(view.gpu_memory);
    let claim = Claim { each, least, wanted, priority: view.wish.priority };
    Some(Member { view, claim, present, lacks: view.no_room && wanted > present })
}

/// What a function's replicas cost at their floors, those included that finish what they have.
fn bound(view: &FunctionView) -> Area {
    view.replicas.iter().map(|replica| replica.share.dominant(view.gpu_memory)).sum()
}

fn at_least_present(parts: Vec<u32>, members: &[Member<'_>]) -> Vec<u32> {
    parts.into_iter().zip(members).map(|(part, member)| part.max(member.present)).collect()
}
