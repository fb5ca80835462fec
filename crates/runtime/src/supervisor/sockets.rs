//! Sockets of the host's in a sandbox that has a kernel of its own: `-v /tmp/.X11-unix:/tmp/.X11-unix` behind that wall.
//!
//! A unix socket is a name in a file system and a queue in one kernel; shared as a file it leads nowhere in another kernel.
//! So the machine listens at the same path, and whoever connects there is carried through init's channel to the socket
//! on the host:
//!
//! ```text
//! program ──connect──▶ the machine's socket ──init, Accept──▶ this process ──connect──▶ the host's socket
//! ```
//!
//! What a bind mount would give a container is given here: the socket that is the mount's source, or those directly in the
//! directory that is, as they are when the sandbox starts. Bytes of stream sockets are carried; descriptors are not, and a
//! peer's credentials are the sandbox's root's.
//!
//! The directory may be one that the sandbox writes to, or somebody else. Each connection therefore finds the name anew
//! without following a link, and sees for itself that it is a socket. And it is made *as the sandbox's root*, an id of the
//! host's without any right: a socket that is not open to everybody stays closed, whoever Luna is.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use luna_core::engine::{Bundle, IdRange, Mount, Root};
use luna_core::{Error, Kind, Result};
use luna_guest::session::Session;
use luna_network::ports::Inward;
use rustix::fs::{Dir, FileType, Gid, Mode, OFlags, Uid};

use super::STACK;
use super::inward::IntoSandbox;

/// Sockets one sandbox may be offered.
const SOCKETS: usize = 64;
/// A directory with more entries than this is not looked through.
const ENTRIES: usize = 4096;
/// Threads that wait for each socket's next connection.
const WAITING: usize = 2;
/// Connections one sandbox may have open through all its sockets; further ones wait inside.
const CONNECTIONS: usize = 512;
const PIECE: usize = 32 << 10;
/// After init could not accept.
const PAUSE: Duration = Duration::from_millis(100);

/// The sockets of one start of a sandbox, found and not yet served.
#[derive(Debug)]
pub(crate) struct Sockets {
    offers: Vec<Offer>,
    ids: IdRange,
}

#[derive(Debug)]
struct Offer {
    /// In the sandbox.
    path: String,
    place: Place,
}

/// Where the host's socket is.
#[derive(Clone, Debug)]
enum Place {
    /// It was the mount's source: that very socket, as a bind mount holds it.
    Socket(Arc<OwnedFd>),
    /// Whatever socket has this name at the time.
    Entry(Arc<OwnedFd>, OsString),
}

