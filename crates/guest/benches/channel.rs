//! What the channel costs: one request, one process, standard output and a relay in bulk, init's memory.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss)] // a program that measures

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use support::{Guest, finish, process, shell};

const BULK: usize = 1 << 30;

fn main() {
    let guest = Guest::new();
    let idle = memory(guest.init.id());
    requests(&guest);
    processes(&guest);
    output(&guest);
    direct();
    relay(&guest, false);
    relay(&guest, true);
    println!("init's memory: {idle} idle, {} after", memory(guest.init.id()));
    println!(
        "session's threads and this program: {}",
        memory(std::process::id())
    );
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn requests(guest: &Guest) {
    let child = guest.session.exec(&process(&["sleep", "1000"])).unwrap();
    let handle = child.handle();
    let time = || {
        let start = Instant::now();
        handle.signal(0).unwrap();
        start.elapsed()
    };
    println!(
        "request and answer: {:?}",
        median((0..2000).map(|_| time()).collect())
    );
    handle.signal(9).unwrap();
}

fn processes(guest: &Guest) {
    let time = || {
        let start = Instant::now();
        assert!(
            finish(guest.session.exec(&process(&["/bin/true"])).unwrap())
                .status
                .success()
        );
        start.elapsed()
    };
    println!(
        "`true` from request to exit: {:?}",
        median((0..200).map(|_| time()).collect())
    );
}

fn report(what: &str, bytes: usize, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{what}: {:.1} Gbit/s", bytes as f64 * 8.0 / seconds / 1e9);
}

fn output(guest: &Guest) {
    let child = guest
        .session
        .exec(&shell(&format!("head -c {BULK} /dev/zero")))
        .unwrap();
    let start = Instant::now();
    report("standard output", drain(child.stdout), start);
}

fn drain(mut reader: impl Read) -> usize {
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        match reader.read(&mut buffer).unwrap() {
            0 => return total,
            count => total += count,
        }
    }
}

fn fill(mut writer: impl Write) {
    let chunk = vec![0; 64 * 1024];
    for _ in 0..BULK / chunk.len() {
        writer.write_all(&chunk).unwrap();
    }
}

/// The same bytes over one TCP connection, for comparison.
fn direct() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || fill(listener.accept().unwrap().0));
    let start = Instant::now();
    let socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    report("without a relay", drain(socket), start);
    server.join().unwrap();
}

fn relay(guest: &Guest, inwards: bool) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        if inwards {
            assert_eq!(drain(socket), BULK);
        } else {
            fill(socket);
        }
    });
    let (reader, mut writer) = guest.session.connect(port).unwrap();
    let start = Instant::now();
    if inwards {
        fill(&mut writer);
        writer.finish().unwrap();
        server.join().unwrap();
        report("relay inwards", BULK, start);
    } else {
        report("relay outwards", drain(reader), start);
        server.join().unwrap();
    }
}

/// Proportional set size.
fn memory(pid: u32) -> String {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.trim_start_matches("Pss:").trim().to_owned()
}
