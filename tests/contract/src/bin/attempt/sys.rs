//! The system calls that the attempts are made of, each in a form whose memory is its own.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_long, c_void};
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

fn checked(result: c_long) -> Result<c_long> {
    if result < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(result: c_long) -> Result<OwnedFd> {
    let number = checked(result)? as RawFd;
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn text(path: impl AsRef<Path>) -> CString {
    CString::new(path.as_ref().as_os_str().as_bytes()).expect("the attempts name no path with a NUL")
}

/// Any system call, with arguments that are no pointers to anything: all ones, which the kernel refuses to read.
pub(crate) fn with_senseless_arguments(number: c_long) -> Result<()> {
    // SAFETY: an argument of all ones is no address of user space, so the kernel neither reads nor writes our memory.
    checked(unsafe { libc::syscall(number, -1, -1, -1, -1, -1, -1) }).map(drop)
}

/// `add_key` through the door for 32-bit programs, where the calls have other numbers.
#[cfg(target_arch = "x86_64")]
pub(crate) fn through_the_old_door() -> Result<()> {
    const ADD_KEY: i32 = 286;
    let answer: i32;
    // SAFETY: the call takes its arguments in registers, all ones, which are no addresses; the one register that the
    // compiler keeps for itself is put back.
    unsafe {
        std::arch::asm!(
            "push rbx",
            "mov ebx, -1",
            "int 0x80",
            "pop rbx",
            inlateout("eax") ADD_KEY => answer,
            in("ecx") -1, in("edx") -1, in("esi") -1, in("edi") -1,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    if answer < 0 {
        Err(Error::from_raw_os_error(-answer))
    } else {
        Ok(())
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn through_the_old_door() -> Result<()> {
    Err(Error::from_raw_os_error(libc::ENOSYS))
}

pub(crate) fn mount(source: &str, target: &str, kind: &str, flags: u64, options: &str) -> Result<()> {
    let (source, target, kind, options) = (text(source), text(target), text(kind), text(options));
    // SAFETY: four strings that end in NUL and outlive the call.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    };
    checked(result.into()).map(drop)
}

pub(crate) fn unmount(target: &str) -> Result<()> {
    let target = text(target);
    // SAFETY: a string that ends in NUL and outlives the call.
    checked(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }.into()).map(drop)
}

pub(crate) fn fsopen(kind: &str) -> Result<OwnedFd> {
    let kind = text(kind);
    // SAFETY: a string that ends in NUL and outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 0) })
}

/// `open_tree(2)` with `OPEN_TREE_CLONE`.
pub(crate) fn clone_tree(path: &str) -> Result<OwnedFd> {
    let path = text(path);
    // SAFETY: a string that ends in NUL and outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), 1) })
}

/// `mount_setattr(2)` that takes `MOUNT_ATTR_RDONLY` away.
pub(crate) fn make_writable(path: &str) -> Result<()> {
    let path = text(path);
    let attributes: [u64; 4] = [0, 1, 0, 0];
    // SAFETY: a string that ends in NUL and four words of `struct mount_attr`, whose size is the last argument.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            0,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    checked(result).map(drop)
}

pub(crate) fn make_node(path: &str, kind: libc::mode_t, major: u32, minor: u32) -> Result<()> {
    let path = text(path);
    // SAFETY: a string that ends in NUL and outlives the call.
    checked(unsafe { libc::mknod(path.as_ptr(), kind | 0o600, libc::makedev(major, minor)) }.into()).map(drop)
}

/// `chroot(2)` into a directory and out of it through a working directory that was left outside.
pub(crate) fn chroot(path: &str) -> Result<()> {
    let path = text(path);
    // SAFETY: a string that ends in NUL and outlives the call.
    checked(unsafe { libc::chroot(path.as_ptr()) }.into()).map(drop)
}

pub(crate) fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: touches no memory.
    checked(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// Seizes a process as its tracer; it is let go when this process ends.
pub(crate) fn trace(pid: i32) -> Result<()> {
    // SAFETY: PTRACE_SEIZE takes neither address nor data.
    checked(unsafe {
        libc::ptrace(
            libc::PTRACE_SEIZE,
            pid,
            ptr::null_mut::<c_void>(),
            ptr::null_mut::<c_void>(),
        )
    })
    .map(drop)
}

pub(crate) enum Side {
    Child,
    Parent(i32),
}

/// `fork(2)`. This program has one thread.
pub(crate) fn fork() -> Result<Side> {
    // SAFETY: with one thread no lock can be held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        0 => Ok(Side::Child),
        pid => checked(pid.into()).map(|pid| Side::Parent(pid as i32)),
    }
}

pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: ends the process without running anything of ours.
    unsafe { libc::_exit(code) }
}

/// Waits for a child; its exit code, or 128 and the signal that ended it.
pub(crate) fn wait(pid: i32) -> Result<i32> {
    let mut status = 0;
    // SAFETY: `status` is writable and outlives the call.
    checked(unsafe { libc::waitpid(pid, &raw mut status, 0) }.into())?;
    Ok(if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    })
}

pub(crate) fn become_user(id: u32) -> Result<()> {
    // SAFETY: neither touches memory.
    unsafe {
        checked(libc::setresgid(id, id, id).into())?;
        checked(libc::setresuid(id, id, id).into()).map(drop)
    }
}

pub(crate) fn effective_user() -> u32 {
    // SAFETY: touches no memory and cannot fail.
    unsafe { libc::geteuid() }
}

pub(crate) fn add_key(name: &CStr, content: &[u8]) -> Result<c_long> {
    // SAFETY: two strings that end in NUL and a buffer with its length; all outlive the call.
    checked(unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            name.as_ptr(),
            content.as_ptr(),
            content.len(),
            libc::KEY_SPEC_SESSION_KEYRING,
        )
    })
}

/// Finds a key in this process' session keyring and reads it.
pub(crate) fn read_key(name: &CStr) -> Result<Vec<u8>> {
    let mut content = [0u8; 64];
    // SAFETY: two strings that end in NUL, and a buffer with its length; all outlive the calls.
    let length = unsafe {
        let key = checked(libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_SEARCH,
            libc::KEY_SPEC_SESSION_KEYRING,
            c"user".as_ptr(),
            name.as_ptr(),
            0,
        ))?;
        let read = libc::KEYCTL_READ;
        checked(libc::syscall(
            libc::SYS_keyctl,
            read,
            key,
            content.as_mut_ptr(),
            content.len(),
        ))?
    };
    Ok(content[..(length as usize).min(content.len())].to_vec())
}

