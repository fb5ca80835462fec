//! One machine from its bundle to its end.
//!
//! ```text
//! start: disks, descriptors ─▶ QEMU in its jail ─▶ Hello ─▶ Setup ─▶ Ready
//! settle: everything is on the disks ─▶ Ended
//! wait:  Ended ─▶ its status       QEMU gone before ─▶ why: panic, out of memory, killed, its own last words
//! drop:  QEMU is killed, its jail and its volumes' go with it; the writable disk's journal keeps it consistent
//! ```

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use luna_core::engine::{
    Accelerator, Bundle, Condition, Control, Disk, Endpoint, Instance, Mount, Outside, Root, Usage,
};
use luna_core::name::Id;
use luna_core::process::ExitStatus;
use luna_core::spec::{PidsLimit, Resources};
use luna_core::units::Bytes;
use luna_core::{Error, Kind, Result};
use luna_guest::protocol::machine::{
    Command, GuestLimits, MACHINE_VERSION, Report, Setup, SetupFailure, SetupFile, SetupMount, SetupStage,
};
use luna_jail::spec::Limits;
use luna_jail::{Handle, Jailed};
use rustix::event::{PollFd, PollFlags};

use crate::command;
use crate::kernel::Kernel;
use crate::qemu::Qemu;
use crate::qmp::{Monitor, News};
use crate::report::{Reports, Trouble};
use crate::tail::Tail;
use crate::vmm::{self, Vmm, cannot_connect};
use crate::volume::{self, Volume};
use crate::watch;
use crate::{clock, disk, kernel};

/// What kernel and init need beside what was asked for.
const RESERVE: Bytes = Bytes::mebibytes(48);
const SHARED_MEMORY: Bytes = Bytes::mebibytes(64);
const PIDS: u32 = 4096;
/// A cold boot takes one to three seconds on an idle machine, by software emulation; many at once take longer.
const BOOT: Duration = Duration::from_secs(180);
const SETUP: Duration = Duration::from_secs(120);
/// How long the guest may take to count.
const ANSWER: Duration = Duration::from_secs(10);
/// How soon a machine halts again after it was let go on, where nothing has changed.
const RETRY: Duration = Duration::from_secs(3);
const KILL: u8 = 9;
/// How long the last words of a QEMU that is gone may take to arrive.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// A process of its own for each, with a cgroup named after the machine's.
pub(crate) const MOST_VOLUMES: usize = 24;

/// A running machine. Drop kills it.
pub(crate) struct Running {
    /// Before the volumes: their daemons outlive their only client.
    jail: Jailed,
    _volumes: Vec<Volume>,
    reports: Reports,
    monitor: Arc<Monitor>,
    console: Tail,
    errors: Tail,
    channel: Option<OwnedFd>,
    memory: Bytes,
    memory_asked: Option<Bytes>,
    paused: Arc<AtomicBool>,
    boots: u32,
}

pub(crate) fn start(accelerator: Accelerator, bundle: &Bundle, boots: u32) -> Result<Running> {
    let plan = Plan::of(accelerator, bundle)?;
    let qemu = Qemu::find()?;
    let Root::Disk(disks) = &bundle.root else {
        return Err(Error::new(
            Kind::Internal,
            "cannot use a tree as a machine's root",
        ));
    };
    let kernel = open_kernel(&disks.kernel)?;
    let (mut descriptors, ends) = descriptors(bundle, disks, &kernel)?;
    let mut volumes = volumes(bundle)?;
    for volume in &mut volumes {
        descriptors.push(volume.connection()?);
    }
    let machine = command::Machine {
        accelerator,
        processors: plan.processors,
        memory: plan.memory,
        kernel_arguments: kernel_arguments(&kernel, accelerator),
        modules: disks.modules.is_some(),
        volumes: volumes.len(),
    };
    let (jail, errors) = Vmm {
        id: &bundle.id,
        ids: bundle.ids,
        accelerator,
        arguments: machine.arguments(),
        descriptors,
        limits: plan.limits,
        landlock: vmm::LANDLOCK,
    }
    .launch(&qemu)?;

    let reports = Reports::listen(ends.machine).map_err(cannot_connect)?;
    watch_volumes(&volumes, &reports, jail.handle()).map_err(cannot_connect)?;
    let news = reports.clone();
    let monitor = Monitor::start(ends.monitor, move |heard| news.hear(heard)).map_err(cannot_connect)?;
    let setup = setup(bundle, disks, &volumes, plan.guest)?;
    let mut running = Running {
        jail,
        _volumes: volumes,
        reports,
        monitor: Arc::new(monitor),
        console: Tail::of("console", ends.console).map_err(cannot_connect)?,
        errors,
        channel: Some(ends.channel.into()),
        memory: plan.memory,
        memory_asked: bundle.resources.memory,
        paused: Arc::default(),
        boots,
    };
    running.boot(&setup, disks)?;
    watch::start(&running.reports, &running.paused, watch::RHYTHM).map_err(cannot_connect)?;
    Ok(running)
}

