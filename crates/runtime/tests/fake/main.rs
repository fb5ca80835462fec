//! The whole path of a run on an engine without a wall, with something going wrong at every step of it; afterwards no
//! file, descriptor, thread or process is left.

#![allow(clippy::unwrap_used)] // In the helpers beside the tests.

mod engine;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use luna_core::engine::Engine;
use luna_core::name::Name;
use luna_core::spec::{PortMapping, RestartPolicy, Spec};
use luna_core::{Error, Kind};
use luna_runtime::image::{ConfigChanges, Image, Reference, import};
use luna_runtime::{Runtime, Sandbox, State, Supervision};

use engine::{Fake, Fault};

const LIMIT: Duration = Duration::from_secs(20);

/// One test at a time: descriptors and threads are counted for the whole process.
static ALONE: Mutex<()> = Mutex::new(());

/// Whether `luna-init` lies where the runtime looks for it.
static INIT: OnceLock<()> = OnceLock::new();

struct Luna {
    runtime: Arc<Runtime>,
    engine: Arc<Fake>,
    image: Image,
    before: Held,
    directory: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// Cargo's own thread for a test bears the test's name, as much of it as the kernel keeps.
const TEST: &str = "fake::";

/// What this process holds on to.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: BTreeSet<String>,
}

impl Held {
    fn now() -> Held {
        let names = |directory: &str| {
            fs::read_dir(directory)
                .unwrap()
                .flatten()
                .map(|entry| entry.path())
                .collect::<Vec<_>>()
        };
        let threads = names("/proc/self/task")
            .iter()
            .filter(|path| {
                !fs::read_to_string(path.join("comm"))
                    .unwrap_or_default()
                    .starts_with(TEST)
            })
            .map(|path| path.display().to_string())
            .collect();
        Held {
            descriptors: names("/proc/self/fd").len(),
            threads,
        }
    }
}

impl Luna {
    fn new() -> Luna {
        Luna::within(tempfile::tempdir().unwrap())
    }

    fn within(directory: tempfile::TempDir) -> Luna {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        INIT.get_or_init(build_init);
        let before = Held::now();
        let engine = Arc::new(Fake::default());
        let engines: Vec<Arc<dyn Engine>> = vec![Arc::clone(&engine) as Arc<dyn Engine>];
        let rootless = !rustix::process::geteuid().is_root();
        let runtime = Runtime::with(
            &directory.path().join("luna"),
            rootless,
            engines,
            Supervision::Thread,
        )
        .unwrap();
        // An archive of nothing: what runs is the host's.
        let nothing = [0u8; 1024];
        let reference: Reference = "nothing".parse().unwrap();
        let image = import(
            runtime.store(),
            &mut &nothing[..],
            Some(&reference),
            &ConfigChanges::default(),
            &|_| {},
        )
        .unwrap();
        Luna {
            runtime: Arc::new(runtime),
            engine,
            image,
            before,
            directory,
            _alone: alone,
        }
    }

    fn fault(&self, fault: Fault) {
        *self.engine.fault.lock().unwrap() = fault;
    }

    fn spec(script: &str) -> Spec {
        let mut spec = Spec::new("nothing");
        spec.program.command = vec!["sh".into(), "-c".into(), script.into()];
        if !rustix::process::geteuid().is_root() {
            spec.program.user = Some(rustix::process::geteuid().as_raw().to_string());
        }
        spec
    }

    fn create(&self, spec: Spec) -> luna_core::Result<Sandbox> {
        let decision = self.runtime.decide(&self.runtime.asked(&spec)?)?;
        self.runtime.create(spec, decision, &self.image)
    }

    fn alive(&self) -> usize {
        self.engine.counts.alive.load(Ordering::SeqCst)
    }

    fn started(&self) -> usize {
        self.engine.counts.started.load(Ordering::SeqCst)
    }

    /// Starts what must not start; the error.
    fn refused(&self, sandbox: &Sandbox) -> Error {
        self.runtime.start(sandbox, None).expect_err("something is wrong")
    }

    fn files(&self) -> Vec<PathBuf> {
        let root = self.runtime.layout().root();
        ["sandboxes", "names", "ranges", "trash", "volumes"]
            .iter()
            .flat_map(|name| fs::read_dir(root.join(name)).unwrap().flatten())
            .map(|entry| entry.path())
            .collect()
    }

