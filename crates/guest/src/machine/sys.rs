//! The machine's system calls that need `unsafe`: modules, entropy, the clock, fork, power.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use luna_core::process::ExitStatus;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn check(result: i64) -> Result<i64, Errno> {
    if result < 0 { Err(last_error()) } else { Ok(result) }
}

/// Whether this process inherited something at `number`.
pub(super) fn is_open(number: RawFd) -> bool {
    // SAFETY: F_GETFD reads the descriptor table and touches no memory.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

/// Inserts one module; one that is there already is no error.
pub(super) fn insert_module(file: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the descriptor is open by its type and the parameters are an empty NUL-terminated string.
    match check(unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) }) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The most that one call credits.
const SEED: usize = 512;

/// `struct rand_pool_info` of `linux/random.h` with its bytes behind it.
#[repr(C)]
struct Pool {
    bits: i32,
    length: i32,
    bytes: [u8; SEED],
}

/// Credits `seed` to the kernel's generator and has the generator start from it.
pub(super) fn add_entropy(seed: &[u8]) -> Result<(), Errno> {
    /// `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)`, the same on every architecture Luna knows.
    const RNDADDENTROPY: u64 = 0x4008_5203;
    const RNDRESEEDCRNG: u64 = 0x5207;
    let mut pool = Pool {
        bits: 0,
        length: 0,
        bytes: [0; SEED],
    };
    let length = seed.len().min(SEED);
    pool.bytes[..length].copy_from_slice(&seed[..length]);
    pool.length = length as i32;
    pool.bits = pool.length * 8;
    let device = rustix::fs::open("/dev/urandom", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: the kernel reads the header and `length` bytes behind it, all inside `pool`, which outlives the calls; the
    // second request takes no argument.
    unsafe {
        check(i64::from(libc::ioctl(
            device.as_raw_fd(),
            RNDADDENTROPY as _,
            &raw const pool,
        )))?;
        check(i64::from(libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _, 0)))?;
    }
    Ok(())
}

pub(super) fn loopback_up() -> Result<(), Errno> {
    let kind = rustix::net::SocketType::DGRAM;
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, kind, None)?;
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`, which `request` is and stays for the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    check(i64::from(result)).map(drop)
}

pub(super) fn set_clock(now: Duration) -> Result<(), Errno> {
    rustix::time::clock_settime(
        rustix::time::ClockId::Realtime,
        rustix::time::Timespec {
            tv_sec: now.as_secs() as i64,
            tv_nsec: now.subsec_nanos().into(),
        },
    )
}

/// Forks a child that is the first process of a pid namespace; `None` in the child, its pidfd in the parent.
pub(super) fn fork_into_pid_namespace() -> Result<Option<OwnedFd>, Errno> {
    fork_with(libc::CLONE_NEWPID)
}

/// Forks; `None` in the child, its pidfd in the parent.
pub(super) fn fork() -> Result<Option<OwnedFd>, Errno> {
    fork_with(0)
}

fn fork_with(namespaces: libc::c_int) -> Result<Option<OwnedFd>, Errno> {
    let mut pidfd: RawFd = -1;
    let mut arguments = [0u64; 8];
    // `struct clone_args`: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls.
    arguments[0] = (namespaces | libc::CLONE_PIDFD) as u64;
    arguments[1] = (&raw mut pidfd) as u64;
    arguments[4] = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM this is a fork: the child has a copy of everything, and with one thread no lock can be held
    // by a thread that is missing there. The kernel reads 64 bytes of `arguments` and writes one int to `pidfd`.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) })?;
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel put a new descriptor there that nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Gives this process mount, uts, ipc and cgroup namespaces of its own.
pub(super) fn leave_namespaces() -> Result<(), Errno> {
    let flags = libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWCGROUP;
    // SAFETY: changes which namespaces this process is in; no memory is involved and there is one thread.
    check(i64::from(unsafe { libc::unshare(flags) })).map(drop)
}

/// Waits for the child behind `pidfd`.
pub(super) fn reap(pidfd: &OwnedFd) -> Result<ExitStatus, Errno> {
    loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                return Ok(match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => ExitStatus::Code(code as u8),
                    (None, Some(number)) => ExitStatus::Signal {
                        number: number as u8,
                        core_dumped: status.dumped(),
                    },
                    (None, None) => ExitStatus::Code(u8::MAX),
                });
            }
            Ok(None) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Puts `source` at `number`, open across an exec.
pub(super) fn place(source: BorrowedFd<'_>, number: RawFd) -> Result<(), Errno> {
    // SAFETY: the caller owns nothing at `number`: it is about to become init, which takes it over.
    check(i64::from(unsafe { libc::dup2(source.as_raw_fd(), number) })).map(drop)
}

/// Ends this process at once.
pub(super) fn leave(code: u8) -> ! {
    // SAFETY: _exit does not return and touches no memory.
    unsafe { libc::_exit(code.into()) }
}

/// Writes everything out and turns the power off.
pub(super) fn power_off() -> ! {
    rustix::fs::sync();
    // SAFETY: takes a plain number; where it returns, the reset below is what is left.
    unsafe {
        libc::reboot(libc::RB_POWER_OFF);
    }
    turn_off()
}

/// Writes everything out and turns the machine off: a reset, which the VMM takes for the end.
pub(super) fn turn_off() -> ! {
    rustix::fs::sync();
    loop {
        // SAFETY: both calls take plain numbers; the first does not return where it works.
        unsafe {
            libc::reboot(libc::RB_AUTOBOOT);
            libc::pause();
        }
    }
}