/// The kernel's own words, and what only this host can tell it.
fn kernel_arguments(kernel: &Kernel, accelerator: Accelerator) -> String {
    let words = kernel.command_line(accelerator);
    let emulated = accelerator == Accelerator::Tcg;
    match emulated.then(clock::counter_khz).flatten() {
        Some(khz) => format!("{words} tsc_early_khz={khz}"),
        None => words,
    }
}

/// What follows from the bundle alone.
struct Plan {
    processors: u32,
    memory: Bytes,
    limits: Limits,
    guest: GuestLimits,
}

impl Plan {
    fn of(accelerator: Accelerator, bundle: &Bundle) -> Result<Plan> {
        let unsupported = |what: &str, why: &str, hint: &str| {
            Err(Error::new(Kind::Unsupported, format!("cannot {what} in a VM"))
                .because(why.to_owned())
                .hint(hint.to_owned()))
        };
        if matches!(bundle.endpoint, Endpoint::Host) {
            return unsupported(
                "use the host's network",
                "a machine has a network stack of its own",
                "drop `--network host`, or use `--isolation container`",
            );
        }
        if !bundle.confinement.devices.is_empty() {
            return unsupported(
                "use a device node of the host",
                "its driver is in the host's kernel",
                "drop `--device`, or use `--isolation container`",
            );
        }
        let confinement = &bundle.confinement;
        if confinement.apparmor.is_some() || confinement.selinux.is_some() {
            return unsupported(
                "apply a label of the host's security module",
                "the processes it is meant for run under a kernel of their own",
                "drop the label from `--security-opt`",
            );
        }
        let resources = &bundle.resources;
        let memory = guest_memory(resources.memory);
        Ok(Plan {
            processors: vmm::processors(resources),
            memory,
            limits: vmm::limits(accelerator, resources, memory),
            guest: guest_limits(resources),
        })
    }
}

/// The size of the guest's memory in whole mebibytes.
fn guest_memory(asked: Option<Bytes>) -> Bytes {
    let Some(asked) = asked else {
        return vmm::default_memory();
    };
    // The kernel keeps 64 bytes for each page of 4 KiB.
    Bytes((asked.0 + asked.0 / 32 + RESERVE.0).next_multiple_of(2 << 20))
}

fn guest_limits(resources: &Resources) -> GuestLimits {
    GuestLimits {
        memory: resources.memory,
        pids: match resources.pids {
            Some(PidsLimit::At(most)) => Some(most),
            Some(PidsLimit::Unlimited) => None,
            None => Some(PIDS),
        },
    }
}

/// The host's ends.
struct Ends {
    machine: UnixStream,
    channel: UnixStream,
    monitor: UnixStream,
    console: UnixStream,
}

/// What QEMU inherits, in the order of its command line.
fn descriptors(bundle: &Bundle, disks: &Disk, kernel: &Kernel) -> Result<(Vec<OwnedFd>, Ends)> {
    let pair = || UnixStream::pair().map_err(cannot_connect);
    let (machine, machine_end) = pair()?;
    let (channel, channel_end) = pair()?;
    let (monitor, monitor_end) = pair()?;
    let (console, console_end) = pair()?;
    let mut all: Vec<OwnedFd> = vec![
        machine_end.into(),
        channel_end.into(),
        monitor_end.into(),
        console_end.into(),
        disk::open_base(&kernel.path)?,
        initramfs(bundle, kernel)?,
        disk::open_base(&disks.base)?,
        disk::open_upper(&disks.upper, disks.upper_size)?,
    ];
    if let Some(modules) = &disks.modules {
        all.push(disk::open_base(modules)?);
    }
    let ends = Ends {
        machine,
        channel,
        monitor,
        console,
    };
    Ok((all, ends))
}

/// The kernel in this directory of a kernel store, verified.
fn open_kernel(directory: &Path) -> Result<Kernel> {
    let lost = || {
        Error::new(
            Kind::NotFound,
            format!("cannot find a kernel in `{}`", directory.display()),
        )
    };
    let name = directory
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(lost)?;
    let store = kernel::Store::open(directory.parent().ok_or_else(lost)?);
    store.choose(Some(name))
}

