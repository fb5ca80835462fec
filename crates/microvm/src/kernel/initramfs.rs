//! The archive that the guest kernel unpacks into its first root: init and the modules it loads, in order.
//!
//! ```text
//! init                    0755   luna-init
//! dev, proc, sys          0755   where init mounts
//! modules/0000-NAME.ko    0444   in load order
//! ```
//! The format is cpio's `newc` (Documentation/driver-api/early-userspace/buffer-format.rst of Linux), uncompressed: an
//! emulated processor takes longer to inflate it than QEMU to place it.

use std::fs;
use std::path::Path;

use luna_core::{Error, Kind, Result};

use super::Kernel;

/// The most an archive may hold: it is copied into the guest's memory before the guest has any other use for it.
const MAXIMUM: u64 = 256 << 20;

/// The archive for `kernel` with `init` as `/init`.
pub fn initramfs(init: &[u8], kernel: &Kernel) -> Result<Vec<u8>> {
    let fail = |path: &Path, e| Error::io(format!("cannot read the kernel module `{}`", path.display()), e);
    let mut size = init.len() as u64;
    for path in &kernel.modules {
        size += fs::metadata(path).map_err(|e| fail(path, e))?.len();
    }
    if size > MAXIMUM {
        return Err(Error::new(
            Kind::Exhausted,
            format!(
                "cannot start kernel `{}` from {} MiB of init and modules",
                kernel.name,
                size >> 20
            ),
        ));
    }
    let mut archive = begin(init, size as usize);
    for (order, path) in kernel.modules.iter().enumerate() {
        let content = fs::read(path).map_err(|e| fail(path, e))?;
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy())
            .unwrap_or_default();
        archive.module(order, &name, &content);
    }
    Ok(archive.finish())
}

/// The archive of a machine without a host: these modules, and beside init the file that says what the machine is.
pub(crate) fn standalone(init: &[u8], modules: &[(String, Vec<u8>)], told: &[u8]) -> Vec<u8> {
    let size = modules.iter().map(|(_, content)| content.len()).sum::<usize>();
    let mut archive = begin(init, size + init.len() + told.len());
    archive.file(luna_guest::protocol::standalone::FILE, 0o400, told);
    for (order, (name, content)) in modules.iter().enumerate() {
        archive.module(order, name, content);
    }
    archive.finish()
}

/// What every archive begins with; `size` is that of all that comes in.
fn begin(init: &[u8], size: usize) -> Archive {
    let mut archive = Archive::with_capacity(size + (64 << 10));
    for directory in ["dev", "proc", "sys", "modules"] {
        archive.directory(directory);
    }
    // So that a kernel whose device file system comes later than init's first word still shows it.
    archive.character_device("dev/console", 5, 1);
    // And where the console's driver is a module, init starts with no descriptors and needs one to fill them with.
    archive.character_device("dev/null", 1, 3);
    archive.file("init", 0o755, init);
    archive
}

/// Writes `newc` entries, all owned by root and without a time, so that the same content gives the same bytes.
#[derive(Debug)]
struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

impl Archive {
    fn with_capacity(size: usize) -> Archive {
        Archive {
            bytes: Vec::with_capacity(size),
            inode: 0,
        }
    }

    fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[]);
    }

    fn character_device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, CHARACTER | 0o600, (major, minor), &[]);
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, REGULAR | mode, (0, 0), content);
    }

    fn module(&mut self, order: usize, name: &str, content: &[u8]) {
        self.file(&format!("modules/{order:04}-{name}"), 0o444, content);
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let links = if mode & DIRECTORY == 0 { 1 } else { 2 };
        let fields = [
            self.inode,
            mode,
            0,
            0,
            links,
            0,
            content.len() as u32,
            0,
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::kernel::tests::kernel_with;

    #[test]
    fn cpio_reads_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let kernel = kernel_with(
            directory.path(),
            &[("virtio.ko", b"abc"), ("virtio_blk.ko", b"defgh")],
        );
        let archive = initramfs(b"#!init", &kernel).unwrap();
        assert_eq!(archive, initramfs(b"#!init", &kernel).unwrap());
        let Ok(mut child) = Command::new("cpio")
            .args(["-itv", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            println!("skipped: this host has no cpio");
            return;
        };
        child.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let listing = String::from_utf8(output.stdout).unwrap();
        let names: Vec<_> = listing
            .lines()
            .map(|line| line.rsplit(' ').next().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "dev",
                "proc",
                "sys",
                "modules",
                "dev/console",
                "dev/null",
                "init",
                "modules/0000-virtio.ko",
                "modules/0001-virtio_blk.ko"
            ]
        );
        assert!(
            listing.contains("-rwxr-xr-x") && listing.contains("5,   1"),
            "{listing}"
        );
    }
}
