//! `gpufn profile` as people run it. On a function under `gpufn up`, what it measures is what the simulated GPU takes, it
//! goes on where it was killed, leaves the function as it is, and refuses what is wrong; of a model's file it makes a
//! profile that others read.
// Helpers of tests report by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use gpu_share::latency::Profiles;
use gpu_share::units::SmShare;
use serde_json::Value;
use tests::function::Function;
use tests::gateway::Gateway;
use tests::local::Local;
use tests::process::{self, Process};
use tests::programs::built;
use tests::wait::until;

/// Longest time that a profile of a few points takes.
const PATIENCE: Duration = Duration::from_mins(2);

/// Times that a machine that is busy may hold a point up for as long as the command tries.
const TRIES: u32 = 5;

/// SM shares that are measured, and those that the profile must say something true of, percent.
const SMS: &str = "5,10,15,20,25,30,40,50,60,70,80";
const TOLD: [u8; 16] = [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80];

fn profile(arguments: &[&str]) -> Command {
    let mut command = Command::new(built("gpufn"));
    command.arg("profile").args(arguments);
    command
}

/// Runs the command, again while it says that the machine held a point up; the last output, and all that it said.
fn undisturbed(arguments: &[&str]) -> (Output, String) {
    let (mut said, mut tries) = (String::new(), 0);
    loop {
        let output = profile(arguments).output().unwrap();
        let stderr = text(&output.stderr);
        said += &stderr;
        tries += 1;
        if tries == TRIES || !stderr.contains("a measurement was disturbed") {
            return (output, said);
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What the simulated GPU takes for one request, milliseconds.
fn truth(model: &str, sm: u8) -> f64 {
    Profiles::shipped().get(model).unwrap().gpu_time(SmShare::from_percent(sm).unwrap(), 1).millis_f64()
}

fn points(profile: &Value) -> Vec<Value> {
    profile["points"].as_array().unwrap().clone()
}

/// Lines of points in a profile that is being written.
fn written(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().matches("gpuMs").count()
}

/// The functions that are deployed, and their processes.
async fn deployed(gateway: &Gateway) -> Vec<(String, Option<u32>)> {
    let functions = gateway.overview().await.functions;
    functions.iter().map(|f| (f.name.clone(), f.replicas.first().and_then(|replica| replica.pid))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_that_was_killed_goes_on_and_says_what_the_gpu_takes() {
    let local = Local::up().start().await;
    let gateway = local.gateway();
    let function = Function::inference("vgg16", "vgg16").sm(20).quota(20, 50).memory("1Gi");
    gateway.deploy_ready(&function.policy("off").replicas(1, 1)).await;
    let before = deployed(gateway).await;

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vgg16.yaml");
    let file_text = file.display().to_string();
    let arguments = ["vgg16", "--gateway", gateway.url(), "--out", &file_text, "--sm", SMS, "--json"];
    let mut first = Process::spawn(&mut profile(&arguments), &folder.path().join("first.log"));
    until("two points to be measured", PATIENCE, async || {
        assert_eq!(first.ended(), None, "{}", first.output());
        (written(&file) >= 2).then_some(())
    })
    .await;
    process::kill(first.pid());
    first.wait(Duration::from_secs(10));
    let kept = std::fs::read_to_string(&file).unwrap();

    let (Output { status, stdout, .. }, said) = undisturbed(&[&arguments[..], &["--check"]].concat());
    assert!(!stdout.is_empty(), "{said}");
    let report: Value = serde_json::from_slice(&stdout).unwrap();
    let points = points(&report["profile"]);
    assert!((3..=8).contains(&points.len()), "{} points", points.len());
    let whole = std::fs::read_to_string(&file).unwrap();
    // A busy machine may hold a point up; that one is measured again.
    if !said.contains("measured again") {
        assert!(
            whole.starts_with(kept.trim_end()),
            "what was measured before was not kept:\n{kept}\n{whole}"
        );
    }
    assert_eq!(deployed(gateway).await, before, "the function is as it was, and its twin is gone");
    assert!(folder.path().join("vgg16.html").is_file());

    for point in &points {
        let sm = u8::try_from(point["sm"].as_u64().unwrap()).unwrap();
        let off = point["gpuMs"].as_f64().unwrap() / truth("vgg16", sm) - 1.0;
        // A request that the machine held up weighs a fortieth of its point.
        assert!(off.abs() < 0.1, "{point}: off by {:.1} %", 100.0 * off);
    }
    let sheet = scaler::profile::sheet::Sheet::read(&whole).unwrap();
    let misses: Vec<_> =
        TOLD.iter().map(|&sm| (sheet.gpu_ms(1, sm).unwrap() / truth("vgg16", sm) - 1.0).abs()).collect();
    let mean = 100.0 * misses.iter().sum::<f64>() / 16.0;
    println!(
        "{} points, GPU time off by {mean:.2} % in the mean over {} SM shares",
        points.len(),
        TOLD.len()
    );
    assert!(mean < 3.0, "{misses:?}");
    // Latencies are real time, beside whatever else runs here: how exact they are, the command itself says by its status.
    // What a quota does to them holds on any machine.
    let check = &report["check"];
    let off = check["meanOffPercent"].as_f64().unwrap();
    println!("latencies at quotas that were not measured are off by {off:.2} % in the mean");
    let checked = check["points"].as_array().unwrap();
    let predicted: Vec<_> = checked.iter().map(|point| point["predictedMs"].as_f64().unwrap()).collect();
    let quotas: Vec<_> = checked.iter().map(|point| point["quota"].as_u64().unwrap()).collect();
    assert_eq!(quotas, [20, 40, 60, 80]);
    assert!(predicted.is_sorted_by(|a, b| a >= b) && predicted[0] > predicted[3], "{check}");
    assert_eq!(status.success(), off <= check["allowedPercent"].as_f64().unwrap());
    local.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_refused_in_one_line_and_nothing_is_left_deployed() {
    let local = Local::up().start().await;
    let gateway = local.gateway();
    let function = Function::inference("resnet50", "resnet50").sm(20).quota(20, 50).memory("1Gi");
    gateway.deploy_ready(&function.policy("off").replicas(1, 1)).await;
    gateway.deploy(&Function::echo("plain")).await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let head =
        "apiVersion: gpufn.dev/v1\nkind: Profile\nmodel: resnet50\ngpu: another GPU\nwindowMs: 10.0\npoints:";
    let other = file("other.yaml", &format!("{head} []\n"));
    let point = "batch: 1\n  sm: 20\n  quota: 100\n  gpuMs: -3.0\n  latencyMs: 4.0\n  requests: 40\n";
    let negative = file("negative.yaml", &format!("{head}\n- {point}"));
    let broken = file("broken.yaml", "points: [");
    let cases: [(&[&str], i32, &str); 8] = [
        (&["nobody"], 64, "function is \"nobody\", allowed is a function that is deployed"),
        (&["plain"], 64, "gpufn.dev/sm is \"\""),
        (&["resnet50", "--out", &other], 64, "gpu is \"another GPU\""),
        (&["resnet50", "--out", &negative], 64, "point 1, gpuMs is \"-3\", allowed is a number above 0"),
        (&["resnet50", "--out", &broken], 64, "profile is"),
        (&["resnet50", "--out", "/does/not/exist/p.yaml"], 1, "failed to write /does/not/exist/p.yaml"),
        (&["resnet50", "--password-file", "/does/not/exist"], 1, "failed to read /does/not/exist"),
        (&["resnet50", "--gateway", "http://127.0.0.1:1"], 1, "nothing answers at http://127.0.0.1:1"),
    ];
    for (arguments, code, complaint) in cases {
        let mut command = profile(&["--requests", "5", "--sm", "20"]);
        // A case that names an address means that one.
        command.env("OPENFAAS_URL", gateway.url()).args(arguments).current_dir(folder.path());
        let output = command.output().unwrap();
        let said = text(&output.stderr);
        println!("{arguments:?}: {said}");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.trim_end().lines().count() == 1 && said.contains(complaint), "{arguments:?}: {said}");
    }
    let names: Vec<_> = deployed(gateway).await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["plain", "resnet50"]);
    local.stop().await;
}

/// A small network with a convolution, attention and shapes that are computed, as `PyTorch` 1.12 exports it.
fn model() -> String {
    format!("{}/fuzz/seeds/onnx/pytorch", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_model_file_becomes_a_profile_that_plans_are_made_with() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("small.onnx");
    std::fs::copy(model(), &file).unwrap();
    let (file, out) = (file.display().to_string(), folder.path().join("small.yaml").display().to_string());
    let output = profile(&["--onnx", &file, "--out", &out, "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let described: Value = serde_json::from_slice(&output.stdout).unwrap();
    // 8·3·3·3 for each of 8·8 places, then 8·3·3 for each of 4·4.
    assert_eq!(described["operators"]["conv"]["macs"], 216 * 64);
    assert_eq!(described["operators"]["depthwise"]["macs"], 72 * 16);
    assert_eq!(described["inputs"]["x"], serde_json::json!([1, 3, 16, 16]));
    let points = points(&described["profile"]);
    assert_eq!(points.len(), 80);
    for point in &points {
        let [low, high] = [0, 1].map(|end| point["intervalMs"][end].as_f64().unwrap());
        assert!((low..high).contains(&point["latencyMs"].as_f64().unwrap()), "{point}");
    }
    assert!(folder.path().join("small.html").is_file());
    let mut plan = Command::new(built("gpufn"));
    plan.args(["plan", "--rate", "5", "--model", "small", "--profile", &out, "--json"]);
    let output = plan.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_wrong_model_file_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let text_file = folder.path().join("text.onnx");
    std::fs::write(&text_file, "no model\n").unwrap();
    let (text_file, model) = (text_file.display().to_string(), model());
    let cases: [(&[&str], i32, &str); 6] = [
        (&["--onnx", &text_file], 64, "text.onnx, file is "),
        (&["--onnx", "/does/not/exist"], 1, "failed to read /does/not/exist"),
        (
            &["--onnx", &model, "--family", "resnot"],
            64,
            "--family is \"resnot\", allowed is alexnet, convnext",
        ),
        (&["--onnx", &model, "--dim", "seq=8"], 64, "dimension is \"seq\", allowed is batch"),
        (&["--onnx", &model, "--dim", "batch=0"], 64, "--dim is \"batch=0\""),
        (&["--onnx", &model, "resnet50"], 64, "cannot be used with"),
    ];
    for (arguments, code, complaint) in cases {
        let output = profile(arguments).current_dir(folder.path()).output().unwrap();
        let said = text(&output.stderr);
        println!("{arguments:?}: {said}");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(complaint), "{arguments:?}: {said}");
        // What clap refuses, it explains.
        assert!(said.trim_end().lines().count() == 1 || said.starts_with("error: "), "{arguments:?}: {said}");
    }
}

#[test]
fn a_profile_that_can_not_be_is_refused_with_its_point_by_whoever_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let point = |batch, sm, quota, gpu: f64, latency: f64| {
        format!(
            "- batch: {batch}\n  sm: {sm}\n  quota: {quota}\n  gpuMs: {gpu}\n  latencyMs: {latency}\n  requests: 40\n"
        )
    };
    let cases = [
        (
            [point(1, 10, 100, 20.0, 22.0), point(1, 20, 100, 12.0, 14.0), point(2, 10, 100, 30.0, 32.0)]
                .concat(),
            "points is \"batch 2, sm 20\", allowed is every batch at the same SM shares",
        ),
        (point(1, 10, 100, -20.0, 22.0), "point 1, gpuMs is \"-20\", allowed is a number above 0"),
        (
            [point(1, 10, 100, 20.0, 22.0), point(1, 20, 100, 23.0, 25.0)].concat(),
            "gpuMs at batch 1, sm 20 is \"23.000\", allowed is at most 22.000 ms",
        ),
        (
            [point(1, 10, 50, 20.0, 40.0), point(1, 10, 100, 20.0, 45.0)].concat(),
            "latencyMs at batch 1, sm 10, quota 100 is \"45.000\", allowed is at most 44.000 ms",
        ),
    ];
    for (index, (points, complaint)) in cases.into_iter().enumerate() {
        let file = folder.path().join(format!("{index}.yaml"));
        let head = "apiVersion: gpufn.dev/v1\nkind: Profile\nmodel: m\ngpu: a GPU\nwindowMs: 10.0\npoints:";
        std::fs::write(&file, format!("{head}\n{points}")).unwrap();
        let file = file.display().to_string();
        let state = folder.path().join("state").display().to_string();
        let up =
            ["up", "--listen", "127.0.0.1:0", "--simulate", "always", "--state", &state, "--profile", &file];
        let plan = ["plan", "--rate", "5", "--model", "m", "--profile", &file];
        for arguments in [&up[..], &plan[..]] {
            let output = Command::new(built("gpufn")).args(arguments).output().unwrap();
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(64), "{arguments:?}: {said}");
            assert!(
                said.trim_end().lines().count() == 1 && said.contains(complaint),
                "{arguments:?}: {said}"
            );
        }
    }
}
