//! Who is who in the cluster: one authority, a certificate for each component, and the key that signs the tokens of
//! service accounts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};

use super::{API_ADDRESS, API_PORT, NODE};

/// Somebody with a certificate: the name of its files, who it is, and which group it belongs to (Kubernetes takes the user
/// from the common name and the groups from the organisation).
struct Identity {
    file: &'static str,
    user: &'static str,
    group: Option<&'static str>,
}

/// Those that call the API server with a kubeconfig of their own.
const CLIENTS: [Identity; 4] = [
    Identity { file: "admin", user: "admin", group: Some("system:masters") },
    Identity { file: "controller-manager", user: "system:kube-controller-manager", group: None },
    Identity { file: "scheduler", user: "system:kube-scheduler", group: None },
    // The name is bound to the node's by the node authorizer.
    Identity { file: "kubelet", user: "system:node:127.0.0.1", group: Some("system:nodes") },
];

/// As which the API server calls others.
const CALLERS: [Identity; 2] = [
    Identity { file: "apiserver-kubelet", user: "apiserver-kubelet", group: Some("system:masters") },
    Identity { file: "front-proxy", user: "front-proxy", group: None },
];

/// Writes all certificates, keys and kubeconfigs into `folder`. They are valid until 4096 and for this cluster only.
pub fn write(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let (issuer, authority) = write_authority(folder, "gpufn test cluster")?;

    let names =
        ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", NODE, API_ADDRESS];
    let mut server = CertificateParams::new(names.map(String::from))?;
    server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    sign(folder, "apiserver", &server, &issuer)?;

    for identity in CLIENTS.iter().chain(&CALLERS) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, identity.user);
        if let Some(group) = identity.group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let (certificate, key) = sign(folder, identity.file, &params, &issuer)?;
        let credentials = json!({
            "client-certificate-data": STANDARD.encode(&certificate),
            "client-key-data": STANDARD.encode(&key),
        });
        let config = kubeconfig(identity.user, &authority, &credentials);
        fs::write(kubeconfig_path(folder, identity.file), config.to_string())?;
    }

    let tokens = KeyPair::generate()?;
    save(folder, "service-account", &tokens.public_key_pem(), &tokens)
}

/// Writes an authority, `ca.crt`, and a certificate with its key, `tls.crt` and `tls.key`, by which a server and its clients know
/// each other: in the names that a Secret has. `names` are the server's.
pub fn write_pair(folder: &Path, names: &[&str]) -> Result<()> {
    let (issuer, _) = write_authority(folder, names.first().copied().unwrap_or_default())?;
    let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    sign(folder, "tls", &params, &issuer).map(drop)
}

/// The kubeconfig of a client in the folder.
pub fn kubeconfig_path(folder: &Path, client: &str) -> PathBuf {
    folder.join(client).with_extension("kubeconfig")
}

/// Kubeconfig of somebody with a token, in a cluster whose certificates are in the folder.
pub fn kubeconfig_with_token(folder: &Path, user: &str, token: &str) -> Result<Value> {
    let path = folder.join("ca.crt");
    let authority = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(kubeconfig(user, &authority, &json!({"token": token})))
}

/// Writes `ca.crt` and `ca.key`; the certificate, PEM, beside who signs.
fn write_authority(folder: &Path, name: &str) -> Result<(Issuer<'static, KeyPair>, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let authority = params.self_signed(&key)?.pem();
    save(folder, "ca", &authority, &key)?;
    Ok((Issuer::new(params, key), authority))
}

fn sign(
    folder: &Path,
    file: &str,
    params: &CertificateParams,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?.pem();
    save(folder, file, &certificate, &key)?;
    Ok((certificate, key.serialize_pem()))
}

fn save(folder: &Path, file: &str, certificate: &str, key: &KeyPair) -> Result<()> {
    let path = folder.join(file);
    fs::write(path.with_extension("crt"), certificate).with_context(|| path.display().to_string())?;
    fs::write(path.with_extension("key"), key.serialize_pem()).with_context(|| path.display().to_string())
}

fn kubeconfig(user: &str, authority: &str, credentials: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "gpufn-test", "cluster": {
            "server": format!("https://{API_ADDRESS}:{API_PORT}"),
            "certificate-authority-data": STANDARD.encode(authority),
        }}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "gpufn-test", "context": {"cluster": "gpufn-test", "user": user}}],
        "current-context": "gpufn-test",
    })
}
