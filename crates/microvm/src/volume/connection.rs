//! The connection between QEMU and a daemon, made before either is there.
//!
//! The library that speaks vhost-user takes no connected socket, only one to accept from. So one is made under an abstract
//! name that nobody knows, with room for a single connection that nobody has accepted: if connecting here succeeds, that
//! one is ours, and whoever comes after it is never heard. No file is left behind by whatever ends this process.

use std::fmt::Write;
use std::os::fd::OwnedFd;

use luna_core::{Error, Result};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::rand::GetRandomFlags;

/// Somebody would have to guess 128 random bits to take the place once.
const ATTEMPTS: usize = 3;

/// A listening socket in whose queue the other end of the connected one waits.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let mut last = Errno::AGAIN;
    for _ in 0..ATTEMPTS {
        match attempt() {
            Ok(pair) => return Ok(pair),
            Err(errno) => last = errno,
        }
    }
    Err(Error::io("cannot make the connection to a volume", last))
}

fn attempt() -> Result<(OwnedFd, OwnedFd), Errno> {
    let socket = |flags| {
        rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | flags,
            None,
        )
    };
    let listener = socket(SocketFlags::empty())?;
    let address = SocketAddrUnix::new_abstract_name(name()?.as_bytes())?;
    rustix::net::bind(&listener, &address)?;
    // The kernel adds one to it.
    rustix::net::listen(&listener, 0)?;
    // Refused at once where it would have to wait for room.
    let connection = socket(SocketFlags::NONBLOCK)?;
    rustix::net::connect(&connection, &address)?;
    rustix::io::ioctl_fionbio(&connection, false)?;
    Ok((listener, connection))
}

fn name() -> Result<String, Errno> {
    let mut random = [0u8; 16];
    rustix::rand::getrandom(&mut random, GetRandomFlags::empty())?;
    let mut name = "luna-volume-".to_owned();
    for byte in random {
        write!(name, "{byte:02x}").expect("a String takes every write");
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    use super::*;

    #[test]
    fn the_first_connection_is_ours_and_a_stranger_finds_no_room() {
        let (listener, connection) = pair().unwrap();
        let listener = UnixListener::from(listener);
        let address = listener.local_addr().unwrap();
        let name = SocketAddr::from_abstract_name(address.as_abstract_name().unwrap()).unwrap();
        let stranger = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        let to = SocketAddrUnix::new_abstract_name(name.as_abstract_name().unwrap()).unwrap();
        assert_eq!(rustix::net::connect(&stranger, &to), Err(Errno::AGAIN));
        UnixStream::from(connection).write_all(b"ours").unwrap();
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "ours");
    }
}
