//! A tar archive as a tree.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid};
use tar::{Archive, Entry, EntryType, Header};

use crate::protocol::{Failure, Ownership, Reply, Stage};

use super::super::worker::Input;
use super::failure;

/// Unpacks the worker's input into `directory`, which must be there. As docker has it, a directory is never replaced
/// by something else nor something else by a directory.
pub(in super::super) fn unpack(
    directory: &str,
    ownership: Ownership,
    say: impl Fn(&Reply) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let root = Path::new(directory);
    let at_path = |error: io::Error| Failure {
        stage: Stage::Path,
        ..failure(root, &error)
    };
    if !fs::metadata(root).map_err(at_path)?.is_dir() {
        return Err(at_path(io::Error::from_raw_os_error(libc::ENOTDIR)));
    }
    say(&Reply::Done)?;
    let mut archive = Archive::new(io::BufReader::with_capacity(64 * 1024, Input));
    let mut directories = Vec::new();
    let entries = archive.entries().map_err(|error| failure(root, &error))?;
    for entry in entries {
        let mut entry = entry.map_err(|error| failure(root, &error))?;
        let name = entry.path().map_err(|error| failure(root, &error))?.into_owned();
        let failed = |error: io::Error| failure(&name, &error);
        let target = inside(root, &name).map_err(failed)?;
        if entry.header().entry_type().is_dir() {
            make_directory(&target).map_err(failed)?;
            // Its attributes come last: a directory may deny writing, and each file in it changes its time.
            directories.push((target, entry.header().clone()));
        } else {
            make(&mut entry, root, &target, ownership).map_err(failed)?;
        }
    }
    for (path, header) in directories.iter().rev() {
        dress(path, header, ownership).map_err(|error| failure(path, &error))?;
    }
    // What follows the archive's end (padding) is taken too, so that the sender is not cut off.
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(|error| failure(root, &error))?;
    say(&Reply::Done)
}

/// `name` under `root`, without leading slashes and never upwards.
fn inside(root: &Path, name: &Path) -> io::Result<PathBuf> {
    let mut target = root.to_owned();
    for component in name.components() {
        match component {
            Component::Normal(part) => target.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
        }
    }
    Ok(target)
}

fn make_directory(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().recursive(true).mode(0o755).create(path) {
        Err(_) if fs::metadata(path).is_ok_and(|found| !found.is_dir()) => {
            Err(io::Error::from_raw_os_error(libc::ENOTDIR))
        }
        made => made,
    }
}

fn make(
    entry: &mut Entry<'_, impl Read>,
    root: &Path,
    target: &Path,
    ownership: Ownership,
) -> io::Result<()> {
    let kind = entry.header().entry_type();
    if let Some(parent) = target.parent()
        && !parent.exists()
    {
        make_directory(parent)?;
    }
    match fs::symlink_metadata(target) {
        Ok(found) if found.is_dir() => return Err(io::Error::from_raw_os_error(libc::EISDIR)),
        Ok(_) => fs::remove_file(target)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let link = |entry: &Entry<'_, _>| {
        entry
            .link_name()?
            .map(std::borrow::Cow::into_owned)
            .ok_or(io::Error::from(io::ErrorKind::InvalidData))
    };
    match kind {
        EntryType::Symlink => {
            symlink(link(entry)?, target)?;
            return dress_link(target, entry.header(), ownership);
        }
        EntryType::Link => return fs::hard_link(inside(root, &link(entry)?)?, target),
        EntryType::Fifo => node(target, FileType::Fifo, 0)?,
        EntryType::Char => node(target, FileType::CharacterDevice, device(entry.header())?)?,
        EntryType::Block => node(target, FileType::BlockDevice, device(entry.header())?)?,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let mut file = File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(target)?;
            io::copy(entry, &mut file)?;
            return dress_file(&file, entry.header(), ownership);
        }
        _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
    dress(target, entry.header(), ownership)
}

fn node(path: &Path, kind: FileType, device: u64) -> io::Result<()> {
    Ok(rustix::fs::mknodat(
        CWD,
        path,
        kind,
        Mode::from_raw_mode(0o600),
        device,
    )?)
}

fn device(header: &Header) -> io::Result<u64> {
    let number = |part: io::Result<Option<u32>>| Ok::<u32, io::Error>(part?.unwrap_or(0));
    Ok(rustix::fs::makedev(
        number(header.device_major())?,
        number(header.device_minor())?,
    ))
}

fn owner(header: &Header) -> io::Result<(Option<Uid>, Option<Gid>)> {
    let id = |value: io::Result<u64>| {
        let value = value.ok().and_then(|id| u32::try_from(id).ok());
        // The kernel reads the highest as "no change".
        value
            .filter(|id| *id != u32::MAX)
            .ok_or(io::Error::from(io::ErrorKind::InvalidData))
    };
    let uid = Uid::from_raw(id(header.uid())?);
    let gid = Gid::from_raw(id(header.gid())?);
    Ok((Some(uid), Some(gid)))
}

fn times(header: &Header) -> io::Result<Timestamps> {
    let time = Timespec {
        tv_sec: i64::try_from(header.mtime()?).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    Ok(Timestamps {
        last_access: time,
        last_modification: time,
    })
}

fn mode(header: &Header) -> io::Result<Mode> {
    Ok(Mode::from_raw_mode(header.mode()? & 0o7777))
}

/// Owner before mode: changing the owner clears the set-id bits.
fn dress_file(file: &impl AsFd, header: &Header, ownership: Ownership) -> io::Result<()> {
    if ownership == Ownership::Preserved {
        let (uid, gid) = owner(header)?;
        rustix::fs::fchown(file, uid, gid)?;
    }
    rustix::fs::fchmod(file, mode(header)?)?;
    Ok(rustix::fs::futimens(file, &times(header)?)?)
}

fn dress_link(path: &Path, header: &Header, ownership: Ownership) -> io::Result<()> {
    if ownership == Ownership::Preserved {
        let (uid, gid) = owner(header)?;
        rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times(header)?,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

fn dress(path: &Path, header: &Header, ownership: Ownership) -> io::Result<()> {
    if ownership == Ownership::Preserved {
        let (uid, gid) = owner(header)?;
        rustix::fs::chownat(CWD, path, uid, gid, AtFlags::empty())?;
    }
    rustix::fs::chmodat(CWD, path, mode(header)?, AtFlags::empty())?;
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times(header)?,
        AtFlags::empty(),
    )?)
}
