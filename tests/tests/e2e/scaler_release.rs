//! The chart `gpufn-scaler`, installed by Helm: scaler and webhook as pods, which the API server and a client like KEDA reach by
//! their Services.

use std::fs;
use std::path::Path;
use std::time::Duration;

use gpu_share::names::RESOURCE;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::cluster::image::Image;
use tests::cluster::installed::Installed;
use tests::cluster::service::Forward;
use tests::cluster::tenant::{self, Tenant};
use tests::cluster::{certificates, objects};
use tests::keda::Keda;
use tests::programs;
use tests::wait::until;

/// Name of the chart, of its release, and of what comes of that.
const NAME: &str = "gpufn-scaler";
const WEBHOOK: &str = "gpufn-scaler-webhook";
const PATIENCE: Duration = Duration::from_mins(1);

/// An installed release, whose Services lead to its pods.
struct Scene {
    // In the order in which they end.
    release: Installed,
    scaler: Forward,
    _webhook: Forward,
    tenant: Tenant,
    _folder: TempDir,
}

impl Scene {
    async fn install() -> Self {
        let (tenant, folder) = (Tenant::new().await, tempfile::tempdir().unwrap());
        for image in [scaler(), shell()] {
            tenant::load(&image);
        }
        let authority = secret(&tenant, folder.path()).await;
        let values = json!({
            "image": {"registry": "localhost", "pullPolicy": "Never"},
            "test": {"image": shell().name()},
            "gpuMemory": "16Gi",
            "webhook": {
                "certificate": {"secretName": "tls", "authority": authority},
                // Other tests' pods don't meet it.
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": tenant.namespace()}},
            },
        });
        let release = Installed::new(NAME, tenant.namespace(), values, folder.path().join("values.json"));
        let release = release.unwrap_or_else(|error| panic!("{error:#}"));
        let (scaler, webhook) = (Forward::start(&tenant, NAME).await, Forward::start(&tenant, WEBHOOK).await);
        Self { release, scaler, _webhook: webhook, tenant, _folder: folder }
    }

    /// Units that a pod with annotations would be given. It is not created.
    async fn units(&self) -> Result<Option<String>, kube::Error> {
        let pod = json!({
            "metadata": {
                "name": "asks",
                "labels": {"gpufn.dev/enabled": "true"},
                "annotations": {"gpufn.dev/sm": "50", "gpufn.dev/quota": "40", "gpufn.dev/memory": "3Gi"},
            },
            "spec": {"containers": [{"name": "main", "image": "none"}]},
        });
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let created = self.pods().create(&dry, &serde_json::from_value(pod).unwrap()).await?;
        let limits = created.spec.unwrap().containers[0].resources.clone().and_then(|all| all.limits);
        Ok(limits.and_then(|limits| limits.get(RESOURCE).map(|units| units.0.clone())))
    }

    /// Arguments of the scalers that run.
    async fn arguments(&self) -> Vec<Vec<String>> {
        let scalers = ListParams::default().labels("app.kubernetes.io/component=scaler");
        let pods = self.pods().list(&scalers).await.unwrap().items.into_iter();
        let living = pods.filter(|pod| pod.metadata.deletion_timestamp.is_none());
        living.map(|pod| pod.spec.unwrap().containers[0].args.clone().unwrap()).collect()
    }

    async fn all_have(&self, argument: &str) {
        until(&format!("{argument} at both scalers"), PATIENCE, async || {
            let all = self.arguments().await;
            (all.len() == 2 && all.iter().all(|one| one.iter().any(|own| own == argument))).then_some(())
        })
        .await;
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.tenant.client(), self.tenant.namespace())
    }
}

/// Makes the webhook's Secret; returns who signed it.
async fn secret(tenant: &Tenant, folder: &Path) -> String {
    let name = format!("{WEBHOOK}.{}.svc", tenant.namespace());
    certificates::write_pair(folder, &[&name]).unwrap();
    let file = |name: &str| ByteString(fs::read(folder.join(name)).unwrap());
    let secret: Value = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "tls", "namespace": tenant.namespace()},
        "data": {"tls.crt": file("tls.crt"), "tls.key": file("tls.key"), "ca.crt": file("ca.crt")},
    });
    objects::apply(&tenant.client(), &secret).await;
    fs::read_to_string(folder.join("ca.crt")).unwrap()
}

