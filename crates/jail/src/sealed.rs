//! Copies a program into a sealed memfd, so that nothing inside a jail can change what the host will run again
//! (CVE-2019-5736).

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use luna_core::{Error, Result};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

const EVERY_SEAL: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// A sealed copy of the program at `path`.
pub fn sealed(path: &Path) -> Result<OwnedFd> {
    let cannot =
        |error: std::io::Error| Error::io(format!("cannot seal a copy of `{}`", path.display()), error);
    let source = File::open(path).map_err(cannot)?;
    let length = source.metadata().map_err(cannot)?.len();
    seal_copy(source.as_fd(), length).map_err(|error| cannot(error.into()))
}

/// A sealed copy of a program that lies in memory.
pub fn sealed_bytes(program: &[u8]) -> Result<OwnedFd> {
    let cannot = |error: Errno| Error::io("cannot seal a copy of a program", error);
    let copy = memory().map_err(cannot)?;
    let mut rest = program;
    while !rest.is_empty() {
        let written = rustix::io::write(&copy, rest).map_err(cannot)?;
        rest = &rest[written..];
    }
    rustix::fs::fcntl_add_seals(&copy, EVERY_SEAL).map_err(cannot)?;
    Ok(copy)
}

/// Whether a descriptor is a memfd that nobody can change.
pub(crate) fn is_sealed(program: BorrowedFd<'_>) -> bool {
    rustix::fs::fcntl_get_seals(program).is_ok_and(|seals| seals.contains(EVERY_SEAL))
}

fn seal_copy(source: BorrowedFd<'_>, length: u64) -> rustix::io::Result<OwnedFd> {
    let copy = memory()?;
    let mut left = length;
    while left > 0 {
        let sent = rustix::fs::sendfile(&copy, source, None, left.min(1 << 30) as usize)?;
        if sent == 0 {
            return Err(Errno::IO);
        }
        left -= sent as u64;
    }
    rustix::fs::fcntl_add_seals(&copy, EVERY_SEAL)?;
    Ok(copy)
}

fn memory() -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(c"luna-sealed", flags | MemfdFlags::EXEC) {
        // Before Linux 6.3 there is no such flag, and every memfd is executable.
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"luna-sealed", flags),
        other => other,
    }
}
