//! What goes in and comes out: standard streams, logs, ports; all of it, and in order.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Stdio;
use std::thread;

use contract::bounded;
use contract::luna::{LIMIT, Luna};

const MEBIBYTE: usize = 1 << 20;

pub(crate) fn standard_input_and_its_end(luna: &Luna) {
    let words = luna.words("run", &["--rm", "--interactive"], &["sha256sum"]);
    let input: Vec<u8> = pattern(3 * MEBIBYTE);
    let said = luna.fed(&words, &input);
    let expected = luna.fed(
        &luna.words("run", &["--rm", "--interactive"], &["wc", "-c"]),
        &input,
    );
    assert!(said.success() && said.output.contains('-'), "{said:?}");
    assert_eq!(expected.output.trim(), input.len().to_string());
    // Not connected: at its end from the start.
    let said = luna.fed(&luna.words("run", &["--rm"], &["cat"]), b"unseen");
    assert!(said.success() && said.output.is_empty(), "{said:?}");
}

/// Bytes that tell when one is lost or out of place.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let step = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(step).take(length).collect()
}

/// A hundred megabytes in lines, in a directory that a sandbox can mount on `/given`.
fn plenty(luna: &Luna) -> (Vec<u8>, String) {
    let mut bytes = pattern(100 * MEBIBYTE);
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = if place % 1000 == 999 {
            b'\n'
        } else {
            b'a' + *byte % 26
        };
    }
    let directory = luna.path("given");
    std::fs::create_dir(&directory).expect("a temporary directory can be filled");
    std::fs::write(directory.join("plenty"), &bytes).expect("a temporary directory can be filled");
    (bytes, format!("{}:/given:ro", directory.display()))
}

pub(crate) fn a_hundred_megabytes_of_output(luna: &Luna) {
    let (expected, bind) = plenty(luna);
    let mut command =
        luna.command(&luna.words("run", &["--rm", "--volume", &bind], &["cat", "/given/plenty"]));
    let mut child = command
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .expect("luna can be spawned");
    let mut output = child.stdout.take().expect("it was asked for");
    let mut bytes = Vec::with_capacity(expected.len());
    output.read_to_end(&mut bytes).expect("a pipe is readable");
    assert!(child.wait().is_ok_and(|status| status.success()));
    assert!(
        bytes == expected,
        "{} of {} bytes, or others",
        bytes.len(),
        expected.len()
    );
}

pub(crate) fn logs(luna: &Luna) {
    luna.start("talker", &[], "echo one; echo two >&2; echo three");
    luna.must(&["wait", "talker"]);
    let said = luna.luna(&["logs", "talker"]);
    assert_eq!(said.output, "one\nthree\n");
    assert_eq!(said.errors, "two\n");
    let last = luna.luna(&["logs", "--tail", "1", "talker"]);
    assert_eq!(
        last.output.len() + last.errors.len(),
        last.output.trim().len() + last.errors.trim().len() + 1
    );
    let stamped = luna.must(&["logs", "--timestamps", "talker"]);
    assert!(stamped.starts_with("20") && stamped.contains(" one"), "{stamped}");
    let followed = luna.must(&["logs", "--follow", "talker"]);
    assert_eq!(followed, "one\nthree\n", "following what has ended ends");
}

/// The host's port of `name`, which listens on 8080 inside.
fn port(luna: &Luna, name: &str) -> u16 {
    let said = luna.must(&["port", name, "8080"]);
    let line = said.lines().next().unwrap_or_default().to_owned();
    line.rsplit(':')
        .next()
        .and_then(|port| port.trim().parse().ok())
        .expect("luna port prints a port")
}

/// Connects once something listens inside.
fn connect(port: u16) -> TcpStream {
    let mut found = None;
    bounded::wait_until(LIMIT, || {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
            return false;
        };
        // A relay to where nobody listens ends at once; the server inside says a word first.
        let mut word = [0; 6];
        let there = stream.read_exact(&mut word).is_ok() && word == *b"hello\n";
        found = Some(stream);
        there
    });
    found.expect("the port is open")
}

const ECHO: &str = "exec nc -ll -p 8080 -e sh -c 'echo hello; exec cat'";

pub(crate) fn a_port_both_ways(luna: &Luna) {
    luna.start("echo", &["--publish", "127.0.0.1:0:8080"], ECHO);
    let port = port(luna, "echo");
    let stream = connect(port);
    let sent = pattern(10 * MEBIBYTE);
    let mut back = stream.try_clone().expect("a socket can be cloned");
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        back.read_to_end(&mut bytes).map(|_| bytes)
    });
    let mut forth = stream;
    forth.write_all(&sent).expect("the relay takes it");
    // Half closed: the rest still has to come back.
    forth
        .shutdown(Shutdown::Write)
        .expect("a socket can be half closed");
    let received = reader
        .join()
        .expect("the reader lives")
        .expect("the relay gives it back");
    assert!(
        received == sent,
        "{} of {} bytes came back",
        received.len(),
        sent.len()
    );
    luna.must(&["rm", "--force", "echo"]);
    assert!(
        TcpStream::connect(("127.0.0.1", port)).is_err(),
        "the port is closed with the sandbox"
    );
}

pub(crate) fn a_hundred_megabytes_through_a_port(luna: &Luna) {
    let (expected, bind) = plenty(luna);
    let script = "exec nc -ll -p 8080 -e sh -c 'echo hello; exec cat /given/plenty'";
    luna.start(
        "source",
        &["--volume", &bind, "--publish", "127.0.0.1:0:8080"],
        script,
    );
    let mut stream = connect(port(luna, "source"));
    let mut bytes = Vec::with_capacity(expected.len());
    stream.read_to_end(&mut bytes).expect("the relay gives all of it");
    assert!(
        bytes == expected,
        "{} of {} bytes, or others",
        bytes.len(),
        expected.len()
    );
}

pub(crate) fn a_port_in_use(luna: &Luna) {
    let taken = TcpListener::bind("127.0.0.1:0").expect("the host has a loopback");
    let number = taken.local_addr().expect("a bound socket has an address").port();
    let publish = format!("127.0.0.1:{number}:8080");
    let said = luna.run(&["--publish", &publish], &["true"]);
    assert_eq!(said.code(), Some(125), "{said:?}");
    assert!(said.errors.contains(&number.to_string()), "{said:?}");
    assert_eq!(
        luna.must(&["ps", "--all", "--quiet"]),
        "",
        "nothing is kept of a run that was to be removed"
    );
}
