//! An image as a disk that starts by itself, under any hypervisor, by BIOS or UEFI.
//!
//! The store's disk is put beside a full distribution kernel, a boot loader and an empty file system; layout.rs draws it.
//! In the guest `luna-init` is the machine, as under Luna's own engine, but told by a file what a host would have said.
//! Nothing here needs root, a loop device or a mount, and a disk is visible only when it is whole.

mod drivers;
mod esp;
mod format;
mod grub;
mod layout;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use luna_core::event::{Progress, Sink};
use luna_core::process::Process;
use luna_core::units::Bytes;
use luna_core::{Error, Kind, Result};
use luna_guest::protocol::machine::{GuestLimits, MACHINE_VERSION, Setup, SetupFile};
use luna_guest::protocol::standalone::{self, RESOLVER, Standalone};
use sha2::{Digest, Sha256};

use crate::disk;
use crate::kernel::{Architecture, Kernel, Store, Trust, initramfs, tool};

pub use format::Format;

/// How large a disk is where nobody says; most of it takes no room until it is written.
pub const SIZE: Bytes = Bytes::mebibytes(16 << 10);
/// The package of a kernel that knows every hypervisor.
pub const PACKAGE: &str = "linux-image-amd64";
/// The least that can be written, or it is no computer.
const WRITABLE: Bytes = Bytes::mebibytes(64);
const SHARED_MEMORY: Bytes = Bytes::mebibytes(64);

/// What the kernel is told. The last console is the one init itself speaks on; Luna's programs speak on both. A kernel that
/// stops starts over, as a machine without anybody near it should.
const COMMAND_LINE: &str =
    "console=tty0 console=ttyS0,115200 loglevel=4 panic=30 net.ifnames=0 rcupdate.rcu_expedited=1";

/// What is to be exported, with nothing left to decide.
#[derive(Debug)]
pub struct Export<'a> {
    pub kernel: &'a Kernel,
    /// luna-init.
    pub init: &'a [u8],
    /// The image's EROFS disk.
    pub base: &'a Path,
    pub hostname: String,
    pub process: Process,
    pub format: Format,
    pub size: Bytes,
    pub output: &'a Path,
}

/// A disk that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    pub path: PathBuf,
    pub format: Format,
    /// Bytes the machine sees.
    pub size: Bytes,
    /// Bytes the file takes.
    pub taken: Bytes,
}

/// Whether a disk can be made on this host; what is missing is named.
pub fn probe() -> Result<()> {
    if Architecture::host() != Some(Architecture::X86_64) {
        return Err(Error::new(Kind::Unsupported, "cannot export an image")
            .because("a disk is made for x86-64 only, and an image of this host's is not"));
    }
    let mut tools = grub::TOOLS.to_vec();
    tools.extend([("qemu-img", "qemu-utils"), ("mke2fs", "e2fsprogs")]);
    tool::require("export an image", &tools)
}

/// The kernel asked for, else the newest that has the drivers of every hypervisor; [`Kind::NotFound`] where there is none.
pub fn kernel(store: &Store, requested: Option<&str>) -> Result<Kernel> {
    let kernel = match requested {
        Some(name) => store.get(&name.parse()?)?,
        None => store
            .list()?
            .into_iter()
            .filter_map(|entry| entry.kernel.ok())
            .filter(|kernel| kernel.architecture == Architecture::X86_64 && drivers::fits(kernel))
            .max_by_key(|kernel| crate::kernel::release_key(&kernel.release))
            .ok_or_else(|| {
                Error::new(Kind::NotFound, "cannot find a kernel for every hypervisor")
                    .hint(format!("`luna kernel fetch {PACKAGE}` takes the distribution's"))
            })?,
    };
    kernel.verify(Trust::Changed)?;
    Ok(kernel)
}

