//! The tar stream of a layer: headers, GNU and PAX extensions, sparse maps. Nothing is written.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = luna_image::layer::scan(bytes);
});