/// Init and the kernel's modules, in a file of memory.
fn initramfs(bundle: &Bundle, kernel: &Kernel) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", bundle.init.as_raw_fd());
    let init = std::fs::read(path).map_err(|e| Error::io("cannot read `luna-init`", e))?;
    luna_jail::sealed_bytes(&kernel::initramfs(&init, kernel)?)
}

/// The name of a volume's jail; [`reclaim`] knows them all.
fn volume_name(id: &Id, number: usize) -> String {
    format!("{id}-volume{number}")
}

/// Removes what a killed supervisor could not.
pub(crate) fn reclaim(id: &Id) -> Result<()> {
    for number in 0..MOST_VOLUMES {
        luna_jail::reclaim(&volume_name(id, number))?;
    }
    luna_jail::reclaim(id.as_str())
}

/// Serves every bind mount, in their order.
fn volumes(bundle: &Bundle) -> Result<Vec<Volume>> {
    let binds: Vec<_> = bundle
        .mounts
        .iter()
        .filter_map(|mount| match mount {
            Mount::Bind {
                source, read_only, ..
            } => Some((source, *read_only)),
            Mount::Tmpfs { .. } => None,
        })
        .collect();
    if binds.len() > MOST_VOLUMES {
        return Err(Error::new(
            Kind::InvalidInput,
            format!("cannot mount {} volumes in a VM", binds.len()),
        )
        .because(format!("a machine has room for {MOST_VOLUMES}")));
    }
    binds
        .into_iter()
        .enumerate()
        .map(|(number, (path, read_only))| {
            let source = volume::Source {
                number,
                path,
                read_only,
            };
            let name = volume_name(&bundle.id, number);
            volume::serve(&name, &source, bundle.ids, Limits::default())
        })
        .collect()
}

/// Ends the machine when one of its volumes' daemons is gone: its guest would wait for ever.
fn watch_volumes(volumes: &[Volume], reports: &Reports, machine: Handle) -> std::io::Result<()> {
    if volumes.is_empty() {
        return Ok(());
    }
    let mut daemons = Vec::with_capacity(volumes.len());
    for volume in volumes {
        daemons.push(volume.pidfd().try_clone_to_owned()?);
    }
    let reports = reports.clone();
    std::thread::Builder::new()
        .name("volumes".to_owned())
        .stack_size(64 << 10)
        .spawn(move || {
            let mut set: Vec<_> = daemons
                .iter()
                .map(|daemon| PollFd::new(daemon, PollFlags::IN))
                .collect();
            while rustix::event::poll(&mut set, None) == Err(rustix::io::Errno::INTR) {}
            reports.hear(News::VolumeGone);
            let _ = machine.kill();
        })
        .map(drop)
}

fn setup(bundle: &Bundle, disks: &Disk, volumes: &[Volume], limits: GuestLimits) -> Result<Setup> {
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| {
            Error::new(
                Kind::InvalidInput,
                format!("cannot use the path `{}`", path.display()),
            )
            .because("it is not UTF-8")
        })
    };
    let mut entropy = vec![0; 256];
    rustix::rand::getrandom(&mut entropy[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::io("cannot get random bytes", e))?;
    let mut mounts = Vec::with_capacity(bundle.mounts.len());
    let mut volumes = volumes.iter();
    for mount in &bundle.mounts {
        mounts.push(match mount {
            Mount::Bind {
                target, read_only, ..
            } => {
                let volume = volumes.next().expect("one is served for each");
                SetupMount::Volume {
                    tag: volume.tag(),
                    target: text(target)?,
                    read_only: *read_only,
                    file: volume.file().map(str::to_owned),
                }
            }
            Mount::Tmpfs {
                target,
                size,
                mode,
                executable,
            } => SetupMount::Tmpfs {
                target: text(target)?,
                size: *size,
                mode: *mode,
                executable: *executable,
            },
        });
    }
    Ok(Setup {
        version: MACHINE_VERSION,
        entropy,
        now: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        hostname: bundle.hostname.clone(),
        read_only: disks.read_only,
        files: bundle
            .files
            .iter()
            .map(|file| {
                Ok(SetupFile {
                    target: text(&file.target)?,
                    content: file.content.clone(),
                })
            })
            .collect::<Result<_>>()?,
        mounts,
        sockets: disks
            .sockets
            .iter()
            .map(|path| text(path))
            .collect::<Result<_>>()?,
        shared_memory: bundle.resources.shm.unwrap_or(SHARED_MEMORY),
        limits,
        privileged: bundle.confinement.privileged,
    })
}

