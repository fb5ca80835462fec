//! Serves one directory to a virtual machine over vhost-user-fs: virtiofsd's library behind a door of Luna's own.
//!
//! ```text
//! luna-virtiofs DIRECTORY        descriptor 0: a listening unix socket with one connection waiting in it
//! ```
//!
//! It is started by the VM engine, in a jail that holds the directory and nothing else; whatever a machine makes it do
//! happens in there. It knows of no jail itself and drops no rights: it has none to spare. It serves the one connection
//! and ends with it. Nothing is printed; the exit code says how far it came: 0 after a machine has gone, 1 where it could
//! not begin, 2 where the machine spoke garbage.
//!
//! One thread serves requests in their order, as virtiofsd does by default: the system calls of a volume are short.
//! What a machine holds open is bounded by this process' limit on descriptors.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit};
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use virtiofsd::passthrough::{CachePolicy, Config, NegotiationMode, PassthroughFs};
use virtiofsd::vhost_user::VhostUserFsBackend;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// Descriptors for what is not the machine's: memory regions, queues, `/proc/self/fd`, a file being opened.
const OWN_DESCRIPTORS: u64 = 128;
/// No more than virtiofsd takes by default.
const MOST_DESCRIPTORS: u64 = 1_000_000;

fn main() -> ExitCode {
    let Some(directory) = std::env::args().nth(1) else {
        return ExitCode::from(1);
    };
    match begin(directory) {
        Some(daemon) => ExitCode::from(serve(daemon)),
        None => ExitCode::from(1),
    }
}

type Daemon = VhostUserDaemon<Arc<VhostUserFsBackend<PassthroughFs>>>;

/// Everything up to the machine's first message.
fn begin(directory: String) -> Option<Daemon> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().ok()?;
    let mut listener = Listener::from(UnixListener::from(socket));
    // Modes are the machine's own; its kernel has applied the mask.
    rustix::process::umask(rustix::fs::Mode::empty());
    let descriptors = raise_descriptors();
    let files = PassthroughFs::new(config(directory, descriptors.saturating_sub(OWN_DESCRIPTORS))).ok()?;
    files.open_root_node().ok()?;
    let backend = Arc::new(VhostUserFsBackend::new(files).ok()?);
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("requests".to_owned(), backend, memory).ok()?;
    daemon.start(&mut listener).ok()?;
    Some(daemon)
}

fn serve(mut daemon: Daemon) -> u8 {
    match daemon.wait() {
        Ok(()) | Err(DaemonError::HandleRequest(VhostError::Disconnected)) => 0,
        Err(_) => 2,
    }
}

/// How the machine sees the directory: as a process of the host's does, as far as that goes.
fn config(root_dir: String, guest_fd_limit: u64) -> Config {
    Config {
        root_dir,
        // Data may be kept while a file is open, so that it can be mapped; names and attributes are asked for each time:
        // what the host changes is seen at once.
        cache_policy: CachePolicy::Auto,
        entry_timeout: Duration::ZERO,
        attr_timeout: Duration::ZERO,
        // Attributes sent along with names would be asked for again.
        readdirplus: false,
        xattr: true,
        posix_acl: NegotiationMode::Auto,
        // Two files of one number on two file systems stay two files.
        announce_submounts: true,
        guest_fd_limit,
        ..Config::default()
    }
}

/// Each file the machine knows of is a descriptor here. The hard limit is the jail's to set.
fn raise_descriptors() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(MOST_DESCRIPTORS).min(MOST_DESCRIPTORS);
    let raised = Rlimit {
        current: Some(most),
        maximum: limit.maximum,
    };
    match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => most,
        Err(_) => limit.current.unwrap_or(1024),
    }
}
