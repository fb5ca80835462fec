//! Where everything lies on an exported disk: a GUID partition table (UEFI specification 2.10, 5.3) that a BIOS can boot
//! from too. Pure: from sizes to bytes.
//!
//! ```text
//! sector 0        protective MBR, in it GRUB's boot.img
//! 1 MiB           BIOS boot: GRUB's core.img
//! 2 MiB           EFI system: FAT32 with GRUB for UEFI, the kernel and its initial root
//! after it        luna-base-ID: the image, EROFS, as the store has it
//! after it        luna-data-ID: ext4, what is written
//! last sectors    the table once more
//! ```

use luna_core::units::Bytes;
use luna_core::{Error, Kind, Result};
use sha2::{Digest, Sha256};

pub(super) const SECTOR: u64 = 512;
/// Partitions begin at its multiples, so that no disk reads two blocks for one.
const ALIGNMENT: u64 = 1 << 20;
/// Entries and their header, in sectors: 128 entries of 128 bytes.
const TABLE: u64 = 33;
const ENTRIES: u32 = 128;
const ENTRY: u32 = 128;

/// A GUID as its text reads; on disk the first three fields are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guid(u128);

const BIOS_BOOT: Guid = Guid(0x21686148_6449_6E6F_744E_656564454649);
const EFI_SYSTEM: Guid = Guid(0xC12A7328_F81F_11D2_BA4B_00A0C93EC93B);
const LINUX_DATA: Guid = Guid(0x0FC63DAF_8483_4772_8E79_3D69D8477DE4);

