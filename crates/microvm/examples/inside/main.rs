//! The first process of a machine that the tests of volumes boot: does with three volumes what programs do, writes one line
//! for each thing to `report` in the first, and turns the machine off. With `test=wait` it goes on using the first volume.

#![allow(clippy::unwrap_used)] // a test's

mod sys;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Gid, Mode, Uid, XattrFlags};
use rustix::mount::MountFlags;

/// A volume the guest may write to, one it may not, one that is a single file.
const VOLUMES: [(&str, &str); 3] = [("volume0", "/w"), ("volume1", "/r"), ("volume2", "/f")];

fn main() {
    if std::process::id() != 1 {
        // Run from a volume by the other one.
        return;
    }
    let outcome = run();
    if let Err(error) = outcome {
        let _ = fs::write("/dev/kmsg", format!("inside: {error}"));
    }
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
}

fn run() -> io::Result<()> {
    fs::create_dir_all("/dev")?;
    rustix::mount::mount("none", "/dev", "devtmpfs", MountFlags::empty(), None)?;
    let mut modules: Vec<_> = fs::read_dir("/modules")?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    modules.sort();
    for module in modules {
        rustix::system::finit_module(&File::open(&module)?, c"", 0)?;
    }
    for (tag, target) in VOLUMES {
        fs::create_dir_all(target)?;
        let flags = if target == "/r" {
            MountFlags::RDONLY
        } else {
            MountFlags::empty()
        };
        rustix::mount::mount(tag, target, "virtiofs", flags, None)
            .map_err(|error| io::Error::new(io::Error::from(error).kind(), format!("{tag}: {error}")))?;
    }
    if std::env::var("test").as_deref() == Ok("wait") {
        fs::write("/w/begun", "")?;
        loop {
            fs::write("/w/beat", "")?;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let mut report = String::new();
    let mut note = |name: &str, outcome: io::Result<String>| {
        let line = match outcome {
            Ok(detail) => format!("{name}: ok {detail}\n"),
            Err(error) => format!("{name}: error {error}\n"),
        };
        report.push_str(&line);
    };
    for (name, check) in CHECKS {
        note(name, check());
    }
    for (name, attempt) in WRITES {
        // The mount was made writable here by now; the host's side was not.
        note(name, attempt().map(|()| "written".to_owned()));
    }
    fs::write("/w/report", report)
}

fn expect(condition: bool, what: &str) -> io::Result<()> {
    if condition {
        Ok(())
    } else {
        Err(io::Error::other(what.to_owned()))
    }
}

type Check = (&'static str, fn() -> io::Result<String>);

const CHECKS: [Check; 20] = [
    ("files", files),
    ("names", names),
    ("links", links),
    ("symbolic links", symbolic_links),
    ("attributes", attributes),
    ("access lists", access_lists),
    ("owners", owners),
    ("modes", modes),
    ("locks", locks),
    ("mapped", mapped),
    ("unlinked", unlinked),
    ("special", special),
    ("devices", devices),
    ("programs", programs),
    ("directories", directories),
    ("space", space),
    ("news", news),
    ("bulk", bulk),
    ("one file", one_file),
    ("remount", remount),
];

fn files() -> io::Result<String> {
    fs::write("/w/a", "hello")?;
    let mut file = OpenOptions::new().append(true).read(true).open("/w/a")?;
    file.write_all(b" world")?;
    file.seek(SeekFrom::Start(0))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    expect(text == "hello world", &text)?;
    file.set_len(5)?;
    expect(fs::read("/w/a")? == b"hello", "truncated")?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 8192)?;
    expect(file.metadata()?.len() == 8192, "fallocate")?;
    fs::remove_file("/w/a")?;
    expect(fs::metadata("/w/a").is_err(), "removed")?;
    Ok(String::new())
}

fn names() -> io::Result<String> {
    fs::create_dir("/w/d")?;
    fs::write("/w/d/one", "1")?;
    fs::write("/w/d/two", "2")?;
    fs::rename("/w/d/one", "/w/d/two")?;
    expect(fs::read("/w/d/two")? == b"1", "replaced")?;
    fs::write("/w/d/one", "2")?;
    rustix::fs::renameat_with(
        CWD,
        "/w/d/one",
        CWD,
        "/w/d/two",
        rustix::fs::RenameFlags::EXCHANGE,
    )?;
    expect(fs::read("/w/d/two")? == b"2", "exchanged")?;
    fs::rename("/w/d", "/w/e")?;
    fs::remove_dir_all("/w/e")?;
    let long = "n".repeat(255);
    fs::write(format!("/w/{long}"), "")?;
    fs::remove_file(format!("/w/{long}"))?;
    Ok(String::new())
}

fn links() -> io::Result<String> {
    fs::write("/w/a", "x")?;
    fs::hard_link("/w/a", "/w/b")?;
    let (a, b) = (fs::metadata("/w/a")?, fs::metadata("/w/b")?);
    expect(a.ino() == b.ino() && a.nlink() == 2, "one file")?;
    fs::remove_file("/w/a")?;
    expect(fs::metadata("/w/b")?.nlink() == 1, "one name")?;
    fs::remove_file("/w/b")?;
    Ok(String::new())
}

/// `outside` was made by the host and points at a file that only the host has.
fn symbolic_links() -> io::Result<String> {
    symlink("target", "/w/link")?;
    expect(fs::read_link("/w/link")? == Path::new("target"), "read")?;
    fs::remove_file("/w/link")?;
    let target = fs::read_link("/w/outside")?;
    match fs::read("/w/outside") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(target.display().to_string()),
        other => Err(io::Error::other(format!("{other:?}"))),
    }
}

fn attributes() -> io::Result<String> {
    fs::write("/w/x", "x")?;
    rustix::fs::setxattr("/w/x", "user.one", b"1", XattrFlags::empty())?;
    let mut value = [0u8; 64];
    let length = rustix::fs::getxattr("/w/x", "user.one", &mut value)?;
    expect(&value[..length] == b"1", "value")?;
    let length = rustix::fs::listxattr("/w/x", &mut value)?;
    expect(value[..length].starts_with(b"user.one\0"), "list")?;
    rustix::fs::removexattr("/w/x", "user.one")?;
    // CAP_NET_RAW, permitted and effective: version 2 of linux/capability.h.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr("/w/x", "security.capability", &capability, XattrFlags::empty())?;
    let length = rustix::fs::getxattr("/w/x", "security.capability", &mut value)?;
    expect(value[..length] == capability, "capability")?;
    Ok(String::new())
}

fn access_lists() -> io::Result<String> {
    // Version 2; owner rw, user 1234 rw, group r, mask rw, others none (linux/posix_acl_xattr.h).
    let mut list = 2u32.to_le_bytes().to_vec();
    let none = u32::MAX;
    for (tag, permission, id) in [
        (1u16, 6u16, none),
        (2, 6, 1234),
        (4, 4, none),
        (16, 6, none),
        (32, 0, none),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(permission.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    fs::write("/w/acl", "")?;
    rustix::fs::setxattr("/w/acl", "system.posix_acl_access", &list, XattrFlags::empty())?;
    let mut value = [0u8; 128];
    let length = rustix::fs::getxattr("/w/acl", "system.posix_acl_access", &mut value)?;
    expect(value[..length] == list, "list")?;
    as_user(1234, || OpenOptions::new().write(true).open("/w/acl").map(drop))?;
    expect(
        as_user(1235, || File::open("/w/acl").map(drop)).is_err(),
        "others",
    )?;
    Ok(String::new())
}

/// What a thread with this user and group does.
fn as_user<T: Send>(id: u32, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let thread = || {
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        sys::become_user(uid, gid)?;
        act()
    };
    std::thread::scope(|scope| scope.spawn(thread).join().unwrap())
}

fn owners() -> io::Result<String> {
    fs::create_dir("/w/open")?;
    fs::set_permissions("/w/open", Permissions::from_mode(0o777))?;
    as_user(1000, || {
        fs::write("/w/open/mine", "x")?;
        fs::create_dir("/w/open/directory")?;
        symlink("x", "/w/open/symlink")
    })?;
    for name in ["mine", "directory", "symlink"] {
        let found = fs::symlink_metadata(format!("/w/open/{name}"))?;
        expect((found.uid(), found.gid()) == (1000, 1000), name)?;
    }
    fs::write("/w/roots", "x")?;
    fs::set_permissions("/w/roots", Permissions::from_mode(0o600))?;
    expect(
        as_user(1000, || File::open("/w/roots").map(drop)).is_err(),
        "root's",
    )?;
    fs::write("/w/given", "x")?;
    std::os::unix::fs::chown("/w/given", Some(33), Some(44))?;
    let found = fs::metadata("/w/given")?;
    expect((found.uid(), found.gid()) == (33, 44), "given")?;
    Ok(String::new())
}

fn modes() -> io::Result<String> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o640)
        .open("/w/mode")?;
    expect(fs::metadata("/w/mode")?.mode() & 0o7777 == 0o640, "created")?;
    fs::set_permissions("/w/mode", Permissions::from_mode(0o4755))?;
    expect(fs::metadata("/w/mode")?.mode() & 0o7777 == 0o4755, "set-user-id")?;
    std::os::unix::fs::chown("/w/mode", Some(1000), Some(1000))?;
    fs::set_permissions("/w/mode", Permissions::from_mode(0o4777))?;
    // Whoever writes to it takes the bit away.
    as_user(1001, || {
        OpenOptions::new().append(true).open("/w/mode")?.write_all(b"x")
    })?;
    expect(fs::metadata("/w/mode")?.mode() & 0o7777 == 0o777, "taken away")?;
    Ok(String::new())
}

fn locks() -> io::Result<String> {
    let (one, two) = (File::create("/w/lock")?, File::open("/w/lock")?);
    rustix::fs::flock(&one, FlockOperation::LockExclusive)?;
    expect(
        rustix::fs::flock(&two, FlockOperation::NonBlockingLockExclusive).is_err(),
        "held",
    )?;
    rustix::fs::flock(&one, FlockOperation::Unlock)?;
    rustix::fs::flock(&two, FlockOperation::NonBlockingLockExclusive)?;
    rustix::fs::fcntl_lock(&one, FlockOperation::NonBlockingLockExclusive)?;
    Ok(String::new())
}

fn mapped() -> io::Result<String> {
    fs::write("/w/map", [b'-'; 10_000])?;
    let file = OpenOptions::new().read(true).write(true).open("/w/map")?;
    sys::write_mapped(&file, 10_000, 5_000, b"mapped")?;
    let bytes = fs::read("/w/map")?;
    expect(
        &bytes[5_000..5_006] == b"mapped" && bytes.len() == 10_000,
        "shared",
    )?;
    Ok(String::new())
}

fn unlinked() -> io::Result<String> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open("/w/gone")?;
    fs::remove_file("/w/gone")?;
    file.write_all(b"still here")?;
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    expect(text == "still here", &text)?;
    let temporary = rustix::fs::open(
        "/w",
        rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR,
        Mode::RUSR,
    );
    Ok(format!("O_TMPFILE {:?}", temporary.map(drop)))
}

