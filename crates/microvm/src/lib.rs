//! The virtual machine wall, as far as this version goes: it reports itself as missing, with the reason.
//!
//! The report keeps the choice honest: `--require own-kernel` finds a wall that is not there and is refused, instead of
//! being answered by a container.

pub mod kernel;
pub mod probe;
pub mod volume;

use std::time::Duration;

use luna_core::engine::{Accelerator, EngineProfile, RootForm, Wall};
use luna_core::host::{Check, EngineReport, Outcome};

/// One report per accelerator.
pub fn reports() -> Vec<EngineReport> {
    [Accelerator::Tcg, Accelerator::Kvm]
        .into_iter()
        .map(report)
        .collect()
}

fn report(accelerator: Accelerator) -> EngineReport {
    let mut checks = probe::probe(accelerator);
    // Last, so that what the host lacks is named first.
    checks.push(Check {
        name: "engine".to_owned(),
        outcome: Outcome::Missing,
        detail: format!("Luna {} has no virtual machine engine", env!("CARGO_PKG_VERSION")),
        fix: None,
        took: Duration::ZERO,
    });
    EngineReport {
        profile: EngineProfile {
            wall: Wall::Vm,
            accelerator: Some(accelerator),
            root: RootForm::Disk,
        },
        checks,
    }
}
