//! The part of the plan that builds what the jail sees as files: its root, the kernel's file systems, `/dev`, masks,
//! small files and mounts.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use luna_core::Result;
use rustix::mount::MountAttrFlags;

use super::{DEVICES, Draft, QUIET, literal, thermal};
use crate::mount::Source;
use crate::spec::{Defences, Mount, Network, Root, Spec};
use crate::step::{Slot, Step, TargetKind};

/// Directories and files of `/proc` that say or do too much; docker's list (moby `oci/defaults.go`).
const MASKED_IN_PROC: [&CStr; 10] = [
    c"acpi",
    c"asound",
    c"interrupts",
    c"kcore",
    c"keys",
    c"latency_stats",
    c"sched_debug",
    c"scsi",
    c"timer_list",
    c"timer_stats",
];
/// With the counters of [`thermal`], of which there are as many as processors.
const MASKED_IN_SYS: [&CStr; 2] = [c"firmware", c"devices/virtual/powercap"];
const READ_ONLY_IN_PROC: [&CStr; 5] = [c"bus", c"fs", c"irq", c"sys", c"sysrq-trigger"];

fn masked_in_sys() -> impl Iterator<Item = &'static CStr> {
    let counters = thermal::counters().iter().map(CString::as_c_str);
    MASKED_IN_SYS.into_iter().chain(counters)
}

fn below(directory: &str, path: &CStr) -> PathBuf {
    Path::new(directory).join(OsStr::from_bytes(path.to_bytes()))
}

/// What a jail with these defences covers, by absolute paths in it.
pub(crate) fn masked(defences: &Defences) -> Vec<PathBuf> {
    let in_proc = MASKED_IN_PROC.iter().map(|path| below("/proc", path));
    let all = in_proc.chain(masked_in_sys().map(|path| below("/sys", path)));
    all.filter(|_| defences.masked_paths).collect()
}

/// The same of what it can only read.
pub(crate) fn read_only(defences: &Defences) -> Vec<PathBuf> {
    let in_proc = READ_ONLY_IN_PROC.iter().map(|path| below("/proc", path));
    in_proc
        .filter(|_| defences.read_only_paths)
        .chain(defences.read_only_system.then(|| "/sys".into()))
        .collect()
}

impl Draft {
    /// Everything the jail sees as files; the result is `/dev`.
    pub(super) fn file_system(&mut self, spec: &Spec) -> Result<Slot> {
        // Staging lies over the old root and is let go of with it: mounts wait there that are cloned from.
        let staging = self.make(c"tmpfs", &[(c"mode", "700"), (c"size", "64k")], QUIET);
        self.steps.push(Step::AttachOverRoot(staging));
        for name in ["root", "empty", "files"] {
            self.steps.push(Step::MakeDirectory {
                at: staging,
                path: literal(name),
                mode: 0o700,
            });
        }
        let empty = self.make(
            c"tmpfs",
            &[(c"mode", "555"), (c"size", "4k")],
            QUIET | MountAttrFlags::MOUNT_ATTR_RDONLY,
        );
        self.steps.push(Step::Attach {
            mount: empty,
            at: staging,
            path: literal("empty"),
        });

        let root = match &spec.root {
            Root::Overlay {
                lower, upper, work, ..
            } => self.source(Source::Overlay {
                lower: lower.clone(),
                upper: upper.clone(),
                work: work.clone(),
            }),
            Root::Empty => self.make(
                c"tmpfs",
                &[(c"mode", "755"), (c"size", "1m")],
                MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
            ),
        };
        self.steps.push(Step::Attach {
            mount: root,
            at: staging,
            path: literal("root"),
        });

        let proc = self.kernel_file_systems(spec, root, empty)?;
        let devices = self.devices(spec, root)?;
        if spec.defences.masked_paths {
            let in_proc = MASKED_IN_PROC.map(|path| (proc.proc, path));
            let in_sys = masked_in_sys().map(|path| (proc.sys, path));
            for (at, path) in in_proc.into_iter().chain(in_sys) {
                self.steps.push(Step::Mask {
                    at,
                    path: path.to_owned(),
                    directory: empty,
                    devices,
                });
            }
        }
        if spec.defences.read_only_paths {
            for path in READ_ONLY_IN_PROC {
                self.steps.push(Step::ReadOnlyPath { at: proc.proc, path });
            }
        }
        self.files(spec, root, staging)?;
        self.mounts(spec, root)?;
        self.labels(spec, proc.proc)?;
        if matches!(spec.root, Root::Empty | Root::Overlay { read_only: true, .. }) {
            self.steps.push(Step::ReadOnly(root));
        }
        self.steps.extend([Step::Pivot(root), Step::CheckRoot(root)]);
        Ok(devices)
    }

