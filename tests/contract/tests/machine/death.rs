//! Killed at any moment, a machine takes along everything, and its disk is as after a power cut: what was flushed is there.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use contract::bounded;
use contract::luna::{LIMIT, Luna, cgroups};

use super::{await_state, children, directory, error, kill, qemu, supervisor};

#[derive(Clone, Copy, Debug)]
enum Victim {
    Vmm,
    Daemon,
    Supervisor,
}

const VICTIMS: [Victim; 3] = [Victim::Vmm, Victim::Daemon, Victim::Supervisor];

/// Counts on the disk for ever, each number flushed before it is said; at a second start says the last one instead.
const COUNT: &str = "if [ -f /count ]; then tail -n 1 /count; exit; fi; i=0; while true; do i=$((i+1)); \
                     echo $i | dd of=/count oflag=append conv=notrunc,fsync 2>/dev/null; echo $i; done";

/// Every process of the sandboxes that there are.
fn cast(luna: &Luna) -> Vec<u32> {
    let supervisors = luna.supervisors();
    let below: Vec<_> = supervisors.iter().flat_map(|pid| children(*pid, "")).collect();
    [supervisors, below].concat()
}

/// Kills the victim, where it is there; whether it was.
fn strike(luna: &Luna, victim: Victim) -> bool {
    let pid = match victim {
        Victim::Vmm => qemu(luna),
        Victim::Daemon => supervisor(luna).and_then(|pid| children(pid, "luna-virtiofs").first().copied()),
        Victim::Supervisor => supervisor(luna),
    };
    pid.map(kill).is_some()
}

fn spin(time: Duration) {
    std::thread::sleep(time);
}

/// Nothing of these processes, and of any sandbox, is left but what `rm` removes.
fn nothing_is_left(luna: &Luna, cast: &[u32], ids: &[String], moment: &str) {
    let gone = bounded::wait_until(LIMIT, || {
        cast.iter()
            .all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    });
    assert!(gone, "{moment}: a process survived");
    let listed = luna.luna(&["ps", "--all", "--format", "{{.Names}} {{.State}}"]);
    assert!(listed.success(), "{moment}: {listed:?}");
    assert!(!listed.output.contains("running"), "{moment}: {listed:?}");
    let left = luna.leftovers(ids);
    assert!(left.is_empty(), "{moment}:\n  {}", left.join("\n  "));
    let cgroups = cgroups(Path::new("/sys/fs/cgroup"), ids);
    assert!(cgroups.is_empty(), "{moment}: {cgroups:?}");
}

/// `e2fsck -fn`: nothing to repair, and no journal to play back.
fn is_clean(disk: &Path) {
    let mut check = Command::new("e2fsck");
    let said = bounded::finish(check.arg("-fn").arg(disk), LIMIT).expect("e2fsck is installed with mke2fs");
    assert!(said.success(), "{said:?}");
}

pub(crate) fn killed_while_it_writes(luna: &Luna) {
    for (round, victim) in VICTIMS.into_iter().enumerate() {
        let moment = format!("{victim:?} killed");
        let volume = luna.path("volume");
        std::fs::create_dir_all(&volume).expect("a temporary directory can be filled");
        let mount = format!("{}:/volume", volume.display());
        luna.start("writer", &["-v", &mount], COUNT);
        luna.await_log("writer", "\n3\n");
        spin(Duration::from_millis(70 * round as u64 + 10));
        let (cast, ids) = (cast(luna), luna.ids());
        assert!(strike(luna, victim), "{moment}: it was there");
        await_state(luna, "writer", "exited");
        let inspected = luna.inspect("writer");
        assert_eq!(inspected["State"]["ExitCode"], 137, "{inspected}");
        let reason = match victim {
            Victim::Vmm => "QEMU was killed",
            Victim::Daemon => "a volume is gone",
            Victim::Supervisor => "",
        };
        assert!(error(luna, "writer").contains(reason), "{moment}: {inspected}");
        let said = luna.must(&["logs", "writer"]);
        let last: u64 = number(said.lines().last());

        let disk = directory(luna, "writer").join("upper.ext4");
        luna.must(&["start", "--attach", "writer"]);
        let again = luna.must(&["logs", "writer"]);
        let found = number(again.lines().last());
        assert!(found >= last, "{moment}: {last} was flushed, {found} is there");
        is_clean(&disk);
        nothing_is_left(luna, &cast, &ids, &moment);
    }
}