/// Takes the sockets out of a bundle whose root is disks, and names their paths to its engine. A mount of nothing but
/// sockets is not left in the bundle; one of other files beside them stays.
pub(crate) fn take(bundle: &mut Bundle) -> Result<Sockets> {
    let mut offers = Vec::new();
    if let Root::Disk(disk) = &mut bundle.root {
        let mut failed = None;
        bundle.mounts.retain(|mount| {
            let Mount::Bind { source, target, .. } = mount else {
                return true;
            };
            match find(source, target) {
                Ok(found) => {
                    offers.extend(found.offers);
                    found.has_files
                }
                Err(error) => {
                    failed.get_or_insert(error);
                    true
                }
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        if offers.len() > SOCKETS {
            return Err(
                Error::new(Kind::Unsupported, "cannot offer the sockets in the volumes")
                    .because(format!(
                        "they are {}, and a virtual machine is offered {SOCKETS} at most",
                        offers.len()
                    ))
                    .hint("mount a directory with fewer of them, or single sockets"),
            );
        }
        disk.sockets = offers.iter().map(|offer| PathBuf::from(&offer.path)).collect();
    }
    Ok(Sockets {
        offers,
        ids: bundle.ids,
    })
}

/// What one mount has.
struct Found {
    offers: Vec<Offer>,
    /// Whether there is anything to share besides.
    has_files: bool,
}

fn find(source: &Path, target: &Path) -> Result<Found> {
    let none = Found {
        offers: Vec::new(),
        has_files: true,
    };
    let Some(target) = target.to_str() else {
        return Ok(none);
    };
    // The source itself may be reached through links, as a mount's is. What is not there is the mount's to tell.
    let Ok(found) = open(rustix::fs::CWD, source.as_os_str(), OFlags::PATH) else {
        return Ok(none);
    };
    match kind(&found) {
        Some(FileType::Socket) => Ok(Found {
            offers: vec![Offer {
                path: target.to_owned(),
                place: Place::Socket(Arc::new(found)),
            }],
            has_files: false,
        }),
        Some(FileType::Directory) => {
            let Ok(directory) = open(&found, OsStr::new("."), OFlags::DIRECTORY) else {
                return Ok(none);
            };
            entries(&Arc::new(directory), target)
                .map_err(|error| Error::io(format!("cannot look through `{}`", source.display()), error))
        }
        _ => Ok(none),
    }
}

fn entries(directory: &Arc<OwnedFd>, target: &str) -> io::Result<Found> {
    let mut found = Found {
        offers: Vec::new(),
        has_files: false,
    };
    let mut names = 0;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        names += 1;
        if names > ENTRIES {
            found.has_files = true;
            break;
        }
        let place = Place::Entry(Arc::clone(directory), name.to_owned());
        match (place.open(), name.to_str()) {
            (Ok(_), Some(name)) => found.offers.push(Offer {
                path: format!("{}/{name}", target.trim_end_matches('/')),
                place,
            }),
            _ => found.has_files = true,
        }
    }
    // An empty directory is there to be written to.
    found.has_files |= found.offers.is_empty();
    found.offers.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

fn open(at: impl AsFd, path: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(
        at,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

fn kind(file: &OwnedFd) -> Option<FileType> {
    let found = rustix::fs::fstat(file).ok()?;
    Some(FileType::from_raw_mode(found.st_mode))
}

impl Place {
    /// The socket, held so that it cannot become another before it is connected to.
    fn open(&self) -> io::Result<Arc<OwnedFd>> {
        let found = match self {
            Place::Socket(found) => Arc::clone(found),
            Place::Entry(directory, name) => {
                Arc::new(open(&**directory, name, OFlags::PATH | OFlags::NOFOLLOW)?)
            }
        };
        match kind(&found) {
            Some(FileType::Socket) => Ok(found),
            _ => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }

    /// Connects as the host's user `id`, which the calling thread is from then on.
    fn connect_as(&self, id: u32) -> io::Result<UnixStream> {
        let socket = self.open()?;
        // Without root Luna is that user already, or as near to it as it can come.
        if id != 0 {
            let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
            rustix::thread::set_thread_groups(&[])?;
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        }
        UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd()))
    }

    /// Connects from a thread that is used up by it.
    fn connect(&self, id: u32) -> io::Result<UnixStream> {
        let place = self.clone();
        let thread = spawn("connect", move || place.connect_as(id))?;
        thread.join().map_err(|_| io::Error::from(io::ErrorKind::Other))?
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    act: impl FnOnce() -> T + Send + 'static,
) -> io::Result<thread::JoinHandle<T>> {
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK)
        .spawn(act)
}

impl Sockets {
    /// Carries connections until the session is over.
    pub(crate) fn serve(self, session: &Session) -> Result<()> {
        let budget = Arc::new(Budget::new(CONNECTIONS));
        let id = self.ids.base;
        for offer in self.offers {
            let offer = Arc::new(offer);
            for _ in 0..WAITING {
                let (offer, session, budget) = (Arc::clone(&offer), session.clone(), Arc::clone(&budget));
                spawn("socket", move || accept(&session, &offer, id, &budget))
                    .map_err(|error| Error::io("cannot start a thread for the sandbox's sockets", error))?;
            }
        }
        Ok(())
    }
}

fn accept(session: &Session, offer: &Offer, id: u32, budget: &Arc<Budget>) {
    loop {
        let share = Budget::take(budget);
        match session.accept(&offer.path) {
            Ok((reader, writer)) => {
                let place = offer.place.clone();
                // Where no thread can be had, the connection breaks off with its ends.
                let _ = spawn("relay", move || {
                    let _share = share;
                    if let Ok(host) = place.connect(id) {
                        relay(host, reader, IntoSandbox(Some(writer)));
                    }
                });
            }
            Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Corrupt | Kind::NotFound) => {
                return;
            }
            // Init has no descriptors left, or no streams.
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// Both directions, each to its own end. What breaks off on one side breaks off on the other, as far as it can.
fn relay(host: UnixStream, mut from_inside: impl Read, mut to_inside: impl Inward + 'static) {
    let Ok(mut from_host) = host.try_clone() else {
        return;
    };
    let inward = spawn("relay", move || {
        if pump(&mut from_host, &mut to_inside).is_ok() {
            let _ = to_inside.finish();
        }
    });
    let Ok(inward) = inward else { return };
    let mut to_host = host;
    let how = match pump(&mut from_inside, &mut to_host) {
        Ok(()) => Shutdown::Write,
        // The host's program hears an end, and this process' other direction too.
        Err(_) => Shutdown::Both,
    };
    drop(from_inside);
    let _ = to_host.shutdown(how);
    let _ = inward.join();
}

fn pump(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&piece[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// How many more connections may be waited for or open.
#[derive(Debug)]
struct Budget {
    left: Mutex<usize>,
    returned: Condvar,
}

/// One connection's part; dropping it gives it back.
struct Share(Arc<Budget>);

impl Budget {
    fn new(connections: usize) -> Budget {
        Budget {
            left: Mutex::new(connections),
            returned: Condvar::new(),
        }
    }

    /// Waits for a part; all come back when the session is over.
    fn take(budget: &Arc<Budget>) -> Share {
        let left = budget.left.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = budget
            .returned
            .wait_while(left, |left| *left == 0)
            .unwrap_or_else(PoisonError::into_inner);
        *left -= 1;
        Share(Arc::clone(budget))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        *self.0.left.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.returned.notify_one();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::print_stdout)]
mod tests;
