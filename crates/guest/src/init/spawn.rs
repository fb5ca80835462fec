//! Starts one process as docker would: everything is looked up, opened and allocated before the fork; between fork and
//! exec the child only makes system calls. Where one fails, its stage and the kernel's number come back through a pipe
//! that a successful exec closes.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use luna_core::capability::Capabilities;
use luna_core::process::{Process, Rlimit, RlimitKind, TerminalSize};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::Resource;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::protocol::{Failure, Stage};

use super::flow::Sink;
use super::sys::{self, Fork, Strings};
use super::users::{self, Identity};

/// What docker puts where an image sets none (moby `oci/defaults.go`).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Init's ends of a process that was forked; whether it came to run its program, `status` tells.
pub(super) struct Spawned {
    pub(super) pid: i32,
    /// End of file: the program runs. [`FAILURE`] bytes: [`failure_of`] them.
    pub(super) status: OwnedFd,
    pub(super) stdin: Option<Sink>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: Option<OwnedFd>,
    pub(super) terminal: Option<OwnedFd>,
}

/// What every process of this sandbox starts from.
pub(super) struct Origin {
    /// `/dev/null` as it was before anything else ran.
    pub(super) null: OwnedFd,
    /// The limit on open files that init raised for itself.
    pub(super) files: rustix::process::Rlimit,
}

/// Bytes of a failure in the status pipe: the stage's number, then errno.
pub(super) const FAILURE: usize = 5;

pub(super) fn failure_of(bytes: [u8; FAILURE]) -> Failure {
    let [stage, e0, e1, e2, e3] = bytes;
    let stage = Stage::of_number(stage).unwrap_or(Stage::Fork);
    Failure::new(stage, i32::from_le_bytes([e0, e1, e2, e3]))
}

pub(super) fn spawn(process: &Process, origin: &Origin) -> Result<Spawned, Failure> {
    let plan = Plan::new(process, origin)?;
    let failed = |stage| move |errno: Errno| Failure::new(stage, errno.raw_os_error());
    let (status, report) = pipe().map_err(failed(Stage::Pipe))?;
    let (near, far) = match process.terminal {
        Some(size) => terminal(size, process.stdin).map_err(failed(Stage::Terminal))?,
        None => pipes(process.stdin, origin.null.as_fd()).map_err(failed(Stage::Pipe))?,
    };
    let fork = sys::fork().map_err(|error| Failure::new(Stage::Fork, error.raw_os_error().unwrap_or(0)))?;
    let pid = match fork {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            let (stage, errno) = plan.enter(&far);
            let [e0, e1, e2, e3] = errno.to_le_bytes();
            // Five bytes fit any pipe; where init is gone there is nobody to tell.
            let _ = rustix::io::write(&report, &[stage as u8, e0, e1, e2, e3]);
            sys::leave(127);
        }
    };
    Ok(Spawned {
        pid,
        status,
        stdin: near.stdin,
        stdout: near.stdout,
        stderr: near.stderr,
        terminal: near.terminal,
    })
}

struct Near {
    stdin: Option<Sink>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

struct Far {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    is_terminal: bool,
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
}

pub(super) fn do_not_wait(descriptor: &OwnedFd) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(descriptor)?;
    rustix::fs::fcntl_setfl(descriptor, flags | OFlags::NONBLOCK)
}

fn pipes(stdin: bool, null: BorrowedFd<'_>) -> Result<(Near, Far), Errno> {
    let (stdin, far_stdin) = if stdin {
        let (read, write) = pipe()?;
        do_not_wait(&write)?;
        (Some(Sink::Pipe(write)), read)
    } else {
        (None, rustix::io::fcntl_dupfd_cloexec(null, 3)?)
    };
    let (stdout, far_stdout) = pipe()?;
    let (stderr, far_stderr) = pipe()?;
    do_not_wait(&stdout)?;
    do_not_wait(&stderr)?;
    let near = Near {
        stdin,
        stdout,
        stderr: Some(stderr),
        terminal: None,
    };
    let far = Far {
        stdin: far_stdin,
        stdout: far_stdout,
        stderr: far_stderr,
        is_terminal: false,
    };
    Ok((near, far))
}

/// A terminal from the sandbox's own devpts; the far side comes from the near one and not by name (CVE-2025-52565).
fn terminal(size: TerminalSize, stdin: bool) -> Result<(Near, Far), Errno> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let far = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    resize(master.as_fd(), size)?;
    do_not_wait(&master)?;
    let duplicate = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
    let near = Near {
        stdin: stdin.then(|| duplicate(&master)).transpose()?.map(Sink::Terminal),
        stdout: duplicate(&master)?,
        stderr: None,
        terminal: Some(master),
    };
    let far = Far {
        stdin: duplicate(&far)?,
        stdout: duplicate(&far)?,
        stderr: far,
        is_terminal: true,
    };
    Ok((near, far))
}

pub(super) fn resize(terminal: BorrowedFd<'_>, size: TerminalSize) -> Result<(), Errno> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(terminal, size)
}

