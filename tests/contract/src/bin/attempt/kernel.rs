//! Attempts on the kernel: system calls that a sandbox has no business with.

use std::ffi::CString;
use std::fs::File;

use crate::sys;
use crate::{Outcome, number, reached, refused};

/// What the kernel says of itself where it was built without a feature.
const LACKING: [i32; 3] = [libc::EAFNOSUPPORT, libc::EOPNOTSUPP, libc::ENODEV];

pub(crate) fn attempt(name: &str, arguments: &[&str]) -> Option<Outcome> {
    let had = |what: &str| what.to_owned();
    Some(match (name, arguments) {
        ("add-key", []) => sys::add_key(c"luna-attempt", b"x").map(|_| had("a key was added")),
        ("request-key", []) => reached(sys::request_key(c"luna-attempt"), &[libc::ENOKEY]),
        ("host-key", [name, content]) => host_key(name, content),
        ("with-key", [name, content, program, rest @ ..]) => with_key(name, content, program, rest),
        ("af-alg", []) => reached(sys::socket(libc::AF_ALG, libc::SOCK_SEQPACKET), &LACKING),
        ("af-vsock", []) => reached(sys::socket(libc::AF_VSOCK, libc::SOCK_STREAM), &LACKING),
        ("af-packet", []) => reached(sys::socket(libc::AF_PACKET, libc::SOCK_RAW), &LACKING),
        ("io-uring", []) => sys::io_uring().map(|_| had("a ring")),
        ("bpf", []) => sys::bpf_map().map(|_| had("a map")),
        ("userfaultfd", []) => sys::userfaultfd().map(|_| had("a descriptor")),
        ("perf-event-open", []) => sys::performance_counter().map(|_| had("a counter")),
        ("kexec-load", []) => reached(sys::kexec_load(), &[libc::EINVAL]),
        ("init-module", []) => reached(sys::init_module(), &[libc::ENOEXEC, libc::EFAULT, libc::EINVAL]),
        ("reboot", []) => reached(sys::reboot(), &[libc::EINVAL]),
        ("setns", []) => setns(),
        ("unshare-user", []) => sys::unshare(libc::CLONE_NEWUSER).map(|()| had("a user namespace")),
        ("unshare-mount", []) => sys::unshare(libc::CLONE_NEWNS).map(|()| had("a mount namespace")),
        ("clone-user", []) => sys::clone_into(libc::CLONE_NEWUSER).map(|()| had("a user namespace")),
        ("clone3-user", []) => sys::clone3_into(libc::CLONE_NEWUSER as u64).map(|()| had("a user namespace")),
        ("personality", []) => {
            sys::personality(libc::ADDR_NO_RANDOMIZE as u64).map(|()| had("no randomisation"))
        }
        ("read-kernel-log", []) => sys::read_kernel_log().map(|length| format!("{length} bytes")),
        ("set-hostname", [host]) => set_hostname(host),
        ("set-clock", []) => sys::set_clock_tick().map(|()| had("the clock's tick was set")),
        ("host-segment", [key, content]) => host_segment(key, content),
        ("make-segment", [key, content]) => make_segment(key, content),
        ("remove-segment", [key]) => number(key).and_then(sys::remove_segment).map(|()| had("removed")),
        ("take-capability", [index]) => number(index)
            .and_then(sys::take_capability)
            .map(|()| had("the capability is held")),
        ("loopback-flags", []) => sys::set_loopback_flags().map(|()| had("set")),
        ("type-into-terminal", [descriptor]) => number(descriptor)
            .and_then(|terminal| sys::type_into(terminal, b'x'))
            .map(|()| had("typed")),
        ("old-door", []) => reached(sys::through_the_old_door(), &[libc::EFAULT, libc::EINVAL]),
        ("run-guest", []) => run_guest(),
        ("closed-calls", calls) => closed_calls(calls),
        _ => return None,
    })
}

/// The probe's guest, in 64-bit mode on a virtual processor; how fast it went is no matter.
fn run_guest() -> Outcome {
    let checks = luna_microvm::probe::kvm();
    let told: Vec<_> = checks.iter().map(|check| check.detail.as_str()).collect();
    match told.last() {
        Some(detail) if detail.contains(" rounds in ") && !detail.contains(": 0 of ") => Ok(told.join("; ")),
        _ => refused(&told.join("; ")),
    }
}

fn host_key(name: &str, content: &str) -> Outcome {
    let found = sys::read_key(&CString::new(name)?)?;
    if found == content.as_bytes() {
        Ok("the host's key was read".into())
    } else {
        refused("another key")
    }
}

/// Runs a program that holds a key in its session keyring, as a session of the host's does.
fn with_key(name: &str, content: &str, program: &str, arguments: &[&str]) -> Outcome {
    use std::os::unix::process::CommandExt as _;
    sys::new_session_keyring()?;
    sys::add_key(&CString::new(name)?, content.as_bytes())?;
    Err(std::process::Command::new(program).args(arguments).exec())
}

fn setns() -> Outcome {
    let own = File::open("/proc/self/ns/uts")?;
    sys::set_namespace(&own.into()).map(|()| "a namespace was entered".into())
}

/// Gives the host the name it has. In a namespace of its own that would be no escape.
fn set_hostname(host: &str) -> Outcome {
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    if own.trim() != host {
        return refused("it has a name of its own");
    }
    sys::set_hostname(host).map(|()| "the host's name was set".into())
}

fn host_segment(key: &str, content: &str) -> Outcome {
    let found = sys::read_segment(number(key)?)?;
    if found == padded(content) {
        Ok("the host's memory was read".into())
    } else {
        refused("another segment")
    }
}

fn make_segment(key: &str, content: &str) -> Outcome {
    sys::make_segment(number(key)?, &padded(content)).map(|id| id.to_string())
}

fn padded(content: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let length = content.len().min(bytes.len());
    bytes[..length].copy_from_slice(&content.as_bytes()[..length]);
    bytes
}

/// Which of the calls `name=number` are answered by the kernel itself and not by the filter. The kernel, too, may say
/// that it lacks a call or a privilege, so some stay unknown; one that answers otherwise is open for sure.
fn closed_calls(calls: &[&str]) -> Outcome {
    let mut open = Vec::new();
    for call in calls {
        let (name, index) = call.split_once('=').unwrap_or((call, ""));
        let answer = sys::with_senseless_arguments(number(index)?);
        let errno = answer.as_ref().err().and_then(std::io::Error::raw_os_error);
        if !matches!(errno, Some(libc::EPERM | libc::ENOSYS)) {
            open.push(name.to_owned());
        }
    }
    if open.is_empty() {
        refused("all of them are closed")
    } else {
        Ok(open.join(" "))
    }
}
