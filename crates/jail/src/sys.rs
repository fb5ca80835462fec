//! The system calls that no safe crate offers, each behind a function whose callers need no care; the one module of
//! this crate with `unsafe` in it.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, Result};
use rustix::process::Pid;

/// `-1` becomes `errno`.
fn check(result: c_long) -> Result<c_long> {
    if result >= 0 {
        return Ok(result);
    }
    // SAFETY: `__errno_location` returns this thread's errno, valid as long as the thread is.
    Err(Errno::from_raw_os_error(unsafe { *libc::__errno_location() }))
}

/// A new process that runs `body` and ends with its value, in the new namespaces that `flags` name and, where given, in
/// that cgroup (version 2). Returns its pid and a pidfd.
///
/// The child is a copy of the calling thread alone: another thread may have held the allocator's lock at that moment,
/// so `body` must neither allocate nor take a lock nor unwind. Signals are blocked in the child and their dispositions
/// are the default; [`Self::release_signals`] unblocks them.
pub(crate) fn spawn(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    body: &dyn Fn() -> u8,
) -> Result<(Pid, OwnedFd)> {
    let mut pidfd: c_int = -1;
    // SAFETY: all-zero is a valid `clone_args`: no flags, no stack, no set_tid.
    let mut arguments: libc::clone_args = unsafe { zeroed() };
    arguments.flags = flags | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: all-zero is a valid signal set; both pointers are to live locals of the right type.
    let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { (zeroed(), zeroed()) };
    unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
    }
    // SAFETY: `arguments` is a live clone_args of the size given. No CLONE_VM and no stack: the child returns from this
    // call on a copy of this stack, as after fork. It runs `body`, which by contract touches nothing another thread may
    // have left locked, and leaves by `_exit`, which runs no destructor of the parent's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    if result == 0 {
        let code = body();
        // SAFETY: `_exit` ends the process without running anything.
        unsafe { libc::_exit(c_int::from(code)) };
    }
    let result = check(result);
    // SAFETY: `before` was filled in above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    let pid = Pid::from_raw(result? as i32).ok_or(Errno::CHILD)?;
    // SAFETY: clone3 succeeded with CLONE_PIDFD, so `pidfd` is a descriptor that only we know.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Ends the process without running anything.
pub(crate) fn exit() -> ! {
    // SAFETY: always sound; used by the child, which has nothing to clean up.
    unsafe { libc::_exit(0) }
}

/// Default dispositions (a `SIGPIPE` ignored by the caller included) and an empty mask, as a program expects them.
pub(crate) fn release_signals() {
    for number in 1..=64 {
        // SAFETY: SIG_DFL is a valid disposition; numbers that cannot be set fail without effect.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    // SAFETY: all-zero is the empty set.
    unsafe {
        let none: libc::sigset_t = zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// `struct mount_attr` of `linux/mount.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MountAttributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) propagation: u64,
    pub(crate) user_namespace: u64,
}

/// mount_setattr(2) on the mount that `mount` is open on, and with `recursive` on all below it.
pub(crate) fn mount_set_attributes(
    mount: BorrowedFd<'_>,
    attributes: &MountAttributes,
    recursive: bool,
) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal and `attributes` a live mount_attr of the size given; the kernel
    // reads both and keeps neither.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags as c_uint,
            std::ptr::from_ref(attributes),
            size_of::<MountAttributes>(),
        )
    })
    .map(drop)
}

/// One instruction of classic BPF, `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jump_true: u8,
    pub(crate) jump_false: u8,
    pub(crate) operand: u32,
}

impl Instruction {
    /// The eight bytes the kernel reads.
    pub(crate) fn bytes(self) -> [u8; 8] {
        let ([c0, c1], [o0, o1, o2, o3]) = (self.code.to_ne_bytes(), self.operand.to_ne_bytes());
        [c0, c1, self.jump_true, self.jump_false, o0, o1, o2, o3]
    }
}

/// Puts the calling thread behind a seccomp filter, for good.
pub(crate) fn seccomp_filter(program: &[Instruction]) -> Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const Instruction,
    }
    let length = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let program = Program {
        length,
        filter: program.as_ptr(),
    };
    // SAFETY: `Program` has the layout of `struct sock_fprog` and points to `length` live instructions; the kernel
    // copies and verifies them.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0 as c_uint,
            std::ptr::from_ref(&program),
        )
    })
    .map(drop)
}

/// The Landlock version of this kernel, 1 or more.
pub(crate) fn landlock_version() -> Result<u32> {
    const VERSION: c_uint = 1;
    // SAFETY: with this flag the kernel takes no pointer.
    check(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            VERSION,
        )
    })
    .map(|version| version as u32)
}

/// `struct landlock_ruleset_attr` as of version 6. Older kernels take it as long as what they do not know is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LandlockAttributes {
    pub(crate) handled_access_fs: u64,
    pub(crate) handled_access_net: u64,
    /// `LANDLOCK_SCOPE_*`.
    pub(crate) scoped: u64,
}

