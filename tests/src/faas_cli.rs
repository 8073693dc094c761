//! The real faas-cli as a peer, where `FAAS_CLI` names one: the project does not have it.

use std::ffi::OsString;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::gateway::Gateway;

/// The program with a configuration of its own, before a gateway.
#[derive(Debug)]
pub struct FaasCli {
    program: OsString,
    gateway: String,
    home: TempDir,
}

impl FaasCli {
    /// The program that `FAAS_CLI` names; nothing, and a line that says so, if there is none.
    pub fn named(gateway: &Gateway) -> Option<Self> {
        let Some(program) = std::env::var_os("FAAS_CLI") else {
            println!("FAAS_CLI names no program: left out");
            return None;
        };
        let home = tempfile::tempdir().expect("a folder can be made");
        Some(Self { program, gateway: gateway.url().into(), home })
    }

    /// Runs a command line, prints what it said, and expects success.
    pub fn run(&self, line: &str) -> String {
        let mut command = Command::new(&self.program);
        command.args(line.split_whitespace()).stdin(Stdio::null());
        command.env("OPENFAAS_URL", &self.gateway).env("HOME", self.home.path());
        let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        println!("$ faas-cli {line}\n{said}");
        assert!(output.status.success(), "{line}: {said}");
        said
    }
}
