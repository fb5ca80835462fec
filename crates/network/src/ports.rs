//! Port mappings: listeners on the host whose connections are carried into a sandbox.
//!
//! [`Ports::bind`] takes every port first, so that a taken one is an error before anything starts; [`Ports::serve`]
//! then accepts. The way in is a closure that opens one connection to a port inside, as two halves; with init's relay it
//! works in a sandbox without any network. Half-closes travel in both directions, and a side that goes away is closed
//! on the other. Dropping [`Serving`] closes the listeners; connections end with the sandbox.
//!
//! A sandbox has one budget of connections for all its mappings. While it is used up nothing is accepted, so further peers
//! wait in the listeners' queues, connected as far as they can see, until a connection ends.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use luna_core::spec::PortMapping;
use luna_core::{Error, Kind, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags};

/// Connections one sandbox may have open through all its mappings: half of what its init carries, so that there is room
/// for everything else.
const CONNECTIONS: u32 = 1024;
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
        self.serve_within(CONNECTIONS, connect)
    }

    fn serve_within(self, connections: u32, connect: &Connect) -> Result<Serving> {
        let fail = |e: io::Error| Error::io("cannot serve port mappings", e);
        let budget = Budget::new(connections).map_err(fail)?;
        let mut threads = Vec::new();
        let mut stops = Vec::new();
        for (listener, mapping) in self.listeners {
            listener.set_nonblocking(true).map_err(fail)?;
            let (stop, stopped) = io::pipe()
                .map(|(reader, writer)| (OwnedFd::from(writer), OwnedFd::from(reader)))
                .map_err(fail)?;
            let (connect, budget) = (Arc::clone(connect), budget.clone());
            let thread = thread::Builder::new()
                .name(format!("port-{}", mapping.host))
                .stack_size(STACK)
                .spawn(move || accept(&listener, &stopped, mapping.sandbox, &budget, &connect))
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

/// How many more connections may be opened, shared by a sandbox's listeners: a semaphore that can be polled.
#[derive(Clone)]
struct Budget(Arc<OwnedFd>);

/// One connection's share of the budget; dropping it gives it back.
struct Share(Budget);

impl Budget {
    fn new(connections: u32) -> io::Result<Budget> {
        let flags = EventfdFlags::SEMAPHORE | EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Budget(Arc::new(rustix::event::eventfd(connections, flags)?)))
    }

    /// `None` where the budget is used up.
    fn take(&self) -> io::Result<Option<Share>> {
        match rustix::io::read(&*self.0, &mut [0; 8]) {
            Ok(_) => Ok(Some(Share(self.clone()))),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // Fails only where the sum would pass 2⁶⁴.
        let _ = rustix::io::write(&*self.0.0, &1u64.to_ne_bytes());
    }
}

/// Waits until `other` can be read; false where the listener is to be closed, or polling is impossible.
fn readable(other: impl AsFd, stopped: &OwnedFd) -> bool {
    let mut fds = [
        PollFd::new(stopped, PollFlags::IN),
        PollFd::new(&other, PollFlags::IN),
    ];
    let polled = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None));
    polled.is_ok() && fds[0].revents().is_empty()
}

fn accept(listener: &TcpListener, stopped: &OwnedFd, port: u16, budget: &Budget, connect: &Connect) {
    while readable(listener, stopped) {
        // Taken only for a peer that is there: idle listeners hold nothing.
        let share = loop {
            match budget.take() {
                Ok(Some(share)) => break share,
                Ok(None) if readable(&*budget.0, stopped) => {}
                Ok(None) | Err(_) => return,
            }
        };
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
        let connect = Arc::clone(connect);
        // Where no thread can be had the connection is closed, and its share given back, with the closure.
        let _ = thread::Builder::new()
            .name("relay".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let _share = share;
                relay(&outside, port, &connect);
            });
    }
}

fn relay(outside: &TcpStream, port: u16, connect: &Connect) {
    let _ = outside.set_nonblocking(false);
    let _ = outside.set_nodelay(true);
    let Ok(Inside {
        mut reader,
        mut writer,
    }) = connect(port)
    else {
        return reset(outside);
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
    let mut to_outside = outside;
    match pump(&mut reader, &mut to_outside) {
        Ok(()) => {
            let _ = outside.shutdown(Shutdown::Write);
        }
        Err(_) => reset(outside),
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
    use std::os::unix::net::UnixStream;

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

    struct Half<S>(S);
    impl<S: Write> Write for Half<S> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    impl Inward for Half<TcpStream> {
        fn finish(&mut self) -> io::Result<()> {
            self.0.shutdown(Shutdown::Write)
        }
    }
    impl Inward for Half<UnixStream> {
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
    fn connections_over_the_budget_of_all_mappings_wait_for_one_to_end() {
        let (entered, inside) = std::sync::mpsc::channel();
        let connect: Connect = Arc::new(move |_| {
            let (near, far) = UnixStream::pair().unwrap();
            let writer = Half(near.try_clone().unwrap());
            entered.send(far).unwrap();
            Ok(Inside {
                reader: Box::new(near),
                writer: Box::new(writer),
            })
        });
        let ports = Ports::bind(&[any_port(), any_port()]).unwrap();
        let [one, other] = ports.mappings()[..] else {
            panic!("two mappings were asked for")
        };
        let serving = ports.serve_within(2, &connect).unwrap();
        let enter = |bound: PortMapping| TcpStream::connect((bound.address, bound.host)).unwrap();
        let first = enter(one);
        let first_inside = inside.recv().unwrap();
        let _second = enter(one);
        let _second_inside = inside.recv().unwrap();
        let mut third = enter(other);
        third.write_all(b"3").unwrap();
        assert!(inside.recv_timeout(Duration::from_millis(200)).is_err());
        drop((first, first_inside));
        let mut byte = [0];
        inside.recv().unwrap().read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"3");
        // A listener that waits for the budget stops, too.
        let _fourth = enter(one);
        drop(serving);
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
