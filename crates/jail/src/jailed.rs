//! A running jail: one process that is init of everything inside, and the end of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use luna_core::engine::{Outside, Usage};
use luna_core::process::ExitStatus;
use luna_core::{Error, Kind, Result};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::cgroup::Cgroups;
use crate::spec::Limits;
use crate::sys::{self, Instruction};

/// Of a thread that makes one socket.
const STACK: usize = 64 << 10;

/// A running jail. Drop kills everything inside, waits for it to be gone and removes the cgroups.
#[derive(Debug)]
pub struct Jailed {
    shared: Arc<Shared>,
}

/// What other threads may do to a jail; see [`Jailed::handle`].
#[derive(Clone, Debug)]
pub struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    process: Process,
    standing: Standing,
    /// Gone once the jail has been dropped, whoever still holds a handle.
    cgroups: RwLock<Option<Cgroups>>,
}

/// What was put up round the jail and cannot be read back from a file.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) seccomp: Option<Arc<[Instruction]>>,
    /// The kernel's version of Landlock, where the jail is in a domain.
    pub(crate) landlock: Option<u32>,
    pub(crate) masked: Vec<PathBuf>,
    pub(crate) read_only: Vec<PathBuf>,
}

impl Jailed {
    pub(crate) fn new(process: Process, cgroups: Cgroups, standing: Standing) -> Jailed {
        Jailed {
            shared: Arc::new(Shared {
                process,
                standing,
                cgroups: RwLock::new(Some(cgroups)),
            }),
        }
    }

    /// The host's pid of the first process.
    pub fn pid(&self) -> u32 {
        self.shared.process.pid().as_raw_nonzero().get().unsigned_abs()
    }

    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.shared.process.pidfd.as_fd()
    }

    /// Blocks until the first process is gone, and with it, by the pid namespace, all others.
    pub fn wait(&self) -> Result<ExitStatus> {
        self.shared.process.wait()
    }

    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        // A handle may outlive this; the jail does not.
        let _ = self.shared.kill();
        self.shared.process.end();
        drop(
            self.shared
                .cgroups
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }
}

impl Handle {
    /// Kills everything inside at once. Killing the dead is no error.
    pub fn kill(&self) -> Result<()> {
        self.0.kill()
    }

    /// Stops everything inside; returns when it is stopped.
    pub fn pause(&self) -> Result<()> {
        self.0.living("pause", |cgroups| cgroups.freeze(true))
    }

    pub fn resume(&self) -> Result<()> {
        self.0.living("resume", |cgroups| cgroups.freeze(false))
    }

    pub fn usage(&self) -> Result<Usage> {
        // The counters outlive the processes: how a jail ended is asked after its end.
        match &*self.0.cgroups.read().unwrap_or_else(PoisonError::into_inner) {
            Some(cgroups) => Ok(cgroups.usage()),
            None => Err(ended("measure")),
        }
    }

    /// Changes limits in place; on error all are as before.
    pub fn update(&self, limits: &Limits) -> Result<()> {
        self.0.living("change", |cgroups| cgroups.update(limits))
    }

    /// A TCP socket (IPv4) in the jail's network namespace, not connected: what it connects to is in there. Nothing of the
    /// caller's enters the namespace but this socket.
    pub fn tcp_socket(&self) -> Result<OwnedFd> {
        self.0.living("reach into", |_| {
            self.0
                .process
                .socket()
                .map_err(|error| Error::io("cannot make a socket in the jail's network", error))
        })
    }

    /// Where this jail can be looked at, and what stands round it.
    pub fn outside(&self) -> Result<Outside> {
        let Standing {
            seccomp,
            landlock,
            masked,
            read_only,
        } = &self.0.standing;
        self.0.living("look at", |cgroups| {
            Ok(Outside {
                pid: self.0.process.pid().as_raw_nonzero().get().unsigned_abs(),
                cgroups: cgroups.places(),
                seccomp: seccomp
                    .as_ref()
                    .map(|program| program.iter().copied().flat_map(Instruction::bytes).collect()),
                landlock: *landlock,
                masked: masked.clone(),
                read_only: read_only.clone(),
                boots: 1,
            })
        })
    }
}

impl Shared {
    fn kill(&self) -> Result<()> {
        let killed = self.process.kill();
        // What is frozen dies only when thawed, so after the signal.
        if let Some(cgroups) = &*self.cgroups.read().unwrap_or_else(PoisonError::into_inner) {
            cgroups.kill();
        }
        killed
    }

    fn living<T>(&self, verb: &str, act: impl FnOnce(&Cgroups) -> Result<T>) -> Result<T> {
        match &*self.cgroups.read().unwrap_or_else(PoisonError::into_inner) {
            Some(cgroups) if self.process.status.get().is_none() => act(cgroups),
            _ => Err(ended(verb)),
        }
    }
}

/// The child of the launcher's; killed and reaped at the latest when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    status: OnceLock<ExitStatus>,
}

impl Process {
    pub(crate) fn new(pid: Pid, pidfd: OwnedFd) -> Process {
        Process {
            pid,
            pidfd,
            status: OnceLock::new(),
        }
    }

    /// Names the process as long as it is not reaped.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    pub(crate) fn kill(&self) -> Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(Error::io("cannot kill the jail's first process", error)),
        }
    }

    pub(crate) fn wait(&self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.status.get() {
                return Ok(*status);
            }
            // Any number of threads may wait; one of them reaps, after it has told the others how.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Ok(Some(found)) => {
                    let _ = self.status.set(exit_status(&found));
                    let _ = rustix::process::waitid(
                        WaitId::PidFd(self.pidfd.as_fd()),
                        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
                    );
                }
                Ok(None) | Err(Errno::INTR) => {}
                Err(Errno::CHILD) if self.status.get().is_some() => {}
                Err(error) => {
                    return Err(Error::io("cannot wait for the jail's first process", error));
                }
            }
        }
    }

    /// Made by a thread that ends with it, since a thread that changes its namespace does so for good.
    fn socket(&self) -> std::io::Result<OwnedFd> {
        let make = || {
            sys::enter_network(self.pidfd.as_fd())?;
            rustix::net::socket_with(
                AddressFamily::INET,
                SocketType::STREAM,
                SocketFlags::CLOEXEC,
                None,
            )
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("socket".to_owned())
                .stack_size(STACK)
                .spawn_scoped(scope, make)?;
            let made = thread.join().map_err(|_| std::io::ErrorKind::Other)?;
            Ok(made?)
        })
    }

    fn end(&self) {
        if self.status.get().is_none() {
            // Neither can fail for a child that is not reaped; there is nobody to tell in a drop anyway.
            let _ = self.kill();
            let _ = self.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

fn exit_status(status: &rustix::process::WaitIdStatus) -> ExitStatus {
    if let Some(code) = status.exit_status() {
        return ExitStatus::Code(code as u8);
    }
    match status.terminating_signal() {
        Some(number) => ExitStatus::Signal {
            number: number as u8,
            core_dumped: status.dumped(),
        },
        None => ExitStatus::Code(u8::MAX),
    }
}

/// The error of a jail that has ended.
fn ended(verb: &str) -> Error {
    Error::new(Kind::Conflict, format!("cannot {verb} the jail")).because("it has ended")
}
