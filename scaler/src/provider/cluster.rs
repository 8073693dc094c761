//! Reading and writing functions, secrets and namespaces at the API server, and its errors as answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::StatusCode;
use gpu_share::invalid::Invalid;
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Secret, Service};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::core::PartialObjectMeta;
use kube::{Client, ResourceExt};
use openfaas::answers::Refusal;
use openfaas::names::FunctionId;
use openfaas::shapes::{self, FunctionDeployment, FunctionNamespace, Usage};
use openfaas::{checks, names};
use serde_json::json;

use super::functions::{Facts, Functions};
use super::objects::{self, Secrets, Unfit};
use super::usage::{self, PodMetrics};
use super::{FUNCTION, Settings, WRITER, status};

/// The mark of secrets that clients may see and change, as faas-netes has it.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "openfaas");
/// Type of secrets by which images are pulled.
const FOR_PULLING: &str = "kubernetes.io/dockerconfigjson";
/// The mark of namespaces that have functions.
const MARK: (&str, &str) = ("openfaas", "1");
/// A label that the API server itself puts on namespaces.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The API server, and what was last seen of it.
#[derive(Clone)]
pub(super) struct Cluster {
    pub(super) client: Client,
    pub(super) settings: Arc<Settings>,
    pub(super) functions: Arc<Functions>,
}

impl Cluster {
    /// The namespace that a request names, or the default.
    pub(super) fn namespace(&self, named: &str) -> Result<String, Refusal> {
        let namespace = if named.is_empty() { &self.settings.namespace } else { named };
        if self.functions.has_namespace(namespace) {
            return Ok(namespace.into());
        }
        let allowed = format!("one of {}", self.functions.namespaces().join(", "));
        Err(Invalid::new("namespace", namespace, allowed).into())
    }

    /// Functions of a namespace.
    pub(super) async fn list(&self, namespace: &str) -> Result<Vec<Deployment>, Refusal> {
        let listed = self.deployments(namespace).list(&ListParams::default().labels(FUNCTION)).await;
        Ok(listed.map_err(|error| answer(&error))?.items)
    }

    /// A function's Deployment.
    pub(super) async fn get(&self, id: &FunctionId) -> Result<Deployment, Refusal> {
        self.find(id).await?.filter(|found| status::id(found).is_some()).ok_or_else(|| missing(id))
    }

    async fn find(&self, id: &FunctionId) -> Result<Option<Deployment>, Refusal> {
        // A name that no object can have is that of none, and goes into no URL.
        if names::dns_label("name", &id.name).is_err() {
            return Ok(None);
        }
        self.deployments(&id.namespace).get_opt(&id.name).await.map_err(|error| answer(&error))
    }

    /// A new function, with as many replicas as it starts with.
    pub(super) async fn create(&self, mut wanted: FunctionDeployment) -> Result<(), Refusal> {
        let id = self.check(&mut wanted)?;
        let secrets = self.secrets_of(&wanted).await?;
        if let Some(found) = self.find(&id).await? {
            let what =
                if status::id(&found).is_some() { "function" } else { "a Deployment that is no function" };
            return Err(Refusal::new(StatusCode::CONFLICT, format!("{what} {id} already exists")));
        }
        let made = self.apply(&wanted, &secrets).await?;
        let first = Facts::of(&made, &self.settings).map_or(1, |facts| facts.first);
        self.adjust(&id, status::replicas(&made), first).await
    }

    /// Another deployment of a function that exists. Its replicas stay, within its bounds.
    pub(super) async fn update(&self, mut wanted: FunctionDeployment) -> Result<(), Refusal> {
        let id = self.check(&mut wanted)?;
        self.get(&id).await?;
        let secrets = self.secrets_of(&wanted).await?;
        let bounds = objects::replicas(&wanted, &self.settings)?;
        let made = self.apply(&wanted, &secrets).await?;
        let replicas = status::replicas(&made);
        // None at all is what somebody wanted.
        let within = if replicas == 0 { 0 } else { replicas.clamp(bounds.min.max(1), bounds.max.max(1)) };
        self.adjust(&id, replicas, within).await
    }

