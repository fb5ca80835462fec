//! Luna without root: the whole program moves into a user namespace of the caller's, in which it is root, and from there
//! on works as root's does.
//!
//! Id 0 in there is the user; 1 to 65,536 are the ids that `/etc/subuid` and `/etc/subgid` grant the user, mapped by the
//! setuid programs newuidmap(1) and newgidmap(1). A mount namespace comes with it. What differs from then on: layers
//! are used as they lie (their owners are the namespace's own ids), overlays keep their marks in `user.` attributes,
//! and cgroups are used where they were delegated.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use luna_core::process::ExitStatus;
use luna_core::{Error, Kind, Result};

use crate::jailed::Process;
use crate::sys::{self, Strings};

/// Ids granted beside the user's own.
const SUBORDINATE: u32 = 65_536;
/// Set for the second run of the program, so that a move that did not make it root ends there and does not go round.
const MARK: &str = "LUNA_USER_NAMESPACE";

/// Makes the program root of a user namespace if it is not root already: on success it starts again in there, with the
/// same arguments, and this does not return. Call it first of all, while there is one thread.
///
/// Whether there is anything to do is asked of the kernel alone; the environment can make this fail but never skip it.
pub fn enter() -> Result<()> {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return Ok(());
    }
    if std::env::var_os(MARK).is_some() {
        return Err(
            Error::new(Kind::Internal, "cannot become root of a user namespace")
                .because(format!(
                    "the move was made, but the user is still {}",
                    uid.as_raw()
                ))
                .hint(format!("unset the variable `{MARK}`")),
        );
    }
    let gid = rustix::process::getegid();
    let uids = granted("/etc/subuid", uid.as_raw(), "--add-subuids")?;
    let gids = granted("/etc/subgid", uid.as_raw(), "--add-subgids")?;
    let (ready, go) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| Error::io("cannot make a pipe", error))?;
    let helpers = [
        Helper::start("newuidmap", uid.as_raw(), &uids, ready.as_fd(), &go)?,
        Helper::start("newgidmap", gid.as_raw(), &gids, ready.as_fd(), &go)?,
    ];
    sys::unshare_user_and_mounts()
        .map_err(|error| crate::launch::namespaces_refused(error).context("cannot run without root"))?;
    rustix::io::write(&go, &[1; 2]).map_err(|error| Error::io("cannot start newuidmap", error))?;
    for helper in helpers {
        helper.finish()?;
    }
    become_root().map_err(|error| Error::io("cannot become root of a user namespace", error))?;
    again()
}

/// Whether the program is root only of a user namespace, as after [`enter`].
pub fn is_rootless() -> bool {
    crate::ids::inside_user_namespace()
}

/// Ranges of subordinate ids, `(first, count)`, together at most [`SUBORDINATE`].
fn granted(file: &str, uid: u32, option: &str) -> Result<Vec<(u32, u32)>> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let name = user_name(&std::fs::read_to_string("/etc/passwd").unwrap_or_default(), uid);
    let ranges = ranges(&text, uid, name.as_deref());
    let total: u32 = ranges.iter().map(|(_, count)| count).sum();
    if total == SUBORDINATE {
        return Ok(ranges);
    }
    let who = name.unwrap_or_else(|| uid.to_string());
    Err(Error::new(Kind::Unsupported, "cannot run without root")
        .because(format!(
            "`{file}` grants `{who}` {total} ids, and a sandbox has {SUBORDINATE}"
        ))
        .hint(format!("sudo usermod {option} 100000-165535 {who}")))
}

fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// The lines of subuid(5) that are the user's, by name or number.
fn ranges(text: &str, uid: u32, name: Option<&str>) -> Vec<(u32, u32)> {
    let mut left = SUBORDINATE;
    let mut ranges = Vec::new();
    for line in text.lines() {
        let mut fields = line.trim().split(':');
        let (Some(owner), Some(first), Some(count)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let own = Some(owner) == name || owner.parse() == Ok(uid);
        if let (true, Ok(first), Ok(count)) = (own && left > 0, first.parse::<u32>(), count.parse::<u32>()) {
            let count = count.min(left);
            if count > 0 && first.checked_add(count).is_some() {
                ranges.push((first, count));
                left -= count;
            }
        }
    }
    ranges
}

/// A process outside the namespace that maps its ids once told to: only from outside can it be done.
struct Helper {
    name: &'static str,
    process: Process,
}

impl Helper {
    fn start(
        name: &'static str,
        own: u32,
        granted: &[(u32, u32)],
        ready: BorrowedFd<'_>,
        go: &OwnedFd,
    ) -> Result<Helper> {
        let program = find(name)?;
        let mut arguments = vec![name.to_owned(), std::process::id().to_string()];
        arguments.extend(["0".to_owned(), own.to_string(), "1".to_owned()]);
        let mut inside = 1;
        for (first, count) in granted {
            arguments.extend([inside.to_string(), first.to_string(), count.to_string()]);
            inside += count;
        }
        let arguments = arguments
            .into_iter()
            .map(|text| CString::new(text).expect("digits have no NUL"));
        let arguments = Strings::new(arguments.collect());
        let nothing = Strings::new(Vec::new());
        let body = || {
            sys::close(go.as_raw_fd());
            let mut byte = [0];
            // The end instead of a byte means that the caller gave up.
            if !matches!(rustix::io::read(ready, &mut byte), Ok(1)) {
                return 1;
            }
            sys::release_signals();
            sys::execute(program.as_raw_fd(), &arguments, &nothing);
            1
        };
        let (pid, pidfd) =
            sys::spawn(0, None, &body).map_err(|error| Error::io(format!("cannot start `{name}`"), error))?;
        Ok(Helper {
            name,
            process: Process::new(pid, pidfd),
        })
    }

    fn finish(self) -> Result<()> {
        match self.process.wait()? {
            ExitStatus::Code(0) => Ok(()),
            _ => Err(Error::new(Kind::PermissionDenied, "cannot run without root")
                .because(format!("`{}` refused to map the ids", self.name))
                .hint("check that `newuidmap` is setuid root (`apt install --reinstall uidmap`), and `/etc/subuid`")),
        }
    }
}

fn find(name: &str) -> Result<File> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    let usual = ["/usr/bin", "/usr/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .find_map(|directory| File::open(directory.join(name)).ok())
        .ok_or_else(|| {
            Error::new(Kind::Unsupported, "cannot run without root")
                .because(format!("the program `{name}` is not installed"))
                .hint("sudo apt install uidmap")
        })
}

fn become_root() -> rustix::io::Result<()> {
    let (uid, gid) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// Starts the program again with the same arguments.
fn again() -> Result<()> {
    let cannot = |error: std::io::Error| Error::io("cannot start again in the user namespace", error);
    let text = |text: OsString| CString::new(text.into_vec()).expect("the kernel's strings have no NUL");
    let program = File::open("/proc/self/exe").map_err(cannot)?;
    let arguments = Strings::new(std::env::args_os().map(text).collect());
    let variables = std::env::vars_os()
        .chain([(MARK.into(), "1".into())])
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            text(name)
        });
    let environment = Strings::new(variables.collect());
    Err(cannot(
        sys::execute(program.as_raw_fd(), &arguments, &environment).into(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_the_users_and_no_more_than_needed() {
        let text = "other:1:65536\nann:100000:1000\n\n1000:200000:70000\nann:bad:3\nann:4294967295:5\n";
        assert_eq!(
            ranges(text, 1000, Some("ann")),
            [(100_000, 1000), (200_000, 64_536)]
        );
        assert_eq!(ranges(text, 1000, None), [(200_000, 65_536)]);
        assert_eq!(ranges("ann:1", 1000, Some("ann")), []);
    }

    #[test]
    fn names_come_from_passwd() {
        let passwd = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("ann"));
        assert_eq!(user_name(passwd, 1001), None);
    }
}
