//! GRUB, so that both firmwares find the kernel: made by `grub-mkimage`, put in place here, without a device or a mount.

use std::fs;
use std::path::Path;

use luna_core::{Error, Kind, Result};

use super::layout::SECTOR;
use crate::kernel::tool;

pub(super) const TOOLS: [(&str, &str); 3] = [
    ("grub-mkimage", "grub-common"),
    (BOOT, "grub-pc-bin"),
    ("/usr/lib/grub/x86_64-efi/linux.mod", "grub-efi-amd64-bin"),
];

/// The code of sector 0.
const BOOT: &str = "/usr/lib/grub/i386-pc/boot.img";
/// What both firmwares' images have in them.
const MODULES: [&str; 7] = [
    "part_gpt",
    "fat",
    "search_fs_file",
    "normal",
    "linux",
    "ls",
    "reboot",
];

/// Places in GRUB 2's boot.img (`include/grub/i386/pc/boot.h`): where core.img begins, and the check of the drive's number
/// that some BIOSes get wrong, which its own installer takes out for hard disks.
const KERNEL_SECTOR: usize = 0x5c;
const DRIVE_CHECK: usize = 0x66;
/// In core.img's first sector: where the rest of it begins (`struct grub_pc_bios_boot_blocklist`).
const BLOCK_LIST: usize = 512 - 12;

/// What GRUB boots.
pub(super) fn configuration(command_line: &str) -> String {
    format!(
        "set timeout=0\nmenuentry \"Luna\" {{\n    linux /luna/vmlinuz {command_line}\n    initrd /luna/initrd\n}}\n"
    )
}

/// Both parts for a BIOS: sector 0, which is to be made protective still, and core.img for `start`, bytes from the disk's
/// beginning; it has at most `room` bytes.
pub(super) fn bios(work: &Path, marker: &str, start: u64, room: u64) -> Result<([u8; 512], Vec<u8>)> {
    let core = image(work, marker, "i386-pc", &["biosdisk"])?;
    let unknown = |what: &str| {
        Error::new(Kind::Unsupported, "cannot use this host's GRUB")
            .because(format!("its {what} is not what GRUB 2 has"))
    };
    let boot = fs::read(BOOT).map_err(|e| Error::io(format!("cannot read `{BOOT}`"), e))?;
    let boot: [u8; SECTOR as usize] = boot.try_into().map_err(|_| unknown("boot.img"))?;
    if core.len() as u64 > room {
        return Err(unknown("core.img"));
    }
    place(boot, core, start / SECTOR).ok_or_else(|| unknown("boot.img or core.img"))
}

/// Tells both where core.img begins; `None` where they do not say what an unplaced one says.
fn place(mut boot: [u8; 512], mut core: Vec<u8>, sector: u64) -> Option<([u8; 512], Vec<u8>)> {
    let first = 1u64.to_le_bytes();
    if boot[KERNEL_SECTOR..KERNEL_SECTOR + 8] != first || boot[DRIVE_CHECK] != 0xeb {
        return None;
    }
    boot[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&sector.to_le_bytes());
    boot[DRIVE_CHECK..DRIVE_CHECK + 2].fill(0x90);
    let list = core.get_mut(BLOCK_LIST..BLOCK_LIST + 8)?;
    if *list != 2u64.to_le_bytes() {
        return None;
    }
    list.copy_from_slice(&(sector + 1).to_le_bytes());
    Some((boot, core))
}

/// The program that UEFI starts.
pub(super) fn efi(work: &Path, marker: &str) -> Result<Vec<u8>> {
    image(work, marker, "x86_64-efi", &["all_video"])
}

/// An image that looks for the partition with the file `marker` and follows the configuration there.
fn image(work: &Path, marker: &str, format: &str, more: &[&str]) -> Result<Vec<u8>> {
    let fail = |e| Error::io("cannot make a boot loader", e);
    let early = work.join("early.cfg");
    let made = work.join(format);
    let text = format!("search.file {marker} root\nset prefix=($root)/luna\nnormal ($root)/luna/grub.cfg\n");
    fs::write(&early, text).map_err(fail)?;
    let mut command = tool::command("grub-mkimage");
    command
        .arg("--format")
        .arg(format)
        .arg("--output")
        .arg(&made)
        .arg("--config")
        .arg(&early)
        .args(["--prefix", "/luna"])
        .args(MODULES)
        .args(more);
    tool::run("make a boot loader", &mut command)?;
    fs::read(&made).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_expected_is_patched() {
        let mut boot = [0; 512];
        boot[KERNEL_SECTOR] = 1;
        boot[DRIVE_CHECK..DRIVE_CHECK + 2].copy_from_slice(&[0xeb, 5]);
        let mut core = vec![0; 1024];
        core[BLOCK_LIST] = 2;
        let (placed, list) = place(boot, core.clone(), 2048).unwrap();
        assert_eq!(placed[KERNEL_SECTOR..KERNEL_SECTOR + 8], 2048u64.to_le_bytes());
        assert_eq!(placed[DRIVE_CHECK..DRIVE_CHECK + 2], [0x90; 2]);
        assert_eq!(list[BLOCK_LIST..BLOCK_LIST + 8], 2049u64.to_le_bytes());
        assert!(place([0; 512], core, 2048).is_none());
        assert!(place(boot, vec![0; 8], 2048).is_none());
    }

    #[test]
    fn this_host_s_grub_is_the_one_that_is_known() {
        if tool::require("test", &TOOLS).is_err() {
            println!("skipped: this host has no GRUB");
            return;
        }
        let work = tempfile::tempdir().unwrap();
        let (_, core) = bios(work.path(), "/luna/id", 1 << 20, 1 << 20).unwrap();
        assert!(core.len() > 10_000);
        assert_eq!(efi(work.path(), "/luna/id").unwrap()[..2], *b"MZ");
    }
}