    /// Ends a function; its pods finish what they have.
    pub(super) async fn delete(&self, id: &FunctionId) -> Result<(), Refusal> {
        let found = self.get(id).await?;
        let mut params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        params.preconditions = Some(kube::api::Preconditions { uid: found.uid(), resource_version: None });
        self.deployments(&id.namespace).delete(&id.name, &params).await.map_err(|error| answer(&error))?;
        self.functions.removed(id);
        let services: Api<Service> = Api::namespaced(self.client.clone(), &id.namespace);
        match services.delete(&id.name, &DeleteParams::default()).await {
            // It goes with its Deployment where that is quicker.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(answer(&error)),
            Ok(_) => Ok(()),
        }
    }

    /// Sets the number of replicas.
    pub(super) async fn scale(&self, id: &FunctionId, replicas: u32) -> Result<(), Refusal> {
        if replicas > checks::REPLICAS_MAX {
            let allowed = format!("0 to {}", checks::REPLICAS_MAX);
            return Err(Invalid::new("replicas", replicas, allowed).into());
        }
        self.get(id).await?;
        self.write_scale(id, replicas, None).await.map_err(|error| answer(&error))
    }

    /// From no replica to `first`; nothing happens if somebody else was quicker.
    pub(super) async fn wake(&self, id: &FunctionId, first: u32) -> Result<(), kube::Error> {
        let now = self.deployments(&id.namespace).get_scale(&id.name).await?;
        if now.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0) > 0 {
            return self.refresh(id).await;
        }
        match self.write_scale(id, first, now.metadata.resource_version.as_deref()).await {
            // Changed since it was read: what it is now is looked at.
            Err(kube::Error::Api(status)) if status.code == 409 => self.refresh(id).await,
            done => done,
        }
    }

    /// What a function's pods use, where the cluster measures it.
    pub(super) async fn usage(&self, id: &FunctionId) -> Option<Usage> {
        let request = ListParams::default().labels(&format!("{FUNCTION}={}", id.name));
        let measured: Api<PodMetrics> = Api::namespaced(self.client.clone(), &id.namespace);
        let measured = measured.list(&request).await.ok()?;
        (!measured.items.is_empty()).then(|| usage::of(&measured.items))
    }

    async fn adjust(&self, id: &FunctionId, replicas: u32, wanted: u32) -> Result<(), Refusal> {
        if replicas == wanted {
            return Ok(());
        }
        self.write_scale(id, wanted, None).await.map_err(|error| answer(&error))
    }

    /// Writes the number of replicas, of the version that is named if one is.
    async fn write_scale(
        &self,
        id: &FunctionId,
        replicas: u32,
        version: Option<&str>,
    ) -> Result<(), kube::Error> {
        let mut patch = json!({"spec": {"replicas": replicas}});
        if let Some(version) = version {
            patch["metadata"] = json!({"resourceVersion": version});
        }
        let params = PatchParams { field_manager: Some(format!("{WRITER}-scale")), ..PatchParams::default() };
        self.deployments(&id.namespace).patch_scale(&id.name, &params, &Patch::Merge(patch)).await?;
        self.refresh(id).await
    }

    /// Takes note of a Deployment as it is now, before the watch tells of it.
    async fn refresh(&self, id: &FunctionId) -> Result<(), kube::Error> {
        let now = self.deployments(&id.namespace).get_opt(&id.name).await?;
        if let Some(now) = now {
            self.functions.put(&now);
        }
        Ok(())
    }

    fn check(&self, wanted: &mut FunctionDeployment) -> Result<FunctionId, Refusal> {
        wanted.namespace = self.namespace(&wanted.namespace)?;
        objects::check(wanted, &self.settings)?;
        Ok(FunctionId { namespace: wanted.namespace.clone(), name: wanted.service.clone() })
    }

    async fn apply(&self, wanted: &FunctionDeployment, secrets: &Secrets) -> Result<Deployment, Refusal> {
        let params = PatchParams::apply(WRITER).force();
        let deployment = Patch::Apply(objects::deployment(wanted, secrets, &self.settings)?);
        let made = self.deployments(&wanted.namespace).patch(&wanted.service, &params, &deployment).await;
        let made = made.map_err(|error| answer(&error))?;
        let uid = made.uid().unwrap_or_default();
        let services: Api<Service> = Api::namespaced(self.client.clone(), &wanted.namespace);
        let service = Patch::Apply(objects::service(wanted, &uid, &self.settings));
        services.patch(&wanted.service, &params, &service).await.map_err(|error| answer(&error))?;
        self.functions.put(&made);
        Ok(made)
    }

    /// Secrets of a function, which must be there.
    async fn secrets_of(&self, wanted: &FunctionDeployment) -> Result<Secrets, Refusal> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &wanted.namespace);
        let mut secrets = Secrets::default();
        for name in &wanted.secrets {
            let found = api.get_opt(name).await.map_err(|error| answer(&error))?;
            match found.map(|found| found.type_) {
                None => {
                    let allowed = format!("secrets that exist in {}", wanted.namespace);
                    return Err(Invalid::new("secrets", name, allowed).into());
                }
                Some(Some(kind)) if kind == FOR_PULLING => secrets.for_pulling.push(name.clone()),
                Some(_) => secrets.mounted.push(name.clone()),
            }
        }
        Ok(secrets)
    }

    fn deployments(&self, namespace: &str) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

