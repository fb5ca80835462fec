//! `run`, `exec`, `attach`: streams, exit codes, terminals.

use cli_tests::Luna;

#[test]
fn the_program_s_streams_and_exit_code_are_the_command_s() {
    let Some(luna) = Luna::new() else { return };
    let outcome = luna.run([
        "run",
        "--rm",
        "busybox",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);
    assert_eq!(
        (outcome.code, outcome.out.as_str(), outcome.err.as_str()),
        (7, "out\n", "err\n")
    );
    assert_eq!(
        luna.run(["run", "--rm", "busybox", "sh", "-c", "kill -9 $$"])
            .code,
        137
    );
    assert_eq!(
        luna.fed(["run", "--rm", "-i", "busybox", "cat"], b"both ways\n")
            .ok(),
        "both ways\n"
    );
    // Without `-i` there is no input, and large output loses nothing.
    assert_eq!(luna.fed(["run", "--rm", "busybox", "cat"], b"x").ok(), "");
    let large = luna
        .run(["run", "--rm", "busybox", "sh", "-c", "yes | head -c 3000000"])
        .ok();
    assert_eq!(large.len(), 3_000_000);
    assert_eq!(luna.line("ps --all --quiet").ok(), "", "`--rm` leaves nothing");
}

#[test]
fn what_cannot_run_has_docker_s_exit_codes() {
    let Some(luna) = Luna::new() else { return };
    let missing = luna.line("run --rm --name x busybox nope").fails(127);
    assert_eq!(
        missing,
        "error: cannot start `x`\n  because: cannot find `nope` in the sandbox's PATH\n"
    );
    let directory = luna.line("run --rm --name x busybox /etc/passwd").fails(126);
    assert!(directory.contains("Permission denied"), "{directory}");
    luna.line("run -d --name a busybox sleep 1000").ok();
    luna.line("exec a nope").fails(127);
    luna.line("exec a /etc/passwd").fails(126);
    assert_eq!(
        luna.line("exec nobody true").fails(125),
        "error: cannot find a sandbox `nobody`\n  hint: `luna ps -a` lists them all\n"
    );
}

#[test]
fn the_program_gets_what_the_flags_say() {
    let Some(luna) = Luna::new() else { return };
    let file = luna.path("variables");
    std::fs::write(&file, "# note\nA=file\nB=file\n").unwrap();
    let script = "echo $A $B; pwd; id -u; hostname; cat /proc/self/limits | grep 'open files'";
    let mut line = vec![
        "run",
        "--rm",
        "-e",
        "B=flag",
        "--env-file",
        file.to_str().unwrap(),
    ];
    line.extend([
        "-w",
        "/home",
        "-u",
        "user",
        "-h",
        "moon",
        "--ulimit",
        "nofile=100:200",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    let out = luna.run(line).ok();
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[..4], ["file flag", "/home", "1000", "moon"]);
    assert_eq!(
        lines[4].split_whitespace().collect::<Vec<_>>()[3..5],
        ["100", "200"]
    );
    assert_eq!(luna.line("run --rm --entrypoint echo busybox a b").ok(), "a b\n");
    assert_ne!(luna.line("run --rm --read-only busybox touch /x").code, 0);
    assert_eq!(luna.line("run --rm --tmpfs /t:size=1m busybox sh -c df").code, 0);
}

#[test]
fn mounts_reach_the_host_and_read_only_ones_do_not() {
    let Some(luna) = Luna::new() else { return };
    let shared = luna.path("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("in"), "from the host").unwrap();
    let shared = shared.display();
    assert_eq!(
        luna.run([
            "run",
            "--rm",
            "-v",
            &format!("{shared}:/m"),
            "busybox",
            "cat",
            "/m/in"
        ])
        .ok(),
        "from the host"
    );
    let written = luna.run([
        "run",
        "--rm",
        "-v",
        &format!("{shared}:/m:ro"),
        "busybox",
        "touch",
        "/m/x",
    ]);
    assert!(written.err.contains("Read-only"), "{}", written.err);
    luna.line("run --rm -v data:/d busybox sh -c true").ok();
    luna.run([
        "run",
        "--rm",
        "-v",
        "data:/d",
        "busybox",
        "sh",
        "-c",
        "echo kept > /d/x",
    ])
    .ok();
    assert_eq!(
        luna.run(["run", "--rm", "-v", "data:/d", "busybox", "cat", "/d/x"])
            .ok(),
        "kept\n"
    );
    assert_eq!(luna.line("volume ls -q").ok(), "data\n");
}

#[test]
fn a_terminal_is_a_terminal() {
    let Some(luna) = Luna::new() else { return };
    let line =
        "run --rm -it busybox sh -c 'test -t 0 && test -t 1 && echo terminal; read x; echo got $x; exit 5'";
    let outcome = luna.typed(line, "terminal", b"keys\r");
    assert!(outcome.out.contains("got keys"), "{}", outcome.out);
    assert_eq!(outcome.code, 5);
    let refused = luna.line("run --rm -it busybox true").fails(125);
    assert!(refused.contains("hint: leave out `-t`"), "{refused}");
}

#[test]
fn the_detach_keys_leave_the_program_to_itself() {
    let Some(luna) = Luna::new() else { return };
    let line = "run -it --name a busybox sh -c 'while true; do echo ready; sleep 0.1; done'";
    let outcome = luna.typed(line, "ready", b"\x10\x11");
    assert_eq!(outcome.code, 0, "{}", outcome.out);
    assert_eq!(luna.field("a", "{{.State.Running}}"), "true");
    assert_eq!(
        luna.typed("attach --detach-keys ctrl-a,d a", "ready", b"\x01d")
            .code,
        0
    );
    assert_eq!(luna.field("a", "{{.State.Running}}"), "true");
}

#[test]
fn exec_runs_beside_the_main_program() {
    let Some(luna) = Luna::new() else { return };
    luna.line("run -d --name a -e A=main -w /home busybox sleep 1000")
        .ok();
    assert_eq!(
        luna.run(["exec", "-e", "B=two", "a", "sh", "-c", "echo $A $B $PWD"])
            .ok(),
        "main two /home\n"
    );
    assert_eq!(luna.fed(["exec", "-i", "a", "cat"], b"input").ok(), "input");
    assert_eq!(luna.line("exec -u user a id -u").ok(), "1000\n");
    assert_eq!(luna.run(["exec", "a", "sh", "-c", "exit 9"]).code, 9);
    luna.run(["exec", "-d", "a", "sh", "-c", "touch /tmp/done"]).ok();
    luna.until("exec a ls /tmp", |out| out.contains("done"));
    assert!(luna.line("top a").ok().contains("sleep 1000"));
}

#[test]
fn signals_are_passed_on() {
    let Some(luna) = Luna::new() else { return };
    let script = "trap 'echo got it; exit 3' TERM; echo ready; while true; do sleep 0.05; done";
    let mut command = luna.command(["run", "--name", "a", "busybox", "sh", "-c", script]);
    let child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    luna.until("logs a", |out| out.contains("ready"));
    let killed = std::process::Command::new("kill")
        .arg("-TERM")
        .arg(child.id().to_string())
        .status()
        .unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ready\ngot it\n");
    assert_eq!(output.status.code(), Some(3));
}
