//! What a virtual machine needs of the host, tried: QEMU with its devices, and for hardware virtualization a guest of the
//! probe's own that runs a timed loop.

mod kvm;
mod qemu;

use luna_core::engine::Accelerator;
use luna_core::host::Check;

/// Each thing the wall needs with this accelerator. Takes a quarter of a second at most where QEMU answers at once.
pub fn probe(accelerator: Accelerator) -> Vec<Check> {
    let mut checks = qemu::probe(accelerator);
    if accelerator == Accelerator::Kvm {
        checks.extend(kvm::probe());
    }
    checks
}

/// Whether this host's KVM runs guests, by the timed loop alone.
pub fn kvm() -> Vec<Check> {
    kvm::probe()
}
