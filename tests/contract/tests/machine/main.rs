//! What only a sandbox in a virtual machine can suffer: its VMM, a volume's daemon or its supervisor killed at any moment,
//! disks and kernels that are damaged, a guest that panics, starves, fills a disk or hangs. Each is told from the others,
//! and leaves nothing behind.

mod damage;
mod death;
mod trouble;

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use contract::bounded::{self, Finished};
use contract::luna::{LIMIT, Luna};

/// Runs one test on a Luna of its own, or says why not.
fn on(test: fn(&Luna)) {
    match Luna::of_root("vm") {
        Ok(luna) => test(&luna),
        // Straight to standard error: a skip is seen where the test passes, too.
        Err(why) => drop(writeln!(io::stderr(), "skipped: {why}")),
    }
}

macro_rules! tests {
    ($($group:ident: $($test:ident)*;)*) => {
        $($(
            #[test]
            fn $test() {
                on($group::$test);
            }
        )*)*
    };
}

tests! {
    death: killed_while_it_writes killed_while_it_starts killed_while_it_stops what_was_written_stays;
    damage: a_kernel a_base_disk an_upper_disk;
    trouble: a_panic memory_of_the_guest memory_of_the_host a_full_disk_of_the_host a_full_disk_inside a_hung_guest;
}

/// A sandbox in the making: its supervisor and that one's children.
fn supervisor(luna: &Luna) -> Option<u32> {
    luna.supervisors().first().copied()
}

/// Children of a process whose command line has `word` in it.
fn children(parent: u32, word: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        // `pid (name) state parent ...`
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let above = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if above == Some(&parent.to_string()) && String::from_utf8_lossy(&line).contains(word) {
            found.push(pid);
        }
    }
    found
}

fn qemu(luna: &Luna) -> Option<u32> {
    children(supervisor(luna)?, "qemu-system").first().copied()
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
        // It may have ended by itself meanwhile.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn kill(pid: u32) {
    signal(pid, rustix::process::Signal::KILL);
}

fn await_state(luna: &Luna, name: &str, state: &str) {
    let reached = bounded::wait_until(LIMIT, || luna.state(name) == state);
    assert!(reached, "`{state}`: {}", luna.inspect(name)["State"]);
}

/// What `luna inspect` tells as the reason.
fn error(luna: &Luna, name: &str) -> String {
    luna.inspect(name)["State"]["Error"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// The three lines of a failed command: what, because, hint.
fn three_lines(said: &Finished, what: &str, because: &str, hint: &str) {
    let has = |begin: &str, part: &str| {
        said.errors
            .lines()
            .any(|line| line.trim_start().starts_with(begin) && line.contains(part))
    };
    assert!(
        has("error: ", what) && has("because: ", because) && has("hint: ", hint),
        "`{what}`, `{because}`, `{hint}`: {said:?}"
    );
}

/// The directory of a sandbox.
fn directory(luna: &Luna, name: &str) -> PathBuf {
    let inspected = luna.inspect(name);
    PathBuf::from(
        inspected["Luna"]["directory"]
            .as_str()
            .expect("it is in the inspection"),
    )
}
