//! How it ends: hang-ups, garbage, orphans, and init as a real PID 1.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // also in what the tests share

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use luna_core::Kind;
use luna_core::process::ExitStatus;
use luna_guest::init::HANGUP;
use luna_guest::protocol::Reply::{Done, Started};
use luna_guest::protocol::{FrameKind, Hello, Request, VERSION, encode, header};
use luna_guest::session::Session;
use support::{Guest, finish, process, run, shell, spawn_init};

fn alive(pid: &str) -> bool {
    // A zombie waits for its reaper and runs no more.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} took too long");
        std::thread::yield_now();
    }
}

/// A shell that starts a daemon in a session of its own and says its pid, then sleeps.
const DAEMON: &str = "setsid sleep 5000 & echo $!; exec sleep 5000";

fn line(mut reader: impl Read) -> String {
    let mut text = String::new();
    let mut byte = [0];
    while !text.ends_with('\n') {
        reader.read_exact(&mut byte).unwrap();
        text.push(byte[0].into());
    }
    text.trim().to_owned()
}

#[test]
fn a_hang_up_kills_everything() {
    for around in [&[][..], &["unshare", "-p", "-f", "--kill-child"]] {
        if !around.is_empty() && !rustix::process::geteuid().is_root() {
            println!("skipped: not root");
            continue;
        }
        let mut guest = Guest::within(around);
        let mut main = guest.session.start(&shell(DAEMON)).unwrap();
        let said = line(&mut main.stdout);
        if around.is_empty() {
            assert!(alive(&said));
        }
        guest.session.close();
        assert_eq!(guest.init.wait().unwrap().code(), Some(HANGUP.into()));
        if around.is_empty() {
            wait_until("the daemon's end", || !alive(&said));
        }
        let error = main.handle().wait().unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
    }
}

#[test]
fn dropping_every_handle_hangs_up() {
    let (near, far) = UnixStream::pair().unwrap();
    let mut init = spawn_init(far, &[]);
    let session = Session::open(near.into()).unwrap();
    let child = session.start(&process(&["sleep", "5000"])).unwrap();
    drop(session);
    assert!(child.handle().signal(0).is_ok(), "a handle keeps the session");
    drop(child);
    assert_eq!(init.wait().unwrap().code(), Some(HANGUP.into()));
}

#[test]
fn the_main_process_takes_everything_with_it() {
    let mut guest = Guest::new();
    let mut bystander = guest.session.exec(&shell(DAEMON)).unwrap();
    let daemon = line(&mut bystander.stdout);
    let main = guest.session.start(&shell("exit 7")).unwrap();
    assert_eq!(finish(main).status, ExitStatus::Code(7));
    assert_eq!(guest.init.wait().unwrap().code(), Some(7));
    assert!(!alive(&daemon));
    // The other process' end was told before init left.
    assert_eq!(finish(bystander).status.code(), 137);
}

#[test]
fn nobody_outlives_the_main_process() {
    let mut guest = Guest::new();
    run(&guest.session, &process(&["true"]));
    let daemon = run(
        &guest.session,
        &shell("setsid sleep 5000 >/dev/null 2>&1 & echo $!"),
    )
    .stdout;
    assert!(alive(daemon.trim()));
    assert!(
        finish(guest.session.start(&process(&["true"])).unwrap())
            .status
            .success()
    );
    assert!(guest.init.wait().unwrap().success());
    assert!(!alive(daemon.trim()));
}

#[test]
fn as_pid_1_it_reaps_orphans_and_passes_on_signals() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    let mut guest = Guest::within(&["unshare", "-p", "-f", "-m", "--mount-proc", "--kill-child"]);
    let main = guest
        .session
        .start(&shell("trap 'exit 9' TERM; while :; do sleep 0.05; done"))
        .unwrap();
    // A hundred orphans whose parent does not wait for them.
    run(&guest.session, &shell("for i in $(seq 100); do (true &) ; done"));
    wait_until("reaping", || {
        let list = guest.session.processes().unwrap();
        list.iter().all(|process| process.state != 'Z')
    });
    assert!(main.handle().pid() > 1);
    run(&guest.session, &shell("kill -TERM 1"));
    assert_eq!(finish(main).status, ExitStatus::Code(9));
    assert_eq!(guest.init.wait().unwrap().code(), Some(9));
}

