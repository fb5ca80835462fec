//! `luna supervise --root ROOT ID`, hidden: the process that owns one running sandbox. The runtime starts it with its
//! control socket on standard input; people never do.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use luna_core::{Error, Kind, Result};
use luna_runtime::Runtime;

/// Returns when the sandbox has ended for good.
pub(crate) fn supervise(arguments: &[OsString]) -> Result<()> {
    let [flag, root, id] = arguments else {
        return Err(misused());
    };
    if flag != "--root" {
        return Err(misused());
    }
    let id = id.to_str().ok_or_else(misused)?.parse()?;
    // A session of its own: the terminal's signals are for the command that started it.
    let _ = rustix::process::setsid();
    let fail = |e: std::io::Error| Error::io("cannot take over the control socket", e);
    let control = std::io::stdin().as_fd().try_clone_to_owned().map_err(fail)?;
    let rootless = luna_runtime::rootless::is_rootless();
    Runtime::open(Path::new(root), rootless)?.supervise(&id, UnixStream::from(control))
}

fn misused() -> Error {
    Error::new(Kind::InvalidInput, "cannot supervise by hand").hint("start a sandbox with `luna start`")
}
