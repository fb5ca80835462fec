//! A packet on the network of an exported disk's machine, as a DHCP server's answer.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    luna_guest::machine::absorb(bytes);
});
