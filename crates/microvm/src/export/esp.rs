//! The EFI system partition: FAT32 in memory, with what both of GRUB's images look for.

use std::io::{Cursor, Write};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use luna_core::{Error, Result};

/// FAT32 has at least 65,525 clusters; with the smallest that is 33 MiB, and firmware is happier with room.
const LEAST: u64 = 64 << 20;
/// Kept free, for a kernel that takes this one's place.
const FREE: u64 = 16 << 20;
const HIDDEN: std::ops::Range<usize> = 0x1c..0x20;
/// Where a copy of the first sector lies.
const BACKUP: usize = 6 * 512;

/// How large a partition must be for files of so many bytes together.
pub(super) fn size(files: u64) -> u64 {
    (files + FREE).max(LEAST).next_multiple_of(1 << 20)
}

/// A file system of `size` bytes that begins at `sector` of its disk, with these files, by names of the short form (8.3);
/// directories are made.
pub(super) fn build(size: u64, sector: u32, id: u32, files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let fail = |e| Error::io("cannot make the EFI system partition", e);
    let mut disk = Cursor::new(vec![0u8; size as usize]);
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(512)
        .volume_id(id)
        .volume_label(*b"LUNA       ");
    fatfs::format_volume(&mut disk, options).map_err(fail)?;
    let files_system = FileSystem::new(&mut disk, FsOptions::new()).map_err(fail)?;
    {
        let root = files_system.root_dir();
        for (path, content) in files {
            for (end, _) in path.match_indices('/') {
                root.create_dir(&path[..end]).map_err(fail)?;
            }
            let mut file = root.create_file(path).map_err(fail)?;
            file.write_all(content).map_err(fail)?;
            file.flush().map_err(fail)?;
        }
    }
    files_system.unmount().map_err(fail)?;
    let mut bytes = disk.into_inner();
    for first in [0, BACKUP] {
        bytes[first + HIDDEN.start..first + HIDDEN.end].copy_from_slice(&sector.to_le_bytes());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn files_are_found_where_they_were_put() {
        let large = vec![7u8; 3 << 20];
        let files: [(&str, &[u8]); 3] = [
            ("EFI/BOOT/BOOTX64.EFI", b"MZ"),
            ("luna/vmlinuz", &large),
            ("luna/grub.cfg", b"x"),
        ];
        let bytes = build(size(3 << 20), 4096, 7, &files).unwrap();
        assert_eq!(bytes.len() as u64, LEAST);
        assert_eq!(bytes[0x1c..0x20], 4096u32.to_le_bytes());
        assert_eq!(&bytes[0x52..0x5a], b"FAT32   ");
        let read = FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
        for (path, content) in files {
            let mut found = Vec::new();
            read.root_dir()
                .open_file(path)
                .unwrap()
                .read_to_end(&mut found)
                .unwrap();
            assert!(found == content, "{path}");
        }
    }
}
