//! From a spec to what the launcher makes ([`Source`]) and what the child does ([`Step`]); pure, but that it looks once
//! which processors have counters to mask.

mod file_system;
mod thermal;

pub(crate) use file_system::{masked, read_only};

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use luna_core::process::{Rlimit, RlimitKind};
use luna_core::{Error, Kind, Result};
use rustix::mount::MountAttrFlags;
use rustix::process::Resource;

use crate::child::MOST_MOUNTS;
use crate::mount::Source;
use crate::spec::{Network, Spec};
use crate::step::{Descriptors, MOST_INHERITED, SLOTS, Slot, Step, TargetKind};
use crate::sys::{Instruction, Strings};

/// The character devices every jail has, with their numbers (`Documentation/admin-guide/devices.txt`).
pub(crate) const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const QUIET: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// Descriptors made by the launcher that the child inherits by number.
pub(crate) struct Inherited {
    /// `tasks` files of version 1 cgroups to join.
    pub(crate) cgroups: Vec<RawFd>,
    pub(crate) seccomp: Option<Arc<[Instruction]>>,
    pub(crate) landlock: Option<RawFd>,
}

pub(crate) struct Plan {
    /// Slot n holds the mount of source n.
    pub(crate) sources: Vec<Source>,
    pub(crate) steps: Vec<Step>,
}

impl Plan {
    pub(crate) fn new(spec: &Spec, inherited: &Inherited) -> Result<Plan> {
        let mut draft = Draft {
            sources: Vec::new(),
            steps: Vec::new(),
            next: SLOTS as u8,
        };
        draft.namespaces(spec, inherited);
        let devices = draft.file_system(spec)?;
        if spec.defences.no_new_privileges {
            draft.steps.push(Step::NoNewPrivileges);
        }
        draft.steps.extend(inherited.landlock.map(Step::Landlock));
        draft.descriptors(spec, devices)?;
        draft.confine(spec, inherited)?;
        if draft.sources.len() > MOST_MOUNTS || usize::from(draft.next) < draft.sources.len() {
            return Err(invalid(spec, format!("it has more than {MOST_MOUNTS} mounts")));
        }
        let count = draft.sources.len();
        for step in &mut draft.steps {
            if let Step::Receive(expected) = step {
                *expected = count;
            }
        }
        Ok(Plan {
            sources: draft.sources,
            steps: draft.steps,
        })
    }
}

struct Draft {
    sources: Vec<Source>,
    steps: Vec<Step>,
    /// Slots the child fills are handed out from above.
    next: u8,
}

impl Draft {
    fn source(&mut self, source: Source) -> Slot {
        self.sources.push(source);
        Slot((self.sources.len() - 1).min(SLOTS - 1) as u8)
    }

    fn slot(&mut self) -> Slot {
        self.next = self.next.saturating_sub(1);
        Slot(self.next)
    }

    fn namespaces(&mut self, spec: &Spec, inherited: &Inherited) {
        let defences = &spec.defences;
        self.steps
            .extend(inherited.cgroups.iter().map(|tasks| Step::JoinCgroup(*tasks)));
        if defences.cgroup_namespace {
            self.steps.push(Step::CgroupNamespace);
        }
        if defences.new_session {
            self.steps.push(Step::Session);
        }
        if defences.new_session_keyring {
            self.steps.push(Step::SessionKeyring);
        }
        if spec.network == Network::Own {
            self.steps.push(Step::LoopbackUp);
        }
        if defences.uts_namespace {
            self.steps
                .push(Step::Hostname(spec.hostname.clone().into_bytes()));
        }
        self.steps.extend([Step::Receive(0), Step::BecomeRoot]);
        if defences.die_with_parent {
            self.steps.push(Step::DieWithParent);
        }
        self.steps.push(Step::PrivateMounts);
    }

