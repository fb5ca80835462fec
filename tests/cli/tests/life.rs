//! Sandboxes through their life, and what can be seen of it.

use cli_tests::Luna;
use serde_json::Value;

#[test]
fn from_create_to_rm() {
    let Some(luna) = Luna::new() else { return };
    let id = luna.line("create --name a busybox sleep 1000").line();
    assert_eq!(id.len(), 32);
    assert_eq!(luna.field("a", "{{.State.Status}}"), "created");
    assert_eq!(luna.line("start a").ok(), "a\n");
    assert_eq!(luna.line("ps -q --filter name=a").line(), &id[..12]);
    let busy = luna.line("rm a").fails(125);
    assert_eq!(
        busy,
        "error: cannot remove `a`: it is running\n  hint: stop it first with `luna stop a`, or kill and remove it with `luna rm -f a`\n"
    );
    luna.line("pause a").ok();
    assert_eq!(luna.field("a", "{{.State.Paused}}"), "true");
    luna.line("unpause a").ok();
    luna.line("rename a b").ok();
    assert_eq!(luna.line("kill --signal TERM b").ok(), "b\n");
    assert_eq!(luna.line("wait b").ok(), "143\n");
    assert_eq!(
        luna.field("b", "{{.State.Status}} {{.State.ExitCode}}"),
        "exited 143"
    );
    luna.line("start b").ok();
    luna.line("restart --time 0 b").ok();
    luna.line("stop --time 0 b").ok();
    assert_eq!(luna.field("b", "{{.State.Status}}"), "exited");
    luna.line("start b").ok();
    luna.line("kill b").ok();
    assert_eq!(luna.line("wait b").ok(), "137\n");
    assert_eq!(luna.line("rm b").ok(), "b\n");
    luna.line("rm b").fails(125);
    luna.line("rm --force b").ok();
    assert_eq!(luna.line("ps --all --quiet").ok(), "");
}

#[test]
fn names_are_taken_once() {
    let Some(luna) = Luna::new() else { return };
    luna.line("create --name a busybox").ok();
    assert_eq!(
        luna.line("create --name a busybox").fails(125),
        "error: cannot use the name `a`\n  because: a sandbox of that name exists\n  hint: remove it with `luna rm a`, or choose another name with `--name`\n"
    );
}

#[test]
fn a_restart_policy_brings_it_back() {
    let Some(luna) = Luna::new() else { return };
    luna.run([
        "run",
        "-d",
        "--name",
        "a",
        "--restart",
        "on-failure:2",
        "busybox",
        "sh",
        "-c",
        "echo run; exit 4",
    ])
    .ok();
    assert_eq!(luna.line("wait a").ok(), "4\n");
    assert_eq!(luna.field("a", "{{.RestartCount}}"), "2");
    assert_eq!(luna.line("logs a").ok(), "run\nrun\nrun\n");
    luna.line("run -d --name b --restart always busybox true").ok();
    luna.until("inspect --format {{.RestartCount}} b", |count| {
        count.trim() != "0"
    });
    luna.line("stop b").ok();
    assert_eq!(luna.field("b", "{{.State.Status}}"), "exited");
    let both = luna.line("run --rm --restart always busybox true").fails(125);
    assert!(both.contains("`--rm` and `--restart`"), "{both}");
}

#[test]
fn health_is_checked_inside() {
    let Some(luna) = Luna::new() else { return };
    let check = [
        "--health-cmd",
        "test -e /tmp/well",
        "--health-interval",
        "100ms",
        "--health-retries",
        "2",
    ];
    let run = ["run", "-d", "--name", "a"]
        .into_iter()
        .chain(check)
        .chain(["busybox", "sleep", "1000"]);
    luna.run(run).ok();
    luna.until("inspect --format {{.State.Health.Status}} a", |status| {
        status == "unhealthy\n"
    });
    luna.line("exec a touch /tmp/well").ok();
    luna.until("ps", |out| out.contains("(healthy)"));
}

#[test]
fn logs_are_kept_and_followed() {
    let Some(luna) = Luna::new() else { return };
    luna.run([
        "run",
        "--name",
        "a",
        "busybox",
        "sh",
        "-c",
        "for i in 1 2 3 4 5; do echo $i; done; echo err >&2",
    ])
    .ok();
    let all = luna.line("logs a");
    assert_eq!((all.out.as_str(), all.err.as_str()), ("1\n2\n3\n4\n5\n", "err\n"));
    assert_eq!(luna.line("logs --tail 3 a").ok(), "4\n5\n");
    let stamped = luna.line("logs -t --tail 2 a").ok();
    let (time, text) = stamped.trim_end().split_once(' ').unwrap();
    assert_eq!(text, "5");
    assert!(luna.run(["logs", "--since", time, "a"]).ok().ends_with("5\n"));
    assert_eq!(
        luna.run(["logs", "--until", "2020-01-01T00:00:00Z", "a"]).ok(),
        ""
    );
    luna.run([
        "run",
        "-d",
        "--name",
        "b",
        "busybox",
        "sh",
        "-c",
        "echo first; sleep 0.3; echo last",
    ])
    .ok();
    assert_eq!(luna.line("logs --follow b").ok(), "first\nlast\n");
    luna.line("logs --tail few a").fails(125);
}

