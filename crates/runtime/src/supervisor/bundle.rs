//! From a record to a bundle: what was planned meets what lies on disk.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use luna_core::engine::{
    Bundle, Confinement, Disk, Endpoint, Mount, OverlaidFile, Root, RootForm, SystemBundle, SystemDisk,
    SystemFirmware, Tree,
};
use luna_core::spec::{BootRequest, Firmware, Network};
use luna_core::units::Bytes;
use luna_core::{Error, Kind, Result};
use luna_image::{Image, Store};
use luna_microvm::kernel::Store as Kernels;

use crate::layout::Layout;
use crate::prepare;
use crate::record::{Content, PlannedMount, Record};
use crate::volumes::Volumes;

/// How large a machine's writable disk may grow where nobody said; it is sparse.
const DISK: Bytes = Bytes::mebibytes(16 << 10);

/// Everything an engine needs. What it needs of the image and is not made yet is made.
pub(crate) fn assemble(
    layout: &Layout,
    store: &Store,
    record: &Record,
    endpoint: Endpoint,
) -> Result<Bundle> {
    let Content::Program { image, process } = &record.content else {
        return Err(record.no_init());
    };
    let image = store.get(&image.id)?;
    let mounts = mounts(layout, store, &image, record)?;
    let root = match record.decision.engine.root {
        RootForm::Tree => Root::Tree(tree(layout, store, &image, record)?),
        RootForm::Disk => Root::Disk(disk(layout, store, &image, record)?),
    };
    let security = &record.spec.security;
    Ok(Bundle {
        id: record.id.clone(),
        init: init()?,
        root,
        ids: record.ids,
        hostname: record.hostname.clone(),
        files: files(record),
        mounts,
        endpoint,
        resources: record.spec.resources.clone(),
        confinement: Confinement {
            capabilities: process.capabilities,
            no_new_privileges: process.no_new_privileges,
            nested_user_namespaces: record.nested_user_namespaces,
            seccomp: security.seccomp,
            devices: security.devices.clone(),
            apparmor: security.apparmor.clone(),
            selinux: security.selinux.clone(),
            privileged: security.privileged,
        },
    })
}

/// Everything a machine needs to boot a disk image.
pub(crate) fn assemble_system(layout: &Layout, record: &Record, boot: &BootRequest) -> Result<SystemBundle> {
    let directory = layout.sandbox(&record.id);
    let spec = &record.spec;
    let mut ports: Vec<u16> = spec.ports.iter().map(|port| port.sandbox).collect();
    ports.sort_unstable();
    ports.dedup();
    Ok(SystemBundle {
        id: record.id.clone(),
        disk: SystemDisk {
            base: boot.disk.clone(),
            format: luna_microvm::system::format(&boot.disk)?,
            upper: directory.join("upper.qcow2"),
            least_size: spec.machine.disk.unwrap_or(Bytes(0)),
        },
        firmware: match boot.firmware {
            Firmware::Bios => SystemFirmware::Bios,
            Firmware::Uefi => SystemFirmware::Uefi {
                variables: directory.join("variables.fd"),
            },
        },
        ids: record.ids,
        resources: spec.resources.clone(),
        ports,
    })
}

fn tree(layout: &Layout, store: &Store, image: &Image, record: &Record) -> Result<Tree> {
    let directory = layout.sandbox(&record.id);
    Ok(Tree {
        lower: store.tree(image, &|_| {})?,
        upper: directory.join("upper"),
        work: directory.join("work"),
        read_only: record.spec.read_only,
    })
}

fn disk(layout: &Layout, store: &Store, image: &Image, record: &Record) -> Result<Disk> {
    let spec = &record.spec;
    let kernel = prepare::chosen(&Kernels::open(&layout.kernels()), spec)?;
    let modules = if spec.security.privileged {
        prepare::modules(&kernel)?
    } else {
        None
    };
    Ok(Disk {
        kernel: kernel.directory,
        base: store.disk(image, &|_| {})?,
        upper: layout.sandbox(&record.id).join("upper.ext4"),
        upper_size: spec.machine.disk.unwrap_or(DISK),
        read_only: spec.read_only,
        modules,
        sockets: Vec::new(),
    })
}

/// `luna-init`, beside Luna's own executable or in `../lib/luna`, as a sealed memfd.
pub(crate) fn init() -> Result<std::os::fd::OwnedFd> {
    let executable =
        std::env::current_exe().map_err(|e| Error::io("cannot find Luna's own executable", e))?;
    let beside = executable.parent().unwrap_or_else(|| Path::new("/"));
    let explicit = std::env::var_os("LUNA_INIT").map(PathBuf::from);
    let candidates = explicit
        .into_iter()
        .chain([beside.join("luna-init"), beside.join("../lib/luna/luna-init")]);
    for candidate in candidates {
        if candidate.exists() {
            return luna_jail::sealed(&candidate);
        }
    }
    Err(Error::new(Kind::NotFound, "cannot find `luna-init`")
        .because(format!(
            "it is neither in `{}` nor in `../lib/luna` from there",
            beside.display()
        ))
        .hint("install Luna whole (`make install`), or name the file with `LUNA_INIT`"))
}

/// The small files that tell a sandbox who it is.
fn files(record: &Record) -> Vec<OverlaidFile> {
    let spec = &record.spec;
    let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let own = match spec.network {
        Network::None => "127.0.0.1",
        Network::Host => "127.0.1.1",
    };
    writeln!(hosts, "{own}\t{}", record.hostname).expect("a String takes every write");
    for (name, address) in &spec.extra_hosts {
        writeln!(hosts, "{address}\t{name}").expect("a String takes every write");
    }
    let resolv = match spec.network {
        _ if !spec.dns.is_empty() => spec.dns.iter().fold(String::new(), |mut text, address| {
            writeln!(text, "nameserver {address}").expect("a String takes every write");
            text
        }),
        Network::None => String::new(),
        Network::Host => std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    let file = |target: &str, content: String| OverlaidFile {
        target: target.into(),
        content: content.into_bytes(),
    };
    vec![
        file("/etc/hosts", hosts),
        file("/etc/hostname", format!("{}\n", record.hostname)),
        file("/etc/resolv.conf", resolv),
    ]
}

fn mounts(layout: &Layout, store: &Store, image: &Image, record: &Record) -> Result<Vec<Mount>> {
    let volumes = Volumes::new(layout);
    record
        .mounts
        .iter()
        .map(|mount| {
            Ok(match mount.clone() {
                PlannedMount::Bind {
                    source,
                    target,
                    read_only,
                } => Mount::Bind {
                    source,
                    target,
                    read_only,
                },
                PlannedMount::Tmpfs {
                    target,
                    size,
                    mode,
                    executable,
                } => Mount::Tmpfs {
                    target,
                    size: size.map(Bytes),
                    mode,
                    executable,
                },
                PlannedMount::Volume {
                    name,
                    target,
                    read_only,
                    ..
                } => {
                    let fill =
                        |data: &Path| luna_image::populate(&store.tree(image, &|_| {})?, &target, data);
                    let volume = volumes.create(&name, &fill)?;
                    Mount::Bind {
                        source: volume.data,
                        target,
                        read_only,
                    }
                }
            })
        })
        .collect()
}