/// Everything the child needs, in the form the kernel takes it.
struct Plan {
    /// Where the program may be, best first.
    programs: Vec<CString>,
    arguments: Strings,
    environment: Strings,
    /// The components of the working directory.
    directory: Vec<CString>,
    identity: Identity,
    groups: Vec<rustix::thread::Gid>,
    keep_groups: bool,
    capabilities: Capabilities,
    no_new_privileges: bool,
    files: rustix::process::Rlimit,
    rlimits: Vec<(Resource, rustix::process::Rlimit)>,
}

impl Plan {
    fn new(process: &Process, origin: &Origin) -> Result<Plan, Failure> {
        let invalid = || Failure::new(Stage::Request, libc::EINVAL);
        let string = |text: &str| CString::new(text).map_err(|_| invalid());
        let strings = |texts: &[String]| {
            texts
                .iter()
                .map(|text| string(text))
                .collect::<Result<Vec<_>, _>>()
        };
        let program = process
            .args
            .first()
            .filter(|name| !name.is_empty())
            .ok_or_else(invalid)?;
        if !process.cwd.starts_with('/') {
            return Err(Failure::new(Stage::Directory, libc::EINVAL));
        }
        let identity = users::look_up(&process.user, &process.groups)?;
        let environment = environment(process, &identity.home)?;
        let path = environment
            .iter()
            .find(|(name, _)| name == "PATH")
            .map_or(PATH, |(_, value)| value.as_str());
        let programs = strings(&candidates(program, path))?;
        let pairs: Vec<String> = environment
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let components: Vec<String> = process
            .cwd
            .split('/')
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect();
        let gid = |id: &u32| rustix::thread::Gid::from_raw(*id);
        let groups: Vec<_> = identity.groups.iter().map(gid).collect();
        let mut held = rustix::process::getgroups().unwrap_or_default();
        held.sort_unstable_by_key(|group| group.as_raw());
        Ok(Plan {
            programs,
            arguments: Strings::new(strings(&process.args)?),
            environment: Strings::new(strings(&pairs)?),
            directory: strings(&components)?,
            keep_groups: held == groups,
            groups,
            identity,
            capabilities: process.capabilities,
            no_new_privileges: process.no_new_privileges,
            files: origin.files,
            rlimits: process.rlimits.iter().map(rlimit).collect(),
        })
    }

    /// The child's life up to its program; returns only when something failed.
    fn enter(&self, far: &Far) -> (Stage, i32) {
        let errno = |stage| move |errno: Errno| (stage, errno.raw_os_error());
        let run = || -> Result<(), (Stage, i32)> {
            sys::reset_signals();
            rustix::process::setsid().map_err(errno(Stage::Session))?;
            if far.is_terminal {
                rustix::process::ioctl_tiocsctty(&far.stdin).map_err(errno(Stage::Terminal))?;
            }
            for (descriptor, number) in [(&far.stdin, 0), (&far.stdout, 1), (&far.stderr, 2)] {
                sys::place(descriptor.as_fd(), number)
                    .map_err(|error| (Stage::Pipe, error.raw_os_error().unwrap_or(0)))?;
                if self.identity.uid != 0 {
                    self.give(descriptor);
                }
            }
            // Every descriptor is close-on-exec already; this also catches what nobody thought of.
            let _ = sys::close_on_exec_from_3();
            rustix::process::umask(Mode::from_raw_mode(0o022));
            self.change_directory().map_err(errno(Stage::Directory))?;
            if !sys::current_directory_is_inside() {
                return Err((Stage::Directory, libc::EXDEV));
            }
            // Not before the last descriptor is opened: until the program runs, init's own count against the limit.
            self.limit().map_err(errno(Stage::Limits))?;
            self.drop_privileges().map_err(errno(Stage::Privileges))
        };
        if let Err(failure) = run() {
            return failure;
        }
        (Stage::Program, self.execute())
    }

    /// Lets the user open its own streams again (`/dev/stdout`), as runc does; what cannot be given is still usable.
    fn give(&self, descriptor: &OwnedFd) {
        let Ok(status) = rustix::fs::fstat(descriptor) else {
            return;
        };
        let is_null = rustix::fs::FileType::from_raw_mode(status.st_mode)
            == rustix::fs::FileType::CharacterDevice
            && rustix::fs::major(status.st_rdev) == 1;
        if !is_null {
            let uid = rustix::fs::Uid::from_raw(self.identity.uid);
            let _ = rustix::fs::fchown(descriptor, Some(uid), None);
        }
    }

    fn limit(&self) -> Result<(), Errno> {
        rustix::process::setrlimit(Resource::Nofile, self.files)?;
        for (resource, limit) in &self.rlimits {
            rustix::process::setrlimit(*resource, *limit)?;
        }
        Ok(())
    }

