//! The overlay that becomes a jail's root: layers mapped to the jail's ids below one writable directory.
//!
//! Linux takes a detached mount as a layer from 6.15 on. Before, a layer must be attached in the mount namespace of
//! whoever makes the overlay: then a thread makes itself one, attaches them there, makes the overlay and hands it out
//! detached; the namespace goes with the thread. Which way it is, is found out once, by trying.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use luna_core::{Error, Kind, Result};
use rustix::fs::{AtFlags, CWD, Mode, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags,
};

use super::{IdMapping, clone_tree, directory, map_ids};
use crate::{ids, sys};

/// Whether this kernel has refused detached layers and taken attached ones.
static ATTACHED: AtomicBool = AtomicBool::new(false);

pub(super) fn make(
    lower: &[PathBuf],
    upper: &Path,
    work: &Path,
    mapping: Option<IdMapping<'_>>,
) -> Result<OwnedFd> {
    let mut layers = Vec::with_capacity(lower.len());
    for layer in lower {
        let tree = clone_tree(layer, false)?;
        if let Some(mapping) = mapping {
            map_ids(&tree, mapping, layer, false)?;
        }
        layers.push(tree);
    }
    let top = layers.first().ok_or_else(|| {
        Error::new(Kind::InvalidInput, "cannot make a root file system").because("it has no layers")
    })?;
    let upper_fd = directory(upper)?;
    adopt_root(top.as_fd(), &upper_fd, upper, mapping)?;

    let overlay = Overlay {
        layers: &layers,
        upper,
        work,
    };
    let mount = if ATTACHED.load(Ordering::Relaxed) {
        overlay.attached()?
    } else {
        match overlay.detached(&upper_fd) {
            Err(refused) if matches!(refused.kind(), Kind::InvalidInput | Kind::Unsupported) => {
                let mount = overlay.attached().map_err(|error| match refused.causes().pop() {
                    Some(reason) if error.kind() == refused.kind() => error.because(reason),
                    _ => error,
                })?;
                ATTACHED.store(true, Ordering::Relaxed);
                mount
            }
            other => other?,
        }
    };
    // An upper directory the kernel cannot use makes the overlay read-only without a word.
    let status = rustix::fs::fstatvfs(&mount).map_err(|error| {
        Error::io(
            format!("cannot look at the overlay over `{}`", upper.display()),
            error,
        )
    })?;
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

struct Overlay<'a> {
    /// Detached mounts, the topmost first.
    layers: &'a [OwnedFd],
    upper: &'a Path,
    work: &'a Path,
}