/// Secrets that clients see and change; their values are written and never read.
impl Cluster {
    /// Names of a namespace's secrets.
    pub(super) async fn secrets(&self, namespace: &str) -> Result<Vec<String>, Refusal> {
        let marked = ListParams::default().labels(&format!("{}={}", MANAGED_BY.0, MANAGED_BY.1));
        let listed =
            self.secret_api(namespace).list_metadata(&marked).await.map_err(|error| answer(&error))?;
        Ok(listed.items.iter().map(PartialObjectMeta::name_any).collect())
    }

    /// A new secret.
    pub(super) async fn create_secret(
        &self,
        namespace: &str,
        secret: &shapes::Secret,
    ) -> Result<(), Refusal> {
        let value = check_secret(secret)?;
        let mut made = Secret { type_: Some("Opaque".into()), data: Some(value), ..Secret::default() };
        made.metadata.name = Some(secret.name.clone());
        made.metadata.labels = Some([(MANAGED_BY.0.into(), MANAGED_BY.1.into())].into());
        let params = PostParams { field_manager: Some(WRITER.into()), ..PostParams::default() };
        self.secret_api(namespace).create(&params, &made).await.map(drop).map_err(|error| answer(&error))
    }

    /// Another value of a secret that exists.
    pub(super) async fn update_secret(
        &self,
        namespace: &str,
        secret: &shapes::Secret,
    ) -> Result<(), Refusal> {
        let value = check_secret(secret)?;
        self.require_secret(namespace, &secret.name).await?;
        let params = PatchParams { field_manager: Some(WRITER.into()), ..PatchParams::default() };
        let patch = Patch::Merge(json!({"data": value}));
        let written = self.secret_api(namespace).patch(&secret.name, &params, &patch).await;
        written.map(drop).map_err(|error| answer(&error))
    }

    /// Removes a secret.
    pub(super) async fn delete_secret(&self, namespace: &str, name: &str) -> Result<(), Refusal> {
        names::secret_name(name)?;
        self.require_secret(namespace, name).await?;
        let deleted = self.secret_api(namespace).delete(name, &DeleteParams::default()).await;
        deleted.map(drop).map_err(|error| answer(&error))
    }

    /// One of somebody else is as good as none.
    async fn require_secret(&self, namespace: &str, name: &str) -> Result<(), Refusal> {
        let found =
            self.secret_api(namespace).get_metadata_opt(name).await.map_err(|error| answer(&error))?;
        let is_ours = |found: &PartialObjectMeta<Secret>| {
            found.labels().get(MANAGED_BY.0).is_some_and(|value| value == MANAGED_BY.1)
        };
        if found.as_ref().is_some_and(is_ours) {
            return Ok(());
        }
        Err(Refusal::new(StatusCode::NOT_FOUND, format!("secret {name} not found in {namespace}")))
    }

