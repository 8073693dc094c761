//! The daemon's life with a control program that is made up (`tests/fake-mps-control`).

use std::fs;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use gpu_share::units::{Bytes, Quota, SmShare};
use tempfile::TempDir;

use super::control::Control;
use super::keeper::{Keeper, MpsError, Standing};
use super::lifecycle::Seen;
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake-mps-control")
}

/// A state folder with the daemon's folders.
struct Rig(TempDir);

impl Rig {
    fn new() -> Self {
        let rig = Self(tempfile::tempdir().unwrap());
        for folder in ["pipe", "log"] {
            fs::create_dir_all(rig.at(folder)).unwrap();
        }
        rig
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join("mps").join(name)
    }

    fn daemon(&self) -> PathBuf {
        self.at("pipe/nvidia-cuda-mps-control.pid")
    }

    fn times(&self, command: &str) -> usize {
        let text = fs::read_to_string(self.at("log/commands")).unwrap_or_default();
        text.lines().filter(|line| *line == command).count()
    }

    fn keeper(&self) -> (Result<Keeper, MpsError>, Receiver<Standing>) {
        let (sender, told) = channel();
        let tell = move |standing| drop(sender.send(standing));
        (Keeper::start(&program(), self.0.path(), tell), told)
    }
}

#[test]
fn the_daemon_is_started_and_ended_with_the_agent() {
    let rig = Rig::new();
    let keeper = rig.keeper().0.unwrap();
    assert!(rig.daemon().exists());
    assert_eq!(rig.times("start"), 1);
    keeper.stop(true);
    assert!(!rig.daemon().exists());
    assert_eq!(rig.times("quit"), 1);
}

#[test]
fn a_daemon_that_an_earlier_agent_left_is_used() {
    let rig = Rig::new();
    rig.keeper().0.unwrap().stop(false);
    assert!(rig.daemon().exists());
    let keeper = rig.keeper().0.unwrap();
    assert_eq!(rig.times("start"), 1);
    keeper.stop(true);
}

#[test]
fn a_daemon_that_dies_is_reported_and_started_again() {
    let rig = Rig::new();
    let (keeper, told) = rig.keeper();
    fs::remove_file(rig.daemon()).unwrap();
    assert!(
        matches!(told.recv_timeout(PATIENCE), Ok(Standing::Broken(why)) if why.contains("Cannot find MPS control"))
    );
    assert_eq!(told.recv_timeout(PATIENCE), Ok(Standing::Up));
    assert!(rig.daemon().exists());
    assert_eq!(rig.times("start"), 2);
    keeper.unwrap().stop(true);
}

#[test]
fn a_server_at_fault_is_reported_until_it_recovers_and_nothing_is_started() {
    let rig = Rig::new();
    let (keeper, told) = rig.keeper();
    // The list last: a server is asked as soon as it is in it.
    fs::write(rig.at("pipe/status"), "FAULT\n").unwrap();
    fs::write(rig.at("pipe/servers"), "4711\n").unwrap();
    assert_eq!(told.recv_timeout(PATIENCE), Ok(Standing::Broken("server 4711 is at fault".into())));
    fs::write(rig.at("pipe/status"), "ACTIVE\n").unwrap();
    assert_eq!(told.recv_timeout(PATIENCE), Ok(Standing::Up));
    assert_eq!(rig.times("start"), 1);
    keeper.unwrap().stop(true);
}

#[test]
fn a_program_that_is_missing_or_refuses_is_an_error_that_names_it() {
    let rig = Rig::new();
    fs::write(rig.at("pipe/refuse"), "").unwrap();
    let begin = Instant::now();
    let refused = rig.keeper().0.unwrap_err().to_string();
    assert!(refused.contains("fake-mps-control") && refused.contains("exit status: 1"), "{refused}");
    let missing = Keeper::start("/no/such/control".as_ref(), rig.0.path(), drop).unwrap_err().to_string();
    assert!(missing.contains("/no/such/control") && missing.contains("No such file"), "{missing}");
    assert!(begin.elapsed() < PATIENCE);
}

#[test]
fn a_program_that_never_answers_is_not_waited_for() {
    let rig = Rig::new();
    let control = Control::new(program(), rig.0.path()).unwrap();
    fs::write(rig.at("pipe/hang"), "").unwrap();
    let begin = Instant::now();
    assert!(matches!(control.look(), Seen::Silent(why) if why.contains("no answer within")));
    assert!(begin.elapsed() < PATIENCE);
}

#[test]
fn a_client_is_told_its_limits() {
    let (sm, quota) = (SmShare::from_percent(30).unwrap(), Quota::from_percent(20).unwrap());
    let share = Share::new(sm, quota, quota, Bytes((1 << 30) + 1)).unwrap();
    let [pipes, memory, per_context] = client_variables(Path::new("/p"), &share);
    assert_eq!(pipes, ("CUDA_MPS_PIPE_DIRECTORY", "/p".into()));
    assert_eq!(memory, ("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "0=1025M".into()));
    assert_eq!(per_context, ("CUDA_MPS_ENABLE_PER_CTX_DEVICE_MULTIPROCESSOR_PARTITIONING", "0".into()));
}

#[test]
fn what_is_asked_for_decides_and_else_the_environment() {
    let state = Path::new("/run/gpufn");
    let start = Mps::resolve(Some(MpsChoice::Start), "control".into());
    assert_eq!(start, Mps::Start("control".into()));
    assert_eq!(start.pipes(state), Some("/run/gpufn/mps/pipe".into()));
    assert_eq!(Mps::resolve(Some(MpsChoice::Off), "control".into()).pipes(state), None);
    assert!(matches!(Mps::resolve(Some(MpsChoice::Use), "control".into()), Mps::Use(_)));
}
