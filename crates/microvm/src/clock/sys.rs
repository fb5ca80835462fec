//! The one instruction that has no safe name.
#![allow(unsafe_code)]

/// The processor's time stamp counter.
pub(super) fn time_stamp() -> u64 {
    // SAFETY: `rdtsc` touches no memory and is part of every x86-64 processor.
    unsafe { core::arch::x86_64::_rdtsc() }
}
