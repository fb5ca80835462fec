//! EROFS as Linux reads it: `fs/erofs/erofs_fs.h`, the part of it that has been there since Linux 5.4.
//!
//! ```text
//! block 0        superblock at byte 1024: 128 bytes; crc32c from there to the block's end
//! …              file contents, whole blocks each; blocks of zeros are holes in the disk's file
//! …              directories and symlinks too large to lie beside their inode
//! meta_blkaddr   inodes at multiples of 32 bytes: [inode 32 or 64][attributes][the content's last part]
//! ```
//! Numbers are little-endian. An inode's number is its place: bytes from `meta_blkaddr`, divided by 32.

pub(super) const BLOCK: u64 = 4096;
/// Unit of inode numbers.
pub(super) const SLOT: u64 = 32;
pub(super) const NAME_MAX: usize = 255;

const MAGIC: u32 = 0xe0f5_e1e2;
const SUPERBLOCK_AT: usize = 1024;
/// Compatible feature: the superblock has a checksum.
const CHECKSUM: u32 = 1;

/// How an inode's content lies: `datalayout` in bits 1 to 3 of its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// All of it in blocks, one after another.
    Plain = 0,
    /// The last part, less than a block, right behind the inode and its attributes.
    Inline = 2,
}

/// One inode. `compact` has 32 bytes and the disk's own time; the other form 64 and everything.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) compact: bool,
    pub(super) layout: Layout,
    /// Bytes of the encoded attributes.
    pub(super) attributes: usize,
    pub(super) mode: u16,
    pub(super) links: u32,
    pub(super) size: u64,
    /// First block of the content, or the device number.
    pub(super) block: u32,
    pub(super) serial: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
}

impl Inode {
    pub(super) const COMPACT: usize = 32;
    pub(super) const EXTENDED: usize = 64;

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let format = u16::from(!self.compact) | (self.layout as u16) << 1;
        // 12 bytes of header, then units of 4; 0 where there is none.
        let units = match self.attributes {
            0 => 0,
            bytes => (bytes - 12) / 4 + 1,
        };
        put16(out, format);
        put16(out, units as u16);
        put16(out, self.mode);
        if self.compact {
            put16(out, self.links as u16);
            put32(out, self.size as u32);
            put32(out, 0);
            put32(out, self.block);
            put32(out, self.serial);
            put16(out, self.uid as u16);
            put16(out, self.gid as u16);
            put32(out, 0);
        } else {
            put16(out, 0);
            put64(out, self.size);
            put32(out, self.block);
            put32(out, self.serial);
            put32(out, self.uid);
            put32(out, self.gid);
            put64(out, self.mtime.0.cast_unsigned());
            put32(out, self.mtime.1);
            put32(out, self.links);
            out.extend_from_slice(&[0; 16]);
        }
    }
}

/// A directory block's entries: 12 bytes each, then the names without a separator.
#[derive(Default)]
pub(super) struct DirectoryBlock<'a> {
    entries: Vec<(&'a [u8], u64, u8)>,
    used: usize,
}

impl<'a> DirectoryBlock<'a> {
    /// Takes one more entry; false when the block has no room for it.
    pub(super) fn push(&mut self, name: &'a [u8], inode: u64, kind: u8) -> bool {
        let size = 12 + name.len();
        if self.used + size > BLOCK as usize {
            return false;
        }
        self.used += size;
        self.entries.push((name, inode, kind));
        true
    }

    pub(super) fn used(&self) -> usize {
        self.used
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.used = 0;
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let mut name_at = 12 * self.entries.len();
        for (name, inode, kind) in &self.entries {
            put64(out, *inode);
            put16(out, name_at as u16);
            out.extend_from_slice(&[*kind, 0]);
            name_at += name.len();
        }
        for (name, _, _) in &self.entries {
            out.extend_from_slice(name);
        }
    }
}

