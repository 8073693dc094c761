//! Reads a `stack.yaml` as faas-cli 0.18 does, and makes of it what is sent to `/system/functions`.
//!
//! Pure: environment and files are looked up through the caller. It never builds and never needs a template.

use std::collections::BTreeMap;

use gpu_share::invalid::Invalid;
use serde::{Deserialize, Serialize};

mod substitute;

/// A function as it is deployed (`FunctionDeployment` of the OpenFaaS provider API).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FunctionDeployment {
    /// Its name.
    pub service: String,
    /// Its image.
    pub image: String,
    /// Its namespace, the provider's default if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The command that the watchdog starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_process: Option<String>,
    /// Its environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env_vars: BTreeMap<String, String>,
    /// Constraints of its place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<String>,
    /// Names of its secrets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// Its labels; sent also when empty, as faas-cli does.
    pub labels: BTreeMap<String, String>,
    /// Its annotations; sent also when empty.
    pub annotations: BTreeMap<String, String>,
    /// The most it may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Resources>,
    /// What is kept for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Resources>,
    /// Whether its files can only be read.
    #[serde(skip_serializing_if = "is_false")]
    pub read_only_root_filesystem: bool,
}

/// Memory and CPU as Kubernetes quantities; faas-cli drops every other resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Such as `256Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Such as `500m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // The signature that serde asks for.
fn is_false(value: &bool) -> bool {
    !value
}

#[derive(Deserialize)]
struct Document {
    version: Option<String>,
    provider: Option<Provider>,
    functions: Option<BTreeMap<String, Function>>,
}

#[derive(Deserialize)]
struct Provider {
    name: Option<String>,
}

/// Scalars of a map, as written. An `Option` because YAML's `null` becomes the empty text, while `"null"` does not.
type Scalars = Option<BTreeMap<String, Option<String>>>;

