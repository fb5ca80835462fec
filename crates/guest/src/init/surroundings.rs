//! What stands round the processes inside, as it looks from inside: files of `/proc`, `uname`, and what happens to
//! whoever tries a path that should be closed. Runs in a worker, which is a copy of init.

use std::fs;
use std::io::{Read, Write};

use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;

use crate::protocol::{Attempt, Failure, MAX_ATTEMPTS, Seen, Stage, Surroundings, encode};

use super::sys;

/// No file of `/proc` read here is longer where nobody means harm.
const MAX_FILE: u64 = 1024 * 1024;
const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// Writes one [`Surroundings`]. `main` is the main process as long as it runs.
pub(super) fn measure(main: Option<i32>, paths: &[String], output: &mut impl Write) -> Result<(), Failure> {
    if paths.len() > MAX_ATTEMPTS {
        return Err(Failure::new(Stage::Request, libc::E2BIG));
    }
    let init = rustix::process::getppid().map_or(1, rustix::process::Pid::as_raw_pid);
    let uname = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let found = Surroundings {
        release: text(uname.release()),
        version: text(uname.version()),
        machine: text(uname.machine()),
        init: read(&format!("/proc/{init}/status")),
        main: main
            .map(|pid| read(&format!("/proc/{pid}/status")))
            .unwrap_or_default(),
        mounts: read("/proc/self/mountinfo"),
        uid_map: read("/proc/self/uid_map"),
        gid_map: read("/proc/self/gid_map"),
        label: read("/proc/self/attr/current"),
        landlock: sys::landlock_version(),
        namespaces: NAMESPACES.iter().filter_map(|name| namespace(name)).collect(),
        attempts: paths.iter().map(|path| attempt(path)).collect(),
    };
    output
        .write_all(&encode(&found))
        .map_err(|error| Failure::new(Stage::Path, error.raw_os_error().unwrap_or(libc::EIO)))
}

/// Empty where it cannot be read: the host takes that for not seen.
fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

fn namespace(name: &str) -> Option<(String, u64)> {
    let link = fs::read_link(format!("/proc/self/ns/{name}")).ok()?;
    let inode = link
        .to_str()?
        .split_once(":[")?
        .1
        .strip_suffix(']')?
        .parse()
        .ok()?;
    Some((name.to_owned(), inode))
}

fn attempt(path: &str) -> Attempt {
    Attempt {
        path: path.to_owned(),
        seen: look(path).unwrap_or_else(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR => Seen::Missing,
            errno => Seen::Refused(errno.raw_os_error()),
        }),
        writable: try_to_write(path).map_err(Errno::raw_os_error),
    }
}

fn open(path: &str, access: OFlags) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty())
}

fn look(path: &str) -> Result<Seen, Errno> {
    let file = open(path, OFlags::RDONLY)?;
    let status = rustix::fs::fstat(&file)?;
    let has_content = match FileType::from_raw_mode(status.st_mode) {
        FileType::CharacterDevice if status.st_rdev == rustix::fs::makedev(1, 3) => return Ok(Seen::Null),
        FileType::Directory => rustix::fs::Dir::read_from(&file)?
            .any(|entry| entry.is_ok_and(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."))),
        _ => match rustix::io::read(&file, &mut [0; 1]) {
            Ok(count) => count > 0,
            // A file that only waits has let us in.
            Err(Errno::AGAIN) => true,
            Err(errno) => return Err(errno),
        },
    };
    Ok(if has_content { Seen::Content } else { Seen::Empty })
}

/// Opened, nothing is written; in a directory the kernel is asked whether something could be made. A mount that is
/// read-only is told first: permissions, which come before it in the kernel, can be changed.
fn try_to_write(path: &str) -> Result<(), Errno> {
    if rustix::fs::statvfs(path)?
        .f_flag
        .contains(StatVfsMountFlags::RDONLY)
    {
        return Err(Errno::ROFS);
    }
    match open(path, OFlags::WRONLY) {
        Err(Errno::ISDIR) => rustix::fs::accessat(rustix::fs::CWD, path, Access::WRITE_OK, AtFlags::empty()),
        opened => opened.map(drop),
    }
}
