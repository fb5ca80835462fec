//! `luna-init` with sockets to offer, for the tests: listens at each path it is given and offers it under that path.

#![allow(clippy::unwrap_used)] // a test's

use std::os::unix::net::UnixListener;
use std::process::ExitCode;

fn main() -> ExitCode {
    let offer = |path: String| {
        let listener = UnixListener::bind(&path).unwrap();
        (path, listener.into())
    };
    ExitCode::from(luna_guest::init::run_with(
        std::env::args().skip(1).map(offer).collect(),
    ))
}
