//! A supervisor killed at any moment takes along everything it started, and what Luna says afterwards is true.

use std::time::{Duration, Instant};

use contract::bounded;
use contract::luna::{LIMIT, Luna, cgroups};

/// A number for sleep(1) that nobody else sleeps.
fn marker() -> String {
    format!(
        "{}",
        50_000_000 + std::process::id() as u64 * 100 + u64::from(contract::land::unique())
    )
}

fn kill(pid: u32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
        // It may have ended by itself meanwhile.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Everything that has to be true once a supervisor was killed.
fn check(luna: &Luna, marker: &str, moment: &str) {
    let ids = luna.ids();
    let gone = bounded::wait_until(Duration::from_secs(10), || {
        luna.processes(&format!("sleep {marker}")).is_empty()
    });
    assert!(
        gone,
        "{moment}: {:?} survived",
        luna.processes(&format!("sleep {marker}"))
    );
    let listed = luna.luna(&["ps", "--all", "--format", "{{.Names}} {{.State}}"]);
    assert!(listed.success(), "{moment}: {listed:?}");
    assert!(!listed.output.contains("running"), "{moment}: {listed:?}");
    let pruned = luna.luna(&["prune", "--force"]);
    assert!(pruned.success(), "{moment}: {pruned:?}");
    assert_eq!(luna.luna(&["ps", "--all", "--quiet"]).output, "", "{moment}");
    let left = luna.leftovers(&ids);
    assert!(left.is_empty(), "{moment}:\n  {}", left.join("\n  "));
    assert_eq!(
        cgroups(std::path::Path::new("/sys/fs/cgroup"), &ids),
        Vec::<std::path::PathBuf>::new()
    );
}

pub(crate) fn of_the_supervisor(luna: &Luna) {
    let marker = marker();
    luna.start(
        "orphan",
        &["--restart", "always"],
        &format!("echo up; sleep {marker} & exec sleep {marker}"),
    );
    luna.await_log("orphan", "up");
    // Behind a kernel of its own nothing of it is a process of the host's.
    let runs = || luna.processes(&format!("sleep {marker}")).len() >= 3;
    assert!(
        luna.has_own_kernel() || bounded::wait_until(LIMIT, runs),
        "supervisor and two programs run: {:?}",
        luna.processes(&format!("sleep {marker}"))
    );
    for pid in luna.supervisors() {
        kill(pid);
    }
    let lost = bounded::wait_until(LIMIT, || luna.state("orphan") == "exited");
    assert!(lost, "{}", luna.inspect("orphan")["State"]);
    let state = &luna.inspect("orphan")["State"];
    assert_eq!(state["ExitCode"], 137, "{state}");
    luna.must(&["start", "orphan"]);
    assert_eq!(
        luna.state("orphan"),
        "running",
        "what lost its supervisor can be started again"
    );
    for pid in luna.supervisors() {
        kill(pid);
    }
    luna.must(&["rm", "--force", "orphan"]);
    check(luna, &marker, "after rm");
}

pub(crate) fn of_the_supervisor_while_it_starts(luna: &Luna) {
    for step in 0..16u64 {
        let marker = marker();
        let delay = Duration::from_micros(step * step * 400);
        let moment = format!("killed {delay:?} after it was seen");
        let words = luna.words("run", &["--detach", "--name", "newborn"], &["sleep", &marker]);
        let mut client = luna.spawn(&words);
        let seen = bounded::wait_until(LIMIT, || {
            !luna.supervisors().is_empty() || client.try_wait().is_ok_and(|status| status.is_some())
        });
        assert!(seen, "{moment}: a supervisor was born");
        let since = Instant::now();
        while since.elapsed() < delay {
            std::hint::spin_loop();
        }
        for pid in luna.supervisors() {
            kill(pid);
        }
        let ended = bounded::wait_until(LIMIT, || client.try_wait().is_ok_and(|status| status.is_some()));
        assert!(ended, "{moment}: the client was told");
        check(luna, &marker, &moment);
    }
}

pub(crate) fn of_the_supervisor_while_it_stops(luna: &Luna) {
    for step in 0..10u64 {
        let marker = marker();
        let delay = Duration::from_micros(step * step * 500);
        let moment = format!("killed {delay:?} after the stop began");
        luna.start(
            "leaving",
            &["--rm"],
            &format!("trap 'exit 0' TERM; sleep {marker} & wait"),
        );
        let supervisors = luna.supervisors();
        let mut client = luna.spawn(&["stop", "--time", "5", "leaving"]);
        let since = Instant::now();
        while since.elapsed() < delay {
            std::hint::spin_loop();
        }
        for pid in supervisors {
            kill(pid);
        }
        let ended = bounded::wait_until(LIMIT, || client.try_wait().is_ok_and(|status| status.is_some()));
        assert!(ended, "{moment}: the client was told");
        check(luna, &marker, &moment);
    }
}
