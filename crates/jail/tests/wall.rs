//! What the world looks like from inside a jail with the whole wall up, and that it stays so when the root is hostile.

#![allow(clippy::unwrap_used)] // In the helpers beside the tests.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use common::{BASE, World, ask, start};
use luna_core::units::Bytes;
use luna_jail::spec::{File, Mount, Root};

/// A field of `/proc/self/status` as the inmate printed it.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status
        .split('|')
        .find(|line| line.starts_with(name))
        .unwrap_or_default();
    line.rsplit(':').next().unwrap_or_default().trim()
}

#[test]
fn it_is_alone_in_there() {
    let world = World::new();
    let lines = ask(world.spec(&[
        "pid",
        "cwd",
        "read /proc/sys/kernel/hostname",
        "list /sys/class/net",
        "list /proc/self/fd",
        "read /proc/self/uid_map",
        "arguments",
        "environment",
        "list /dev",
        "list /dev/mqueue",
    ]));
    assert_eq!(
        lines,
        [
            "ok 1",
            "ok /",
            "ok inmate",
            "ok lo",
            // The last one is the listing's own.
            "ok 0 1 2 3",
            &format!("ok 0 {BASE}      65536"),
            "ok luna-init",
            "ok PATH=/bin ",
            "ok fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero",
            "ok ",
        ]
    );
}

#[test]
fn it_holds_no_more_than_docker_would_give() {
    let world = World::new();
    let status = ask(world.spec(&["read /proc/self/status"])).remove(0);
    for (name, value) in [
        ("CapInh", "0000000000000000"),
        ("CapPrm", "00000000a80425fb"),
        ("CapEff", "00000000a80425fb"),
        ("CapBnd", "00000000a80425fb"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("Seccomp_filters", "1"),
        ("SigBlk", "0000000000000000"),
        ("Groups", ""),
        ("NSsid", "1"),
        ("Umask", "0022"),
    ] {
        assert_eq!(field(&status, name), value, "{name}");
    }
}

#[test]
fn no_mount_of_the_host_is_left() {
    let world = World::new();
    let table = ask(world.spec(&["read /proc/self/mountinfo"])).remove(0);
    let mounts: Vec<(&str, &str)> = table
        .trim_start_matches("ok ")
        .split('|')
        .map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            let kind = words.iter().position(|word| *word == "-").unwrap() + 1;
            (words[4], words[kind])
        })
        .collect();
    for (target, kind) in &mounts {
        let expected = match *target {
            "/" => "overlay",
            "/proc" | "/proc/bus" | "/proc/fs" | "/proc/irq" | "/proc/sys" | "/proc/sysrq-trigger" => "proc",
            "/sys" => "sysfs",
            "/sys/fs/cgroup" => "cgroup2",
            "/dev/pts" => "devpts",
            "/dev/mqueue" => "mqueue",
            "/dev" | "/dev/shm" => "tmpfs",
            device if device.starts_with("/dev/") => "devtmpfs",
            // Masks: an empty directory, or the null device.
            _ if *kind == "tmpfs" => "tmpfs",
            _ => "devtmpfs",
        };
        assert_eq!(*kind, expected, "{target}");
    }
    assert_eq!(mounts.iter().filter(|(target, _)| *target == "/").count(), 1);
}

#[test]
fn the_kernels_files_are_masked_or_read_only() {
    let world = World::new();
    let lines = ask(world.spec(&[
        "list /proc/acpi",
        "read /proc/keys",
        "read /proc/timer_list",
        "list /sys/firmware",
        "write /proc/sys/kernel/core_pattern x",
        "write /proc/sysrq-trigger h",
        "write /proc/irq/default_smp_affinity 1",
        "create /sys/x",
        "mkdir /sys/fs/cgroup/x",
        "write /sys/fs/cgroup/cgroup.procs 1",
    ]));
    assert!(lines[0] == "ok " || lines[0] == "error 2", "{lines:?}");
    assert_eq!(lines[1..3], ["ok ", "ok "]);
    assert!(lines[3] == "ok " || lines[3] == "error 2", "{lines:?}");
    for line in &lines[4..] {
        assert!(
            ["error 1", "error 2", "error 13", "error 30"].contains(&line.as_str()),
            "{lines:?}"
        );
    }
}