/// What `scaler/Dockerfile` puts together.
fn scaler() -> Image {
    let image = Image::new(concat!("localhost/gpufn-scaler:", env!("CARGO_PKG_VERSION")));
    image.program(&programs::built("gpufn-scaler"), "/gpufn-scaler").entrypoint(&["/gpufn-scaler"])
}

/// The machine's own shell, and what asks over HTTP.
fn shell() -> Image {
    let image = Image::new("localhost/shell-wget:1").program(Path::new("/bin/sh"), "/bin/sh");
    image.program(Path::new("/usr/bin/wget"), "/usr/bin/wget")
}

// Helm holds up the thread that waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: make e2e"]
async fn scaler_and_webhook_answer_while_they_are_upgraded_and_rolled_back_and_nothing_stays_of_them() {
    let mut scene = Scene::install().await;
    let said = scene.release.test().unwrap_or_else(|error| panic!("{error:#}"));
    assert!(said.contains("Succeeded"), "{said}");
    assert_eq!(scene.units().await.unwrap().as_deref(), Some("4"));

    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "resnet", "namespace": scene.tenant.namespace()},
        "spec": {
            "replicas": 0, "selector": {"matchLabels": {"app": "resnet"}},
            "template": {
                "metadata": {"labels": {"app": "resnet", "gpufn.dev/enabled": "true"}},
                "spec": {"containers": [{"name": "main", "image": "none"}]},
            },
        },
    });
    objects::apply(&scene.tenant.client(), &deployment).await;
    let address = format!("{}:9090", scene.scaler.address).parse().unwrap();
    let keda = Keda::at(&[address], "resnet").trigger("resnet").in_namespace(scene.tenant.namespace());
    let polled = until("the scaler to know the function", PATIENCE, async || keda.poll().await.ok()).await;
    assert_eq!((polled.values, polled.is_active), (vec![0], false));

    // While pods come and go, no pod of a function is refused.
    scene.all_have("--cold-start=20s").await;
    let mut refused = Vec::new();
    for (change, argument) in [("upgrade", "--cold-start=40s"), ("rollback", "--cold-start=20s")] {
        let client = scene.tenant.client();
        let watched = Watched::start(Api::namespaced(client, scene.tenant.namespace()));
        let done = match change {
            "upgrade" => scene.release.upgrade(&json!({"coldStart": "40s", "webhook": {"graceSeconds": 30}})),
            _ => scene.release.roll_back().map(drop),
        };
        done.unwrap_or_else(|error| panic!("{change}: {error:#}"));
        scene.all_have(argument).await;
        refused.extend(watched.end().await);
    }
    assert_eq!(refused, Vec::<String>::new());

    scene.release.uninstall().unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(scene.units().await.unwrap(), None, "nobody is asked any more");
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": NAME},
    });
    assert!(objects::get(&scene.tenant.client(), &role).await.is_none());
}

/// Asks all the time whether a pod with the label could be created.
struct Watched {
    stop: tokio::sync::oneshot::Sender<()>,
    refused: tokio::task::JoinHandle<Vec<String>>,
}

impl Watched {
    fn start(pods: Api<Pod>) -> Self {
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let refused = tokio::spawn(async move {
            let (mut refused, mut asked) = (Vec::new(), 0);
            let pod = json!({
                "metadata": {"name": "asks", "labels": {"gpufn.dev/enabled": "true"}, "annotations": {"gpufn.dev/sm": "50"}},
                "spec": {"containers": [{"name": "main", "image": "none"}]},
            });
            let pod = serde_json::from_value(pod).unwrap();
            let dry = PostParams { dry_run: true, ..PostParams::default() };
            while tokio::time::timeout(Duration::from_millis(100), &mut stopped).await.is_err() {
                asked += 1;
                refused.extend(pods.create(&dry, &pod).await.err().map(|error| error.to_string()));
            }
            println!("asked {asked} times, {} refused", refused.len());
            refused
        });
        Self { stop, refused }
    }

    async fn end(self) -> Vec<String> {
        let _ = self.stop.send(());
        self.refused.await.unwrap()
    }
}