impl Guid {
    /// The same for the same content, and no other's: version 8 of RFC 9562.
    fn of(content: &[u8; 32], number: u8) -> Guid {
        let digest = Sha256::new()
            .chain_update(content)
            .chain_update([number])
            .finalize();
        let mut bytes: [u8; 16] = digest[..16].try_into().expect("a digest has 32 bytes");
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Guid(u128::from_be_bytes(bytes))
    }

    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = self.0.to_be_bytes();
        bytes[..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        bytes
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    kind: Guid,
    id: Guid,
    /// At most 36 UTF-16 units.
    pub(super) name: String,
    /// Bytes from the disk's beginning, and how many.
    pub(super) start: u64,
    pub(super) length: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Bytes of the disk.
    pub(super) size: u64,
    id: Guid,
    pub(super) bios: Partition,
    pub(super) efi: Partition,
    pub(super) base: Partition,
    pub(super) upper: Partition,
}

/// Eight characters that are those of no other content.
pub(super) fn short(content: &[u8; 32]) -> String {
    content[..4]
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// The names under which the guest finds its partitions.
pub(super) fn names(content: &[u8; 32]) -> (String, String) {
    let id = short(content);
    (format!("luna-base-{id}"), format!("luna-data-{id}"))
}

/// A disk of `size` for these contents; what it has more than they need can be written.
pub(super) fn plan(content: &[u8; 32], efi: u64, base: u64, least: Bytes, size: Bytes) -> Result<Layout> {
    let number = std::cell::Cell::new(0);
    let at = std::cell::Cell::new(ALIGNMENT);
    let take = |kind, name: &str, length: u64| {
        number.set(number.get() + 1);
        let start = at.get();
        let length = length.next_multiple_of(ALIGNMENT);
        at.set(start + length);
        Partition {
            kind,
            id: Guid::of(content, number.get()),
            name: name.to_owned(),
            start,
            length,
        }
    };
    let (base_name, upper_name) = names(content);
    let bios = take(BIOS_BOOT, "BIOS boot", ALIGNMENT);
    let efi = take(EFI_SYSTEM, "EFI system", efi);
    let base = take(LINUX_DATA, &base_name, base);
    let used = at.get();
    let size = size.0 / ALIGNMENT * ALIGNMENT;
    // The last piece is the second table's.
    let rest = size.saturating_sub(used + ALIGNMENT);
    if rest < least.0 {
        let needed = Bytes((used + ALIGNMENT + least.0).next_multiple_of(ALIGNMENT));
        return Err(Error::new(
            Kind::InvalidInput,
            format!("cannot put the image on a disk of {}", Bytes(size)),
        )
        .hint(format!(
            "give it at least {}m: `--size {}m`",
            needed.0 >> 20,
            needed.0 >> 20
        )));
    }
    Ok(Layout {
        size,
        id: Guid::of(content, 0),
        bios,
        efi,
        base,
        upper: take(LINUX_DATA, &upper_name, rest),
    })
}

impl Layout {
    fn partitions(&self) -> [&Partition; 4] {
        [&self.bios, &self.efi, &self.base, &self.upper]
    }

    fn entries(&self) -> Vec<u8> {
        let mut entries = vec![0; (ENTRIES * ENTRY) as usize];
        for (partition, entry) in self
            .partitions()
            .into_iter()
            .zip(entries.chunks_exact_mut(ENTRY as usize))
        {
            entry[..16].copy_from_slice(&partition.kind.to_bytes());
            entry[16..32].copy_from_slice(&partition.id.to_bytes());
            let first = partition.start / SECTOR;
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&(first + partition.length / SECTOR - 1).to_le_bytes());
            for (unit, place) in partition.name.encode_utf16().zip(entry[56..].chunks_exact_mut(2)) {
                place.copy_from_slice(&unit.to_le_bytes());
            }
        }
        entries
    }

    fn header(&self, entries: &[u8], own: u64, other: u64, first_entry: u64) -> Vec<u8> {
        let last = self.size / SECTOR - 1;
        let mut header = Vec::with_capacity(SECTOR as usize);
        header.extend(b"EFI PART");
        header.extend(0x0001_0000u32.to_le_bytes());
        header.extend(92u32.to_le_bytes());
        header.extend([0; 8]);
        for number in [own, other, TABLE + 1, last - TABLE] {
            header.extend(number.to_le_bytes());
        }
        header.extend(self.id.to_bytes());
        header.extend(first_entry.to_le_bytes());
        header.extend(ENTRIES.to_le_bytes());
        header.extend(ENTRY.to_le_bytes());
        header.extend(crc32(entries).to_le_bytes());
        let sum = crc32(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        header.resize(SECTOR as usize, 0);
        header
    }

    /// The table as it lies at sector 1, and once more for the end, with where that is.
    pub(super) fn tables(&self) -> (Vec<u8>, (u64, Vec<u8>)) {
        let entries = self.entries();
        let last = self.size / SECTOR - 1;
        let mut first = self.header(&entries, 1, last, 2);
        first.extend(&entries);
        let backup = last - (TABLE - 1);
        let mut second = entries.clone();
        second.extend(self.header(&entries, last, 1, backup));
        (first, (backup * SECTOR, second))
    }

    /// Sector 0: `boot` with the one entry that keeps programs that know no GPT off the disk (5.2.3).
    pub(super) fn protective(&self, boot: &[u8; SECTOR as usize]) -> [u8; SECTOR as usize] {
        let mut sector = *boot;
        sector[440..510].fill(0);
        let sectors = u32::try_from(self.size / SECTOR - 1).unwrap_or(u32::MAX);
        let mut entry = [0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0];
        entry[12..].copy_from_slice(&sectors.to_le_bytes());
        sector[446..462].copy_from_slice(&entry);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }
}

/// That of IEEE 802.3, reflected.
fn crc32(bytes: &[u8]) -> u32 {
    let sum = bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            sum >> 1 ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
        })
    });
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: [u8; 32] = [0xab; 32];

    fn layout(size: Bytes) -> Result<Layout> {
        plan(&CONTENT, 64 << 20, (5 << 20) + 1, Bytes::mebibytes(16), size)
    }

    #[test]
    fn partitions_follow_each_other_aligned_and_fill_the_disk() {
        let layout = layout(Bytes((1 << 30) + 12345)).unwrap();
        assert_eq!(layout.size, 1 << 30);
        let mut end = ALIGNMENT;
        for partition in layout.partitions() {
            assert_eq!((partition.start, partition.length % ALIGNMENT), (end, 0));
            end += partition.length;
        }
        assert_eq!(end + ALIGNMENT, layout.size);
        assert_eq!(layout.base.length, 6 << 20);
        assert_eq!(layout.base.name, "luna-base-abababab");
        assert_eq!(layout, self::layout(Bytes(1 << 30)).unwrap());
    }

    #[test]
    fn a_disk_too_small_says_how_large_it_must_be() {
        let error = layout(Bytes::mebibytes(88)).unwrap_err();
        let hint = error.hint_text().unwrap().to_owned();
        let size = hint.split("--size ").nth(1).unwrap().trim_end_matches('`');
        layout(size.parse().unwrap()).unwrap();
        let less: Bytes = size.parse().unwrap();
        assert!(layout(Bytes(less.0 - ALIGNMENT)).is_err());
    }

    #[test]
    fn both_tables_say_the_same_and_their_sums_hold() {
        // The check value of every catalogue of sums.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let layout = layout(Bytes(1 << 30)).unwrap();
        let (first, (at, second)) = layout.tables();
        let (header, entries) = first.split_at(512);
        assert_eq!(at + second.len() as u64, layout.size);
        assert_eq!(&second[..entries.len()], entries);
        for header in [header, &second[entries.len()..]] {
            let mut bare = header[..92].to_vec();
            bare[16..20].fill(0);
            assert_eq!(crc32(&bare).to_le_bytes(), header[16..20]);
            assert_eq!(crc32(entries).to_le_bytes(), header[88..92]);
        }
        // The type of an EFI system partition as it is seen in every hex dump of one.
        assert_eq!(
            entries[128..136],
            [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11]
        );
    }

    #[test]
    fn the_first_sector_keeps_its_code_and_guards_the_disk() {
        let layout = layout(Bytes(1 << 30)).unwrap();
        let sector = layout.protective(&[7; 512]);
        assert_eq!(sector[..440], [7; 440]);
        assert_eq!(sector[450], 0xee);
        assert_eq!(sector[458..462], (layout.size as u32 / 512 - 1).to_le_bytes());
        assert_eq!(sector[510..], [0x55, 0xaa]);
    }
}
