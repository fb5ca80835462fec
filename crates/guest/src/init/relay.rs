//! Connections to a port inside: TCP to 127.0.0.1, then to ::1.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::protocol::{Failure, Reply, Stage};

use super::Flow;
use super::channel::Queue;
use super::flow::{Inward, Outward, Sink};

/// Connections under way, by stream.
#[derive(Default)]
pub(super) struct Connecting(BTreeMap<u32, Attempt>);

struct Attempt {
    socket: OwnedFd,
    /// To be tried if this one fails.
    next: Option<SocketAddr>,
}

impl Connecting {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        self.0
            .iter()
            .map(|(stream, attempt)| (*stream, attempt.socket.as_fd()))
    }

    /// The host changed its mind.
    pub(super) fn forget(&mut self, stream: u32) {
        self.0.remove(&stream);
    }

    pub(super) fn start(&mut self, stream: u32, port: u16) -> Result<(), Failure> {
        let first = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let second = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        let (socket, next) = match connect(first) {
            Ok(socket) => (socket, Some(second)),
            Err(errno) => (connect(second).map_err(|_| failure(errno))?, None),
        };
        self.0.insert(stream, Attempt { socket, next });
        Ok(())
    }

    /// The attempt's socket is connected or has failed.
    pub(super) fn settle(&mut self, stream: u32, flows: &mut BTreeMap<u32, Flow>, queue: &mut Queue) {
        let Some(attempt) = self.0.remove(&stream) else {
            return;
        };
        let error = match rustix::net::sockopt::socket_error(&attempt.socket) {
            Ok(Ok(())) => match without_delay(attempt.socket).and_then(relay) {
                Ok(flow) => {
                    flows.insert(stream, flow);
                    queue.reply(stream, &Reply::Done);
                    return;
                }
                Err(errno) => errno,
            },
            Ok(Err(errno)) | Err(errno) => errno,
        };
        match attempt.next.map(connect) {
            Some(Ok(socket)) => {
                self.0.insert(stream, Attempt { socket, next: None });
            }
            _ => queue.fail(stream, failure(error)),
        }
    }
}

fn failure(errno: Errno) -> Failure {
    Failure::new(Stage::Connect, errno.raw_os_error())
}

fn connect(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

fn without_delay(socket: OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
    Ok(socket)
}

/// A connected stream socket that does not block, carried both ways.
pub(super) fn relay(socket: OwnedFd) -> Result<Flow, Errno> {
    let source = rustix::io::fcntl_dupfd_cloexec(&socket, 3)?;
    Ok(Flow {
        outward: Some(Outward::new(source)),
        inward: Some(Inward::new(Sink::Socket(socket))),
    })
}

/// Makes closing `socket` a reset, as the host's side was.
pub(super) fn reset_on_close(socket: BorrowedFd<'_>) {
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}
