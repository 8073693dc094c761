//! The program `gpufn-node`.

fn main() -> std::process::ExitCode {
    device_plugin::cli::run()
}