/// Makes the disk. What was at its path is replaced when all is well.
pub fn export(export: &Export<'_>, progress: Sink) -> Result<Exported> {
    probe()?;
    let modules = drivers::drivers(export.kernel)?;
    let parent = match export.output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let work = Work::new(parent)?;
    let base = fs::metadata(export.base)
        .map_err(|e| Error::io(format!("cannot read `{}`", export.base.display()), e))?
        .len();
    let content = identity(export);
    let (base_name, upper_name) = layout::names(&content);
    let told = Standalone {
        version: standalone::VERSION,
        base: base_name,
        upper: upper_name,
        setup: setup(&export.hostname),
        process: export.process.clone(),
    };
    step(
        progress,
        "loader",
        "Making the boot loader and the initial root",
        || {
            let parts = parts(export, &work, &modules, &told, &content)?;
            let layout = layout::plan(&content, parts.efi_size, base, WRITABLE, export.size)?;
            write_small(&work, &layout, &parts, &content)?;
            Ok(layout)
        },
    )
    .and_then(|layout| finish(export, &work, &layout, progress))
}

fn finish(export: &Export<'_>, work: &Work, layout: &layout::Layout, progress: Sink) -> Result<Exported> {
    let raw = work.path("disk.raw");
    copy_base(export.base, &raw, layout.base.start, progress)?;
    step(progress, "data", "Making the writable file system", || {
        disk::format_part(&raw, Some((layout.upper.start, layout.upper.length)))
    })?;
    let made = if export.format == Format::Raw {
        raw
    } else {
        let target = work.path("disk");
        let label = format!("Writing it as {}", export.format.as_str());
        step(progress, "format", &label, || {
            format::convert(&raw, export.format, &target)
        })?;
        target
    };
    let fail = |e| Error::io(format!("cannot write `{}`", export.output.display()), e);
    let file = File::open(&made).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    let taken = Bytes(file.metadata().map_err(fail)?.blocks() * 512);
    fs::rename(&made, export.output).map_err(fail)?;
    Ok(Exported {
        path: export.output.to_owned(),
        format: export.format,
        size: Bytes(layout.size),
        taken,
    })
}

/// One piece of the work, told as it begins and ends.
fn step<T>(progress: Sink, key: &str, label: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let (key, label) = (key.to_owned(), label.to_owned());
    progress(Progress::Started {
        key: key.clone(),
        label: label.clone(),
        total: None,
    });
    let done = act()?;
    progress(Progress::Finished { key, label });
    Ok(done)
}

/// What the disk's ids are made of: disks of other content have others, so that two of them in one machine are told apart.
fn identity(export: &Export<'_>) -> [u8; 32] {
    let mut digest = Sha256::new();
    // The store names a disk by its content.
    let name = export.base.file_name().unwrap_or_default();
    for text in [
        &*name.to_string_lossy(),
        &export.kernel.manifest().image.sha256,
        &export.hostname,
        &format!("{:?}", export.process),
    ] {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    }
    digest.finalize().into()
}

fn setup(hostname: &str) -> Setup {
    let file = |target: &str, content: String| SetupFile {
        target: target.to_owned(),
        content: content.into_bytes(),
    };
    let hosts =
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n");
    Setup {
        version: MACHINE_VERSION,
        entropy: Vec::new(),
        now: std::time::Duration::ZERO,
        hostname: hostname.to_owned(),
        read_only: false,
        files: vec![
            file("/etc/hosts", hosts),
            file("/etc/hostname", format!("{hostname}\n")),
            file(RESOLVER, String::new()),
        ],
        mounts: Vec::new(),
        sockets: Vec::new(),
        shared_memory: SHARED_MEMORY,
        limits: GuestLimits::default(),
        privileged: false,
    }
}

/// Everything that goes before the image.
struct Parts {
    marker: String,
    loader: Vec<u8>,
    configuration: String,
    kernel: Vec<u8>,
    initrd: Vec<u8>,
    efi_size: u64,
}