    /// Removes the sandbox and checks that nothing is left of anything.
    fn ends_clean(&self, sandbox: &Sandbox) {
        self.runtime.remove(sandbox, true, true).unwrap();
        self.is_clean();
    }

    fn is_clean(&self) {
        wait_until("every instance is gone", || self.alive() == 0);
        wait_until("every file is gone", || self.files().is_empty());
        let mut last = Held::now();
        let back = within(LIMIT, || {
            last = Held::now();
            last.descriptors <= self.before.descriptors && last.threads.is_subset(&self.before.threads)
        });
        assert!(back, "held before {:?}, and now {last:?}", self.before);
    }
}

fn within(limit: Duration, mut answer: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !answer() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

fn wait_until(what: &str, answer: impl FnMut() -> bool) {
    assert!(within(LIMIT, answer), "{what}");
}

/// Cargo puts `luna-init` beside the directory of this test, where the runtime is told to look.
fn build_init() {
    let own = std::env::current_exe().unwrap();
    let directory = own.parent().and_then(Path::parent).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "build",
        "--quiet",
        "--package",
        "luna-guest",
        "--bin",
        "luna-init",
    ]);
    if directory.ends_with("release") {
        cargo.arg("--release");
    }
    assert!(cargo.status().unwrap().success());
    // The runtime looks beside its executable, which is this test.
    let beside = own.with_file_name("luna-init");
    let staged = own.with_file_name(format!("luna-init-{}", std::process::id()));
    fs::copy(directory.join("luna-init"), &staged).unwrap();
    fs::rename(staged, beside).unwrap();
}

mod fake {
    use super::*;

    #[test]
    fn a_run_from_spec_to_status() {
        let luna = Luna::new();
        let sandbox = luna
            .create(Luna::spec("echo said; echo more >&2; exit 7"))
            .unwrap();
        assert_eq!(sandbox.status().unwrap().state, State::Created);
        luna.runtime.start(&sandbox, None).unwrap();
        wait_until("it has ended", || {
            sandbox.status().unwrap().state == State::Exited
        });
        let status = sandbox.status().unwrap();
        assert_eq!(status.exit_code, Some(7));
        assert_eq!(status.error, None);
        luna.ends_clean(&sandbox);
    }

    #[test]
    fn a_sandbox_to_be_removed_removes_itself() {
        let luna = Luna::new();
        let mut spec = Luna::spec("exit 0");
        spec.remove = true;
        let sandbox = luna.create(spec).unwrap();
        luna.runtime.start(&sandbox, None).unwrap();
        luna.is_clean();
    }

    #[test]
    fn every_step_of_a_start_may_fail() {
        for (fault, kind) in [
            (Fault::Start, Kind::Unavailable),
            (Fault::Channel, Kind::Unavailable),
            (Fault::Noise, Kind::Corrupt),
            (Fault::EarlyDeath, Kind::Unavailable),
        ] {
            for remove in [false, true] {
                let luna = Luna::new();
                luna.fault(fault);
                let mut spec = Luna::spec("exit 0");
                spec.remove = remove;
                let sandbox = luna.create(spec).unwrap();
                let error = luna.refused(&sandbox);
                assert_eq!(error.kind(), kind, "{fault:?}: {error:?}");
                assert!(
                    error.message().starts_with("cannot start `"),
                    "{fault:?}: {error:?}"
                );
                wait_until("the instance is gone", || luna.alive() == 0);
                if remove {
                    luna.is_clean();
                    continue;
                }
                let status = sandbox.status().unwrap();
                assert_eq!(status.state, State::Created, "{fault:?}");
                assert!(status.error.is_some(), "{fault:?}");
                luna.fault(Fault::None);
                // The supervisor that failed may still hold the lock when its answer is here.
                wait_until("it starts once nothing is wrong", || {
                    luna.runtime.start(&sandbox, None).is_ok()
                });
                wait_until("it has ended", || sandbox.status().unwrap().exit_code == Some(0));
                luna.ends_clean(&sandbox);
            }
        }
    }

    #[test]
    fn a_program_that_is_not_there() {
        let luna = Luna::new();
        let mut spec = Luna::spec("");
        spec.program.command = vec!["/no/such/program".into()];
        let sandbox = luna.create(spec).unwrap();
        let error = luna.refused(&sandbox);
        assert_eq!(error.kind(), Kind::CommandNotFound, "{error:?}");
        luna.ends_clean(&sandbox);
    }

