//! QEMU's command line: pure, one place, the smallest set of devices.
//!
//! Everything it opens is a descriptor it inherits, in the order of [`Descriptors`]; nothing is a path of the host's.

use luna_core::engine::Accelerator;
use luna_core::units::Bytes;
use luna_guest::protocol::machine::{BASE_DISK, CHANNEL_PORT, MACHINE_PORT, MODULES_DISK, UPPER_DISK};

/// The first descriptor that QEMU inherits beyond its standard ones.
pub(crate) const FIRST: usize = 3;

/// What QEMU's code cache may grow to. Its own default is a quarter of the guest's memory.
pub(crate) const CODE_CACHE: Bytes = Bytes::mebibytes(128);

/// One machine, with nothing left to decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) accelerator: Accelerator,
    pub(crate) processors: u32,
    pub(crate) memory: Bytes,
    /// The kernel's own words for its command line.
    pub(crate) kernel_arguments: String,
    /// Whether there is a third disk, of kernel modules.
    pub(crate) modules: bool,
    /// How many volumes are served; their connections follow the fixed descriptors.
    pub(crate) volumes: usize,
}

/// The descriptors of every machine, in this order from [`FIRST`] on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fixed {
    Machine,
    Channel,
    Monitor,
    Console,
    Kernel,
    Initramfs,
    Base,
    Upper,
    Modules,
}

impl Fixed {
    fn number(self) -> usize {
        FIRST + self as usize
    }
}

impl Machine {
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut line = Line::vmm(self.accelerator, self.memory);
        let memory = self.memory.0 >> 20;
        line.add("-no-reboot", "");
        // A socket for each: the firmware's table of processors, by which a guest without ACPI goes, names one of a socket.
        let processors = self.processors;
        line.add(
            "-smp",
            &format!("{processors},sockets={processors},cores=1,threads=1"),
        );
        line.add("-machine", &board(self.volumes > 0));
        if self.volumes > 0 {
            // A volume's daemon reads and writes the guest's memory itself.
            line.add(
                "-object",
                &format!("memory-backend-memfd,id=memory,size={memory}M,share=on"),
            );
        }
        line.add("-kernel", &format!("/proc/self/fd/{}", Fixed::Kernel.number()));
        line.add("-initrd", &format!("/proc/self/fd/{}", Fixed::Initramfs.number()));
        line.add("-append", &self.kernel_arguments);

        line.monitor(Fixed::Monitor.number());
        line.add("-device", "virtio-serial-pci,id=serial,max_ports=4");
        line.socket("console", Fixed::Console.number());
        line.add("-device", "virtconsole,bus=serial.0,chardev=console");
        line.socket("machine", Fixed::Machine.number());
        line.add(
            "-device",
            &format!("virtserialport,bus=serial.0,chardev=machine,name={MACHINE_PORT}"),
        );
        line.socket("channel", Fixed::Channel.number());
        line.add(
            "-device",
            &format!("virtserialport,bus=serial.0,chardev=channel,name={CHANNEL_PORT}"),
        );
        line.disk(BASE_DISK, Fixed::Base.number(), false);
        line.disk(UPPER_DISK, Fixed::Upper.number(), true);
        if self.modules {
            line.disk(MODULES_DISK, Fixed::Modules.number(), false);
        }
        line.common_devices();
        let first_volume = Fixed::Modules.number() + usize::from(self.modules);
        for number in 0..self.volumes {
            let name = format!("volume{number}");
            line.socket(&name, first_volume + number);
            line.add(
                "-device",
                &format!("vhost-user-fs-pci,chardev={name},tag={name},queue-size=1024"),
            );
        }
        line.0
    }
}

/// The board, as small as it comes.
#[cfg(not(target_arch = "aarch64"))]
pub(crate) const BOARD: &str = "q35,usb=off,vmport=off,smm=off,hpet=off,graphics=off";
#[cfg(target_arch = "aarch64")]
pub(crate) const BOARD: &str = "virt,gic-version=max";

fn board(shared_memory: bool) -> String {
    let memory = if shared_memory {
        ",memory-backend=memory"
    } else {
        ""
    };
    format!("{BOARD}{memory}")
}

