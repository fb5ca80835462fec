//! A root file system, an inmate and a way to ask it, for the tests of the wall.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // Each test binary uses its part.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use luna_core::units::Bytes;
use luna_jail::spec::{Defences, Ids, Limits, Network, Program, Root, SecurityLabels};
use luna_jail::{Jailed, Spec};

pub const BASE: u32 = 1_200_000_000;

/// Layers and a writable directory that vanish with this.
pub struct World {
    pub directory: tempfile::TempDir,
}

impl World {
    pub fn new() -> World {
        let world = World {
            directory: tempfile::tempdir().unwrap(),
        };
        for name in ["lower/etc", "lower/tmp", "upper", "work"] {
            fs::create_dir_all(world.path(name)).unwrap();
        }
        fs::write(world.path("lower/etc/from-image"), "image").unwrap();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn root(&self) -> Root {
        Root::Overlay {
            lower: vec![self.path("lower")],
            upper: self.path("upper"),
            work: self.path("work"),
            read_only: false,
        }
    }

    pub fn spec(&self, script: &[&str]) -> Spec {
        let mut arguments = vec!["luna-init".to_owned()];
        arguments.extend(script.iter().map(ToString::to_string));
        Spec {
            name: format!("test-{}-{}", std::process::id(), unique()),
            program: Program {
                executable: luna_jail::sealed(&inmate()).unwrap(),
                arguments,
                environment: vec![("PATH".into(), "/bin".into())],
                stdio: [None, None, None],
                descriptors: Vec::new(),
            },
            ids: Ids {
                base: BASE,
                count: 65536,
            },
            root: self.root(),
            hostname: "inmate".into(),
            files: Vec::new(),
            mounts: Vec::new(),
            shared_memory: Bytes::mebibytes(64),
            network: Network::Own,
            limits: Limits::default(),
            rlimits: Vec::new(),
            security_labels: SecurityLabels::default(),
            defences: Defences::default(),
        }
    }
}

pub fn unique() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

pub fn inmate() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent()
        .and_then(Path::parent)
        .unwrap()
        .join("examples/inmate")
}

/// A running jail with its standard input and output.
pub struct Asked {
    pub jail: Jailed,
    pub input: OwnedFd,
    pub output: File,
}

pub fn start(mut spec: Spec) -> luna_core::Result<Asked> {
    let (input_read, input) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (output, output_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let errors = std::io::stderr().as_fd().try_clone_to_owned().unwrap();
    spec.program.stdio = [Some(input_read), Some(output_write), Some(errors)];
    Ok(Asked {
        jail: luna_jail::launch(spec)?,
        input,
        output: File::from(output),
    })
}

/// Runs the script and returns a line per command.
pub fn ask(spec: Spec) -> Vec<String> {
    let mut asked = start(spec).unwrap();
    let mut text = String::new();
    asked.output.read_to_string(&mut text).unwrap();
    asked.jail.wait().unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Every cgroup of this name, in any hierarchy.
pub fn cgroups_named(name: &str) -> Vec<PathBuf> {
    fn search(directory: &Path, name: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy() == format!("luna-{name}") {
                    found.push(entry.path());
                }
                search(&entry.path(), name, found);
            }
        }
    }
    let mut found = Vec::new();
    search(Path::new("/sys/fs/cgroup"), name, &mut found);
    found
}

/// Cgroups as a launcher leaves them that is killed with SIGKILL: a launched jail's, made again after its end.
pub fn make_cgroups(name: &str) -> Vec<PathBuf> {
    let world = World::new();
    let mut spec = world.spec(&["wait"]);
    name.clone_into(&mut spec.name);
    let asked = start(spec).unwrap();
    let found = cgroups_named(name);
    drop(asked);
    for path in &found {
        fs::create_dir(path).unwrap();
    }
    found
}
