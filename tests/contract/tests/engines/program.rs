//! What a program finds: variables, users, directories, its own name, a terminal; and how its end is told.

use contract::luna::Luna;

pub(crate) fn environment(luna: &Luna) {
    let lines = luna.says(&["--env", "ONE=1", "--env", "TWO=a b=c"], "env");
    for line in ["ONE=1", "TWO=a b=c", "FROM_IMAGE=yes", "HOME=/root"] {
        assert!(lines.lines().any(|found| found == line), "`{line}` in {lines}");
    }
    assert!(lines.contains("PATH="), "{lines}");
    let mut command = luna.command(&luna.words(
        "run",
        &["--rm", "--env", "FROM_HERE", "--env", "NOT_HERE"],
        &["env"],
    ));
    command.env("FROM_HERE", "taken along").env_remove("NOT_HERE");
    let said = contract::bounded::finish(&mut command, contract::luna::LIMIT).expect("luna can be spawned");
    assert!(said.output.contains("FROM_HERE=taken along"), "{said:?}");
    assert!(!said.output.contains("NOT_HERE"), "{said:?}");
}

pub(crate) fn users_and_groups(luna: &Luna) {
    assert_eq!(luna.says(&[], "id -u; id -g"), "0\n0");
    assert_eq!(
        luna.says(&["--user", "user"], "id -u; id -g; id -G; echo $HOME"),
        "1000\n1000\n1000 2000\n/home/user"
    );
    assert_eq!(luna.says(&["--user", "4242:2000"], "id -u; id -g"), "4242\n2000");
    assert_eq!(
        luna.says(&["--user", "user", "--group-add", "77"], "id -G | grep -c 77"),
        "1"
    );
    let said = luna.shell(&["--user", "nobody-here"], "id");
    assert_eq!(said.code(), Some(125), "{said:?}");
}

/// Whoever a program is, it may read and write those.
pub(crate) fn devices(luna: &Luna) {
    let script = "for name in null zero full random urandom; do stat -c %n:%a:%t,%T /dev/$name; done";
    assert_eq!(
        luna.says(&["--user", "user"], script),
        "/dev/null:666:1,3\n/dev/zero:666:1,5\n/dev/full:666:1,7\n/dev/random:666:1,8\n/dev/urandom:666:1,9"
    );
    let script = "echo gone >/dev/null && echo more >/dev/zero && echo written";
    assert_eq!(luna.says(&["--user", "user"], script), "written");
}

pub(crate) fn working_directory(luna: &Luna) {
    assert_eq!(
        luna.says(&["--workdir", "/made/for/this"], "pwd; stat -c %u:%a ."),
        "/made/for/this\n0:755"
    );
    luna.image("elsewhere", &["WORKDIR /from/image"]);
    let said = luna.must(&["run", "--rm", "elsewhere", "pwd"]);
    assert_eq!(said.trim(), "/from/image");
}

pub(crate) fn entrypoint_and_command(luna: &Luna) {
    luna.image("both", &["ENTRYPOINT [\"echo\", \"entry\"]", "CMD [\"command\"]"]);
    assert_eq!(luna.must(&["run", "--rm", "both"]), "entry command\n");
    assert_eq!(
        luna.must(&["run", "--rm", "both", "other", "words"]),
        "entry other words\n"
    );
    let said = luna.must(&["run", "--rm", "--entrypoint", "printf", "both", "%s."]);
    assert_eq!(said, ".", "another entrypoint forgets the image's command");
}

pub(crate) fn exit_codes(luna: &Luna) {
    for (script, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -15 $$", 143),
    ] {
        assert_eq!(luna.shell(&[], script).code(), Some(code), "{script}");
    }
    for (words, code) in [
        (&["no-such-program"][..], 127),
        (&["/bin/no-such-program"], 127),
        (&["/etc/not-a-program"], 126),
        (&["/etc"], 126),
    ] {
        let said = luna.run(&[], words);
        assert_eq!(said.code(), Some(code), "{words:?}: {said:?}");
        assert!(said.errors.contains("error:"), "{said:?}");
    }
    assert_eq!(luna.luna(&["run", "--no-such-flag", "image"]).code(), Some(125));
    assert_eq!(
        luna.luna(&["run", "--pull", "never", "no-such-image"]).code(),
        Some(125)
    );
}

pub(crate) fn host_name_and_hosts(luna: &Luna) {
    let flags = ["--hostname", "box", "--add-host", "friend:192.0.2.7"];
    let said = luna.says(
        &flags,
        "hostname; cat /etc/hostname; grep -c box /etc/hosts; grep friend /etc/hosts",
    );
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[..2], ["box", "box"]);
    assert_ne!(lines[2], "0");
    assert_eq!(
        lines[3].split_whitespace().collect::<Vec<_>>(),
        ["192.0.2.7", "friend"]
    );
    assert_eq!(luna.says(&[], "hostname").len(), 12, "the short id");
}

pub(crate) fn a_terminal(luna: &Luna) {
    let said = luna.shell(&["--tty"], "test -t 1 && tty && echo out; echo err >&2");
    assert!(said.success(), "{said:?}");
    assert!(said.output.contains("/dev/pts/"), "{said:?}");
    assert!(
        said.output.contains("out\r\n") && said.output.contains("err\r\n"),
        "one stream with returns: {said:?}"
    );
    assert!(
        luna.shell(&[], "test -t 1").code() == Some(1),
        "no terminal unless asked for"
    );
}