/// A session keyring of this process' own, without a name.
pub(crate) fn new_session_keyring() -> Result<()> {
    let none = ptr::null::<libc::c_char>();
    // SAFETY: a null name is allowed.
    checked(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, none) }).map(drop)
}

pub(crate) fn request_key(name: &CStr) -> Result<c_long> {
    let none = ptr::null::<libc::c_char>();
    // SAFETY: two strings that end in NUL and a null callout, which is allowed.
    checked(unsafe { libc::syscall(libc::SYS_request_key, c"user".as_ptr(), name.as_ptr(), none, 0) })
}

pub(crate) fn socket(domain: i32, kind: i32) -> Result<OwnedFd> {
    // SAFETY: touches no memory.
    owned(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, 0) }.into())
}

pub(crate) fn io_uring() -> Result<OwnedFd> {
    let mut parameters = [0u64; 15];
    // SAFETY: `struct io_uring_params` is 120 bytes, all of them writable.
    owned(unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, parameters.as_mut_ptr()) })
}

/// `bpf(BPF_MAP_CREATE)` of an array with one element.
pub(crate) fn bpf_map() -> Result<OwnedFd> {
    let attributes: [u32; 18] = [2, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: the beginning of `union bpf_attr`, with its size.
    owned(unsafe { libc::syscall(libc::SYS_bpf, 0, attributes.as_ptr(), size_of_val(&attributes)) })
}

pub(crate) fn userfaultfd() -> Result<OwnedFd> {
    const USER_MODE_ONLY: i32 = 1;
    // SAFETY: touches no memory.
    owned(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) })
}

