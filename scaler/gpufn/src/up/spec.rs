//! A deployment that passed every check, and what follows from it. A refused one leaves no trace.

use std::time::Duration;

use gpu_share::annotations::{Replicas, Wish};
use gpu_share::invalid::Invalid;
use gpu_share::latency::Profiles;
use gpu_share::names::{annotation, env};
use gpu_share::units::{Bytes, Nanos};
use scaler::profile::sheet::check_reachable;

use openfaas::checks;
use openfaas::names::{self, FunctionId};
use openfaas::shapes::{FunctionDeployment, Map};

use super::image::{self, Program};

/// A checked deployment.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) id: FunctionId,
    pub(crate) deployment: FunctionDeployment,
    pub(crate) program: Program,
    /// What it asks of the GPU, if anything; its replica bounds are [`Self::replicas`].
    pub(crate) wish: Option<Wish>,
    /// Bounds of the number of replicas.
    pub(crate) replicas: Replicas,
    /// It listens on a port that the image or the deployment fixed, so one replica fits a machine.
    pub(crate) fixed_port: bool,
    /// Idle time after which it has no replica any more.
    pub(crate) zero_after: Option<Duration>,
    /// Longest request; `None` is without limit.
    pub(crate) exec_timeout: Option<Duration>,
    /// RFC 3339.
    pub(crate) created_at: String,
    /// Replicas of an older one are replaced.
    pub(crate) generation: u64,
}

/// What deployments are checked against.
pub(crate) struct Surroundings<'a> {
    /// Memory of the largest GPU.
    pub(crate) gpu_memory: Bytes,
    pub(crate) profiles: &'a Profiles,
    pub(crate) namespaces: &'a [String],
    /// Whether a secret exists in a namespace.
    pub(crate) has_secret: &'a dyn Fn(&str, &str) -> bool,
}

impl Spec {
    /// Checks a deployment; what is wrong first is named.
    pub(crate) fn check(
        mut deployment: FunctionDeployment,
        around: &Surroundings<'_>,
        created_at: String,
        generation: u64,
    ) -> Result<Self, Invalid> {
        if deployment.namespace.is_empty() {
            deployment.namespace = names::DEFAULT_NAMESPACE.into();
        }
        checks::deployment(&deployment)?;
        check_place(&deployment, around)?;
        let program = image::read(&deployment.image, &deployment.env_process)?;
        let (bounds, zero_after) = checks::replicas(&deployment.labels)?;
        let mut wish = Wish::read(&deployment.annotations, around.gpu_memory, around.profiles)?;
        wish.iter().try_for_each(|wish| check_objective(wish, around.profiles))?;
        let own = wish.as_ref().filter(|_| deployment.annotations.contains_key(annotation::REPLICAS));
        let mut replicas = own.map_or(bounds, |wish| wish.replicas);
        let fixed_port = fixed_port(&deployment, &program);
        if fixed_port {
            replicas = Replicas { min: replicas.min.min(1), max: 1 };
        }
        if let Some(wish) = &mut wish {
            wish.replicas = replicas;
        }
        let mut variables = program.env.clone();
        variables.extend(deployment.env_vars.clone());
        let exec_timeout = checks::exec_timeout(&variables)?;
        Ok(Self {
            id: FunctionId { namespace: deployment.namespace.clone(), name: deployment.service.clone() },
            deployment,
            program,
            wish,
            replicas,
            fixed_port,
            zero_after,
            exec_timeout,
            created_at,
            generation,
        })
    }

    /// Replicas of a new function, or of one that a request wakes from zero.
    pub(crate) fn first_replicas(&self) -> u32 {
        self.replicas.min.max(1)
    }

    /// The latest latency that keeps the objective.
    pub(crate) fn slo_bound(&self) -> Option<Nanos> {
        Some(self.wish.as_ref()?.slo?.bound)
    }

    /// What the function's processes get as environment, the deployment's own last.
    pub(crate) fn env(&self) -> Map {
        let merged = self.wish.as_ref().filter(|wish| wish.batch > 1);
        let mut all: Map =
            merged.map(|wish| (env::MAX_BATCH_SIZE.into(), wish.batch.to_string())).into_iter().collect();
        all.extend(self.program.env.clone());
        all.extend(self.deployment.env_vars.clone());
        all
    }
}

/// An objective that the profile says no share can keep is a mistake of whoever wrote it.
fn check_objective(wish: &Wish, profiles: &Profiles) -> Result<(), Invalid> {
    let profile = wish.model.as_ref().and_then(|model| profiles.get(model));
    let Some((slo, profile)) = wish.slo.zip(profile) else { return Ok(()) };
    check_reachable(annotation::SLO, &slo, profile)
}

fn check_place(deployment: &FunctionDeployment, around: &Surroundings<'_>) -> Result<(), Invalid> {
    let namespace = &deployment.namespace;
    if !around.namespaces.contains(namespace) {
        return Err(Invalid::new("namespace", namespace, format!("one of {}", around.namespaces.join(", "))));
    }
    let missing = deployment.secrets.iter().find(|secret| !(around.has_secret)(namespace, secret));
    missing.map_or(Ok(()), |secret| {
        Err(Invalid::new("secrets", secret, format!("secrets that exist in {namespace}")))
    })
}