fn special() -> io::Result<String> {
    rustix::fs::mknodat(CWD, "/w/fifo", FileType::Fifo, Mode::RWXU, 0)?;
    let _socket = std::os::unix::net::UnixListener::bind("/w/socket")?;
    std::os::unix::net::UnixStream::connect("/w/socket")?;
    Ok(String::new())
}

fn devices() -> io::Result<String> {
    let null = rustix::fs::makedev(1, 3);
    match rustix::fs::mknodat(CWD, "/w/null", FileType::CharacterDevice, Mode::RWXU, null) {
        Err(error) => Ok(error.to_string()),
        Ok(()) => Err(io::Error::other("made")),
    }
}

fn programs() -> io::Result<String> {
    fs::copy("/init", "/w/program")?;
    let status = std::process::Command::new("/w/program").status()?;
    expect(status.success(), "its end")?;
    Ok(String::new())
}

fn directories() -> io::Result<String> {
    fs::create_dir("/w/many")?;
    let begin = Instant::now();
    for number in 0..1000 {
        File::create(format!("/w/many/{number}"))?;
    }
    let made = begin.elapsed();
    let begin = Instant::now();
    let mut count = 0;
    for entry in fs::read_dir("/w/many")? {
        entry?.metadata()?;
        count += 1;
    }
    expect(count == 1000, "all of them")?;
    let looked = begin.elapsed();
    Ok(format!("1000 made in {made:?}, looked at in {looked:?}"))
}

