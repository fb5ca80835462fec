//! Trees in and out through a real init, `stat` and the list of processes.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // also in what the tests share

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use luna_core::Kind;
use luna_guest::protocol::{FileKind, Ownership};
use support::{Guest, process};

/// One line for each file, with everything a copy keeps.
fn describe(root: &Path) -> String {
    let list = std::process::Command::new("find")
        .args([".", "-printf", "%P %y %m %U:%G %Ts %l\\n"])
        .current_dir(root)
        .output()
        .unwrap();
    let sums = std::process::Command::new("sh")
        .args(["-c", "find . -type f -exec sha256sum {} + | sort -k 2"])
        .current_dir(root)
        .output()
        .unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let mut lines: Vec<_> = list.lines().collect();
    lines.sort_unstable();
    lines.join("\n") + &String::from_utf8(sums.stdout).unwrap()
}

fn make_tree(root: &Path) {
    let deep = root.join("a/b/".repeat(40));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("leaf"), "deep").unwrap();
    fs::write(root.join("empty"), "").unwrap();
    let big: Vec<u8> = (0..3_000_000u32)
        .map(|n| (n.wrapping_mul(n) >> 3) as u8)
        .collect();
    fs::write(root.join("big"), big).unwrap();
    fs::hard_link(root.join("big"), root.join("twin")).unwrap();
    symlink("/nowhere/at/all", root.join("dangling")).unwrap();
    symlink("big", root.join("near")).unwrap();
    fs::write(root.join("tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::create_dir(root.join("locked")).unwrap();
    fs::write(root.join("locked/in"), "x").unwrap();
    fs::set_permissions(root.join("locked"), fs::Permissions::from_mode(0o500)).unwrap();
    fs::write(root.join("x".repeat(200)), "long").unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("pipe"), 0o640.into()).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(root.join("empty"), Some(12345), Some(54321)).unwrap();
        std::os::unix::fs::lchown(root.join("near"), Some(1), Some(2)).unwrap();
    }
    let past = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::open(root.join("a"))
        .unwrap()
        .set_modified(past)
        .unwrap();
    fs::File::open(root.join("tool"))
        .unwrap()
        .set_modified(past)
        .unwrap();
}

#[test]
fn a_tree_survives_the_journey() {
    let guest = Guest::new();
    let space = tempfile::tempdir().unwrap();
    let (from, to) = (space.path().join("tree"), space.path().join("into"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    make_tree(&from);
    let mut archive = Vec::new();
    guest
        .session
        .copy_out(from.to_str().unwrap(), false)
        .unwrap()
        .read_to_end(&mut archive)
        .unwrap();
    let mut copy = guest
        .session
        .copy_in(to.to_str().unwrap(), Ownership::Preserved)
        .unwrap();
    copy.write_all(&archive).unwrap();
    copy.finish().unwrap();
    assert_eq!(describe(&to.join("tree")), describe(&from));
    assert_eq!(fs::metadata(to.join("tree/twin")).unwrap().nlink(), 2);
    // A second time over itself changes nothing.
    let mut copy = guest
        .session
        .copy_in(to.to_str().unwrap(), Ownership::Preserved)
        .unwrap();
    copy.write_all(&archive).unwrap();
    copy.finish().unwrap();
    assert_eq!(describe(&to.join("tree")), describe(&from));
    // Another tar reads it too.
    let listed = {
        let path = space.path().join("archive.tar");
        fs::write(&path, &archive).unwrap();
        std::process::Command::new("tar")
            .arg("tf")
            .arg(&path)
            .output()
            .unwrap()
    };
    assert!(listed.status.success());
    assert!(
        String::from_utf8_lossy(&listed.stdout)
            .lines()
            .any(|line| line == "tree/big")
    );
}

#[test]
fn ownership_is_roots_unless_preserved() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    let guest = Guest::new();
    let space = tempfile::tempdir().unwrap();
    let file = space.path().join("file");
    fs::write(&file, "x").unwrap();
    std::os::unix::fs::lchown(&file, Some(12345), Some(54321)).unwrap();
    let mut archive = Vec::new();
    let path = file.to_str().unwrap();
    guest
        .session
        .copy_out(path, false)
        .unwrap()
        .read_to_end(&mut archive)
        .unwrap();
    for (ownership, owner) in [(Ownership::Root, (0, 0)), (Ownership::Preserved, (12345, 54321))] {
        let into = space.path().to_str().unwrap();
        let mut copy = guest.session.copy_in(into, ownership).unwrap();
        copy.write_all(&archive).unwrap();
        copy.finish().unwrap();
        let metadata = fs::metadata(&file).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), owner);
    }
}

