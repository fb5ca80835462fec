//! Processes behind a real init: exits, streams, signals, terminals.

mod support;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use luna_core::Kind;
use luna_core::process::{ExitStatus, TerminalSize};
use support::{Guest, finish, process, run, shell};

#[test]
fn the_main_process_gives_init_its_exit_code() {
    for (script, code, status) in [
        ("exit 0", 0, ExitStatus::Code(0)),
        ("exit 42", 42, ExitStatus::Code(42)),
        (
            "kill -TERM $$",
            143,
            ExitStatus::Signal {
                number: 15,
                core_dumped: false,
            },
        ),
    ] {
        let mut guest = Guest::new();
        let outcome = finish(guest.session.start(&shell(script)).unwrap());
        assert_eq!(outcome.status, status, "{script}");
        assert_eq!(guest.init.wait().unwrap().code(), Some(code), "{script}");
    }
}

#[test]
fn output_is_whole_and_apart() {
    let guest = Guest::new();
    let outcome = run(&guest.session, &shell("echo out; echo err >&2; printf last"));
    assert_eq!((&*outcome.stdout, &*outcome.stderr), ("out\nlast", "err\n"));
}

#[test]
fn one_main_process_and_no_more() {
    let guest = Guest::new();
    let first = guest.session.start(&process(&["sleep", "60"])).unwrap();
    let error = guest.session.start(&process(&["true"])).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    first.handle().signal(9).unwrap();
    assert_eq!(finish(first).status.code(), 137);
}

#[test]
fn what_cannot_run_is_told_as_docker_tells_it() {
    let guest = Guest::new();
    let kind = |process| guest.session.exec(&process).unwrap_err().kind();
    assert_eq!(kind(process(&["no-such-program"])), Kind::CommandNotFound);
    assert_eq!(kind(process(&["/no/such/program"])), Kind::CommandNotFound);
    assert_eq!(kind(process(&["/etc/passwd"])), Kind::NotExecutable);
    assert_eq!(kind(process(&["/etc"])), Kind::NotExecutable);
    assert_eq!(kind(process(&[])), Kind::InvalidInput);
    let mut stranger = process(&["true"]);
    stranger.user = "no-such-user".to_owned();
    let error = guest.session.exec(&stranger).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.to_string().contains("no-such-user"), "{error:?}");
    // And the main process may be tried again, with the same session.
    assert!(guest.session.start(&process(&["no-such-program"])).is_err());
    assert!(
        finish(guest.session.start(&process(&["true"])).unwrap())
            .status
            .success()
    );
}

#[test]
fn the_end_of_input_arrives() {
    let guest = Guest::new();
    let mut cat = process(&["cat"]);
    cat.stdin = true;
    let mut child = guest.session.exec(&cat).unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"hello").unwrap();
    stdin.finish().unwrap();
    let outcome = finish(child);
    assert_eq!(outcome.stdout, "hello");
    assert!(outcome.status.success());
    // Without a standard input there is nothing to read at once.
    assert_eq!(run(&guest.session, &process(&["cat"])).stdout, "");
}

#[test]
fn a_full_stdout_blocks_neither_a_signal_nor_another_stream() {
    let guest = Guest::new();
    let flood = guest.session.exec(&process(&["yes"])).unwrap();
    assert_eq!(run(&guest.session, &shell("echo through")).stdout, "through\n");
    flood.handle().signal(15).unwrap();
    assert_eq!(finish(flood).status.code(), 143);
}

#[test]
fn a_hundred_megabytes_arrive_whole() {
    let guest = Guest::new();
    let size = 100 * 1024 * 1024;
    let child = guest
        .session
        .exec(&shell(&format!(
            "head -c {size} /dev/zero | tr '\\0' x; printf end"
        )))
        .unwrap();
    let handle = child.handle();
    let mut stdout = child.stdout;
    let mut buffer = vec![0; 100_000];
    let mut count = 0;
    let mut tail = Vec::new();
    loop {
        let read = stdout.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        count += read;
        tail.extend_from_slice(&buffer[read.saturating_sub(8)..read]);
    }
    assert_eq!(count, size + 3);
    assert!(tail.ends_with(b"xend"));
    assert!(handle.wait().unwrap().success());
}

#[test]
fn a_daemon_that_keeps_stdout_does_not_keep_the_exit() {
    let guest = Guest::new();
    let before = Instant::now();
    let outcome = run(&guest.session, &shell("sleep 60 & echo started"));
    assert_eq!(outcome.stdout, "started\n");
    assert!(outcome.status.success());
    assert!(before.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_terminal_has_its_size_and_one_stream() {
    let guest = Guest::new();
    let mut program = shell("stty size; echo $TERM; read line; stty size; tty; echo error >&2");
    program.terminal = Some(TerminalSize {
        rows: 24,
        columns: 80,
    });
    program.stdin = true;
    let mut child = guest.session.exec(&program).unwrap();
    assert!(child.stderr.is_none());
    let mut seen = String::new();
    let mut byte = [0];
    while !seen.ends_with("xterm\r\n") {
        child.stdout.read_exact(&mut byte).unwrap();
        seen.push(byte[0].into());
    }
    assert_eq!(seen, "24 80\r\nxterm\r\n");
    child
        .handle()
        .resize(TerminalSize {
            rows: 50,
            columns: 132,
        })
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"go\n").unwrap();
    let outcome = finish(child);
    assert!(
        outcome.stdout.contains("50 132\r\n/dev/pts/"),
        "{}",
        outcome.stdout
    );
    assert!(outcome.stdout.ends_with("error\r\n"), "{}", outcome.stdout);
}
