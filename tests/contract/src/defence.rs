//! Taking one defence out of a jail's spec, by name. Only tests do this.

use std::fs::File;
use std::path::Path;

use luna_core::spec::PidsLimit;
use luna_core::units::Bytes;
use luna_jail::Spec;
use luna_jail::spec::{Landlock, Network, Opening, Seccomp};

/// Room for an attempt that a limit would stop.
const PLENTY: Bytes = Bytes::mebibytes(512);

/// Takes `name` out of `spec`. `program` is a copy of the jail's program as an ordinary file.
///
/// Names are fields of [`luna_jail::spec::Defences`], `network`, `memory`, `pids`, `shared_memory`, and
/// `capability:NAME`, `call:NAME`, `family:NUMBER` for one more capability, system call or socket family.
pub fn take_out(spec: &mut Spec, name: &str, program: &Path) {
    let defences = &mut spec.defences;
    match name {
        "user_namespace" => defences.user_namespace = false,
        "pid_namespace" => defences.pid_namespace = false,
        "ipc_namespace" => defences.ipc_namespace = false,
        "uts_namespace" => defences.uts_namespace = false,
        "cgroup_namespace" => defences.cgroup_namespace = false,
        "masked_paths" => defences.masked_paths = false,
        "read_only_paths" => defences.read_only_paths = false,
        "read_only_system" => defences.read_only_system = false,
        "resolve_in_root" => defences.resolve_in_root = false,
        "restricted_binds" => defences.restricted_binds = false,
        "read_only_binds" => defences.read_only_binds = false,
        "no_new_privileges" => defences.no_new_privileges = false,
        "landlock" => defences.landlock = Landlock::Absent,
        "new_session_keyring" => defences.new_session_keyring = false,
        "new_session" => defences.new_session = false,
        "close_descriptors" => defences.close_descriptors = false,
        "device_cgroup" => defences.device_cgroup = false,
        "sealed_program" => {
            defences.sealed_program = false;
            let file = File::open(program).expect("the land has a copy of the program");
            spec.program.executable = file.into();
        }
        "seccomp" => defences.seccomp = Seccomp::Unconfined,
        "nested_user_namespaces" => match &mut defences.seccomp {
            Seccomp::Filter {
                nested_user_namespaces,
                ..
            } => *nested_user_namespaces = true,
            Seccomp::Unconfined => {}
        },
        "network" => spec.network = Network::Host,
        "memory" => {
            spec.limits.memory = Some(PLENTY);
            spec.limits.swap = None;
        }
        "pids" => spec.limits.pids = Some(PidsLimit::At(1000)),
        "shared_memory" => spec.shared_memory = PLENTY,
        other => match other.split_once(':') {
            Some(("capability", name)) => {
                let capability = name.parse().expect("a capability of the kernel's");
                defences.capabilities = defences.capabilities.with(capability);
            }
            Some(("call", name)) => open(defences, Opening::Call(call(name))),
            Some(("family", number)) => {
                open(
                    defences,
                    Opening::SocketFamily(number.parse().expect("a socket family")),
                );
            }
            _ => panic!("no defence is called `{other}`"),
        },
    }
}

fn open(defences: &mut luna_jail::spec::Defences, opening: Opening) {
    if let Seccomp::Filter { also, .. } = &mut defences.seccomp {
        also.push(opening);
    }
}

/// A system call's number by its name; those the suites take out of the filter.
fn call(name: &str) -> i64 {
    match name {
        "add_key" => libc::SYS_add_key,
        "bpf" => libc::SYS_bpf,
        "clone3" => libc::SYS_clone3,
        "init_module" => libc::SYS_init_module,
        "io_uring_setup" => libc::SYS_io_uring_setup,
        "kexec_load" => libc::SYS_kexec_load,
        "keyctl" => libc::SYS_keyctl,
        "mount_setattr" => libc::SYS_mount_setattr,
        "perf_event_open" => libc::SYS_perf_event_open,
        "personality" => libc::SYS_personality,
        "reboot" => libc::SYS_reboot,
        "request_key" => libc::SYS_request_key,
        "syslog" => libc::SYS_syslog,
        "userfaultfd" => libc::SYS_userfaultfd,
        other => panic!("no call is called `{other}`"),
    }
}
