//! Connections made inside to a socket that init offers, through a real init.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use luna_core::Kind;
use luna_guest::protocol::MAX_STREAMS;
use support::{Guest, finish, process, run};

struct World {
    guest: Guest,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let guest = Guest::offering(&[&path]);
        World {
            guest,
            path,
            _directory: directory,
        }
    }

    fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// As a program inside does it.
    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    /// A host that sends back what it gets, for so many connections.
    fn echo(&self, connections: usize) -> thread::JoinHandle<()> {
        let (session, name) = (self.guest.session.clone(), self.name().to_owned());
        thread::spawn(move || {
            for _ in 0..connections {
                let (mut reader, mut writer) = session.accept(&name).unwrap();
                thread::spawn(move || {
                    std::io::copy(&mut reader, &mut writer).unwrap();
                    writer.finish().unwrap();
                });
            }
        })
    }
}

#[test]
fn each_direction_ends_by_itself() {
    let world = World::new();
    let echo = world.echo(1);
    let mut socket = world.connect();
    socket.write_all(b"hello").unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello");
    echo.join().unwrap();
}

#[test]
fn a_connection_made_before_anybody_asks_waits() {
    let world = World::new();
    let mut socket = world.connect();
    socket.write_all(b"early").unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    // Init heard the request before, so it had time to mistake the connection for something else.
    run(&world.guest.session, &process(&["true"]));
    let (mut reader, _writer) = world.guest.session.accept(world.name()).unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "early");
}

#[test]
fn a_thousand_connections_each_to_its_own() {
    let world = World::new();
    let echo = world.echo(1000);
    let mut sockets: Vec<_> = (0..1000).map(|_| world.connect()).collect();
    for (number, socket) in sockets.iter_mut().enumerate() {
        socket.write_all(&(number as u64).to_le_bytes()).unwrap();
    }
    for (number, mut socket) in sockets.into_iter().enumerate() {
        let mut back = [0; 8];
        socket.read_exact(&mut back).unwrap();
        assert_eq!(u64::from_le_bytes(back), number as u64);
        socket.shutdown(Shutdown::Write).unwrap();
        assert_eq!(socket.read(&mut back).unwrap(), 0);
    }
    echo.join().unwrap();
}

#[test]
fn a_hundred_megabytes_both_ways_without_loss() {
    let world = World::new();
    let echo = world.echo(1);
    let socket = world.connect();
    let pattern: Vec<u8> = (0..1_000_003u32).map(|n| (n % 251) as u8).collect();
    let (mut sender, sent) = (socket.try_clone().unwrap(), pattern.clone());
    let sending = thread::spawn(move || {
        for _ in 0..100 {
            sender.write_all(&sent).unwrap();
        }
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let mut socket = socket;
    let mut back = vec![0; pattern.len()];
    for round in 0..100 {
        socket.read_exact(&mut back).unwrap();
        assert!(back == pattern, "round {round}");
    }
    assert_eq!(socket.read(&mut back).unwrap(), 0);
    sending.join().unwrap();
    echo.join().unwrap();
}

#[test]
fn a_host_that_breaks_off_ends_the_connection_inside() {
    let world = World::new();
    let mut socket = world.connect();
    let (reader, mut writer) = world.guest.session.accept(world.name()).unwrap();
    writer.write_all(b"half").unwrap();
    drop(writer);
    let mut text = Vec::new();
    socket.read_to_end(&mut text).unwrap();
    assert_eq!(text, b"half");
    drop(reader);
    let error = loop {
        if let Err(error) = socket.write_all(&[0; 4096]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    // The socket itself goes on.
    let echo = world.echo(1);
    let mut socket = world.connect();
    socket.write_all(b"x").unwrap();
    socket.read_exact(&mut [0]).unwrap();
    echo.join().unwrap();
}

#[test]
fn a_program_that_leaves_unread_bytes_breaks_off() {
    let world = World::new();
    let mut socket = world.connect();
    let (mut reader, mut writer) = world.guest.session.accept(world.name()).unwrap();
    writer.write_all(&[0; 1000]).unwrap();
    socket.read_exact(&mut [0]).unwrap();
    drop(socket);
    let error = reader.read(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_path_that_is_not_offered_is_told() {
    let world = World::new();
    let error = world.guest.session.accept("/no/such").unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    // An ordinary init offers none.
    let guest = Guest::new();
    assert_eq!(
        guest.session.accept(world.name()).unwrap_err().kind(),
        Kind::NotFound
    );
}

#[test]
fn the_end_of_the_session_ends_the_wait_and_the_connections() {
    let world = World::new();
    let mut socket = world.connect();
    let (_reader, _writer) = world.guest.session.accept(world.name()).unwrap();
    let (session, name) = (world.guest.session.clone(), world.name().to_owned());
    let waiter = thread::spawn(move || session.accept(&name).unwrap_err().kind());
    world.guest.session.close();
    assert_eq!(waiter.join().unwrap(), Kind::Unavailable);
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
}

#[test]
fn those_who_wait_leave_a_way_in() {
    let world = World::new();
    let (session, name) = (&world.guest.session, world.name());
    let sleeper = session.exec(&process(&["sleep", "5000"])).unwrap();
    let refused = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..MAX_STREAMS {
            let waiter = thread::Builder::new().stack_size(64 << 10);
            let wait = || {
                if session.accept(name).unwrap_err().kind() == Kind::Exhausted {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            };
            waiter.spawn_scoped(scope, wait).unwrap();
        }
        while refused.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        assert_eq!(run(session, &process(&["echo", "in"])).stdout, "in\n");
        sleeper.handle().signal(9).unwrap();
        assert_eq!(finish(sleeper).status.code(), 137);
        session.close();
    });
    assert!(refused.into_inner() < MAX_STREAMS / 2);
}
