//! The program `gpufn-scaler`.

fn main() -> std::process::ExitCode {
    scaler::serve::cli::run()
}
