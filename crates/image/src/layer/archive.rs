//! Walks a tar stream (ustar, PAX, GNU) one entry at a time, trusting nothing in it.
//!
//! Fields are read by the `tar` crate's `Header`; the walk is ours because the crate reads long names and PAX records
//! into memory without a bound, splits PAX values at newlines (a capability xattr may hold one), and knows no PAX
//! sparse files. Invariants: at most [`MAX_EXTENSION`] bytes are held for one entry's extensions; a size is either the
//! header's or the PAX record's, and where both are given and differ the archive is refused (CVE-2025-62518,
//! CVE-2026-33055: two readers must not see two archives).

use std::io::{self, Read};

use luna_core::{Error, Kind, Result};
use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// Linux takes paths of 4,096 and xattrs of 65,536 bytes; a few of those fit.
const MAX_EXTENSION: u64 = 1 << 20;
pub(super) const MAX_PATH: usize = 4096;
const MAX_SPARSE_CHUNKS: usize = 100_000;
/// A name can be announced by several extension headers; an endless chain of them is refused.
const MAX_EXTENSION_HEADERS: usize = 16;

/// What an entry is, with what only that kind has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Fifo,
    CharacterDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
}

/// One entry's metadata; its data follows in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: EntryKind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// The file's length once written.
    pub(crate) size: u64,
    /// Where the data goes, for a sparse file: offset and length, ascending, not overlapping.
    pub(crate) sparse: Option<Vec<(u64, u64)>>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(crate) struct Archive<R> {
    reader: R,
    /// Data of the current entry not read yet.
    data: u64,
    /// Bytes after it up to the next block.
    padding: u64,
}

pub(crate) fn corrupt(why: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, "cannot read a layer's archive").because(why.into())
}

