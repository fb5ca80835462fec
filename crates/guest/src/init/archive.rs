//! Trees in and out of the sandbox as tar, as `docker cp` moves them. Runs in a worker.
//!
//! Init's root is the sandbox's, so a path leads where it leads for every program inside, and a hostile link can only
//! fool the sandbox itself. Times are whole seconds; extended attributes and sockets are left out, as by docker.

mod pack;
mod unpack;

pub(super) use pack::pack;
pub(super) use unpack::unpack;

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use luna_core::units::Bytes;

use crate::protocol::{Failure, FileKind, FileStatus, Stage};

/// What `path` is; with `follow`, what it leads to.
pub(super) fn status(path: &str, follow: bool) -> io::Result<FileStatus> {
    let metadata = if follow {
        std::fs::metadata(path)?
    } else {
        std::fs::symlink_metadata(path)?
    };
    let file_type = metadata.file_type();
    let special = file_type.is_block_device()
        || file_type.is_char_device()
        || file_type.is_fifo()
        || file_type.is_socket();
    let kind = match () {
        () if file_type.is_dir() => FileKind::Directory,
        () if file_type.is_symlink() => FileKind::Symlink,
        () if special => FileKind::Special,
        () => FileKind::File,
    };
    let target = match kind {
        FileKind::Symlink => Some(std::fs::read_link(path)?.to_string_lossy().into_owned()),
        _ => None,
    };
    Ok(FileStatus {
        kind,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: Bytes(metadata.size()),
        modified: metadata.mtime(),
        target,
    })
}

/// The failure to name to the host: an error at `path`. An archive that is no tar has no number of the kernel's.
fn failure(path: &Path, error: &io::Error) -> Failure {
    let errno = error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::Other => libc::EBADMSG,
        io::ErrorKind::InvalidInput => libc::EINVAL,
        _ => libc::EIO,
    });
    let subject: String = path.to_string_lossy().chars().take(1000).collect();
    Failure {
        stage: Stage::Archive,
        errno,
        subject,
    }
}
