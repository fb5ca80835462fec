//! The machine of an exported disk: no host, no ports. It finds its partitions, its network and its program by itself.
//!
//! ```text
//! modules ─▶ disks, overlay ─▶ network (a child, for good) ─▶ inside + console (children, together one run) ─▶ again
//! ```
//! Init inside is the very one of every sandbox; the *console* child is its host's end: it starts the process, writes what
//! it says to the kernel's consoles, and ends when it does. The first process stays single and only waits: for the end of a
//! run, and for the power button, which stops the program as `luna stop` does and turns the machine off.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use luna_core::process::{ExitStatus, Process};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Signal;

use crate::protocol::standalone::{FILE, RESOLVER, Standalone};
use crate::session::Session;

use super::cgroup::Cgroup;
use super::{Outcome, disks, failure, launch, modules, mounts, network, sys};
use crate::protocol::machine::SetupStage;

/// Disks that spin, and buses that are searched slowly.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a start waits for the network; it goes on without.
const NETWORK: Duration = Duration::from_secs(15);
/// Waits between two runs; a run longer than the longest starts over with the shortest.
const PAUSES: std::ops::Range<Duration> = Duration::from_millis(100)..Duration::from_secs(60);
/// How long the program may take to stop once the power button was pressed.
const GRACE: Duration = Duration::from_secs(10);
/// How long a message is left on the screen before the machine starts over.
const READING: Duration = Duration::from_secs(30);

/// What the disk says this machine is; `None` for a machine with a host.
pub(super) fn told() -> Option<Vec<u8>> {
    std::fs::read(Path::new("/").join(FILE)).ok()
}

/// Runs until the power goes.
pub(super) fn run(told: &[u8]) -> ! {
    match start(told) {
        Ok(machine) => machine.live(),
        Err(why) => say(&why),
    }
    std::thread::sleep(READING);
    sys::turn_off()
}

struct Machine {
    told: Standalone,
    cgroup: Cgroup,
    buttons: Vec<OwnedFd>,
}

/// Why a run is over.
enum End {
    Ended(ExitStatus),
    Button,
}

fn start(told: &[u8]) -> Result<Machine, String> {
    mounts::kernel_file_systems()
        .map_err(|errno| format!("cannot mount the kernel's file systems: {errno}"))?;
    let told = Standalone::parse(told).map_err(|violation| violation.0.to_owned())?;
    modules::load_what_fits();
    let ready = || -> Outcome<Cgroup> {
        disks::mount_partitions(&told.base, &told.upper, PATIENCE)?;
        let cgroup = Cgroup::make(told.setup.limits)?;
        sys::loopback_up().map_err(failure(SetupStage::Network, "lo"))?;
        Ok(cgroup)
    };
    let cgroup = ready().map_err(|failure| explain(&failure))?;
    let resolver = told.setup.files.iter().position(|file| file.target == RESOLVER);
    network::start(&told.setup.hostname, resolver, NETWORK);
    Ok(Machine {
        told,
        cgroup,
        buttons: buttons(),
    })
}

impl Machine {
    fn live(mut self) -> ! {
        let mut pause = PAUSES.start;
        loop {
            self.learn_names();
            let since = Instant::now();
            match self.once() {
                Ok(End::Button) => {
                    say("the power button was pressed");
                    disks::unmount_root();
                    sys::power_off()
                }
                Ok(End::Ended(status)) => say(&format!("the program ended with {}", status.code())),
                Err(why) => say(&why),
            }
            if since.elapsed() > PAUSES.end {
                pause = PAUSES.start;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSES.end);
        }
    }

    /// The network's answer is the content of the sandbox's own file.
    fn learn_names(&mut self) {
        if let Ok(content) = std::fs::read(network::RESOLVER)
            && let Some(file) = self
                .told
                .setup
                .files
                .iter_mut()
                .find(|file| file.target == RESOLVER)
        {
            file.content = content;
        }
    }

    /// One life of the program.
    fn once(&self) -> Result<End, String> {
        let failed = |errno: Errno| format!("cannot start the program: {errno}");
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(failed)?;
        // Made first, so that init inside has no copy of this end and hears it close.
        let Some(console) = sys::fork().map_err(failed)? else {
            drop(theirs);
            attend(ours, &self.told.process)
        };
        drop(ours);
        let inside = launch(&self.told.setup, &self.cgroup, theirs);
        let end = match &inside {
            Ok(inside) => self.wait(inside),
            Err(failure) => Err(explain(failure)),
        };
        // Init is gone by that, and so is its channel.
        let _ = sys::reap(&console);
        end
    }

