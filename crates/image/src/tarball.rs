//! Writes tar archives: ustar headers, PAX records only where a field does not fit. The same calls give the same bytes.

use std::io::{self, Read, Write};

use tar::{EntryType, Header};

const BLOCK: u64 = 512;
/// What eleven octal digits hold.
const OCTAL_SIZE_LIMIT: u64 = 1 << 33;

/// One entry; data of `size` bytes follows where the kind is `Regular`.
#[derive(Debug)]
pub(crate) struct Item<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) kind: EntryType,
    /// Target of a symlink or hard link, else empty.
    pub(crate) link: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: u64,
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    /// Sorted by name.
    pub(crate) xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl<'a> Item<'a> {
    /// A plain file of root's.
    pub(crate) fn file(path: &'a str, size: u64) -> Item<'a> {
        Item {
            path: path.as_bytes(),
            kind: EntryType::Regular,
            link: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            size,
            device: (0, 0),
            xattrs: &[],
        }
    }
}

pub(crate) struct TarWriter<W> {
    out: W,
}

impl<W: Write> TarWriter<W> {
    pub(crate) fn new(out: W) -> TarWriter<W> {
        TarWriter { out }
    }

    /// Writes one entry with exactly `item.size` bytes of `data`; fewer are an error.
    pub(crate) fn append(&mut self, item: &Item<'_>, data: &mut dyn Read) -> io::Result<()> {
        let mut records = Vec::new();
        let mut header = Header::new_ustar();
        let fields = header.as_mut_bytes();
        if item.path.len() > 100 || !item.path.is_ascii() {
            record(&mut records, b"path", item.path);
        }
        put(&mut fields[..100], item.path);
        if item.link.len() > 100 || !item.link.is_ascii() {
            record(&mut records, b"linkpath", item.link);
        }
        put(&mut fields[157..257], item.link);
        if item.size >= OCTAL_SIZE_LIMIT {
            record(&mut records, b"size", item.size.to_string().as_bytes());
        }
        for (name, value) in item.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        header.set_entry_type(item.kind);
        header.set_mode(item.mode);
        header.set_uid(item.uid.into());
        header.set_gid(item.gid.into());
        header.set_mtime(item.mtime);
        header.set_size(if item.size < OCTAL_SIZE_LIMIT {
            item.size
        } else {
            0
        });
        header.set_device_major(item.device.0)?;
        header.set_device_minor(item.device.1)?;
        header.set_cksum();
        if !records.is_empty() {
            self.extension(&records)?;
        }
        self.out.write_all(header.as_bytes())?;
        let written = io::copy(&mut data.take(item.size), &mut self.out)?;
        if written != item.size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a file became shorter while it was read",
            ));
        }
        self.pad(item.size)
    }

    /// Ends the archive and gives the stream back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK as usize])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn extension(&mut self, records: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        put(&mut header.as_mut_bytes()[..100], b"PaxHeaders.0/entry");
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(records)?;
        self.pad(records.len() as u64)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = (BLOCK - size % BLOCK) % BLOCK;
        self.out.write_all(&[0; BLOCK as usize][..padding as usize])
    }
}

fn put(field: &mut [u8], value: &[u8]) {
    let length = field.len().min(value.len());
    field[..length].copy_from_slice(&value[..length]);
}

/// `<length> <key>=<value>\n`, where the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_lengths_count_themselves() {
        for size in [1usize, 3, 85, 86, 87, 88, 985, 990, 9990] {
            let mut records = Vec::new();
            record(&mut records, b"k", &vec![b'v'; size]);
            let text = String::from_utf8(records.clone()).unwrap();
            let length: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(length, records.len(), "{size}");
        }
    }
}
