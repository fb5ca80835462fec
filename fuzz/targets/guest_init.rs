//! Init's side of the channel: whatever the host's end says, init keeps at most one message and does not panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = luna_guest::init::absorb(bytes);
});
