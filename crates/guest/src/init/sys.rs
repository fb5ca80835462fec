//! The system calls that need `unsafe`: fork, execve, signals, the inherited channel.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Signals init takes from its signal descriptor in place of dying of them.
pub(super) const TAKEN: [i32; 7] = [
    libc::SIGCHLD,
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// Takes over a descriptor this process inherited. Call once per number, before anything else is opened.
pub(super) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD reads the descriptor table and touches no memory.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is open, as just seen, and by this function's contract nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Marks every descriptor from 3 on close-on-exec.
pub(super) fn close_on_exec_from_3() -> io::Result<()> {
    // SAFETY: sets flags in the descriptor table; no memory is involved. By number, since the C library may lack it.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Closes every descriptor from 3 on. Only for a forked child that leaves without dropping what it inherited.
pub(super) fn close_from_3() {
    // SAFETY: in that child nobody uses a higher descriptor again or drops its owner, by this function's contract.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: `set` is writable and sigemptyset initialises all of it; sigaddset then gets an initialised set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Blocks [`TAKEN`] and returns a descriptor that reads them.
pub(super) fn signal_descriptor() -> io::Result<OwnedFd> {
    let set = set_of(&TAKEN);
    // SAFETY: `set` is initialised and outlives both calls; the old mask is not asked for. signalfd's result, when not
    // negative, is a new descriptor that nobody else owns.
    unsafe {
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        let number = libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(number))
    }
}

/// The next pending signal's number and sender (a pid of this pid namespace, 0 from outside of it).
pub(super) fn next_signal(descriptor: BorrowedFd<'_>) -> Option<i32> {
    let mut record = [0u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(descriptor, &mut record) {
        Ok(count) if count == record.len() => {
            // `ssi_signo` is the record's first field, a u32.
            record
                .first_chunk()
                .map(|bytes| u32::from_ne_bytes(*bytes) as i32)
        }
        _ => None,
    }
}

/// Sends any signal number, real-time ones included; a negative `pid` means the process group.
pub(super) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill touches no memory of ours.
    if unsafe { libc::kill(pid, signal) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Every signal's disposition and the mask as a new program expects them.
pub(super) fn reset_signals() {
    // The kernel's `struct sigaction` (handler, flags, restorer, mask; one word each on 64-bit machines) for SIG_DFL.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // By number, since the C library refuses its own two signals, which may be ignored from before init.
        // SAFETY: `default` is as long as the kernel reads and outlives the call; the old action is not asked for; the
        // last argument is the size of the kernel's mask. SIGKILL and SIGSTOP are refused, which is harmless.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                8usize,
            );
        }
    }
    let none = set_of(&[]);
    // SAFETY: `none` is initialised and outlives the call; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) };
}

/// Which of the two processes returned from [`fork`].
pub(super) enum Fork {
    Child,
    Parent(i32),
}

/// `fork(2)`. Init has one thread, so the child may do what init may; it must end in [`leave`] or an exec.
pub(super) fn fork() -> io::Result<Fork> {
    // SAFETY: with one thread no lock can be held by a thread that is missing in the child.
    match unsafe { libc::fork() } {
        0 => Ok(Fork::Child),
        pid if pid > 0 => Ok(Fork::Parent(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends a forked child at once, without running anything of the parent's.
pub(super) fn leave(code: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory.
    unsafe { libc::_exit(code) }
}

/// A null-terminated array of C strings, made before the fork so that the child allocates nothing.
pub(super) struct Strings {
    pointers: Vec<*const libc::c_char>,
    _owned: Vec<CString>,
}

impl Strings {
    pub(super) fn new(owned: Vec<CString>) -> Strings {
        let pointers = owned
            .iter()
            .map(|string| string.as_ptr())
            .chain([ptr::null()])
            .collect();
        Strings {
            pointers,
            _owned: owned,
        }
    }
}

/// `execve(2)`; returns only with the reason why not.
pub(super) fn execute(program: &CString, arguments: &Strings, environment: &Strings) -> i32 {
    // SAFETY: all three point to NUL-terminated strings that live as long as the borrows, and both arrays end in null.
    unsafe {
        libc::execve(
            program.as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        );
    }
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::ENOSYS)
}

/// The version of Landlock the kernel offers, if any.
pub(super) fn landlock_version() -> Option<u32> {
    // SAFETY: with this flag (LANDLOCK_CREATE_RULESET_VERSION) the kernel takes no pointer and makes no descriptor.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0usize, 1u32) };
    u32::try_from(version).ok()
}

/// Whether the current directory can be reached from the root: the kernel puts `(unreachable)` before it otherwise.
pub(super) fn current_directory_is_inside() -> bool {
    let mut buffer = [0u8; libc::PATH_MAX as usize];
    // SAFETY: the kernel writes at most `buffer.len()` bytes to it. By number: the C library's wrapper hides the prefix.
    let length = unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) };
    length > 1 && buffer[0] == b'/'
}

/// Puts `source` at a standard number, surviving exec.
pub(super) fn place(source: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: 0 to 2 are nobody's OwnedFd in this process, so replacing them closes nothing that is owned.
    if unsafe { libc::dup2(source.as_raw_fd(), number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
