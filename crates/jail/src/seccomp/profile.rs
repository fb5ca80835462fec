//! The list itself: which calls, by architecture and capability.
//!
//! Source: moby `profiles/seccomp/default_linux.go`. Numbers from 424 on are the same on every architecture
//! (`scripts/syscall.tbl`); some have no name in the `libc` crate.

use std::collections::BTreeMap;

use libc::c_long;
use luna_core::capability::Capabilities;

use super::bpf::{Answer, Rules};
use crate::spec::Opening;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP) as u32;
/// For unshare(2); clone(2) has its exit signal in these bits.
const NEW_TIME: u32 = 0x80;

/// Socket families open to everybody. Docker opens a score more, each a kernel module that asking loads; of those that
/// it closes (`AF_ALG`, `AF_VSOCK`, DECnet, Econet, ATM, IrDA, WANPIPE, ISDN, CAIF, and whatever is newer) none is here.
const FAMILIES: [u32; 5] = [
    libc::AF_UNIX as u32,
    libc::AF_INET as u32,
    libc::AF_INET6 as u32,
    libc::AF_NETLINK as u32,
    libc::AF_PACKET as u32,
];

/// Personalities: Linux, with and without address randomisation... and the question for the current one.
const PERSONALITIES: [u32; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

macro_rules! calls {
    ($($name:ident)*) => { [$(libc::$name),*] };
}

/// Allowed to everybody, on every architecture.
const COMMON: &[c_long] = &calls![
    SYS_accept SYS_accept4 SYS_adjtimex SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir SYS_clock_adjtime
    SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_close SYS_close_range SYS_connect
    SYS_copy_file_range SYS_dup SYS_dup3 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2
    SYS_eventfd2 SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_faccessat SYS_faccessat2 SYS_fadvise64
    SYS_fallocate SYS_fanotify_mark SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_fcntl
    SYS_fdatasync SYS_fgetxattr SYS_flistxattr SYS_flock SYS_fremovexattr SYS_fsetxattr SYS_fstat SYS_fstatfs
    SYS_fsync SYS_ftruncate SYS_futex SYS_futex_waitv SYS_getcpu SYS_getcwd SYS_getdents64 SYS_getegid
    SYS_geteuid SYS_getgid SYS_getgroups SYS_getitimer SYS_getpeername SYS_getpgid SYS_getpid SYS_getppid
    SYS_getpriority SYS_getrandom SYS_getresgid SYS_getresuid SYS_get_robust_list SYS_getrusage
    SYS_getsid SYS_getsockname SYS_getsockopt SYS_gettid SYS_gettimeofday SYS_getuid SYS_getxattr
    SYS_inotify_add_watch SYS_inotify_init1 SYS_inotify_rm_watch SYS_io_cancel SYS_ioctl SYS_io_destroy
    SYS_io_getevents SYS_ioprio_get SYS_ioprio_set SYS_io_setup SYS_io_submit SYS_kill
    SYS_landlock_add_rule SYS_landlock_create_ruleset SYS_landlock_restrict_self SYS_lgetxattr SYS_linkat
    SYS_listen SYS_listxattr SYS_llistxattr SYS_lremovexattr SYS_lseek SYS_lsetxattr SYS_madvise
    SYS_membarrier SYS_memfd_create SYS_memfd_secret SYS_mincore SYS_mkdirat SYS_mknodat SYS_mlock SYS_mlock2
    SYS_mlockall SYS_mmap SYS_mprotect SYS_mq_getsetattr SYS_mq_notify SYS_mq_open SYS_mq_timedreceive
    SYS_mq_timedsend SYS_mq_unlink SYS_mremap SYS_msgctl SYS_msgget SYS_msgrcv SYS_msgsnd SYS_msync
    SYS_munlock SYS_munlockall SYS_munmap SYS_name_to_handle_at SYS_nanosleep SYS_newfstatat SYS_openat
    SYS_openat2 SYS_pidfd_open SYS_pidfd_send_signal SYS_pipe2 SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect
    SYS_ppoll SYS_prctl SYS_pread64 SYS_preadv SYS_preadv2 SYS_prlimit64 SYS_process_mrelease
    SYS_process_vm_readv SYS_process_vm_writev SYS_pselect6 SYS_ptrace SYS_pwrite64 SYS_pwritev SYS_pwritev2
    SYS_read SYS_readahead SYS_readlinkat SYS_readv SYS_recvfrom SYS_recvmmsg SYS_recvmsg
    SYS_remap_file_pages SYS_removexattr SYS_renameat2 SYS_restart_syscall SYS_rseq
    SYS_rt_sigaction SYS_rt_sigpending SYS_rt_sigprocmask SYS_rt_sigqueueinfo SYS_rt_sigreturn
    SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo SYS_sched_getaffinity SYS_sched_getattr
    SYS_sched_getparam SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_getscheduler
    SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr SYS_sched_setparam
    SYS_sched_setscheduler SYS_sched_yield SYS_seccomp SYS_semctl SYS_semget SYS_semop SYS_semtimedop
    SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_setfsgid SYS_setfsuid SYS_setgid SYS_setgroups
    SYS_setitimer SYS_setpgid SYS_setpriority SYS_setregid SYS_setresgid SYS_setresuid SYS_setreuid
    SYS_set_robust_list SYS_setsid SYS_setsockopt SYS_set_tid_address SYS_setuid SYS_setxattr
    SYS_shmat SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown SYS_sigaltstack SYS_signalfd4
    SYS_splice SYS_statfs SYS_statx SYS_symlinkat SYS_sync SYS_syncfs SYS_sysinfo SYS_tee
    SYS_tgkill SYS_timer_create SYS_timer_delete SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime
    SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime SYS_times SYS_tkill SYS_truncate SYS_umask
    SYS_uname SYS_unlinkat SYS_utimensat SYS_vmsplice SYS_wait4 SYS_waitid SYS_write SYS_writev
];

/// Allowed to everybody: cachestat, fchmodat2, map_shadow_stack, futex_wake, futex_wait, futex_requeue, statmount,
/// listmount, mseal, setxattrat, getxattrat, listxattrat, removexattrat.
const RECENT: &[c_long] = &[451, 452, 453, 454, 455, 456, 457, 458, 462, 463, 464, 465, 466];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE_OWN: &[c_long] = &calls![
    SYS_access SYS_alarm SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create
    SYS_epoll_ctl_old SYS_epoll_wait SYS_epoll_wait_old SYS_eventfd SYS_fork SYS_futimesat SYS_getdents
    SYS_getpgrp SYS_getrlimit SYS_get_thread_area SYS_inotify_init SYS_lchown SYS_link SYS_lstat SYS_mkdir
    SYS_mknod SYS_modify_ldt SYS_open SYS_pause SYS_pipe SYS_poll SYS_readlink SYS_rename SYS_renameat SYS_rmdir
    SYS_select SYS_setrlimit SYS_set_thread_area SYS_signalfd SYS_stat SYS_symlink SYS_sync_file_range SYS_time
    SYS_unlink SYS_utime SYS_utimes SYS_vfork
];
/// What docker adds for arm64 are calls of the 32-bit ABI.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE_OWN: &[c_long] = &[];

/// io_pgetevents and uretprobe.
#[cfg(target_arch = "x86_64")]
const NAMELESS: &[c_long] = &[333, 335];
/// renameat, sync_file_range, getrlimit, setrlimit, io_pgetevents.
#[cfg(target_arch = "aarch64")]
const NAMELESS: &[c_long] = &[38, 84, 163, 164, 292];

/// Calls that come with a capability.
const BY_CAPABILITY: &[(&str, &[c_long])] = &[
    ("DAC_READ_SEARCH", &calls![SYS_open_by_handle_at]),
    (
        "SYS_ADMIN",
        &calls![
            SYS_bpf SYS_clone SYS_clone3 SYS_fanotify_init SYS_fsconfig SYS_fsmount SYS_fsopen SYS_fspick
            SYS_lookup_dcookie SYS_mount SYS_mount_setattr SYS_move_mount SYS_open_tree SYS_perf_event_open
            SYS_quotactl SYS_quotactl_fd SYS_setdomainname SYS_sethostname SYS_setns SYS_syslog SYS_umount2
            SYS_unshare
        ],
    ),
    // lsm_get_self_attr, lsm_set_self_attr, lsm_list_modules.
    ("SYS_ADMIN", &[459, 460, 461]),
    ("SYS_BOOT", &calls![SYS_reboot]),
    ("SYS_CHROOT", &calls![SYS_chroot]),
    (
        "SYS_MODULE",
        &calls![SYS_delete_module SYS_init_module SYS_finit_module],
    ),
    ("SYS_PACCT", &calls![SYS_acct]),
    (
        "SYS_PTRACE",
        &calls![SYS_kcmp SYS_pidfd_getfd SYS_process_madvise],
    ),
    ("SYS_TIME", &calls![SYS_settimeofday SYS_clock_settime]),
    ("SYS_TTY_CONFIG", &calls![SYS_vhangup]),
    (
        "SYS_NICE",
        &calls![SYS_get_mempolicy SYS_mbind SYS_set_mempolicy SYS_set_mempolicy_home_node],
    ),
    ("SYSLOG", &calls![SYS_syslog]),
    ("BPF", &calls![SYS_bpf]),
    ("PERFMON", &calls![SYS_perf_event_open]),
    #[cfg(target_arch = "x86_64")]
    ("SYS_RAWIO", &calls![SYS_iopl SYS_ioperm]),
];

pub(super) fn rules(nested: bool, also: &[Opening], capabilities: Capabilities) -> Rules {
    let mut calls = BTreeMap::new();
    let mut put = |number: c_long, answer: Answer| {
        calls.insert(number as u32, answer);
    };
    let mask = |argument, mask, values: &[u32]| Answer::Ask {
        argument,
        mask,
        values: values.to_vec(),
    };
    for number in COMMON
        .iter()
        .chain(RECENT)
        .chain(ARCHITECTURE_OWN)
        .chain(NAMELESS)
    {
        put(*number, Answer::Allow);
    }
    put(libc::SYS_personality, mask(0, u32::MAX, &PERSONALITIES));

    let opened = also.iter().filter_map(|opening| match opening {
        Opening::SocketFamily(family) => Some(*family),
        Opening::Call(_) => None,
    });
    let families: Vec<u32> = FAMILIES.into_iter().chain(opened).collect();
    // A pair of sockets is made, and a module loaded for it, before the kernel asks whether the family has pairs.
    for number in [libc::SYS_socket, libc::SYS_socketpair] {
        put(number, mask(0, u32::MAX, &families));
    }

    // A browser's sandbox makes a user namespace with and without others, then a pid namespace inside it.
    let (user, pid, net) = (
        libc::CLONE_NEWUSER as u32,
        libc::CLONE_NEWPID as u32,
        libc::CLONE_NEWNET as u32,
    );
    let clone: &[u32] = if nested {
        put(libc::SYS_unshare, mask(0, NAMESPACES | NEW_TIME, &[0, user]));
        &[0, user, user | pid | net, pid]
    } else {
        &[0]
    };
    put(libc::SYS_clone, mask(0, NAMESPACES, clone));
    // Its flags lie behind a pointer, where no filter can look; libraries fall back to clone on this answer.
    put(libc::SYS_clone3, Answer::Refuse(libc::ENOSYS as u16));

    for (name, numbers) in BY_CAPABILITY {
        let capability = name.parse().expect("a name of the kernel's table");
        if capabilities.contains(capability) {
            for number in *numbers {
                put(*number, Answer::Allow);
            }
        }
    }
    for opening in also {
        if let Opening::Call(number) = opening {
            put(*number, Answer::Allow);
        }
    }
    Rules {
        architecture: ARCHITECTURE,
        calls,
        otherwise: Answer::Refuse(libc::EPERM as u16),
        unknown: Answer::Refuse(libc::ENOSYS as u16),
    }
}

#[cfg(test)]
mod tests {
    use super::super::bpf::{compile, tests::run};
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;
    const ENOSYS: u32 = 0x0005_0026;

    fn ask(nested: bool, also: &[Opening], number: c_long, argument: u64) -> u32 {
        let program = compile(&rules(nested, also, Capabilities::DEFAULT));
        assert!(program.len() <= 4096, "the kernel's limit");
        run(&program, ARCHITECTURE, number as u32, [argument, 0, 0, 0, 0, 0])
    }

    #[test]
    fn dangerous_calls_are_closed() {
        for number in calls![
            SYS_bpf SYS_userfaultfd SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register SYS_keyctl
            SYS_add_key SYS_request_key SYS_mount SYS_umount2 SYS_setns SYS_pivot_root SYS_open_tree
            SYS_move_mount SYS_fsopen SYS_mount_setattr SYS_perf_event_open SYS_init_module SYS_kexec_load
            SYS_reboot SYS_swapon SYS_open_by_handle_at SYS_quotactl SYS_acct SYS_settimeofday SYS_syslog
            SYS_pidfd_getfd SYS_kcmp SYS_mbind
        ] {
            assert_eq!(ask(false, &[], number, 0), EPERM, "{number}");
            assert_eq!(ask(false, &[Opening::Call(number)], number, 0), ALLOW, "{number}");
        }
    }

    #[test]
    fn a_truncated_argument_opens_nothing() {
        for family in [38u64, 40, 0x1_0000_0026, 0xffff_ffff_0000_0028] {
            assert_eq!(ask(false, &[], libc::SYS_socket, family), EPERM, "{family:#x}");
        }
        assert_eq!(
            ask(false, &[Opening::SocketFamily(38)], libc::SYS_socket, 38),
            ALLOW
        );
        assert_eq!(
            ask(false, &[Opening::SocketFamily(38)], libc::SYS_socket, 40),
            EPERM
        );
    }

    #[test]
    fn only_the_usual_families_are_open() {
        let families = FAMILIES.map(u64::from);
        for call in [libc::SYS_socket, libc::SYS_socketpair] {
            for family in (0..=0x100).chain([u64::from(u32::MAX)]) {
                let expected = if families.contains(&family) { ALLOW } else { EPERM };
                assert_eq!(ask(false, &[], call, family), expected, "{call} {family}");
            }
        }
    }

    #[test]
    fn namespaces_are_closed_but_for_a_browsers_four_calls() {
        let (user, pid, net, mount) = (
            libc::CLONE_NEWUSER as u64,
            libc::CLONE_NEWPID as u64,
            libc::CLONE_NEWNET as u64,
            libc::CLONE_NEWNS as u64,
        );
        let signal = libc::SIGCHLD as u64;
        for nested in [false, true] {
            let expected = if nested { ALLOW } else { EPERM };
            for flags in [user, user | pid | net, pid] {
                assert_eq!(ask(nested, &[], libc::SYS_clone, flags | signal), expected);
            }
            assert_eq!(ask(nested, &[], libc::SYS_unshare, user), expected);
            assert_eq!(ask(nested, &[], libc::SYS_clone, signal), ALLOW);
            // Without nested namespaces the whole call is SYS_ADMIN's, as under docker.
            assert_eq!(
                ask(nested, &[], libc::SYS_unshare, libc::CLONE_FILES as u64),
                expected
            );
            for flags in [mount, user | mount, user | pid, net] {
                assert_eq!(ask(nested, &[], libc::SYS_clone, flags), EPERM);
                assert_eq!(ask(nested, &[], libc::SYS_unshare, flags), EPERM);
            }
            assert_eq!(ask(nested, &[], libc::SYS_clone3, 0), ENOSYS);
        }
    }

    #[test]
    fn what_is_newer_than_the_list_does_not_exist() {
        assert_eq!(ask(false, &[], 467, 0), ENOSYS);
        assert_eq!(ask(false, &[], 0x4000_0001, 0), ENOSYS);
        let program = compile(&rules(false, &[], Capabilities::DEFAULT));
        assert_eq!(run(&program, 0x4000_0003, 1, [0; 6]), ENOSYS);
    }

    #[test]
    fn a_capability_brings_its_calls() {
        let program = compile(&rules(false, &[], Capabilities::ALL));
        for number in calls![SYS_mount SYS_unshare SYS_clone3] {
            assert_eq!(run(&program, ARCHITECTURE, number as u32, [u64::MAX; 6]), ALLOW);
        }
        assert_eq!(
            run(&program, ARCHITECTURE, libc::SYS_keyctl as u32, [0; 6]),
            EPERM
        );
    }
}