    fn secret_api(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

/// A secret's value under its own name, which is the file's name in a container.
fn check_secret(secret: &shapes::Secret) -> Result<BTreeMap<String, ByteString>, Refusal> {
    names::secret_name(&secret.name)?;
    Ok([(secret.name.clone(), ByteString(secret.bytes()?))].into())
}

/// Namespaces that have functions.
impl Cluster {
    /// One of them.
    pub(super) async fn get_namespace(&self, name: &str) -> Result<FunctionNamespace, Refusal> {
        self.require_namespace(name)?;
        let found = self.namespace_api().get_opt(name).await.map_err(|error| answer(&error))?;
        let found = found.filter(|found| found.metadata.deletion_timestamp.is_none());
        let Some(Namespace { metadata, .. }) = found else { return Err(no_namespace(name)) };
        let mut labels = metadata.labels.unwrap_or_default();
        labels.remove(NAME_LABEL);
        let annotations = metadata.annotations.unwrap_or_default();
        Ok(FunctionNamespace { name: name.into(), annotations, labels })
    }

    /// A new namespace, marked as one that has functions.
    pub(super) async fn create_namespace(&self, wanted: FunctionNamespace) -> Result<(), Refusal> {
        self.may_change_namespaces()?;
        names::dns_label("name", &wanted.name)?;
        // One that is there already is somebody's, and is not taken over.
        if self.namespace_api().get_opt(&wanted.name).await.map_err(|error| answer(&error))?.is_some() {
            return Err(Refusal::new(
                StatusCode::CONFLICT,
                format!("namespace {} already exists", wanted.name),
            ));
        }
        self.apply_namespace(wanted).await
    }

    /// Other labels and annotations.
    pub(super) async fn update_namespace(&self, wanted: FunctionNamespace) -> Result<(), Refusal> {
        self.may_change_namespaces()?;
        self.get_namespace(&wanted.name).await?;
        self.apply_namespace(wanted).await
    }

    /// Removes a namespace with all that is in it.
    pub(super) async fn delete_namespace(&self, name: &str) -> Result<(), Refusal> {
        self.may_change_namespaces()?;
        self.require_namespace(name)?;
        if name == self.settings.namespace {
            return Err(Invalid::new("name", name, "another namespace than the default one").into());
        }
        let deleted = self.namespace_api().delete(name, &DeleteParams::default()).await;
        deleted.map_err(|error| answer(&error))?;
        self.functions.remove_namespace(name);
        Ok(())
    }

    async fn apply_namespace(&self, wanted: FunctionNamespace) -> Result<(), Refusal> {
        let FunctionNamespace { name, annotations, mut labels } = wanted;
        labels.insert(MARK.0.into(), MARK.1.into());
        checks::labels(&labels)?;
        checks::annotations(&annotations)?;
        let metadata = json!({"name": name, "labels": labels, "annotations": annotations});
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        let params = PatchParams::apply(WRITER).force();
        let applied = self.namespace_api().patch(&name, &params, &Patch::Apply(object)).await;
        applied.map_err(|error| answer(&error))?;
        self.functions.put_namespace(&name);
        Ok(())
    }

    fn require_namespace(&self, name: &str) -> Result<(), Refusal> {
        if self.functions.has_namespace(name) { Ok(()) } else { Err(no_namespace(name)) }
    }

    fn may_change_namespaces(&self) -> Result<(), Refusal> {
        let why = "namespaces are not changed here: --single-namespace is given";
        if self.settings.is_only { Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, why)) } else { Ok(()) }
    }

    fn namespace_api(&self) -> Api<Namespace> {
        Api::all(self.client.clone())
    }
}

fn missing(id: &FunctionId) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("function {id} not found"))
}

fn no_namespace(name: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("namespace {name} not found"))
}

impl From<Unfit> for Refusal {
    fn from(unfit: Unfit) -> Self {
        Self::new(StatusCode::BAD_REQUEST, unfit.to_string())
    }
}

/// An error of the API server as an answer: the codes that a client can do something about stay.
pub(super) fn answer(error: &kube::Error) -> Refusal {
    let kube::Error::Api(status) = error else {
        tracing::warn!(%error, "the API server did not answer");
        return Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the API server did not answer");
    };
    let code = match status.code {
        code @ (400 | 403 | 404 | 408 | 409 | 422) => code,
        504 => 408,
        _ => 500,
    };
    let line = status.message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    Refusal::new(StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), line)
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn errors_of_the_cluster_keep_the_codes_that_clients_understand() {
        for (code, expected) in
            [(404, 404), (409, 409), (422, 422), (400, 400), (403, 403), (504, 408), (503, 500), (500, 500)]
        {
            let status = Status { code, message: "no:\n  really".into(), ..Status::default() };
            let answered = answer(&kube::Error::Api(Box::new(status)));
            assert_eq!((answered.status.as_u16(), answered.why.as_str()), (expected, "no: really"));
        }
    }
}
