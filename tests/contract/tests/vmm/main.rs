//! A program in QEMU's place, behind the very wall that a machine's QEMU runs behind: every attempt on the host is stopped,
//! and the same attempt succeeds where there is no wall. The table is printed at the end; `docs/evidence/vmm.md` keeps it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::TcpListener;

use contract::binaries;
use contract::land::{Land, Owner};
use luna_core::engine::{Accelerator, IdRange};
use luna_core::name::Id;
use luna_core::process::ExitStatus;
use luna_microvm::vmm;

const BASE: u32 = 1_310_000_000;

/// What is tried, and with which words.
const ATTEMPTS: [(&str, &str); 30] = [
    ("read a file of the user's", "read-canary {canary} {secret}"),
    ("list a directory of the user's", "list {host}"),
    ("list Luna's own directory", "list {luna}"),
    ("list the user's home", "list {home}"),
    ("read /etc/passwd", "read /etc/passwd"),
    ("read /etc/shadow", "read /etc/shadow"),
    ("write to a file of the user's", "append {canary} x"),
    ("make a file where everybody may", "create {open}/made"),
    (
        "make a directory where everybody may",
        "make-directory {open}/made-too",
    ),
    ("connect to a port of the host's", "host-port {port}"),
    ("connect to an abstract socket", "abstract-socket {secret}"),
    ("open a packet socket", "af-packet"),
    ("see a process' arguments", "see-process {victim} {secret}"),
    (
        "read a process' environment",
        "read-environment {victim} {secret}",
    ),
    ("write a process' memory", "open-memory {victim}"),
    ("enter a process' root", "enter-root {victim} {canary} {secret}"),
    ("trace a process", "trace-process {victim}"),
    ("kill a process", "signal-process {victim}"),
    ("make a file system to mount", "fsopen"),
    ("copy a mount", "open-tree"),
    ("enter a namespace", "setns"),
    ("make a user namespace", "unshare-user"),
    ("load a module", "init-module"),
    ("load a kernel", "kexec-load"),
    ("load a BPF map", "bpf"),
    ("open a performance counter", "perf-event-open"),
    ("add a key", "add-key"),
    ("hold a capability (SYS_ADMIN)", "take-capability 21"),
    ("have a thousand processes", "fork-bomb 1000"),
    ("open /dev/kvm under emulation", "open-device /dev/kvm"),
];

/// One line of what a program in QEMU's place says; `Err` where it was denied.
fn inside(accelerator: Accelerator, words: &[String]) -> Result<String, String> {
    let mut bits = [0; 16];
    rustix::rand::getrandom(&mut bits, rustix::rand::GetRandomFlags::empty()).expect("there is randomness");
    let mut spec =
        vmm::jail(&Id::from_random(bits), IdRange { base: BASE }, accelerator).expect("QEMU is installed");
    let (mut said, output) = io::pipe().expect("a pipe can be made");
    spec.program.executable = File::open(binaries::attempt()).expect("cargo built it").into();
    spec.program.arguments = std::iter::once("attempt".to_owned())
        .chain(words.iter().cloned())
        .collect();
    spec.program.stdio[1] = Some(output.into());
    let jail = luna_jail::launch(spec).expect("root can build this wall");
    let mut line = String::new();
    said.read_to_string(&mut line).expect("the attempt says text");
    let status = jail.wait().expect("it is our child");
    match status {
        ExitStatus::Code(0) => Ok(line.trim().to_owned()),
        ExitStatus::Code(10) => Err(line.trim().to_owned()),
        other => Err(format!("ended by {other:?}")),
    }
}

fn can_try() -> bool {
    let why = if !rustix::process::geteuid().is_root() {
        "skipped: this needs root"
    } else if vmm::jail(
        &Id::from_random([0; 16]),
        IdRange { base: BASE },
        Accelerator::Tcg,
    )
    .is_err()
    {
        "skipped: QEMU is not installed"
    } else {
        return true;
    };
    say(why);
    false
}

fn say(text: &str) {
    // Straight to standard error: a passing test's table is worth reading, too.
    let _ = writeln!(io::stderr(), "{text}");
}