/// An error from under the archive: kept as it is where it is ours, named where it is the stream's.
pub(crate) fn reading(error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return corrupt("it ends in the middle of an entry");
    }
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => Error::io("cannot read a layer's archive", error),
    }
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(reader: R) -> Archive<R> {
        Archive {
            reader,
            data: 0,
            padding: 0,
        }
    }

    /// The next entry, or `None` at the end of the archive. Unread data of the last one is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        for _ in 0..MAX_EXTENSION_HEADERS {
            self.skip()?;
            let Some(block) = self.block()? else {
                return match extensions == Extensions::default() {
                    true => Ok(None),
                    false => Err(corrupt("it ends after an extension header")),
                };
            };
            let header = Header::from_byte_slice(&block);
            let size = header.entry_size().map_err(|_| corrupt("a size is malformed"))?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let bytes = self.extension(size)?;
                    extensions.read_pax(&bytes)?;
                }
                // A global header says nothing about files that layers use.
                EntryType::XGlobalHeader => drop(self.extension(size)?),
                EntryType::GNULongName => extensions.long_name = Some(self.long_text(size)?),
                EntryType::GNULongLink => extensions.long_link = Some(self.long_text(size)?),
                _ => return self.entry(header, extensions).map(Some),
            }
        }
        Err(corrupt("an entry has more than 16 extension headers"))
    }

    /// Reads data of the current entry; 0 at its end.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.data).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.reader.read(&mut buffer[..wanted]).map_err(reading)?;
        if count == 0 {
            return Err(corrupt("it ends in the middle of an entry"));
        }
        self.data -= count as u64;
        Ok(count)
    }

    /// The stream below, which stands right behind what was read so far.
    pub(crate) fn reader(&self) -> &R {
        &self.reader
    }

    /// Reads what follows the archive's end, so that the whole stream has passed.
    pub(crate) fn drain(&mut self) -> Result<()> {
        io::copy(&mut self.reader, &mut io::sink())
            .map(|_| ())
            .map_err(reading)
    }

    fn entry(&mut self, header: &Header, extensions: Extensions) -> Result<Entry> {
        let number =
            |value: io::Result<u64>, what: &str| value.map_err(|_| corrupt(format!("{what} is malformed")));
        let plain_path = header.path_bytes().into_owned();
        let kind = match header.entry_type() {
            EntryType::Regular if plain_path.ends_with(b"/") && extensions.path.is_none() => {
                EntryKind::Directory
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => EntryKind::File,
            EntryType::Directory => EntryKind::Directory,
            EntryType::Symlink => EntryKind::Symlink(extensions.link(header)?),
            EntryType::Link => EntryKind::HardLink(extensions.link(header)?),
            EntryType::Fifo => EntryKind::Fifo,
            EntryType::Char => {
                let (major, minor) = device(header)?;
                EntryKind::CharacterDevice { major, minor }
            }
            EntryType::Block => {
                let (major, minor) = device(header)?;
                EntryKind::BlockDevice { major, minor }
            }
            other => {
                return Err(corrupt(format!(
                    "it has an entry of unknown type {:#04x}",
                    other.as_byte()
                )));
            }
        };
        // What has no content has no data, whatever its size field says; Go's and GNU's readers agree on this.
        let announced = number(header.entry_size(), "a size")?;
        let stored = match (&kind, extensions.size) {
            (EntryKind::File, Some(size)) if announced != 0 && announced != size => {
                return Err(corrupt(format!(
                    "a PAX record says {size} bytes where the header says {announced}"
                )));
            }
            (EntryKind::File, Some(size)) => size,
            (EntryKind::File, None) => announced,
            _ => 0,
        };
        if stored > 1 << 60 {
            return Err(corrupt("a size is beyond all measure"));
        }
        self.data = stored;
        self.padding = (BLOCK as u64 - stored % BLOCK as u64) % BLOCK as u64;
        let mut size = stored;
        let mut sparse = None;
        let is_file = kind == EntryKind::File;
        if header.entry_type() == EntryType::GNUSparse {
            let (real, chunks) = self.gnu_sparse(header)?;
            (size, sparse) = (real, Some(chunks));
        } else if is_file && let Some(real) = extensions.sparse_size {
            let chunks = match extensions.sparse_map.as_deref() {
                Some(map) => pairs(map)?,
                None if extensions.sparse_major == Some(1) => self.pax_sparse_map()?,
                None => Vec::new(),
            };
            (size, sparse) = (real, Some(chunks));
        }
        if let Some(chunks) = &sparse {
            check_sparse(chunks, size, self.data)?;
        }
        let path = extensions
            .sparse_name
            .or(extensions.path)
            .or(extensions.long_name)
            .unwrap_or(plain_path);
        if path.len() > MAX_PATH {
            return Err(corrupt("a path is longer than 4,096 bytes"));
        }
        Ok(Entry {
            path,
            kind,
            mode: header.mode().map_err(|_| corrupt("a mode is malformed"))? & 0o7777,
            uid: match extensions.uid {
                Some(uid) => uid,
                None => number(header.uid(), "a uid")?,
            },
            gid: match extensions.gid {
                Some(gid) => gid,
                None => number(header.gid(), "a gid")?,
            },
            mtime: match extensions.mtime {
                Some(mtime) => mtime,
                None => (
                    header
                        .mtime()
                        .ok()
                        .and_then(|t| i64::try_from(t).ok())
                        .unwrap_or(0),
                    0,
                ),
            },
            size,
            sparse,
            xattrs: extensions.xattrs,
        })
    }

    fn skip(&mut self) -> Result<()> {
        let rest = self.data + self.padding;
        self.data = 0;
        self.padding = 0;
        if rest == 0 {
            return Ok(());
        }
        let skipped = io::copy(&mut (&mut self.reader).take(rest), &mut io::sink()).map_err(reading)?;
        match skipped == rest {
            true => Ok(()),
            false => Err(corrupt("it ends in the middle of an entry")),
        }
    }

    /// A header block whose checksum holds; `None` at two zero blocks or a clean end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let Some(block) = self.raw_block()? else {
            return Ok(None);
        };
        if block.iter().all(|byte| *byte == 0) {
            return match self.raw_block()? {
                Some(second) if second.iter().any(|byte| *byte != 0) => {
                    Err(corrupt("one zero block stands between two entries"))
                }
                _ => Ok(None),
            };
        }
        let header = Header::from_byte_slice(&block);
        let sum = |signed: bool| -> i64 {
            let byte = |(at, byte): (usize, &u8)| match at {
                148..156 => i64::from(b' '),
                _ if signed => i64::from(*byte as i8),
                _ => i64::from(*byte),
            };
            block.iter().enumerate().map(byte).sum()
        };
        let written = header
            .cksum()
            .map_err(|_| corrupt("a header's checksum is malformed"))?;
        if i64::from(written) != sum(false) && i64::from(written) != sum(true) {
            return Err(corrupt("a header's checksum does not match"));
        }
        Ok(Some(block))
    }

    fn raw_block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..]).map_err(reading)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(corrupt("it ends in the middle of a header")),
                count => filled += count,
            }
        }
        Ok(Some(block))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(corrupt("an extension header is larger than 1 MiB"));
        }
        let mut bytes = vec![0; size as usize];
        self.reader.read_exact(&mut bytes).map_err(reading)?;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        Ok(bytes)
    }

    /// A GNU long name: text that ends at the first NUL.
    fn long_text(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut bytes = self.extension(size)?;
        if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
            bytes.truncate(end);
        }
        Ok(bytes)
    }

    /// GNU's old form: four pairs in the header, then blocks of 21 more while the flag at their end is set.
    fn gnu_sparse(&mut self, header: &Header) -> Result<(u64, Vec<(u64, u64)>)> {
        let malformed = |_| corrupt("a sparse map is malformed");
        let gnu = header
            .as_gnu()
            .ok_or_else(|| corrupt("a sparse file has no GNU header"))?;
        let mut chunks = Vec::new();
        let mut take = |list: &[tar::GnuSparseHeader]| -> Result<()> {
            for pair in list.iter().filter(|pair| !pair.is_empty()) {
                chunks.push((
                    pair.offset().map_err(malformed)?,
                    pair.length().map_err(malformed)?,
                ));
            }
            match chunks.len() > MAX_SPARSE_CHUNKS {
                true => Err(corrupt("a sparse map has more than 100,000 parts")),
                false => Ok(()),
            }
        };
        take(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut extended = tar::GnuExtSparseHeader::new();
            self.reader.read_exact(extended.as_mut_bytes()).map_err(reading)?;
            take(&extended.sparse)?;
            more = extended.is_extended();
        }
        Ok((gnu.real_size().map_err(malformed)?, chunks))
    }

    /// PAX sparse 1.0: the data begins with decimal lines (count, then offset and length of each part), padded to a
    /// block.
    fn pax_sparse_map(&mut self) -> Result<Vec<(u64, u64)>> {
        let mut numbers = Vec::new();
        let mut line = Vec::new();
        let mut wanted = 1;
        while numbers.len() < wanted {
            let mut block = [0; BLOCK];
            if self.data < BLOCK as u64 {
                return Err(corrupt("a sparse map ends too early"));
            }
            self.reader.read_exact(&mut block).map_err(reading)?;
            self.data -= BLOCK as u64;
            for byte in block {
                if numbers.len() == wanted {
                    break;
                }
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(corrupt("a sparse map is malformed"));
                    }
                    continue;
                }
                numbers.push(decimal(&line)?);
                line.clear();
                if numbers.len() == 1 {
                    let count = numbers[0];
                    if count > MAX_SPARSE_CHUNKS as u64 {
                        return Err(corrupt("a sparse map has more than 100,000 parts"));
                    }
                    wanted = 1 + 2 * count as usize;
                }
            }
        }
        Ok(numbers[1..]
            .chunks_exact(2)
            .map(|pair| (pair[0], pair[1]))
            .collect())
    }
}

