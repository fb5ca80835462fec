//! Who a process runs as: docker's `user[:group]` looked up in the sandbox's own files.
//!
//! The files and the words are the image's or the sandbox's, so nothing is guessed (CVE-2026-30892 was a runtime that
//! read a number wrong and ran as root): a number is decimal digits and nothing else, a name must be found, a line
//! that is not exactly of the file's format is no entry, and a file beyond [`MAX_FILE`] is refused.

use rustix::fs::{FileType, Mode, OFlags};

use crate::protocol::{Failure, Stage};

/// Far beyond any image's, well below what hurts.
const MAX_FILE: usize = 1024 * 1024;
/// The kernel's `NGROUPS_MAX` is 65,536; no user needs so many.
const MAX_GROUPS: usize = 1024;

/// Ids for `setresuid` and friends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// Looks `user` and `groups` up in `/etc/passwd` and `/etc/group` as they are now; a missing file is an empty one.
pub(super) fn look_up(user: &str, groups: &[String]) -> Result<Identity, Failure> {
    let read = |path, stage| read_bounded(path).map_err(|errno| Failure::new(stage, errno));
    resolve(
        user,
        groups,
        &read("/etc/passwd", Stage::User)?,
        &read("/etc/group", Stage::Group)?,
    )
}

/// Never waits: what is not a regular file is no file of users.
fn read_bounded(path: &str) -> Result<Vec<u8>, i32> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.raw_os_error()),
    };
    let status = rustix::fs::fstat(&file).map_err(rustix::io::Errno::raw_os_error)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(libc::EINVAL);
    }
    let mut content = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match rustix::io::read(&file, &mut chunk) {
            Ok(0) => return Ok(content),
            Ok(count) => content.extend_from_slice(&chunk[..count]),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.raw_os_error()),
        }
        if content.len() > MAX_FILE {
            return Err(libc::EFBIG);
        }
    }
}

/// Docker's rules (moby `user.GetExecUser`): a number is an id even where a name looks like it; without a group the
/// user's own and every group that lists the user; with one, that alone; `groups` in any case.
pub(super) fn resolve(
    user: &str,
    groups: &[String],
    passwd: &[u8],
    group: &[u8],
) -> Result<Identity, Failure> {
    let unknown = |stage| Failure::new(stage, libc::ENOENT);
    let (user, primary) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let account = if user.is_empty() && primary.is_none() {
        Account::of_uid(0, passwd)
    } else {
        match Word::read(user).ok_or(Failure::new(Stage::User, libc::EINVAL))? {
            Word::Number(uid) => Account::of_uid(uid, passwd),
            Word::Name(name) => accounts(passwd)
                .find(|account| account.name == name)
                .ok_or(unknown(Stage::User))?,
        }
    };
    let gid_of = |text: &str| match Word::read(text).ok_or(Failure::new(Stage::Group, libc::EINVAL))? {
        Word::Number(gid) => Ok(gid),
        Word::Name(name) => teams(group)
            .find(|team| team.name == name)
            .map(|team| team.gid)
            .ok_or(unknown(Stage::Group)),
    };
    let gid = match primary {
        Some(text) => gid_of(text)?,
        None => account.gid,
    };
    let mut all = Vec::new();
    if primary.is_none() && !account.name.is_empty() {
        all.extend(
            teams(group)
                .filter(|team| team.has(account.name))
                .map(|team| team.gid),
        );
    }
    for text in groups {
        all.push(gid_of(text)?);
    }
    all.push(gid);
    all.sort_unstable();
    all.dedup();
    if all.len() > MAX_GROUPS {
        return Err(Failure::new(Stage::Group, libc::E2BIG));
    }
    Ok(Identity {
        uid: account.uid,
        gid,
        groups: all,
        home: account.home.to_owned(),
    })
}

/// Looks `user` up in files of these bytes, and says as whom it would run. For fuzzing: no bytes may panic, and only a
/// listed name or a plain number is anybody.
pub fn absorb_users(user: &str, passwd: &[u8], group: &[u8]) -> Result<(u32, u32), Failure> {
    resolve(user, &[], passwd, group).map(|identity| (identity.uid, identity.gid))
}

/// The name `uid` has in `passwd`, as `top` shows it.
pub(super) fn name_of(uid: u32, passwd: &[u8]) -> Option<&str> {
    accounts(passwd)
        .find(|account| account.uid == uid)
        .map(|account| account.name)
}

/// The sandbox's users' file, empty where it cannot be read.
pub(super) fn passwd() -> Vec<u8> {
    read_bounded("/etc/passwd").unwrap_or_default()
}

enum Word<'a> {
    Number(u32),
    Name(&'a str),
}

impl Word<'_> {
    fn read(text: &str) -> Option<Word<'_>> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return id(text).map(Word::Number);
        }
        let fits = text.len() <= 256 && !text.contains([':', ',', '/']) && !text.contains(char::is_control);
        fits.then_some(Word::Name(text))
    }
}

/// A user or group id: decimal, at most 2³¹−1 (docker's bound; beyond it lies the kernel's "no change").
fn id(text: &str) -> Option<u32> {
    if text.is_empty() || text.len() > 10 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| i32::try_from(*id).is_ok())
}

#[derive(Clone, Copy)]
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Account<'a> {
    /// An id needs no entry; without one its group is 0 and its home `/`.
    fn of_uid(uid: u32, passwd: &'a [u8]) -> Account<'a> {
        accounts(passwd)
            .find(|account| account.uid == uid)
            .unwrap_or(Account {
                name: "",
                uid,
                gid: 0,
                home: "/",
            })
    }
}

