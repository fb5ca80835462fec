//! The child between clone and execve: follows the steps one by one.
//!
//! It is a copy of one thread of a process that may have many, so nothing in here allocates, takes a lock, prints or
//! unwinds; every string and buffer was made before the clone, and what is made here lies on the stack. Failure goes to
//! the launcher as a [`Report`] and ends the process.

use std::cell::Cell;
use std::ffi::CStr;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::{Errno, Result};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use rustix::thread::CapabilitySet;

use crate::resolve::{self, Kind};
use crate::step::{Descriptors, MOST_INHERITED, SLOTS, Slot, Step, TargetKind};
use crate::sys::{self, MountAttributes};

/// The most descriptors that one message carries (`SCM_MAX_FD` is 253).
pub(crate) const MOST_MOUNTS: usize = 200;

/// What the child says on the status socket: eight bytes, step and error number; [`Report::RUNNING`] right before
/// execve, after which the socket's end means that the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) step: u32,
    pub(crate) error: i32,
}

impl Report {
    pub(crate) const LENGTH: usize = 8;
    pub(crate) const RUNNING: Report = Report {
        step: u32::MAX,
        error: 0,
    };

    pub(crate) fn to_bytes(self) -> [u8; Report::LENGTH] {
        let mut bytes = [0; Report::LENGTH];
        bytes[..4].copy_from_slice(&self.step.to_ne_bytes());
        bytes[4..].copy_from_slice(&self.error.to_ne_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; Report::LENGTH]) -> Report {
        let (step, error) = bytes.split_at(4);
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_ne_bytes);
        Report {
            step: word(step),
            error: word(error) as i32,
        }
    }
}

/// Runs the steps; the last one is execve, so this returns only on failure. `status` is the child's end of the status
/// socket, `launcher` the other end, which the child must not hold on to.
pub(crate) fn run(steps: &[Step], status: RawFd, launcher: RawFd) -> u8 {
    sys::close(launcher);
    let child = Child {
        status: Cell::new(status),
        mounts: Table::new(),
    };
    for (number, step) in steps.iter().enumerate() {
        if let Err(error) = child.follow(step) {
            child.say(Report {
                step: number as u32,
                error: error.raw_os_error(),
            });
            break;
        }
    }
    1
}

struct Child {
    status: Cell<RawFd>,
    mounts: Table,
}

/// The slots: numbers of descriptors that stay open until execve, or -1.
struct Table([Cell<RawFd>; SLOTS]);

impl Table {
    fn new() -> Table {
        Table([const { Cell::new(-1) }; SLOTS])
    }

    fn get(&self, slot: Slot) -> Option<BorrowedFd<'_>> {
        let fd = self.0[usize::from(slot.0)].get();
        (fd >= 0).then(|| sys::borrow(fd))
    }

    fn require(&self, slot: Slot) -> Result<BorrowedFd<'_>> {
        self.get(slot).ok_or(Errno::BADF)
    }

    fn put(&self, slot: Slot, fd: OwnedFd) {
        self.0[usize::from(slot.0)].set(fd.into_raw_fd());
    }
}

impl Child {
    fn say(&self, report: Report) {
        // The launcher reads the end of the socket as a failure too, so a lost report loses only its reason.
        let _ = rustix::io::write(sys::borrow(self.status.get()), &report.to_bytes());
    }

