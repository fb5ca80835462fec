//! Port mappings as users write them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = luna_network::ports::parse(text);
});
