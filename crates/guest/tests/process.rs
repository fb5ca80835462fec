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
fn a_writer_learns_that_nobody_reads() {
    let guest = Guest::new();
    let mut sleep = process(&["sleep", "5000"]);
    sleep.stdin = true;
    let mut child = guest.session.exec(&sleep).unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let handle = child.handle();
    let writer = std::thread::spawn(move || {
        loop {
            if let Err(error) = stdin.write_all(&[0; 10_000]) {
                return error.kind();
            }
        }
    });
    handle.signal(9).unwrap();
    assert_eq!(finish(child).status.code(), 137);
    assert_eq!(writer.join().unwrap(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn many_at_once() {
    let guest = Guest::new();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let session = &guest.session;
            scope.spawn(move || {
                for round in 0..12 {
                    let mut program = shell("cat; head -c 300000 /dev/zero >&2");
                    program.stdin = true;
                    let mut child = session.exec(&program).unwrap();
                    let mut stdin = child.stdin.take().unwrap();
                    let text = format!("{number} {round} ").repeat(20_000);
                    let sent = text.clone();
                    let writer = std::thread::spawn(move || {
                        stdin.write_all(sent.as_bytes()).unwrap();
                        stdin.finish().unwrap();
                    });
                    let outcome = finish(child);
                    writer.join().unwrap();
                    assert!(outcome.stdout == text);
                    assert_eq!(outcome.stderr.len(), 300_000);
                    assert!(outcome.status.success());
                }
            });
        }
    });
}

#[test]
fn init_sleeps_while_nothing_can_move() {
    let guest = Guest::new();
    // Output that nobody reads, input that nobody reads, a terminal whose far side is closed with input on its way.
    let flood = guest.session.exec(&process(&["yes"])).unwrap();
    let mut deaf = process(&["sleep", "5000"]);
    deaf.stdin = true;
    let mut deaf = guest.session.exec(&deaf).unwrap();
    let mut stdin = deaf.stdin.take().unwrap();
    stdin.write_all(&vec![0; 200_000]).unwrap();
    let mut gone = shell("stty raw -echo; echo; sleep 0.5; exec 0<&- 1>&- 2>&-; sleep 5000");
    gone.terminal = Some(TerminalSize { rows: 1, columns: 1 });
    gone.stdin = true;
    let mut gone = guest.session.exec(&gone).unwrap();
    let mut typed = gone.stdin.take().unwrap();
    gone.stdout.read_exact(&mut [0]).unwrap();
    let _ = typed.write_all(&vec![b'x'; 200_000]);
    let _ = gone.stdout.read_to_end(&mut Vec::new());
    // Nanoseconds on a processor.
    let worked = || {
        let line = std::fs::read_to_string(format!("/proc/{}/schedstat", guest.init.id())).unwrap();
        line.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let before = worked();
        std::thread::sleep(Duration::from_millis(300));
        if worked() == before {
            break;
        }
        assert!(Instant::now() < deadline, "init does not come to rest");
    }
    drop((flood, deaf, gone));
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
