//! The sandbox's own first process: builds what it sees, then is init.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Resource, Rlimit};

use crate::init;
use crate::protocol::machine::{Report, Setup, SetupStage, write_frame};

use super::cgroup::Cgroup;
use super::{Outcome, failure, mounts, sys};

/// Descriptors a process may open, as systemd and docker have it.
const OPEN_FILES: Rlimit = Rlimit {
    current: Some(1024 * 1024),
    maximum: Some(1024 * 1024),
};

/// Never returns: init's code is the exit code. `report` hears one frame.
pub(super) fn run(setup: &Setup, cgroup: &Cgroup, channel: OwnedFd, report: OwnedFd) -> ! {
    let mut report = File::from(report);
    let sockets = match build(setup, cgroup) {
        Ok(sockets) => sockets,
        Err(failure) => {
            let _ = write_frame(&mut report, &Report::Failed(failure));
            sys::leave(init::HANGUP);
        }
    };
    let _ = write_frame(&mut report, &Report::Ready);
    drop(report);
    // The number init expects it at; whatever of the machine's was there is closed by that.
    if sys::place(channel.as_fd(), init::CHANNEL).is_err() {
        sys::leave(init::HANGUP);
    }
    std::mem::forget(channel);
    sys::leave(init::run_with(sockets))
}

fn build(setup: &Setup, cgroup: &Cgroup) -> Outcome<Vec<(String, OwnedFd)>> {
    let failed = |subject: &'static str| failure(SetupStage::Process, subject);
    cgroup.enter()?;
    sys::leave_namespaces().map_err(failed("namespaces"))?;
    let propagation = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", propagation).map_err(failed("mounts"))?;
    rustix::system::sethostname(setup.hostname.as_bytes()).map_err(failed("hostname"))?;
    rustix::process::setrlimit(Resource::Nofile, OPEN_FILES).map_err(failed("open files"))?;
    mounts::inside_kernel(setup)?;
    mounts::files(&setup.files)?;
    if setup.privileged {
        mounts::modules()?;
    }
    mounts::attach(&setup.mounts)?;
    let sockets = mounts::sockets(&setup.sockets)?;
    mounts::enter(setup.read_only).map_err(failed("root"))?;
    rustix::process::setsid().or_else(|errno| match errno {
        Errno::PERM => Ok(rustix::process::Pid::INIT),
        errno => Err(failed("session")(errno)),
    })?;
    Ok(sockets)
}
