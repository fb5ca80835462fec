//! What a process is when it starts: its user, its powers, its directory and limits.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // also in what the tests share

mod support;

use luna_core::capability::Capabilities;
use luna_core::process::{Rlimit, RlimitKind};
use luna_core::{Kind, process::Process};
use support::{Guest, run, shell};

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: not root");
    }
    root
}

fn output(process: &Process) -> String {
    let guest = Guest::new();
    let outcome = run(&guest.session, process);
    assert_eq!(outcome.stderr, "");
    outcome.stdout.trim().to_owned()
}

#[test]
fn a_user_is_nobody_but_himself() {
    if !is_root() {
        return;
    }
    let mut whoami = shell("id -u; id -g; id -G; grep -E '^(Cap|NoNew)' /proc/self/status; echo $HOME");
    whoami.user = "nobody:daemon".to_owned();
    whoami.groups = vec!["4242".to_owned()];
    whoami.no_new_privileges = true;
    let none = "0000000000000000";
    let bounding = format!("{:016x}", Capabilities::DEFAULT.bits());
    assert_eq!(
        output(&whoami),
        format!(
            "65534\n1\n1 4242\nCapInh:\t{none}\nCapPrm:\t{none}\nCapEff:\t{none}\nCapBnd:\t{bounding}\nCapAmb:\t{none}\n\
             NoNewPrivs:\t1\n/nonexistent"
        )
    );
}

#[test]
fn root_has_what_it_was_given() {
    if !is_root() {
        return;
    }
    for set in [Capabilities::DEFAULT, Capabilities::NONE] {
        let mut root = shell("grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | cut -f 2");
        root.capabilities = set;
        let (set, none) = (format!("{:016x}", set.bits()), "0000000000000000");
        assert_eq!(output(&root), format!("{none}\n{set}\n{set}\n{set}\n{none}"));
    }
}

#[test]
fn the_environment_is_filled_in() {
    let mut program = shell("echo \"$PATH|$HOME|$A|${TERM-none}\"");
    program.env = vec![("A".to_owned(), "1".to_owned()), ("A".to_owned(), "2".to_owned())];
    if is_root() {
        assert_eq!(
            output(&program),
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin|/root|2|none"
        );
    }
    program.env = vec![
        ("PATH".to_owned(), "/bin".to_owned()),
        ("HOME".to_owned(), "/x".to_owned()),
    ];
    assert_eq!(output(&program), "/bin|/x||none");
}

#[test]
fn the_directory_is_made_and_entered() {
    let space = tempfile::tempdir().unwrap();
    let path = space.path().canonicalize().unwrap();
    std::os::unix::fs::symlink(&path, path.join("round")).unwrap();
    let mut program = shell("pwd -P; stat -c '%a %u' .; umask; touch file; stat -c %a file");
    program.cwd = format!("{}/round//new/./er", path.display());
    assert_eq!(
        output(&program),
        format!("{}/new/er\n755 0\n0022\n644", path.display())
    );
    program.cwd = "/etc/passwd/x".to_owned();
    let guest = Guest::new();
    let error = guest.session.exec(&program).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput, "{error:?}");
    program.cwd = "relative".to_owned();
    assert!(guest.session.exec(&program).is_err());
}

#[test]
fn limits_hold_and_inits_own_do_not_leak() {
    let before = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let number = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
    let mut program = shell("ulimit -Sn; ulimit -Hn; ulimit -Sc");
    program.rlimits = vec![Rlimit {
        resource: RlimitKind::Core,
        soft: 0,
        hard: 0,
    }];
    assert_eq!(
        output(&program),
        format!("{}\n{}\n0", number(before.current), number(before.maximum))
    );
    program.rlimits = vec![Rlimit {
        resource: RlimitKind::Nofile,
        soft: 99,
        hard: 100,
    }];
    assert!(output(&program).starts_with("99\n100\n"));
}

#[test]
fn signals_start_from_their_defaults() {
    // Init blocks and ignores some; the program must see none of that.
    let masks = output(&shell("grep -E '^Sig(Blk|Ign)' /proc/self/status | cut -f 2"));
    assert_eq!(masks, "0000000000000000\n0000000000000000");
}

#[test]
fn a_long_script_passes() {
    let script = format!("{}\necho end", "# filler\n".repeat(12_000));
    assert!(script.len() > 64 * 1024);
    assert_eq!(output(&shell(&script)), "end");
    let guest = Guest::new();
    let error = guest.session.exec(&shell(&"x".repeat(2_000_000))).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput);
}
