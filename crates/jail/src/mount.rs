//! The mounts that only the launcher can make, as detached trees: what touches the host's files, devices and ids.
//! Nothing is attached to the launcher's own mount namespace at any time.

mod overlay;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use luna_core::{Error, Kind, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags};

use crate::spec::Ids;
use crate::sys::{self, MountAttributes};

/// A mount to be made by the launcher.
#[derive(Debug)]
pub(crate) enum Source {
    Overlay {
        lower: Vec<PathBuf>,
        upper: PathBuf,
        work: PathBuf,
    },
    Bind {
        source: PathBuf,
        read_only: bool,
        restricted: bool,
    },
    /// A character device that must have this number, where one is known.
    Device {
        source: PathBuf,
        number: Option<(u32, u32)>,
        read_only: bool,
    },
    /// A tree of the host's kernel file systems, read-only where asked: `/sys` for a jail on the host's network.
    Kernel { path: PathBuf, read_only: bool },
}

/// How the host's ids show in the jail: `None` where they are the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdMapping<'a> {
    pub(crate) ids: Ids,
    pub(crate) namespace: BorrowedFd<'a>,
}

impl Source {
    pub(crate) fn make(&self, mapping: Option<IdMapping<'_>>) -> Result<OwnedFd> {
        match self {
            Source::Overlay { lower, upper, work } => overlay::make(lower, upper, work, mapping),
            Source::Bind {
                source,
                read_only,
                restricted,
            } => bind(source, *read_only, *restricted, mapping),
            Source::Device {
                source,
                number,
                read_only,
            } => device(source, *number, *read_only),
            Source::Kernel { path, read_only } => kernel(path, *read_only),
        }
    }
}

fn bind(source: &Path, read_only: bool, restricted: bool, mapping: Option<IdMapping<'_>>) -> Result<OwnedFd> {
    let tree = clone_tree(source, true)?;
    let mut set = MountAttrFlags::empty();
    if restricted {
        set |= MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    }
    if read_only {
        set |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let attributes = MountAttributes {
        set: set.bits().into(),
        propagation: u64::from(rustix::mount::MountPropagationFlags::PRIVATE.bits()),
        ..MountAttributes::default()
    };
    sys::mount_set_attributes(tree.as_fd(), &attributes, true).map_err(|error| {
        Error::io(
            format!("cannot restrict the mount of `{}`", source.display()),
            error,
        )
    })?;
    if let Some(mapping) = mapping {
        map_ids(&tree, mapping, source, true)?;
    }
    Ok(tree)
}

fn device(source: &Path, number: Option<(u32, u32)>, read_only: bool) -> Result<OwnedFd> {
    let tree = clone_tree(source, false)?;
    let found = rustix::fs::statat(&tree, c"", AtFlags::EMPTY_PATH)
        .map_err(|error| Error::io(format!("cannot look at `{}`", source.display()), error))?;
    let kind = FileType::from_raw_mode(found.st_mode);
    let node = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    let right = match number {
        Some((major, minor)) => {
            kind == FileType::CharacterDevice && found.st_rdev == rustix::fs::makedev(major, minor)
        }
        None => node,
    };
    if !right {
        return Err(Error::new(
            Kind::InvalidInput,
            format!("cannot give `{}` to the jail", source.display()),
        )
        .because(match number {
            Some((major, minor)) => format!("it is not the character device {major}:{minor}"),
            None => "it is not a device".to_owned(),
        }));
    }
    let mut set = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    if read_only {
        set |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let attributes = MountAttributes {
        set: set.bits().into(),
        ..MountAttributes::default()
    };
    sys::mount_set_attributes(tree.as_fd(), &attributes, false).map_err(|error| {
        Error::io(
            format!("cannot restrict the mount of `{}`", source.display()),
            error,
        )
    })?;
    Ok(tree)
}

fn kernel(path: &Path, read_only: bool) -> Result<OwnedFd> {
    let tree = clone_tree(path, true)?;
    let mut set = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    if read_only {
        set |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let attributes = MountAttributes {
        set: set.bits().into(),
        propagation: u64::from(rustix::mount::MountPropagationFlags::PRIVATE.bits()),
        ..MountAttributes::default()
    };
    sys::mount_set_attributes(tree.as_fd(), &attributes, true).map_err(|error| {
        Error::io(
            format!("cannot restrict the mount of `{}`", path.display()),
            error,
        )
    })?;
    Ok(tree)
}

fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(rustix::fs::CWD, path, flags)
        .map_err(|error| Error::io(format!("cannot mount `{}`", path.display()), error))
}

fn map_ids(tree: &OwnedFd, mapping: IdMapping<'_>, path: &Path, recursive: bool) -> Result<()> {
    let attributes = MountAttributes {
        set: MountAttrFlags::MOUNT_ATTR_IDMAP.bits().into(),
        user_namespace: mapping.namespace.as_raw_fd() as u64,
        ..MountAttributes::default()
    };
    sys::mount_set_attributes(tree.as_fd(), &attributes, recursive).map_err(|error| {
        let error = match error {
            Errno::INVAL => Error::new(Kind::Unsupported, "").because("its file system cannot map ids"),
            other => Error::io("", other),
        };
        let kind = error.kind();
        let cause = error.causes().join(": ");
        Error::new(kind, format!("cannot map the ids of `{}`", path.display()))
            .because(cause)
            .hint("use a directory on ext4, xfs, btrfs or (from Linux 6.3) tmpfs, without other file systems mounted below it")
    })
}

fn directory(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| Error::io(format!("cannot open `{}`", path.display()), error))
}

/// The user namespace of a process of ours.
pub(crate) fn user_namespace(pid: rustix::process::Pid) -> Result<File> {
    let path = format!("/proc/{}/ns/user", pid.as_raw_nonzero());
    File::open(&path).map_err(|error| Error::io(format!("cannot open `{path}`"), error))
}