#[derive(Deserialize)]
struct Function {
    image: Option<String>,
    namespace: Option<String>,
    fprocess: Option<String>,
    environment: Scalars,
    environment_file: Option<Vec<String>>,
    labels: Scalars,
    annotations: Scalars,
    secrets: Option<Vec<String>>,
    constraints: Option<Vec<String>>,
    limits: Option<Resources>,
    requests: Option<Resources>,
    #[serde(default)]
    readonly_root_filesystem: bool,
    #[serde(rename = "<<")]
    merged: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct EnvironmentFile {
    environment: Scalars,
}

/// The functions of a stack file, by name.
///
/// `variable` looks up `${NAME}`; `file` reads an environment file, whose path is as written in the stack file.
pub fn read(
    text: &str,
    variable: impl Fn(&str) -> Option<String>,
    file: impl Fn(&str) -> std::io::Result<String>,
) -> Result<Vec<FunctionDeployment>, Invalid> {
    let text = substitute::substitute(text, variable)?;
    let document: Document = parse("stack file", &text)?;
    if let Some(version) = document.version.filter(|version| version != "1.0") {
        return Err(Invalid::new("version", version, "1.0"));
    }
    let provider = document.provider.and_then(|provider| provider.name).unwrap_or_default();
    if provider != "openfaas" {
        return Err(Invalid::new("provider.name", provider, "openfaas"));
    }
    let functions = document.functions.unwrap_or_default();
    if functions.is_empty() {
        return Err(Invalid::new("functions", "", "at least one function"));
    }
    functions.into_iter().map(|(name, function)| deployment(name, function, &file)).collect()
}

fn deployment(
    name: String,
    function: Function,
    file: impl Fn(&str) -> std::io::Result<String>,
) -> Result<FunctionDeployment, Invalid> {
    let field = |key: &str| format!("function {name}: {key}");
    if function.merged.is_some() {
        return Err(Invalid::new(field("<<"), "a merge key", "every key written out"));
    }
    let image = function.image.unwrap_or_default();
    if image.trim().is_empty() {
        return Err(Invalid::new(field("image"), image, "a name of an image"));
    }
    let mut env_vars = strings(function.environment);
    for path in function.environment_file.unwrap_or_default() {
        let text = file(&path).map_err(|error| {
            Invalid::new(field("environment_file"), &path, format!("a file that can be read ({error})"))
        })?;
        let more: EnvironmentFile = parse(&field(&format!("environment_file {path}")), &text)?;
        env_vars.extend(strings(more.environment));
    }
    Ok(FunctionDeployment {
        service: name,
        image,
        namespace: function.namespace.filter(|namespace| !namespace.is_empty()),
        env_process: function.fprocess.filter(|command| !command.is_empty()),
        env_vars,
        constraints: function.constraints.unwrap_or_default(),
        secrets: function.secrets.unwrap_or_default(),
        labels: strings(function.labels),
        annotations: strings(function.annotations),
        limits: function.limits.filter(|limits| *limits != Resources::default()),
        requests: function.requests.filter(|requests| *requests != Resources::default()),
        read_only_root_filesystem: function.readonly_root_filesystem,
    })
}

fn strings(scalars: Scalars) -> BTreeMap<String, String> {
    scalars.unwrap_or_default().into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect()
}

/// Parses YAML; what is wrong is said in one line with its place.
fn parse<'a, T: Deserialize<'a>>(what: &str, text: &'a str) -> Result<T, Invalid> {
    serde_yaml::from_str(text).map_err(|error| {
        let place = error.location().map(|at| format!(" (line {}, column {})", at.line(), at.column()));
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default().replace('\n', " ");
        Invalid::new(format!("{what}{}", place.unwrap_or_default()), message, "YAML as faas-cli reads it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_plain(text: &str) -> Result<Vec<FunctionDeployment>, Invalid> {
        read(text, |_| None, |_| Err(std::io::ErrorKind::NotFound.into()))
    }

    fn function(lines: &str) -> String {
        let head = "version: 1.0\nprovider:\n  name: openfaas\nfunctions:\n  f:\n    lang: x\n    image: i\n";
        format!("{head}{lines}")
    }

    #[test]
    fn a_full_stack_becomes_the_body_that_faas_cli_sends() {
        let text = include_str!("stack/full.yaml");
        let variable = |_: &str| None;
        let file = |path: &str| {
            Ok(match path {
                "env1.yml" => "environment:\n  from_file: one\n  write_debug: \"file1\"\n".to_string(),
                _ => "environment:\n  from_file: two\n  only_two: \"2\"\n".to_string(),
            })
        };
        let functions = read(text, variable, file).unwrap();
        let body = serde_json::to_string(&functions[1]).unwrap();
        let expected = concat!(
            r#"{"service":"gpu-infer","image":"registry.local/demo/gpu-infer:latest","namespace":"staging-fn","#,
            r#""envProcess":"python3 index.py","envVars":{"PATHLIKE":"/a:/b","from_file":"two","#,
            r#""max_inflight":"4","only_two":"2","quoted":"true","write_debug":"file1"},"#,
            r#""constraints":["node.gpu == true"],"secrets":["api-key"],"#,
            r#""labels":{"com.openfaas.scale.min":"1","gpufn.dev/enabled":"true"},"#,
            r#""annotations":{"gpufn.dev/sm":"30","multi":"line one\nline two\n"},"#,
            r#""limits":{"memory":"256Mi","cpu":"500m"},"requests":{"memory":"128Mi"},"#,
            r#""readOnlyRootFilesystem":true}"#,
        );
        assert_eq!(body, expected);
        let bare = r#"{"service":"cpu-echo","image":"i:1","labels":{},"annotations":{}}"#;
        assert_eq!(serde_json::to_string(&functions[0]).unwrap(), bare);
    }

    #[test]
    fn scalars_become_text_as_they_are_written() {
        let lines =
            "    labels:\n      a: true\n      b: 1.50\n      c: null\n      d: \"null\"\n      e: 0x10\n";
        let labels = &read_plain(&function(lines)).unwrap()[0].labels;
        let values: Vec<_> = labels.values().map(String::as_str).collect();
        assert_eq!(values, ["true", "1.50", "", "null", "0x10"]);
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line_with_function_field_value_and_what_is_allowed() {
        let cases = [
            ("version: 2.0\nprovider: {name: openfaas}\n".to_string(), "version is \"2.0\", allowed is 1.0"),
            ("provider: {name: faas}\n".into(), "provider.name is \"faas\", allowed is openfaas"),
            ("provider: {name: openfaas}\n".into(), "functions is \"\", allowed is at least one function"),
            (
                "provider: {name: openfaas}\nfunctions:\n  f:\n    lang: x\n".into(),
                "function f: image is \"\", allowed is a name of an image",
            ),
            (
                function("    environment_file: [none.yml]\n"),
                "function f: environment_file is \"none.yml\", allowed is a file that can be read (entity not found)",
            ),
            (
                function("    <<: {a: b}\n"),
                "function f: << is \"a merge key\", allowed is every key written out",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(read_plain(&text).unwrap_err().to_string(), expected);
        }
        let error = read_plain(&function("    labels:\n      a: {b: c}\n")).unwrap_err().to_string();
        assert!(
            error.starts_with("stack file (line 9, column 10) is \"functions.f.labels.a: invalid type"),
            "{error}"
        );
        let error = read_plain("provider:\n\tname: openfaas\n").unwrap_err().to_string();
        assert!(error.starts_with("stack file (line 2, column 1) is"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
            let _ = read_plain(&text);
        }

        #[test]
        fn no_function_makes_the_reader_panic(lines in "(    [a-z_]{1,12}: ?[-\\[{}\\]:,\"'&*!|>%@`a-z0-9 $]{0,20}\n){0,6}") {
            if let Err(error) = read_plain(&function(&lines)) {
                proptest::prop_assert!(!error.to_string().contains('\n'));
            }
        }
    }
}