    /// One component after another by descriptor, making what is missing. Symbolic links lead where they lead inside:
    /// the root is the sandbox's.
    fn change_directory(&self) -> Result<(), Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut directory = rustix::fs::open(c"/", flags, Mode::empty())?;
        for component in &self.directory {
            let component: &CStr = component;
            directory = match rustix::fs::openat(&directory, component, flags, Mode::empty()) {
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&directory, component, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno),
                    }
                    rustix::fs::openat(&directory, component, flags, Mode::empty())?
                }
                opened => opened?,
            };
        }
        rustix::process::fchdir(&directory)
    }

    /// The bounding set first, while there is the right to; then the ids, which for a user other than root clear the
    /// permitted set; then what is left is made exactly what it shall be. Inheritable and ambient end up empty
    /// (CVE-2022-27650).
    fn drop_privileges(&self) -> Result<(), Errno> {
        for number in 0..64 {
            let wanted = self.capabilities.bits() & (1 << number) != 0;
            let Some(one) = CapabilitySet::from_bits(1 << number) else {
                continue;
            };
            if !wanted && rustix::thread::capability_is_in_bounding_set(one) == Ok(true) {
                rustix::thread::remove_capability_from_bounding_set(one)?;
            }
        }
        if !self.keep_groups {
            rustix::thread::set_thread_groups(&self.groups)?;
        }
        let gid = rustix::thread::Gid::from_raw(self.identity.gid);
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        let uid = rustix::thread::Uid::from_raw(self.identity.uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        match rustix::thread::clear_ambient_capability_set() {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
        let held = rustix::thread::capabilities(None)?.permitted.bits();
        let wanted = if uid.is_root() {
            self.capabilities.bits() & held
        } else {
            0
        };
        let wanted = CapabilitySet::from_bits_retain(wanted);
        rustix::thread::set_capabilities(
            None,
            CapabilitySets {
                effective: wanted,
                permitted: wanted,
                inheritable: CapabilitySet::empty(),
            },
        )?;
        if self.no_new_privileges {
            rustix::thread::set_no_new_privs(true)?;
        }
        Ok(())
    }

    /// `execvp(3)`'s rule: a candidate that may not be executed is remembered, one that is not there is not.
    fn execute(&self) -> i32 {
        let mut result = libc::ENOENT;
        for program in &self.programs {
            match sys::execute(program, &self.arguments, &self.environment) {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => result = libc::EACCES,
                other => return other,
            }
        }
        result
    }
}

/// A later variable of the same name wins and keeps the earlier one's place; `PATH`, `HOME` and `TERM` are filled in.
fn environment(process: &Process, home: &str) -> Result<Vec<(String, String)>, Failure> {
    let mut environment: Vec<(String, String)> = Vec::with_capacity(process.env.len() + 3);
    for (name, value) in &process.env {
        if name.is_empty() || name.contains('=') {
            return Err(Failure::new(Stage::Request, libc::EINVAL));
        }
        match environment.iter_mut().find(|(known, _)| known == name) {
            Some(known) => known.1.clone_from(value),
            None => environment.push((name.clone(), value.clone())),
        }
    }
    let mut fill = |name: &str, value: &str| {
        if !environment.iter().any(|(known, _)| known == name) {
            environment.push((name.to_owned(), value.to_owned()));
        }
    };
    fill("PATH", PATH);
    fill("HOME", home);
    if process.terminal.is_some() {
        fill("TERM", "xterm");
    }
    Ok(environment)
}

/// Where `program` may be: itself where it has a slash, else under every directory of `path` (an empty one is the
/// working directory).
fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    path.split(':')
        .map(|directory| match directory {
            "" => format!("./{program}"),
            directory => format!("{}/{program}", directory.trim_end_matches('/')),
        })
        .collect()
}

fn rlimit(limit: &Rlimit) -> (Resource, rustix::process::Rlimit) {
    let resource = match limit.resource {
        RlimitKind::Core => Resource::Core,
        RlimitKind::Cpu => Resource::Cpu,
        RlimitKind::Data => Resource::Data,
        RlimitKind::Fsize => Resource::Fsize,
        RlimitKind::Locks => Resource::Locks,
        RlimitKind::Memlock => Resource::Memlock,
        RlimitKind::Msgqueue => Resource::Msgqueue,
        RlimitKind::Nice => Resource::Nice,
        RlimitKind::Nofile => Resource::Nofile,
        RlimitKind::Nproc => Resource::Nproc,
        RlimitKind::Rss => Resource::Rss,
        RlimitKind::Rtprio => Resource::Rtprio,
        RlimitKind::Rttime => Resource::Rttime,
        RlimitKind::Sigpending => Resource::Sigpending,
        RlimitKind::Stack => Resource::Stack,
    };
    let bound = |value| (value != Rlimit::UNLIMITED).then_some(value);
    let limit = rustix::process::Rlimit {
        current: bound(limit.soft),
        maximum: bound(limit.hard),
    };
    (resource, limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_searched_as_the_shell_does() {
        assert_eq!(candidates("ls", "/bin:/usr/bin/"), ["/bin/ls", "/usr/bin/ls"]);
        assert_eq!(candidates("ls", ":/bin"), ["./ls", "/bin/ls"]);
        assert_eq!(candidates("./ls", "/bin"), ["./ls"]);
        assert_eq!(candidates("/x/ls", "/bin"), ["/x/ls"]);
    }
}
