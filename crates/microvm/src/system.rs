//! A disk image with a system of its own, from its bundle to its end. Nothing of Luna's runs in it: what there is of it is
//! what a computer has outside, a serial console, a network plug and a power button.
//!
//! ```text
//! host  │ supervisor ── serial console ── QEMU in its jail ── base (read-only) under upper.qcow2
//!       │      └─ TCP, by a socket made in the jail's network namespace ── 127.0.0.1:20000… ── QEMU's user network
//! ──────┼───────────────────────────────────────────────────────────────────────────────────────────
//! guest │ SeaBIOS or OVMF ── boot loader ── its kernel ── its init           10.0.2.15 by DHCP
//! ```
//! The network reaches nobody: QEMU's `restrict` closes the guest in, and QEMU's namespace has a loopback alone.

mod command;
mod firmware;
pub mod qcow2;

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use luna_core::engine::{
    Accelerator, Condition, Control, DiskFormat, Outside, System, SystemBundle, SystemControl, SystemDisk,
    Usage,
};
use luna_core::process::ExitStatus;
use luna_core::spec::Resources;
use luna_core::units::Bytes;
use luna_core::{Error, Kind, Result};
use luna_jail::spec::Landlock;
use luna_jail::{Handle, Jailed};

use crate::disk;
use crate::qemu::Qemu;
use crate::qmp::{Monitor, News};
use crate::tail::Tail;
use crate::vmm::{self, Vmm, cannot_connect};

use command::{FIRST_PORT, Machine};

/// Ports of one guest that can be reached.
const MOST_PORTS: usize = 1024;

/// What a disk image is, by its first bytes; refused where it cannot be booted safely.
pub fn format(path: &Path) -> Result<DiskFormat> {
    look(&fs::File::open(path).map_err(|e| cannot_read(path, e))?, path).map(|(format, _)| format)
}

fn cannot_read(path: &Path, error: std::io::Error) -> Error {
    Error::io(format!("cannot open the disk `{}`", path.display()), error)
}

/// Its format and the size of the disk in it. Only regular files: a device would be the host's own disk.
fn look(mut file: &fs::File, path: &Path) -> Result<(DiskFormat, Bytes)> {
    let refuse = |why: &'static str| {
        Error::new(
            Kind::InvalidInput,
            format!("cannot boot the disk `{}`", path.display()),
        )
        .because(why)
    };
    let metadata = file.metadata().map_err(|e| cannot_read(path, e))?;
    if !metadata.is_file() {
        return Err(refuse("it is no regular file"));
    }
    let mut start = Vec::with_capacity(qcow2::HEADER);
    file.by_ref()
        .take(qcow2::HEADER as u64)
        .read_to_end(&mut start)
        .map_err(|e| cannot_read(path, e))?;
    match qcow2::parse(&start) {
        Ok(Some(image)) => Ok((DiskFormat::Qcow2, image.size)),
        Ok(None) if metadata.len() < 512 => Err(refuse("it is smaller than one sector")),
        Ok(None) => Ok((DiskFormat::Raw, Bytes(metadata.len().next_multiple_of(512)))),
        Err(refusal) => {
            let error = refuse(refusal.because());
            Err(match refusal.fix(path) {
                Some(fix) => error.hint(fix),
                None => error,
            })
        }
    }
}