impl Overlay<'_> {
    fn cannot(&self, error: Errno) -> Error {
        Error::io(
            format!("cannot mount an overlay over `{}`", self.upper.display()),
            error,
        )
    }

    fn detached(&self, upper: &OwnedFd) -> Result<OwnedFd> {
        let cannot = |error| self.cannot(error);
        let work = directory(self.work)?;
        let context = rustix::mount::fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(cannot)?;
        let layers = self.layers.iter().map(|layer| (c"lowerdir+", layer));
        for (key, fd) in layers.chain([(c"upperdir", upper), (c"workdir", &work)]) {
            rustix::mount::fsconfig_set_fd(&context, key, fd).map_err(cannot)?;
        }
        for (key, value) in options() {
            match value {
                Some(value) => rustix::mount::fsconfig_set_string(&context, *key, *value),
                None => rustix::mount::fsconfig_set_flag(&context, *key),
            }
            .map_err(cannot)?;
        }
        rustix::mount::fsconfig_create(&context)
            .and_then(|()| {
                rustix::mount::fsmount(
                    &context,
                    FsMountFlags::FSMOUNT_CLOEXEC,
                    MountAttrFlags::MOUNT_ATTR_NODEV,
                )
            })
            .map_err(|error| match kernel_log(context.as_fd()) {
                Some(reason) => cannot(error).because(reason),
                None => cannot(error),
            })
    }

    fn attached(&self) -> Result<OwnedFd> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("overlay".into())
                .spawn_scoped(scope, || self.attach_and_mount())
                .map_err(|error| Error::io("cannot start a thread", error))?;
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs on a thread of its own, whose mount namespace ends with it.
    fn attach_and_mount(&self) -> Result<OwnedFd> {
        let cannot = |error| self.cannot(error);
        sys::unshare_mounts().map_err(cannot)?;
        // Before anything is attached: not a mount shows outside.
        rustix::mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(cannot)?;
        let (upper, work) = (directory(self.upper)?, directory(self.work)?);
        // Short names in the working directory: all options together have one page. Absolute paths go on meaning what
        // they meant, because a lookup starts below what lies over the root.
        let place = private_directory().map_err(cannot)?;
        rustix::process::fchdir(&place).map_err(cannot)?;
        let names: Vec<_> = (0..self.layers.len()).map(|number| number.to_string()).collect();
        for (layer, name) in self.layers.iter().zip(&names) {
            attach(layer.as_fd(), name).map_err(cannot)?;
        }
        let mut words = vec![
            format!("lowerdir={}", names.join(":")),
            format!("upperdir={}", descriptor_path(upper.as_fd())),
            format!("workdir={}", descriptor_path(work.as_fd())),
        ];
        words.extend(options().iter().map(|(key, value)| match value {
            Some(value) => format!("{}={value}", key.to_string_lossy()),
            None => key.to_string_lossy().into_owned(),
        }));
        let text = std::ffi::CString::new(words.join(",")).expect("names of ours have no NUL");
        rustix::fs::mkdirat(CWD, c"root", Mode::RWXU).map_err(cannot)?;
        rustix::mount::mount(
            c"overlay",
            c"root",
            c"overlay",
            MountFlags::NODEV,
            Some(text.as_c_str()),
        )
        .map_err(|error| {
            cannot(error).hint(
                "as root this needs Linux 5.19 or later, without root 5.12; `dmesg` may say what the kernel does \
                 not like",
            )
        })?;
        rustix::mount::open_tree(
            CWD,
            c"root",
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
        .map_err(cannot)
    }
}

/// An empty file system over the root of the calling thread's mount namespace.
fn private_directory() -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, c"mode", "700")?;
    rustix::mount::fsconfig_create(&context)?;
    let mount = rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    rustix::mount::move_mount(&mount, c"", CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(mount)
}

fn attach(mount: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
    rustix::fs::mkdirat(CWD, name, Mode::RWXU)?;
    rustix::mount::move_mount(mount, c"", CWD, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn options() -> &'static [(&'static CStr, Option<&'static str>)] {
    if ids::inside_user_namespace() {
        // Only `user.` attributes can be written here; features that need `trusted.` ones are off of themselves.
        &[(c"userxattr", None)]
    } else {
        &[
            (c"redirect_dir", Some("nofollow")),
            (c"metacopy", Some("off")),
            (c"index", Some("off")),
        ]
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn content(mount: &OwnedFd, name: &str) -> String {
        let file = rustix::fs::openat(mount, name, rustix::fs::OFlags::RDONLY, Mode::empty()).unwrap();
        std::io::read_to_string(std::fs::File::from(file)).unwrap()
    }

    /// Needs root, like all that mounts.
    #[test]
    fn older_kernels_way_makes_the_same_and_shows_nothing_outside() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let layers: Vec<_> = (0..150)
            .map(|number| {
                let layer = path(&format!("layer {number}, with: signs"));
                std::fs::create_dir(&layer).unwrap();
                std::fs::write(layer.join("all"), number.to_string()).unwrap();
                std::fs::write(layer.join(number.to_string()), "one").unwrap();
                clone_tree(&layer, false).unwrap()
            })
            .collect();
        let (upper, work) = (path("upper, too"), path("work:"));
        std::fs::create_dir(&upper).unwrap();
        std::fs::create_dir(&work).unwrap();
        let overlay = Overlay {
            layers: &layers,
            upper: &upper,
            work: &work,
        };
        // What lies over the root; elsewhere other tests mount what they need.
        let mounts = || {
            let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            text.lines().filter(|line| line.contains(" / / ")).count()
        };
        let here = || std::env::current_dir().unwrap();
        let before = (mounts(), here());
        let mount = overlay.attached().unwrap();
        assert_eq!((mounts(), here()), before);
        for (name, expected) in [("all", "0"), ("0", "one"), ("149", "one")] {
            assert_eq!(content(&mount, name), expected);
        }
        rustix::fs::mkdirat(&mount, "made", Mode::RWXU).unwrap();
        assert!(upper.join("made").is_dir());
    }
}
