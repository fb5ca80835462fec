//! The VM engine: a sandbox with a kernel of its own, under QEMU, which runs behind the whole wall of `luna-jail`.
//!
//! ```text
//!   host │ supervisor ── channel ─────────────────────────────┐
//!        │     └─ jail: QEMU, nobody's ids, no network, no files but its own
//!  ──────┼──────────────────────────────────────────────────────────────── hardware virtualization, or emulation
//!  guest │ kernel ── luna-init as the machine ── luna-init as init ── the sandbox's processes
//! ```
//! It decides nothing: a [`Bundle`] says it all. The same code drives both accelerators. A disk image that brings a kernel and
//! an init of its own is started by [`system`], behind the same wall.

mod clock;
mod command;
mod disk;
pub mod export;
pub mod kernel;
mod machine;
pub mod probe;
mod qemu;
mod qmp;
mod report;
pub mod system;
mod tail;
pub mod vmm;
pub mod volume;
mod watch;

use luna_core::engine::{
    Accelerator, Bundle, Engine, EngineProfile, Instance, RootForm, System, SystemBundle, SystemEngine, Wall,
};
use luna_core::host::EngineReport;
use luna_core::name::Id;
use luna_core::{Kind, Result};

/// The engine for one accelerator; it has no state.
#[derive(Clone, Copy, Debug)]
pub struct Microvm {
    accelerator: Accelerator,
}

/// How often a machine is started before its loss is an error.
const MOST_BOOTS: u32 = 3;

impl Microvm {
    pub fn new(accelerator: Accelerator) -> Microvm {
        Microvm { accelerator }
    }

    /// QEMU 7.2's emulation of several processors loses one in some thirty boots on a busy host: a guest whose first process
    /// dies, or an assertion of QEMU's own. Until the machine is ready nothing has run in it, so it is booted anew, and
    /// `luna inspect --isolation` tells how often. With hardware virtualization such a loss is an error at once.
    fn loses_guests(self) -> bool {
        self.accelerator == Accelerator::Tcg
    }
}

impl Engine for Microvm {
    fn profile(&self) -> EngineProfile {
        EngineProfile {
            wall: Wall::Vm,
            accelerator: Some(self.accelerator),
            root: RootForm::Disk,
        }
    }

    fn probe(&self) -> EngineReport {
        let mut checks = probe::probe(self.accelerator);
        checks.push(disk::probe());
        EngineReport {
            profile: self.profile(),
            checks,
        }
    }

    /// The sandbox dies with the thread that calls this: call it from one that lives as long as the sandbox shall.
    fn start(&self, bundle: Bundle) -> Result<Box<dyn Instance>> {
        let mut boots = 1;
        loop {
            match machine::start(self.accelerator, &bundle, boots) {
                Err(error)
                    if self.loses_guests() && error.kind() == Kind::Unavailable && boots < MOST_BOOTS =>
                {
                    boots += 1;
                }
                outcome => return outcome.map(|running| Box::new(running) as Box<dyn Instance>),
            }
        }
    }

    fn reclaim(&self, id: &Id) -> Result<()> {
        machine::reclaim(id)
    }
}

impl SystemEngine for Microvm {
    /// As with [`Engine::start`], the system dies with the thread that calls this.
    fn boot(&self, bundle: SystemBundle) -> Result<Box<dyn System>> {
        system::boot(self.accelerator, &bundle).map(|running| Box::new(running) as Box<dyn System>)
    }
}
