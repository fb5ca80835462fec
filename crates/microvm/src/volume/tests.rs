//! Volumes with a real daemon in its jail, and with a machine where there is a kernel to boot: `LUNA_TEST_KERNEL`, with the
//! modules it needs for virtiofs on PCI in `LUNA_TEST_MODULES`, in their order and separated by colons. Without root they run in
//! a user namespace: `unshare --user --map-root-user --map-auto --mount cargo test -p luna-microvm volume`.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use luna_jail::sealed;

use super::*;

/// A range nobody uses, or the ids of the user namespace that these tests were started in.
fn ids() -> IdRange {
    let own = luna_jail::rootless::is_rootless();
    IdRange {
        base: if own { 0 } else { 1_300_000_000 },
    }
}

/// A machine without hardware of its own on a busy host.
const PATIENCE: Duration = Duration::from_secs(240);

/// Beside the tests' own directory.
fn built(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    tests.parent().unwrap().parent().unwrap().join(name)
}

fn unique(what: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("test-{what}-{}-{count}", std::process::id())
}

/// Whether the tests of the daemon can run here; why not is said.
fn can_serve(program: &Path) -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: not root, so no range of ids is ours to map");
        return false;
    }
    if !program.exists() {
        println!(
            "skipped: `{}` is not built, `cargo build -p luna-virtiofs` does",
            program.display()
        );
        return false;
    }
    true
}

fn serve_with(program: &Path, number: usize, source: &Path, read_only: bool) -> Volume {
    let served = Source {
        number,
        path: source,
        read_only,
    };
    launch(
        sealed(program).unwrap(),
        &unique("volume"),
        &served,
        ids(),
        Limits::default(),
    )
    .unwrap()
}

fn daemon() -> PathBuf {
    built("luna-virtiofs")
}

fn gone(volume: &Volume, within: Duration) -> bool {
    let mut set = [rustix::event::PollFd::from_borrowed_fd(
        volume.pidfd(),
        rustix::event::PollFlags::IN,
    )];
    let within = rustix::event::Timespec::try_from(within).unwrap();
    rustix::event::poll(&mut set, Some(&within)).unwrap() == 1
}

/// What the host's kernel says of the daemon's memory.
fn memory(volume: &Volume) -> String {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", volume.jail.pid())).unwrap_or_default();
    let lines = rollup
        .lines()
        .filter(|line| line.starts_with("Pss:") || line.starts_with("Private_Dirty:"));
    lines.collect::<Vec<_>>().join(", ")
}