    #[test]
    fn init_dies_under_its_program() {
        let luna = Luna::new();
        luna.fault(Fault::LateDeath);
        let sandbox = luna.create(Luna::spec("exec sleep 1000")).unwrap();
        // Whether init was still there to say that the program runs is a matter of luck.
        let started = luna.runtime.start(&sandbox, None);
        wait_until("it is over", || !sandbox.status().unwrap().state.live());
        if started.is_ok() {
            let status = sandbox.status().unwrap();
            assert_eq!(status.exit_code, Some(137));
            assert!(status.error.is_some());
        }
        luna.ends_clean(&sandbox);
    }

    #[test]
    fn what_fails_at_the_end_does_not_change_the_end() {
        for fault in [Fault::Wait, Fault::Usage] {
            let luna = Luna::new();
            luna.fault(fault);
            let sandbox = luna.create(Luna::spec("exit 5")).unwrap();
            luna.runtime.start(&sandbox, None).unwrap();
            wait_until("it has ended", || {
                sandbox.status().unwrap().state == State::Exited
            });
            assert_eq!(sandbox.status().unwrap().exit_code, Some(5), "{fault:?}");
            luna.ends_clean(&sandbox);
        }
    }

    #[test]
    fn a_restart_that_fails_is_the_end() {
        let luna = Luna::new();
        let mut spec = Luna::spec("sleep 0.3; exit 1");
        spec.restart = RestartPolicy::Always;
        let sandbox = luna.create(spec).unwrap();
        luna.runtime.start(&sandbox, None).unwrap();
        luna.fault(Fault::Start);
        wait_until("it has given up", || {
            sandbox.status().unwrap().state == State::Exited
        });
        let status = sandbox.status().unwrap();
        assert_eq!(status.exit_code, Some(125));
        assert!(status.error.is_some());
        luna.ends_clean(&sandbox);
    }

