//! `gpufn plan` as people run it: what it tells, and how it refuses what is wrong.
// Helpers of tests report by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tests::programs::built;

fn plan(arguments: &[&str]) -> Output {
    Command::new(built("gpufn")).arg("plan").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn written(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn a_plan_tells_every_platform_of_a_price_file_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = text(&plan(&["--print-prices"]).stdout);
    let cheaper = written(folder.path(), "prices.yaml", &shipped.replace("amount: 0.70", "amount: 0.35"));
    let page = folder.path().join("plan.html").display().to_string();
    let asked = ["--load", "has-standard", "--model", "resnet50", "--slo", "p95<100ms", "--cpu", "250ms"];
    let told = |more: &[&str]| {
        let output = plan(&[&asked[..], &["--json"], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let (list, own) = (told(&[]), told(&["--prices", &cheaper, "--html", &page]));
    let month = |report: &Value, name: &str| {
        let rows = report["platforms"].as_array().unwrap();
        rows.iter().find(|row| row["name"] == name).and_then(|row| row["month"].as_f64()).unwrap()
    };
    assert_eq!(list["platforms"].as_array().unwrap().len(), 8);
    assert!((month(&own, "gpufn") / month(&list, "gpufn") - 0.5).abs() < 1e-9);
    assert!((month(&own, "kubernetes") / month(&list, "kubernetes") - 1.0).abs() < 1e-9);
    assert!(std::fs::read_to_string(page).unwrap().contains("<svg"));
}

#[test]
fn what_is_wrong_is_refused_with_64_and_one_line_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| written(folder.path(), name, text);
    let shipped = text(&plan(&["--print-prices"]).stdout);
    let negative = file("negative.yaml", &shipped.replace("amount: 0.26805", "amount: -1"));
    let gap = file("gap.csv", "trace,shape,step,start_s,duration_s,rps\nt,hold,0,0,5,1\nt,hold,1,6,5,1\n");
    let head = file("head.csv", "time,rps\n0,1\n");
    let silent = file("silent.csv", "trace,shape,step,start_s,duration_s,rps\nt,hold,0,0,5,0\n");
    let k6 = file("k6.json", "{\"metrics\":{\"http_reqs\":{\"rate\":-3}}}");
    let minutes = file("minutes.csv", "function,m1,m3\na,1,2\n") + ":a";
    let cases: [(&[&str], &str); 9] = [
        (&["--rate", "5", "--cpu", "1ms", "--prices", &negative], "nodeHour.amount is \"-1\""),
        (&["--load", "t", "--traces", &gap, "--cpu", "1ms"], "start_s 5, where the step before ends"),
        (&["--load", "t", "--traces", &head, "--cpu", "1ms"], "head of the traces is \"time,rps\""),
        (&["--load", "t", "--traces", &silent, "--cpu", "1ms"], "requests of the load is \"0\""),
        (&["--k6", &k6], "rate of http_reqs in k6's summary is \"-3\""),
        (&["--minutes", &minutes, "--cpu", "1ms"], "head is \"function,m1,m3\""),
        (
            &["--rate", "5", "--cpu", "1ms", "--platform", "lambda"],
            "platform is \"lambda\", allowed is one of whole-gpus",
        ),
        (&["--rate", "5", "--cpu", "1ms", "--against", "lambda"], "platform is \"lambda\""),
        (&["--rate", "0", "--cpu", "1ms"], "rate is \"0\""),
    ];
    for (arguments, complaint) in cases {
        let output = plan(arguments);
        let said = text(&output.stderr);
        println!("{arguments:?}: {said}");
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {said}");
        assert!(said.trim_end().lines().count() == 1 && said.contains(complaint), "{arguments:?}: {said}");
    }
}

#[test]
fn an_objective_that_no_gpu_keeps_leaves_the_platforms_out_with_the_reason() {
    let output = plan(&["--rate", "5", "--model", "vgg16", "--slo", "p95<1ms", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let why = report["left_out"][0]["why"].as_str().unwrap();
    assert!(why.starts_with("p95<1ms cannot be met: fastest is "), "{why}");
}
