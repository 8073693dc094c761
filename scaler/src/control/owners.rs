//! Who else scales a function, and what is left to us then: one owner for each thing.
//!
//! Owns those rules. Replica counts are whose a `ScaledObject` or an autoscaler is that targets the Deployment; what pauses it
//! holds for grants too; what resizes or replaces its pods (VPA) leaves no grants to us. Pure.

use std::collections::BTreeMap;

use gpu_share::annotations::Scaling;
use serde::Serialize;

/// KEDA's annotations on a `ScaledObject` (KEDA's documentation, "Pausing autoscaling").
const PAUSED: &str = "autoscaling.keda.sh/paused";
const PAUSED_REPLICAS: &str = "autoscaling.keda.sh/paused-replicas";
const PAUSED_IN: &str = "autoscaling.keda.sh/paused-scale-in";
const PAUSED_OUT: &str = "autoscaling.keda.sh/paused-scale-out";

/// What kind of object targets a Deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    /// KEDA's.
    ScaledObject,
    /// Kubernetes' own, by whatever metric.
    HorizontalPodAutoscaler,
    /// The one that resizes or evicts pods.
    VerticalPodAutoscaler,
    /// Whoever made the Deployment and keeps it as it is: a Knative revision, for one.
    Controller,
}

/// Somebody else who scales a function.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Owner {
    /// What it is.
    pub kind: Kind,
    /// Its name; it is in the namespace of the Deployment.
    pub name: String,
    /// Which directions it holds still.
    pub pause: Pause,
}

/// Which directions are held still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Pause {
    /// Nothing grows.
    pub growth: bool,
    /// Nothing shrinks.
    pub shrinkage: bool,
}

impl Pause {
    /// What the annotations of a `ScaledObject` say.
    pub fn of(annotations: &BTreeMap<String, String>) -> Self {
        let is = |key| annotations.get(key).is_some_and(|value| is_true(value));
        let all = annotations.contains_key(PAUSED_REPLICAS) || is(PAUSED);
        Self { growth: all || is(PAUSED_OUT), shrinkage: all || is(PAUSED_IN) }
    }
}

/// As KEDA reads it: what is no word for either counts as true, since somebody meant something by it.
fn is_true(value: &str) -> bool {
    !["0", "f", "F", "FALSE", "false", "False"].contains(&value)
}

/// What of a function may be changed, and why not the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Grants may rise.
    pub raise: Result<(), String>,
    /// Grants may fall.
    pub lower: Result<(), String>,
    /// The number of replicas may be written.
    pub replicas: Result<(), String>,
}

/// What is left to us of a function that allows `scaling`; whether it `names_replicas` itself is whether somebody wants them to
/// be kept within bounds.
pub fn left(scaling: Scaling, names_replicas: bool, owners: &[Owner]) -> Left {
    let of = |kind: Kind| owners.iter().find(|owner| owner.kind == kind);
    let policy = |word| Err(format!("gpufn.dev/policy is {word}"));
    let grants = |held: fn(&Pause) -> bool| match scaling {
        Scaling::Off => policy("off"),
        Scaling::Horizontal => policy("horizontal"),
        Scaling::Hybrid | Scaling::Vertical => {
            if let Some(owner) = of(Kind::VerticalPodAutoscaler) {
                return Err(format!("the VerticalPodAutoscaler {} resizes its pods", owner.name));
            }
            match owners.iter().find(|owner| held(&owner.pause)) {
                Some(owner) => Err(format!("the ScaledObject {} is paused", owner.name)),
                None => Ok(()),
            }
        }
    };
    let replicas = match scaling {
        Scaling::Off => policy("off"),
        Scaling::Vertical => policy("vertical"),
        Scaling::Hybrid | Scaling::Horizontal => {
            let owner = [Kind::ScaledObject, Kind::HorizontalPodAutoscaler, Kind::Controller]
                .into_iter()
                .find_map(of);
            match owner {
                Some(owner) => Err(format!("replicas are the {:?} {}'s", owner.kind, owner.name)),
                None if names_replicas => Ok(()),
                None => Err("it has no gpufn.dev/replicas".into()),
            }
        }
    };
    Left { raise: grants(|pause| pause.growth), lower: grants(|pause| pause.shrinkage), replicas }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(kind: Kind, annotations: &[(&str, &str)]) -> Owner {
        let annotations = annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Owner { kind, name: "x".into(), pause: Pause::of(&annotations) }
    }

    /// Whether grants may rise and fall, and replicas may be written.
    fn may(scaling: Scaling, owners: &[Owner]) -> (bool, bool, bool) {
        let left = left(scaling, true, owners);
        (left.raise.is_ok(), left.lower.is_ok(), left.replicas.is_ok())
    }

    #[test]
    fn the_function_s_own_word_comes_first() {
        assert_eq!(may(Scaling::Hybrid, &[]), (true, true, true));
        assert_eq!(may(Scaling::Vertical, &[]), (true, true, false));
        assert_eq!(may(Scaling::Horizontal, &[]), (false, false, true));
        assert_eq!(may(Scaling::Off, &[]), (false, false, false));
        assert!(left(Scaling::Hybrid, false, &[]).replicas.is_err(), "nobody asked for it");
    }

    #[test]
    fn replicas_have_one_owner() {
        for kind in [Kind::ScaledObject, Kind::HorizontalPodAutoscaler, Kind::Controller] {
            assert_eq!(may(Scaling::Hybrid, &[owner(kind, &[])]), (true, true, false), "{kind:?}");
        }
        let said = left(Scaling::Hybrid, true, &[owner(Kind::ScaledObject, &[])]).replicas.unwrap_err();
        assert_eq!(said, "replicas are the ScaledObject x's");
    }

    #[test]
    fn what_pauses_keda_holds_grants_too() {
        let cases = [
            ((PAUSED, "true"), (false, false)),
            ((PAUSED, "maybe"), (false, false)),
            ((PAUSED, "false"), (true, true)),
            ((PAUSED_REPLICAS, "3"), (false, false)),
            ((PAUSED_IN, "true"), (true, false)),
            ((PAUSED_OUT, "1"), (false, true)),
            ((PAUSED_OUT, "0"), (true, true)),
        ];
        for (annotation, (raise, lower)) in cases {
            let owners = [owner(Kind::ScaledObject, &[annotation])];
            assert_eq!(may(Scaling::Hybrid, &owners), (raise, lower, false), "{annotation:?}");
        }
    }

    #[test]
    fn who_resizes_pods_is_left_alone() {
        assert_eq!(may(Scaling::Hybrid, &[owner(Kind::VerticalPodAutoscaler, &[])]), (false, false, true));
    }
}