/// Opens both halves of the disk; the upper one is made where it is not there.
fn open_disk(asked: &SystemDisk) -> Result<(OwnedFd, OwnedFd)> {
    let base = disk::open_base(&asked.base)?;
    let base = fs::File::from(base);
    let (format, size) = look(&base, &asked.base)?;
    if format != asked.format {
        return Err(Error::new(
            Kind::Conflict,
            format!("cannot boot the disk `{}`", asked.base.display()),
        )
        .because("it is of another format than it was a moment ago"));
    }
    if !asked.upper.exists() {
        let size = Bytes(size.0.max(asked.least_size.0).next_multiple_of(512));
        make_upper(&asked.upper, &qcow2::overlay(size, &asked.base, format))?;
    }
    let upper = disk::lock_upper(&asked.upper)?;
    let upper = fs::File::from(upper);
    // What a guest left of it is not to be believed: it is a disk of ours, or none.
    let mut start = Vec::with_capacity(qcow2::HEADER);
    (&upper)
        .take(qcow2::HEADER as u64)
        .read_to_end(&mut start)
        .map_err(|e| cannot_read(&asked.upper, e))?;
    if !qcow2::is_overlay(&start) {
        return Err(Error::new(
            Kind::Corrupt,
            format!("cannot use the disk `{}`", asked.upper.display()),
        )
        .because("its header is not what Luna wrote")
        .hint("remove the sandbox, or that file: what was written to the disk is lost then"));
    }
    Ok((base.into(), upper.into()))
}

fn make_upper(path: &Path, overlay: &qcow2::Overlay) -> Result<()> {
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    let new = path.with_extension("new");
    let make = || -> std::io::Result<()> {
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        for (offset, bytes) in &overlay.pieces {
            file.write_all_at(bytes, *offset)?;
        }
        file.set_len(overlay.length)?;
        fs::rename(&new, path)
    };
    make().map_err(|e| {
        let _ = fs::remove_file(&new);
        Error::io(format!("cannot make the disk `{}`", path.display()), e)
    })
}

/// A running system. Drop kills it.
pub(crate) struct Running {
    jail: Jailed,
    console: Option<OwnedFd>,
    monitor: Arc<Monitor>,
    heard: Arc<Heard>,
    errors: Tail,
    memory: Bytes,
    ports: Arc<[u16]>,
}

/// What QEMU has said of its machine.
#[derive(Debug, Default)]
struct Heard {
    panicked: AtomicBool,
    /// Why the machine stands still, and whether for want of space.
    halted: Mutex<Option<(bool, String)>>,
}

impl Heard {
    fn hear(&self, news: News) {
        let mut halted = self.halted.lock().unwrap_or_else(PoisonError::into_inner);
        match news {
            News::Panicked => self.panicked.store(true, Ordering::Release),
            News::Halted { full, reason } => *halted = Some((full, reason)),
            News::GoesOn => *halted = None,
            News::VolumeGone => {}
        }
    }

