//! What starts a boot loader: QEMU's own BIOS, or the UEFI that the distribution packages.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use luna_core::engine::SystemFirmware;
use luna_core::{Error, Kind, Result};

use crate::disk;

/// Code and variables of UEFI without secure boot, where the distributions keep them.
#[cfg(not(target_arch = "aarch64"))]
const UEFI: [(&str, &str); 4] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
];
#[cfg(target_arch = "aarch64")]
const UEFI: [(&str, &str); 2] = [
    ("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
    (
        "/usr/share/edk2/aarch64/QEMU_EFI-pflash.raw",
        "/usr/share/edk2/aarch64/vars-template-pflash.raw",
    ),
];

const PACKAGE: &str = if cfg!(target_arch = "aarch64") {
    "qemu-efi-aarch64"
} else {
    "ovmf"
};

pub(super) struct Uefi {
    pub(super) code: OwnedFd,
    /// A sandbox's own: what its boot loader leaves there stays with it.
    pub(super) variables: OwnedFd,
}

/// `None` for the BIOS, which QEMU brings along.
pub(super) fn open(firmware: &SystemFirmware) -> Result<Option<Uefi>> {
    let SystemFirmware::Uefi { variables } = firmware else {
        if cfg!(target_arch = "aarch64") {
            return Err(Error::new(Kind::Unsupported, "cannot start by BIOS")
                .because("machines of this processor never had one")
                .hint("`--firmware uefi`"));
        }
        return Ok(None);
    };
    let (code, template) = UEFI
        .into_iter()
        .find(|(code, template)| Path::new(code).is_file() && Path::new(template).is_file())
        .ok_or_else(|| {
            Error::new(Kind::NotFound, "cannot find UEFI firmware")
                .because(format!("there is no `{}`", UEFI[0].0))
                .hint(format!("install it: `apt-get install {PACKAGE}`"))
        })?;
    if !variables.exists() {
        copy(Path::new(template), variables).map_err(|e| {
            Error::io(
                format!("cannot make the firmware's variables `{}`", variables.display()),
                e,
            )
        })?;
    }
    Ok(Some(Uefi {
        code: disk::open_base(Path::new(code))?,
        variables: disk::lock_upper(variables)?,
    }))
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let new = to.with_extension("new");
    let mut target = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)?;
    io::copy(&mut fs::File::open(from)?, &mut target)?;
    fs::rename(&new, to)
}
