//! The mounts that only the launcher can make, as detached trees: what touches the host's files, devices and ids.
//! Nothing is attached to the launcher's own mount namespace at any time.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use luna_core::{Error, Kind, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

use crate::ids;
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
            Source::Overlay { lower, upper, work } => overlay(lower, upper, work, mapping),
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

fn overlay(lower: &[PathBuf], upper: &Path, work: &Path, mapping: Option<IdMapping<'_>>) -> Result<OwnedFd> {
    let cannot = |what: String| move |error: Errno| Error::io(what, error);
    let upper_fd = directory(upper)?;
    let work_fd = directory(work)?;
    let mut trees = Vec::with_capacity(lower.len());
    for layer in lower {
        let tree = clone_tree(layer, false)?;
        if let Some(mapping) = mapping {
            map_ids(&tree, mapping, layer, false)?;
        }
        trees.push(tree);
    }
    let top = trees.first().ok_or_else(|| {
        Error::new(Kind::InvalidInput, "cannot make a root file system").because("it has no layers")
    })?;
    adopt_root(top.as_fd(), &upper_fd, upper, mapping)?;

    let context = rustix::mount::fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(cannot("cannot make an overlay file system".into()))?;
    for (layer, tree) in lower.iter().zip(&trees) {
        set_path(&context, c"lowerdir+", tree.as_fd())
            .map_err(cannot(format!("cannot use `{}` as a layer", layer.display())))?;
    }
    set_path(&context, c"upperdir", upper_fd.as_fd()).map_err(cannot(format!(
        "cannot use `{}` as the writable layer",
        upper.display()
    )))?;
    set_path(&context, c"workdir", work_fd.as_fd()).map_err(cannot(format!(
        "cannot use `{}` as an overlay's work directory",
        work.display()
    )))?;
    let mut options = vec![
        (c"redirect_dir", c"nofollow"),
        (c"metacopy", c"off"),
        (c"index", c"off"),
    ];
    if ids::inside_user_namespace() {
        // Only `user.` attributes can be written here; features that need `trusted.` ones are off of themselves.
        rustix::mount::fsconfig_set_flag(&context, c"userxattr").map_err(cannot(
            "cannot make an overlay file system with user attributes".into(),
        ))?;
        options.clear();
    }
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, key, value)
            .map_err(cannot("cannot set an overlay's options".into()))?;
    }
    let mount = rustix::mount::fsconfig_create(&context)
        .and_then(|()| {
            rustix::mount::fsmount(
                &context,
                FsMountFlags::FSMOUNT_CLOEXEC,
                MountAttrFlags::MOUNT_ATTR_NODEV,
            )
        })
        .map_err(|error| {
            let error = Error::io(
                format!("cannot mount an overlay over `{}`", upper.display()),
                error,
            );
            match kernel_log(context.as_fd()) {
                Some(reason) => error.because(reason),
                None => error,
            }
        })?;
    // An upper directory the kernel cannot use makes the overlay read-only without a word.
    let status = rustix::fs::fstatvfs(&mount).map_err(cannot(format!(
        "cannot look at the overlay over `{}`",
        upper.display()
    )))?;
    if status.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(Error::new(
            Kind::Unsupported,
            format!("cannot mount an overlay over `{}`", upper.display()),
        )
        .because("the kernel made it read-only: the file system of the writable layer cannot hold one")
        .hint("keep Luna's state on ext4, xfs, btrfs or tmpfs"));
    }
    Ok(mount)
}

/// The root directory of an overlay has the owner and mode of the upper's: a fresh one gets those of the topmost layer.
/// One that was used before keeps what was made of it.
fn adopt_root(
    top: BorrowedFd<'_>,
    upper: &OwnedFd,
    path: &Path,
    mapping: Option<IdMapping<'_>>,
) -> Result<()> {
    let cannot = |error: Errno| Error::io(format!("cannot prepare `{}`", path.display()), error);
    let root = mapping.map_or(0, |mapping| mapping.ids.base);
    let own = rustix::fs::fstat(upper).map_err(cannot)?.st_uid == root;
    if own && std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
        return Ok(());
    }
    let mode = rustix::fs::statat(top, c"", AtFlags::EMPTY_PATH)
        .map_err(cannot)?
        .st_mode
        & 0o7777;
    let (uid, gid) = (rustix::fs::Uid::from_raw(root), rustix::fs::Gid::from_raw(root));
    rustix::fs::chownat(upper, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH).map_err(cannot)?;
    let itself = descriptor_path(upper.as_fd());
    rustix::fs::chmodat(
        rustix::fs::CWD,
        itself,
        Mode::from_raw_mode(mode),
        AtFlags::empty(),
    )
    .map_err(cannot)
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
            .hint("use a directory on ext4, xfs, btrfs or tmpfs, without other file systems mounted below it")
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

/// A layer by descriptor (Linux 6.13), or by its path under `/proc/self/fd` before that.
fn set_path(context: &OwnedFd, key: &std::ffi::CStr, fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    match rustix::mount::fsconfig_set_fd(context, key, fd) {
        Err(Errno::INVAL) => rustix::mount::fsconfig_set_string(context, key, descriptor_path(fd)),
        other => other,
    }
}

fn descriptor_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// What the kernel has to say about a failed mount, from the context's log.
fn kernel_log(context: BorrowedFd<'_>) -> Option<String> {
    let mut buffer = [0u8; 1024];
    let length = rustix::io::read(context, &mut buffer).ok()?;
    let text = String::from_utf8_lossy(&buffer[..length]);
    Some(text.trim_start_matches(['e', 'w', 'i', ' ']).trim().to_owned())
}

/// The user namespace of a process of ours.
pub(crate) fn user_namespace(pid: rustix::process::Pid) -> Result<File> {
    let path = format!("/proc/{}/ns/user", pid.as_raw_nonzero());
    File::open(&path).map_err(|error| Error::io(format!("cannot open `{path}`"), error))
}
