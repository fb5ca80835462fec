//! Files of `/proc` as a sandbox tells them: whatever it says, what is kept is bounded and can be printed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use luna_core::isolation::{credentials, id_map, label, mounts};

fuzz_target!(|text: &str| {
    let _ = credentials(text);
    assert!(id_map(text).len() <= 340);
    if let Some(label) = label(text) {
        assert!(!label.contains(char::is_control));
    }
    let found = mounts(text);
    assert!(found.mounts.len() <= 256);
    for mount in found.mounts {
        assert!(!mount.target.contains(char::is_control) && mount.target.chars().count() <= 256);
    }
});