    fn wait(&self, inside: &OwnedFd) -> Result<End, String> {
        let reap = || sys::reap(inside).map_err(|errno| format!("cannot wait for the program: {errno}"));
        if !self.button_comes_first(inside, None) {
            return reap().map(End::Ended);
        }
        // Init passes it on.
        let _ = rustix::process::pidfd_send_signal(inside, Signal::TERM);
        let until = Instant::now() + GRACE;
        while self.button_comes_first(inside, Some(until)) && Instant::now() < until {}
        let _ = rustix::process::pidfd_send_signal(inside, Signal::KILL);
        reap().map(|_| End::Button)
    }

    /// Waits for the end of `inside`, for the button, or until then.
    fn button_comes_first(&self, inside: &OwnedFd, until: Option<Instant>) -> bool {
        loop {
            let timeout = until.map(|until| {
                let left = until.saturating_duration_since(Instant::now());
                Timespec {
                    tv_sec: left.as_secs() as i64,
                    tv_nsec: left.subsec_nanos().into(),
                }
            });
            let mut set = vec![PollFd::from_borrowed_fd(inside.as_fd(), PollFlags::IN)];
            let watched = self.buttons.iter();
            set.extend(watched.map(|button| PollFd::from_borrowed_fd(button.as_fd(), PollFlags::IN)));
            match rustix::event::poll(&mut set, timeout.as_ref()) {
                Ok(0) => return true,
                Ok(_) if !set[0].revents().is_empty() => return false,
                Ok(_) => {
                    if self.buttons.iter().any(pressed) {
                        return true;
                    }
                }
                Err(_) => {}
            }
        }
    }
}

/// The host's end of init's channel.
fn attend(channel: OwnedFd, process: &Process) -> ! {
    let consoles = consoles();
    let copy = |from: &mut dyn Read| {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            for mut console in &consoles {
                let _ = console.write_all(&buffer[..count]);
            }
        }
    };
    let outcome = Session::open(channel).and_then(|session| {
        let mut child = session.start(process)?;
        std::thread::scope(|scope| {
            if let Some(mut errors) = child.stderr.take() {
                scope.spawn(move || copy(&mut errors));
            }
            copy(&mut child.stdout);
        });
        child.handle().wait()
    });
    if let Err(error) = outcome {
        let causes = error.causes().join(": ");
        say(&format!("{}: {causes}", error.message()));
    }
    sys::leave(0)
}

/// The kernel's own consoles, as its command line names them.
fn consoles() -> Vec<File> {
    let list = std::fs::read_to_string("/proc/consoles").unwrap_or_default();
    list.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(|name| {
            let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
            rustix::fs::open(Path::new("/dev").join(name), flags, Mode::empty()).ok()
        })
        .map(File::from)
        .collect()
}

fn say(what: &str) {
    for mut console in consoles() {
        let _ = console.write_all(format!("luna: {what}\n").as_bytes());
    }
}

fn explain(failure: &crate::protocol::machine::SetupFailure) -> String {
    let errno = Errno::from_raw_os_error(failure.errno);
    format!(
        "cannot start at {:?} `{}`: {errno}",
        failure.stage, failure.subject
    )
}

/// Everything that may have a power button.
fn buttons() -> Vec<OwnedFd> {
    let entries = std::fs::read_dir("/dev/input").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("event"))
        .filter_map(|entry| {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            rustix::fs::open(entry.path(), flags, Mode::empty()).ok()
        })
        .collect()
}

/// Takes what a device has to say; whether the power button was in it.
fn pressed(button: &OwnedFd) -> bool {
    let mut bytes = [0; 24 * 16];
    let count = rustix::io::read(button, &mut bytes).unwrap_or(0);
    bytes[..count].chunks_exact(24).any(is_power)
}

/// `struct input_event` of a 64-bit kernel: two longs of time, type, code, value (`linux/input.h`).
fn is_power(event: &[u8]) -> bool {
    const KEY: [u8; 2] = 1u16.to_ne_bytes();
    const POWER: [u8; 2] = 116u16.to_ne_bytes();
    const DOWN: [u8; 4] = 1i32.to_ne_bytes();
    event[16..18] == KEY && event[18..20] == POWER && event[20..24] == DOWN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_press_of_the_power_button_counts() {
        let event = |kind: u16, code: u16, value: i32| {
            let mut bytes = vec![7; 16];
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(code.to_ne_bytes());
            bytes.extend(value.to_ne_bytes());
            bytes
        };
        assert!(is_power(&event(1, 116, 1)));
        for (kind, code, value) in [(1, 116, 0), (1, 30, 1), (0, 116, 1)] {
            assert!(!is_power(&event(kind, code, value)));
        }
    }
}
