//! How fast the processor's time stamp counter goes, which an emulated guest cannot find out for itself.
//!
//! A guest measures its counter against an emulated timer. On a busy host every attempt is disturbed, the kernel gives the
//! counter up and counts ticks instead; ticks that come late are lost, and its clock falls behind (seen: 200 s in 300 s).
//! Under software emulation the guest's counter is the host's, so the host says what it measured.

#[cfg(target_arch = "x86_64")]
mod sys;

/// Kilohertz; `None` where the guest needs no such word.
#[cfg(target_arch = "x86_64")]
pub(crate) fn counter_khz() -> Option<u64> {
    use std::sync::OnceLock;
    use std::time::{Duration, Instant};

    /// Long enough for a reading's own 0.1 µs to be 10 ppm.
    const SPAN: Duration = Duration::from_millis(10);
    static FOUND: OnceLock<u64> = OnceLock::new();

    // The tightest of a few: one that was interrupted between its two clocks is off by as much.
    let reading = || {
        (0..5)
            .map(|_| {
                let before = Instant::now();
                let count = sys::time_stamp();
                (before.elapsed(), before, count)
            })
            .min_by_key(|(took, ..)| *took)
            .expect("five readings have a least")
    };
    let khz = *FOUND.get_or_init(|| {
        let (_, began, first) = reading();
        std::thread::sleep(SPAN);
        let (_, ended, last) = reading();
        let nanoseconds = ended.duration_since(began).as_nanos().max(1);
        u64::try_from(u128::from(last.wrapping_sub(first)) * 1_000_000 / nanoseconds).unwrap_or(0)
    });
    // What no processor's counter does is a sign of a host that emulates it.
    (100_000..20_000_000).contains(&khz).then_some(khz)
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn counter_khz() -> Option<u64> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_counter_has_a_plausible_frequency() {
        let khz = counter_khz();
        assert!(khz.is_some(), "{khz:?}");
        assert_eq!(counter_khz(), khz, "it is measured once");
    }
}
