//! The first content of a volume: what the image has at the place where it is mounted.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use luna_core::{Error, Result};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};

use crate::build::view::{Form, Found, Last, View};

/// Deeper trees are not copied: no image has them but a hostile one.
const DEPTH: usize = 512;

/// Copies the directory `source` of the image whose unpacked layers these are (topmost first) into the empty directory
/// `target`, with owners, modes and links as in the image. Nothing at `source`, or no directory, copies nothing. Devices
/// are left out: a volume is mounted without them.
pub fn populate(layers: &[std::path::PathBuf], source: &Path, target: &Path) -> Result<()> {
    let view = View::of_layers(layers)?;
    let Some(found) = view.resolve(source, Last::Follow)?.existing() else {
        return Ok(());
    };
    if found.meta.kind != Form::Directory {
        return Ok(());
    }
    let fail = |e| Error::io(format!("cannot fill the volume at `{}`", source.display()), e);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, target, flags, Mode::empty()).map_err(|e| fail(e.into()))?;
    copy_directory(&view, &found, directory.as_fd(), 0).map_err(fail)
}

fn copy_directory(view: &View, from: &Found, to: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    if depth > DEPTH {
        return Err(io::Error::other("it is nested too deep"));
    }
    for name in view.list(from).map_err(io::Error::other)? {
        if let Some(found) = view.child(from, &name).map_err(io::Error::other)? {
            copy_entry(view, &found, to, &name, depth)?;
        }
    }
    own(to, from)
}

fn copy_entry(view: &View, found: &Found, to: BorrowedFd<'_>, name: &OsStr, depth: usize) -> io::Result<()> {
    let new = |flags| -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(
            to,
            name,
            flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )?)
    };
    match found.meta.kind {
        Form::Directory => {
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            copy_directory(
                view,
                found,
                new(OFlags::RDONLY | OFlags::DIRECTORY)?.as_fd(),
                depth + 1,
            )
        }
        Form::File => {
            let mut source = view.file(found).map_err(io::Error::other)?;
            let mut target = std::fs::File::from(new(OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?);
            io::copy(&mut source, &mut target)?;
            own(target.as_fd(), found)
        }
        Form::Symlink => {
            let link = view.read_link(found).map_err(io::Error::other)?;
            rustix::fs::symlinkat(link.as_slice(), to, name)?;
            let (uid, gid) = owner(found);
            Ok(rustix::fs::chownat(
                to,
                name,
                uid,
                gid,
                AtFlags::SYMLINK_NOFOLLOW,
            )?)
        }
        Form::Fifo | Form::Socket | Form::CharacterDevice | Form::BlockDevice => Ok(()),
    }
}

fn owner(found: &Found) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(found.meta.uid)),
        Some(Gid::from_raw(found.meta.gid)),
    )
}

/// Owner first: chown clears the set-id bits that chmod sets.
fn own(fd: BorrowedFd<'_>, found: &Found) -> io::Result<()> {
    let (uid, gid) = owner(found);
    rustix::fs::fchown(fd, uid, gid)?;
    Ok(rustix::fs::fchmod(fd, Mode::from_raw_mode(found.meta.mode))?)
}