/// The parts ascend, lie within the file and hold exactly the stored data.
fn check_sparse(chunks: &[(u64, u64)], size: u64, stored: u64) -> Result<()> {
    let mut end = 0u64;
    let mut total = 0u64;
    for (offset, length) in chunks {
        let next = offset.checked_add(*length);
        match next {
            Some(next) if *offset >= end && next <= size => end = next,
            _ => return Err(corrupt("a sparse map is out of order or out of bounds")),
        }
        total += length;
    }
    match total == stored {
        true => Ok(()),
        false => Err(corrupt("a sparse map does not match its data")),
    }
}

fn device(header: &Header) -> Result<(u32, u32)> {
    let field = |value: io::Result<Option<u32>>| {
        value
            .map(Option::unwrap_or_default)
            .map_err(|_| corrupt("a device number is malformed"))
    };
    Ok((field(header.device_major())?, field(header.device_minor())?))
}

fn decimal(text: &[u8]) -> Result<u64> {
    std::str::from_utf8(text)
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| corrupt("a decimal number is malformed"))
}

fn pairs(text: &[u8]) -> Result<Vec<(u64, u64)>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let numbers = text
        .split(|byte| *byte == b',')
        .map(decimal)
        .collect::<Result<Vec<u64>>>()?;
    match numbers.len() % 2 == 0 && numbers.len() / 2 <= MAX_SPARSE_CHUNKS {
        true => Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()),
        false => Err(corrupt("a sparse map is malformed")),
    }
}

/// What extension headers said about the entry that follows them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Extensions {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    link_path: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse_major: Option<u64>,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_map: Option<Vec<u8>>,
}

