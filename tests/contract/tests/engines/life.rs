//! A sandbox's life as its owner leads it: signals, stop, exec, health, restarts, pause, names.

use std::time::{Duration, Instant};

use contract::bounded;
use contract::luna::{LIMIT, Luna};

pub(crate) fn signals(luna: &Luna) {
    luna.start(
        "listener",
        &[],
        "trap 'echo caught' USR1; echo ready; while :; do sleep 0.05; done",
    );
    luna.await_log("listener", "ready");
    luna.must(&["kill", "--signal", "USR1", "listener"]);
    luna.await_log("listener", "caught");
    assert_eq!(luna.state("listener"), "running");
    luna.must(&["kill", "listener"]);
    assert_eq!(luna.must(&["wait", "listener"]).trim(), "137");
}

pub(crate) fn stop_then_kill(luna: &Luna) {
    luna.start(
        "polite",
        &[],
        "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done",
    );
    luna.start(
        "stubborn",
        &[],
        "trap '' TERM; echo ready; while :; do sleep 0.05; done",
    );
    luna.await_log("polite", "ready");
    luna.await_log("stubborn", "ready");
    luna.must(&["stop", "--time", "30", "polite"]);
    assert_eq!(luna.inspect("polite")["State"]["ExitCode"], 3);
    let begin = Instant::now();
    luna.must(&["stop", "--time", "1", "stubborn"]);
    let took = begin.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(10),
        "{took:?}"
    );
    assert_eq!(luna.inspect("stubborn")["State"]["ExitCode"], 137);
    luna.must(&["start", "polite"]);
    assert_eq!(luna.state("polite"), "running", "what was stopped can be started");
}

pub(crate) fn an_exec(luna: &Luna) {
    luna.start("host", &["--env", "OUTER=1"], "exec sleep 1000");
    assert_eq!(luna.must(&["exec", "host", "echo", "hello"]), "hello\n");
    assert_eq!(luna.luna(&["exec", "host", "sh", "-c", "exit 9"]).code(), Some(9));
    assert_eq!(luna.luna(&["exec", "host", "nothing"]).code(), Some(127));
    assert_eq!(luna.luna(&["exec", "nobody", "true"]).code(), Some(125));
    let words = [
        "exec",
        "--user",
        "user",
        "--workdir",
        "/tmp",
        "--env",
        "INNER=2",
        "host",
        "sh",
        "-c",
    ];
    let said = luna.must(&[&words[..], &["id -u; pwd; echo $OUTER$INNER"]].concat());
    assert_eq!(said, "1000\n/tmp\n12\n");
    let said = luna.fed(&["exec", "--interactive", "host", "cat"], b"through");
    assert_eq!(said.output, "through");
    let said = luna.luna(&["exec", "host", "sh", "-c", "echo a; echo b >&2"]);
    assert_eq!((said.output.as_str(), said.errors.as_str()), ("a\n", "b\n"));
}

pub(crate) fn exec_outlived_by_nothing(luna: &Luna) {
    luna.start("short", &[], "echo ready; exec sleep 1000");
    luna.await_log("short", "ready");
    let marker = format!("{}", 40_000 + std::process::id() % 10_000);
    luna.must(&["exec", "--detach", "short", "sleep", &marker]);
    let seen = bounded::wait_until(LIMIT, || luna.must(&["top", "short"]).contains(&marker));
    assert!(seen, "the exec runs");
    luna.must(&["kill", "short"]);
    luna.must(&["wait", "short"]);
    assert_eq!(
        luna.processes(&format!("sleep {marker}")),
        Vec::<u32>::new(),
        "the exec ended with its sandbox"
    );
}

