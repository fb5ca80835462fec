//! The Landlock domain of a jail: scopes for all of them; for one that never mounts, also rules on files and TCP. Rules on
//! files would forbid mounting inside nested user namespaces, and a sandbox's root already is all the files it has.
//!
//! The numbers are those of `linux/landlock.h`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use luna_core::{Error, Result};
use rustix::fs::{Mode, OFlags};

use crate::plan::DEVICES;
use crate::spec::{Landlock, Mount, Spec};
use crate::sys::{self, LandlockAttributes};

/// The first version with scopes (Linux 6.12).
pub(crate) const SCOPES_SINCE: u32 = 6;
const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1;
const SCOPE_SIGNAL: u64 = 2;

const WRITE_FILE: u64 = 1 << 1;
/// Removing and making names, of every kind: REMOVE_DIR to MAKE_SYM.
const CHANGE_NAMES: u64 = 0x1ff0;
const REFER: u64 = 1 << 13;
const REFER_SINCE: u32 = 2;
const TRUNCATE: u64 = 1 << 14;
const TRUNCATE_SINCE: u32 = 3;
/// Binding and connecting.
const TCP: u64 = 3;
const TCP_SINCE: u32 = 4;

/// A ruleset for the child to enter, or `None` where the kernel knows nothing of what is asked.
pub(crate) fn ruleset(spec: &Spec) -> Result<Option<OwnedFd>> {
    let Ok(version) = sys::landlock_version() else {
        return Ok(None);
    };
    let attributes = handled(spec.defences.landlock, version);
    if attributes == LandlockAttributes::default() {
        return Ok(None);
    }
    let cannot = |error| Error::io("cannot make a Landlock ruleset", error);
    let ruleset = sys::landlock_ruleset(&attributes).map_err(cannot)?;
    if attributes.handled_access_fs != 0 {
        for path in DEVICES
            .iter()
            .map(|(name, ..)| Path::new("/dev").join(name))
            .chain(writable(spec))
        {
            let path = &path;
            let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .map_err(|error| Error::io(format!("cannot open `{}`", path.display()), error))?;
            let whole = rustix::fs::fstat(&file).map_err(cannot)?;
            let directory = rustix::fs::FileType::from_raw_mode(whole.st_mode).is_dir();
            let all = if directory {
                attributes.handled_access_fs
            } else {
                attributes.handled_access_fs & (WRITE_FILE | TRUNCATE)
            };
            sys::landlock_allow(ruleset.as_fd(), all, file.as_fd()).map_err(cannot)?;
        }
    }
    Ok(Some(ruleset))
}

fn handled(landlock: Landlock, version: u32) -> LandlockAttributes {
    let since = |first: u32, rights: u64| if version >= first { rights } else { 0 };
    let mut attributes = LandlockAttributes::default();
    if landlock != Landlock::Absent {
        attributes.scoped = since(SCOPES_SINCE, SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL);
    }
    if matches!(landlock, Landlock::ReadOnly | Landlock::ReadOnlyFiles) {
        attributes.handled_access_fs =
            WRITE_FILE | CHANGE_NAMES | since(REFER_SINCE, REFER) | since(TRUNCATE_SINCE, TRUNCATE);
    }
    if landlock == Landlock::ReadOnly {
        attributes.handled_access_net = since(TCP_SINCE, TCP);
    }
    attributes
}

/// What the host gave to be written to, beside the devices that every jail has. The rules follow the files, wherever they are mounted.
fn writable(spec: &Spec) -> impl Iterator<Item = PathBuf> {
    spec.mounts.iter().filter_map(|mount| match mount {
        Mount::Bind {
            source,
            read_only: false,
            ..
        }
        | Mount::Device {
            source, write: true, ..
        } => Some(source.clone()),
        _ => None,
    })
}
