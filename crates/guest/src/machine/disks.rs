//! The sandbox's root: a read-only disk, a writable one, and the overlay of both.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::protocol::machine::{BASE_DISK, MODULES_DISK, SetupStage, UPPER_DISK};

use super::{Outcome, failure};

/// Where the machine itself sees the sandbox's root.
pub(super) const ROOT: &str = "/root";
/// A modular kernel's modules, where the host gave them.
pub(super) const MODULES: &str = "/tree";
const BASE: &str = "/base";
const UPPER: &str = "/upper";
const PATIENCE: Duration = Duration::from_secs(20);

/// Mounts both disks and the overlay, and the modules where the host gave them.
pub(super) fn mount_root() -> Outcome<()> {
    let disk = |serial: &'static str, stage| {
        find(serial, PATIENCE)
            .ok_or(Errno::NODEV)
            .map_err(failure(stage, serial))
    };
    let base = disk(BASE_DISK, SetupStage::Base)?;
    mount_overlay(&base, || disk(UPPER_DISK, SetupStage::Upper))?;
    if let Some(modules) = find(MODULES_DISK, Duration::ZERO) {
        let of_modules = || failure(SetupStage::Module, MODULES_DISK);
        directory(MODULES).map_err(of_modules())?;
        mount(&modules, MODULES, "erofs", MountFlags::RDONLY, c"").map_err(of_modules())?;
    }
    Ok(())
}

/// Mounts two partitions of one disk, by the names its partition table has for them, and the overlay.
pub(super) fn mount_partitions(base: &str, upper: &str, patience: Duration) -> Outcome<()> {
    let partition = |name: &str, stage| {
        find_partition(name, patience)
            .ok_or(Errno::NODEV)
            .map_err(failure(stage, name))
    };
    let device = partition(base, SetupStage::Base)?;
    mount_overlay(&device, || partition(upper, SetupStage::Upper))
}

/// Stops at the first thing that is wrong: never an overlay over nothing.
fn mount_overlay(base: &Path, upper: impl FnOnce() -> Outcome<PathBuf>) -> Outcome<()> {
    let of_base = || failure(SetupStage::Base, BASE_DISK);
    directory(BASE).map_err(of_base())?;
    mount(base, BASE, "erofs", MountFlags::RDONLY, c"").map_err(of_base())?;

    let of_upper = || failure(SetupStage::Upper, UPPER_DISK);
    let upper = upper()?;
    directory(UPPER).map_err(of_upper())?;
    let options = c"discard,errors=remount-ro";
    mount(&upper, UPPER, "ext4", MountFlags::NOATIME, options).map_err(of_upper())?;
    for name in ["/upper/upper", "/upper/work"] {
        directory(name).map_err(of_upper())?;
    }

    let of_overlay = || failure(SetupStage::Overlay, "");
    directory(ROOT).map_err(of_overlay())?;
    let options = c"lowerdir=/base,upperdir=/upper/upper,workdir=/upper/work";
    mount("overlay", ROOT, "overlay", MountFlags::empty(), options).map_err(of_overlay())?;
    // An overlay that cannot use its upper directory mounts all the same, and then nothing can be written.
    let read_only = rustix::fs::statvfs(ROOT)
        .map_err(of_overlay())?
        .f_flag
        .contains(rustix::fs::StatVfsMountFlags::RDONLY);
    if read_only {
        return Err(of_overlay()(Errno::ROFS));
    }
    Ok(())
}

/// Leaves the writable disk clean. Where something still holds it, its journal does that at the next start.
pub(super) fn unmount_root() {
    for path in [ROOT, UPPER] {
        let _ = unmount(path, UnmountFlags::empty());
    }
    rustix::fs::sync();
}

/// Makes a directory of the machine's own; an existing one will do.
pub(super) fn directory(path: &str) -> Result<(), Errno> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The disk with this serial number.
fn find(serial: &str, patience: Duration) -> Option<PathBuf> {
    wait_for("/sys/block", patience, |directory| {
        let path = directory.join("serial");
        std::fs::read_to_string(path).is_ok_and(|text| text.trim_end() == serial)
    })
}

/// The partition that a GPT calls so, on whatever kind of disk.
fn find_partition(name: &str, patience: Duration) -> Option<PathBuf> {
    wait_for("/sys/class/block", patience, |directory| {
        std::fs::read_to_string(directory.join("uevent")).is_ok_and(|text| {
            text.lines()
                .any(|line| line.strip_prefix("PARTNAME=") == Some(name))
        })
    })
}

/// The device of the first entry of `class` that `fits`, as soon as there is one.
fn wait_for(class: &str, patience: Duration, fits: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let since = Instant::now();
    loop {
        let found = std::fs::read_dir(class)
            .into_iter()
            .flatten()
            .flatten()
            .find(|entry| fits(&entry.path()));
        if let Some(entry) = found {
            return Some(Path::new("/dev").join(entry.file_name()));
        }
        if since.elapsed() >= patience {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
