//! What a kernel file is, told from its bytes.

use std::fs;
use std::path::Path;

use luna_core::{Error, Kind, Result};

use super::manifest::{self, Architecture, Form};

/// The most bytes of a kernel file: a distribution's with debugging symbols is ten times smaller.
const MAXIMUM: u64 = 1 << 30;

/// What the bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) form: Form,
    pub(super) architecture: Architecture,
    pub(super) release: String,
}

pub(super) fn inspect(path: &Path) -> Result<Found> {
    let fail = |e| Error::io(format!("cannot read the kernel `{}`", path.display()), e);
    let file = fs::File::open(path).map_err(fail)?;
    let size = file.metadata().map_err(fail)?.len();
    if size > MAXIMUM {
        return Err(fail(std::io::Error::other("it is implausibly large")));
    }
    let bytes = super::read_at_most(file, MAXIMUM as usize).map_err(fail)?;
    identify(&bytes).map_err(|why| {
        Error::new(
            Kind::InvalidInput,
            format!("cannot use `{}` as a kernel", path.display()),
        )
        .because(why)
    })
}

fn identify(bytes: &[u8]) -> Result<Found, String> {
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..offset + magic.len()) == Some(magic);
    let (form, architecture, release) = if at(0, b"\x7fELF\x02\x01") && at(18, &[0x3e, 0]) {
        if !has_pvh_entry(bytes) {
            return Err("the ELF file has no PVH entry (its configuration lacks CONFIG_PVH)".to_owned());
        }
        (Form::Vmlinux, Architecture::X86_64, banner(bytes))
    } else if at(0x202, b"HdrS") {
        (Form::BzImage, Architecture::X86_64, version_of_bzimage(bytes))
    } else if at(56, b"ARM\x64") {
        (Form::Image, Architecture::Aarch64, banner(bytes))
    } else {
        return Err("it is neither an ELF kernel, nor a bzImage, nor an arm64 Image".to_owned());
    };
    let release = release
        .filter(|release| manifest::is_release(release))
        .ok_or("it does not say which release it is")?;
    Ok(Found {
        form,
        architecture,
        release,
    })
}

/// The release in `Linux version RELEASE (…`.
fn banner(bytes: &[u8]) -> Option<String> {
    const WORDS: &[u8] = b"Linux version ";
    bytes
        .windows(WORDS.len() + 1)
        .position(|window| window.starts_with(WORDS) && window[WORDS.len()].is_ascii_digit())
        .and_then(|at| word(&bytes[at + WORDS.len()..]))
}

/// The set-up header's `kernel_version` (Documentation/x86/boot.rst).
fn version_of_bzimage(bytes: &[u8]) -> Option<String> {
    let pointer = u16::from_le_bytes(bytes.get(0x20e..0x210)?.try_into().ok()?);
    word(bytes.get(usize::from(pointer) + 0x200..)?)
}

fn word(bytes: &[u8]) -> Option<String> {
    let end = bytes
        .iter()
        .take(128)
        .position(|byte| byte.is_ascii_whitespace() || *byte == 0)?;
    String::from_utf8(bytes[..end].to_vec()).ok()
}

/// Whether a note of an ELF64 file is `XEN_ELFNOTE_PHYS32_ENTRY`, the entry that a VMM calls without firmware.
fn has_pvh_entry(elf: &[u8]) -> bool {
    const NOTE: u64 = 4;
    const PHYS32_ENTRY: u64 = 18;
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    let look = || -> Option<bool> {
        let (table, each, count) = (
            number(32, 8)? as usize,
            number(54, 2)? as usize,
            number(56, 2)? as usize,
        );
        for index in 0..count {
            let header = table.checked_add(index * each)?;
            if number(header, 4)? != NOTE {
                continue;
            }
            let mut at = number(header.checked_add(8)?, 8)? as usize;
            let end = at.checked_add(number(header.checked_add(32)?, 8)? as usize)?;
            while at < end.min(elf.len()) {
                let (name, content) = (number(at, 4)? as usize, number(at + 4, 4)? as usize);
                if number(at + 8, 4)? == PHYS32_ENTRY && elf.get(at + 12..at + 16)? == b"Xen\0" {
                    return Some(true);
                }
                at += 12 + name.next_multiple_of(4) + content.next_multiple_of(4);
            }
        }
        Some(false)
    };
    look().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage() -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        bytes[0x300..0x310].copy_from_slice(b"6.1.0-50-cloud a");
        bytes
    }

    #[test]
    fn kernels_are_told_from_their_bytes() {
        let found = identify(&bzimage()).unwrap();
        assert_eq!(
            (found.form, found.release.as_str()),
            (Form::BzImage, "6.1.0-50-cloud")
        );
        let mut image = vec![0; 64];
        image[56..60].copy_from_slice(b"ARM\x64");
        image.extend_from_slice(b"Linux version %s\0Linux version 6.12.1 (x)");
        assert_eq!(identify(&image).unwrap().release, "6.12.1");
    }

    #[test]
    fn hostile_files_are_refused() {
        let mut elf = vec![0xff; 256];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18..20].copy_from_slice(&[0x3e, 0]);
        assert!(identify(&elf).is_err());
        for bytes in [
            &b""[..],
            b"\x7fELF",
            b"MZ",
            &bzimage()[..0x210],
            &bzimage()[..0x305],
        ] {
            assert!(identify(bytes).is_err());
        }
        let mut strange = bzimage();
        strange[0x300..0x308].copy_from_slice(b"6/../../");
        assert!(identify(&strange).is_err());
    }
}