impl Running {
    /// From QEMU running to init waiting for the host's first message.
    fn boot(&mut self, setup: &Setup, disks: &Disk) -> Result<()> {
        let cannot = |error: Error| error.context("cannot boot the machine");
        match self.reports.next(BOOT) {
            Some(Report::Hello { version, .. }) if version == MACHINE_VERSION => {}
            Some(Report::Failed(failure)) => return Err(cannot(explain(&failure, disks))),
            Some(_) => {
                return Err(cannot(
                    Error::new(Kind::Corrupt, "cannot understand the machine")
                        .because("its init is of another version"),
                ));
            }
            None => return Err(cannot(self.post_mortem())),
        }
        self.reports.tell(setup).map_err(|_| cannot(self.post_mortem()))?;
        match self.reports.next(SETUP) {
            Some(Report::Ready) => Ok(()),
            Some(Report::Failed(failure)) => Err(cannot(explain(&failure, disks))),
            Some(_) => Err(cannot(
                Error::new(Kind::Corrupt, "cannot understand the machine")
                    .because("its answer was out of place"),
            )),
            None => Err(cannot(self.post_mortem())),
        }
    }

    /// Why the machine is not there any more, or does not answer.
    fn post_mortem(&self) -> Error {
        if self.reports.is_gone() {
            // QEMU is on its way out, and its last words on theirs.
            for tail in [&self.console, &self.errors] {
                tail.await_end(LAST_WORDS);
            }
        }
        if let Some(panic) = self.console.find("Kernel panic") {
            return Error::new(Kind::Unavailable, "cannot go on: the guest's kernel panicked").because(panic);
        }
        let trouble = self.reports.trouble();
        if trouble == Some(Trouble::Panicked) {
            return Error::new(Kind::Unavailable, "cannot go on: the guest's kernel panicked")
                .because("it said so to QEMU and nothing on its console");
        }
        if let Some((full, reason)) = self.reports.halted() {
            return vmm::halted(full, reason);
        }
        if trouble == Some(Trouble::VolumeGone) {
            // Nobody's loss that another boot could make good: something ended it.
            return Error::new(Kind::Interrupted, "cannot go on: a volume is gone")
                .because("the process that served it has ended, and with it the machine");
        }
        if trouble == Some(Trouble::Garbage) {
            return Error::new(Kind::Corrupt, "cannot go on: the machine spoke out of turn")
                .because("what it sent is no report of its init's");
        }
        if let Some(error) = vmm::out_of_memory(&self.jail.handle()) {
            return error;
        }
        if !self.reports.is_gone() {
            return Error::new(Kind::TimedOut, "cannot go on: the guest does not answer")
                .because("neither its kernel nor its first process has said anything for a long time");
        }
        vmm::gone(&self.jail, || {
            self.errors.lines().pop().or_else(|| self.console.lines().pop())
        })
    }
}

/// The guest's own account of a start that failed.
fn explain(failure: &SetupFailure, disks: &Disk) -> Error {
    let subject: String = failure
        .subject
        .chars()
        .filter(|letter| !letter.is_control())
        .take(300)
        .collect();
    let cause = std::io::Error::from_raw_os_error(failure.errno);
    let said = match failure.stage {
        SetupStage::Setup => "read what it is to become".to_owned(),
        SetupStage::Module => format!("load the kernel module `{subject}`"),
        SetupStage::Entropy => "take the host's entropy".to_owned(),
        SetupStage::Clock => "set its clock".to_owned(),
        SetupStage::Base => format!("mount the image's disk `{}`", disks.base.display()),
        SetupStage::Upper => format!("mount the writable disk `{}`", disks.upper.display()),
        SetupStage::Overlay => "lay the writable disk over the image's".to_owned(),
        SetupStage::Volume => format!("mount the volume at `{subject}`"),
        SetupStage::Mount => format!("mount `{subject}`"),
        SetupStage::File => format!("put its own file at `{subject}`"),
        SetupStage::Socket => format!("offer the socket `{subject}`"),
        SetupStage::Device => format!("open or make the device `{subject}`"),
        SetupStage::Limits => format!("set the limit `{subject}`"),
        SetupStage::Network => "bring up its loopback".to_owned(),
        SetupStage::Process => format!("start init ({subject})"),
    };
    let damaged = matches!(failure.stage, SetupStage::Base | SetupStage::Upper);
    let error = Error::io(format!("the guest cannot {said}"), cause);
    match failure.stage {
        SetupStage::Base if damaged => {
            error.hint("the disk is damaged; delete it and it is made again from the image's layers")
        }
        SetupStage::Upper => error.hint(format!(
            "the sandbox's own data is damaged: `e2fsck -fy {}` repairs what can be repaired",
            disks.upper.display()
        )),
        _ => error,
    }
}

