//! The probe on this host: it finds what the other tests use, quickly, and leaves nothing.

use luna_core::host::Outcome;

#[test]
fn this_host_can_build_the_wall() {
    let checks = luna_jail::probe();
    for check in &checks {
        println!("{check:?}");
        assert_ne!(
            check.outcome,
            Outcome::Missing,
            "{}: {}",
            check.name,
            check.detail
        );
    }
    assert!(checks.len() >= 8);
}
