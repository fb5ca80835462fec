//! The host's side of the channel, with up to 255 open streams: whatever a captured init says, the host keeps at most a
//! window and two replies for each stream.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((streams, rest)) = bytes.split_first() {
        let _ = luna_guest::session::absorb(*streams, rest);
    }
});