/// Counts this process' own page faults.
pub(crate) fn performance_counter() -> Result<OwnedFd> {
    const SOFTWARE: u64 = 1;
    const SIZE: u64 = 112;
    const PAGE_FAULTS: u64 = 2;
    const EXCLUDE_KERNEL_AND_HYPERVISOR: u64 = 1 << 5 | 1 << 6;
    let mut attributes = [0u64; 14];
    attributes[0] = SIZE << 32 | SOFTWARE;
    attributes[1] = PAGE_FAULTS;
    attributes[5] = EXCLUDE_KERNEL_AND_HYPERVISOR;
    // SAFETY: 112 bytes of `struct perf_event_attr`, as the structure itself says.
    owned(unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_mut_ptr(), 0, -1, -1, 0) })
}

/// With more segments than there may be: the kernel asks for the privilege first and loads nothing.
pub(crate) fn kexec_load() -> Result<()> {
    // SAFETY: nothing is read before the count of segments is refused.
    checked(unsafe { libc::syscall(libc::SYS_kexec_load, 0, 1000, ptr::null::<c_void>(), 0) }).map(drop)
}

/// An empty module: the kernel asks for the privilege first and then finds nothing to load.
pub(crate) fn init_module() -> Result<()> {
    // SAFETY: a length of 0 and an empty string.
    checked(unsafe { libc::syscall(libc::SYS_init_module, ptr::null::<c_void>(), 0, c"".as_ptr()) }).map(drop)
}

/// With senseless magic numbers: the kernel asks for the privilege first and then refuses.
pub(crate) fn reboot() -> Result<()> {
    // SAFETY: without the magic numbers nothing happens.
    checked(unsafe { libc::syscall(libc::SYS_reboot, 0, 0, 0, ptr::null::<c_void>()) }).map(drop)
}

pub(crate) fn set_namespace(namespace: &OwnedFd) -> Result<()> {
    // SAFETY: touches no memory.
    checked(unsafe { libc::setns(namespace.as_raw_fd(), 0) }.into()).map(drop)
}

pub(crate) fn unshare(flags: i32) -> Result<()> {
    // SAFETY: touches no memory.
    checked(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// `clone(2)` as fork, into the namespaces of `flags`.
pub(crate) fn clone_into(flags: i32) -> Result<()> {
    let flags = flags | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with no stack of its own this is fork, and this program has one thread.
    match checked(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })? {
        0 => leave(0),
        pid => wait(pid as i32).map(drop),
    }
}

/// As [`clone_into`] with `clone3(2)`.
pub(crate) fn clone3_into(flags: u64) -> Result<()> {
    let mut arguments = [0u64; 8];
    arguments[0] = flags;
    arguments[4] = libc::SIGCHLD as u64;
    // SAFETY: the first version of `struct clone_args`, with its size; see `clone_into`.
    match checked(unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) })? {
        0 => leave(0),
        pid => wait(pid as i32).map(drop),
    }
}

pub(crate) fn personality(persona: u64) -> Result<()> {
    // SAFETY: touches no memory; this program starts nothing afterwards.
    checked(unsafe { libc::personality(persona) }.into()).map(drop)
}

/// Puts one byte into a terminal's input.
pub(crate) fn type_into(terminal: RawFd, byte: u8) -> Result<()> {
    // SAFETY: TIOCSTI reads the one byte.
    checked(unsafe { libc::ioctl(terminal, libc::TIOCSTI, &raw const byte) }.into()).map(drop)
}

/// A file handle: type and bytes, as `name_to_handle_at(2)` makes them.
pub(crate) struct Handle {
    pub(crate) kind: i32,
    pub(crate) bytes: Vec<u8>,
}

#[repr(C)]
struct RawHandle {
    length: u32,
    kind: i32,
    bytes: [u8; 128],
}

pub(crate) fn handle_of(path: &str) -> Result<Handle> {
    let path = text(path);
    let mut mount = 0;
    let mut raw = RawHandle {
        length: 128,
        kind: 0,
        bytes: [0; 128],
    };
    // SAFETY: a string that ends in NUL, a handle with room for as many bytes as it says, and an int.
    checked(unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw mut raw,
            &raw mut mount,
            0,
        )
    })?;
    Ok(Handle {
        kind: raw.kind,
        bytes: raw.bytes[..raw.length as usize].to_vec(),
    })
}