#[test]
fn init_hides_from_its_sandbox() {
    let guest = Guest::new();
    let mut spy = shell(
        "readlink /proc/$PPID/exe; cat /proc/$PPID/environ; ls /proc/$PPID/fd; ls -l /proc/self/fd | grep -c socket",
    );
    spy.user = "65534:65534".to_owned();
    let outcome = run(&guest.session, &spy);
    assert_eq!(outcome.stdout.trim(), "0", "{}", outcome.stdout);
    let open = run(&guest.session, &shell("ls /proc/self/fd")).stdout;
    assert_eq!(
        open.split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3"],
        "3 is ls's own"
    );
}

fn wire(stream: u32, kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    [&header(stream, kind, payload.len())[..], payload].concat()
}

#[test]
fn init_leaves_at_garbage() {
    let hello = wire(0, FrameKind::Message, &encode(&Hello { version: VERSION }));
    let cat = {
        let mut cat = process(&["sleep", "5000"]);
        cat.stdin = true;
        wire(1, FrameKind::Message, &encode(&Request::Exec(cat)))
    };
    let flood = wire(1, FrameKind::Data, &vec![0; 60_000]);
    for garbage in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        wire(0, FrameKind::Message, b""),
        [&hello[..], &hello].concat(),
        [&hello[..], &wire(5, FrameKind::Data, b"x")].concat(),
        // More than the window.
        [&hello[..], &cat, &flood, &flood, &flood, &flood, &flood].concat(),
        [&hello[..], &cat, &wire(1, FrameKind::Credit, &1u32.to_le_bytes())].concat(),
    ] {
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut init = spawn_init(far, &[]);
        // Init may have left before it has taken all.
        let _ = near.write_all(&garbage);
        assert_eq!(init.wait().unwrap().code(), Some(HANGUP.into()), "{garbage:?}");
    }
}

/// An init that says `words` after its hello and then waits; what the host makes of it.
fn lie(words: Vec<u8>) -> (Session, std::thread::JoinHandle<()>) {
    let (near, mut far) = UnixStream::pair().unwrap();
    let liar = std::thread::spawn(move || {
        far.write_all(&wire(0, FrameKind::Message, &encode(&Hello { version: VERSION })))
            .unwrap();
        // The request comes first, so that stream 1 is open.
        let mut request = [0; 64];
        while !request.contains(&(FrameKind::Message as u8)) || far.read(&mut request).is_ok_and(|n| n < 11) {
        }
        let _ = far.write_all(&words);
        let _ = far.read_to_end(&mut Vec::new());
    });
    (Session::open(near.into()).unwrap(), liar)
}

#[test]
fn the_host_closes_at_garbage() {
    let reply = |reply| wire(1, FrameKind::Message, &encode(&reply));
    for words in [
        b"\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        wire(9, FrameKind::End, &[]),
        wire(1, FrameKind::Message, b"\xee"),
        wire(1, FrameKind::Part, b"\x02"),
        reply(Done),
        [wire(1, FrameKind::End, &[]), wire(1, FrameKind::End, &[])].concat(),
        [reply(Started { pid: 1 }), reply(Done), reply(Done)].concat(),
        wire(1, FrameKind::Credit, &1u32.to_le_bytes()),
    ] {
        let (session, liar) = lie(words.clone());
        let first = session
            .exec(&process(&["true"]))
            .and_then(|child| child.handle().wait());
        assert_eq!(first.unwrap_err().kind(), Kind::Corrupt, "{words:?}");
        assert_eq!(
            session.exec(&process(&["true"])).unwrap_err().kind(),
            Kind::Corrupt
        );
        liar.join().unwrap();
    }
}

#[test]
fn a_silent_init_is_given_up() {
    let (near, far) = UnixStream::pair().unwrap();
    drop(far);
    assert_eq!(Session::open(near.into()).unwrap_err().kind(), Kind::Unavailable);
}

#[test]
fn init_without_a_channel_leaves() {
    let status = Command::new("sh")
        .args(["-c", "exec \"$0\" 3<&-", env!("CARGO_BIN_EXE_luna-init")])
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(HANGUP.into()));
}
