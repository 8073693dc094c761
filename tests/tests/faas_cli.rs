//! Every recorded call of `faas-cli` 0.18.12 that goes to a gateway or provider, sent to `gpufn up` and to the provider for
//! Kubernetes: each answer must be one that the tool takes as the recorded one.
// Helpers of tests report by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

use tests::faas_cli::FaasCli;
use tests::function::Function;
use tests::function_cluster::FunctionCluster;
use tests::local::Local;
use tests::provider::Provider;
use tests::recorded::{Outcome, Server};
use tests::transcripts::parse;

const RECORDINGS: &str = include_str!("../data/faas-cli-transcripts.jsonl");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_recorded_call_is_answered_as_faas_cli_needs_it() {
    let scenarios = parse(RECORDINGS).unwrap();
    let mut outcome = Outcome::default();
    // All without a login share one server; it is emptied in between, and starting is what takes the time.
    for auth in [false, true] {
        let local = Local::up().auth(auth).start().await;
        let image = Function::echo("any").json()["image"].as_str().unwrap().to_string();
        let server = Server::at(local.gateway(), local.address(), local.login(), image);
        for scenario in scenarios.iter().filter(|scenario| scenario.auth == auth) {
            server.replay(scenario, |_| false, &mut outcome).await;
        }
        local.stop().await;
    }
    judge(&outcome, (182, 220));
}

/// Calls that only a gateway with a queue answers are left out; that there are three is checked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_provider_for_kubernetes_answers_them_too() {
    let scenarios = parse(RECORDINGS).unwrap();
    let mut outcome = Outcome::default();
    let cluster = FunctionCluster::start().await;
    for auth in [false, true] {
        let provider = Provider::builder(&cluster).with("--role", "gateway").auth(auth).start().await;
        let image = "registry.local/echo:1".to_string();
        let server = Server::at(provider.gateway(), provider.address, provider.login(), image);
        for scenario in scenarios.iter().filter(|scenario| scenario.auth == auth) {
            server.replay(scenario, |call| call.path().starts_with("/async-function/"), &mut outcome).await;
        }
    }
    judge(&outcome, (182, 217));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_faas_cli_takes_the_provider_s_answers() {
    let cluster = FunctionCluster::start().await;
    let provider = Provider::builder(&cluster).with("--role", "gateway").start().await;
    let Some(cli) = FaasCli::named(provider.gateway()) else { return };
    assert!(cli.run("version --warn-update=false").contains("gpufn"));
    cli.run("secret create key --from-literal value");
    assert!(cli.run("secret list").contains("key"));
    let deploy = "deploy --image registry.local/echo:1 --name f --secret key --env A=1 --label app=demo \
        --annotation gpufn.dev/quota=20 --memory-limit 128Mi";
    assert!(cli.run(deploy).contains("Deployed. 202 Accepted"));
    cli.run("ready f --attempts 20");
    assert!(cli.run("list --verbose").contains("registry.local/echo:1"));
    let described = cli.run("describe f");
    for said in ["Ready", "gpufn.dev/quota", "app", "128Mi", "key"] {
        assert!(described.contains(said), "{said} in {described}");
    }
    assert!(cli.run("invoke f").contains("POST /?"));
    assert!(cli.run("logs f --tail=false").contains("POST /"));
    assert!(cli.run(deploy).contains("202 Accepted"), "as an update");
    assert!(cli.run("namespace list").contains("staging-fn"));
    cli.run("remove f");
    assert!(!cli.run("list").contains("registry.local/echo:1"));
    cli.run("secret remove key");
}

fn judge(outcome: &Outcome, expected: (usize, usize)) {
    let Outcome { invocations, calls, wrong } = outcome;
    println!("{calls} calls of {invocations} invocations, {} answered right", calls - wrong.len());
    assert_eq!((*invocations, *calls), expected, "some recordings were not replayed");
    assert!(wrong.is_empty(), "{} of {calls} calls:\n{}", wrong.len(), wrong.join("\n"));
}
