//! Kernel modules that came along in the initial file system, in the order of their names.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::protocol::machine::{SetupFailure, SetupStage};

use super::{failure, sys};

const DIRECTORY: &str = "/modules";

/// Inserts them all. A kernel with everything built in has none.
pub(super) fn load() -> Result<(), SetupFailure> {
    for path in paths() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        insert(&path).map_err(failure(SetupStage::Module, name))?;
    }
    Ok(())
}

/// Inserts those that this machine takes: the drivers of other hypervisors refuse to load, and what needs them does too.
pub(super) fn load_what_fits() {
    for path in paths() {
        // What is missed shows when a disk is not found.
        let _ = insert(&path);
    }
}

fn paths() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn insert(path: &Path) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    sys::insert_module(std::os::fd::AsFd::as_fd(&file))
}