    fn follow(&self, step: &Step) -> Result<()> {
        match step {
            Step::JoinCgroup(tasks) => rustix::io::write(sys::borrow(*tasks), b"0").map(drop),
            Step::CgroupNamespace => sys::unshare_cgroup_namespace(),
            Step::Session => {
                rustix::process::umask(Mode::from_raw_mode(0o022));
                rustix::process::setsid().map(drop)
            }
            Step::SessionKeyring => sys::new_session_keyring(),
            Step::LoopbackUp => {
                let socket = rustix::net::socket_with(
                    AddressFamily::INET,
                    SocketType::DGRAM,
                    SocketFlags::CLOEXEC,
                    None,
                )?;
                sys::loopback_up(socket.as_fd())
            }
            Step::Hostname(name) => rustix::system::sethostname(name),
            Step::Receive(count) => self.receive(*count),
            Step::BecomeRoot => become_root(),
            Step::DieWithParent => {
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
                self.launcher_alive()
            }
            Step::PrivateMounts => {
                rustix::mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            }
            Step::Filesystem {
                kind,
                flags,
                options,
                attributes,
                into,
            } => {
                let context = rustix::mount::fsopen(*kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
                for flag in *flags {
                    rustix::mount::fsconfig_set_flag(&context, *flag)?;
                }
                for (key, value) in options {
                    rustix::mount::fsconfig_set_string(&context, *key, value.as_c_str())?;
                }
                rustix::mount::fsconfig_create(&context)?;
                let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, *attributes)?;
                self.mounts.put(*into, mount);
                Ok(())
            }
            Step::AttachOverRoot(mount) => rustix::mount::move_mount(
                self.mounts.require(*mount)?,
                c"",
                rustix::fs::CWD,
                c"/",
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            ),
            Step::MakeDirectory { at, path, mode } => rustix::fs::mkdirat(
                self.mounts.require(*at)?,
                path.as_c_str(),
                Mode::from_raw_mode(*mode),
            ),
            Step::MakeFile {
                at,
                path,
                content,
                mode,
            } => self.make_file(*at, path, content, Mode::from_raw_mode(*mode)),
            Step::MakeLink { at, path, to } => {
                rustix::fs::symlinkat(*to, self.mounts.require(*at)?, path.as_c_str())
            }
            Step::Attach { mount, at, path } => {
                let Some(mount) = self.mounts.get(*mount) else {
                    return Ok(());
                };
                attach(mount, &ours(self.mounts.require(*at)?, path)?)
            }
            Step::AttachInRoot {
                mount,
                root,
                path,
                kind,
                in_root,
            } => {
                let Some(fd) = self.mounts.get(*mount) else {
                    return Ok(());
                };
                let kind = match kind {
                    TargetKind::Directory => Kind::Directory,
                    TargetKind::File => Kind::File,
                    TargetKind::Like(slot) => kind_of(self.mounts.require(*slot)?)?,
                };
                let target =
                    resolve::open_or_create(self.mounts.require(*root)?, path.as_c_str(), kind, *in_root)?;
                attach(fd, &target)
            }
            Step::Clone { at, path, into } => {
                let clone = clone_mount(self.mounts.require(*at)?, path)?;
                self.mounts.put(*into, clone);
                Ok(())
            }
            Step::Mask {
                at,
                path,
                directory,
                devices,
            } => self.mask(*at, path, *directory, *devices),
            Step::ReadOnlyPath { at, path } => {
                let target = match ours(self.mounts.require(*at)?, path) {
                    Err(Errno::NOENT) => return Ok(()),
                    other => other?,
                };
                let clone = clone_mount(target.as_fd(), c"")?;
                read_only(clone.as_fd())?;
                attach(clone.as_fd(), &target)
            }
            Step::ReadOnly(mount) => read_only(self.mounts.require(*mount)?),
            Step::ExecLabel { proc, path, label } => {
                let file = rustix::fs::openat(
                    self.mounts.require(*proc)?,
                    *path,
                    OFlags::WRONLY | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                rustix::io::write(&file, label).map(drop)
            }
            Step::Pivot(root) => pivot(self.mounts.require(*root)?),
            Step::CheckRoot(root) => check_root(self.mounts.require(*root)?),
            Step::ResourceLimit(resource, limit) => rustix::process::setrlimit(*resource, *limit),
            Step::Descriptors(wanted) => self.descriptors(wanted),
            Step::BoundingSet(keep) => drop_bounding_set(*keep),
            Step::NoNewPrivileges => rustix::thread::set_no_new_privs(true),
            Step::Landlock(ruleset) => sys::landlock_restrict(*ruleset),
            Step::Seccomp(program) => sys::seccomp_filter(program),
            Step::Capabilities(keep) => {
                let keep = CapabilitySet::from_bits_retain(*keep);
                let sets = rustix::thread::CapabilitySets {
                    effective: keep,
                    permitted: keep,
                    inheritable: CapabilitySet::empty(),
                };
                rustix::thread::set_capabilities(None, sets)
            }
            Step::Stop => {
                self.say(Report::RUNNING);
                sys::exit()
            }
            Step::Execute {
                executable,
                arguments,
                environment,
            } => {
                sys::release_signals();
                self.say(Report::RUNNING);
                Err(sys::execute(*executable, arguments, environment))
            }
        }
    }

    /// One message with the launcher's mounts. Its end instead of a message means that the launcher is gone.
    fn receive(&self, count: usize) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_MOUNTS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0u8];
        let message = rustix::net::recvmsg(
            sys::borrow(self.status.get()),
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        if message.bytes == 0 {
            return Err(Errno::CONNABORTED);
        }
        let mut received = 0;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                for fd in fds {
                    self.mounts.put(Slot(received as u8), fd);
                    received += 1;
                }
            }
        }
        if received == count {
            Ok(())
        } else {
            Err(Errno::PROTO)
        }
    }

    /// The death signal is set, but the launcher may have died before; then nobody holds the socket's other end.
    fn launcher_alive(&self) -> Result<()> {
        let status = sys::borrow(self.status.get());
        let mut poll = [PollFd::from_borrowed_fd(status, PollFlags::empty())];
        rustix::event::poll(
            &mut poll,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        )?;
        if poll[0].revents().contains(PollFlags::HUP) {
            Err(Errno::CONNABORTED)
        } else {
            Ok(())
        }
    }

    fn make_file(&self, at: Slot, path: &CStr, content: &[u8], mode: Mode) -> Result<()> {
        let file = rustix::fs::openat(
            self.mounts.require(at)?,
            path,
            OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC,
            mode,
        )?;
        let mut rest = content;
        while !rest.is_empty() {
            let written = rustix::io::write(&file, rest)?;
            rest = &rest[written..];
        }
        Ok(())
    }

    fn mask(&self, at: Slot, path: &CStr, directory: Slot, devices: Slot) -> Result<()> {
        let target = match ours(self.mounts.require(at)?, path) {
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        // Cloned from where they are attached: of a mount that is not, older kernels make no second one.
        let (cover, path) = match kind_of(target.as_fd())? {
            Kind::Directory => (directory, c""),
            Kind::File => (devices, c"null"),
        };
        attach(clone_mount(self.mounts.require(cover)?, path)?.as_fd(), &target)
    }

    /// Moves what the program inherits out of the way of 0.., then each to its place, then closes all else. The status
    /// socket comes right after them, then the executable; execve closes both.
    fn descriptors(&self, wanted: &Descriptors) -> Result<()> {
        let null = rustix::fs::openat(
            self.mounts.require(wanted.devices)?,
            c"null",
            OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY,
            Mode::empty(),
        )?;
        let count = 3 + wanted.inherited.len();
        let mut copies = [-1; 3 + MOST_INHERITED];
        for (place, copy) in copies[..count].iter_mut().enumerate() {
            let fd = match place.checked_sub(3) {
                Some(place) => wanted.inherited[place],
                None => wanted.stdio[place].unwrap_or(null.as_raw_fd()),
            };
            *copy = sys::duplicate_above(fd, ABOVE_ALL_PLACES)?;
        }
        let status = sys::duplicate_above(self.status.get(), ABOVE_ALL_PLACES)?;
        let executable = sys::duplicate_above(wanted.executable, ABOVE_ALL_PLACES)?;
        drop(null);
        for (place, copy) in copies[..count].iter().enumerate() {
            sys::duplicate_onto(*copy, place as RawFd, true)?;
        }
        let first_free = count as RawFd;
        sys::duplicate_onto(status, first_free, false)?;
        self.status.set(first_free);
        sys::duplicate_onto(executable, wanted.executable_place(), false)?;
        if wanted.close_others {
            sys::close_range(wanted.executable_place() as u32 + 1, u32::MAX)?;
        }
        Ok(())
    }
}

