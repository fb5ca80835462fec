//! From a bundle to the jail's spec; pure but for the descriptors it moves.

use std::os::fd::OwnedFd;

use luna_core::capability::Capabilities;
use luna_core::engine::{Bundle, Endpoint, IdRange, Mount, Root as BundleRoot};
use luna_core::spec::{Resources, Seccomp, SwapLimit};
use luna_core::units::Bytes;
use luna_core::{Error, Kind, Result};
use luna_jail::spec::{
    Defences, File, Ids, Limits, Mount as JailMount, Network, Program, Root, SecurityLabels, Swap,
};

/// What docker gives a container; asked for by nobody, so best effort.
const DEFAULT_PIDS: u32 = 4096;
const DEFAULT_SHARED_MEMORY: Bytes = Bytes::mebibytes(64);

/// What init needs to start processes as other users, to hand out their files and to end them; all within docker's
/// fourteen. Each process it starts loses what the bundle does not grant.
fn of_init() -> Capabilities {
    let names = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
    ];
    names
        .iter()
        .map(|name| name.parse().expect("names of the kernel's table"))
        .fold(Capabilities::NONE, Capabilities::with)
}

pub(crate) fn jail_spec(bundle: Bundle, channel: OwnedFd) -> Result<luna_jail::Spec> {
    let confinement = bundle.confinement;
    let system_admin = "SYS_ADMIN".parse().expect("a name of the kernel's table");
    let read_only_mount = bundle
        .mounts
        .iter()
        .any(|mount| matches!(mount, Mount::Bind { read_only: true, .. }));
    if read_only_mount && confinement.capabilities.contains(system_admin) {
        // Inside its own user namespace this capability is enough to make the mount writable again.
        return Err(Error::new(Kind::Refused, "cannot keep a volume read-only")
            .because("the sandbox is granted the capability SYS_ADMIN, which can remount it")
            .hint("drop `--cap-add SYS_ADMIN`, or mount the volume writable"));
    }
    if confinement.privileged {
        return Err(
            Error::new(Kind::Refused, "cannot give a container all privileges")
                .because("its kernel is the host's")
                .hint("let it have a kernel of its own: `--isolation vm`"),
        );
    }
    let BundleRoot::Tree(root) = bundle.root else {
        return Err(Error::new(
            Kind::Internal,
            "cannot use disks as a container's root",
        ));
    };
    let limits = limits(&bundle.resources)?;
    let devices = confinement.devices.into_iter().map(|device| JailMount::Device {
        source: device.source,
        target: device.target,
        read: device.read,
        write: device.write,
    });
    Ok(luna_jail::Spec {
        name: bundle.id.to_string(),
        program: Program {
            executable: bundle.init,
            arguments: vec!["luna-init".to_owned()],
            environment: Vec::new(),
            stdio: [None, None, None],
            descriptors: vec![channel],
        },
        ids: Ids {
            base: bundle.ids.base,
            count: IdRange::COUNT,
        },
        root: Root::Overlay {
            lower: root.lower,
            upper: root.upper,
            work: root.work,
            read_only: root.read_only,
        },
        hostname: bundle.hostname,
        files: bundle
            .files
            .into_iter()
            .map(|file| File {
                target: file.target,
                content: file.content,
            })
            .collect(),
        mounts: bundle.mounts.into_iter().map(mount).chain(devices).collect(),
        shared_memory: bundle.resources.shm.unwrap_or(DEFAULT_SHARED_MEMORY),
        network: match bundle.endpoint {
            Endpoint::None => Network::Own,
            Endpoint::Host => Network::Host,
        },
        limits,
        // Of each process, which init sets in it: init's own descriptors and threads must not count against them.
        rlimits: Vec::new(),
        security_labels: SecurityLabels {
            apparmor: confinement.apparmor,
            selinux: confinement.selinux,
        },
        defences: Defences {
            capabilities: confinement.capabilities.union(of_init()),
            no_new_privileges: confinement.no_new_privileges,
            seccomp: match confinement.seccomp {
                Seccomp::Default => luna_jail::spec::Seccomp::Filter {
                    nested_user_namespaces: confinement.nested_user_namespaces,
                    also: Vec::new(),
                },
                Seccomp::Unconfined => luna_jail::spec::Seccomp::Unconfined,
            },
            ..Defences::default()
        },
    })
}

fn mount(mount: Mount) -> JailMount {
    match mount {
        Mount::Bind {
            source,
            target,
            read_only,
        } => JailMount::Bind {
            source,
            target,
            read_only,
        },
        Mount::Tmpfs {
            target,
            size,
            mode,
            executable,
        } => JailMount::Tmpfs {
            target,
            size,
            mode,
            executable,
        },
    }
}

/// Docker's words for limits into the kernel's.
pub(crate) fn limits(resources: &Resources) -> Result<Limits> {
    let swap = match (resources.memory_swap, resources.memory) {
        (None, _) => None,
        (Some(SwapLimit::Unlimited), _) => Some(Swap::Unlimited),
        (Some(SwapLimit::Total(total)), Some(memory)) if total >= memory => {
            Some(Swap::At(Bytes(total.0 - memory.0)))
        }
        (Some(SwapLimit::Total(_)), memory) => {
            let why = match memory {
                Some(_) => "memory and swap together are less than memory alone",
                None => "it means nothing without a limit on memory",
            };
            return Err(Error::new(Kind::InvalidInput, "cannot limit swap")
                .because(why)
                .hint("give `--memory` and a `--memory-swap` that is no smaller"));
        }
    };
    Ok(Limits {
        memory: resources.memory,
        swap,
        cpus: resources.cpus,
        cpuset: resources.cpuset.clone(),
        pids: resources.pids,
        default_pids: resources.pids.is_none().then_some(DEFAULT_PIDS),
        io_weight: resources.blkio_weight,
    })
}

#[cfg(test)]
mod tests {
    use luna_core::spec::PidsLimit;

    use super::*;

    #[test]
    fn init_needs_no_more_than_docker_gives() {
        assert_eq!(of_init().union(Capabilities::DEFAULT), Capabilities::DEFAULT);
    }

    #[test]
    fn swap_is_what_is_left_above_memory() {
        let asked = |memory, memory_swap| {
            limits(&Resources {
                memory,
                memory_swap,
                ..Resources::default()
            })
            .map(|limits| limits.swap)
        };
        let (one, two) = (Bytes::mebibytes(1), Bytes::mebibytes(2));
        assert_eq!(
            asked(Some(one), Some(SwapLimit::Total(two))).unwrap(),
            Some(Swap::At(one))
        );
        assert_eq!(
            asked(Some(one), Some(SwapLimit::Total(one))).unwrap(),
            Some(Swap::At(Bytes(0)))
        );
        assert_eq!(asked(Some(one), None).unwrap(), None);
        assert!(asked(Some(two), Some(SwapLimit::Total(one))).is_err());
        assert!(asked(None, Some(SwapLimit::Total(one))).is_err());
    }

    #[test]
    fn only_an_unasked_pids_limit_is_best_effort() {
        let asked = |pids| {
            limits(&Resources {
                pids,
                ..Resources::default()
            })
            .unwrap()
        };
        assert_eq!(asked(None).default_pids, Some(DEFAULT_PIDS));
        assert_eq!(asked(Some(PidsLimit::At(7))).pids, Some(PidsLimit::At(7)));
        assert_eq!(asked(Some(PidsLimit::At(7))).default_pids, None);
        assert_eq!(asked(Some(PidsLimit::Unlimited)).default_pids, None);
    }
}
