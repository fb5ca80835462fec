//! The jail's seccomp filter: an allow-list no looser than docker's current default (`seccomp` of moby's `profiles`), as
//! BPF, compiled once for each set of openings and kept.
//!
//! It differs from docker's in being tighter: socket(2) and socketpair(2) take the five usual families only, which leaves
//! out those that docker closes, too (`AF_ALG`, CVE-2026-31431, and `AF_VSOCK` among them); unshare(2), which some
//! versions of docker's open to everybody, is SYS_ADMIN's; and system calls of other ABIs of the same processor (i386 and
//! x32 on x86-64, 32-bit on aarch64) do not exist. Calls newer than the list answer `ENOSYS`, so that programs fall back;
//! closed ones answer `EPERM`.
//!
//! It is looser in one thing, on request: nested user namespaces open clone(2) for a user namespace alone or with a pid
//! and a network namespace and for a pid namespace, and unshare(2) for a user namespace or for what is no namespace.
//! [`Opening`]s are named one by one, by tests.

mod bpf;
mod profile;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use luna_core::capability::Capabilities;

use crate::spec::{Opening, Seccomp};
use crate::sys::Instruction;

type Key = (Seccomp, Capabilities);

/// The program for a spec, or `None` where it asks for no filter. The same question is answered from memory.
pub(crate) fn program(seccomp: &Seccomp, capabilities: Capabilities) -> Option<Arc<[Instruction]>> {
    static COMPILED: Mutex<Option<HashMap<Key, Arc<[Instruction]>>>> = Mutex::new(None);
    let Seccomp::Filter {
        nested_user_namespaces,
        also,
    } = seccomp
    else {
        return None;
    };
    let key = (seccomp.clone(), capabilities);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let known = compiled.get_or_insert_default();
    let program = known
        .entry(key)
        .or_insert_with(|| compile(*nested_user_namespaces, also, capabilities));
    Some(Arc::clone(program))
}

fn compile(nested: bool, also: &[Opening], capabilities: Capabilities) -> Arc<[Instruction]> {
    bpf::compile(&profile::rules(nested, also, capabilities)).into()
}