    #[test]
    fn one_name_for_two() {
        let luna = Luna::new();
        let name: Name = "wanted".parse().unwrap();
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..8)
                .map(|_| {
                    let (luna, name) = (&luna, name.clone());
                    scope.spawn(move || {
                        let mut spec = Luna::spec("exit 0");
                        spec.name = Some(name);
                        luna.create(spec)
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        assert_eq!(won.len(), 1);
        for error in lost.into_iter().filter_map(Result::err) {
            assert_eq!(error.kind(), Kind::AlreadyExists, "{error:?}");
        }
        assert_eq!(luna.runtime.list().unwrap().0.len(), 1);
        luna.ends_clean(won[0].as_ref().unwrap());
    }

    #[test]
    fn an_image_that_is_gone() {
        let luna = Luna::new();
        let sandbox = luna.create(Luna::spec("exit 0")).unwrap();
        luna.runtime.store().remove("nothing", true, &|_| false).unwrap();
        let error = luna.refused(&sandbox);
        assert_eq!(error.kind(), Kind::NotFound, "{error:?}");
        assert_eq!(luna.started(), 0);
        luna.ends_clean(&sandbox);
    }

    #[test]
    fn a_port_that_is_taken() {
        let luna = Luna::new();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let mut spec = Luna::spec("exit 0");
        spec.ports = vec![PortMapping {
            address: address.ip(),
            host: address.port(),
            sandbox: 80,
        }];
        let sandbox = luna.create(spec).unwrap();
        let error = luna.refused(&sandbox);
        assert_eq!(error.kind(), Kind::Conflict, "{error:?}");
        assert_eq!(luna.started(), 0, "validate all, then act");
        drop(taken);
        wait_until("it starts on a free port", || {
            luna.runtime.start(&sandbox, None).is_ok()
        });
        luna.ends_clean(&sandbox);
    }

    #[test]
    fn a_status_that_cannot_be_read() {
        for content in [
            "",
            "{",
            "[]",
            "{\"version\":99}",
            "{\"version\":1,\"state\":\"flying\"}",
        ] {
            let luna = Luna::new();
            let sandbox = luna.create(Luna::spec("exit 0")).unwrap();
            fs::write(sandbox.directory().join("status.json"), content).unwrap();
            let error = sandbox.status().unwrap_err();
            assert!(
                matches!(error.kind(), Kind::Corrupt | Kind::Unsupported),
                "{content}: {error:?}"
            );
            assert!(error.hint_text().is_some(), "{content}: {error:?}");
            let _ = luna.refused(&sandbox);
            assert_eq!(luna.alive(), 0);
            luna.ends_clean(&sandbox);
        }
    }

    #[test]
    fn a_record_that_cannot_be_read() {
        let luna = Luna::new();
        let sound = luna.create(Luna::spec("exit 0")).unwrap();
        let broken = luna.create(Luna::spec("exit 0")).unwrap();
        let path = broken.directory().join("sandbox.json");
        fs::write(&path, format!("{{\"version\":{}}}", sound.record.version)).unwrap();
        let (list, errors) = luna.runtime.list().unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].record.id, sound.record.id);
        assert_eq!(errors.len(), 1);
        let error = luna.runtime.find(broken.record.name.as_str()).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
        let _ = luna.refused(&broken);
        assert_eq!(luna.started(), 0);
        luna.runtime.remove(&sound, false, true).unwrap();
        luna.ends_clean(&broken);
    }

    #[test]
    fn what_a_killed_supervisor_left_is_reclaimed_at_the_next_start() {
        let luna = Luna::new();
        let sandbox = luna.create(Luna::spec("exit 0")).unwrap();
        luna.runtime.start(&sandbox, None).unwrap();
        wait_until("it has ended", || {
            sandbox.status().unwrap().state == State::Exited
        });
        // The last word of a supervisor that was killed.
        let path = sandbox.directory().join("status.json");
        let status = fs::read_to_string(&path)
            .unwrap()
            .replace("\"exited\"", "\"running\"");
        wait_until("the lock is free", || {
            fs::write(&path, &status).unwrap();
            sandbox.status().unwrap().error.is_some()
        });
        assert_eq!(sandbox.status().unwrap().exit_code, Some(137));
        drop(std::os::unix::net::UnixListener::bind(sandbox.directory().join("control.sock")).unwrap());
        let before = luna.engine.counts.reclaimed.load(Ordering::SeqCst);
        luna.runtime.start(&sandbox, None).unwrap();
        assert!(
            luna.engine.counts.reclaimed.load(Ordering::SeqCst) > before,
            "its cgroups are reclaimed first"
        );
        wait_until("it has ended", || {
            sandbox.status().unwrap().state == State::Exited
        });
        luna.ends_clean(&sandbox);
    }

    /// A file system of its own for Luna's state; unmounted when dropped.
    struct SmallDisk(tempfile::TempDir);

    impl SmallDisk {
        fn new() -> Result<SmallDisk, io::Error> {
            let directory = tempfile::tempdir()?;
            let done = Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs"])
                .arg(directory.path())
                .output()?;
            if done.status.success() {
                Ok(SmallDisk(directory))
            } else {
                Err(io::Error::other("mount failed"))
            }
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
        }
    }

    #[test]
    fn a_full_disk() {
        let disk = match SmallDisk::new() {
            Ok(disk) => disk,
            Err(error) => {
                eprintln!("skipped: no small disk can be mounted: {error}");
                return;
            }
        };
        let luna = Luna::within(tempfile::tempdir_in(disk.0.path()).unwrap());
        let before = luna.create(Luna::spec("exit 0")).unwrap();
        let filler = luna.directory.path().join("filler");
        let mut file = fs::File::create(&filler).unwrap();
        let full = io::copy(&mut io::repeat(1), &mut file).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        let files = luna.files();
        let error = luna.create(Luna::spec("exit 0")).expect_err("there is no room");
        assert_eq!(error.kind(), Kind::Exhausted, "{error:?}");
        assert_eq!(luna.files(), files, "nothing half made is left");
        assert_eq!(luna.runtime.list().unwrap().0.len(), 1, "what was there is there");
        assert_eq!(before.status().unwrap().state, State::Created);
        drop(file);
        fs::remove_file(&filler).unwrap();
        luna.runtime.start(&before, None).unwrap();
        wait_until("it has ended", || before.status().unwrap().state == State::Exited);
        luna.ends_clean(&before);
        drop(luna);
        drop(disk);
    }
}
