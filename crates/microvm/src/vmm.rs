//! QEMU behind the whole wall of the jail: what every machine has in common, whatever it boots.

use std::os::fd::OwnedFd;
use std::time::Duration;

use luna_core::capability::Capabilities;
use luna_core::engine::{Accelerator, IdRange};
use luna_core::name::Id;
use luna_core::process::ExitStatus;
use luna_core::spec::Resources;
use luna_core::units::Bytes;
use luna_core::{Error, Kind, Result};
use luna_jail::spec::{Defences, Ids, Landlock, Limits, Mount, Network, Program, Root, SecurityLabels};
use luna_jail::{Handle, Jailed};

use crate::command::CODE_CACHE;
use crate::qemu::Qemu;
use crate::tail::Tail;

/// Guest memory where none was asked for; pages are taken from the host as they are used and go back when freed.
const MEMORY: Bytes = Bytes::mebibytes(2048);
/// What QEMU itself may use beside guest memory and code cache, where memory is limited.
const VMM: Bytes = Bytes::mebibytes(192);
/// Host and guest share the processors of the host; a machine with more than this gains little.
const MOST_PROCESSORS: u32 = 16;

/// A thread for each virtual processor, up to 64 that wait for disks, and a few.
const THREADS: u32 = 256;
/// Round a QEMU that opens no network of the host's.
pub(crate) const LANDLOCK: Landlock = Landlock::ReadOnly;

/// One QEMU to be started.
pub(crate) struct Vmm<'a> {
    pub(crate) id: &'a Id,
    pub(crate) ids: IdRange,
    pub(crate) accelerator: Accelerator,
    pub(crate) arguments: Vec<String>,
    /// In the order that its command line numbers them in.
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) limits: Limits,
    pub(crate) landlock: Landlock,
}

impl Vmm<'_> {
    /// Starts it: nobody's ids, no capability, an empty network namespace, no file of the host's but QEMU's own. What it
    /// says on its standard error is kept.
    pub(crate) fn launch(self, qemu: &Qemu) -> Result<(Jailed, Tail)> {
        let (errors, stderr) = std::io::pipe().map_err(cannot_connect)?;
        let mut spec = self.spec(qemu)?;
        spec.program.stdio[2] = Some(stderr.into());
        let jail = luna_jail::launch(spec).map_err(|error| error.context("cannot start QEMU"))?;
        let errors = Tail::of("errors", errors).map_err(cannot_connect)?;
        Ok((jail, errors))
    }

    fn spec(self, qemu: &Qemu) -> Result<luna_jail::Spec> {
        Ok(luna_jail::Spec {
            name: self.id.to_string(),
            program: Program {
                executable: qemu.open()?,
                // It looks for its files from where it lies itself.
                arguments: std::iter::once(qemu.program.to_string_lossy().into_owned())
                    .chain(self.arguments)
                    .collect(),
                environment: Vec::new(),
                stdio: [None, None, None],
                descriptors: self.descriptors,
            },
            ids: Ids {
                base: self.ids.base,
                count: IdRange::COUNT,
            },
            root: Root::Empty,
            hostname: "vmm".to_owned(),
            files: Vec::new(),
            mounts: mounts(qemu, self.accelerator),
            shared_memory: Bytes::mebibytes(1),
            network: Network::Own,
            limits: Limits {
                default_pids: self.limits.pids.is_none().then_some(THREADS),
                ..self.limits
            },
            rlimits: Vec::new(),
            security_labels: SecurityLabels::default(),
            defences: Defences {
                capabilities: Capabilities::NONE,
                // The distribution's own executable, bound to nothing the guest can reach.
                sealed_program: false,
                landlock: self.landlock,
                ..Defences::default()
            },
        })
    }
}

/// The jail of a machine's QEMU, QEMU in it with nothing to do: for tests that put a program of their own in its place.
#[doc(hidden)]
pub fn jail(id: &Id, ids: IdRange, accelerator: Accelerator) -> Result<luna_jail::Spec> {
    Vmm {
        id,
        ids,
        accelerator,
        arguments: Vec::new(),
        descriptors: Vec::new(),
        limits: Limits::default(),
        landlock: LANDLOCK,
    }
    .spec(&Qemu::find()?)
}