    fn kernel_file_systems(&mut self, spec: &Spec, root: Slot, empty: Slot) -> Result<KernelFileSystems> {
        let read_only = if spec.defences.read_only_system {
            MountAttrFlags::MOUNT_ATTR_RDONLY
        } else {
            MountAttrFlags::empty()
        };
        // A file system of the kernel's can be made only by the owner of the namespace it shows.
        let proc = if spec.defences.pid_namespace {
            self.make(c"proc", &[], QUIET)
        } else {
            self.source(Source::Kernel {
                path: "/proc".into(),
                read_only: false,
            })
        };
        self.attach_in_root(spec, proc, root, Path::new("/proc"), TargetKind::Directory)?;
        let sys = if spec.network == Network::Own {
            self.make(c"sysfs", &[], QUIET | read_only)
        } else {
            self.source(Source::Kernel {
                path: "/sys".into(),
                read_only: spec.defences.read_only_system,
            })
        };
        self.attach_in_root(spec, sys, root, Path::new("/sys"), TargetKind::Directory)?;
        let cgroup = if spec.defences.cgroup_namespace {
            self.make(c"cgroup2", &[], QUIET | read_only)
        } else {
            empty
        };
        self.steps.push(Step::Attach {
            mount: cgroup,
            at: sys,
            path: literal("fs/cgroup"),
        });
        Ok(KernelFileSystems { proc, sys })
    }

    fn devices(&mut self, spec: &Spec, root: Slot) -> Result<Slot> {
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let devices = self.make(c"tmpfs", &[(c"mode", "755"), (c"size", "64k")], attributes);
        for name in ["pts", "shm", "mqueue"] {
            self.steps.push(Step::MakeDirectory {
                at: devices,
                path: literal(name),
                mode: 0o755,
            });
        }
        for (path, to) in [
            ("ptmx", c"pts/ptmx"),
            ("fd", c"/proc/self/fd"),
            ("stdin", c"/proc/self/fd/0"),
            ("stdout", c"/proc/self/fd/1"),
            ("stderr", c"/proc/self/fd/2"),
        ] {
            self.steps.push(Step::MakeLink {
                at: devices,
                path: literal(path),
                to,
            });
        }
        for (name, ..) in DEVICES {
            let path = literal(name);
            self.steps.push(Step::MakeFile {
                at: devices,
                path,
                content: Vec::new(),
                mode: 0o600,
            });
        }
        self.attach_in_root(spec, devices, root, Path::new("/dev"), TargetKind::Directory)?;
        for (name, major, minor) in DEVICES {
            let mount = self.source(Source::Device {
                source: Path::new("/dev").join(name),
                number: Some((major, minor)),
                read_only: false,
            });
            self.steps.push(Step::Attach {
                mount,
                at: devices,
                path: literal(name),
            });
        }
        // Group 5 is `tty` on every distribution.
        let pts = self.make(
            c"devpts",
            &[(c"mode", "0620"), (c"ptmxmode", "0666"), (c"gid", "5")],
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        );
        self.steps.push(Step::Attach {
            mount: pts,
            at: devices,
            path: literal("pts"),
        });
        let size = spec.shared_memory.0.to_string();
        let shm = self.make(c"tmpfs", &[(c"mode", "1777"), (c"size", &size)], QUIET);
        self.steps.push(Step::Attach {
            mount: shm,
            at: devices,
            path: literal("shm"),
        });
        if spec.defences.ipc_namespace {
            let mqueue = self.make(c"mqueue", &[], QUIET);
            self.steps.push(Step::Attach {
                mount: mqueue,
                at: devices,
                path: literal("mqueue"),
            });
        }
        Ok(devices)
    }

    fn files(&mut self, spec: &Spec, root: Slot, staging: Slot) -> Result<()> {
        if spec.files.is_empty() {
            return Ok(());
        }
        let size = spec
            .files
            .iter()
            .map(|file| file.content.len().next_multiple_of(4096) + 4096)
            .sum::<usize>();
        let files = self.make(c"tmpfs", &[(c"mode", "755"), (c"size", &size.to_string())], QUIET);
        self.steps.push(Step::Attach {
            mount: files,
            at: staging,
            path: literal("files"),
        });
        for (number, file) in spec.files.iter().enumerate() {
            let path = literal(&number.to_string());
            let into = self.slot();
            self.steps.push(Step::MakeFile {
                at: files,
                path: path.clone(),
                content: file.content.clone(),
                mode: 0o644,
            });
            self.steps.push(Step::Clone {
                at: files,
                path,
                into,
            });
            self.attach_in_root(spec, into, root, &file.target, TargetKind::File)?;
        }
        Ok(())
    }

    fn mounts(&mut self, spec: &Spec, root: Slot) -> Result<()> {
        for mount in &spec.mounts {
            let (slot, target, kind) = match mount {
                Mount::Bind {
                    source,
                    target,
                    read_only,
                } => {
                    let slot = self.source(Source::Bind {
                        source: source.clone(),
                        read_only: *read_only && spec.defences.read_only_binds,
                        restricted: spec.defences.restricted_binds,
                    });
                    (slot, target, TargetKind::Like(slot))
                }
                Mount::Device {
                    source,
                    target,
                    write,
                    ..
                } => {
                    let slot = self.source(Source::Device {
                        source: source.clone(),
                        number: None,
                        read_only: !write,
                    });
                    (slot, target, TargetKind::File)
                }
                Mount::Tmpfs {
                    target,
                    size,
                    mode,
                    executable,
                } => {
                    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
                    if !executable {
                        attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC;
                    }
                    let mode = format!("{mode:o}");
                    let size = size.map(|size| size.0.to_string());
                    let mut options = vec![(c"mode", mode.as_str())];
                    options.extend(size.as_deref().map(|size| (c"size", size)));
                    let slot = self.make(c"tmpfs", &options, attributes);
                    (slot, target, TargetKind::Directory)
                }
            };
            self.attach_in_root(spec, slot, root, target, kind)?;
        }
        Ok(())
    }
}

struct KernelFileSystems {
    proc: Slot,
    sys: Slot,
}