#[test]
fn what_cannot_be_copied_is_told() {
    let guest = Guest::new();
    let space = tempfile::tempdir().unwrap();
    let root = space.path().to_str().unwrap();
    let kind = |result: luna_core::Result<()>| result.unwrap_err().kind();
    assert_eq!(
        kind(guest.session.copy_out("/no/such", false).map(drop)),
        Kind::NotFound
    );
    assert_eq!(
        kind(guest.session.copy_in("/no/such", Ownership::Root).map(drop)),
        Kind::NotFound
    );
    assert_eq!(
        kind(guest.session.copy_in("/etc/passwd", Ownership::Root).map(drop)),
        Kind::InvalidInput
    );
    let mut garbage = guest.session.copy_in(root, Ownership::Root).unwrap();
    let _ = garbage.write_all(&[7; 4096]);
    assert_eq!(kind(garbage.finish()), Kind::Corrupt);
    // A name upwards leads nowhere.
    let mut header = [0u8; 512];
    header[..10].copy_from_slice(b"../escaped");
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(b"00000000000");
    header[136..147].copy_from_slice(b"00000000000");
    header[156] = b'0';
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    header[154] = 0;
    let mut upwards = guest.session.copy_in(root, Ownership::Root).unwrap();
    let _ = upwards.write_all(&header);
    let _ = upwards.write_all(&[0; 1024]);
    let error = upwards.finish().unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput, "{error:?}");
    assert!(!space.path().parent().unwrap().join("escaped").exists());
    // A file does not replace a directory.
    fs::create_dir(space.path().join("taken")).unwrap();
    let other = tempfile::tempdir().unwrap();
    let file = other.path().join("taken");
    fs::write(&file, "x").unwrap();
    let mut archive = Vec::new();
    guest
        .session
        .copy_out(file.to_str().unwrap(), false)
        .unwrap()
        .read_to_end(&mut archive)
        .unwrap();
    let mut copy = guest.session.copy_in(root, Ownership::Root).unwrap();
    let _ = copy.write_all(&archive);
    let error = copy.finish().unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput, "{error:?}");
}

#[test]
fn an_abandoned_copy_leaves_init_well() {
    let guest = Guest::new();
    let space = tempfile::tempdir().unwrap();
    fs::write(space.path().join("big"), vec![1; 5_000_000]).unwrap();
    let root = space.path().to_str().unwrap();
    let mut reader = guest.session.copy_out(root, false).unwrap();
    reader.read_exact(&mut [0; 1000]).unwrap();
    drop(reader);
    let mut copy = guest.session.copy_in(root, Ownership::Root).unwrap();
    copy.write_all(&[0; 100]).unwrap();
    drop(copy);
    assert!(guest.session.stat(root, true).is_ok());
}

#[test]
fn stat_tells_links_from_what_they_lead_to() {
    let guest = Guest::new();
    let space = tempfile::tempdir().unwrap();
    let link = space.path().join("link");
    symlink("/etc", &link).unwrap();
    let link = link.to_str().unwrap();
    let found = guest.session.stat(link, false).unwrap();
    assert_eq!(
        (found.kind, found.target.as_deref()),
        (FileKind::Symlink, Some("/etc"))
    );
    assert_eq!(guest.session.stat(link, true).unwrap().kind, FileKind::Directory);
    assert_eq!(
        guest.session.stat("/dev/null", true).unwrap().kind,
        FileKind::Special
    );
    let error = guest.session.stat("/no/such", true).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.to_string().contains("/no/such"));
}

#[test]
fn processes_are_listed() {
    let guest = Guest::new();
    let child = guest.session.exec(&process(&["sleep", "77777"])).unwrap();
    // A program that has only just been executed has no page in memory yet.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let (list, found) = loop {
        let list = guest.session.processes().unwrap();
        let found = list
            .iter()
            .find(|process| process.pid == child.handle().pid())
            .unwrap()
            .clone();
        if found.resident.0 > 0 || std::time::Instant::now() > until {
            break (list, found);
        }
    };
    assert_eq!(found.command, "sleep 77777");
    assert_eq!(found.parent, guest.init.id());
    assert_eq!(found.user, "root");
    assert!(found.resident.0 > 0);
    assert!(list.iter().all(|process| process.pid != guest.init.id()));
    child.handle().signal(9).unwrap();
}
