//! Process 1 of the cluster's process namespace: starts one program, reaps whatever loses its parent, and when the program
//! ends, ends everything else and removes the control group.

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, wait};

use super::remains;

/// Runs `command` to its end; its exit code is the result.
///
/// # Errors
/// If this is not process 1, if the program can't be started, or if processes stay in the control group.
pub fn run(command: &mut Command, cgroup: &str) -> Result<ExitCode> {
    if getpid() != Pid::INIT {
        bail!("init: allowed is process 1 of a namespace");
    }
    let child = command.spawn().with_context(|| command.get_program().display().to_string())?;
    let status = loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get().cast_unsigned() == child.id() => {
                break status;
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the node"),
        }
    };
    end_all();
    remains::remove_group(cgroup)?;
    Ok(exit_code(status))
}

/// Kills all other processes of the namespace until none is left; they are all this process's children in the end.
fn end_all() {
    loop {
        for pid in others() {
            // One that has just ended is no failure.
            let _ = kill_process(pid, Signal::KILL);
        }
        if matches!(wait(WaitOptions::empty()), Err(Errno::CHILD)) {
            return;
        }
    }
}

fn others() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter(|&pid| pid != Pid::INIT).collect()
}

/// As a shell gives it.
fn exit_code(status: WaitStatus) -> ExitCode {
    let code = status.exit_status().or_else(|| Some(128 + status.terminating_signal()?));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
