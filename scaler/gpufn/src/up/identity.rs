//! Names of functions, namespaces, secrets and environment variables: what is allowed, and how a path names one.

use core::fmt;

use gpu_share::invalid::Invalid;

/// The namespace of functions that name none.
pub(crate) const DEFAULT_NAMESPACE: &str = "openfaas-fn";

/// A function, by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FunctionId {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl fmt::Display for FunctionId {
    /// `name.namespace`, as in paths and metric labels.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

impl FunctionId {
    /// The name, with its namespace only if that is not the default.
    pub(crate) fn short(&self) -> String {
        if self.namespace == DEFAULT_NAMESPACE { self.name.clone() } else { self.to_string() }
    }
}

/// A DNS label (RFC 1123): what a Kubernetes service may be called, so that a function moves there unchanged.
pub(crate) fn dns_label(field: &str, value: &str) -> Result<(), Invalid> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let bytes = value.as_bytes();
    let sound = (1..=63).contains(&bytes.len())
        && bytes.iter().copied().all(inner)
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-');
    sound.then_some(()).ok_or_else(|| {
        Invalid::new(field, value, "1 to 63 lower-case letters, digits and dashes, no dash at either end")
    })
}

/// A secret's name, which is also a file name: a DNS subdomain (RFC 1123), as Kubernetes has it.
pub(crate) fn secret_name(value: &str) -> Result<(), Invalid> {
    let sound = value.len() <= 253 && value.split('.').all(|label| dns_label("", label).is_ok());
    sound
        .then_some(())
        .ok_or_else(|| Invalid::new("name", value, "DNS labels joined by dots, at most 253 characters"))
}

/// A name of an environment variable that a deployment may set.
pub(crate) fn env_name(value: &str) -> Result<(), Invalid> {
    let first = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    let rest = |byte: u8| first(byte) || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let bytes = value.as_bytes();
    let sound = bytes.first().copied().is_some_and(first) && bytes.iter().copied().all(rest);
    if !sound || value.len() > 253 {
        return Err(Invalid::new("envVars", value, "names of letters, digits, _, - and ., no digit first"));
    }
    if value.starts_with("GPUFN_") {
        return Err(Invalid::new("envVars", value, "names that do not start with GPUFN_"));
    }
    Ok(())
}

/// Splits `{name}[.{namespace}]` at the last dot, as the gateway does.
pub(crate) fn split(text: &str) -> (&str, &str) {
    text.rsplit_once('.').unwrap_or((text, DEFAULT_NAMESPACE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_called_as_a_service_may_be() {
        for good in ["a", "resnet50", "a-b", &"x".repeat(63)] {
            assert!(dns_label("service", good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "../x", &"x".repeat(64), "ä"] {
            assert!(dns_label("service", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_namespace_is_what_follows_the_last_dot() {
        assert_eq!(split("fn"), ("fn", DEFAULT_NAMESPACE));
        assert_eq!(split("fn.staging"), ("fn", "staging"));
        assert_eq!(split("a.b.staging"), ("a.b", "staging"));
    }

    #[test]
    fn a_variable_that_would_break_the_environment_or_forge_a_binding_is_refused() {
        assert!(env_name("write_debug").is_ok());
        for bad in ["", "1A", "A=B", "A\0", "A B", "GPUFN_BINDING"] {
            assert!(env_name(bad).is_err(), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_secret_name_that_is_allowed_never_leaves_its_folder(name in "\\PC{0,20}") {
            if secret_name(&name).is_ok() {
                proptest::prop_assert!(!name.contains('/') && name != "." && name != "..");
            }
        }
    }
}
