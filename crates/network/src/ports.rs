//! Port mappings: listeners on the host whose connections are carried into a sandbox.
//!
//! [`Ports::bind`] takes every port first, so that a taken one is an error before anything starts; [`Ports::serve`]
//! then accepts. The way in is a closure that opens one connection to a port inside, as two halves; with init's relay it
//! works in a sandbox without any network. Half-closes travel in both directions, and a side that goes away is closed
//! on the other. Dropping [`Ports`] closes the listeners; connections end with the sandbox.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use luna_core::spec::PortMapping;
use luna_core::{Error, Kind, Result};
use rustix::event::{PollFd, PollFlags};

/// Connections one sandbox may have open through its mappings; more wait in the listener's queue.
const CONNECTIONS: usize = 1024;
const STACK: usize = 64 << 10;
const PIECE: usize = 32 << 10;

/// One direction out of the sandbox and one into it. Dropping the writer without [`Inward::finish`] resets.
pub struct Inside {
    pub reader: Box<dyn Read + Send>,
    pub writer: Box<dyn Inward>,
}

impl std::fmt::Debug for Inside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inside")
    }
}

/// Bytes into the sandbox, with an end that can be said.
pub trait Inward: Write + Send {
    /// No more bytes follow; what comes out is still read.
    fn finish(&mut self) -> io::Result<()>;
}

/// Opens a connection to a port inside.
pub type Connect = Arc<dyn Fn(u16) -> Result<Inside> + Send + Sync>;

/// Listeners that are bound and not yet served.
#[derive(Debug)]
pub struct Ports {
    listeners: Vec<(TcpListener, PortMapping)>,
}

impl Ports {
    /// Binds every mapping or none. A host port of 0 is replaced by the one the system picked.
    pub fn bind(mappings: &[PortMapping]) -> Result<Ports> {
        let mut listeners = Vec::with_capacity(mappings.len());
        for mapping in mappings {
            let address = SocketAddr::new(mapping.address, mapping.host);
            let listener = TcpListener::bind(address).map_err(|error| {
                let taken = error.kind() == io::ErrorKind::AddrInUse;
                let error = Error::io(format!("cannot listen on `{address}`"), error);
                if taken {
                    error.hint(format!(
                        "stop what uses port {0}, or map another one: `-p 0:{1}` picks a free one",
                        mapping.host, mapping.sandbox
                    ))
                } else {
                    error
                }
            })?;
            let bound = listener
                .local_addr()
                .map_err(|e| Error::io(format!("cannot listen on `{address}`"), e))?;
            listeners.push((
                listener,
                PortMapping {
                    host: bound.port(),
                    ..*mapping
                },
            ));
        }
        Ok(Ports { listeners })
    }

    /// The mappings as bound.
    pub fn mappings(&self) -> Vec<PortMapping> {
        self.listeners.iter().map(|(_, mapping)| *mapping).collect()
    }

    /// Accepts until the returned handle is dropped.
    pub fn serve(self, connect: &Connect) -> Result<Serving> {
        let fail = |e: io::Error| Error::io("cannot serve port mappings", e);
        let mut threads = Vec::new();
        let mut stops = Vec::new();
        for (listener, mapping) in self.listeners {
            listener.set_nonblocking(true).map_err(fail)?;
            let (stop, stopped) = io::pipe()
                .map(|(reader, writer)| (OwnedFd::from(writer), OwnedFd::from(reader)))
                .map_err(fail)?;
            let connect = Arc::clone(connect);
            let thread = thread::Builder::new()
                .name(format!("port-{}", mapping.host))
                .stack_size(STACK)
                .spawn(move || accept(&listener, &stopped, mapping.sandbox, &connect))
                .map_err(fail)?;
            stops.push(stop);
            threads.push(thread);
        }
        Ok(Serving { stops, threads })
    }
}

/// Port mappings being served; dropping it closes the listeners and waits until they are closed.
#[derive(Debug)]
pub struct Serving {
    stops: Vec<OwnedFd>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Closing the writing end wakes the poll in `accept`.
        self.stops.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, stopped: &OwnedFd, port: u16, connect: &Connect) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let mut fds = [
            PollFd::new(stopped, PollFlags::IN),
            PollFd::new(listener, PollFlags::IN),
        ];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        if !fds[0].revents().is_empty() {
            return;
        }
        let outside = match listener.accept() {
            Ok((outside, _)) => outside,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted
                ) =>
            {
                continue;
            }
            Err(_) => {
                // Out of descriptors or memory: the peer waits in the queue meanwhile.
                thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (connect, count) = (Arc::clone(connect), Arc::clone(&open));
        let spawned = thread::Builder::new()
            .name("relay".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                relay(outside, port, &connect);
                count.fetch_sub(1, Ordering::Relaxed);
            });
        if spawned.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn relay(outside: TcpStream, port: u16, connect: &Connect) {
    let _ = outside.set_nonblocking(false);
    let _ = outside.set_nodelay(true);
    let Ok(Inside {
        mut reader,
        mut writer,
    }) = connect(port)
    else {
        return reset(&outside);
    };
    let Ok(mut from_outside) = outside.try_clone() else {
        return;
    };
    let inward = thread::Builder::new()
        .name("relay".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            if pump(&mut from_outside, &mut *writer).is_ok() {
                let _ = writer.finish();
            }
        });
    let Ok(inward) = inward else { return };
    let mut to_outside = &outside;
    match pump(&mut reader, &mut to_outside) {
        Ok(()) => {
            let _ = outside.shutdown(Shutdown::Write);
        }
        Err(_) => reset(&outside),
    }
    let _ = inward.join();
}

