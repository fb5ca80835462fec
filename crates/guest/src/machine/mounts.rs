//! What is mounted: first for the machine itself, then inside the sandbox's root, in the container engine's order.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

use luna_core::units::Bytes;
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};

use crate::protocol::machine::{Setup, SetupFile, SetupMount, SetupStage};

use super::target::{Kind, Target};
use super::{Outcome, disks, failure};

const QUIET: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Devices every sandbox has, with their numbers.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// `/dev`, `/proc` and `/sys` of the machine itself.
pub(super) fn kernel_file_systems() -> Result<(), Errno> {
    for (path, kind) in [("/dev", "devtmpfs"), ("/proc", "proc"), ("/sys", "sysfs")] {
        disks::directory(path)?;
        match mount(kind, path, kind, MountFlags::empty(), c"") {
            // The kernel may have mounted it.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The kernel's file systems and `/dev` inside the root.
pub(super) fn inside_kernel(setup: &Setup) -> Outcome<()> {
    let at = |path: &'static str, kind: &'static str, flags: MountFlags, options: &CStr| -> Outcome<()> {
        let failed = || failure(SetupStage::Mount, path);
        let target = Target::open(path, Kind::Directory).map_err(failed())?;
        mount(kind, target.path(), kind, flags, options).map_err(failed())
    };
    let guarded = if setup.privileged {
        QUIET
    } else {
        QUIET | MountFlags::RDONLY
    };
    at("/proc", "proc", QUIET, c"")?;
    at("/sys", "sysfs", guarded, c"")?;
    at("/sys/fs/cgroup", "cgroup2", guarded, c"")?;
    let quiet_devices = MountFlags::NOSUID | MountFlags::NOEXEC;
    if setup.privileged {
        at("/dev", "devtmpfs", quiet_devices, c"")?;
    } else {
        at("/dev", "tmpfs", quiet_devices, c"mode=755,size=64k")?;
        devices()?;
    }
    for (name, to) in LINKS {
        link(name, to)?;
    }
    at(
        "/dev/pts",
        "devpts",
        quiet_devices,
        c"newinstance,mode=0620,ptmxmode=0666,gid=5",
    )?;
    let shared = options(0o1777, Some(setup.shared_memory));
    at("/dev/shm", "tmpfs", QUIET, &shared)?;
    at("/dev/mqueue", "mqueue", QUIET, c"")
}

fn devices() -> Outcome<()> {
    for (name, major, minor) in DEVICES {
        let failed = || failure(SetupStage::Device, name);
        let directory = Target::open("/dev", Kind::Directory).map_err(failed())?;
        let path = format!("{}/{name}", directory.path());
        let number = rustix::fs::makedev(major, minor);
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::CharacterDevice, mode, number)
            .map_err(failed())?;
        // The umask took what a user needs to write to it.
        rustix::fs::chmod(&path, mode).map_err(failed())?;
    }
    Ok(())
}

/// A link in `/dev`, in place of whatever the kernel put there.
fn link(name: &str, to: &str) -> Outcome<()> {
    let failed = || failure(SetupStage::Device, name);
    let directory = Target::open("/dev", Kind::Directory).map_err(failed())?;
    let path = format!("{}/{name}", directory.path());
    let _ = rustix::fs::unlink(&path);
    rustix::fs::symlink(to, &path).map_err(failed())
}

/// Lays Luna's small files over the image's.
pub(super) fn files(files: &[SetupFile]) -> Outcome<()> {
    for (number, file) in files.iter().enumerate() {
        let failed = || failure(SetupStage::File, file.target.clone());
        disks::directory("/files").map_err(failed())?;
        let source = format!("/files/{number}");
        std::fs::write(&source, &file.content)
            .map_err(|error| failed()(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let target = Target::open(&file.target, Kind::File).map_err(failed())?;
        mount_bind(&source, target.path()).map_err(failed())?;
    }
    Ok(())
}

/// Volumes and temporary file systems, in the order given.
pub(super) fn attach(mounts: &[SetupMount]) -> Outcome<()> {
    for (number, wanted) in mounts.iter().enumerate() {
        match wanted {
            SetupMount::Volume {
                tag,
                target,
                read_only,
                file,
            } => {
                let failed = || failure(SetupStage::Volume, target.clone());
                let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
                flags.set(MountFlags::RDONLY, *read_only);
                let Some(file) = file else {
                    let point = Target::open(target, Kind::Directory).map_err(failed())?;
                    mount(tag.as_str(), point.path(), "virtiofs", flags, c"").map_err(failed())?;
                    continue;
                };
                disks::directory("/volumes").map_err(failed())?;
                let whole = format!("/volumes/{number}");
                disks::directory(&whole).map_err(failed())?;
                mount(tag.as_str(), &whole, "virtiofs", flags, c"").map_err(failed())?;
                let point = Target::open(target, Kind::File).map_err(failed())?;
                mount_bind(format!("{whole}/{file}"), point.path()).map_err(failed())?;
            }
            SetupMount::Tmpfs {
                target,
                size,
                mode,
                executable,
            } => {
                let failed = || failure(SetupStage::Mount, target.clone());
                let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
                flags.set(MountFlags::NOEXEC, !executable);
                let point = Target::open(target, Kind::Directory).map_err(failed())?;
                mount("tmpfs", point.path(), "tmpfs", flags, &*options(*mode, *size)).map_err(failed())?;
            }
        }
    }
    Ok(())
}

/// Offers a listening socket at each path.
pub(super) fn sockets(paths: &[String]) -> Outcome<Vec<(String, OwnedFd)>> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let mut listening = Vec::with_capacity(paths.len());
    for (number, path) in paths.iter().enumerate() {
        let failed = || failure(SetupStage::Socket, path.clone());
        disks::directory("/sockets").map_err(failed())?;
        let source = format!("/sockets/{number}");
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(failed())?;
        let address = SocketAddrUnix::new(&source).map_err(failed())?;
        rustix::net::bind(&socket, &address).map_err(failed())?;
        rustix::net::listen(&socket, 128).map_err(failed())?;
        rustix::fs::chmod(&source, Mode::from_raw_mode(0o666)).map_err(failed())?;
        let target = Target::open(path, Kind::File).map_err(failed())?;
        mount_bind(&source, target.path()).map_err(failed())?;
        listening.push((path.clone(), socket));
    }
    Ok(listening)
}

/// A modular kernel's modules where programs look for them.
pub(super) fn modules() -> Outcome<()> {
    if std::fs::metadata(disks::MODULES).is_err() {
        return Ok(());
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let path = format!("/lib/modules/{release}");
    let failed = || failure(SetupStage::Module, path.clone());
    let target = Target::open(&path, Kind::Directory).map_err(failed())?;
    mount_bind(disks::MODULES, target.path()).map_err(failed())
}

/// Makes the root what every path starts from. What lay there before is out of reach.
pub(super) fn enter(read_only: bool) -> Result<(), Errno> {
    if read_only {
        mount_remount(disks::ROOT, MountFlags::BIND | MountFlags::RDONLY, c"")?;
    }
    rustix::process::chdir(disks::ROOT)?;
    rustix::mount::mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")
}

fn options(mode: u32, size: Option<Bytes>) -> CString {
    let text = match size {
        Some(size) => format!("mode={mode:o},size={}", size.0),
        None => format!("mode={mode:o}"),
    };
    CString::new(text).expect("digits have no NUL")
}
