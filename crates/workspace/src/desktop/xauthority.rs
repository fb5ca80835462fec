//! The X cookie: one MIT-MAGIC-COOKIE-1 for any display of this desktop, in the format of Xau(3): family (here FamilyWild,
//! 65535), address, display number, name, data; each length a 16-bit big-endian number.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::access::token::random;

pub(super) fn write(path: &Path) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(&entry(&random::<16>()))
}

fn entry(cookie: &[u8; 16]) -> Vec<u8> {
    let mut bytes = u16::MAX.to_be_bytes().to_vec();
    for field in [&b""[..], b"", b"MIT-MAGIC-COOKIE-1", cookie] {
        bytes.extend((field.len() as u16).to_be_bytes());
        bytes.extend(field);
    }
    bytes
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_entry_is_as_xau_reads_it() {
        let mut expected = b"\xff\xff\0\0\0\0\0\x12MIT-MAGIC-COOKIE-1\0\x10".to_vec();
        expected.extend([7; 16]);
        assert_eq!(super::entry(&[7; 16]), expected);
    }
}