/// What a program in the daemon's place finds.
struct Intruder {
    _volume: Volume,
    questions: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Intruder {
    fn new(source: &Path, read_only: bool) -> Intruder {
        let mut volume = serve_with(&built("examples/intruder"), 0, source, read_only);
        let questions = UnixStream::from(volume.connection().unwrap());
        Intruder {
            answers: BufReader::new(questions.try_clone().unwrap()),
            questions,
            _volume: volume,
        }
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.questions, "{question}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }
}

#[test]
fn whoever_takes_the_daemons_place_finds_the_volume_and_nothing_else() {
    if !can_serve(&built("examples/intruder")) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("shared")).unwrap();
    fs::write(home.path().join("shared/file"), "text").unwrap();
    fs::write(home.path().join("secret"), "secret").unwrap();
    let secret = home.path().join("secret");
    symlink(&secret, home.path().join("shared/link")).unwrap();

    let mut intruder = Intruder::new(&home.path().join("shared"), false);
    assert_eq!(intruder.ask("list /"), "ok dev proc sys volume");
    assert_eq!(intruder.ask("list /volume"), "ok file link");
    assert_eq!(intruder.ask("read /volume/file"), "ok 4 bytes");
    for path in [
        "/volume/link",
        "/volume/../secret",
        "/etc/passwd",
        "/proc/1/root/etc/passwd",
        "/proc/kcore",
        "/proc/sysrq-trigger",
        "/sys/firmware/acpi/tables/DSDT",
    ] {
        let answer = intruder.ask(&format!("read {path}"));
        assert!(answer.starts_with("error"), "{path}: {answer}");
    }
    assert!(
        intruder
            .ask(&format!("read {}", secret.display()))
            .starts_with("error")
    );
    for path in [
        "/new",
        "/proc/sys/kernel/core_pattern",
        "/sys/kernel/uevent_helper",
    ] {
        let answer = intruder.ask(&format!("write {path}"));
        assert!(answer.starts_with("error"), "{path}: {answer}");
    }
    assert!(intruder.ask("device /volume/disk").starts_with("error"));
    assert!(intruder.ask("connect 127.0.0.1:22").starts_with("error"));
    assert!(intruder.ask("connect 1.1.1.1:53").starts_with("error"));
    let status = intruder.ask("status");
    // CHOWN DAC_OVERRIDE FOWNER FSETID SETGID SETUID SETFCAP
    for line in [
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "CapBnd:\t00000000800000db",
        "CapEff:\t00000000800000db",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }

    let mut intruder = Intruder::new(&home.path().join("shared"), true);
    assert_eq!(intruder.ask("read /volume/file"), "ok 4 bytes");
    for path in ["/volume/file", "/volume/new"] {
        assert_eq!(
            intruder.ask(&format!("write {path}")),
            "error Read-only file system (os error 30)"
        );
    }
    assert!(intruder.ask("status").contains("CapBnd:\t0000000000000002"));
}

#[test]
fn garbage_ends_the_daemon_and_nothing_more() {
    if !can_serve(&daemon()) {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("file"), "text").unwrap();
    let before = mounts();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..20 {
        let mut volume = serve_with(&daemon(), 0, source.path(), false);
        let mut connection = UnixStream::from(volume.connection().unwrap());
        let mut bytes = vec![0u8; 4096];
        for byte in &mut bytes {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            *byte = seed as u8;
        }
        // A plausible beginning: a request of vhost-user's, version 1, of some length (docs/interop/vhost-user.rst).
        if round % 2 == 1 {
            bytes[..12].copy_from_slice(&[round as u8, 0, 0, 0, 1, 0, 0, 0, 16, 0, 0, 0]);
        }
        let _ = connection.write_all(&bytes);
        let _ = connection.shutdown(std::net::Shutdown::Write);
        let _ = connection.read_to_end(&mut Vec::new());
        assert!(gone(&volume, Duration::from_secs(20)), "round {round}");
    }
    assert_eq!(fs::read(source.path().join("file")).unwrap(), b"text");
    assert_eq!(mounts(), before);
}

fn mounts() -> usize {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .count()
}

#[test]
fn the_daemon_ends_with_its_volume_and_with_its_machine() {
    if !can_serve(&daemon()) {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let mut times: Vec<_> = (0..15)
        .map(|_| {
            let begin = Instant::now();
            drop(serve_with(&daemon(), 0, source.path(), false));
            begin.elapsed()
        })
        .collect();
    times.sort();
    println!("served and ended in {:?}, best {:?}", times[7], times[0]);
    let volume = serve_with(&daemon(), 0, source.path(), false);
    assert!(
        !gone(&volume, Duration::from_millis(100)),
        "it waits for its machine"
    );
    println!("{}", memory(&volume));
    let pidfd = volume.pidfd().try_clone_to_owned().unwrap();
    drop(volume);
    let mut set = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    assert_eq!(
        rustix::event::poll(&mut set, Some(&rustix::event::Timespec::default())),
        Ok(1)
    );

    let mut volume = serve_with(&daemon(), 0, source.path(), false);
    drop(volume.connection().unwrap());
    assert!(gone(&volume, Duration::from_secs(20)));
}

#[test]
fn what_is_not_there_is_told() {
    if !can_serve(&daemon()) {
        return;
    }
    let served = Source {
        number: 0,
        path: Path::new("/no/such"),
        read_only: false,
    };
    let error = launch(
        sealed(&daemon()).unwrap(),
        &unique("none"),
        &served,
        ids(),
        Limits::default(),
    )
    .unwrap_err();
    assert_eq!(error.kind(), luna_core::Kind::NotFound);
}

/// A machine of QEMU's own with these volumes, and no jail: it is the volumes that are tested.
struct Machine {
    qemu: Child,
    console: PathBuf,
    _files: tempfile::TempDir,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Machine {
    /// `None` where none can be booted; why not is said.
    fn boot(volumes: &mut [Volume], words: &str) -> Option<Machine> {
        let Some(kernel) = std::env::var_os("LUNA_TEST_KERNEL") else {
            println!("skipped: no kernel in `LUNA_TEST_KERNEL`");
            return None;
        };
        let files = tempfile::tempdir().unwrap();
        let console = files.path().join("console");
        let modules = std::env::var("LUNA_TEST_MODULES").unwrap_or_default();
        let root = files.path().join("root");
        fs::create_dir_all(root.join("modules")).unwrap();
        fs::copy(built("examples/inside"), root.join("init")).unwrap();
        for (number, module) in modules.split(':').filter(|module| !module.is_empty()).enumerate() {
            fs::copy(module, root.join(format!("modules/{number:02}.ko"))).unwrap();
        }
        let packed = Command::new("sh")
            .args([
                "-c",
                "cd \"$1\" && find . | cpio --quiet -o -H newc >../initramfs",
                "sh",
            ])
            .arg(&root)
            .status()
            .unwrap();
        assert!(packed.success());
        // The connections become descriptors 3 to 5, by way of the standard ones, so that no other test's child inherits them.
        let mut line = Vec::new();
        let mut connections = Vec::new();
        for (number, volume) in volumes.iter_mut().enumerate() {
            let tag = volume.tag();
            line.push("-chardev".to_owned());
            line.push(format!("socket,id={tag},fd={}", 3 + number));
            line.push("-device".to_owned());
            line.push(format!(
                "vhost-user-fs-pci,chardev={tag},tag={tag},queue-size={QUEUE}"
            ));
            connections.push(volume.connection().unwrap());
        }
        let mut connections = connections.into_iter();
        let mut next = || connections.next().map_or_else(Stdio::null, Stdio::from);
        let script = "console=$1; shift; exec \"$@\" 3<&0 4<&1 5<&2 0</dev/null 1>\"$console\" 2>&1";
        let qemu = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(&console)
            .arg("qemu-system-x86_64")
            .args([
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
                "-chardev",
                "stdio,id=console,mux=on",
                "-serial",
                "chardev:console",
                "-device",
                "virtio-serial-pci",
                "-device",
                "virtconsole,chardev=console",
            ])
            .args([
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max",
                "-smp",
                "2",
                "-m",
                "512M",
            ])
            .args(["-object", "memory-backend-memfd,id=memory,size=512M,share=on"])
            .args(["-machine", "q35,memory-backend=memory"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(files.path().join("initramfs"))
            .args([
                "-append",
                &format!("console=ttyS0 console=hvc0 panic=-1 loglevel=8 {words}"),
            ])
            .args(line)
            .stdin(next())
            .stdout(next())
            .stderr(next())
            .spawn()
            .unwrap();
        Some(Machine {
            qemu,
            console,
            _files: files,
        })
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Whether `path` comes to be before the machine ends.
    fn makes(&mut self, path: &Path) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE && self.qemu.try_wait().unwrap().is_none() {
            if path.exists() {
                return true;
            }
            thread::sleep(Duration::from_millis(20));
        }
        false
    }

    fn ended(&mut self) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if self.qemu.try_wait().unwrap().is_some() {
                return true;
            }
            thread::sleep(Duration::from_millis(50));
        }
        false
    }
}

#[test]
fn a_machine_uses_volumes_as_a_container_does() {
    if !can_serve(&daemon()) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    for name in ["w", "r"] {
        fs::create_dir(at(name)).unwrap();
        fs::set_permissions(at(name), Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(at("secret"), "secret").unwrap();
    symlink(at("secret"), at("w/outside")).unwrap();
    fs::write(at("r/file"), "before").unwrap();
    fs::write(at("single"), "before").unwrap();
    let mut volumes = [
        serve_with(&daemon(), 0, &at("w"), false),
        serve_with(&daemon(), 1, &at("r"), true),
        serve_with(&daemon(), 2, &at("single"), false),
    ];
    assert_eq!(volumes[0].file(), None);
    assert_eq!(volumes[2].file(), Some(FILE));
    let Some(mut machine) = Machine::boot(&mut volumes, "") else {
        return;
    };
    assert!(
        machine.makes(&at("w/ask")),
        "the machine never asked: {}",
        machine.said()
    );
    fs::write(at("w/answer"), "another").unwrap();
    fs::write(at("w/appears"), "").unwrap();
    fs::write(at("w/asked"), "").unwrap();
    println!("with its machine: {}", memory(&volumes[0]));
    assert!(machine.ended(), "{}", machine.said());
    let report = fs::read_to_string(at("w/report")).unwrap_or_else(|_| panic!("{}", machine.said()));
    println!("{report}");
    for line in report.lines() {
        let wanted = if line.starts_with("read-only") {
            ": error"
        } else {
            ": ok"
        };
        assert!(line.contains(wanted), "{line}");
    }
    for (name, owner, mode) in [
        ("w/open/mine", 1000, 0o644),
        ("w/roots", 0, 0o600),
        ("w/given", 33, 0o644),
        ("w/mode", 1000, 0o777),
    ] {
        let found = fs::metadata(at(name)).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o7777), (owner, mode), "{name}");
    }
    assert_eq!(fs::read(at("r/file")).unwrap(), b"before");
    assert_eq!(fs::read_dir(at("r")).unwrap().count(), 1);
    assert_eq!(fs::read(at("single")).unwrap(), b"after");
    for volume in &volumes {
        assert!(gone(volume, Duration::from_secs(20)), "it ends with its machine");
        println!("{:?}", volume.handle().usage().unwrap());
    }
}

#[test]
fn a_killed_daemon_is_noticed_and_leaves_nothing() {
    if !can_serve(&daemon()) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let mut volumes: Vec<_> = (0..3)
        .map(|number| {
            let source = home.path().join(number.to_string());
            fs::create_dir(&source).unwrap();
            fs::set_permissions(&source, Permissions::from_mode(0o755)).unwrap();
            serve_with(&daemon(), number, &source, false)
        })
        .collect();
    let Some(mut machine) = Machine::boot(&mut volumes, "test=wait") else {
        return;
    };
    assert!(machine.makes(&home.path().join("0/begun")), "{}", machine.said());
    volumes[0].handle().kill().unwrap();
    assert!(gone(&volumes[0], Duration::from_secs(20)));
    thread::sleep(Duration::from_secs(2));
    println!(
        "QEMU after its daemon's end: {:?}",
        machine.qemu.try_wait().unwrap()
    );
    drop(machine);
    for volume in &volumes {
        assert!(gone(volume, Duration::from_secs(20)));
    }
}