fn lines(file: &[u8]) -> impl Iterator<Item = &str> {
    file.split(|byte| *byte == b'\n')
        .filter_map(|line| str::from_utf8(line).ok())
        .filter(|line| !line.contains(char::is_control))
}

/// passwd(5): name, password, uid, gid, comment, home, shell.
fn accounts(file: &[u8]) -> impl Iterator<Item = Account<'_>> {
    lines(file).filter_map(|line| {
        let fields: Vec<&str> = line.splitn(8, ':').collect();
        let [name, _, uid, gid, _, home, _] = fields[..] else {
            return None;
        };
        (!name.is_empty()).then_some(())?;
        Some(Account {
            name,
            uid: id(uid)?,
            gid: id(gid)?,
            home: if home.starts_with('/') { home } else { "/" },
        })
    })
}

struct Team<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Team<'_> {
    fn has(&self, user: &str) -> bool {
        self.members.split(',').any(|member| member == user)
    }
}

/// group(5): name, password, gid, members.
fn teams(file: &[u8]) -> impl Iterator<Item = Team<'_>> {
    lines(file).filter_map(|line| {
        let fields: Vec<&str> = line.splitn(5, ':').collect();
        let [name, _, gid, members] = fields[..] else {
            return None;
        };
        (!name.is_empty()).then_some(())?;
        Some(Team {
            name,
            gid: id(gid)?,
            members,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n\
        daemon:x:1:1::/usr/sbin:/usr/sbin/nologin\n\
        # comment\n\
        broken:x:not-a-number:0::/:/bin/sh\n\
        short:x:7\n\
        long:x:8:8::/:/bin/sh:extra\n\
        evil\t:x:9:9::/:/bin/sh\n\
        neg:x:-1:-1::/:/bin/sh\n\
        1000:x:4242:4242::/odd:/bin/sh\n\
        agent:x:1000:1000:Agent:/home/agent:/bin/bash\n\
        homeless:x:1001:1001:::/bin/bash";
    const GROUP: &[u8] =
        b"root:x:0:\naudio:x:29:agent,daemon\nvideo:x:44:agent\nagent:x:1000:\nbad:x:zz:agent\n77:x:78:\n";

    type Found = (u32, u32, Vec<u32>, String);

    fn identity(user: &str, groups: &[&str]) -> Result<Found, (Stage, i32)> {
        let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
        resolve(user, &groups, PASSWD, GROUP)
            .map(|found| (found.uid, found.gid, found.groups, found.home))
            .map_err(|failure| (failure.stage, failure.errno))
    }

    #[test]
    fn users_resolve_as_docker_resolves_them() {
        let home = |text: &str| text.to_owned();
        for (user, groups, expected) in [
            ("", &[][..], (0, 0, vec![0], home("/root"))),
            ("root", &[], (0, 0, vec![0], home("/root"))),
            (
                "agent",
                &[],
                (1000, 1000, vec![29, 44, 1000], home("/home/agent")),
            ),
            // A number is an id, though an account is named so.
            ("1000", &[], (1000, 1000, vec![29, 44, 1000], home("/home/agent"))),
            ("agent:audio", &[], (1000, 29, vec![29], home("/home/agent"))),
            (
                "agent:0",
                &["video", "5"],
                (1000, 0, vec![0, 5, 44], home("/home/agent")),
            ),
            ("agent:77", &[], (1000, 77, vec![77], home("/home/agent"))),
            ("65534", &[], (65534, 0, vec![0], home("/"))),
            ("65534:65534", &[], (65534, 65534, vec![65534], home("/"))),
            ("homeless", &[], (1001, 1001, vec![1001], home("/"))),
        ] {
            assert_eq!(identity(user, groups), Ok(expected), "{user}");
        }
    }

    #[test]
    fn what_is_odd_is_refused() {
        use Stage::{Group, User};
        let (missing, invalid) = (libc::ENOENT, libc::EINVAL);
        for (user, groups, expected) in [
            ("nobody", &[][..], (User, missing)),
            ("broken", &[], (User, missing)),
            ("short", &[], (User, missing)),
            ("long", &[], (User, missing)),
            ("neg", &[], (User, missing)),
            ("-1", &[], (User, missing)),
            ("+0", &[], (User, missing)),
            (" 0", &[], (User, missing)),
            ("0x0", &[], (User, missing)),
            ("4294967295", &[], (User, invalid)),
            ("4294967296", &[], (User, invalid)),
            ("99999999999", &[], (User, invalid)),
            ("evil\t", &[], (User, invalid)),
            ("a/b", &[], (User, invalid)),
            (":0", &[], (User, invalid)),
            (":", &[], (User, invalid)),
            ("agent:", &[], (Group, invalid)),
            ("0:0:0", &[], (Group, invalid)),
            ("agent:nope", &[], (Group, missing)),
            ("agent", &["bad"], (Group, missing)),
            ("agent", &["-1"], (Group, missing)),
        ] {
            assert_eq!(identity(user, groups), Err(expected), "{user}");
        }
    }

    #[test]
    fn names_are_found_by_id() {
        assert_eq!(name_of(1000, PASSWD), Some("agent"));
        assert_eq!(name_of(5, PASSWD), None);
    }

    proptest! {
        #[test]
        fn no_file_makes_root_of_an_unlisted_name(
            user in "[a-z]{1,8}",
            passwd in prop::collection::vec(any::<u8>(), 0..400),
            group in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            prop_assume!(!String::from_utf8_lossy(&passwd).contains(&user));
            prop_assert!(resolve(&user, &[], &passwd, &group).is_err());
        }
    }
}