/// Copies in transit are made above every place they may be moved to.
const ABOVE_ALL_PLACES: RawFd = 3 + MOST_INHERITED as RawFd + 2;

fn become_root() -> Result<()> {
    // Before any id is taken: afterwards these are the namespace's own.
    match rustix::thread::set_thread_groups(&[]) {
        Ok(()) | Err(Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let (uid, gid) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

fn attach(mount: BorrowedFd<'_>, target: &OwnedFd) -> Result<()> {
    rustix::mount::move_mount(
        mount,
        c"",
        target,
        c"",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

fn clone_mount(at: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    rustix::mount::open_tree(
        at,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH,
    )
}

fn read_only(mount: BorrowedFd<'_>) -> Result<()> {
    let attributes = MountAttributes {
        set: MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into(),
        ..MountAttributes::default()
    };
    sys::mount_set_attributes(mount, &attributes, false)
}

/// A path in a mount whose content is the kernel's or ours: no link may be in it.
fn ours(at: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    rustix::fs::openat2(
        at,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
}

fn kind_of(file: BorrowedFd<'_>) -> Result<Kind> {
    let found = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
    Ok(match FileType::from_raw_mode(u32::from(found.stx_mode)) {
        FileType::Directory => Kind::Directory,
        _ => Kind::File,
    })
}

/// pivot_root(2) with the same directory twice: the old root ends up on top of the new one, the staging mount on top of
/// that, and both are let go of.
fn pivot(root: BorrowedFd<'_>) -> Result<()> {
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

/// The working directory is `/` of the jail's root and reachable (CVE-2024-21626), and nothing of the host's lies on top
/// of it: `..` of a root leads to whatever is mounted there.
fn check_root(root: BorrowedFd<'_>) -> Result<()> {
    if !sys::working_directory_is_root()? {
        return Err(Errno::XDEV);
    }
    let identity = |file: BorrowedFd<'_>| {
        let found = rustix::fs::statx(
            file,
            c"",
            AtFlags::EMPTY_PATH,
            StatxFlags::INO | StatxFlags::MNT_ID,
        )?;
        Ok((found.stx_ino, found.stx_mnt_id))
    };
    let here = rustix::fs::openat(
        rustix::fs::CWD,
        c"..",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    if identity(here.as_fd())? == identity(root)? {
        Ok(())
    } else {
        Err(Errno::XDEV)
    }
}

fn drop_bounding_set(keep: u64) -> Result<()> {
    for number in 0..=63 {
        if keep & (1 << number) != 0 {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(
            1 << number,
        )) {
            Ok(()) => {}
            // The first number this kernel does not know.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    rustix::thread::clear_ambient_capability_set()
}
