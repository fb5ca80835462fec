//! Files of `/proc` as values: the same parsers for the host's word and the sandbox's, so all are bounded and total.

use super::{Credentials, IdMap, Mount, Mounts};
use crate::capability::Capabilities;

/// Most mounts that are listed.
const MAX_MOUNTS: usize = 256;
/// Most characters of one field.
const MAX_FIELD: usize = 256;

/// proc_pid_status(5); `None` where it is none.
pub fn credentials(status: &str) -> Option<(u32, Credentials)> {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    };
    let number = |name: &str| field(name)?.parse::<u32>().ok();
    // Real, effective, saved and file system's.
    let effective = |name: &str| field(name)?.split_whitespace().nth(1)?.parse::<u32>().ok();
    let capabilities = |name: &str| {
        let bits = field(name).and_then(|text| u64::from_str_radix(text, 16).ok())?;
        let set = Capabilities::from_bits(bits);
        Some(set.iter().map(|one| one.name().to_owned()).collect::<Vec<_>>())
    };
    let credentials = Credentials {
        uid: effective("Uid")?,
        gid: effective("Gid")?,
        bounding: capabilities("CapBnd")?,
        effective: capabilities("CapEff")?,
        permitted: capabilities("CapPrm")?,
        inheritable: capabilities("CapInh")?,
        ambient: capabilities("CapAmb")?,
        no_new_privileges: number("NoNewPrivs").map(|value| value != 0),
        seccomp_mode: number("Seccomp").and_then(|mode| u8::try_from(mode).ok()),
        seccomp_filters: number("Seccomp_filters"),
    };
    Some((number("Pid")?, credentials))
}

/// user_namespaces(7): `uid_map` and `gid_map`.
pub fn id_map(text: &str) -> Vec<IdMap> {
    let line = |line: &str| {
        let numbers: Vec<u32> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .ok()?;
        let [inside, outside, count] = numbers[..] else {
            return None;
        };
        Some(IdMap {
            inside,
            outside,
            count,
        })
    };
    // The kernel's bound on lines.
    text.lines().take(340).filter_map(line).collect()
}

/// proc_pid_mountinfo(5).
pub fn mounts(text: &str) -> Mounts {
    let mut found = Mounts::default();
    for mount in text.lines().filter_map(mount) {
        if found.mounts.len() < MAX_MOUNTS {
            found.mounts.push(mount);
        } else {
            found.left_out += 1;
        }
    }
    found
}

fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (root, target, options) = (before.next()?, before.next()?, before.next()?);
    let mut after = after.splitn(3, ' ');
    let (file_system, source, of_system) = (after.next()?, after.next()?, after.next()?);
    // What the mount says goes first; of the file system's own options only that it cannot be written is of interest.
    let mut options = options.to_owned();
    let has = |options: &str, wanted| options.split(',').any(|option| option == wanted);
    if has(of_system, "ro") && !has(&options, "ro") {
        options.push_str(",ro file system");
    }
    Some(Mount {
        target: plain(&unescape(target)),
        root: plain(&unescape(root)),
        file_system: plain(file_system),
        source: plain(&unescape(source)),
        options: plain(&options),
    })
}

fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

fn plain(text: &str) -> String {
    text.chars()
        .take(MAX_FIELD)
        .map(|letter| if letter.is_control() { '\u{fffd}' } else { letter })
        .collect()
}

/// `attr/current`; `None` where no security module answers.
pub fn label(text: &str) -> Option<String> {
    let text = text.trim_matches(|letter: char| letter == '\0' || letter.is_whitespace());
    (!text.is_empty()).then(|| plain(text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_status_is_read() {
        let status = "Name:\tluna-init\nUmask:\t0022\nPid:\t7\nUid:\t0\t1000\t0\t0\nGid:\t0\t100\t0\t0\n\
            CapInh:\t0000000000000000\nCapPrm:\t00000000000000c0\nCapEff:\t0000000000000040\n\
            CapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let (pid, found) = credentials(status).unwrap();
        assert_eq!((pid, found.uid, found.gid), (7, 1000, 100));
        assert_eq!(found.effective, ["SETGID"]);
        assert_eq!(found.permitted, ["SETGID", "SETUID"]);
        assert_eq!(found.bounding.join(" "), Capabilities::DEFAULT.to_string());
        assert!(found.inheritable.is_empty() && found.ambient.is_empty());
        assert_eq!(found.no_new_privileges, Some(true));
        assert_eq!((found.seccomp_mode, found.seccomp_filters), (Some(2), Some(1)));
        assert_eq!(credentials(&status.replace("CapBnd", "CapX")), None);
        assert_eq!(credentials(""), None);
    }

    #[test]
    fn mounts_are_read() {
        let text = "36 35 98:0 /a\\040b /mnt/x\\040y rw,nosuid shared:1 - ext4 /dev/root rw,errors=continue\n\
            37 35 0:5 / /sys ro,nosuid - sysfs sysfs rw\n38 35 0:6 / /z rw - tmpfs none ro,size=4k\nnonsense\n";
        let found = mounts(text).mounts;
        let all: Vec<_> = found
            .iter()
            .map(|mount| (&*mount.target, &*mount.root, &*mount.file_system, &*mount.options))
            .collect();
        assert_eq!(
            all,
            [
                ("/mnt/x y", "/a b", "ext4", "rw,nosuid"),
                ("/sys", "/", "sysfs", "ro,nosuid"),
                ("/z", "/", "tmpfs", "rw,ro file system"),
            ]
        );
        let many = "1 1 0:1 / /x rw - tmpfs none rw\n".repeat(MAX_MOUNTS + 5);
        let found = mounts(&many);
        assert_eq!((found.mounts.len(), found.left_out), (MAX_MOUNTS, 5));
    }

    #[test]
    fn maps_and_labels_are_read() {
        let map = id_map("         0 1073741824      65536\n1 2\n");
        let expected = IdMap {
            inside: 0,
            outside: 1_073_741_824,
            count: 65_536,
        };
        assert_eq!(map, [expected]);
        assert_eq!(
            label("docker-default (enforce)\n").unwrap(),
            "docker-default (enforce)"
        );
        assert_eq!(label("a\u{1b}[31m\0").unwrap(), "a\u{fffd}[31m");
        assert_eq!(label("\0\n"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_within_bounds(text in "\\PC{0,400}|([0-9 /a-z,\\\\-]{0,60}\n){0,8}") {
            let _ = (credentials(&text), id_map(&text), label(&text));
            for mount in mounts(&text).mounts {
                prop_assert!(mount.target.chars().count() <= MAX_FIELD);
                prop_assert!(!mount.target.contains(char::is_control));
            }
        }
    }
}