fn space() -> io::Result<String> {
    let found = rustix::fs::statvfs("/w")?;
    expect(found.f_blocks > 0 && found.f_namemax == 255, "statvfs")?;
    Ok(String::new())
}

/// What the host changes is seen at once.
fn news() -> io::Result<String> {
    fs::write("/w/answer", "one")?;
    expect(fs::read("/w/answer")? == b"one", "one")?;
    expect(fs::metadata("/w/appears").is_err(), "not yet")?;
    fs::write("/w/ask", "")?;
    let begin = Instant::now();
    while fs::metadata("/w/asked").is_err() {
        expect(begin.elapsed() < Duration::from_secs(60), "the host's turn")?;
        std::thread::sleep(Duration::from_millis(10));
    }
    expect(fs::read("/w/answer")? == b"another", "the host's word")?;
    fs::metadata("/w/appears").map(|_| String::new())
}

fn bulk() -> io::Result<String> {
    let piece: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let begin = Instant::now();
    let mut file = File::create("/w/bulk")?;
    for _ in 0..100 {
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    let written = begin.elapsed();
    let begin = Instant::now();
    let mut file = File::open("/w/bulk")?;
    let mut back = vec![0; piece.len()];
    for round in 0..100 {
        file.read_exact(&mut back)?;
        expect(back == piece, &format!("piece {round}"))?;
    }
    let read = begin.elapsed();
    Ok(format!("100 MB written in {written:?}, read in {read:?}"))
}

fn one_file() -> io::Result<String> {
    let names: Vec<_> = fs::read_dir("/f")?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    expect(names == ["file"], &format!("{names:?}"))?;
    expect(fs::read("/f/file")? == b"before", "content")?;
    fs::write("/f/file", "after")?;
    expect(File::create("/f/other").is_err(), "another")?;
    expect(fs::remove_file("/f/file").is_err(), "removed")?;
    expect(fs::rename("/f/file", "/f/name").is_err(), "renamed")?;
    Ok(String::new())
}

fn remount() -> io::Result<String> {
    expect(fs::read("/r/file")? == b"before", "content")?;
    rustix::mount::mount_remount("/r", MountFlags::empty(), "")?;
    Ok(String::new())
}

type Attempt = (&'static str, fn() -> io::Result<()>);

/// None of these may succeed.
const WRITES: [Attempt; 10] = [
    ("read-only create", || File::create("/r/new").map(drop)),
    ("read-only open", || {
        OpenOptions::new().write(true).open("/r/file").map(drop)
    }),
    ("read-only truncate", || {
        rustix::fs::open("/r/file", rustix::fs::OFlags::TRUNC, Mode::empty())
            .map(drop)
            .map_err(Into::into)
    }),
    ("read-only remove", || fs::remove_file("/r/file")),
    ("read-only rename", || fs::rename("/r/file", "/r/name")),
    ("read-only link", || fs::hard_link("/r/file", "/r/link")),
    ("read-only directory", || fs::create_dir("/r/directory")),
    ("read-only mode", || {
        fs::set_permissions("/r/file", Permissions::from_mode(0o777))
    }),
    ("read-only attribute", || {
        rustix::fs::setxattr("/r/file", "user.x", b"1", XattrFlags::empty()).map_err(Into::into)
    }),
    ("read-only times", || {
        let now = rustix::fs::Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let times = rustix::fs::Timestamps {
            last_access: now,
            last_modification: now,
        };
        rustix::fs::utimensat(CWD, "/r/file", &times, AtFlags::empty()).map_err(Into::into)
    }),
];
