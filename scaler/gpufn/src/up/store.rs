//! What outlives a run: deployments, namespaces and secrets, each a file of its own in the state folder.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::folder::{Folder, write_whole};
use openfaas::names::{DEFAULT_NAMESPACE, FunctionId, dns_label, secret_name};
use openfaas::shapes::{FunctionDeployment, FunctionNamespace, Secret};

/// A deployment as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) deployment: FunctionDeployment,
    pub(crate) created_at: String,
    pub(crate) replicas: u32,
}

/// The files.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) folder: Folder,
}

/// Why a secret or a namespace is not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{0} already exists")]
    Exists(&'static str),
    #[error("{0} not found")]
    Missing(&'static str),
    #[error(transparent)]
    Invalid(#[from] gpu_share::invalid::Invalid),
    #[error("failed to write: {0}")]
    Io(#[from] std::io::Error),
}

impl Store {
    /// Keeps a deployment.
    pub(crate) fn keep(&self, id: &FunctionId, kept: &Kept) -> std::io::Result<()> {
        write_json(&self.deployment(id), kept)
    }

    /// Forgets a deployment.
    pub(crate) fn forget(&self, id: &FunctionId) -> std::io::Result<()> {
        std::fs::remove_file(self.deployment(id))
    }

    /// All deployments; a file that cannot be read is named in the log and left where it is.
    pub(crate) fn deployments(&self) -> Vec<Kept> {
        let folders = names_in(&self.folder.deployments());
        let files = folders.iter().flat_map(|namespace| {
            let folder = self.folder.deployments().join(namespace);
            names_in(&folder).into_iter().map(move |name| folder.join(name))
        });
        files.filter_map(|path| read_json(&path)).collect()
    }

    /// Names of the namespaces, the default one included.
    pub(crate) fn namespaces(&self) -> Vec<String> {
        let files = names_in(&self.folder.namespaces());
        let mut names: Vec<_> =
            files.iter().filter_map(|name| name.strip_suffix(".json")).map(str::to_string).collect();
        names.push(DEFAULT_NAMESPACE.into());
        names.sort();
        names.dedup();
        names
    }

    /// One namespace.
    pub(crate) fn namespace(&self, name: &str) -> Result<FunctionNamespace, StoreError> {
        self.require_namespace(name)?;
        let own = || {
            let marked = [("openfaas".to_string(), "1".to_string())].into();
            FunctionNamespace { name: name.into(), annotations: marked, ..FunctionNamespace::default() }
        };
        let kept = self.folder.namespaces().join(format!("{name}.json"));
        Ok(if kept.exists() { read_json(&kept).unwrap_or_else(own) } else { own() })
    }

    /// A new namespace.
    pub(crate) fn create_namespace(&self, namespace: &FunctionNamespace) -> Result<(), StoreError> {
        dns_label("name", &namespace.name)?;
        if self.namespaces().contains(&namespace.name) {
            return Err(StoreError::Exists("namespace"));
        }
        self.write_namespace(namespace)
    }

    /// Other labels and annotations.
    pub(crate) fn update_namespace(&self, namespace: &FunctionNamespace) -> Result<(), StoreError> {
        self.require_namespace(&namespace.name)?;
        self.write_namespace(namespace)
    }

    /// Removes a namespace with its secrets; its functions are the caller's.
    pub(crate) fn remove_namespace(&self, name: &str) -> Result<(), StoreError> {
        self.require_namespace(name)?;
        let _ = std::fs::remove_dir_all(self.folder.secrets(name));
        Ok(std::fs::remove_file(self.folder.namespaces().join(format!("{name}.json")))?)
    }

    /// Whether there is such a namespace.
    pub(crate) fn require_namespace(&self, name: &str) -> Result<(), StoreError> {
        if self.namespaces().iter().any(|known| known == name) {
            Ok(())
        } else {
            Err(StoreError::Missing("namespace"))
        }
    }

    /// Names of a namespace's secrets.
    pub(crate) fn secrets(&self, namespace: &str) -> Vec<String> {
        names_in(&self.folder.secrets(namespace))
    }

    /// Whether there is such a secret.
    pub(crate) fn has_secret(&self, namespace: &str, name: &str) -> bool {
        secret_name(name).is_ok() && self.folder.secret(namespace, name).is_file()
    }

    /// A new secret, or with `replace` another value of one that exists.
    pub(crate) fn write_secret(
        &self,
        namespace: &str,
        secret: &Secret,
        replace: bool,
    ) -> Result<(), StoreError> {
        secret_name(&secret.name)?;
        self.require_namespace(namespace)?;
        match (self.has_secret(namespace, &secret.name), replace) {
            (true, false) => return Err(StoreError::Exists("secret")),
            (false, true) => return Err(StoreError::Missing("secret")),
            _ => {}
        }
        Ok(write_whole(&self.folder.secret(namespace, &secret.name), &secret.bytes()?)?)
    }

    /// Removes a secret.
    pub(crate) fn remove_secret(&self, namespace: &str, name: &str) -> Result<(), StoreError> {
        if !self.has_secret(namespace, name) {
            return Err(StoreError::Missing("secret"));
        }
        Ok(std::fs::remove_file(self.folder.secret(namespace, name))?)
    }

    fn deployment(&self, id: &FunctionId) -> std::path::PathBuf {
        self.folder.deployments().join(&id.namespace).join(format!("{}.json", id.name))
    }

    fn write_namespace(&self, namespace: &FunctionNamespace) -> Result<(), StoreError> {
        Ok(write_json(&self.folder.namespaces().join(format!("{}.json", namespace.name)), namespace)?)
    }
}

/// Names in a folder, sorted; hidden ones are files that were being written.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    names
}

fn write_json(path: &Path, value: &impl Serialize) -> std::io::Result<()> {
    write_whole(path, &serde_json::to_vec_pretty(value)?)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let read = std::fs::read(path).map_err(anyhow::Error::from);
    match read.and_then(|text| Ok(serde_json::from_slice(&text)?)) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "A file of the state folder cannot be read and is left out.");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().unwrap();
        let store = Store { folder: Folder::create(root.path()).unwrap() };
        (root, store)
    }

    #[test]
    fn a_secret_is_for_its_owner_only_and_comes_raw_if_it_is_not_text() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_root, store) = store();
        let secret = Secret { name: "k".into(), raw_value: "AP+A".into(), ..Secret::default() };
        store.write_secret(DEFAULT_NAMESPACE, &secret, false).unwrap();
        let path = store.folder.secret(DEFAULT_NAMESPACE, "k");
        assert_eq!(std::fs::read(&path).unwrap(), [0, 255, 128]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = store.write_secret(DEFAULT_NAMESPACE, &secret, false).unwrap_err();
        assert_eq!(again.to_string(), "secret already exists");
    }

    #[test]
    fn deployments_come_back_and_a_broken_file_costs_only_itself() {
        let (_root, store) = store();
        let id = FunctionId { namespace: "n".into(), name: "f".into() };
        let deployment = FunctionDeployment { service: "f".into(), ..FunctionDeployment::default() };
        store.keep(&id, &Kept { deployment, created_at: "t".into(), replicas: 2 }).unwrap();
        std::fs::write(store.folder.deployments().join("n/broken.json"), "{").unwrap();
        let kept = store.deployments();
        assert_eq!((kept.len(), kept[0].replicas, kept[0].deployment.service.as_str()), (1, 2, "f"));
    }
}
