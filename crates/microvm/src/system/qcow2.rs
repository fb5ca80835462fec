//! What has to be known of a qcow2 image before QEMU may read it, and the empty overlay that is laid over one. The format
//! is QEMU's own, `docs/interop/qcow2.rst`; numbers are big endian.
//!
//! ```text
//!   0  "QFI\xfb"        20  cluster bits             48  refcount table     72  incompatible features
//!   4  version          24  size                     56  its clusters       80  compatible features
//!   8  backing name at  32  encryption               60  snapshots          88  autoclear features
//!  16  its length       36  entries of L1 · 40 L1    64  their table        96  refcount order · 100 header length
//! ```
//! An image may name other files, and whoever opens it by that name shows the guest what is in them: an image that came from
//! elsewhere could name a file of the host's (CVE-2015-5163, CVE-2024-32498). So those that name any are refused.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use luna_core::engine::DiskFormat;
use luna_core::units::Bytes;

/// As much of an image as is looked at.
pub const HEADER: usize = 104;

const MAGIC: &[u8] = b"QFI\xfb";
/// What QEMU itself takes at most: larger disks are nobody's.
const MOST: u64 = 1 << 56;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
/// Dirty, corrupt, external data, compression type, extended L2.
const KNOWN: u64 = 0x1f;

/// An image that stands alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// Of the disk in it.
    pub size: Bytes,
}

/// Why an image is not booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Cut,
    Version,
    Backing,
    ExternalData,
    Encrypted,
    Damaged,
    Unknown,
}

impl Refusal {
    pub(super) fn because(self) -> &'static str {
        match self {
            Refusal::Cut => "its qcow2 header is cut off",
            Refusal::Version => "it is qcow of another version than 2 and 3",
            Refusal::Backing => "it names a backing file, whose content would become the guest's",
            Refusal::ExternalData => "its data lies in another file that it names",
            Refusal::Encrypted => "it is encrypted",
            Refusal::Damaged => "its qcow2 header says that it is damaged, or makes no sense",
            Refusal::Unknown => "it needs features of qcow2 that are not known",
        }
    }

    pub(super) fn fix(self, path: &Path) -> Option<String> {
        let path = path.display();
        match self {
            Refusal::Backing | Refusal::ExternalData | Refusal::Encrypted => Some(format!(
                "where you trust it, make one file of it: `qemu-img convert -O qcow2 {path} whole.qcow2`"
            )),
            Refusal::Damaged => Some(format!("repair a copy of it: `qemu-img check -r all {path}`")),
            _ => None,
        }
    }
}

/// Reads the first bytes of a file: `None` where it is no qcow2 image, and so raw.
pub fn parse(bytes: &[u8]) -> Result<Option<Image>, Refusal> {
    if !bytes.starts_with(MAGIC) {
        return Ok(None);
    }
    let version = half(bytes, 4).ok_or(Refusal::Cut)?;
    let (backing, length) = (word(bytes, 8), half(bytes, 16));
    let (cluster_bits, size) = (half(bytes, 20), word(bytes, 24).ok_or(Refusal::Cut)?);
    let encryption = half(bytes, 32);
    let incompatible = match version {
        2 => 0,
        3 => word(bytes, 72).ok_or(Refusal::Cut)?,
        _ => return Err(Refusal::Version),
    };
    if bytes.len() < if version == 2 { 72 } else { HEADER } {
        return Err(Refusal::Cut);
    }
    if incompatible & EXTERNAL_DATA != 0 {
        return Err(Refusal::ExternalData);
    }
    if incompatible & !KNOWN != 0 {
        return Err(Refusal::Unknown);
    }
    if (backing, length) != (Some(0), Some(0)) {
        return Err(Refusal::Backing);
    }
    if encryption != Some(0) {
        return Err(Refusal::Encrypted);
    }
    let sensible = matches!(cluster_bits, Some(9..=21)) && (512..=MOST).contains(&size);
    if incompatible & CORRUPT != 0 || !sensible {
        return Err(Refusal::Damaged);
    }
    Ok(Some(Image {
        size: Bytes(size.next_multiple_of(512)),
    }))
}

/// Whether this is how an overlay of Luna's begins, whatever was written to it since: its data is in itself alone.
pub(super) fn is_overlay(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
        && half(bytes, 4) == Some(3)
        && word(bytes, 72)
            .is_some_and(|incompatible| incompatible & !KNOWN == 0 && incompatible & EXTERNAL_DATA == 0)
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_be_bytes(bytes))
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?.try_into().ok()?;
    Some(u64::from_be_bytes(bytes))
}

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// What one entry of the first table stands for: a cluster full of pointers to clusters.
const ENTRY: u64 = CLUSTER * (CLUSTER / 8);
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// The format's own limit.
const LONGEST_NAME: usize = 1023;

