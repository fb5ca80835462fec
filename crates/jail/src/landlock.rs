//! The Landlock domain of a jail: scopes only. Rules on files would forbid mounting inside nested user namespaces, and
//! the jail's root already is all the files it has.

use std::os::fd::OwnedFd;

use luna_core::{Error, Result};

use crate::sys;

/// The first version with scopes (Linux 6.12).
pub(crate) const SCOPES_SINCE: u32 = 6;
const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1;
const SCOPE_SIGNAL: u64 = 2;

/// A ruleset for the child to enter, or `None` on a kernel without scopes.
pub(crate) fn scope() -> Result<Option<OwnedFd>> {
    if !sys::landlock_version().is_ok_and(|version| version >= SCOPES_SINCE) {
        return Ok(None);
    }
    sys::landlock_scope_ruleset(SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL)
        .map(Some)
        .map_err(|error| Error::io("cannot make a Landlock ruleset", error))
}
