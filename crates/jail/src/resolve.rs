//! Finds a path inside a root whose content is hostile, and makes what is missing, by descriptor.
//!
//! Every lookup goes through openat2(2) with `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`: a symbolic link, absolute or
//! with `..`, never leads out of the root (CVE-2021-30465, CVE-2024-45310, CVE-2026-41579). The result is an `O_PATH`
//! descriptor to mount onto, so nothing is looked up twice. Nothing here allocates: it runs between clone and execve.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat_raw};
use rustix::io::{Errno, Result};

const PATH_MAX: usize = 4096;
/// As many links as the kernel itself would follow (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// Opens `path` as seen from `root`, an `O_PATH` descriptor. With `in_root` false the caller's own root is where
/// absolute links lead: a test's way to show what the flag is for.
pub(crate) fn open(root: BorrowedFd<'_>, path: &CStr, in_root: bool) -> Result<OwnedFd> {
    let (path, flags) = if in_root {
        (path, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    } else {
        (relative(path), ResolveFlags::empty())
    };
    loop {
        // A rename anywhere on the host can make the kernel unsure about `..`; it says so and wants to be asked again.
        match openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), flags) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// As [`open`], but what is missing is made: directories with mode 755, at the end a directory or an empty file. A
/// dangling link is followed inside the root and its target made, as docker does for `/etc/resolv.conf`.
pub(crate) fn open_or_create(
    root: BorrowedFd<'_>,
    path: &CStr,
    kind: Kind,
    in_root: bool,
) -> Result<OwnedFd> {
    let mut buffer = [0u8; PATH_MAX];
    let mut length = path.to_bytes().len();
    if length >= PATH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    buffer[..length].copy_from_slice(path.to_bytes());
    let mut links = 0;
    // Each round makes one component or follows one link, so the count is bounded by the path and MAX_LINKS.
    for _ in 0..PATH_MAX {
        match open(root, terminated(&buffer)?, in_root) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let (parent, name, end) = first_missing(root, &mut buffer, length, in_root)?;
        let last = buffer[end..length].iter().all(|byte| *byte == b'/');
        let made = with_terminator(&mut buffer, end, |buffer| {
            let component = terminated(&buffer[name..])?;
            if last && kind == Kind::File {
                openat(
                    &parent,
                    component,
                    OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC,
                    Mode::from_raw_mode(0o644),
                )
                .map(drop)
            } else {
                mkdirat(&parent, component, Mode::from_raw_mode(0o755))
            }
        });
        match made {
            Ok(()) => {}
            Err(Errno::EXIST) if links < MAX_LINKS => {
                links += 1;
                length = follow(&parent, &mut buffer, name, end, length)?;
            }
            Err(Errno::EXIST) => return Err(Errno::LOOP),
            Err(error) => return Err(error),
        }
    }
    Err(Errno::LOOP)
}

/// The deepest directory that exists, and where in the buffer the first missing component starts and ends.
fn first_missing(
    root: BorrowedFd<'_>,
    buffer: &mut [u8; PATH_MAX],
    length: usize,
    in_root: bool,
) -> Result<(OwnedFd, usize, usize)> {
    let mut parent = open(root, c"/", in_root).or_else(|_| open(root, c".", in_root))?;
    let mut start = 0;
    loop {
        while start < length && buffer[start] == b'/' {
            start += 1;
        }
        if start >= length {
            // Every prefix is there by now: somebody made it meanwhile.
            return Err(Errno::AGAIN);
        }
        let end = buffer[start..length]
            .iter()
            .position(|byte| *byte == b'/')
            .map_or(length, |offset| start + offset);
        match with_terminator(buffer, end, |buffer| open(root, terminated(buffer)?, in_root)) {
            Ok(found) => parent = found,
            Err(Errno::NOENT) => return Ok((parent, start, end)),
            Err(error) => return Err(error),
        }
        start = end;
    }
}

/// Replaces the component `name..end`, a symbolic link in `parent`, by what it points to. Returns the new length.
fn follow(
    parent: &OwnedFd,
    buffer: &mut [u8; PATH_MAX],
    name: usize,
    end: usize,
    length: usize,
) -> Result<usize> {
    let mut target = [0u8; PATH_MAX];
    let read = with_terminator(buffer, end, |buffer| {
        readlinkat_raw(parent, terminated(&buffer[name..])?, &mut target[..])
    })?;
    let target = &target[..read];
    let mut rest = [0u8; PATH_MAX];
    let rest_length = length - end;
    rest[..rest_length].copy_from_slice(&buffer[end..length]);
    let start = if target.first() == Some(&b'/') { 0 } else { name };
    let new_length = start + target.len() + rest_length;
    if new_length >= PATH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    buffer[start..start + target.len()].copy_from_slice(target);
    buffer[start + target.len()..new_length].copy_from_slice(&rest[..rest_length]);
    buffer[new_length..].fill(0);
    Ok(new_length)
}

fn with_terminator<T>(
    buffer: &mut [u8; PATH_MAX],
    end: usize,
    act: impl FnOnce(&[u8; PATH_MAX]) -> Result<T>,
) -> Result<T> {
    let before = std::mem::replace(&mut buffer[end], 0);
    let result = act(buffer);
    buffer[end] = before;
    result
}

fn terminated(bytes: &[u8]) -> Result<&CStr> {
    CStr::from_bytes_until_nul(bytes).map_err(|_| Errno::NAMETOOLONG)
}

fn relative(path: &CStr) -> &CStr {
    let bytes = path.to_bytes_with_nul();
    let slashes = bytes.iter().take_while(|byte| **byte == b'/').count();
    match CStr::from_bytes_with_nul(&bytes[slashes..]) {
        Ok(rest) if !rest.is_empty() => rest,
        _ => c".",
    }
}
