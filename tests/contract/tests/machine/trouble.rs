//! A panic, want of memory, a full disk and a hung guest, told apart.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use contract::bounded::{self, Finished};
use contract::luna::{LIMIT, Luna, cgroups};
use rustix::process::Signal;

use super::{await_state, error, kill, qemu, signal};

pub(crate) fn a_panic(luna: &Luna) {
    let words = luna.words(
        "run",
        &["--privileged", "--name", "panicking"],
        &["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 1000"],
    );
    let said = luna.luna(&words);
    assert!(!said.success(), "{said:?}");
    assert!(said.errors.contains("the guest's kernel panicked"), "{said:?}");
    assert!(said.errors.contains("sysrq triggered crash"), "{said:?}");
    assert!(error(luna, "panicking").contains("sysrq triggered crash"));
    assert_eq!(luna.inspect("panicking")["State"]["OOMKilled"], false);
}

/// Uses all the memory there is, in a file that has no disk.
const HOG: &str =
    "dd if=/dev/zero of=/dev/shm/hog bs=1M count=1000 2>/dev/null; x=a; while true; do x=$x$x$x; done";

pub(crate) fn memory_of_the_guest(luna: &Luna) {
    let words = luna.words(
        "run",
        &["--memory", "64m", "--name", "hungry"],
        &["sh", "-c", HOG],
    );
    let said = luna.luna(&words);
    assert_eq!(said.code(), Some(137), "{said:?}");
    let state = luna.inspect("hungry")["State"].clone();
    assert_eq!(state["OOMKilled"], true, "{state}");
    assert_eq!(state["Error"], "", "nothing is wrong with the machine: {state}");
}

pub(crate) fn memory_of_the_host(luna: &Luna) {
    luna.start(
        "starved",
        &["--memory", "512m"],
        "echo ready; sleep 3; tail /dev/zero",
    );
    luna.await_log("starved", "ready");
    let limited = cgroups(Path::new("/sys/fs/cgroup"), &luna.ids())
        .iter()
        .any(|cgroup| tighten(cgroup));
    assert!(limited, "the machine's memory is limited from outside");
    await_state(luna, "starved", "exited");
    let state = luna.inspect("starved")["State"].clone();
    assert!(
        error(luna, "starved").contains("the host killed QEMU for want of memory"),
        "{state}"
    );
    assert_eq!(state["OOMKilled"], true, "{state}");
}

/// Gives a cgroup a little more than it has and no more.
fn tighten(cgroup: &Path) -> bool {
    let read =
        |name: &str| -> Option<u64> { fs::read_to_string(cgroup.join(name)).ok()?.trim().parse().ok() };
    for (used, limits) in [
        (
            "memory.usage_in_bytes",
            ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"],
        ),
        ("memory.current", ["memory.max", "memory.swap.max"]),
    ] {
        if let Some(used) = read(used) {
            let limit = (used + (24 << 20)).to_string();
            // What the swap may be is not everywhere counted.
            let _ = fs::write(cgroup.join(limits[1]), &limit);
            return fs::write(cgroup.join(limits[0]), limit).is_ok();
        }
    }
    false
}

/// A Luna's whole directory on a file system that is nearly full; gone when dropped.
struct Small(PathBuf);

impl Small {
    fn new(path: PathBuf, room: u64) -> Small {
        let run = |program: &str, words: &[&str]| {
            let done = bounded::finish(Command::new(program).args(words), LIMIT);
            assert!(done.as_ref().is_ok_and(Finished::success), "{program}: {done:?}");
        };
        let own = path.display().to_string();
        let copy = format!("{own}-copy");
        run("cp", &["--archive", &own, &copy]);
        run(
            "mount",
            &["-t", "tmpfs", "-o", "size=256m,mode=700", "none", &own],
        );
        let small = Small(path);
        run("cp", &["--archive", &format!("{copy}/."), &own]);
        let status = rustix::fs::statvfs(&small.0).expect("it is mounted");
        let filler = (status.f_bavail * status.f_frsize).saturating_sub(room);
        fs::write(small.filler(), vec![1; filler as usize]).expect("there is room for it");
        small
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let done = bounded::finish(Command::new("umount").arg("--lazy").arg(&self.0), LIMIT);
        assert!(done.is_ok_and(|done| done.success()) || std::thread::panicking());
    }
}

pub(crate) fn a_full_disk_of_the_host(luna: &Luna) {
    assert!(luna.run(&[], &["true"]).success(), "the image's disk is made");
    let small = Small::new(luna.path("root"), 24 << 20);
    luna.start(
        "full",
        &[],
        "dd if=/dev/urandom of=/much bs=1M count=40 conv=fsync 2>/dev/null && echo written; sleep 1000",
    );
    await_state(luna, "full", "paused");
    assert!(
        error(luna, "full").contains("No space left on device"),
        "{}",
        error(luna, "full")
    );
    let refused = luna.luna(&["unpause", "full"]);
    assert!(!refused.success(), "{refused:?}");
    super::three_lines(&refused, "cannot", "No space left on device", "`luna unpause`");
    assert_eq!(luna.state("full"), "paused");
    let reached = luna.luna(&["exec", "full", "true"]);
    assert!(
        !reached.success() && reached.errors.contains("No space left"),
        "{reached:?}"
    );
    fs::remove_file(small.filler()).expect("it is ours");
    luna.must(&["unpause", "full"]);
    luna.await_log("full", "written");
    await_state(luna, "full", "running");
    assert_eq!(error(luna, "full"), "");
    let told = luna.must(&["events", "--since", "10m", "--until", "0s"]);
    assert!(told.contains("halted") && told.contains("well"), "{told}");
    luna.must(&["rm", "--force", "full"]);
}

/// No business of Luna's.
pub(crate) fn a_full_disk_inside(luna: &Luna) {
    let words = luna.words(
        "run",
        &["--disk", "64m", "--name", "brimful"],
        &[
            "sh",
            "-c",
            "dd if=/dev/zero of=/much bs=1M count=200 2>&1; echo still here; exit 3",
        ],
    );
    let said = luna.luna(&words);
    assert_eq!(said.code(), Some(3), "{said:?}");
    assert!(said.output.contains("No space left on device"), "{said:?}");
    assert!(said.output.contains("still here"), "{said:?}");
    assert_eq!(error(luna, "brimful"), "");
}

/// It says nothing for a minute, is reported, comes back, and is reported well.
pub(crate) fn a_hung_guest(luna: &Luna) {
    luna.start("hung", &[], "sleep 1000");
    let pid = qemu(luna).expect("it runs");
    signal(pid, Signal::STOP);
    let told = bounded::wait_until(Duration::from_secs(150), || {
        error(luna, "hung").contains("cannot hear from the guest")
    });
    assert!(told, "{}", luna.inspect("hung")["State"]);
    assert_eq!(luna.state("hung"), "running", "it is not ended for it");
    signal(pid, Signal::CONT);
    let well = bounded::wait_until(LIMIT, || error(luna, "hung").is_empty());
    assert!(well, "{}", luna.inspect("hung")["State"]);
    signal(pid, Signal::STOP);
    luna.must(&["kill", "hung"]);
    await_state(luna, "hung", "exited");
    kill(pid);
}
