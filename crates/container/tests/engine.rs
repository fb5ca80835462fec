//! The engine with the real init: from a bundle to a process inside and back to nothing.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use luna_container::Container;
use luna_core::capability::Capabilities;
use luna_core::engine::{Bundle, Confinement, Endpoint, Engine as _, IdRange, Instance, OverlaidFile, Tree};
use luna_core::name::Id;
use luna_core::process::{ExitStatus, Process};
use luna_core::spec::{Resources, Seccomp};
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
        for name in ["sh", "cat", "id", "echo", "sleep", "hostname", "touch", "ls"] {
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
            root: Tree {
                lower: vec![self.path("lower")],
                upper: self.path("upper"),
                work: self.path("work"),
                read_only: false,
            },
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
