//! The list: what is tried, and which defences stop it.
//!
//! `without` is the least set of defences that must be taken out for the attempt to succeed: one where one stops it, more
//! where they stand behind each other. That it is the least is shown by putting each of them back alone.

/// How success is told apart from failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Only the attempt itself can see it.
    Inside,
    VictimDies,
    NullDeviceChanged,
    SocketAccepts,
    PortAccepts,
    ReadOnlyVolumeWritten,
    ProgramChanged,
}

#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) what: &'static str,
    pub(crate) command: Vec<&'static str>,
    pub(crate) without: Vec<&'static str>,
    pub(crate) effect: Effect,
    /// Where this fails on the host itself, as root and without any wall, the kernel has no such thing.
    pub(crate) ask_host_first: bool,
    /// Needs cgroups, which an unprivileged user has none of here.
    pub(crate) by_cgroup: bool,
}

fn attempt(what: &'static str, command: &'static str, without: &[&'static str]) -> Attempt {
    Attempt {
        what,
        command: command.split(' ').collect(),
        without: without.to_vec(),
        effect: Effect::Inside,
        ask_host_first: false,
        by_cgroup: false,
    }
}

impl Attempt {
    fn seen(self, effect: Effect) -> Attempt {
        Attempt { effect, ..self }
    }

    /// See [`Attempt::ask_host_first`].
    fn if_there(self) -> Attempt {
        Attempt {
            ask_host_first: true,
            ..self
        }
    }

    fn by_cgroup(self) -> Attempt {
        Attempt {
            by_cgroup: true,
            ..self
        }
    }
}

pub(crate) fn all() -> Vec<Attempt> {
    let mut list = settings();
    list.extend(mounts());
    list.extend(devices_and_volumes());
    list.extend(processes());
    list.extend(kernel());
    list.extend(resources());
    list
}

fn settings() -> Vec<Attempt> {
    let read_only = &["read_only_paths", "user_namespace"];
    vec![
        attempt(
            "change core_pattern",
            "write-back /proc/sys/kernel/core_pattern",
            read_only,
        ),
        attempt(
            "change modprobe",
            "write-back /proc/sys/kernel/modprobe",
            read_only,
        )
        .if_there(),
        attempt(
            "open sysrq-trigger",
            "open-for-writing /proc/sysrq-trigger",
            read_only,
        )
        .if_there(),
        attempt(
            "change its own network settings",
            "write-back /proc/sys/net/ipv4/ip_default_ttl",
            &["read_only_paths", "capability:NET_ADMIN"],
        ),
        attempt(
            "change a setting in /sys",
            "write-back /sys/kernel/rcu_expedited",
            &["read_only_system", "user_namespace"],
        )
        .if_there(),
        attempt(
            "make a cgroup",
            "make-directory /sys/fs/cgroup/luna-{secret}",
            &["read_only_system", "user_namespace"],
        ),
        attempt(
            "release_agent",
            "release-agent {controller}",
            &["capability:SYS_ADMIN", "user_namespace", "cgroup_namespace"],
        ),
        attempt(
            "read /proc/interrupts",
            "read /proc/interrupts",
            &["masked_paths"],
        ),
        attempt(
            "read /proc/keys",
            "read /proc/keys",
            &["masked_paths", "user_namespace"],
        )
        .if_there(),
        attempt(
            "read /proc/timer_list",
            "read /proc/timer_list",
            &["masked_paths", "user_namespace"],
        )
        .if_there(),
        attempt(
            "read /proc/kcore",
            "read /proc/kcore",
            &["masked_paths", "user_namespace", "capability:SYS_RAWIO"],
        )
        .if_there(),
        attempt("list /sys/firmware", "list /sys/firmware", &["masked_paths"]).if_there(),
    ]
}

fn mounts() -> Vec<Attempt> {
    let admin = &["capability:SYS_ADMIN"];
    vec![
        attempt("mount a tmpfs", "mount-tmpfs", admin),
        attempt("mount by bind", "mount-bind", admin),
        attempt("mount an overlay", "mount-overlay", admin),
        attempt("mount a new /proc without masks", "mount-proc", admin),
        attempt("mount a new /sys without masks", "mount-sysfs", admin),
        attempt("fsopen", "fsopen", admin),
        attempt("open_tree", "open-tree", admin),
        attempt("take a mask off", "unmask /proc/interrupts", admin),
        attempt("unshare the mounts", "unshare-mount", admin),
        attempt(
            "write to a read-only volume",
            "append /read-only/canary x",
            &["read_only_binds"],
        )
        .seen(Effect::ReadOnlyVolumeWritten),
        attempt("remount a read-only volume", "remount-writable /read-only", admin)
            .seen(Effect::ReadOnlyVolumeWritten),
        attempt(
            "mount_setattr on a read-only volume",
            "mount-setattr-writable /read-only",
            admin,
        )
        .seen(Effect::ReadOnlyVolumeWritten),
    ]
}

fn devices_and_volumes() -> Vec<Attempt> {
    vec![
        attempt(
            "mknod of the host's disk",
            "block-device {major} {minor}",
            &["user_namespace", "device_cgroup"],
        ),
        attempt(
            "mknod of the kernel's log",
            "character-device 1 11",
            &["user_namespace", "device_cgroup", "capability:SYSLOG"],
        ),
        attempt(
            "mknod of the memory",
            "character-device 1 1",
            &["user_namespace", "device_cgroup", "capability:SYS_RAWIO"],
        )
        .if_there(),
        attempt(
            "a device node on a volume",
            "open-device /volume/disk",
            &["restricted_binds", "device_cgroup"],
        ),
        attempt(
            "change the host's /dev/null",
            "change-null-device",
            &["user_namespace"],
        )
        .seen(Effect::NullDeviceChanged),
        attempt(
            "a setuid program on a volume",
            "setuid-program /volume/attempt-setuid",
            &["restricted_binds", "no_new_privileges"],
        ),
        attempt(
            "a setuid program in the image",
            "setuid-program /attempt-setuid",
            &["no_new_privileges"],
        ),
        attempt(
            "open_by_handle_at outside of a volume",
            "file-handle {handle} /volume {secret}",
            &["capability:DAC_READ_SEARCH", "user_namespace"],
        ),
        attempt(
            "a directory leaked to init",
            "read-canary /proc/1/fd/{leak}/canary {secret}",
            &["close_descriptors", "capability:SYS_PTRACE"],
        ),
    ]
}

fn processes() -> Vec<Attempt> {
    let look = &[
        "pid_namespace",
        "user_namespace",
        "landlock",
        "capability:SYS_PTRACE",
    ];
    let init = &["capability:SYS_PTRACE"];
    vec![
        attempt(
            "see a process of the host",
            "see-process {root-victim} {secret}",
            &["pid_namespace"],
        ),
        attempt(
            "kill a process of the host",
            "signal-process {victim}",
            &["pid_namespace", "landlock"],
        )
        .seen(Effect::VictimDies),
        attempt("trace a process of the host", "trace-process {root-victim}", look),
        attempt(
            "read a host process' environment",
            "read-environment {root-victim} {secret}",
            look,
        ),
        attempt(
            "enter a host process' root",
            "enter-root {root-victim} {canary} {secret}",
            look,
        ),
        attempt("trace init", "trace-process 1", init),
        attempt("read init's memory map", "read-maps 1", init),
        attempt("open init's memory", "open-memory 1", init),
        attempt(
            "change init through /proc/1/exe",
            "overwrite-init",
            &["sealed_program", "user_namespace", "capability:SYS_PTRACE"],
        )
        .seen(Effect::ProgramChanged),
        attempt(
            "the host's shared memory",
            "host-segment {segment} {secret}",
            &["ipc_namespace"],
        ),
        attempt(
            "an abstract socket of the host",
            "abstract-socket {secret}",
            &["network", "landlock"],
        )
        .seen(Effect::SocketAccepts),
        attempt("a port on the host's loopback", "host-port {port}", &["network"]).seen(Effect::PortAccepts),
    ]
}

fn kernel() -> Vec<Attempt> {
    vec![
        attempt("every closed system call", "closed-calls {calls}", &["seccomp"]),
        attempt(
            "a capability back",
            "take-capability 21",
            &["capability:SYS_ADMIN"],
        ),
        attempt("add_key", "add-key", &["call:add_key"]),
        attempt("request_key", "request-key", &["call:request_key"]),
        attempt(
            "a key of the host's session",
            "host-key luna-{secret} {secret}",
            &["call:keyctl", "new_session_keyring"],
        ),
        attempt("AF_ALG", "af-alg", &["family:38"]),
        attempt("AF_VSOCK", "af-vsock", &["family:40"]),
        attempt("io_uring", "io-uring", &["call:io_uring_setup"]).if_there(),
        attempt("bpf", "bpf", &["capability:BPF", "user_namespace"]).if_there(),
        attempt("userfaultfd", "userfaultfd", &["call:userfaultfd"]).if_there(),
        attempt("perf_event_open", "perf-event-open", &["call:perf_event_open"]).if_there(),
        attempt(
            "kexec_load",
            "kexec-load",
            &["call:kexec_load", "capability:SYS_BOOT", "user_namespace"],
        )
        .if_there(),
        attempt(
            "init_module",
            "init-module",
            &["capability:SYS_MODULE", "user_namespace"],
        )
        .if_there(),
        attempt("reboot", "reboot", &["capability:SYS_BOOT"]),
        attempt("setns", "setns", &["capability:SYS_ADMIN"]),
        attempt(
            "unshare a user namespace",
            "unshare-user",
            &["nested_user_namespaces"],
        ),
        attempt(
            "clone into a user namespace",
            "clone-user",
            &["nested_user_namespaces"],
        ),
        attempt("clone3 into a user namespace", "clone3-user", &["call:clone3"]),
        attempt("personality", "personality", &["call:personality"]),
        attempt(
            "read the kernel's log",
            "read-kernel-log",
            &["capability:SYSLOG", "user_namespace"],
        ),
        attempt(
            "set the host's name",
            "set-hostname {hostname}",
            &["uts_namespace", "user_namespace", "capability:SYS_ADMIN"],
        ),
        attempt(
            "set the clock",
            "set-clock",
            &["capability:SYS_TIME", "user_namespace"],
        ),
        attempt(
            "configure the network",
            "loopback-flags",
            &["capability:NET_ADMIN"],
        ),
    ]
}

fn resources() -> Vec<Attempt> {
    vec![
        attempt("a fork bomb", "fork-bomb 200", &["pids"]).by_cgroup(),
        attempt("a memory hog", "memory-hog 200", &["memory"]).by_cgroup(),
        attempt("fill /dev/shm", "fill /dev/shm/x 32", &["shared_memory"]),
    ]
}
