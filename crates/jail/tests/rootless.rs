//! The same wall for a user without root: a real one, made for this test where it runs as root.

#![allow(clippy::unwrap_used)] // In the helpers beside the tests.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Output};

/// A user with subordinate ids, removed on drop.
struct User(String);

impl User {
    fn new() -> User {
        let name = format!("luna-test-{}", std::process::id());
        let made = Command::new("useradd")
            .args(["--no-create-home", &name])
            .status()
            .unwrap();
        assert!(made.success(), "useradd {name}");
        User(name)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new("setpriv")
            .args([
                "--reuid",
                &self.0,
                "--regid",
                &self.0,
                "--init-groups",
                "--inh-caps=-all",
                program,
            ])
            .args(arguments)
            .output()
            .unwrap()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = Command::new("userdel").arg(&self.0).status();
    }
}

fn example(name: &str, into: &std::path::Path) -> String {
    let own = std::env::current_exe().unwrap();
    let from = own
        .parent()
        .and_then(std::path::Path::parent)
        .unwrap()
        .join("examples")
        .join(name);
    let copy = into.join(name);
    fs::copy(from, &copy).unwrap();
    copy.to_str().unwrap().to_owned()
}

#[test]
fn the_whole_wall_without_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "makes a user of its own: run as root"
    );
    let user = User::new();
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (start, inmate) = (
        example("start", directory.path()),
        example("inmate", directory.path()),
    );
    let root: PathBuf = directory.path().join("root");
    let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
    assert!(
        user.run(
            "mkdir",
            &["-p", &path("lower/etc"), &path("upper"), &path("work")]
        )
        .status
        .success()
    );

    let script = [
        "pid",
        "owner /",
        "create /etc/x",
        "owner /etc/x",
        "read /proc/self/uid_map",
        "read /proc/self/status",
        "list /sys/class/net",
        "write /proc/sys/kernel/core_pattern x",
    ];
    let mut arguments = vec!["1", "0", inmate.as_str(), root.to_str().unwrap()];
    arguments.extend(script);
    let output = user.run(&start, &arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..4], ["ok 1", "ok 0:0 40755", "ok ", "ok 0:0 100644"]);
    assert_eq!(
        lines[4],
        "ok 0          0          1|         1          1      65535"
    );
    for expected in ["CapEff:\t00000000a80425fb", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(lines[5].contains(expected), "{expected}");
    }
    assert_eq!(lines[6], "ok lo");
    assert!(lines[7].starts_with("error"), "{}", lines[7]);
    // What its root made is the user's.
    let owner = fs::metadata(path("upper/etc/x")).unwrap().uid();
    assert_eq!(owner, fs::metadata(path("upper")).unwrap().uid());
    assert_ne!(owner, 0);

    // The mark of a move that was made never makes anybody root.
    let marked = user.run(
        "env",
        &[&["LUNA_USER_NAMESPACE=1", &start][..], &arguments].concat(),
    );
    assert!(!marked.status.success());
    assert!(
        String::from_utf8_lossy(&marked.stderr).contains("cannot become root"),
        "{marked:?}"
    );
}
