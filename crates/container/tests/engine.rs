//! The engine with the real init: from a bundle to a process inside and back to nothing.

#![allow(clippy::unwrap_used)] // In the helpers beside the tests.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use luna_container::Container;
use luna_core::capability::Capabilities;
use luna_core::engine::{
    Bundle, Confinement, Endpoint, Engine as _, IdRange, Instance, Mount, OverlaidFile, Root, Tree,
};
use luna_core::name::Id;
use luna_core::process::{ExitStatus, Process, Rlimit, RlimitKind};
use luna_core::spec::{Device, PidsLimit, Resources, Seccomp, SwapLimit};
use luna_core::units::{Bytes, MilliCpus};
use luna_guest::session::Session;

/// A root file system with a static shell, for as long as this lives.
struct World(tempfile::TempDir);

impl World {
    fn new() -> World {
        let world = World(tempfile::tempdir().unwrap());
        for name in ["lower/bin", "lower/etc", "upper", "work"] {
            fs::create_dir_all(world.path(name)).unwrap();
        }
        fs::copy("/bin/busybox", world.path("lower/bin/busybox")).expect("busybox-static is installed");
        for name in [
            "sh", "cat", "id", "echo", "sleep", "hostname", "touch", "ls", "grep", "unshare", "true",
        ] {
            std::os::unix::fs::symlink("busybox", world.path("lower/bin").join(name)).unwrap();
        }
        fs::write(world.path("lower/etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn bundle(&self) -> Bundle {
        let init = std::env::current_exe().unwrap();
        let init = init
            .parent()
            .and_then(Path::parent)
            .unwrap()
            .join("examples/init");
        let mut bits = [0; 16];
        rustix::rand::getrandom(&mut bits, rustix::rand::GetRandomFlags::empty()).unwrap();
        Bundle {
            id: Id::from_random(bits),
            init: luna_jail::sealed(&init).expect("`cargo test -p luna-container` builds the example"),
            root: Root::Tree(Tree {
                lower: vec![self.path("lower")],
                upper: self.path("upper"),
                work: self.path("work"),
                read_only: false,
            }),
            ids: IdRange { base: 1_300_000_000 },
            hostname: "box".into(),
            files: vec![OverlaidFile {
                target: "/etc/hostname".into(),
                content: b"box\n".to_vec(),
            }],
            mounts: Vec::new(),
            endpoint: Endpoint::None,
            resources: Resources::default(),
            confinement: Confinement {
                capabilities: Capabilities::DEFAULT,
                no_new_privileges: true,
                nested_user_namespaces: false,
                seccomp: Seccomp::Default,
                devices: Vec::new(),
                apparmor: None,
                selinux: None,
                privileged: false,
            },
        }
    }
}

fn shell(script: &str) -> Process {
    Process {
        args: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        env: vec![("PATH".into(), "/bin".into())],
        cwd: "/".into(),
        user: String::new(),
        groups: Vec::new(),
        terminal: None,
        stdin: false,
        capabilities: Capabilities::DEFAULT,
        no_new_privileges: true,
        rlimits: Vec::new(),
    }
}

fn run(instance: &mut Box<dyn Instance>, script: &str) -> (String, ExitStatus) {
    let session = Session::open(instance.channel().unwrap()).unwrap();
    let mut child = session.start(&shell(script)).unwrap();
    let mut text = String::new();
    child.stdout.read_to_string(&mut text).unwrap();
    drop(child.stderr.take());
    let status = child.handle().wait().unwrap();
    (text, status)
}

#[test]
fn a_program_runs_behind_the_wall() {
    let world = World::new();
    let mut instance = Container.start(world.bundle()).unwrap();
    let (text, status) = run(
        &mut instance,
        "id -u; hostname; cat /etc/hostname; touch /made; exit 7",
    );
    assert_eq!(text, "0\nbox\nbox\n");
    assert_eq!(status, ExitStatus::Code(7));
    assert_eq!(instance.wait().unwrap(), ExitStatus::Code(7));
    assert!(world.path("upper/made").exists());
    assert!(instance.channel().is_err());
}

#[test]
fn what_the_bundle_asks_for_is_inside() {
    let world = World::new();
    let volume = world.path("volume");
    fs::create_dir(&volume).unwrap();
    let mut bundle = world.bundle();
    bundle.mounts = vec![
        Mount::Bind {
            source: volume.clone(),
            target: "/data".into(),
            read_only: false,
        },
        Mount::Bind {
            source: volume.clone(),
            target: "/frozen".into(),
            read_only: true,
        },
    ];
    bundle.resources = Resources {
        memory: Some(Bytes::mebibytes(64)),
        memory_swap: Some(SwapLimit::Total(Bytes::mebibytes(64))),
        pids: Some(PidsLimit::At(30)),
        cpus: Some(MilliCpus(500)),
        shm: Some(Bytes::mebibytes(8)),
        ..Resources::default()
    };
    let mut instance = Container.start(bundle).unwrap();
    let control = instance.control();
    let usage = control.usage().unwrap();
    assert_eq!(usage.memory_limit, Some(Bytes::mebibytes(64)));
    assert_eq!(usage.pids_limit, Some(30));
    control.pause().unwrap();
    control.resume().unwrap();
    let more = Resources {
        memory: Some(Bytes::mebibytes(96)),
        ..Resources::default()
    };
    control.update(&more).unwrap();
    assert_eq!(control.usage().unwrap().memory_limit, Some(Bytes::mebibytes(96)));
    let script = "touch /data/x; touch /frozen/y 2>/dev/null || echo frozen; cat /proc/mounts | grep shm";
    let (text, _) = run(&mut instance, script);
    assert!(text.starts_with("frozen\n"), "{text}");
    assert!(text.contains("size=8192k"), "{text}");
    assert!(volume.join("x").exists() && !volume.join("y").exists());
}

#[test]
fn resource_limits_bind_each_process_and_not_init() {
    let files = |hard| {
        vec![Rlimit {
            resource: RlimitKind::Nofile,
            soft: hard,
            hard,
        }]
    };
    let world = World::new();
    let mut bundle = world.bundle();
    bundle.resources.rlimits = files(16);
    let mut instance = Container.start(bundle).unwrap();
    let session = Session::open(instance.channel().unwrap()).unwrap();
    let mut main = shell("sleep 1000");
    main.rlimits = files(16);
    let main = session.start(&main).unwrap();
    let mut others = Vec::new();
    for _ in 0..8 {
        let mut process = shell("ulimit -n; read line");
        process.stdin = true;
        process.rlimits = files(16);
        let mut other = session.exec(&process).unwrap();
        let mut line = [0; 3];
        other.stdout.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"16\n");
        others.push(other);
    }
    let mut process = shell("true");
    process.rlimits = files(1 << 40);
    let error = session.exec(&process).unwrap_err();
    assert!(error.message().contains("resource limits"), "{error:?}");
    assert!(error.hint_text().is_some(), "{error:?}");
    drop((main, others));
}

#[test]
fn a_device_for_reading_alone_is_that_or_an_error() {
    use rustix::fs::{CWD, FileType, Mode, makedev};
    let world = World::new();
    // The number of `/dev/fuse`, which anybody may open and no container has unasked.
    let node = world.path("fuse");
    rustix::fs::mknodat(
        CWD,
        &node,
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        makedev(10, 229),
    )
    .unwrap();
    fs::set_permissions(&node, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let mut bundle = world.bundle();
    bundle.confinement.devices = vec![Device {
        source: node,
        target: "/dev/fuse".into(),
        read: true,
        write: false,
    }];
    match Container.start(bundle) {
        Ok(mut instance) => {
            let script = "(: </dev/fuse) && echo read; (: >/dev/fuse) 2>/dev/null || echo refused";
            assert_eq!(run(&mut instance, script).0, "read\nrefused\n");
        }
        Err(error) => {
            let causes = error.causes().join(" ");
            assert!(causes.contains("for reading or writing alone"), "{error:?}");
        }
    }
}

#[test]
fn other_users_hold_nothing() {
    let world = World::new();
    let mut instance = Container.start(world.bundle()).unwrap();
    let session = Session::open(instance.channel().unwrap()).unwrap();
    let mut process = shell("id -u; grep -E 'CapEff|NoNewPrivs' /proc/self/status; touch /x || exit 3");
    process.user = "1000:1000".into();
    let mut child = session.start(&process).unwrap();
    drop(child.stderr.take());
    let mut text = String::new();
    child.stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text, "1000\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n");
    assert_eq!(child.handle().wait().unwrap(), ExitStatus::Code(3));
}

#[test]
fn nested_user_namespaces_only_where_granted() {
    for granted in [false, true] {
        let world = World::new();
        let mut bundle = world.bundle();
        bundle.confinement.nested_user_namespaces = granted;
        let mut instance = Container.start(bundle).unwrap();
        let (text, _) = run(
            &mut instance,
            "unshare -U id -u 2>/dev/null || echo refused; unshare -m true 2>/dev/null || echo refused",
        );
        let expected = if granted {
            "65534\nrefused\n"
        } else {
            "refused\nrefused\n"
        };
        assert_eq!(text, expected, "granted: {granted}");
    }
}

#[test]
fn a_read_only_volume_is_not_handed_to_one_who_can_remount_it() {
    let world = World::new();
    let mut bundle = world.bundle();
    bundle.mounts = vec![Mount::Bind {
        source: "/etc".into(),
        target: "/data".into(),
        read_only: true,
    }];
    bundle.confinement.capabilities = Capabilities::DEFAULT.with("SYS_ADMIN".parse().unwrap());
    let error = Container.start(bundle).err().unwrap();
    assert_eq!(error.kind(), luna_core::Kind::Refused);
}

#[test]
fn what_cannot_be_enforced_is_an_error_with_a_reason() {
    let world = World::new();
    let mut bundle = world.bundle();
    bundle.confinement.selinux = Some("system_u:system_r:container_t:s0".into());
    let error = Container.start(bundle).err().unwrap();
    assert!(error.causes().join(" ").contains("label"), "{error:?}");
}

#[test]
fn init_ends_when_its_host_goes_away() {
    let world = World::new();
    let mut instance = Container.start(world.bundle()).unwrap();
    drop(instance.channel().unwrap());
    instance.wait().unwrap();
}

#[test]
fn probing_says_what_it_did() {
    let report = Container.probe();
    assert!(report.available(), "{:?}", report.obstacle());
    assert!(report.checks.iter().all(|check| !check.detail.is_empty()));
}

#[test]
fn reclaiming_what_is_not_there_is_no_error() {
    Container.reclaim(&Id::from_random([7; 16])).unwrap();
}

#[test]
fn kill_ends_it_and_is_no_error_twice() {
    let world = World::new();
    let mut instance = Container.start(world.bundle()).unwrap();
    let control = instance.control();
    control.kill().unwrap();
    assert_eq!(
        instance.wait().unwrap(),
        ExitStatus::Signal {
            number: 9,
            core_dumped: false
        }
    );
    control.kill().unwrap();
    drop(instance);
    control.kill().unwrap();
    assert!(control.pause().is_err());
    assert!(control.usage().is_err());
}
