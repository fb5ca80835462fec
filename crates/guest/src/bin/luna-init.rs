//! PID 1 of a sandbox. The channel to the host is descriptor 3; the exit code is the main process' own, or
//! [`luna_guest::init::HANGUP`] where the host went away first.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(luna_guest::init::run())
}
