//! An account at the API server with the rights of a role, as a component in a pod has one: what the component does beyond
//! them fails.

use std::fs;
use std::path::Path;

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::certificates;
use super::tenant::Tenant;

/// Makes an account in the tenant's namespace that may do what `rules` allow in all namespaces, and writes its kubeconfig.
pub async fn create(tenant: &Tenant, name: &str, rules: &[Value], kubeconfig: &Path) {
    let (client, namespace) = (tenant.client(), tenant.namespace());
    let role = format!("{namespace}-{name}");
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    put(&accounts, json!({"metadata": {"name": name}})).await;
    let allowed = json!({"metadata": {"name": role}, "rules": rules});
    put(&Api::<ClusterRole>::all(client.clone()), allowed).await;
    let binding = json!({
        "metadata": {"name": role},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    });
    put(&Api::<ClusterRoleBinding>::all(client.clone()), binding).await;
    write_kubeconfig(&client, namespace, name, kubeconfig).await;
}

/// Writes the kubeconfig of an account that there is.
pub async fn write_kubeconfig(client: &Client, namespace: &str, name: &str, kubeconfig: &Path) {
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    let asked = TokenRequest::default();
    let answered = accounts.create_token_request(name, &PostParams::default(), &asked).await;
    let token = answered.unwrap_or_else(|error| panic!("a token for {name}: {error}"));
    let token = token.status.expect("a token that was made has a status").token;
    let config = certificates::kubeconfig_with_token(&super::at("pki"), name, &token);
    let written = config.and_then(|config| Ok(fs::write(kubeconfig, config.to_string())?));
    written.unwrap_or_else(|error| panic!("{}: {error:#}", kubeconfig.display()));
}

async fn put<K>(api: &Api<K>, object: Value)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let object = serde_json::from_value(object).expect("an object of its kind");
    let created = api.create(&PostParams::default(), &object).await;
    created.unwrap_or_else(|error| panic!("creating {object:?}: {error}"));
}