fn fixed_port(deployment: &FunctionDeployment, program: &Program) -> bool {
    ["upstream_url", "http_upstream_url"]
        .iter()
        .any(|name| deployment.env_vars.contains_key(*name) || program.env.contains_key(*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<Spec, Invalid> {
        let profiles = Profiles::shipped();
        let around = Surroundings {
            gpu_memory: Bytes::gib(16),
            profiles: &profiles,
            namespaces: &["openfaas-fn".to_string()],
            has_secret: &|_, name| name == "known",
        };
        Spec::check(serde_json::from_str(json).unwrap(), &around, String::new(), 1)
    }

    #[test]
    fn the_watchdog_is_told_how_many_inferences_it_may_merge_unless_the_function_says_so_itself() {
        let size = |json: &str| check(json).unwrap().env().get("max_batch_size").cloned();
        let annotations = r#""annotations":{"gpufn.dev/sm":"50","gpufn.dev/batch":"8"}"#;
        let plain = format!(r#"{{"service":"a","image":"/bin/cat",{annotations}}}"#);
        assert_eq!(size(&plain).as_deref(), Some("8"));
        let own = plain.replace("}}", r#"},"envVars":{"max_batch_size":"4"}}"#);
        assert_eq!(size(&own).as_deref(), Some("4"));
        assert_eq!(size(r#"{"service":"a","image":"/bin/cat"}"#), None);
    }

    #[test]
    fn what_is_wrong_is_named_in_one_line() {
        let cases = [
            (r#"{"service":"A","image":"/bin/cat"}"#, "service is \"A\""),
            (r#"{"service":"a","image":"x/y:1"}"#, "image is \"x/y:1\", allowed is file://PATH"),
            (
                r#"{"service":"a","image":"/bin/cat","namespace":"x"}"#,
                "namespace is \"x\", allowed is one of",
            ),
            (r#"{"service":"a","image":"/bin/cat","envVars":{"A=B":"1"}}"#, "envVars is \"A=B\""),
            (r#"{"service":"a","image":"/bin/cat","secrets":["lost"]}"#, "secrets is \"lost\""),
            (r#"{"service":"a","image":"/bin/cat","secrets":["../x"]}"#, "secrets is \"../x\""),
            (r#"{"service":"a","image":"/bin/cat","limits":{"memory":"lots"}}"#, "limits.memory is \"lots\""),
            (r#"{"service":"a","image":"/bin/cat","annotations":{"gpufn.dev/sm":"0"}}"#, "gpufn.dev/sm is"),
            (
                r#"{"service":"a","image":"/bin/cat","labels":{"com.openfaas.scale.min":"-1"}}"#,
                "com.openfaas",
            ),
            (
                r#"{"service":"a","image":"/bin/cat","envVars":{"exec_timeout":"soon"}}"#,
                "envVars.exec_timeout",
            ),
        ];
        for (json, start) in cases {
            let error = check(json).unwrap_err().to_string();
            assert!(error.starts_with(start), "{json}: {error}");
            assert!(!error.contains('\n'));
        }
        let long = format!(r#"{{"service":"a","image":"/bin/cat","labels":{{"k":"{}"}}}}"#, "x".repeat(64));
        assert!(check(&long).is_err());
    }

    #[test]
    fn an_objective_below_the_fastest_configuration_is_refused() {
        let with = |slo: &str| {
            let annotations =
                format!(r#"{{"gpufn.dev/sm":"10","gpufn.dev/model":"vgg16","gpufn.dev/slo":"{slo}"}}"#);
            check(&format!(r#"{{"service":"a","image":"/bin/cat","annotations":{annotations}}}"#))
        };
        let error = with("p95<1ms").unwrap_err().to_string();
        assert!(
            error.contains("cannot be met: fastest is ") && error.ends_with(" ms on a whole GPU"),
            "{error}"
        );
        assert!(with("p95<100ms").is_ok());
    }

    #[test]
    fn labels_bound_the_replicas_unless_annotations_do() {
        let bounds = |json: &str| check(json).unwrap().replicas;
        let labels = r#""labels":{"com.openfaas.scale.min":"2","com.openfaas.scale.max":"4"}"#;
        let plain = bounds(&format!(r#"{{"service":"a","image":"/bin/cat",{labels}}}"#));
        assert_eq!(plain, Replicas { min: 2, max: 4 });
        let both = format!(
            r#"{{"service":"a","image":"/bin/cat",{labels},"annotations":{{"gpufn.dev/sm":"10","gpufn.dev/replicas":"0..3"}}}}"#
        );
        assert_eq!(bounds(&both), Replicas { min: 0, max: 3 });
        assert_eq!(check(&both).unwrap().wish.unwrap().replicas, Replicas { min: 0, max: 3 });
        let zero = r#"{"service":"a","image":"/bin/cat","labels":{"com.openfaas.scale.zero":"true"}}"#;
        assert_eq!(check(zero).unwrap().zero_after, Some(checks::ZERO_DURATION));
        assert_eq!(bounds(zero).min, 0);
    }

    #[test]
    fn a_function_with_a_port_of_its_own_has_one_replica() {
        let json = r#"{"service":"a","image":"/bin/cat","envVars":{"upstream_url":"http://127.0.0.1:5000"}}"#;
        assert_eq!(check(json).unwrap().replicas.max, 1);
    }
}