impl Instance for Running {
    fn channel(&mut self) -> Result<OwnedFd> {
        self.channel.take().ok_or_else(|| {
            Error::new(Kind::Conflict, "cannot take the channel to init").because("it was taken before")
        })
    }

    /// The guest's kernel writes out what it still holds before the machine says its last word.
    fn settle(&mut self, patience: Duration) {
        self.reports.await_last_word(patience);
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        match self.reports.wait() {
            Some(status) => Ok(status),
            None if self.reports.was_killed() => Ok(ExitStatus::Signal {
                number: KILL,
                core_dumped: false,
            }),
            None => Err(self.post_mortem()),
        }
    }

    fn control(&self) -> Box<dyn Control> {
        Box::new(Remote {
            jail: self.jail.handle(),
            reports: self.reports.clone(),
            monitor: Arc::clone(&self.monitor),
            memory: self.memory,
            memory_asked: self.memory_asked,
            paused: Arc::clone(&self.paused),
            boots: self.boots,
        })
    }
}

struct Remote {
    jail: Handle,
    reports: Reports,
    monitor: Arc<Monitor>,
    memory: Bytes,
    memory_asked: Option<Bytes>,
    paused: Arc<AtomicBool>,
    boots: u32,
}

impl Control for Remote {
    fn kill(&self) -> Result<()> {
        self.reports.expect_end();
        self.jail.kill()
    }

    /// The whole of QEMU stands still; its guest notices nothing but that time has passed.
    fn pause(&self) -> Result<()> {
        self.jail.pause()?;
        self.paused.store(true, Ordering::Release);
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        self.jail.resume()?;
        self.paused.store(false, Ordering::Release);
        if self.reports.halted().is_none() {
            return Ok(());
        }
        self.reports.forget_halt();
        self.monitor
            .go_on()
            .map_err(|e| Error::io("cannot let the machine go on", e))?;
        // What was refused is tried again at once.
        match self.reports.halts_again(RETRY) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Processor time is what the host spends on the machine; the rest is counted by the guest.
    fn usage(&self) -> Result<Usage> {
        let host = self.jail.usage()?;
        let guest = match self.reports.ended() {
            Some((_, usage)) => usage,
            None if self.paused.load(Ordering::Acquire) || self.reports.halted().is_some() => {
                return Ok(Usage {
                    memory_limit: self.memory_asked.or(Some(self.memory)),
                    pids: None,
                    pids_limit: None,
                    ..host
                });
            }
            None => match self.reports.ask(Command::Usage, ANSWER)? {
                Some(Report::Usage(usage)) => usage,
                _ => self.reports.ended().map(|(_, usage)| usage).unwrap_or_default(),
            },
        };
        Ok(Usage {
            cpu: host.cpu,
            memory: guest.memory,
            memory_limit: self.memory_asked.or(Some(self.memory)),
            pids: guest.pids,
            pids_limit: None,
            read: guest.read,
            written: guest.written,
            oom_kills: [guest.oom_kills, host.oom_kills]
                .into_iter()
                .flatten()
                .reduce(|inside, outside| inside + outside),
        })
    }

    fn outside(&self) -> Result<Outside> {
        self.jail.outside().map(|outside| Outside {
            boots: self.boots,
            ..outside
        })
    }

    fn next_condition(&self) -> Option<Condition> {
        self.reports.next_condition()
    }

    fn update(&self, resources: &Resources) -> Result<()> {
        if let Some(memory) = resources.memory
            && guest_memory(Some(memory)) > self.memory
        {
            return Err(
                Error::new(Kind::Unsupported, "cannot give the machine more memory")
                    .because(format!("it was started with {}", self.memory))
                    .hint("stop it, change the limit, start it again"),
            );
        }
        let limits = GuestLimits {
            memory: resources.memory,
            pids: match resources.pids {
                Some(PidsLimit::At(most)) => Some(most),
                _ => None,
            },
        };
        if limits != GuestLimits::default() {
            match self.reports.ask(Command::Limit(limits), ANSWER)? {
                Some(Report::Done) => {}
                Some(Report::Failed(failure)) => {
                    return Err(Error::io(
                        "cannot change the guest's limits",
                        std::io::Error::from_raw_os_error(failure.errno),
                    ));
                }
                _ => {
                    return Err(Error::new(Kind::Conflict, "cannot change the guest's limits")
                        .because("it has ended"));
                }
            }
        }
        self.jail.update(&vmm::changeable(resources))
    }
}
