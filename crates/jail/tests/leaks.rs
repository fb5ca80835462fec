//! Nothing is left: after many jails, after failure at every stage, after the launcher's death. Counted from the outside.

#![allow(clippy::unwrap_used)] // In the helpers beside the tests.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use common::{World, start};
use luna_jail::spec::{File, Mount, SecurityLabels};

/// What a jail could leave behind in this process or on this host.
#[derive(Debug, PartialEq, Eq)]
struct Belongings {
    descriptors: usize,
    children: BTreeSet<String>,
    mounts: Vec<String>,
    cgroups: usize,
}

impl Belongings {
    /// Of this process and of cgroups whose name begins with `prefix`.
    fn count(prefix: &str) -> Belongings {
        // Other tests and container engines mount in directories of theirs, where a jail has no business; one of a
        // jail's would lie over the root.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let temporary = std::env::temp_dir();
        let others = [temporary.as_path(), Path::new("/run"), Path::new("/var")];
        let mounts = mounts.lines().filter(|line| {
            let place = Path::new(line.split(' ').nth(4).unwrap());
            !others.iter().any(|other| place.starts_with(other))
        });
        let threads = fs::read_dir("/proc/self/task").unwrap();
        let children = threads
            .flatten()
            .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
            .flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        Belongings {
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
            children,
            mounts: mounts.map(str::to_owned).collect(),
            cgroups: cgroups_beginning(prefix),
        }
    }
}

fn cgroups_beginning(prefix: &str) -> usize {
    fn search(directory: &Path, prefix: &str) -> usize {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| {
                let own = entry.file_name().to_string_lossy().starts_with(prefix);
                usize::from(own) + search(&entry.path(), prefix)
            })
            .sum()
    }
    search(Path::new("/sys/fs/cgroup"), prefix)
}

/// One test, because it counts what the whole process has.
#[test]
fn nothing_is_left() {
    let world = World::new();
    let prefix = format!("luna-test-{}-", std::process::id());
    drop(start(world.spec(&["pid"])).unwrap());
    let before = Belongings::count(&prefix);
    many_at_once();
    assert_eq!(Belongings::count(&prefix), before, "after 200 at once");
    every_failure(&world);
    assert_eq!(Belongings::count(&prefix), before, "after failures");
    let namespace = fs::read_link("/proc/self/ns/mnt").unwrap();
    assert_eq!(namespace, fs::read_link("/proc/thread-self/ns/mnt").unwrap());
}

fn many_at_once() {
    let worlds: Vec<_> = (0..200).map(|_| World::new()).collect();
    let mut running: Vec<_> = worlds
        .iter()
        .map(|world| start(world.spec(&["pid", "wait"])).unwrap())
        .collect();
    for asked in &mut running {
        let mut first = [0; 5];
        asked.output.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"ok 1\n");
    }
    // All of them run at this moment; half are let go, half are killed.
    for (number, asked) in running.into_iter().enumerate() {
        if number % 2 == 0 {
            drop(asked.input);
            asked.jail.wait().unwrap();
        }
    }
    std::thread::scope(|scope| {
        for world in &worlds[..16] {
            scope.spawn(|| drop(start(world.spec(&["pid"])).unwrap()));
        }
    });
}

/// Each fails at another stage; the error names it.
fn every_failure(world: &World) {
    let spec = || world.spec(&["pid"]);
    let mut cases = Vec::new();

    let mut bad = spec();
    bad.name = "../up".into();
    cases.push((bad, "its name"));
    let mut bad = spec();
    bad.ids.base = u32::MAX;
    cases.push((bad, "range of ids"));
    let mut bad = spec();
    bad.hostname = String::new();
    cases.push((bad, "host name"));
    let mut bad = spec();
    bad.program.executable = fs::File::open("/proc/self/exe").unwrap().into();
    cases.push((bad, "sealed memfd"));
    let mut bad = spec();
    bad.program.arguments.push("a\0b".into());
    cases.push((bad, "NUL"));
    let mut bad = spec();
    bad.limits.cpuset = Some("4000".into());
    cases.push((bad, "cannot choose CPUs"));
    let mut bad = spec();
    bad.ids = luna_jail::spec::Ids {
        base: u32::MAX - 70_000,
        count: 70_000,
    };
    bad.root = luna_jail::spec::Root::Overlay {
        lower: vec!["/nonexistent".into()],
        upper: world.path("upper"),
        work: world.path("work"),
        read_only: false,
    };
    cases.push((bad, "cannot mount `/nonexistent`"));
    let mut bad = spec();
    bad.mounts = vec![Mount::Bind {
        source: "/nonexistent".into(),
        target: "/x".into(),
        read_only: true,
    }];
    cases.push((bad, "cannot mount `/nonexistent`"));
    let mut bad = spec();
    bad.mounts = vec![Mount::Device {
        source: "/etc/passwd".into(),
        target: "/dev/x".into(),
        read: true,
        write: true,
    }];
    cases.push((bad, "it is not a device"));
    let mut bad = spec();
    bad.files = vec![File {
        target: "/etc/from-image/x".into(),
        content: Vec::new(),
    }];
    cases.push((bad, "cannot mount `/etc/from-image/x`"));
    let mut bad = spec();
    bad.files = vec![File {
        target: "relative".into(),
        content: Vec::new(),
    }];
    cases.push((bad, "no absolute path"));
    let mut bad = spec();
    bad.security_labels = SecurityLabels {
        apparmor: Some("no-such-profile".into()),
        ..SecurityLabels::default()
    };
    cases.push((bad, "label"));
    let mut bad = spec();
    bad.rlimits = vec![luna_core::process::Rlimit {
        resource: luna_core::process::RlimitKind::Nofile,
        soft: 1 << 40,
        hard: 1 << 40,
    }];
    cases.push((bad, "resource limit"));
    let mut bad = spec();
    bad.program.executable = luna_jail::sealed_bytes(b"not a program").unwrap();
    cases.push((bad, "cannot execute its program"));

    for (bad, expected) in cases {
        let error = start(bad)
            .err()
            .unwrap_or_else(|| panic!("`{expected}` did not happen"));
        let mut text = error.to_string();
        text.extend(error.causes());
        assert!(text.contains(expected), "{expected}: {error:?}");
    }
}
