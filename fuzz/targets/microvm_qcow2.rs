//! The header of a disk image that somebody else made.
#![no_main]

use libfuzzer_sys::fuzz_target;
use luna_microvm::system::qcow2;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some(image)) = qcow2::parse(bytes) {
        assert!(image.size.0 > 0 && image.size.0.is_multiple_of(512));
    }
});
