//! Launches a jail: everything that can fail for a known reason is checked and made before the child is there, the child
//! follows a written list, and whatever fails leaves nothing behind.
//!
//! ```text
//! launcher                                   child
//! check spec, compile filter, plan
//! make cgroups, clone3 ────────────────────▶ join cgroups, own namespaces
//! write id maps, make mounts                 wait
//! send mounts ─────────────────────────────▶ attach mounts, pivot, confine
//!                     ◀──────────── running  execve
//! ```

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use luna_core::{Error, Kind, Result};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::cgroup::{self, Cgroups, Devices};
use crate::child::{self, MOST_MOUNTS, Report};
use crate::jailed::{Jailed, Process, Standing};
use crate::mount::{self, IdMapping};
use crate::plan::{self, Inherited, Plan};
use crate::spec::{Defences, Network, Spec};
use crate::step::Step;
use crate::sys;
use crate::{ids, landlock, sealed, seccomp};

/// Starts the spec's program behind the wall. When this returns, the program runs.
///
/// With [`Defences::die_with_parent`] the jail dies with the *thread* that called this: call it from one that lives as
/// long as the jail shall.
pub fn launch(spec: Spec) -> Result<Jailed> {
    check(&spec)?;
    let cannot = |error: Error| error.context(format!("cannot build the jail `{}`", spec.name));
    let landlock = landlock::ruleset(&spec).map_err(cannot)?;
    let devices = Devices::of(&spec).map_err(cannot)?;
    // Removed when dropped, after the process that was inside.
    let mut cgroups = Cgroups::create(&spec.name, &spec.limits, devices.as_ref()).map_err(cannot)?;
    let inherited = Inherited {
        cgroups: cgroups.tasks(),
        seccomp: seccomp::program(&spec.defences.seccomp, spec.defences.capabilities),
        landlock: landlock.as_ref().map(AsRawFd::as_raw_fd),
    };
    let plan = Plan::new(&spec, &inherited)?;
    let (ours, theirs) = status_sockets().map_err(cannot)?;

    let body = || child::run(&plan.steps, theirs.as_raw_fd(), ours.as_raw_fd());
    let (pid, pidfd) = match sys::spawn(clone_flags(&spec), cgroups.directory(), &body) {
        // The cgroup is ours to write, but the way from our own one to it leads through one that is not. Without a
        // limit asked for, the jail stays in the launcher's.
        Err(Errno::ACCESS) if cgroups.directory().is_some() && !spec.limits.asked() => {
            cgroups.leave_version_two();
            sys::spawn(clone_flags(&spec), None, &body)
        }
        other => other,
    }
    .map_err(|error| match error {
        Errno::ACCESS if cgroups.directory().is_some() => cannot(
            Error::io("cannot enter its cgroup", error)
                .hint("run Luna in a delegated scope: `systemd-run --user --scope --property Delegate=yes luna ...`"),
        ),
        other => cannot(namespaces_refused(other)),
    })?;
    // From here on dropping this kills and reaps the child.
    let process = Process::new(pid, pidfd);
    drop(theirs);
    let namespace = map_ids(&spec, &process).map_err(cannot)?;
    let mounts = make_mounts(&spec, &plan, namespace.as_ref()).map_err(cannot)?;
    send(&ours, &mounts).map_err(cannot)?;
    drop((mounts, namespace));
    await_program(&ours, &plan, &process).map_err(cannot)?;
    let standing = Standing {
        seccomp: inherited.seccomp,
        landlock: landlock.and(sys::landlock_version().ok()),
        masked: plan::masked(&spec.defences),
        read_only: plan::read_only(&spec.defences),
    };
    // The launcher's copies of what the program inherits: the other end of a channel must see it close.
    drop(spec);
    Ok(Jailed::new(process, cgroups, standing))
}

/// Removes what a launcher that was killed with SIGKILL could not remove of the jail `name`: its cgroups. Everything else
/// dies with the jail's processes, which died with their launcher. Only for a jail that no [`Jailed`] stands for.
pub fn reclaim(name: &str) -> Result<()> {
    if !is_name(name) {
        return Err(Error::new(
            Kind::InvalidInput,
            format!("cannot find a jail `{}`", name.escape_debug()),
        ));
    }
    cgroup::reclaim(name)
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(plain)
}

