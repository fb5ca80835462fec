//! Attempts on other processes: the host's, and init.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::{Outcome, files, number, refused, sys};

pub(crate) fn attempt(name: &str, arguments: &[&str]) -> Option<Outcome> {
    Some(match (name, arguments) {
        ("see-process", [pid, marker]) => see(pid, marker),
        ("signal-process", [pid]) => number(pid)
            .and_then(|pid| sys::kill(pid, libc::SIGKILL))
            .map(|()| "it was killed".into()),
        ("trace-process", [pid]) => number(pid).and_then(sys::trace).map(|()| "it was traced".into()),
        ("read-environment", [pid, secret]) => find(&format!("/proc/{pid}/environ"), secret),
        ("read-maps", [pid]) => read_some(&format!("/proc/{pid}/maps")),
        ("open-memory", [pid]) => fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .map(|_| "it opened".into()),
        ("enter-root", [pid, path, content]) => find(&format!("/proc/{pid}/root{path}"), content),
        ("overwrite-init", []) => overwrite_init(),
        ("setuid-program", [path]) => setuid_program(path),
        ("say-user", []) => Ok(sys::effective_user().to_string()),
        ("abstract-socket", [name]) => abstract_socket(name),
        ("host-port", [port]) => host_port(port),
        ("hold", [_marker]) => hold(),
        ("kill-everything", []) => sys::kill(-1, libc::SIGKILL).map(|()| "everything was killed".into()),
        _ => return None,
    })
}

/// Stays until standard input ends; the marker is there to be seen.
fn hold() -> Outcome {
    writeln!(io::stdout(), "holding").and_then(|()| io::stdout().flush())?;
    io::stdin().read_to_end(&mut Vec::new()).map(|_| String::new())
}

fn see(pid: &str, marker: &str) -> Outcome {
    find(&format!("/proc/{pid}/cmdline"), marker)
}

fn find(path: &str, content: &str) -> Outcome {
    let found = fs::read(path)?;
    if String::from_utf8_lossy(&found).contains(content) {
        Ok("the host's secret was read".into())
    } else {
        refused("another process")
    }
}

fn read_some(path: &str) -> Outcome {
    match fs::read(path)?.len() {
        0 => refused("it is empty"),
        length => Ok(format!("{length} bytes")),
    }
}

/// Init is the process whose parent lies outside; where the host's processes are visible, that is this one's parent.
fn overwrite_init() -> Outcome {
    let parent = std::os::unix::process::parent_id();
    files::overwrite_program(parent as i32)
}

/// A setuid program of root's, run as somebody else.
fn setuid_program(path: &str) -> Outcome {
    match sys::fork()? {
        sys::Side::Child => {
            let code = match sys::become_user(1000) {
                Ok(()) => {
                    let error = Command::new(path).arg("say-user-by-code").exec();
                    error.raw_os_error().unwrap_or(1)
                }
                Err(error) => error.raw_os_error().unwrap_or(1),
            };
            sys::leave(code.clamp(1, 99));
        }
        sys::Side::Parent(child) => match sys::wait(child)? {
            0 => Ok("root again".into()),
            99 => refused("still an ordinary user"),
            code => Err(io::Error::from_raw_os_error(code)),
        },
    }
}

/// The other half of [`setuid_program`]: exits with 0 as root, with 99 as somebody else.
pub(crate) fn say_user_by_code() -> ! {
    sys::leave(if sys::effective_user() == 0 { 0 } else { 99 })
}

fn abstract_socket(name: &str) -> Outcome {
    let address = SocketAddr::from_abstract_name(name)?;
    UnixStream::connect_addr(&address)?.write_all(b"luna")?;
    Ok("the host's socket took a connection".into())
}

fn host_port(port: &str) -> Outcome {
    TcpStream::connect(("127.0.0.1", number(port)?))?.write_all(b"luna")?;
    Ok("the host's port took a connection".into())
}
