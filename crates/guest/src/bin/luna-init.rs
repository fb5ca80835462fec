//! PID 1 of a sandbox. The channel to the host is descriptor 3; the exit code is the main process' own, or
//! [`luna_guest::init::HANGUP`] where the host went away first. As the first process of a virtual machine it is the machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    if luna_guest::machine::is_first_process() {
        luna_guest::machine::run();
    }
    ExitCode::from(luna_guest::init::run())
}