    /// One file system made by the child.
    fn make(
        &mut self,
        kind: &'static CStr,
        options: &[(&'static CStr, &str)],
        attributes: MountAttrFlags,
    ) -> Slot {
        let into = self.slot();
        let options = options
            .iter()
            .map(|(key, value)| (*key, literal(value)))
            .collect();
        self.steps.push(Step::Filesystem {
            kind,
            flags: &[],
            options,
            attributes,
            into,
        });
        into
    }

    fn labels(&mut self, spec: &Spec, proc: Slot) -> Result<()> {
        let labels = &spec.security_labels;
        if let Some(profile) = &labels.apparmor {
            let label = label(spec, profile)?;
            let label = [b"exec ".as_slice(), label.as_bytes()].concat();
            self.steps.push(Step::ExecLabel {
                proc,
                path: c"self/attr/apparmor/exec",
                label,
            });
        }
        if let Some(context) = &labels.selinux {
            let label = label(spec, context)?.as_bytes().to_vec();
            self.steps.push(Step::ExecLabel {
                proc,
                path: c"self/attr/exec",
                label,
            });
        }
        Ok(())
    }

    fn descriptors(&mut self, spec: &Spec, devices: Slot) -> Result<()> {
        let program = &spec.program;
        if program.descriptors.len() > MOST_INHERITED {
            return Err(invalid(
                spec,
                format!("it inherits more than {MOST_INHERITED} descriptors"),
            ));
        }
        let [stdin, stdout, stderr] = &program.stdio;
        let raw = |fd: &Option<std::os::fd::OwnedFd>| fd.as_ref().map(AsRawFd::as_raw_fd);
        self.steps.push(Step::Descriptors(Descriptors {
            stdio: [raw(stdin), raw(stdout), raw(stderr)],
            inherited: program.descriptors.iter().map(AsRawFd::as_raw_fd).collect(),
            executable: program.executable.as_raw_fd(),
            devices,
            close_others: spec.defences.close_descriptors,
        }));
        Ok(())
    }

    fn confine(&mut self, spec: &Spec, inherited: &Inherited) -> Result<()> {
        // Not before the descriptors are arranged, which takes more of them than a jail may be allowed.
        self.steps.extend(spec.rlimits.iter().map(resource_limit));
        let keep = spec.defences.capabilities.bits();
        self.steps.push(Step::BoundingSet(keep));
        if let Some(program) = &inherited.seccomp {
            self.steps.push(Step::Seccomp(Arc::clone(program)));
        }
        self.steps.push(Step::Capabilities(keep));
        let program = &spec.program;
        let text = |text: &str| {
            CString::new(text).map_err(|_| invalid(spec, "an argument or variable has a NUL in it"))
        };
        let arguments = program
            .arguments
            .iter()
            .map(|argument| text(argument))
            .collect::<Result<_>>()?;
        let environment = program
            .environment
            .iter()
            .map(|(name, value)| text(&format!("{name}={value}")))
            .collect::<Result<_>>()?;
        self.steps.push(Step::Execute {
            executable: 3 + program.descriptors.len() as RawFd + 1,
            arguments: Strings::new(arguments),
            environment: Strings::new(environment),
        });
        Ok(())
    }

    fn attach_in_root(
        &mut self,
        spec: &Spec,
        mount: Slot,
        root: Slot,
        target: &Path,
        kind: TargetKind,
    ) -> Result<()> {
        let bytes = target.as_os_str().as_bytes();
        if !bytes.starts_with(b"/") || bytes.iter().all(|byte| *byte == b'/') {
            return Err(invalid(
                spec,
                format!("`{}` is no absolute path below `/`", target.display()),
            ));
        }
        let path = CString::new(bytes).map_err(|_| invalid(spec, "a path has a NUL in it"))?;
        let in_root = spec.defences.resolve_in_root;
        self.steps.push(Step::AttachInRoot {
            mount,
            root,
            path,
            kind,
            in_root,
        });
        Ok(())
    }
}

fn resource_limit(limit: &Rlimit) -> Step {
    let resource = match limit.resource {
        RlimitKind::Core => Resource::Core,
        RlimitKind::Cpu => Resource::Cpu,
        RlimitKind::Data => Resource::Data,
        RlimitKind::Fsize => Resource::Fsize,
        RlimitKind::Locks => Resource::Locks,
        RlimitKind::Memlock => Resource::Memlock,
        RlimitKind::Msgqueue => Resource::Msgqueue,
        RlimitKind::Nice => Resource::Nice,
        RlimitKind::Nofile => Resource::Nofile,
        RlimitKind::Nproc => Resource::Nproc,
        RlimitKind::Rss => Resource::Rss,
        RlimitKind::Rtprio => Resource::Rtprio,
        RlimitKind::Rttime => Resource::Rttime,
        RlimitKind::Sigpending => Resource::Sigpending,
        RlimitKind::Stack => Resource::Stack,
    };
    let value = |value: u64| (value != Rlimit::UNLIMITED).then_some(value);
    let limit = rustix::process::Rlimit {
        current: value(limit.soft),
        maximum: value(limit.hard),
    };
    Step::ResourceLimit(resource, limit)
}

fn label<'a>(spec: &Spec, label: &'a str) -> Result<&'a str> {
    let plain = !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if plain {
        Ok(label)
    } else {
        Err(invalid(spec, format!("`{}` is no label", label.escape_debug())))
    }
}

/// A string of ours, or of digits.
fn literal(text: &str) -> CString {
    CString::new(text).expect("text of ours has no NUL")
}

pub(crate) fn invalid(spec: &Spec, why: impl Into<String>) -> Error {
    Error::new(
        Kind::InvalidInput,
        format!("cannot build the jail `{}`", spec.name),
    )
    .because(why.into())
}