    fn halted(&self) -> Option<(bool, String)> {
        self.halted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub(crate) fn boot(accelerator: Accelerator, bundle: &SystemBundle) -> Result<Running> {
    let resources = &bundle.resources;
    if bundle.ports.len() > MOST_PORTS {
        return Err(Error::new(
            Kind::InvalidInput,
            format!("cannot reach {} ports of the system", bundle.ports.len()),
        )
        .because(format!("there is room for {MOST_PORTS}")));
    }
    let memory = resources.memory.map_or_else(vmm::default_memory, |asked| {
        Bytes(asked.0.next_multiple_of(1 << 20))
    });
    let qemu = Qemu::find()?;
    let firmware = firmware::open(&bundle.firmware)?;
    let (base, upper) = open_disk(&bundle.disk)?;
    let pair = || UnixStream::pair().map_err(cannot_connect);
    let (monitor, monitor_end) = pair()?;
    let (console, console_end) = pair()?;
    let machine = Machine {
        accelerator,
        processors: vmm::processors(resources),
        memory,
        base: bundle.disk.format,
        uefi: firmware.is_some(),
        ports: bundle.ports.clone(),
    };
    let mut descriptors: Vec<OwnedFd> = vec![monitor_end.into(), console_end.into(), base, upper];
    if let Some(firmware) = firmware {
        descriptors.extend([firmware.code, firmware.variables]);
    }
    let (jail, errors) = Vmm {
        id: &bundle.id,
        ids: bundle.ids,
        accelerator,
        arguments: machine.arguments(),
        descriptors,
        limits: vmm::limits(accelerator, resources, memory),
        // It listens, on the loopback of its own namespace.
        landlock: Landlock::ReadOnlyFiles,
    }
    .launch(&qemu)?;
    let heard = Arc::new(Heard::default());
    let news = Arc::clone(&heard);
    let monitor = Monitor::start(monitor, move |said| news.hear(said)).map_err(cannot_connect)?;
    Ok(Running {
        jail,
        console: Some(console.into()),
        monitor: Arc::new(monitor),
        heard,
        errors,
        memory,
        ports: bundle.ports.as_slice().into(),
    })
}

impl System for Running {
    fn console(&mut self) -> Result<OwnedFd> {
        self.console.take().ok_or_else(|| {
            Error::new(Kind::Conflict, "cannot take the console").because("it was taken before")
        })
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let status = self.jail.wait()?;
        if self.heard.panicked.load(Ordering::Acquire) {
            return Err(
                Error::new(Kind::Unavailable, "cannot go on: the guest's kernel panicked")
                    .because("it said so to QEMU")
                    .hint("what it said last is on its console: `luna logs`"),
            );
        }
        match status {
            ExitStatus::Code(0) => Ok(status),
            _ => Err(
                match (vmm::out_of_memory(&self.jail.handle()), self.heard.halted()) {
                    (Some(error), _) => error,
                    (None, Some((full, reason))) => vmm::halted(full, reason),
                    (None, None) => vmm::gone(&self.jail, || self.errors.lines().pop()),
                },
            ),
        }
    }

    fn control(&self) -> Arc<dyn SystemControl> {
        Arc::new(Remote {
            jail: self.jail.handle(),
            monitor: Arc::clone(&self.monitor),
            heard: Arc::clone(&self.heard),
            memory: self.memory,
            ports: Arc::clone(&self.ports),
        })
    }
}

struct Remote {
    jail: Handle,
    monitor: Arc<Monitor>,
    heard: Arc<Heard>,
    memory: Bytes,
    ports: Arc<[u16]>,
}

impl SystemControl for Remote {
    fn connect(&self, port: u16) -> Result<OwnedFd> {
        let place = self
            .ports
            .iter()
            .position(|known| *known == port)
            .ok_or_else(|| {
                Error::new(
                    Kind::NotFound,
                    format!("cannot connect to port {port} of the system"),
                )
                .because("it was not named when the system was started")
            })?;
        let socket = self.jail.tcp_socket()?;
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, FIRST_PORT + place as u16);
        rustix::net::connect(&socket, &address)
            .map_err(|e| Error::io(format!("cannot connect to port {port} of the system"), e))?;
        Ok(socket)
    }

    fn power_off(&self) -> Result<()> {
        self.monitor
            .power_button()
            .map_err(|e| Error::io("cannot press the power button", e))
    }
}

impl Control for Remote {
    fn kill(&self) -> Result<()> {
        self.jail.kill()
    }

    fn pause(&self) -> Result<()> {
        self.jail.pause()
    }

    fn resume(&self) -> Result<()> {
        self.jail.resume()?;
        if self.heard.halted().is_some() {
            self.monitor
                .go_on()
                .map_err(|e| Error::io("cannot let the machine go on", e))?;
        }
        Ok(())
    }

    /// What the host spends on the machine: nobody inside counts for Luna.
    fn usage(&self) -> Result<Usage> {
        Ok(Usage {
            memory_limit: Some(self.memory),
            pids: None,
            pids_limit: None,
            ..self.jail.usage()?
        })
    }

    fn update(&self, resources: &Resources) -> Result<()> {
        let kept = |asked: Bytes| asked.0.next_multiple_of(1 << 20) == self.memory.0;
        if !resources.memory.is_none_or(kept) {
            return Err(
                Error::new(Kind::Unsupported, "cannot change the memory of a running system")
                    .because(format!("it was started with {}", self.memory))
                    .hint("stop it, change the limit, start it again"),
            );
        }
        self.jail.update(&vmm::changeable(resources))
    }

    fn outside(&self) -> Result<Outside> {
        self.jail.outside()
    }

    /// A halt is told by whoever resumes it; no init is there to fall silent.
    fn next_condition(&self) -> Option<Condition> {
        None
    }
}
