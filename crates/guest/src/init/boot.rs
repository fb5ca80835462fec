//! What init does before it serves, and how it ends everything.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit, Signal, WaitOptions};

use super::spawn::Origin;
use super::sys;

pub(super) struct Boot {
    pub(super) signals: OwnedFd,
    pub(super) origin: Origin,
}

/// Hides init from its sandbox (no `ptrace`, no `/proc/1/exe`), becomes the reaper and blocks signals.
pub(super) fn prepare() -> Result<Boot, Errno> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    sys::close_on_exec_from_3().map_err(|error| errno(&error))?;
    // A pid namespace's first process reaps by birth; only tests need to ask.
    if !is_first() {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    }
    let signals = sys::signal_descriptor().map_err(|error| errno(&error))?;
    let files = rustix::process::getrlimit(Resource::Nofile);
    // Relays are two descriptors each; processes start from the limit as it was.
    rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files.maximum,
            maximum: files.maximum,
        },
    )?;
    let null = null_device()?;
    Ok(Boot {
        signals,
        origin: Origin { null, files },
    })
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// `/dev/null`, and surely that: memory device 3 (CVE-2025-31133 began with another file in its place).
fn null_device() -> Result<OwnedFd, Errno> {
    let null = rustix::fs::open(
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )?;
    let status = rustix::fs::fstat(&null)?;
    let is_device = FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice;
    if is_device && status.st_rdev == rustix::fs::makedev(1, 3) {
        Ok(null)
    } else {
        Err(Errno::NODEV)
    }
}

fn is_first() -> bool {
    rustix::process::getpid() == Pid::INIT
}

/// Kills every process of the sandbox but init. As PID 1 that is one call; elsewhere it is the children, whose own
/// children are ours by the time their end is signalled and are met by the next call.
pub(super) fn kill_everything() {
    if is_first() {
        // Nobody left to kill is what was wanted.
        let _ = sys::kill(-1, libc::SIGKILL);
        return;
    }
    for child in children() {
        let _ = rustix::process::kill_process(child, Signal::KILL);
    }
}

/// Kills everything and waits for it; the kernel does the waiting where init is PID 1.
pub(super) fn end_everything() {
    loop {
        kill_everything();
        if is_first() || rustix::process::wait(WaitOptions::empty()).is_err() {
            return;
        }
    }
}

fn children() -> Vec<Pid> {
    let own = rustix::process::getpid().as_raw_pid();
    let list = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
    list.split_ascii_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect()
}
