//! Each defence can be taken out alone: the jail still starts, and exactly that one is gone. The escape suite relies on it
//! to show that an attempt fails for its own reason.

#![allow(clippy::unwrap_used)] // In the helpers beside the tests.

mod common;

use std::fs;
use std::os::fd::AsRawFd as _;

use common::{World, ask, start};
use luna_core::capability::Capabilities;
use luna_jail::Spec;
use luna_jail::spec::{Defences, Landlock, Mount, Network, Opening, Seccomp};

fn without(spec: &mut Spec, take_out: impl FnOnce(&mut Defences)) {
    take_out(&mut spec.defences);
    assert_ne!(spec.defences, Defences::default(), "something is taken out");
}

type TakeOut = fn(&mut Defences);

/// What the script prints with the whole wall and with one defence less.
fn both(script: &[&str], take_out: impl Fn(&mut Defences)) -> (Vec<String>, Vec<String>) {
    let whole = ask(World::new().spec(script));
    let world = World::new();
    let mut less = world.spec(script);
    without(&mut less, take_out);
    (whole, ask(less))
}

#[test]
fn namespaces() {
    let own = |name: &str| {
        fs::read_link(format!("/proc/self/ns/{name}"))
            .unwrap()
            .display()
            .to_string()
    };
    let cases: [(&str, TakeOut); 4] = [
        ("pid", |defences| defences.pid_namespace = false),
        ("ipc", |defences| defences.ipc_namespace = false),
        ("uts", |defences| defences.uts_namespace = false),
        ("cgroup", |defences| defences.cgroup_namespace = false),
    ];
    for (name, take_out) in cases {
        let link = format!("link /proc/self/ns/{name}");
        let (whole, less) = both(&[&link], take_out);
        assert_ne!(whole[0], format!("ok {}", own(name)), "{name}");
        assert_eq!(less[0], format!("ok {}", own(name)), "{name}");
    }
    let world = World::new();
    let mut spec = world.spec(&["link /proc/self/ns/net", "list /sys/class"]);
    spec.network = Network::Host;
    let lines = ask(spec);
    assert_eq!(lines[0], format!("ok {}", own("net")));
    assert!(lines[1].contains("net"));
}

#[test]
fn user_namespace() {
    let (whole, less) = both(
        &["read /proc/self/uid_map", "owner /", "create /x", "owner /x"],
        |defences| {
            defences.user_namespace = false;
        },
    );
    assert_ne!(whole[0], less[0]);
    assert!(less[0].ends_with("4294967295"), "{less:?}");
    assert_eq!(less[2..], ["ok ", "ok 0:0 100644"]);
}

#[test]
fn masks_and_read_only_paths() {
    let (whole, less) = both(&["read /proc/keys", "list /sys/firmware"], |defences| {
        defences.masked_paths = false;
    });
    assert_eq!(whole[0], "ok ");
    assert_ne!(whole, less);
    // Its owner, the user namespace's root, may set the host name; a read-only mount forbids it.
    let (whole, less) = both(&["read /proc/self/mountinfo"], |defences| {
        defences.read_only_paths = false;
    });
    assert!(whole[0].contains(" /proc/sys ro,") && !less[0].contains(" /proc/sys "));
    let (whole, less) = both(&["read /proc/self/mountinfo"], |defences| {
        defences.read_only_system = false;
    });
    assert!(whole[0].contains(" /sys ro,") && less[0].contains(" /sys rw,"));
}

#[test]
fn binds() {
    let world = World::new();
    let volume = world.path("volume");
    fs::create_dir(&volume).unwrap();
    let spec = |take_out: fn(&mut Defences)| {
        let mut spec = world.spec(&["create /data/x", "read /proc/self/mountinfo"]);
        take_out(&mut spec.defences);
        spec.mounts = vec![Mount::Bind {
            source: volume.clone(),
            target: "/data".into(),
            read_only: true,
        }];
        ask(spec)
    };
    let whole = spec(|_| ());
    assert_eq!(whole[0], "error 30");
    assert!(whole[1].contains(" /data ro,nosuid,nodev,"));
    assert_eq!(spec(|defences| defences.read_only_binds = false)[0], "ok ");
    assert!(spec(|defences| defences.restricted_binds = false)[1].contains(" /data ro,relatime"));
}

