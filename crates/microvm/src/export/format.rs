//! The forms of a disk that hypervisors take, made from the raw one by `qemu-img`.

use std::path::Path;

use luna_core::Result;

use crate::kernel::tool;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// QEMU, libvirt.
    Qcow2,
    /// Everything; and EC2's import.
    Raw,
    /// VMware, compressed as its OVF packages want it.
    Vmdk,
    /// VirtualBox.
    Vdi,
    /// Hyper-V.
    Vhdx,
}

impl Format {
    pub const ALL: [Format; 5] = [
        Format::Qcow2,
        Format::Raw,
        Format::Vmdk,
        Format::Vdi,
        Format::Vhdx,
    ];

    /// As `qemu-img` calls it, and the end of a file's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Qcow2 => "qcow2",
            Format::Raw => "raw",
            Format::Vmdk => "vmdk",
            Format::Vdi => "vdi",
            Format::Vhdx => "vhdx",
        }
    }

    fn options(self) -> Option<&'static str> {
        match self {
            Format::Vmdk => Some("subformat=streamOptimized"),
            Format::Vhdx => Some("subformat=dynamic"),
            Format::Qcow2 | Format::Raw | Format::Vdi => None,
        }
    }
}

/// Writes the raw disk at `raw` in another form to `target`.
pub(super) fn convert(raw: &Path, format: Format, target: &Path) -> Result<()> {
    let mut command = tool::command("qemu-img");
    command.args(["convert", "-q", "-f", "raw", "-O", format.as_str()]);
    if let Some(options) = format.options() {
        command.args(["-o", options]);
    }
    command.arg(raw).arg(target);
    tool::run(&format!("write a {} disk", format.as_str()), &mut command).map(drop)
}
