//! The writable disk of a sandbox: a sparse file with an empty ext4 file system.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use luna_core::host::{Check, Outcome};
use luna_core::units::Bytes;
use luna_core::{Error, Kind, Result};
use rustix::fs::FlockOperation;

/// Where the distributions keep it; an unprivileged user's `PATH` often does not lead there.
const MKE2FS: [&str; 4] = [
    "/usr/sbin/mke2fs",
    "/sbin/mke2fs",
    "/usr/bin/mke2fs",
    "/usr/local/sbin/mke2fs",
];

/// Bytes of a block of the file system.
const BLOCK: u64 = 4096;

/// Less than this holds no file system worth the name.
pub(crate) const LEAST: Bytes = Bytes::mebibytes(16);

pub(crate) fn mke2fs() -> Option<&'static str> {
    MKE2FS.into_iter().find(|path| Path::new(path).is_file())
}

/// Whether a writable disk can be formatted here.
pub(crate) fn probe() -> Check {
    let since = Instant::now();
    let found = mke2fs();
    Check {
        name: "mke2fs".to_owned(),
        outcome: if found.is_some() {
            Outcome::Works
        } else {
            Outcome::Missing
        },
        detail: found.map_or_else(|| format!("it is none of {}", MKE2FS.join(", ")), str::to_owned),
        fix: found.is_none().then(|| "apt-get install e2fsprogs".to_owned()),
        took: since.elapsed(),
    }
}

/// Opens the disk at `path` for one machine alone; made where it is not there. What a killed start left half made goes.
pub(crate) fn open_upper(path: &Path, size: Bytes) -> Result<OwnedFd> {
    if !path.exists() {
        make(path, size)?;
    }
    lock_upper(path)
}

/// Opens a disk that is there for one machine alone.
pub(crate) fn lock_upper(path: &Path) -> Result<OwnedFd> {
    let cannot = |e| Error::io(format!("cannot open the disk `{}`", path.display()), e);
    let file: OwnedFd = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(cannot)?
        .into();
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::new(
            Kind::Conflict,
            format!("cannot use the disk `{}`", path.display()),
        )
        .because("another machine writes to it")),
        Err(errno) => Err(cannot(errno.into())),
    }
}

fn make(path: &Path, size: Bytes) -> Result<()> {
    if size < LEAST {
        return Err(
            Error::new(Kind::InvalidInput, format!("cannot make a disk of {size}"))
                .hint(format!("give it at least {LEAST}: `--disk 1g`")),
        );
    }
    let new = path.with_extension("new");
    let cannot = |e: io::Error| Error::io(format!("cannot make the disk `{}`", path.display()), e);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot(error)),
        _ => {}
    }
    let file = fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&new)
        .map_err(cannot)?;
    file.set_len(size.0).map_err(cannot)?;
    drop(file);
    let made = format(&new).and_then(|()| fs::rename(&new, path).map_err(cannot));
    if made.is_err() {
        let _ = fs::remove_file(&new);
    }
    made
}

/// A file of zeros becomes a file system: nothing has to be written but its few structures.
fn format(path: &Path) -> Result<()> {
    format_part(path, None)
}

/// Zeros in the file at `path`, all of it or `length` bytes from an offset on, become a file system.
pub(crate) fn format_part(path: &Path, part: Option<(u64, u64)>) -> Result<()> {
    let program = mke2fs().ok_or_else(|| {
        Error::new(Kind::NotFound, "cannot find `mke2fs`")
            .because(format!("it is none of {}", MKE2FS.join(", ")))
            .hint("install it: `apt-get install e2fsprogs`")
    })?;
    let offset = part.map_or_else(String::new, |(offset, _)| format!("offset={offset},"));
    let blocks = part.map(|(_, length)| (length / BLOCK).to_string());
    let run = |zeroed: &str| {
        Command::new(program)
            .args([
                "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-E",
            ])
            .arg(format!(
                "{zeroed}{offset}lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"
            ))
            .arg(path)
            .args(&blocks)
            .env_clear()
            .stdin(Stdio::null())
            .output()
            .map_err(|e| Error::io(format!("cannot run `{program}`"), e))
    };
    // Known since e2fsprogs 1.47: without it the guest zeroes the tables once more, in its own time.
    let mut output = run("assume_storage_prezeroed=1,")?;
    if !output.status.success() {
        output = run("")?;
    }
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(
        Kind::Internal,
        format!("cannot format the disk `{}`", path.display()),
    )
    .because(
        said.lines()
            .last()
            .unwrap_or("mke2fs failed without a word")
            .to_owned(),
    ))
}

/// Opens a disk that no machine may write to.
pub(crate) fn open_base(path: &Path) -> Result<OwnedFd> {
    fs::File::open(path)
        .map(OwnedFd::from)
        .map_err(|e| Error::io(format!("cannot open the disk `{}`", path.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_sparse_kept_and_had_by_one() {
        if mke2fs().is_none() {
            println!("skipped: no mke2fs here");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("upper.ext4");
        let size = Bytes::mebibytes(4096);
        let disk = open_upper(&path, size).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), size.0);
        let taken = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        assert!(taken < 64 << 20, "{taken} bytes");
        assert_eq!(open_upper(&path, size).unwrap_err().kind(), Kind::Conflict);
        drop(disk);
        drop(open_upper(&path, size).unwrap());
        assert!(open_upper(&directory.path().join("tiny"), Bytes(4096)).is_err());
    }
}
