//! Objects of any kind, also of those that a test brings along: written as their files have them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, TypeMeta};
use kube::discovery::{Scope, pinned_kind};
use kube::{Api, Client};
use serde::Deserialize;
use serde_json::Value;

use crate::wait::until;

/// Longest time until the API server knows a kind.
const PATIENCE: Duration = Duration::from_mins(1);
/// Who says that it owns what is applied.
const OWNER: &str = "tests";

/// Makes an object, or makes it what it should be (server-side apply). Where its kind is new, it waits until that is known.
pub async fn apply(client: &Client, object: &Value) {
    let (api, name) = api(client, object).await;
    let applied = api.patch(&name, &PatchParams::apply(OWNER).force(), &Patch::Apply(object)).await;
    applied.unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// The same with all objects of a YAML file.
pub async fn apply_file(client: &Client, path: &Path) {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let parsed = parse(&text);
    for object in parsed.unwrap_or_else(|error| panic!("{}: {error:#}", path.display())) {
        apply(client, &object).await;
    }
}

/// The object as it is now, if it is there. It is named as `object` is.
pub async fn get(client: &Client, object: &Value) -> Option<DynamicObject> {
    let (api, name) = api(client, object).await;
    api.get_opt(&name).await.unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn parse(text: &str) -> Result<Vec<Value>> {
    let documents = serde_yaml::Deserializer::from_str(text).map(Value::deserialize);
    let objects: Vec<Value> = documents.collect::<Result<_, _>>()?;
    Ok(objects.into_iter().filter(|object| !object.is_null()).collect())
}

async fn api(client: &Client, object: &Value) -> (Api<DynamicObject>, String) {
    let name = object["metadata"]["name"].as_str().expect("an object has a name").to_string();
    let (kind, scope) =
        until(&format!("the kind of {name}"), PATIENCE, async || known(client, object).await.ok()).await;
    let api = match (scope, object["metadata"]["namespace"].as_str()) {
        (Scope::Namespaced, Some(namespace)) => Api::namespaced_with(client.clone(), namespace, &kind),
        (Scope::Namespaced, None) => panic!("{name}: it has no namespace"),
        (Scope::Cluster, _) => Api::all_with(client.clone(), &kind),
    };
    (api, name)
}

async fn known(client: &Client, object: &Value) -> Result<(ApiResource, Scope)> {
    let types = TypeMeta::deserialize(object).context("apiVersion and kind")?;
    let (kind, capabilities) = pinned_kind(client, &GroupVersionKind::try_from(types)?).await?;
    Ok((kind, capabilities.scope))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_objects_and_empty_ones_are_none() {
        let objects = parse("---\nkind: A\n---\n# only this\n---\nkind: B\n").unwrap();
        assert_eq!(objects, [serde_json::json!({"kind": "A"}), serde_json::json!({"kind": "B"})]);
        assert!(parse("kind: [").is_err());
    }
}
