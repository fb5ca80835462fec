//! `--user` against an image's `/etc/passwd` and `/etc/group`: the user and the two files, split by NUL.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(3, |byte| *byte == 0);
    if let (Some(user), Some(passwd), Some(group)) = (parts.next(), parts.next(), parts.next()) {
        if let Ok(user) = std::str::from_utf8(user) {
            let _ = luna_guest::init::absorb_users(user, passwd, group);
        }
    }
});
