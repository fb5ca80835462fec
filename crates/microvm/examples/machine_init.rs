//! `luna-init` as a program of this crate's, so that its tests have one to put behind the wall.

fn main() -> std::process::ExitCode {
    if luna_guest::machine::is_first_process() {
        luna_guest::machine::run();
    }
    std::process::ExitCode::from(luna_guest::init::run())
}
