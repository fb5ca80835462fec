//! The VM engine: a sandbox with a kernel of its own, under QEMU, which runs behind the whole wall of `luna-jail`.
//!
//! ```text
//!   host │ supervisor ── channel ─────────────────────────────┐
//!        │     └─ jail: QEMU, nobody's ids, no network, no files but its own
//!  ──────┼──────────────────────────────────────────────────────────────── hardware virtualization, or emulation
//!  guest │ kernel ── luna-init as the machine ── luna-init as init ── the sandbox's processes
//! ```
//! It decides nothing: a [`Bundle`] says it all. The same code drives both accelerators.

mod command;
mod disk;
pub mod kernel;
mod machine;
pub mod probe;
mod qemu;
mod qmp;
mod report;
mod tail;
pub mod volume;

use luna_core::Result;
use luna_core::engine::{Accelerator, Bundle, Engine, EngineProfile, Instance, RootForm, Wall};
use luna_core::host::EngineReport;
use luna_core::name::Id;

/// The engine for one accelerator; it has no state.
#[derive(Clone, Copy, Debug)]
pub struct Microvm {
    accelerator: Accelerator,
}

impl Microvm {
    pub fn new(accelerator: Accelerator) -> Microvm {
        Microvm { accelerator }
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
        machine::start(self.accelerator, &bundle).map(|running| Box::new(running) as Box<dyn Instance>)
    }

    fn reclaim(&self, id: &Id) -> Result<()> {
        machine::reclaim(id)
    }
}
