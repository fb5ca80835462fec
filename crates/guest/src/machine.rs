//! The first process of a virtual machine: it makes of a bare kernel what the container engine's jail makes of the host's,
//! and then lets the very same init run in there.
//!
//! ```text
//! boot ─▶ modules, ports ─▶ Hello ─▶ Setup ─▶ entropy, clock, disks, overlay ─▶ inside (a child) ─▶ Ready ─▶ serving ─▶ Ended
//!                                                                                 │
//!                           new pid, mount, uts, ipc, cgroup namespaces, its root, │
//!                           `luna.channel` as descriptor 3, then `init::run_with` ◀┘
//! ```
//!
//! Nothing runs before the host's entropy is in the guest's generator. The machine keeps no file open on what the sandbox
//! can write, so that the writable disk can be unmounted clean; where that fails the journal makes it good at the next
//! start. It ends by waiting for the host to turn the machine off: bytes still under way in the ports would be lost.
//!
//! A machine that was exported as a disk has no host: see [`standalone`].

mod cgroup;
mod disks;
mod inside;
mod modules;
mod mounts;
mod network;
mod ports;
mod standalone;
mod sys;
mod target;

pub use network::absorb;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use luna_core::process::ExitStatus;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::protocol::machine::{
    CHANNEL_PORT, Command, MACHINE_PORT, MACHINE_VERSION, Report, Setup, SetupFailure, SetupStage,
    read_frame, write_frame,
};

use cgroup::Cgroup;

/// How long the host may take to turn the machine off after the last word.
const FAREWELL: Duration = Duration::from_secs(10);

/// Whether this process is the first one of a machine: pid 1 without the channel that a jail would have left it.
pub fn is_first_process() -> bool {
    rustix::process::getpid() == rustix::process::Pid::INIT && !sys::is_open(3)
}

/// Runs the machine to its end and turns it off.
pub fn run() -> ! {
    if let Some(told) = standalone::told() {
        standalone::run(&told);
    }
    match begin() {
        Ok(mut port) => {
            let last = serve(&mut port).unwrap_or_else(Report::Failed);
            // Without a host to hear it there is nothing left to do.
            let _ = write_frame(&mut port, &last);
            wait_for_the_host(&port);
        }
        // The kernel's log goes to the console, which is all there is; the host keeps its last lines.
        Err((what, errno)) => {
            let _ = std::fs::write("/dev/kmsg", format!("<2>luna-init cannot {what}: {errno}\n"));
        }
    }
    sys::turn_off()
}

/// Where a step of the start failed.
type Outcome<T> = Result<T, SetupFailure>;

fn failure(stage: SetupStage, subject: impl Into<String>) -> impl FnOnce(Errno) -> SetupFailure {
    let subject = subject.into();
    move |errno| SetupFailure {
        stage,
        errno: errno.raw_os_error(),
        subject,
    }
}

/// Everything before the host's first word.
fn begin() -> Result<File, (&'static str, Errno)> {
    mounts::kernel_file_systems().map_err(|errno| ("mount the kernel's file systems", errno))?;
    let modules = modules::load();
    let port = ports::open(MACHINE_PORT).map_err(|errno| match &modules {
        Ok(()) => ("find its port to the host", errno),
        Err(failure) => ("load a module it needs", Errno::from_raw_os_error(failure.errno)),
    })?;
    let mut port = File::from(port);
    let hello = Report::Hello {
        version: MACHINE_VERSION,
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
    };
    let said = match modules {
        Ok(()) => write_frame(&mut port, &hello),
        Err(failure) => write_frame(&mut port, &Report::Failed(failure)),
    };
    said.map_err(|_| ("speak to the host", Errno::IO))?;
    Ok(port)
}