#[test]
fn limits_are_shown_and_changed() {
    let Some(luna) = Luna::new() else { return };
    luna.line("run -d --name a --memory 64m --pids-limit 50 busybox sleep 1000")
        .ok();
    let stats: Value = serde_json::from_str(&luna.line("stats --json a").ok()).unwrap();
    assert_eq!(stats[0]["Name"], "a");
    assert!(
        stats[0]["MemUsage"].as_str().unwrap().ends_with("/ 64MiB"),
        "{stats}"
    );
    luna.line("update --memory 32m --restart on-failure:1 a").ok();
    assert_eq!(
        luna.field("a", "{{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}}"),
        "33554432 on-failure"
    );
    luna.line("update a").fails(125);
}

#[test]
fn ports_are_mapped_without_a_network() {
    let Some(luna) = Luna::new() else { return };
    luna.run([
        "run",
        "-d",
        "--name",
        "a",
        "-p",
        "0:80",
        "busybox",
        "sh",
        "-c",
        "echo page > /tmp/index.html; httpd -f -p 80 -h /tmp",
    ])
    .ok();
    let address = luna.line("port a 80").line();
    let port = address.rsplit_once(':').unwrap().1;
    assert_eq!(luna.line("port a").ok(), format!("80/tcp -> 127.0.0.1:{port}\n"));
    let since = std::time::Instant::now();
    loop {
        use std::io::{Read, Write};
        let mut page = String::new();
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        let _ = stream
            .write_all(b"GET / HTTP/1.0\r\n\r\n")
            .and_then(|()| stream.read_to_string(&mut page).map(drop));
        if page.ends_with("page\n") {
            break;
        }
        assert!(since.elapsed().as_secs() < 20, "{page}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let taken = luna
        .run(["run", "-d", "-p", &format!("{port}:80"), "busybox", "sleep", "1"])
        .fails(125);
    assert!(taken.contains("hint: stop what uses port"), "{taken}");
    luna.line("port a 81").fails(125);
}

#[test]
fn events_tell_the_story() {
    let Some(luna) = Luna::new() else { return };
    luna.line("run --name a busybox true").ok();
    luna.line("rm a").ok();
    let story = luna
        .run([
            "events",
            "--since",
            "10m",
            "--until",
            "0s",
            "--format",
            "{{.Action}} {{.Name}}",
        ])
        .ok();
    assert_eq!(story, "create a\nstart a\ndie a\ndestroy a\n");
    let deaths = luna
        .run([
            "events",
            "--since",
            "10m",
            "--until",
            "0s",
            "--filter",
            "event=die",
            "--json",
        ])
        .ok();
    let death: Value = serde_json::from_str(deaths.trim()).unwrap();
    assert_eq!(death["Actor"]["Attributes"]["exitCode"], "0");
}

#[test]
fn a_killed_supervisor_leaves_the_truth() {
    let Some(luna) = Luna::new() else { return };
    luna.line("run -d --name a busybox sleep 1000").ok();
    let supervisor = luna.field("a", "{{.Luna.supervisor}}");
    assert!(
        std::process::Command::new("kill")
            .args(["-KILL", &supervisor])
            .status()
            .unwrap()
            .success()
    );
    luna.until("inspect --format {{.State.Status}} a", |status| {
        status == "exited\n"
    });
    assert!(luna.field("a", "{{.State.Error}}").contains("supervisor"));
    luna.line("start a").ok();
    assert_eq!(luna.field("a", "{{.State.Running}}"), "true");
}

#[test]
fn what_cannot_be_read_can_still_be_removed() {
    let Some(luna) = Luna::new() else { return };
    let id = luna.line("create --name a busybox").line();
    let record = luna.path("root/sandboxes").join(&id).join("sandbox.json");
    std::fs::write(record, "{").unwrap();
    let listed = luna.line("ps --all");
    assert!(listed.err.contains('a'), "{}", listed.err);
    let hint = luna.line("rm a").fails(125);
    assert!(hint.contains("luna rm -f"), "{hint}");
    assert_eq!(luna.line("rm --force a").ok(), "a\n");
    let listed = luna.line("ps --all");
    assert_eq!(listed.err, "");
    luna.line("create --name a busybox").ok();
}