/// An empty overlay: what is written where, the rest being zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Overlay {
    pub(super) pieces: Vec<(u64, Vec<u8>)>,
    pub(super) length: u64,
}

/// An overlay over the image at `base`. Its clusters: the header, the table of reference counts, one block of those, and
/// the first table of pointers. The name of its base is for people's tools; QEMU is told the base itself.
pub(super) fn overlay(size: Bytes, base: &Path, format: DiskFormat) -> Overlay {
    let entries = size.0.div_ceil(ENTRY);
    let clusters = 3 + (entries * 8).div_ceil(CLUSTER);
    let name = base.as_os_str().as_bytes();
    let name = if name.len() > LONGEST_NAME { b"" } else { name };
    let format: &[u8] = match format {
        DiskFormat::Qcow2 => b"qcow2",
        DiskFormat::Raw => b"raw",
    };
    let mut extensions = Vec::new();
    if !name.is_empty() {
        extensions.extend(BACKING_FORMAT.to_be_bytes());
        extensions.extend((format.len() as u32).to_be_bytes());
        extensions.extend(format);
        extensions.resize(extensions.len().next_multiple_of(8), 0);
    }
    // An extension of no kind ends them.
    extensions.extend([0; 8]);
    let name_at = if name.is_empty() {
        0
    } else {
        HEADER + extensions.len()
    };
    let mut header = MAGIC.to_vec();
    let mut halves = |numbers: &[u32]| header.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
    let high = |number: u64| (number >> 32) as u32;
    let low = |number: u64| number as u32;
    halves(&[3, 0, name_at as u32, name.len() as u32, CLUSTER_BITS]);
    halves(&[high(size.0), low(size.0), 0, low(entries)]);
    halves(&[0, low(3 * CLUSTER), 0, low(CLUSTER), 1, 0, 0, 0]);
    // No features; reference counts of 2⁴ bits.
    halves(&[0, 0, 0, 0, 0, 0, 4, HEADER as u32]);
    header.extend(extensions);
    header.extend(name);
    let counts = (0..clusters).flat_map(|_| 1u16.to_be_bytes()).collect();
    Overlay {
        pieces: vec![
            (0, header),
            (CLUSTER, (2 * CLUSTER).to_be_bytes().to_vec()),
            (2 * CLUSTER, counts),
        ],
        length: clusters * CLUSTER,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain() -> Vec<u8> {
        let overlay = overlay(Bytes(1 << 30), Path::new(""), DiskFormat::Raw);
        overlay.pieces[0].1[..HEADER].to_vec()
    }

    fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut image = plain();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    }

    #[test]
    fn an_image_that_stands_alone_is_taken_and_no_other() {
        assert_eq!(parse(&plain()), Ok(Some(Image { size: Bytes(1 << 30) })));
        assert_eq!(parse(b"\xeb\x63\x90"), Ok(None));
        assert_eq!(parse(b""), Ok(None));
        let table: [(Vec<u8>, Refusal); 12] = [
            (plain()[..103].to_vec(), Refusal::Cut),
            (b"QFI\xfb".to_vec(), Refusal::Cut),
            (with(4, &[0, 0, 0, 1]), Refusal::Version),
            (with(4, &[0, 0, 0, 4]), Refusal::Version),
            (with(15, &[1]), Refusal::Backing),
            (with(19, &[1]), Refusal::Backing),
            (with(79, &[4]), Refusal::ExternalData),
            (with(79, &[32]), Refusal::Unknown),
            (with(79, &[2]), Refusal::Damaged),
            (with(35, &[2]), Refusal::Encrypted),
            (with(20, &[0, 0, 0, 63]), Refusal::Damaged),
            (with(24, &[255; 8]), Refusal::Damaged),
        ];
        for (image, refusal) in table {
            assert_eq!(parse(&image), Err(refusal), "{image:x?}");
        }
    }

    #[test]
    fn an_overlay_is_refused_as_a_base_and_known_as_an_overlay() {
        let made = overlay(Bytes(5 << 30), Path::new("/a/base.raw"), DiskFormat::Raw);
        let header = &made.pieces[0].1;
        assert_eq!(parse(header), Err(Refusal::Backing));
        assert!(is_overlay(header) && !is_overlay(b"QFI\xfb"));
        assert!(header.ends_with(b"/a/base.raw"));
        let mut elsewhere = header.clone();
        elsewhere[79] = 4;
        assert!(!is_overlay(&elsewhere));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..160)) {
            let _ = parse(&bytes);
            let _ = is_overlay(&bytes);
        }

        #[test]
        fn what_follows_the_magic_panics_neither(mut bytes in proptest::collection::vec(any::<u8>(), 8..160)) {
            bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            if let Ok(Some(image)) = parse(&bytes) {
                prop_assert!(image.size.0.is_multiple_of(512) && image.size.0 > 0);
            }
        }
    }
}
