//! QEMU's command line for a system of somebody else's: pure, and like a machine of Luna's own in all that does not differ.

use std::fmt::Write;

use luna_core::engine::{Accelerator, DiskFormat};
use luna_core::units::Bytes;

use crate::command::{BOARD, FIRST, Line};

/// The first of the ports on QEMU's own loopback that lead to the guest's.
pub(super) const FIRST_PORT: u16 = 20000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) accelerator: Accelerator,
    pub(super) processors: u32,
    pub(super) memory: Bytes,
    pub(super) base: DiskFormat,
    pub(super) uefi: bool,
    /// The guest's ports, of which the first is reached at [`FIRST_PORT`].
    pub(super) ports: Vec<u16>,
}

/// The descriptors, in this order from [`FIRST`] on.
#[derive(Clone, Copy)]
enum Fixed {
    Monitor,
    Console,
    Base,
    Upper,
    Code,
    Variables,
}

impl Fixed {
    fn number(self) -> usize {
        FIRST + self as usize
    }
}

impl Machine {
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut line = Line::vmm(self.accelerator, self.memory);
        line.add("-smp", &self.processors.to_string());
        if self.uefi {
            line.add("-machine", &format!("{BOARD},pflash0=code,pflash1=variables"));
            let code = line.file("file", Fixed::Code.number());
            line.add(
                "-blockdev",
                &format!("driver=raw,node-name=code,read-only=on,{code},file.read-only=on,file.locking=off"),
            );
            let variables = line.file("file", Fixed::Variables.number());
            line.add(
                "-blockdev",
                &format!("driver=raw,node-name=variables,{variables}"),
            );
        } else {
            line.add("-machine", BOARD);
        }
        line.monitor(Fixed::Monitor.number());
        line.socket("console", Fixed::Console.number());
        line.add("-serial", "chardev:console");
        self.disk(&mut line);
        line.add("-netdev", &self.network());
        // Without the ROM that would look for something to boot in the network.
        line.add("-device", "virtio-net-pci,netdev=network,romfile=");
        line.add("-object", "rng-builtin,id=entropy");
        line.add("-device", "virtio-rng-pci,rng=entropy");
        line.common_devices();
        line.0
    }

    fn disk(&self, line: &mut Line) {
        let upper = line.file("file", Fixed::Upper.number());
        let base = line.file("backing.file", Fixed::Base.number());
        let format = match self.base {
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Raw => "raw",
        };
        line.add(
            "-blockdev",
            &format!(
                "driver=qcow2,node-name=disk,discard=unmap,{upper},file.discard=unmap,\
                 backing.driver={format},backing.read-only=on,{base},backing.file.read-only=on,\
                 backing.file.locking=off"
            ),
        );
        line.add(
            "-device",
            // A full host stops the machine instead of breaking its file system.
            "virtio-blk-pci,drive=disk,serial=disk,bootindex=0,werror=stop,rerror=report",
        );
    }

    /// A network with the guest alone in it, and the way to its ports.
    fn network(&self) -> String {
        let mut network = "user,id=network,restrict=on".to_owned();
        for (number, port) in (FIRST_PORT..).zip(&self.ports) {
            write!(network, ",hostfwd=tcp:127.0.0.1:{number}-:{port}").expect("a String takes every write");
        }
        network
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(base: DiskFormat, uefi: bool) -> String {
        Machine {
            accelerator: Accelerator::Tcg,
            processors: 2,
            memory: Bytes::mebibytes(1024),
            base,
            uefi,
            ports: vec![8080, 22],
        }
        .arguments()
        .join(" ")
    }

    #[test]
    fn ports_lead_to_the_guest_and_the_guest_leads_nowhere() {
        let line = line(DiskFormat::Raw, false);
        assert!(line.contains(
            "user,id=network,restrict=on,hostfwd=tcp:127.0.0.1:20000-:8080,hostfwd=tcp:127.0.0.1:20001-:22"
        ));
    }

    #[test]
    fn the_base_is_read_as_what_it_is_and_never_written() {
        for (format, name) in [(DiskFormat::Raw, "raw"), (DiskFormat::Qcow2, "qcow2")] {
            let line = line(format, false);
            assert!(line.contains(&format!("backing.driver={name},backing.read-only=on")));
            assert!(line.contains("backing.file.filename=/dev/fdset/5,backing.file.read-only=on"));
            assert!(
                line.contains("node-name=disk,discard=unmap,file.driver=file,file.filename=/dev/fdset/6")
            );
        }
    }

    #[test]
    fn uefi_has_its_code_read_only_and_its_own_variables() {
        let uefi = line(DiskFormat::Raw, true);
        assert!(uefi.contains("pflash0=code,pflash1=variables"));
        assert!(uefi.contains("node-name=code,read-only=on,file.driver=file,file.filename=/dev/fdset/7"));
        assert!(uefi.contains("node-name=variables,file.driver=file,file.filename=/dev/fdset/8"));
        assert!(!line(DiskFormat::Raw, false).contains("pflash"));
    }
}
