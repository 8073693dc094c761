//! Names of functions, namespaces, secrets and environment variables: what is allowed, and how a path names one.

use core::fmt;

use gpu_share::invalid::Invalid;

/// The namespace of functions that name none.
pub const DEFAULT_NAMESPACE: &str = "openfaas-fn";

/// A function, by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionId {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl fmt::Display for FunctionId {
    /// `name.namespace`, as in paths and metric labels.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

impl FunctionId {
    /// The name, with its namespace only if that is not the default.
    pub fn short(&self) -> String {
        if self.namespace == DEFAULT_NAMESPACE { self.name.clone() } else { self.to_string() }
    }
}

/// A DNS label (RFC 1123): what a Kubernetes service may be called, so that a function moves there unchanged.
pub fn dns_label(field: &str, value: &str) -> Result<(), Invalid> {
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
pub fn secret_name(value: &str) -> Result<(), Invalid> {
    let sound = value.len() <= 253 && value.split('.').all(|label| dns_label("", label).is_ok());
    sound
        .then_some(())
        .ok_or_else(|| Invalid::new("name", value, "DNS labels joined by dots, at most 253 characters"))
}

/// A name of an environment variable that a deployment may set.
pub fn env_name(value: &str) -> Result<(), Invalid> {
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

/// Name of a label or an annotation: up to 63 letters, digits, `-`, `_` and `.`, and a DNS subdomain and a slash before it or
/// not, as Kubernetes has it.
pub fn qualified(field: &str, value: &str) -> Result<(), Invalid> {
    let (prefix, name) = value.split_once('/').map_or((None, value), |(prefix, name)| (Some(prefix), name));
    let sound = is_token(name) && prefix.is_none_or(|prefix| secret_name(prefix).is_ok());
    sound.then_some(()).ok_or_else(|| {
        let allowed =
            "[DOMAIN/]NAME with up to 63 letters, digits, -, _ and ., a letter or digit at both ends";
        Invalid::new(field, value, allowed)
    })
}

/// Value of a label: nothing, or up to 63 letters, digits, `-`, `_` and `.`, as Kubernetes has it.
pub fn label_value(field: &str, value: &str) -> Result<(), Invalid> {
    let sound = value.is_empty() || is_token(value);
    sound.then_some(()).ok_or_else(|| {
        let allowed = "up to 63 letters, digits, -, _ and ., a letter or digit at both ends";
        Invalid::new(field, value, allowed)
    })
}

fn is_token(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && ends.iter().flatten().all(|byte| byte.is_ascii_alphanumeric())
}

/// A reference to a container image: letters, digits and `._-/:@`, so that nobody reads more into it.
pub fn image(value: &str) -> Result<(), Invalid> {
    let sound = (1..=1024).contains(&value.len())
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte));
    sound.then_some(()).ok_or_else(|| {
        Invalid::new("image", value, "a reference such as registry.example/name:tag or …@sha256:…")
    })
}

/// Splits `{name}[.{namespace}]` at the last dot, as the gateway does; without one it is of `namespace`.
pub fn split<'a>(text: &'a str, namespace: &'a str) -> (&'a str, &'a str) {
    text.rsplit_once('.').unwrap_or((text, namespace))
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
        assert_eq!(split("fn", DEFAULT_NAMESPACE), ("fn", DEFAULT_NAMESPACE));
        assert_eq!(split("fn.staging", DEFAULT_NAMESPACE), ("fn", "staging"));
        assert_eq!(split("a.b.staging", DEFAULT_NAMESPACE), ("a.b", "staging"));
    }

    #[test]
    fn a_variable_that_would_break_the_environment_or_forge_a_binding_is_refused() {
        assert!(env_name("write_debug").is_ok());
        for bad in ["", "1A", "A=B", "A\0", "A B", "GPUFN_BINDING"] {
            assert!(env_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn labels_are_named_as_kubernetes_has_it() {
        for good in ["a", "app.kubernetes.io/name", "com.openfaas.scale.min", "A_b-c.9", "gpufn.dev/sm"] {
            assert!(qualified("label name", good).is_ok(), "{good}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "-a", "a-", "A.b/c d", "UPPER/a", "a b", "a\n", &"x".repeat(64)]
        {
            assert!(qualified("label name", bad).is_err(), "{bad:?}");
        }
        for good in ["", "1.50", "true", "fn-b"] {
            assert!(label_value("label a", good).is_ok(), "{good}");
        }
        for bad in ["a b", "-", "é", "$(x)", &"x".repeat(64)] {
            assert!(label_value("label a", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_image_is_a_reference_and_nothing_else() {
        for good in ["i", "registry.local:5000/demo/fn-a:1", "a/b@sha256:0123"] {
            assert!(image(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "${REGISTRY}/a", "a;b", "a\nb", &"x".repeat(1025)] {
            assert!(image(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_allowed_as_a_name_is_safe_in_a_path_and_a_selector(text in "\\PC{0,20}|[a-z/.=,!() -]{0,20}") {
            let is_plain = |text: &str| !text.contains(|c: char| c.is_whitespace() || c.is_control() || "=,!()\"'`$;&|<>".contains(c));
            if qualified("", &text).is_ok() || label_value("", &text).is_ok() || dns_label("", &text).is_ok() {
                proptest::prop_assert!(is_plain(&text));
            }
        }

        #[test]
        fn a_secret_name_that_is_allowed_never_leaves_its_folder(name in "\\PC{0,20}") {
            if secret_name(&name).is_ok() {
                proptest::prop_assert!(!name.contains('/') && name != "." && name != "..");
            }
        }
    }
}