#[test]
fn layers_show_their_owners_and_writes_go_to_the_upper() {
    let world = World::new();
    std::os::unix::fs::chown(world.path("lower/etc/from-image"), Some(1000), Some(50)).unwrap();
    fs::set_permissions(world.path("lower"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(world.path("upper"), fs::Permissions::from_mode(0o700)).unwrap();
    let lines = ask(world.spec(&[
        "owner /etc/from-image",
        "owner /",
        "create /etc/made",
        "owner /etc/made",
        "write /etc/from-image changed",
    ]));
    assert_eq!(
        lines,
        ["ok 1000:50 100644", "ok 0:0 40751", "ok ", "ok 0:0 100644", "ok "]
    );
    assert_eq!(fs::metadata(world.path("upper/etc/made")).unwrap().uid(), BASE);
    assert_eq!(
        fs::metadata(world.path("upper/etc/from-image")).unwrap().uid(),
        BASE + 1000
    );
    assert_eq!(
        fs::read_to_string(world.path("lower/etc/from-image")).unwrap(),
        "image"
    );
    // A second start finds what the first left.
    assert_eq!(ask(world.spec(&["read /etc/from-image"])), ["ok changed"]);
}

#[test]
fn the_topmost_of_many_layers_is_seen() {
    let world = World::new();
    let mut spec = world.spec(&["read /which", "read /bottom", "read /etc/from-image"]);
    let Root::Overlay { lower, .. } = &mut spec.root else {
        panic!("the test's root is an overlay");
    };
    for number in 0..130 {
        let layer = world.path(&format!("layer-{number}"));
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join("which"), number.to_string()).unwrap();
        if number == 0 {
            fs::write(layer.join("bottom"), "reached").unwrap();
        }
        lower.insert(0, layer);
    }
    assert_eq!(ask(spec), ["ok 129", "ok reached", "ok image"]);
}

#[test]
fn a_read_only_root_is_read_only() {
    let world = World::new();
    let mut spec = world.spec(&["create /x", "create /dev/shm/x", "read /etc/hosts"]);
    if let Root::Overlay { read_only, .. } = &mut spec.root {
        *read_only = true;
    }
    spec.files = vec![File {
        target: "/etc/hosts".into(),
        content: b"127.0.0.1 localhost\n".to_vec(),
    }];
    assert_eq!(ask(spec), ["error 30", "ok ", "ok 127.0.0.1 localhost"]);
}

#[test]
fn files_volumes_and_tmpfs_are_where_they_were_asked_for() {
    let world = World::new();
    let volume = world.path("volume");
    fs::create_dir_all(volume.join("inner")).unwrap();
    fs::write(volume.join("file"), "volume").unwrap();
    std::os::unix::fs::chown(volume.join("file"), Some(1000), Some(1000)).unwrap();
    let bind = |target: &str, read_only| Mount::Bind {
        source: volume.clone(),
        target: target.into(),
        read_only,
    };
    let mut spec = world.spec(&[
        "read /data/file",
        "owner /data/file",
        "create /data/made",
        "read /var/lib/deep/file",
        "create /var/lib/deep/made",
        "owner /scratch",
        "create /scratch/x",
        "read /data/inner/file",
        "read /etc/one",
        "write /etc/one changed",
        "read /proc/self/mountinfo",
    ]);
    spec.mounts = vec![
        bind("/data", false),
        bind("/var/lib/deep", true),
        Mount::Tmpfs {
            target: "/scratch".into(),
            size: Some(Bytes::mebibytes(1)),
            mode: 0o1777,
            executable: false,
        },
        Mount::Bind {
            source: volume.join("file"),
            target: "/data/inner/file".into(),
            read_only: true,
        },
    ];
    spec.files = vec![File {
        target: "/etc/one".into(),
        content: b"one".to_vec(),
    }];
    let lines = ask(spec);
    assert_eq!(
        lines[..10],
        [
            "ok volume",
            "ok 1000:1000 100644",
            "ok ",
            "ok volume",
            "error 30",
            "ok 0:0 41777",
            "ok ",
            "ok volume",
            "ok one",
            "ok ",
        ]
    );
    // Jail id 0 is host id 0 in a volume, and nothing in it counts as a device or runs with its owner's id.
    assert_eq!(fs::metadata(volume.join("made")).unwrap().uid(), 0);
    let line = lines[10]
        .split('|')
        .find(|line| line.contains(" /data "))
        .unwrap();
    assert!(
        line.contains("nosuid") && line.contains("nodev") && line.contains("idmapped"),
        "{line}"
    );
}

#[test]
fn hostile_links_stay_inside() {
    let outside = tempfile::tempdir().unwrap();
    for name in ["dev", "proc", "sys", "etc", "data"] {
        fs::create_dir(outside.path().join(name)).unwrap();
    }
    fs::write(outside.path().join("etc/hosts"), "host").unwrap();
    let world = World::new();
    let place = |name: &str| outside.path().join(name);
    // Absolute links to places that exist on the host, and ones that climb.
    for name in ["dev", "proc", "sys", "data"] {
        symlink(place(name), world.path("lower").join(name)).unwrap();
    }
    let climbing = Path::new("../../../../../..").join(place("etc/hosts").strip_prefix("/").unwrap());
    symlink(climbing, world.path("lower/etc/hosts")).unwrap();
    symlink("/run/nowhere/resolv.conf", world.path("lower/etc/resolv.conf")).unwrap();
    let mut spec = world.spec(&[
        "read /etc/hosts",
        "read /run/nowhere/resolv.conf",
        "list /data",
        "pid",
        "read /proc/self/comm",
        "list /dev/pts",
    ]);
    spec.files = vec![
        File {
            target: "/etc/hosts".into(),
            content: b"ours".to_vec(),
        },
        File {
            target: "/etc/resolv.conf".into(),
            content: b"dns".to_vec(),
        },
    ];
    spec.mounts = vec![Mount::Tmpfs {
        target: "/data".into(),
        size: None,
        mode: 0o755,
        executable: false,
    }];
    let lines = ask(spec);
    assert_eq!(lines[..4], ["ok ours", "ok dns", "ok ", "ok 1"]);
    assert!(lines[4].starts_with("ok "), "{lines:?}");
    assert_eq!(lines[5], "ok ptmx");
    // Nothing was made, mounted or written out here.
    assert_eq!(fs::read_to_string(place("etc/hosts")).unwrap(), "host");
    for name in ["dev", "proc", "sys", "data"] {
        assert_eq!(fs::read_dir(place(name)).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn an_endless_link_is_an_error_and_not_a_loop() {
    let world = World::new();
    symlink("/etc/b", world.path("lower/etc/a")).unwrap();
    symlink("/etc/a", world.path("lower/etc/b")).unwrap();
    let mut spec = world.spec(&[]);
    spec.files = vec![File {
        target: "/etc/a".into(),
        content: Vec::new(),
    }];
    let error = start(spec).err().unwrap();
    assert!(
        error.causes().join(" ").contains("cannot mount `/etc/a`"),
        "{error:?}"
    );
}

#[test]
fn a_jail_without_layers_has_only_what_is_mounted() {
    let world = World::new();
    let mut spec = world.spec(&["list /", "create /x", "read /tool"]);
    spec.root = Root::Empty;
    spec.mounts = vec![Mount::Bind {
        source: world.path("lower/etc/from-image"),
        target: "/tool".into(),
        read_only: true,
    }];
    assert_eq!(ask(spec), ["ok dev proc sys tool", "error 30", "ok image"]);
}

#[test]
fn a_socket_of_the_jails_network_leads_nowhere_else() {
    let world = World::new();
    let asked = start(world.spec(&["wait"])).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let socket = asked.jail.handle().tcp_socket().unwrap();
    assert_eq!(
        rustix::net::connect(&socket, &address),
        Err(rustix::io::Errno::CONNREFUSED),
        "its loopback is not ours"
    );
    // The thread that asked has not moved.
    std::net::TcpStream::connect(address).unwrap();
    let handle = asked.jail.handle();
    drop(asked);
    assert_eq!(handle.tcp_socket().unwrap_err().kind(), luna_core::Kind::Conflict);
}