/// Closes so that the peer sees a reset, as a refused or broken connection would look without a relay.
fn reset(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
    let _ = stream.shutdown(Shutdown::Read);
}

fn pump(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
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

/// The mapping a user wrote: `[address:]host:sandbox`, `sandbox` alone for a port the system picks.
pub fn parse(text: &str) -> Result<Vec<PortMapping>> {
    let invalid = |because: &str| {
        Error::new(
            Kind::InvalidInput,
            format!("cannot read the port mapping `{}`", text.escape_debug()),
        )
        .because(because.to_owned())
        .hint("write `8080:80`, `0.0.0.0:8080:80`, `[::1]:8080:80` or `80` for a free port")
    };
    let body = match text.rsplit_once('/') {
        Some((body, protocol)) if protocol.eq_ignore_ascii_case("tcp") => body,
        Some(_) => return Err(invalid("only tcp can be mapped")),
        None => text,
    };
    let (address, ports) = if let Some(rest) = body.strip_prefix('[') {
        let (address, ports) = rest
            .split_once("]:")
            .ok_or_else(|| invalid("the address has no end"))?;
        (Some(address), ports)
    } else if body.matches(':').count() == 2 {
        body.split_once(':')
            .map(|(address, ports)| (Some(address), ports))
            .expect("two colons were counted")
    } else {
        (None, body)
    };
    let address = match address {
        None | Some("localhost") => std::net::Ipv4Addr::LOCALHOST.into(),
        Some(address) => address
            .parse()
            .map_err(|_| invalid("the address is no IP address"))?,
    };
    let range = |text: &str| -> Option<(u16, u16)> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last).then_some((first, last))
    };
    let (host, sandbox) = ports.split_once(':').unwrap_or(("0", ports));
    let host = if host.is_empty() { "0" } else { host };
    let (host_first, host_last) =
        range(host).ok_or_else(|| invalid("the host's port is no number from 0 to 65535"))?;
    let (first, last) =
        range(sandbox).ok_or_else(|| invalid("the sandbox's port is no number from 1 to 65535"))?;
    if first == 0 {
        return Err(invalid("the sandbox's port cannot be 0"));
    }
    if (host_first, host_last) != (0, 0) && host_last - host_first != last - first {
        return Err(invalid("the two ranges differ in length"));
    }
    Ok((first..=last)
        .map(|sandbox| PortMapping {
            address,
            host: if host_last == 0 {
                0
            } else {
                host_first + (sandbox - first)
            },
            sandbox,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_read_as_docker_reads_them() {
        let table = [
            ("8080:80", "127.0.0.1", 8080, 80),
            ("80", "127.0.0.1", 0, 80),
            ("0:80/tcp", "127.0.0.1", 0, 80),
            ("0.0.0.0:1:2", "0.0.0.0", 1, 2),
            ("0.0.0.0::2", "0.0.0.0", 0, 2),
            ("[::1]:1:2", "::1", 1, 2),
        ];
        for (text, address, host, sandbox) in table {
            let expected = PortMapping {
                address: address.parse().unwrap(),
                host,
                sandbox,
            };
            assert_eq!(parse(text).unwrap(), [expected], "{text}");
        }
        assert_eq!(parse("8000-8002:80-82").unwrap().len(), 3);
        for bad in [
            "", "a", "1:0", "1:2/udp", "70000:1", "1-2:3", "x:1:2", "[::1:1:2", "3-1:3-1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    struct Half(TcpStream);
    impl Write for Half {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    impl Inward for Half {
        fn finish(&mut self) -> io::Result<()> {
            self.0.shutdown(Shutdown::Write)
        }
    }

    fn any_port() -> PortMapping {
        PortMapping {
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            host: 0,
            sandbox: 7,
        }
    }

    #[test]
    fn bytes_and_half_closes_go_both_ways() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = server.local_addr().unwrap();
        let echo = thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        let connect: Connect = Arc::new(move |port| {
            assert_eq!(port, 7);
            let stream = TcpStream::connect(target).unwrap();
            Ok(Inside {
                reader: Box::new(stream.try_clone().unwrap()),
                writer: Box::new(Half(stream)),
            })
        });
        let ports = Ports::bind(&[any_port()]).unwrap();
        let bound = ports.mappings()[0];
        let serving = ports.serve(&connect).unwrap();
        let mut client = TcpStream::connect((bound.address, bound.host)).unwrap();
        let sent = vec![7; 1 << 20];
        let mut writer = client.try_clone().unwrap();
        let body = sent.clone();
        let writing = thread::spawn(move || {
            writer.write_all(&body).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        assert!(back == sent);
        writing.join().unwrap();
        echo.join().unwrap();
        drop(serving);
        assert!(TcpStream::connect((bound.address, bound.host)).is_err());
    }

    #[test]
    fn a_refused_way_in_is_a_reset_outside() {
        let connect: Connect = Arc::new(|_| Err(Error::new(Kind::Unavailable, "nobody listens")));
        let ports = Ports::bind(&[any_port()]).unwrap();
        let bound = ports.mappings()[0];
        let _serving = ports.serve(&connect).unwrap();
        let mut client = TcpStream::connect((bound.address, bound.host)).unwrap();
        let mut byte = [0];
        assert!(!matches!(client.read(&mut byte), Ok(1..)));
    }

    #[test]
    fn a_port_in_use_is_named_and_nothing_stays_bound() {
        let first = Ports::bind(&[any_port()]).unwrap();
        let taken = first.mappings()[0];
        let error = Ports::bind(&[any_port(), taken]).unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(error.message().contains(&taken.host.to_string()));
        assert!(error.hint_text().is_some());
    }
}
