//! Bad input of every kind gives one clear error: what, why, what to do.

use cli_tests::Luna;

#[test]
fn slips_on_the_command_line() {
    let luna = Luna::bare();
    for (line, error) in [
        (
            "run --memroy 1g image",
            "error: cannot read the command line\n  because: unexpected argument `--memroy` found\n  hint: did you mean `--memory`?\n",
        ),
        (
            "frobnicate",
            "error: cannot read the command line\n  because: unrecognized subcommand `frobnicate`\n  hint: `luna --help` lists the commands\n",
        ),
        (
            "",
            "error: cannot tell what to do: there is no command\n  hint: `luna --help` lists the commands\n",
        ),
        (
            "run -p x image",
            "error: cannot read the port mapping `x`\n  because: the sandbox's port is no number from 1 to 65535\n  hint: write `8080:80`, `0.0.0.0:8080:80`, `[::1]:8080:80` or `80` for a free port\n",
        ),
        (
            "run --network bridge image",
            "error: cannot find a network `bridge`\n  because: this Luna has `none` and `host`\n  hint: ports work without a network too: `--network none --publish 8080:80`\n",
        ),
        (
            "ps --filter colour=red",
            "error: cannot filter by `colour=red`\n  hint: write KEY=VALUE with one of the keys id, name, label, status, ancestor, health, exited, volume\n",
        ),
        (
            "logs nobody",
            "error: cannot find a sandbox `nobody`\n  hint: `luna ps -a` lists them all\n",
        ),
        (
            "cp here there",
            "error: cannot tell which side is the sandbox\n  hint: write one of them as `SANDBOX:PATH`\n",
        ),
        (
            "inspect nobody/nothing:1",
            "error: cannot find anything called `nobody/nothing:1`\n  hint: `luna ps -a`, `luna images` and `luna volume ls` list what there is\n",
        ),
    ] {
        assert_eq!(luna.line(line).fails(125), error, "{line}");
    }
}

#[test]
fn a_floor_is_refused_before_anything_is_fetched() {
    let Some(luna) = Luna::new() else { return };
    let host = luna.line("host --json").ok();
    if host.contains("\"vm\"") && luna.line("explain --require own-kernel").code == 0 {
        return;
    }
    let explained = luna.line("explain --require own-kernel registry.invalid/image");
    assert!(
        explained
            .out
            .starts_with("`registry.invalid/image` would not run\n"),
        "{}",
        explained.out
    );
    explained.fails(125);
    let refused = luna
        .line("run --require own-kernel registry.invalid/image")
        .fails(125);
    assert!(
        refused.starts_with("error: cannot find a wall for this: a kernel of its own is required\n"),
        "{refused}"
    );
    luna.line("explain --require own-kernel").fails(125);
    let explained = luna.line("explain registry.invalid/image").ok();
    assert!(
        explained.starts_with("`registry.invalid/image` would run in the container\n"),
        "{explained}"
    );
    assert_eq!(luna.line("ps --all --quiet").ok(), "");
}

#[test]
fn luna_tells_about_itself() {
    let luna = Luna::bare();
    assert!(luna.line("version").ok().starts_with("luna 0."));
    assert!(luna.line("--help").ok().contains("Commands:"));
    assert!(luna.line("run --help").ok().contains("--isolation"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(luna.run(["completion", shell]).ok().contains("luna"));
    }
    let manual = luna.path("man");
    luna.run(["man", manual.to_str().unwrap()]).ok();
    assert!(manual.join("luna-run.1").exists());
}
