//! Where `luna-virtiofs` lies.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use luna_core::{Error, Kind, Result};

/// A sealed copy of it: beside Luna's own executable, or in `../lib/luna` from there.
pub(super) fn open() -> Result<OwnedFd> {
    let own =
        std::env::current_exe().map_err(|error| Error::io("cannot find Luna's own executable", error))?;
    let beside = own.parent().unwrap_or_else(|| Path::new("/"));
    let explicit = std::env::var_os("LUNA_VIRTIOFS").map(PathBuf::from);
    let candidates = explicit.into_iter().chain([
        beside.join("luna-virtiofs"),
        beside.join("../lib/luna/luna-virtiofs"),
    ]);
    for candidate in candidates {
        if candidate.exists() {
            return luna_jail::sealed(&candidate);
        }
    }
    Err(Error::new(Kind::NotFound, "cannot find `luna-virtiofs`")
        .because(format!(
            "it is neither in `{}` nor in `../lib/luna` from there",
            beside.display()
        ))
        .hint("install Luna whole (`make install`), or name the file with `LUNA_VIRTIOFS`"))
}
