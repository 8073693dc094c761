//! The admission webhook, asked by a real API server.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::cluster::tenant::Tenant;
use tests::process::Process;
use tests::programs;
use tests::wait::until;

const PATIENCE: Duration = Duration::from_mins(1);

/// A running webhook that the API server of the cluster asks about the pods of one namespace.
pub(crate) struct Webhook {
    process: Process,
    client: Client,
    namespace: String,
    _folder: TempDir,
}

impl Webhook {
    pub(crate) async fn start(tenant: &Tenant) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = certificate(folder.path());
        let mut command = Command::new(programs::built("gpufn-scaler"));
        command.args(["webhook", "--listen", "127.0.0.1:0", "--gpu-memory", "16Gi"]);
        command.arg("--tls-cert").arg(folder.path().join("tls.crt"));
        command.arg("--tls-key").arg(folder.path().join("tls.key"));
        let mut process = Process::spawn(&mut command, &folder.path().join("webhook.log"));
        let address = until("the webhook to listen", PATIENCE, async || {
            assert!(process.ended().is_none(), "it ended: {}", process.tail());
            let said = process.output();
            Some(
                said.lines()
                    .find_map(|line| line.strip_prefix("listening on "))?
                    .split(' ')
                    .next()?
                    .to_string(),
            )
        })
        .await;
        let (client, namespace) = (tenant.client(), tenant.namespace().into());
        let webhook = Self { process, client, namespace, _folder: folder };
        webhook.configure(&format!("https://{address}/mutate"), &authority).await;
        webhook
    }

    /// As the README says, but for this namespace only, so that other tests' pods don't meet it.
    async fn configure(&self, url: &str, authority: &[u8]) {
        let wanted = json!({
            "metadata": {"name": self.namespace},
            "webhooks": [{
                "name": "pods.gpufn.dev",
                "clientConfig": {"url": url, "caBundle": k8s_openapi::ByteString(authority.to_vec())},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                "objectSelector": {"matchLabels": {"gpufn.dev/enabled": "true"}},
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.namespace}},
                "failurePolicy": "Fail", "reinvocationPolicy": "IfNeeded", "sideEffects": "None",
                "timeoutSeconds": 5, "admissionReviewVersions": ["v1"],
            }],
        });
        let configurations = Api::<MutatingWebhookConfiguration>::all(self.client.clone());
        let wanted = serde_json::from_value(wanted).unwrap();
        configurations.create(&PostParams::default(), &wanted).await.unwrap();
        // The API server asks a moment after it has been told to.
        until("the API server to ask", PATIENCE, async || {
            let pod = self.create("asks", json!({"gpufn.dev/sm": "0"}), json!({}), true).await;
            pod.is_err().then_some(())
        })
        .await;
    }

    /// What became of a pod that was asked for. It is not created.
    async fn create(
        &self,
        name: &str,
        annotations: Value,
        spec: Value,
        opts_in: bool,
    ) -> Result<Value, kube::Error> {
        let mut pod = json!({
            "metadata": {"name": name, "annotations": annotations, "labels": {"gpufn.dev/enabled": opts_in.to_string()}},
            "spec": {"containers": [{"name": "main", "image": "none"}]},
        });
        for (field, value) in spec.as_object().unwrap() {
            pod["spec"][field] = value.clone();
        }
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let pod = serde_json::from_value(pod).unwrap();
        pods.create(&dry, &pod).await.map(|pod| serde_json::to_value(pod).unwrap())
    }

    /// Has the API server ask nobody about this namespace any more.
    pub(crate) async fn end(self) {
        let configurations = Api::<MutatingWebhookConfiguration>::all(self.client.clone());
        configurations.delete(&self.namespace, &DeleteParams::default()).await.unwrap();
    }
}

/// Writes certificate and key of a server at the loopback address; returns the authority, which is the same.
fn certificate(folder: &Path) -> Vec<u8> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_string()]).unwrap();
    std::fs::write(folder.join("tls.crt"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    made.cert.pem().into_bytes()
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn pods_that_opt_in_are_given_their_units_and_others_never_wait_for_the_webhook() {
    let tenant = Tenant::new().await;
    let mut webhook = Webhook::start(&tenant).await;
    let shared = json!({"gpufn.dev/sm": "50", "gpufn.dev/quota": "40", "gpufn.dev/memory": "3Gi"});
    // Shaped as an OpenFaaS function, and as a Knative service's pod.
    let knative = json!({"containers": [{"name": "user-container", "image": "none"}, {"name": "queue-proxy", "image": "none"}]});
    for spec in [json!({}), knative] {
        let pod = webhook.create("f", shared.clone(), spec, true).await.unwrap();
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["resources"]["limits"]["gpufn.dev/gpu"], "4");
        assert_eq!(container["resources"]["requests"]["gpufn.dev/gpu"], "4");
        assert_eq!(container["env"], json!([{"name": "GPUFN_POLICY", "value": "strict"}]));
        assert_eq!(pod["spec"]["containers"][1]["resources"]["limits"]["gpufn.dev/gpu"], Value::Null);
        assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 60);
    }
    for (sm, said) in [("0", "\"0\""), ("101", "\"101\""), ("x", "\"x\"")] {
        let refused = webhook.create("f", json!({"gpufn.dev/sm": sm}), json!({}), true).await.unwrap_err();
        let line = format!("gpufn.dev/sm is {said}, allowed is a whole number from 1 to 100 (percent)");
        assert!(refused.to_string().contains(&line), "{refused}");
    }
    let other = webhook.create("f", shared.clone(), json!({}), false).await.unwrap();
    assert_eq!(other["spec"]["containers"][0]["resources"]["limits"], Value::Null);

    tests::process::kill(webhook.process.pid());
    webhook.process.wait(PATIENCE);
    assert!(webhook.create("f", shared.clone(), json!({}), false).await.is_ok(), "others go on");
    let refused = webhook.create("f", shared, json!({}), true).await.unwrap_err().to_string();
    assert!(refused.contains("failed calling webhook \"pods.gpufn.dev\""), "{refused}");
    webhook.end().await;
}