/// A command line in the making.
#[derive(Default)]
pub(crate) struct Line(pub(crate) Vec<String>);

impl Line {
    /// What is the same for every machine: nothing but what is named, confined, on this accelerator.
    pub(crate) fn vmm(accelerator: Accelerator, memory: Bytes) -> Line {
        let mut line = Line::default();
        let (accel, cpu) = match accelerator {
            Accelerator::Kvm => ("kvm".to_owned(), "host"),
            Accelerator::Tcg => (format!("tcg,thread=multi,tb-size={}", CODE_CACHE.0 >> 20), "max"),
        };
        line.add("-nodefaults", "");
        line.add("-no-user-config", "");
        line.add("-display", "none");
        line.add(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
        line.add("-accel", &accel);
        line.add("-cpu", cpu);
        line.add("-m", &format!("{}M", memory.0 >> 20));
        line
    }

    pub(crate) fn monitor(&mut self, descriptor: usize) {
        self.socket("monitor", descriptor);
        self.add("-mon", "chardev=monitor,mode=control");
    }

    /// What gives freed memory back, and what tells of a panic.
    pub(crate) fn common_devices(&mut self) {
        self.add(
            "-device",
            "virtio-balloon-pci,free-page-reporting=on,deflate-on-oom=on",
        );
        self.add("-device", "pvpanic-pci");
    }

    pub(crate) fn add(&mut self, option: &str, value: &str) {
        self.0.push(option.to_owned());
        if !value.is_empty() {
            self.0.push(value.to_owned());
        }
    }

    pub(crate) fn socket(&mut self, name: &str, descriptor: usize) {
        self.add("-chardev", &format!("socket,id={name},fd={descriptor}"));
    }

    /// An inherited descriptor as the file under the block node's child `child`.
    pub(crate) fn file(&mut self, child: &str, descriptor: usize) -> String {
        // A set of its own for each, named after the descriptor.
        self.add("-add-fd", &format!("fd={descriptor},set={descriptor}"));
        format!("{child}.driver=file,{child}.filename=/dev/fdset/{descriptor}")
    }

    /// A disk by its serial number; where it may not be written, neither QEMU's layer nor its descriptor can.
    fn disk(&mut self, serial: &str, descriptor: usize, writable: bool) {
        let file = self.file("file", descriptor);
        let (node, device) = if writable {
            (
                format!("driver=raw,node-name={serial},{file},discard=unmap,file.discard=unmap"),
                // A full host stops the machine instead of breaking its file system.
                format!("virtio-blk-pci,drive={serial},serial={serial},werror=stop,rerror=report"),
            )
        } else {
            (
                format!(
                    "driver=raw,node-name={serial},read-only=on,{file},file.read-only=on,file.locking=off"
                ),
                format!("virtio-blk-pci,drive={serial},serial={serial}"),
            )
        };
        self.add("-blockdev", &node);
        self.add("-device", &device);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(modules: bool, volumes: usize) -> Vec<String> {
        Machine {
            accelerator: Accelerator::Tcg,
            processors: 2,
            memory: Bytes::mebibytes(512),
            kernel_arguments: "quiet".into(),
            modules,
            volumes,
        }
        .arguments()
    }

    #[test]
    fn descriptors_follow_each_other() {
        let line = machine(true, 2).join(" ");
        for expected in [
            "socket,id=machine,fd=3",
            "socket,id=channel,fd=4",
            "-kernel /proc/self/fd/7",
            "fd=9,set=9",
            "fd=10,set=10",
            "fd=11,set=11",
            "socket,id=volume0,fd=12",
            "socket,id=volume1,fd=13",
        ] {
            assert!(line.contains(expected), "{expected} is not in {line}");
        }
        assert!(machine(false, 1).join(" ").contains("socket,id=volume0,fd=11"));
    }

    #[test]
    fn only_the_upper_disk_can_be_written() {
        let line = machine(true, 0);
        let writable: Vec<_> = line
            .iter()
            .filter(|word| word.starts_with("driver=raw") && !word.contains("read-only=on"))
            .collect();
        assert_eq!(writable.len(), 1);
        assert!(writable[0].contains("node-name=upper"));
    }
}