/// A Landlock ruleset that forbids everything it handles.
pub(crate) fn landlock_ruleset(attributes: &LandlockAttributes) -> Result<OwnedFd> {
    // SAFETY: `attributes` has the layout of `struct landlock_ruleset_attr` and the size given; on success the result is
    // a descriptor nobody else knows.
    unsafe {
        let fd = check(libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::from_ref(attributes),
            size_of::<LandlockAttributes>(),
            0 as c_uint,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Allows `access` (`LANDLOCK_ACCESS_FS_*`) below `parent`.
pub(crate) fn landlock_allow(ruleset: BorrowedFd<'_>, access: u64, parent: BorrowedFd<'_>) -> Result<()> {
    #[repr(C, packed)]
    struct PathBeneath {
        allowed_access: u64,
        parent_fd: i32,
    }
    const RULE_PATH_BENEATH: c_uint = 1;
    let rule = PathBeneath {
        allowed_access: access,
        parent_fd: parent.as_raw_fd(),
    };
    // SAFETY: `rule` has the layout of `struct landlock_path_beneath_attr` and outlives the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            RULE_PATH_BENEATH,
            &raw const rule,
            0 as c_uint,
        )
    })
    .map(drop)
}

pub(crate) fn landlock_restrict(ruleset: RawFd) -> Result<()> {
    // SAFETY: takes two integers; a wrong descriptor is an error.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0 as c_uint) }).map(drop)
}

/// A session keyring of its own for the caller, without a name; a kernel without keys has nothing to inherit.
pub(crate) fn new_session_keyring() -> Result<()> {
    const JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is passed.
    match check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<c_char>()) })
    {
        Ok(_) | Err(Errno::NOSYS) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A cgroup namespace whose root is the cgroups the caller is in.
pub(crate) fn unshare_cgroup_namespace() -> Result<()> {
    // SAFETY: this flag changes what the caller sees of cgroups and nothing that other threads share.
    check(c_long::from(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) })).map(drop)
}

/// A user and a mount namespace for the caller itself, which must be the only thread.
pub(crate) fn unshare_user_and_mounts() -> Result<()> {
    // SAFETY: the kernel refuses the first flag to a process with several threads; the second then concerns this one.
    check(c_long::from(unsafe {
        libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)
    }))
    .map(drop)
}

/// A mount namespace for the calling thread alone, and with it a root and a working directory of its own.
pub(crate) fn unshare_mounts() -> Result<()> {
    // SAFETY: neither flag touches what other threads keep sharing.
    check(c_long::from(unsafe {
        libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS)
    }))
    .map(drop)
}

/// Moves the calling thread alone into the network namespace of a process.
pub(crate) fn enter_network(process: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: setns takes two integers; a network namespace is a thread's own and changes no memory or descriptor.
    check(c_long::from(unsafe {
        libc::setns(process.as_raw_fd(), libc::CLONE_NEWNET)
    }))
    .map(drop)
}

pub(crate) fn working_directory_is_root() -> Result<bool> {
    let mut buffer = [0u8; libc::PATH_MAX as usize];
    // SAFETY: the kernel writes at most the length given.
    let length = check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) })?;
    Ok(&buffer[..length as usize] == b"/\0")
}

/// Brings the loopback device of the calling thread's network namespace up.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { zeroed() };
    request.ifr_name[0] = b'l' as c_char;
    request.ifr_name[1] = b'o' as c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`, which `request` is.
    check(c_long::from(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request)
    }))
    .map(drop)
}

/// Copies `from` onto the number `to`, which stays open across execve if `inherited`.
pub(crate) fn duplicate_onto(from: RawFd, to: RawFd, inherited: bool) -> Result<()> {
    let flags = if inherited { 0 } else { libc::O_CLOEXEC };
    if from == to {
        // SAFETY: integers only.
        let flags = if inherited { 0 } else { libc::FD_CLOEXEC };
        return check(c_long::from(unsafe { libc::fcntl(from, libc::F_SETFD, flags) })).map(drop);
    }
    // SAFETY: integers only. What was open at `to` is closed; the caller owns the whole descriptor table.
    check(c_long::from(unsafe { libc::dup3(from, to, flags) })).map(drop)
}

/// The lowest free number at or above `least`, for a copy of `from` that execve closes.
pub(crate) fn duplicate_above(from: RawFd, least: RawFd) -> Result<RawFd> {
    // SAFETY: integers only.
    check(c_long::from(unsafe {
        libc::fcntl(from, libc::F_DUPFD_CLOEXEC, least)
    }))
    .map(|fd| fd as RawFd)
}

/// Closes every descriptor from `first` to `last`.
pub(crate) fn close_range(first: c_uint, last: c_uint) -> Result<()> {
    // SAFETY: integers only; the caller owns the whole descriptor table.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0 as c_uint) }).map(drop)
}

pub(crate) fn close(fd: RawFd) {
    // SAFETY: integers only; the caller owns the descriptor.
    unsafe { libc::close(fd) };
}

/// The descriptor as a borrowed one, for a table of raw numbers that its owner keeps open.
pub(crate) fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the child's table holds numbers it opened or received and closes none before execve; -1 is never looked
    // up (see `child::Table`).
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// The memory of a program's arguments or environment, as execve takes it.
pub(crate) struct Strings {
    pointers: Vec<*const c_char>,
    _owned: Vec<std::ffi::CString>,
}

impl Strings {
    pub(crate) fn new(owned: Vec<std::ffi::CString>) -> Strings {
        let mut pointers: Vec<_> = owned.iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Strings {
            pointers,
            _owned: owned,
        }
    }
}

/// Runs the program that `executable` is open on; returns only on failure.
pub(crate) fn execute(executable: RawFd, arguments: &Strings, environment: &Strings) -> Errno {
    let empty: &CStr = c"";
    // SAFETY: both arrays end in null and point to NUL-terminated strings that `Strings` owns.
    let result = check(unsafe {
        libc::syscall(
            libc::SYS_execveat,
            executable,
            empty.as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    });
    result.err().unwrap_or(Errno::INVAL)
}