/// Becomes the sandbox that the host describes and serves until it has ended; the result is the machine's last word.
fn serve(port: &mut File) -> Outcome<Report> {
    let broken = || failure(SetupStage::Setup, "")(Errno::PROTO);
    let setup: Setup = read_frame(port).ok().flatten().ok_or_else(broken)?;
    if setup.version != MACHINE_VERSION {
        return Err(broken());
    }
    sys::add_entropy(&setup.entropy).map_err(failure(SetupStage::Entropy, ""))?;
    sys::set_clock(setup.now).map_err(failure(SetupStage::Clock, ""))?;
    // The sandbox's limit is its cgroup's; a program that reserves more than it touches runs here as behind the other wall.
    std::fs::write("/proc/sys/vm/overcommit_memory", "1").map_err(|error| {
        failure(SetupStage::Limits, "overcommit_memory")(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    })?;
    disks::mount_root()?;
    let cgroup = Cgroup::make(setup.limits)?;
    sys::loopback_up().map_err(failure(SetupStage::Network, "lo"))?;
    let channel = ports::open(CHANNEL_PORT).map_err(failure(SetupStage::Device, CHANNEL_PORT))?;
    let child = launch(&setup, &cgroup, channel)?;
    write_frame(port, &Report::Ready).map_err(|_| broken())?;
    let status = attend(port, &child, &cgroup)?;
    drop(child);
    let usage = cgroup.usage();
    disks::unmount_root();
    Ok(Report::Ended { status, usage })
}

/// Starts the sandbox's own init behind its namespaces, on this channel; returns when it has its root.
fn launch(setup: &Setup, cgroup: &Cgroup, channel: OwnedFd) -> Outcome<OwnedFd> {
    let (ready, report) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(failure(SetupStage::Process, "pipe"))?;
    // The pid namespace is made here, so that the child is born into it as its first process.
    let child = sys::fork_into_pid_namespace().map_err(failure(SetupStage::Process, "fork"))?;
    let Some(child) = child else {
        drop(ready);
        inside::run(setup, cgroup, channel, report);
    };
    drop((channel, report));
    await_ready(ready)?;
    Ok(child)
}

/// The child says one frame, or dies.
fn await_ready(ready: OwnedFd) -> Outcome<()> {
    let mut bytes = Vec::new();
    let _ = File::from(ready).read_to_end(&mut bytes);
    match read_frame(&mut &bytes[..]) {
        Ok(Some(Report::Failed(failure))) => Err(failure),
        Ok(Some(Report::Ready)) => Ok(()),
        _ => Err(failure(SetupStage::Process, "init")(Errno::CHILD)),
    }
}

/// Answers the host until init has ended.
fn attend(port: &mut File, child: &OwnedFd, cgroup: &Cgroup) -> Outcome<ExitStatus> {
    let mut hearing = true;
    loop {
        let wanted = if hearing {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let mut set = [
            PollFd::from_borrowed_fd(child.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(port.as_fd(), wanted),
        ];
        if rustix::event::poll(&mut set, None).is_err() {
            continue;
        }
        let [ended, heard] = set.map(|entry| entry.revents());
        if !ended.is_empty() {
            return sys::reap(child).map_err(failure(SetupStage::Process, "init"));
        }
        // A host that is gone takes the channel along, and init ends by that.
        if heard.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && hearing {
            hearing = answer(port, cgroup).is_some();
        }
    }
}

fn answer(port: &mut File, cgroup: &Cgroup) -> Option<()> {
    let report = match read_frame(port).ok()?? {
        Command::Usage => Report::Usage(cgroup.usage()),
        Command::Limit(limits) => match cgroup.limit(limits) {
            Ok(()) => Report::Done,
            Err(failure) => Report::Failed(failure),
        },
    };
    write_frame(port, &report).ok()
}

fn wait_for_the_host(port: &File) {
    let until = Timespec {
        tv_sec: FAREWELL.as_secs() as i64,
        tv_nsec: 0,
    };
    // Wakes when the host closes its end.
    let mut set = [PollFd::from_borrowed_fd(port.as_fd(), PollFlags::empty())];
    let _ = rustix::event::poll(&mut set, Some(&until));
}