fn parts(
    export: &Export<'_>,
    work: &Work,
    modules: &[(String, Vec<u8>)],
    told: &Standalone,
    content: &[u8; 32],
) -> Result<Parts> {
    // By this file the loader knows the partition from those of other disks.
    let marker = format!("luna/{}", layout::short(content));
    let archive = initramfs::standalone(export.init, modules, &told.to_bytes());
    let mut initrd = GzEncoder::new(Vec::new(), Compression::default());
    let initrd = initrd
        .write_all(&archive)
        .and_then(|()| initrd.finish())
        .map_err(|e| Error::io("cannot compress the initial root", e))?;
    let kernel = fs::read(&export.kernel.path)
        .map_err(|e| Error::io(format!("cannot read `{}`", export.kernel.path.display()), e))?;
    let loader = grub::efi(&work.directory, &format!("/{marker}"))?;
    Ok(Parts {
        efi_size: esp::size((loader.len() + kernel.len() + initrd.len()) as u64),
        configuration: grub::configuration(COMMAND_LINE),
        marker,
        loader,
        kernel,
        initrd,
    })
}

/// Tables, boot code and the EFI system partition.
fn write_small(work: &Work, layout: &layout::Layout, parts: &Parts, content: &[u8; 32]) -> Result<()> {
    let fail = |e| Error::io("cannot write the disk", e);
    let (boot, core) = grub::bios(
        &work.directory,
        &format!("/{}", parts.marker),
        layout.bios.start,
        layout.bios.length,
    )?;
    let files: [(&str, &[u8]); 5] = [
        ("EFI/BOOT/BOOTX64.EFI", &parts.loader),
        ("luna/grub.cfg", parts.configuration.as_bytes()),
        ("luna/vmlinuz", &parts.kernel),
        ("luna/initrd", &parts.initrd),
        (&parts.marker, b""),
    ];
    let id = u32::from_le_bytes([content[0], content[1], content[2], content[3]]);
    let sector = (layout.efi.start / layout::SECTOR) as u32;
    let efi = esp::build(layout.efi.length, sector, id, &files)?;
    let file = File::options()
        .write(true)
        .create_new(true)
        .open(work.path("disk.raw"))
        .map_err(fail)?;
    file.set_len(layout.size).map_err(fail)?;
    let (first, (at, second)) = layout.tables();
    for (at, bytes) in [
        (0, &layout.protective(&boot)[..]),
        (layout::SECTOR, &first),
        (at, &second),
        (layout.bios.start, &core),
    ] {
        file.write_all_at(bytes, at).map_err(fail)?;
    }
    write_sparse(&file, &efi, layout.efi.start).map_err(fail)
}

const PIECE: usize = 64 << 10;

/// Leaves out what is zero: the file is new and has nothing else there.
fn write_sparse(file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
    for (number, piece) in bytes.chunks(PIECE).enumerate() {
        if piece.iter().any(|byte| *byte != 0) {
            file.write_all_at(piece, at + (number * PIECE) as u64)?;
        }
    }
    Ok(())
}

fn copy_base(base: &Path, raw: &Path, at: u64, progress: Sink) -> Result<()> {
    let fail = |e| Error::io("cannot put the image on the disk", e);
    let mut from = File::open(base).map_err(fail)?;
    let to = File::options().write(true).open(raw).map_err(fail)?;
    let key = "base".to_owned();
    let label = "Putting the image on the disk".to_owned();
    progress(Progress::Started {
        key: key.clone(),
        label: label.clone(),
        total: Some(from.metadata().map_err(fail)?.len()),
    });
    let mut buffer = vec![0; 4 << 20];
    let mut done = 0;
    loop {
        let count = from.read(&mut buffer).map_err(fail)?;
        if count == 0 {
            break;
        }
        write_sparse(&to, &buffer[..count], at + done).map_err(fail)?;
        done += count as u64;
        progress(Progress::Advanced {
            key: key.clone(),
            done,
        });
    }
    progress(Progress::Finished { key, label });
    Ok(())
}

/// A directory beside the output, on the same file system; gone on drop.
struct Work {
    directory: PathBuf,
}

impl Work {
    fn new(parent: &Path) -> Result<Work> {
        let directory = parent.join(format!(".luna-export-{}", std::process::id()));
        fs::create_dir(&directory)
            .map_err(|e| Error::io(format!("cannot write in `{}`", parent.display()), e))?;
        Ok(Work { directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
