//! What init finds round itself, behind no wall at all: so it is what this test finds too.

mod support;

use luna_guest::protocol::{MAX_ATTEMPTS, Seen};
use support::{Guest, process};

#[test]
fn init_finds_what_its_neighbour_finds() {
    let guest = Guest::new();
    let main = guest.session.start(&process(&["sleep", "1000"])).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(path("full"), "x").unwrap();
    std::fs::write(path("void"), "").unwrap();
    std::os::unix::fs::symlink("/dev/null", path("null")).unwrap();
    let paths = ["full", "void", "null", "gone", ""].map(path).to_vec();
    let found = guest.session.measure(paths.clone()).unwrap();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(found.release, release.trim_end());
    let namespace = std::fs::read_link("/proc/self/ns/net").unwrap();
    let (_, inode) = found.namespaces.iter().find(|(name, _)| name == "net").unwrap();
    assert_eq!(namespace.to_str(), Some(&*format!("net:[{inode}]")));
    assert!(found.init.contains("Seccomp:") && found.main.contains("Name:\tsleep"));
    assert!(found.mounts.contains(" / "));
    assert!(found.uid_map.split_whitespace().count() >= 3);
    let seen: Vec<_> = found.attempts.iter().map(|attempt| attempt.seen).collect();
    let expected = [
        Seen::Content,
        Seen::Empty,
        Seen::Null,
        Seen::Missing,
        Seen::Content,
    ];
    assert_eq!(seen, expected);
    let writable: Vec<_> = found.attempts.iter().map(|attempt| attempt.writable).collect();
    assert_eq!(writable, [Ok(()), Ok(()), Ok(()), Err(2), Ok(())]);
    let tried: Vec<_> = found.attempts.into_iter().map(|attempt| attempt.path).collect();
    assert_eq!(tried, paths);
    assert!(
        guest
            .session
            .measure(vec![String::new(); MAX_ATTEMPTS + 1])
            .is_err()
    );
    drop(main);
}
