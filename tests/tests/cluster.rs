//! The cluster as a tool: it leaves nothing behind, whoever is killed, and says why it can't be. Every test boots one of
//! its own: `make e2e`.
// A test ends where something is wrong with it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use tempfile::TempDir;
use tests::cluster::components::{Component, Programs};
use tests::cluster::control::Request;
use tests::cluster::host::Record;
use tests::cluster::node;
use tests::cluster::remains::Look;
use tests::process::{self, Process};
use tests::programs::{self, Turn};
use tests::wait::until;

/// Longest time until a cluster is up, or gone.
const PATIENCE: Duration = Duration::from_mins(3);

/// A starter with a cluster in a folder of its own, and how the machine was before.
struct Started {
    before: Look,
    starter: Process,
    record: Record,
    folder: TempDir,
    _turn: Turn,
}

impl Started {
    /// Boots a cluster whose starter waits.
    async fn new() -> Self {
        let (turn, before) = (Turn::take(), Look::take().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(programs::built("cluster"));
        command.arg("with").arg("--folder").arg(folder.path()).args(["sleep", "600"]);
        let mut starter = Process::spawn(&mut command, &folder.path().join("starter.log"));
        until("a cluster", PATIENCE, async || {
            assert!(starter.ended().is_none(), "it ended, and printed:\n{}", starter.tail());
            starter.output().contains(node::READY).then_some(())
        })
        .await;
        let record = Record::running(folder.path()).unwrap();
        Self { before, starter, record, folder, _turn: turn }
    }

    /// Waits until the cluster has ended and nothing of it is left.
    async fn leaves_nothing(&self) {
        until("the end of the cluster", PATIENCE, async || (!self.record.lives()).then_some(())).await;
        until("the end of its processes", PATIENCE, async || {
            process::naming(self.folder.path()).is_empty().then_some(())
        })
        .await;
        assert_eq!(Look::take().unwrap().since(&self.before), Vec::<String>::new());
    }
}

fn cluster(arguments: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(programs::built("cluster"));
    command.args(arguments).arg("--folder").arg(folder).output().unwrap()
}

#[tokio::test]
#[ignore = "boots a cluster: make e2e"]
async fn nothing_is_left_of_a_cluster_whose_starter_is_killed() {
    let mut started = Started::new().await;
    process::kill(started.starter.pid());
    started.starter.wait(PATIENCE);
    started.leaves_nothing().await;
}

#[tokio::test]
#[ignore = "boots a cluster: make e2e"]
async fn down_removes_what_is_left_when_all_that_could_clear_up_is_killed() {
    let mut started = Started::new().await;
    process::halt(started.record.init);
    process::kill(started.starter.pid());
    process::kill(started.record.init);
    started.starter.wait(PATIENCE);
    until("the end of the cluster", PATIENCE, async || (!started.record.lives()).then_some(())).await;

    let output = cluster(&["down"], started.folder.path());
    assert!(output.status.success(), "{output:?}");
    started.leaves_nothing().await;
}

#[tokio::test]
#[ignore = "boots a cluster: make e2e"]
async fn a_component_that_ends_is_told_with_what_it_printed_and_the_cluster_ends() {
    let started = Started::new().await;
    let pid = started.record.ask(Request::Status).await.unwrap()[&Component::Etcd];
    let programs = Programs::build().unwrap();
    let mut kill = started.record.command(&programs, OsStr::new("kill")).unwrap();
    assert!(kill.args(["-9", &pid.to_string()]).status().unwrap().success());
    started.leaves_nothing().await;
    let said = fs::read_to_string(started.folder.path().join("logs/node.log")).unwrap();
    assert!(said.contains("etcd ended with signal: 9"), "{said}");
}

#[tokio::test]
#[ignore = "boots a cluster: make e2e"]
async fn a_second_cluster_in_the_same_folder_is_refused_and_the_first_stays() {
    let started = Started::new().await;
    let output = cluster(&["up"], started.folder.path());
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.ends_with("a cluster runs there already\n"), "{said}");
    assert!(started.record.lives());
    let status = cluster(&["status"], started.folder.path());
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(
        status.lines().any(|line| line.starts_with("kubelet ") && line.contains(" process ")),
        "{status}"
    );
}

#[test]
fn whoever_is_not_root_is_told_so_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    // A copy: nobody may not enter every home.
    let program = folder.path().join("cluster");
    fs::copy(programs::built("cluster"), &program).unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(&program);
    command.arg("up").arg("--folder").arg(folder.path().join("state"));
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        said,
        "cluster: a cluster needs root: it has namespaces, mounts and control groups of its own\n"
    );
}