#[test]
fn nothing_in_the_place_of_qemu_gets_out() {
    if !can_try() {
        return;
    }
    let land = Land::new(Owner::Root);
    let luna = land.path("luna/sandboxes");
    fs::create_dir_all(&luna).expect("a temporary directory can be filled");
    fs::write(land.path("luna/store"), "images").expect("a temporary directory can be filled");
    let mut faults = Vec::new();
    let mut table = format!("{:38}{:10}{}\n", "attempt", "jail", "without a wall");
    for (what, command) in ATTEMPTS {
        let jailed = Bait::new(&land, command);
        let inside = inside(Accelerator::Tcg, &jailed.words);
        drop(jailed);
        let free = Bait::new(&land, command);
        let outside = land.outside(&free.words.iter().map(String::as_str).collect::<Vec<_>>());
        drop(free);
        land.sweep();
        // This kernel may have been built without it.
        let lacking =
            outside.output.contains("Function not implemented") || outside.output.contains("No such file");
        if let Ok(had) = &inside {
            faults.push(format!("{what}: {had}"));
        }
        if !outside.success() && !lacking {
            faults.push(format!(
                "{what}: fails without a wall, too: {}",
                outside.output.trim()
            ));
        }
        let word = |success: bool| if success { "SUCCEEDS" } else { "stopped" };
        let free = if outside.success() {
            "succeeds"
        } else {
            "not there"
        };
        let _ = writeln!(table, "{what:38}{:10}{free}", word(inside.is_ok()));
    }
    say(&table);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What lies on the host for one run of one attempt.
struct Bait {
    words: Vec<String>,
    _victim: Option<contract::land::Victim>,
    _port: Option<TcpListener>,
    _socket: Option<std::os::unix::net::UnixListener>,
}

impl Bait {
    fn new(land: &Land, command: &str) -> Bait {
        let victim = command.contains("{victim}").then(|| land.victim(0));
        let port = command
            .contains("{port}")
            .then(|| TcpListener::bind("127.0.0.1:0").expect("the host has a loopback"));
        let socket = command.contains("abstract").then(|| land.abstract_listener());
        let number = port.as_ref().and_then(|port| port.local_addr().ok());
        let values = [
            ("{canary}", land.path("host/canary").display().to_string()),
            ("{host}", land.path("host").display().to_string()),
            ("{luna}", land.path("luna").display().to_string()),
            ("{open}", land.path("open").display().to_string()),
            (
                "{home}",
                std::env::var("HOME").unwrap_or_else(|_| "/root".to_owned()),
            ),
            ("{secret}", land.secret.clone()),
            (
                "{victim}",
                victim.as_ref().map_or(0, contract::land::Victim::pid).to_string(),
            ),
            ("{port}", number.map_or(0, |address| address.port()).to_string()),
        ];
        let words = command.split(' ').map(|word| {
            values
                .iter()
                .fold(word.to_owned(), |word, (token, value)| word.replace(token, value))
        });
        Bait {
            words: words.collect(),
            _victim: victim,
            _port: port,
            _socket: socket,
        }
    }
}

/// With hardware virtualization there is one device more, and a guest can be run on it from behind the wall.
#[test]
fn kvm_is_let_through_where_it_was_chosen() {
    if !can_try() {
        return;
    }
    if !fs::exists("/dev/kvm").unwrap_or(false) {
        say("skipped: no /dev/kvm here");
        return;
    }
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let devices = |accelerator| inside(accelerator, &words("devices")).expect("/dev can be listed");
    let with_emulation = devices(Accelerator::Tcg);
    let with_kvm = devices(Accelerator::Kvm);
    let more: Vec<_> = with_kvm
        .split(' ')
        .filter(|name| !with_emulation.split(' ').any(|other| other == *name))
        .collect();
    assert_eq!(more, ["kvm"], "{with_kvm}");
    // A node that is root's alone is none of the jail's ids' to open; which it is, is the host's choice.
    let (Ok(said) | Err(said)) = inside(Accelerator::Kvm, &words("run-guest"));
    say(&format!("a guest behind the wall: {said}"));
    let denied = inside(Accelerator::Tcg, &words("run-guest"));
    assert!(denied.is_err(), "{denied:?}");
}
