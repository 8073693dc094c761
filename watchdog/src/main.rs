//! `fwatchdog`: everything is in the library, so that its parsers can be tested from outside.

use std::process::ExitCode;

fn main() -> ExitCode {
    watchdog::main()
}
