//! References, digests and platforms: what is read prints as what reads the same, in the full and in the short form.
#![no_main]

use libfuzzer_sys::fuzz_target;
use luna_image::{Digest, Platform, Reference};

fuzz_target!(|text: &str| {
    if let Ok(reference) = Reference::parse(text) {
        assert_eq!(Reference::parse(&reference.to_string()).expect("the full form"), reference);
        assert_eq!(Reference::parse(&reference.familiar()).expect("the short form"), reference);
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string().parse::<Digest>().expect("a digest"), digest);
    }
    let _ = text.parse::<Platform>();
});
