//! Connections to a port inside, through a real init.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // also in what the tests share

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::thread;

use luna_core::Kind;
use luna_guest::protocol::MAX_STREAMS;
use support::{Guest, finish, process, run};

/// A server inside, as far as init is concerned: the test's own loopback.
fn serve(act: impl FnOnce(TcpStream) + Send + 'static) -> (u16, thread::JoinHandle<()>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (port, thread::spawn(move || act(listener.accept().unwrap().0)))
}

#[test]
fn each_direction_ends_by_itself() {
    let guest = Guest::new();
    let (port, server) = serve(|mut socket| {
        let mut question = String::new();
        socket.read_to_string(&mut question).unwrap();
        socket.write_all(format!("{question} indeed").as_bytes()).unwrap();
    });
    let (mut reader, mut writer) = guest.session.connect(port).unwrap();
    writer.write_all(b"hello").unwrap();
    writer.finish().unwrap();
    let mut answer = String::new();
    reader.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello indeed");
    server.join().unwrap();
}

#[test]
fn the_answer_may_end_before_the_question() {
    let guest = Guest::new();
    let (port, server) = serve(|mut socket| {
        socket.write_all(b"hi").unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        socket.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 3_000_000);
    });
    let (mut reader, mut writer) = guest.session.connect(port).unwrap();
    let mut answer = String::new();
    reader.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hi");
    writer.write_all(&vec![7; 3_000_000]).unwrap();
    writer.finish().unwrap();
    server.join().unwrap();
}

#[test]
fn a_reset_crosses_both_ways() {
    let guest = Guest::new();
    // From inside: a socket closed with unread bytes in it resets.
    let (port, server) = serve(|mut socket| {
        socket.read_exact(&mut [0]).unwrap();
    });
    let (mut reader, mut writer) = guest.session.connect(port).unwrap();
    writer.write_all(&[0; 1000]).unwrap();
    let error = reader.read(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    server.join().unwrap();
    // From outside: a writer dropped without finishing.
    let (port, server) = serve(|mut socket| {
        socket.read_exact(&mut [0]).unwrap();
        let error = socket.read(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
    let (reader, mut writer) = guest.session.connect(port).unwrap();
    writer.write_all(&[0]).unwrap();
    drop(writer);
    drop(reader);
    server.join().unwrap();
}

#[test]
fn a_closed_port_is_told() {
    let guest = Guest::new();
    let free = TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    assert_eq!(guest.session.connect(free).unwrap_err().kind(), Kind::Unavailable);
}

#[test]
fn what_listens_on_ipv6_alone_is_reached() {
    let guest = Guest::new();
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else {
        println!("skipped: this host has no ::1");
        return;
    };
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || listener.accept().unwrap().0.write_all(b"six").unwrap());
    let (mut reader, writer) = guest.session.connect(port).unwrap();
    let mut answer = String::new();
    reader.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "six");
    drop(writer);
    server.join().unwrap();
}

#[test]
fn connections_leave_a_way_in_for_signals_and_processes() {
    let guest = Guest::new();
    let sleeper = guest.session.exec(&process(&["sleep", "5000"])).unwrap();
    // Never accepted: the kernel's queue and init hold them.
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    rustix::net::listen(&listener, 4096).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut open = Vec::new();
    let error = loop {
        match guest.session.connect(port) {
            Ok(ends) => open.push(ends),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), Kind::Exhausted, "{error:?}");
    assert!(open.len() > MAX_STREAMS / 2, "{}", open.len());
    assert_eq!(run(&guest.session, &process(&["echo", "in"])).stdout, "in\n");
    sleeper.handle().signal(9).unwrap();
    assert_eq!(finish(sleeper).status.code(), 137);
}

#[test]
fn a_reader_that_stands_still_blocks_only_its_own_connection() {
    let guest = Guest::new();
    let (slow, flood) = serve(|mut socket| {
        let _ = socket.write_all(&vec![1; 50_000_000]);
    });
    let (stuck, idle) = guest.session.connect(slow).unwrap();
    let (port, server) = serve(|mut socket| {
        let mut bytes = vec![0; 10_000_000];
        socket.read_exact(&mut bytes).unwrap();
        socket.write_all(&bytes).unwrap();
    });
    let (mut reader, mut writer) = guest.session.connect(port).unwrap();
    let echo: Vec<u8> = (0..10_000_000u32).map(|n| (n % 251) as u8).collect();
    let sent = echo.clone();
    let sender = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.finish().unwrap();
    });
    let mut back = Vec::new();
    reader.read_to_end(&mut back).unwrap();
    assert!(back == echo);
    sender.join().unwrap();
    server.join().unwrap();
    drop((stuck, idle));
    flood.join().unwrap();
}