fn check(spec: &Spec) -> Result<()> {
    if !is_name(&spec.name) {
        return Err(plan::invalid(
            spec,
            "its name has other characters than [A-Za-z0-9_.-]",
        ));
    }
    if spec.ids.count == 0 || spec.ids.base.checked_add(spec.ids.count).is_none() {
        return Err(plan::invalid(spec, "its range of ids is empty or too high"));
    }
    if spec.hostname.is_empty() || spec.hostname.len() > 64 {
        return Err(plan::invalid(
            spec,
            "its host name is not 1 to 64 characters long",
        ));
    }
    if spec.defences.sealed_program && !sealed::is_sealed(spec.program.executable.as_fd()) {
        return Err(plan::invalid(spec, "its program is not in a sealed memfd"));
    }
    Ok(())
}

pub(crate) fn clone_flags(spec: &Spec) -> u64 {
    let Defences {
        user_namespace,
        pid_namespace,
        ipc_namespace,
        uts_namespace,
        ..
    } = spec.defences;
    let mut flags = libc::CLONE_NEWNS;
    for (wanted, flag) in [
        (user_namespace, libc::CLONE_NEWUSER),
        (pid_namespace, libc::CLONE_NEWPID),
        (ipc_namespace, libc::CLONE_NEWIPC),
        (uts_namespace, libc::CLONE_NEWUTS),
        (spec.network == Network::Own, libc::CLONE_NEWNET),
    ] {
        if wanted {
            flags |= flag;
        }
    }
    flags as u64
}

pub(crate) fn namespaces_refused(error: Errno) -> Error {
    let refused = Error::io("cannot make the namespaces", error);
    match error {
        Errno::PERM => refused.hint(
            "allow user namespaces: `sysctl user.max_user_namespaces kernel.unprivileged_userns_clone \
             kernel.apparmor_restrict_unprivileged_userns`",
        ),
        Errno::NOSPC | Errno::USERS => {
            refused.hint("raise `sysctl user.max_user_namespaces` and its siblings under `user.`")
        }
        _ => refused,
    }
}

/// The launcher's end and the child's.
pub(crate) fn status_sockets() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| Error::io("cannot make a socket pair", error))
}

/// Gives the child's user namespace, where it has one of its own, its ids.
pub(crate) fn map_ids(spec: &Spec, process: &Process) -> Result<Option<File>> {
    if !spec.defences.user_namespace {
        return Ok(None);
    }
    for map in ["uid_map", "gid_map"] {
        ids::map(process.pid(), map, spec.ids)?;
    }
    mount::user_namespace(process.pid()).map(Some)
}

/// Makes the mounts that only the launcher can make.
pub(crate) fn make_mounts(spec: &Spec, plan: &Plan, namespace: Option<&File>) -> Result<Vec<OwnedFd>> {
    let mapping = namespace
        .filter(|_| spec.ids.base != 0)
        .map(|namespace| IdMapping {
            ids: spec.ids,
            namespace: namespace.as_fd(),
        });
    plan.sources.iter().map(|source| source.make(mapping)).collect()
}

pub(crate) fn send(socket: &OwnedFd, mounts: &[OwnedFd]) -> Result<()> {
    let mounts: Vec<_> = mounts.iter().map(AsFd::as_fd).collect();
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_MOUNTS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !mounts.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&mounts)) {
        return Err(Error::new(
            Kind::Internal,
            "cannot fit the mounts into one message",
        ));
    }
    rustix::net::sendmsg(
        socket,
        &[std::io::IoSlice::new(b"m")],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map_err(|error| Error::io("cannot send the mounts", error))
    .map(drop)
}

/// Reads the child's reports until its end of the socket is closed: by execve, after it has said so, or by its death.
pub(crate) fn await_program(socket: &OwnedFd, plan: &Plan, process: &Process) -> Result<()> {
    let mut running = false;
    loop {
        let mut bytes = [0; Report::LENGTH];
        let length = rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut bytes))
            .map_err(|error| Error::io("cannot hear from the child", error))?;
        match Report::from_bytes(bytes) {
            _ if length == 0 && running => return Ok(()),
            _ if length == 0 => {
                let status = process.wait()?;
                return Err(Error::new(Kind::Internal, "cannot start the program")
                    .because(format!("its process died before ({status:?})")));
            }
            Report::RUNNING => running = true,
            report => {
                let stage = plan
                    .steps
                    .get(report.step as usize)
                    .map_or("start".into(), Step::stage);
                let errno = Errno::from_raw_os_error(report.error);
                let error = Error::io(format!("cannot {stage}"), errno);
                return Err(match (plan.steps.get(report.step as usize), errno) {
                    (Some(Step::ResourceLimit(..)), Errno::PERM) => {
                        error.hint("ask for no more than Luna's own hard limit, which `ulimit -Ha` shows")
                    }
                    _ => error,
                });
            }
        }
    }
}