impl Extensions {
    /// `<length> <key>=<value>\n`, the length counting itself and the newline (pax(1)).
    fn read_pax(&mut self, mut bytes: &[u8]) -> Result<()> {
        let malformed = || corrupt("a PAX record is malformed");
        while !bytes.is_empty() {
            // GNU tar pads with NULs after the last record in rare cases; nothing else may follow it.
            if bytes.iter().all(|byte| *byte == 0) {
                break;
            }
            let space = bytes
                .iter()
                .take(10)
                .position(|byte| *byte == b' ')
                .ok_or_else(malformed)?;
            let length = decimal(&bytes[..space])? as usize;
            if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
                return Err(malformed());
            }
            let record = &bytes[space + 1..length - 1];
            bytes = &bytes[length..];
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or_else(malformed)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            self.read_record(key, value)?;
        }
        Ok(())
    }

    fn read_record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let text = |value: &[u8]| match value.contains(&0) {
            true => Err(corrupt("a PAX path holds a NUL")),
            false => Ok(Some(value.to_vec())),
        };
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            if name.is_empty() || name.contains(&0) {
                return Err(corrupt("an extended attribute's name is malformed"));
            }
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link_path = text(value)?,
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(pax_time(value)?),
            b"GNU.sparse.major" => self.sparse_major = Some(decimal(value)?),
            b"GNU.sparse.name" => self.sparse_name = text(value)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = Some(decimal(value)?),
            b"GNU.sparse.map" => self.sparse_map = Some(value.to_vec()),
            // Form 0.0 repeats these two; together they read as form 0.1's map.
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let map = self.sparse_map.get_or_insert_default();
                if !map.is_empty() {
                    map.push(b',');
                }
                map.extend_from_slice(value);
            }
            _ => {}
        }
        Ok(())
    }

    fn link(&self, header: &Header) -> Result<Vec<u8>> {
        let link = match self.link_path.as_ref().or(self.long_link.as_ref()) {
            Some(link) => link.clone(),
            None => header
                .link_name_bytes()
                .map(std::borrow::Cow::into_owned)
                .unwrap_or_default(),
        };
        match link.is_empty() || link.len() > MAX_PATH {
            true => Err(corrupt("a link's target is empty or longer than 4,096 bytes")),
            false => Ok(link),
        }
    }
}

/// Decimal seconds with an optional sign and fraction.
fn pax_time(value: &[u8]) -> Result<(i64, u32)> {
    let malformed = || corrupt("a PAX time is malformed");
    let text = std::str::from_utf8(value).map_err(|_| malformed())?;
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = i64::try_from(decimal(seconds.as_bytes())?).map_err(|_| malformed())?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(malformed());
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().map_err(|_| malformed())?;
    Ok(match (negative, nanoseconds) {
        (false, nanoseconds) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, nanoseconds) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_with_sign_and_fraction() {
        assert_eq!(pax_time(b"1.5").unwrap(), (1, 500_000_000));
        assert_eq!(pax_time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(pax_time(b"7").unwrap(), (7, 0));
        for bad in [&b""[..], b".", b"1.x", b"--1", b"99999999999999999999"] {
            assert!(pax_time(bad).is_err());
        }
    }

    #[test]
    fn pax_values_may_hold_newlines() {
        let mut extensions = Extensions::default();
        extensions
            .read_pax(b"29 SCHILY.xattr.user.a=x\ny=z\n12 path=abc\n")
            .unwrap();
        assert_eq!(extensions.xattrs, [(b"user.a".to_vec(), b"x\ny=z".to_vec())]);
        assert_eq!(extensions.path.as_deref(), Some(&b"abc"[..]));
    }

    #[test]
    fn malformed_pax_is_refused() {
        for bad in [
            &b"3 a=b\n"[..],
            b"99 path=a\n",
            b"0 path=a\n",
            b"x path=a\n",
            b"9 path=a ",
            b"10 path:abc\n",
            b"11 size=12x\n",
        ] {
            assert!(Extensions::default().read_pax(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sparse_maps_are_checked() {
        assert!(check_sparse(&[(0, 5), (10, 5)], 15, 10).is_ok());
        assert!(check_sparse(&[(0, 5), (4, 5)], 15, 10).is_err());
        assert!(check_sparse(&[(0, 5), (10, 6)], 15, 11).is_err());
        assert!(check_sparse(&[(0, 5)], 15, 6).is_err());
        assert!(check_sparse(&[(u64::MAX, 2)], 15, 2).is_err());
    }
}
