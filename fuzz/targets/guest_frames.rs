//! The channel between host and init, both sides: the first byte says how finely the stream is cut, the rest is the
//! stream. Frames never depend on the cut, and every message that is read encodes to one that reads the same.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use luna_guest::protocol::{Body, Decoder, GuestProcess, Hello, Reply, Request, Violation, decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn frames(bytes: &[u8], step: usize) -> (Vec<String>, Option<Violation>) {
    let mut decoder = Decoder::new();
    let mut seen = Vec::new();
    for chunk in bytes.chunks(step) {
        let mut rest = chunk;
        while !rest.is_empty() {
            let space = decoder.space();
            let count = rest.len().min(space.len());
            space[..count].copy_from_slice(&rest[..count]);
            decoder.filled(count);
            rest = &rest[count..];
            loop {
                match decoder.next() {
                    Ok(Some(frame)) => {
                        if let Body::Message(payload) = frame.body {
                            read::<Hello>(payload);
                            read::<Request>(payload);
                            read::<Reply>(payload);
                            read::<GuestProcess>(payload);
                        }
                        seen.push(format!("{frame:?}"));
                    }
                    Ok(None) => break,
                    Err(violation) => return (seen, Some(violation)),
                }
            }
        }
    }
    (seen, None)
}

fn read<T: Serialize + DeserializeOwned + Debug>(payload: &[u8]) {
    if let Ok(message) = decode::<T>(payload) {
        let again: T = decode(&encode(&message)).expect("what is encoded can be decoded");
        assert_eq!(format!("{again:?}"), format!("{message:?}"));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((first, stream)) = bytes.split_first() else {
        return;
    };
    assert_eq!(frames(stream, usize::from(*first) + 1), frames(stream, usize::MAX));
});