fn number(line: Option<&str>) -> u64 {
    line.and_then(|line| line.trim().parse().ok())
        .expect("the program says numbers")
}

pub(crate) fn killed_while_it_starts(luna: &Luna) {
    let volume = luna.path("volume");
    std::fs::create_dir_all(&volume).expect("a temporary directory can be filled");
    let mount = format!("{}:/volume", volume.display());
    for step in 0..9u64 {
        let victim = VICTIMS[step as usize % 3];
        let delay = Duration::from_millis(step * step * 40);
        let moment = format!("{victim:?} killed {delay:?} after it was seen");
        let words = luna.words("run", &["--name", "newborn", "-v", &mount], &["sleep", "1000"]);
        let mut command = luna.command(&words);
        let child = command
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("luna can be spawned");
        let seen = bounded::wait_until(LIMIT, || match victim {
            Victim::Supervisor => supervisor(luna).is_some(),
            Victim::Vmm => qemu(luna).is_some(),
            Victim::Daemon => supervisor(luna).is_some_and(|pid| !children(pid, "luna-virtiofs").is_empty()),
        });
        assert!(seen, "{moment}: it was born");
        spin(delay);
        let (cast, ids) = (cast(luna), luna.ids());
        assert!(strike(luna, victim), "{moment}: it was there");
        let said = bounded::collect_all(child, LIMIT);
        assert!(
            matches!(said.code(), Some(125 | 137)),
            "{moment}: the client was told: {said:?}"
        );
        assert!(said.errors.contains("error: "), "{moment}: {said:?}");
        nothing_is_left(luna, &cast, &ids, &moment);
    }
}

pub(crate) fn killed_while_it_stops(luna: &Luna) {
    let volume = luna.path("volume");
    std::fs::create_dir_all(&volume).expect("a temporary directory can be filled");
    let mount = format!("{}:/volume", volume.display());
    for step in 0..6u64 {
        let victim = VICTIMS[step as usize % 3];
        let delay = Duration::from_millis(step * step * 12);
        let moment = format!("{victim:?} killed {delay:?} after the stop began");
        luna.start(
            "leaving",
            &["-v", &mount],
            "trap 'exit 0' TERM; dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null; echo ready; \
             while true; do sleep 0.1; done",
        );
        luna.await_log("leaving", "ready");
        let (cast, ids) = (cast(luna), luna.ids());
        let disk = directory(luna, "leaving").join("upper.ext4");
        let mut client = luna.spawn(&["stop", "--time", "5", "leaving"]);
        let since = Instant::now();
        spin(delay);
        // By now it may be gone of itself.
        let struck = strike(luna, victim);
        let ended = bounded::wait_until(LIMIT, || client.try_wait().is_ok_and(|status| status.is_some()));
        assert!(
            ended,
            "{moment}: the client was told, struck {struck}, after {:?}",
            since.elapsed()
        );
        await_state(luna, "leaving", "exited");
        // What the guest's kernel does with its journal at the next start.
        let replayed = bounded::finish(Command::new("e2fsck").arg("-fp").arg(&disk), LIMIT);
        assert!(
            replayed
                .as_ref()
                .is_ok_and(|said| matches!(said.code(), Some(0 | 1))),
            "{moment}: {replayed:?}"
        );
        is_clean(&disk);
        nothing_is_left(luna, &cast, &ids, &moment);
    }
}

/// An end that nobody forced leaves everything on the disk, flushed by the program or not.
pub(crate) fn what_was_written_stays(luna: &Luna) {
    let script = "if [ -f /twelve ]; then sha256sum /twelve; else dd if=/dev/urandom of=/twelve bs=1M count=12 \
                  2>/dev/null; sha256sum /twelve; fi";
    let words = luna.words("run", &["--name", "kept"], &["sh", "-c", script]);
    let first = luna.must(&words);
    is_clean(&directory(luna, "kept").join("upper.ext4"));
    let again = luna.must(&["start", "--attach", "kept"]);
    assert!(first.contains("/twelve"), "{first}");
    assert_eq!(first.trim(), again.trim());
}
