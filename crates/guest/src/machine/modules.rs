//! Kernel modules that came along in the initial file system, in the order of their names.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::protocol::machine::{SetupFailure, SetupStage};

use super::{failure, sys};

const DIRECTORY: &str = "/modules";

/// Inserts them all. A kernel with everything built in has none.
pub(super) fn load() -> Result<(), SetupFailure> {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else {
        return Ok(());
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let insert = || -> Result<(), Errno> {
            let file = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            sys::insert_module(std::os::fd::AsFd::as_fd(&file))
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        insert().map_err(failure(SetupStage::Module, name))?;
    }
    Ok(())
}
