//! A launcher killed with SIGKILL takes its jails with it.

mod common;

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::World;

#[test]
fn nothing_outlives_a_killed_launcher() {
    let world = World::new();
    fs::set_permissions(world.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let examples = common::inmate().parent().map(Path::to_owned).unwrap();
    let mut launcher = Command::new(examples.join("start"))
        .args(["1", "0", common::inmate().to_str().unwrap()])
        .arg(world.directory.path())
        .args([
            "read /proc/self/ns/pid-is-no-file",
            "link /proc/self/ns/pid",
            "spin 600000",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = launcher.stdout.take().unwrap();
    let mut text = String::new();
    let mut byte = [0];
    while text.lines().count() < 2 || !text.ends_with('\n') {
        output.read_exact(&mut byte).unwrap();
        text.push(char::from(byte[0]));
    }
    let namespace = text.lines().nth(1).unwrap().trim_start_matches("ok ").to_owned();
    assert!(inhabited(&namespace));
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    let begin = Instant::now();
    while inhabited(&namespace) {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{namespace} is still inhabited"
        );
        std::thread::yield_now();
    }
    // Its cgroups are left, as told; they go when the runtime reclaims them.
    let name = format!("start-{}-0", launcher.id());
    luna_jail::reclaim(&name).unwrap();
    assert!(common::cgroups_named(&name).is_empty());
}

/// Whether any process of the host's lives in that pid namespace.
fn inhabited(namespace: &str) -> bool {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| {
            fs::read_link(entry.path().join("ns/pid")).is_ok_and(|link| link.to_str() == Some(namespace))
        })
}
