//! Name of the extended resource, checked as Kubernetes checks it. Pure.

use core::fmt;
use core::str::FromStr;

use gpu_share::invalid::Invalid;

/// Name of an extended resource, such as `gpufn.dev/gpu`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource(String);

/// What a quota's name has before a resource's: `requests.gpufn.dev/gpu` has to be a name too.
const QUOTA_PREFIX: usize = "requests.".len();

impl FromStr for Resource {
    type Err = Invalid;

    /// A DNS subdomain outside Kubernetes' own, a slash, and a name.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let sound = text.split_once('/').is_some_and(|(domain, name)| is_domain(domain) && is_name(name));
        if sound {
            return Ok(Self(text.into()));
        }
        let allowed = "a domain other than Kubernetes' own, a slash and a name, such as gpufn.dev/gpu";
        Err(Invalid::new("--resource", text, allowed))
    }
}

impl Resource {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_domain(domain: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    domain.len() + QUOTA_PREFIX <= 253 && !own && domain.split('.').all(label)
}

fn is_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let outer = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && outer(name.bytes().next())
        && outer(name.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kubernetes_takes_are_taken() {
        for name in ["gpufn.dev/gpu", "example.com/GPU-share_1.x", "a/b"] {
            assert_eq!(name.parse::<Resource>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_that_kubernetes_refuses_are_refused_in_one_line() {
        let long = format!("{}/gpu", "a".repeat(64));
        let names = [
            "",
            "gpu",
            "/gpu",
            "gpufn.dev/",
            "a/b/c",
            "kubernetes.io/gpu",
            "x.kubernetes.io/gpu",
            "gpufn.dev/-gpu",
            "GPUFN.dev/gpu",
            "gpufn..dev/gpu",
            "gpufn.dev/g pu",
            "gpufn.dev/gpu\n",
            &long,
        ];
        for name in names {
            let error = name.parse::<Resource>().unwrap_err().to_string();
            assert!(error.starts_with("--resource is ") && !error.contains('\n'), "{error}");
        }
    }
}
