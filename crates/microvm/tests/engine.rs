//! The engine with the real init under real QEMU: from a bundle to a process inside and back to nothing.
//!
//! Needs a guest kernel in `LUNA_ROOT/kernels` (`luna kernel build` or `fetch`), QEMU, `mke2fs` and `mkfs.erofs`; where one
//! of them is missing each test says so and does nothing.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // In the helpers beside the tests.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use luna_core::capability::Capabilities;
use luna_core::engine::{
    Accelerator, Bundle, Confinement, Disk, Endpoint, Engine as _, IdRange, Instance, OverlaidFile, Root,
};
use luna_core::name::Id;
use luna_core::process::{ExitStatus, Process};
use luna_core::spec::{Resources, Seccomp};
use luna_core::units::Bytes;
use luna_guest::session::Session;
use luna_microvm::Microvm;
use luna_microvm::kernel::Store;

/// An image with a static shell, for as long as this lives.
struct World {
    directory: tempfile::TempDir,
    kernel: PathBuf,
}

impl World {
    fn new() -> Option<World> {
        let root = std::env::var_os("LUNA_ROOT").map_or_else(|| "/var/lib/luna".into(), PathBuf::from);
        let kernel = match Store::open(&root.join("kernels")).choose(None) {
            Ok(kernel) => kernel.directory,
            Err(error) => {
                println!("skipped: {error:?}");
                return None;
            }
        };
        let directory = tempfile::tempdir().unwrap();
        let lower = directory.path().join("lower");
        for name in ["bin", "etc", "tmp"] {
            fs::create_dir_all(lower.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", lower.join("bin/busybox")).expect("busybox-static is installed");
        for name in [
            "sh", "cat", "id", "echo", "sleep", "hostname", "touch", "ls", "grep", "true", "mount", "dd",
            "sync", "uname", "head", "dmesg", "mkdir",
        ] {
            std::os::unix::fs::symlink("busybox", lower.join("bin").join(name)).unwrap();
        }
        fs::write(lower.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        let made = Command::new("mkfs.erofs")
            .arg("--all-root")
            .arg(directory.path().join("base.erofs"))
            .arg(&lower)
            .output();
        if !made.is_ok_and(|output| output.status.success()) {
            println!("skipped: no mkfs.erofs here");
            return None;
        }
        Some(World { directory, kernel })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn bundle(&self) -> Bundle {
        let init = std::env::current_exe().unwrap();
        let init = init
            .parent()
            .and_then(Path::parent)
            .unwrap()
            .join("examples/machine_init");
        let mut bits = [0; 16];
        rustix::rand::getrandom(&mut bits, rustix::rand::GetRandomFlags::empty()).unwrap();
        Bundle {
            id: Id::from_random(bits),
            init: luna_jail::sealed(&init).expect("`cargo test -p luna-microvm` builds the example"),
            root: Root::Disk(Disk {
                kernel: self.kernel.clone(),
                base: self.path("base.erofs"),
                upper: self.path("upper.ext4"),
                upper_size: Bytes::mebibytes(1024),
                read_only: false,
                modules: None,
                sockets: Vec::new(),
            }),
            ids: IdRange { base: 1_300_000_000 },
            hostname: "box".into(),
            files: vec![OverlaidFile {
                target: "/etc/hostname".into(),
                content: b"box\n".to_vec(),
            }],
            mounts: Vec::new(),
            endpoint: Endpoint::None,
            resources: Resources {
                memory: Some(Bytes::mebibytes(128)),
                ..Resources::default()
            },
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

fn start(bundle: Bundle) -> Box<dyn Instance> {
    Microvm::new(Accelerator::Tcg)
        .start(bundle)
        .unwrap_or_else(|error| panic!("{error:#?}"))
}

fn run(instance: &mut Box<dyn Instance>, script: &str) -> (String, ExitStatus) {
    let session = Session::open(instance.channel().unwrap()).unwrap();
    let mut child = session.start(&shell(script)).unwrap();
    let mut output = String::new();
    child.stdout.read_to_string(&mut output).unwrap();
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    (output + &errors, child.handle().wait().unwrap())
}

#[test]
fn a_program_runs_under_a_kernel_of_its_own() {
    let Some(world) = World::new() else { return };
    let began = std::time::Instant::now();
    let mut instance = start(world.bundle());
    println!("booted after {:?}", began.elapsed());
    let script = "hostname; id -u; cat /etc/hostname; uname -r; echo $$; cat /proc/self/mounts; ls /dev; ls -la / ; exit 7";
    let (output, status) = run(&mut instance, script);
    println!("{output}");
    assert_eq!(status, ExitStatus::Code(7));
    assert!(output.starts_with("box\n0\nbox\n"));
    assert_eq!(instance.wait().unwrap(), ExitStatus::Code(7));
    let usage = instance.control().usage().unwrap();
    println!("{usage:?}");
    assert!(!usage.out_of_memory());
}