/// What the superblock says of this disk.
#[derive(Debug)]
pub(super) struct Superblock {
    /// The root's inode number.
    pub(super) root: u16,
    pub(super) inodes: u64,
    /// The time of every compact inode.
    pub(super) time: (i64, u32),
    pub(super) blocks: u32,
    pub(super) metadata: u32,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    /// Block 0 as a whole.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; SUPERBLOCK_AT];
        put32(&mut block, MAGIC);
        put32(&mut block, 0);
        put32(&mut block, CHECKSUM);
        // Blocks of 2^12 bytes; no extension slots.
        block.extend_from_slice(&[12, 0]);
        put16(&mut block, self.root);
        put64(&mut block, self.inodes);
        put64(&mut block, self.time.0.cast_unsigned());
        put32(&mut block, self.time.1);
        put32(&mut block, self.blocks);
        put32(&mut block, self.metadata);
        put32(&mut block, 0);
        block.extend_from_slice(&self.uuid);
        block.resize(BLOCK as usize, 0);
        let sum = crc32c(&block[SUPERBLOCK_AT..]);
        block[SUPERBLOCK_AT + 4..][..4].copy_from_slice(&sum.to_le_bytes());
        block
    }

    /// The length of the disk that begins with `block`, where that is a superblock of this module's, whole.
    pub(super) fn length(block: &[u8]) -> Option<u64> {
        let field = |at: usize| -> Option<u32> {
            let bytes = block.get(SUPERBLOCK_AT + at..)?.get(..4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let mut copy = block.get(SUPERBLOCK_AT..BLOCK as usize)?.to_vec();
        copy[4..8].fill(0);
        let whole = field(0)? == MAGIC && field(4)? == crc32c(&copy);
        whole.then_some(u64::from(field(36)?) * BLOCK)
    }
}

/// `i_mode`'s kind of file, and the directory entry's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileKind {
    pub(super) mode: u16,
    pub(super) entry: u8,
}

pub(super) const REGULAR: FileKind = FileKind {
    mode: 0o100_000,
    entry: 1,
};
pub(super) const DIRECTORY: FileKind = FileKind {
    mode: 0o040_000,
    entry: 2,
};
pub(super) const CHARACTER: FileKind = FileKind {
    mode: 0o020_000,
    entry: 3,
};
pub(super) const BLOCK_DEVICE: FileKind = FileKind {
    mode: 0o060_000,
    entry: 4,
};
pub(super) const FIFO: FileKind = FileKind {
    mode: 0o010_000,
    entry: 5,
};
pub(super) const SYMLINK: FileKind = FileKind {
    mode: 0o120_000,
    entry: 7,
};

/// `new_encode_dev` of `include/linux/kdev_t.h`: 12 bits of major, 20 of minor number.
pub(super) fn device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}

fn put16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Castagnoli's CRC without the last inversion, as the kernel's `crc32c(~0, …)`.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = sum >> 1 ^ (0x82f6_3b78 & (sum & 1).wrapping_neg());
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn inodes_have_their_sizes() {
        let mut inode = Inode {
            compact: true,
            layout: Layout::Inline,
            attributes: 20,
            mode: 0o644,
            links: 1,
            size: 5,
            block: 0,
            serial: 1,
            uid: 0,
            gid: 0,
            mtime: (-1, 0),
        };
        let mut out = Vec::new();
        inode.encode(&mut out);
        assert_eq!((out.len(), &out[..4]), (Inode::COMPACT, &[4, 0, 3, 0][..]));
        inode.compact = false;
        out.clear();
        inode.encode(&mut out);
        assert_eq!((out.len(), out[0]), (Inode::EXTENDED, 5));
    }

    #[test]
    fn a_damaged_superblock_has_no_length() {
        let superblock = Superblock {
            root: 2,
            inodes: 1,
            time: (0, 0),
            blocks: 7,
            metadata: 1,
            uuid: [3; 16],
        };
        let mut block = superblock.encode();
        assert_eq!(Superblock::length(&block), Some(7 * BLOCK));
        assert_eq!(Superblock::length(&block[..2000]), None);
        block[1100] ^= 1;
        assert_eq!(Superblock::length(&block), None);
    }

    #[test]
    fn devices_have_the_kernels_form() {
        assert_eq!(device(8, 1), Some(0x801));
        assert_eq!(device(259, 0x12345), Some(0x45 | 259 << 8 | 0x123 << 20));
        assert_eq!(device(4096, 0), None);
        assert_eq!(device(0, 1 << 20), None);
    }
}