pub(crate) fn health(luna: &Luna) {
    let flags = [
        "--health-cmd",
        "test -e /ok",
        "--health-interval",
        "100ms",
        "--health-retries",
        "2",
    ];
    luna.start("patient", &flags, "echo ready; exec sleep 1000");
    let is = |word: &str| {
        bounded::wait_until(LIMIT, || {
            luna.inspect("patient")["State"]["Health"]["Status"] == word
        })
    };
    assert!(is("unhealthy"), "{}", luna.inspect("patient")["State"]);
    luna.must(&["exec", "patient", "touch", "/ok"]);
    assert!(is("healthy"), "{}", luna.inspect("patient")["State"]);
    assert!(luna.must(&["ps"]).contains("(healthy)"));
}

pub(crate) fn restarts(luna: &Luna) {
    let shared = luna.path("counted");
    std::fs::create_dir(&shared).expect("a temporary directory can be filled");
    let bind = format!("{}:/count", shared.display());
    luna.start(
        "again",
        &["--restart", "on-failure:2", "--volume", &bind],
        "echo x >> /count/file; exit 4",
    );
    assert_eq!(luna.must(&["wait", "again"]).trim(), "4");
    let count = std::fs::read_to_string(shared.join("file")).expect("it was written");
    assert_eq!(count.lines().count(), 3, "once and two more times");
    luna.start("ever", &["--restart", "always"], "echo turn; sleep 0.2; exit 0");
    let turned = bounded::wait_until(LIMIT, || luna.must(&["logs", "ever"]).lines().count() >= 3);
    assert!(turned, "it came back");
    luna.must(&["stop", "--time", "1", "ever"]);
    assert_eq!(luna.state("ever"), "exited", "a stop outweighs the policy");
}

pub(crate) fn pause(luna: &Luna) {
    let shared = luna.path("ticks");
    std::fs::create_dir(&shared).expect("a temporary directory can be filled");
    let bind = format!("{}:/ticks", shared.display());
    luna.start(
        "ticking",
        &["--volume", &bind],
        "while :; do echo x >> /ticks/file; sleep 0.02; done",
    );
    let length = || std::fs::metadata(shared.join("file")).map_or(0, |status| status.len());
    assert!(bounded::wait_until(LIMIT, || length() > 0));
    luna.must(&["pause", "ticking"]);
    assert_eq!(luna.state("ticking"), "paused");
    let before = length();
    // Nothing is waited for here: this is how long it is watched standing still.
    assert!(
        !bounded::wait_until(Duration::from_millis(500), || length() != before),
        "it stands still"
    );
    luna.must(&["unpause", "ticking"]);
    assert!(bounded::wait_until(LIMIT, || length() > before), "it goes on");
    luna.must(&["pause", "ticking"]);
    luna.must(&["rm", "--force", "ticking"]);
}

pub(crate) fn names(luna: &Luna) {
    luna.must(&luna.words("create", &["--name", "taken"], &["true"]));
    let said = luna.luna(&luna.words("create", &["--name", "taken"], &["true"]));
    assert_eq!(said.code(), Some(125));
    assert!(said.errors.contains("taken"), "{said:?}");
    luna.must(&["rename", "taken", "other"]);
    luna.must(&luna.words("create", &["--name", "taken"], &["true"]));
    assert_ne!(luna.luna(&["rename", "taken", "other"]).code(), Some(0));
    for bad in ["../up", "a/b", "-x", ".hidden", "white space", ""] {
        let said = luna.luna(&luna.words("create", &["--name", bad], &["true"]));
        assert_eq!(said.code(), Some(125), "`{bad}`: {said:?}");
    }
    // Two at once: one of them wins.
    let words = luna.words("create", &["--name", "raced"], &["true"]);
    let racers: Vec<_> = (0..6).map(|_| luna.spawn(&words)).collect();
    let won = racers
        .into_iter()
        .filter_map(|mut racer| racer.wait().ok())
        .filter(std::process::ExitStatus::success)
        .count();
    assert_eq!(won, 1);
    assert_eq!(
        luna.must(&["ps", "--all", "--quiet", "--filter", "name=raced"])
            .lines()
            .count(),
        1
    );
}