/// All files of the host that QEMU sees: its own.
fn mounts(qemu: &Qemu, accelerator: Accelerator) -> Vec<Mount> {
    let mut mounts: Vec<_> = std::iter::once(&qemu.program)
        .chain(&qemu.directories)
        .map(|path| Mount::Bind {
            source: path.clone(),
            target: path.clone(),
            read_only: true,
        })
        .collect();
    if accelerator == Accelerator::Kvm {
        mounts.push(Mount::Device {
            source: "/dev/kvm".into(),
            target: "/dev/kvm".into(),
            read: true,
            write: true,
        });
    }
    mounts
}

pub(crate) fn cannot_connect(error: std::io::Error) -> Error {
    Error::io("cannot connect to the machine", error)
}

/// The size of a guest's memory in whole mebibytes where none was asked for.
pub(crate) fn default_memory() -> Bytes {
    let total = rustix::system::sysinfo();
    let half = (total.totalram * u64::from(total.mem_unit.max(1))) / 2;
    Bytes(MEMORY.0.min(half) >> 20 << 20)
}

pub(crate) fn processors(resources: &Resources) -> u32 {
    let asked = resources.cpus.map(|cpus| cpus.0.div_ceil(1000).max(1));
    let available = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    asked.unwrap_or(available).min(available).min(MOST_PROCESSORS)
}

/// QEMU's own limits round a guest with `memory`: limited only where a limit was asked for.
pub(crate) fn limits(accelerator: Accelerator, resources: &Resources, memory: Bytes) -> Limits {
    let cache = if accelerator == Accelerator::Tcg {
        CODE_CACHE.0
    } else {
        0
    };
    Limits {
        memory: resources.memory.map(|_| Bytes(memory.0 + VMM.0 + cache)),
        ..changeable(resources)
    }
}

/// The limits that can be changed while it runs.
pub(crate) fn changeable(resources: &Resources) -> Limits {
    Limits {
        cpus: resources.cpus,
        cpuset: resources.cpuset.clone(),
        io_weight: resources.blkio_weight,
        ..Limits::default()
    }
}

/// A disk of the host's that refused a write, and so halted the machine.
pub(crate) fn halted(full: bool, reason: String) -> Error {
    let error = Error::new(Kind::Exhausted, "cannot write to the machine's disk").because(reason);
    if full {
        error.hint("free some space on the host; `luna prune` removes what is unused")
    } else {
        error
    }
}

/// The error of a QEMU that the host killed for want of memory.
pub(crate) fn out_of_memory(handle: &Handle) -> Option<Error> {
    handle.usage().is_ok_and(|usage| usage.out_of_memory()).then(|| {
        Error::new(
            Kind::Exhausted,
            "cannot go on: the host killed QEMU for want of memory",
        )
        .hint("give the sandbox more with `--memory`, or free some on the host")
    })
}

/// How QEMU went, which is gone or about to be: by its last words, if it had any.
pub(crate) fn gone(jail: &Jailed, said: impl FnOnce() -> Option<String>) -> Error {
    let _ = jail.handle().kill();
    let status = jail.wait();
    // Its last words need a moment to arrive.
    std::thread::sleep(Duration::from_millis(20));
    let error = Error::new(Kind::Unavailable, "cannot go on: the machine is gone");
    match (said(), status) {
        (Some(said), _) => error.because(said),
        // Not by us: it was gone before.
        (None, Ok(ExitStatus::Signal { number: 9, .. })) => {
            Error::new(Kind::Interrupted, "cannot go on: the machine is gone").because("QEMU was killed")
        }
        (None, Ok(ExitStatus::Signal { number, .. })) => {
            error.because(format!("QEMU was ended by signal {number}"))
        }
        (None, Ok(ExitStatus::Code(code))) => error.because(format!("QEMU ended with code {code}")),
        (None, Err(_)) => error,
    }
}