pub(crate) fn open_by_handle(mount: &std::fs::File, handle: &Handle) -> Result<std::fs::File> {
    let mut raw = RawHandle {
        length: handle.bytes.len() as u32,
        kind: handle.kind,
        bytes: [0; 128],
    };
    raw.bytes[..handle.bytes.len()].copy_from_slice(&handle.bytes);
    // SAFETY: a handle of as many bytes as it says.
    owned(unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw mut raw,
            libc::O_RDONLY,
        )
    })
    .map(std::fs::File::from)
}

pub(crate) fn set_hostname(name: &str) -> Result<()> {
    // SAFETY: a buffer with its length.
    checked(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// Sets the clock's tick to what it is.
pub(crate) fn set_clock_tick() -> Result<()> {
    // SAFETY: `struct timex` is plain numbers, for which zeros are values.
    let mut clock: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `clock` is writable and outlives both calls.
    unsafe {
        checked(libc::adjtimex(&raw mut clock).into())?;
        clock.modes = libc::ADJ_TICK;
        checked(libc::adjtimex(&raw mut clock).into()).map(drop)
    }
}

/// Makes a System V segment with this content that everyone may read.
pub(crate) fn make_segment(key: i32, content: &[u8; 16]) -> Result<i32> {
    // SAFETY: the segment is 4096 bytes long, and stays attached while 16 are written.
    unsafe {
        let id = checked(libc::shmget(key, 4096, libc::IPC_CREAT | libc::IPC_EXCL | 0o666).into())? as i32;
        let address = libc::shmat(id, ptr::null(), 0);
        if address as isize == -1 {
            return Err(Error::last_os_error());
        }
        ptr::copy_nonoverlapping(content.as_ptr(), address.cast(), content.len());
        checked(libc::shmdt(address).into())?;
        Ok(id)
    }
}

pub(crate) fn read_segment(key: i32) -> Result<[u8; 16]> {
    let mut content = [0; 16];
    // SAFETY: segments are whole pages, and this one stays attached while 16 bytes are read.
    unsafe {
        let id = checked(libc::shmget(key, 0, 0).into())? as i32;
        let address = libc::shmat(id, ptr::null(), libc::SHM_RDONLY);
        if address as isize == -1 {
            return Err(Error::last_os_error());
        }
        ptr::copy_nonoverlapping(address.cast(), content.as_mut_ptr(), content.len());
        libc::shmdt(address);
    }
    Ok(content)
}

pub(crate) fn remove_segment(key: i32) -> Result<()> {
    // SAFETY: removal takes no buffer.
    unsafe {
        let id = checked(libc::shmget(key, 0, 0).into())? as i32;
        checked(libc::shmctl(id, libc::IPC_RMID, ptr::null_mut()).into()).map(drop)
    }
}

/// Asks for effective and permitted capability `number` on top of what is there.
pub(crate) fn take_capability(number: u32) -> Result<()> {
    let header: [u32; 2] = [0x2008_0522, 0];
    let mut sets = [0u32; 6];
    // SAFETY: the header of version 3 and the two times three words it stands for.
    unsafe {
        checked(libc::syscall(
            libc::SYS_capget,
            header.as_ptr(),
            sets.as_mut_ptr(),
        ))?;
        let word = (number / 32 * 3) as usize;
        sets[word] |= 1 << (number % 32);
        sets[word + 1] |= 1 << (number % 32);
        checked(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr())).map(drop)
    }
}

/// Length of the kernel's log, `syslog(2)` action 10, which dmesg(1) asks first; then its last bytes.
pub(crate) fn read_kernel_log() -> Result<usize> {
    let mut buffer = [0u8; 256];
    // SAFETY: a buffer with its length.
    checked(unsafe { libc::syscall(libc::SYS_syslog, 3, buffer.as_mut_ptr(), buffer.len()) })
        .map(|length| length as usize)
}

/// Sets the loopback device's flags to what they are.
pub(crate) fn set_loopback_flags() -> Result<()> {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM)?;
    // SAFETY: `struct ifreq` is plain bytes, for which zeros are values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    // SAFETY: `request` is writable and outlives both calls; its name ends in NUL.
    unsafe {
        checked(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request).into())?;
        checked(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request).into()).map(drop)
    }
}