#[test]
fn what_the_program_holds() {
    let field = |status: &str, name: &str| {
        let line = status.split('|').find(|line| line.starts_with(name)).unwrap();
        line.rsplit(':').next().unwrap().trim().to_owned()
    };
    let script = ["read /proc/self/status"];
    let (_, less) = both(&script, |defences| defences.no_new_privileges = false);
    assert_eq!(field(&less[0], "NoNewPrivs"), "0");
    assert_eq!(field(&less[0], "Seccomp"), "2", "the filter does not lean on it");
    assert_eq!(field(&less[0], "CapEff"), "00000000a80425fb");
    let (_, less) = both(&script, |defences| defences.seccomp = Seccomp::Unconfined);
    assert_eq!(field(&less[0], "Seccomp"), "0");
    let (_, less) = both(&script, |defences| defences.capabilities = Capabilities::ALL);
    assert!(u64::from_str_radix(&field(&less[0], "CapEff"), 16).unwrap() & 1 << 21 != 0);
    for take_out in [
        |defences: &mut Defences| defences.landlock = Landlock::Absent,
        |defences: &mut Defences| defences.new_session_keyring = false,
        |defences: &mut Defences| defences.new_session = false,
        |defences: &mut Defences| defences.device_cgroup = false,
        |defences: &mut Defences| defences.die_with_parent = false,
        |defences: &mut Defences| {
            defences.seccomp = Seccomp::Filter {
                nested_user_namespaces: true,
                also: vec![Opening::SocketFamily(38), Opening::Call(250)],
            };
        },
    ] {
        assert!(both(&script, take_out).1[0].starts_with("ok"));
    }
}

#[test]
fn descriptors_of_the_launcher() {
    let world = World::new();
    let leak = fs::File::open("/proc/self/exe").unwrap();
    // A descriptor that execve keeps, far above those the jail uses for itself.
    let leak = rustix::io::fcntl_dupfd_cloexec(&leak, 300).unwrap();
    let number = leak.as_raw_fd();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let link = format!("link /proc/self/fd/{number}");
    let whole = ask(world.spec(&[&link]));
    let mut spec = world.spec(&[&link]);
    spec.defences.close_descriptors = false;
    let less = ask(spec);
    assert_eq!(whole, ["error 2"]);
    assert!(less[0].starts_with("ok /"), "{number} {less:?}");
}

#[test]
fn a_program_that_is_not_sealed() {
    let world = World::new();
    let mut spec = world.spec(&["pid"]);
    spec.program.executable = fs::File::open(common::inmate()).unwrap().into();
    assert!(start(spec).is_err());
    let mut spec = world.spec(&["pid"]);
    spec.program.executable = fs::File::open(common::inmate()).unwrap().into();
    spec.defences.sealed_program = false;
    assert_eq!(ask(spec), ["ok 1"]);
}

#[test]
fn targets_outside_the_root() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("hosts"), "host").unwrap();
    let world = World::new();
    std::os::unix::fs::symlink(outside.path(), world.path("lower/data")).unwrap();
    let spec = |in_root: bool| {
        let mut spec = world.spec(&["list /data"]);
        spec.defences.resolve_in_root = in_root;
        spec.mounts = vec![Mount::Tmpfs {
            target: "/data/made".into(),
            size: None,
            mode: 0o755,
            executable: false,
        }];
        start(spec).map(drop)
    };
    spec(true).unwrap();
    assert!(!outside.path().join("made").exists());
    // Without the flag the launcher follows the image's link and makes a directory on the host.
    std::os::unix::fs::chown(outside.path(), Some(common::BASE), Some(common::BASE)).unwrap();
    fs::set_permissions(
        outside.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    spec(false).unwrap();
    assert!(outside.path().join("made").exists());
}
