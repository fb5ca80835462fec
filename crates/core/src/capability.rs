//! Linux capabilities as a set of bits (capabilities(7), `linux/capability.h`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Kind, Result};

/// Index is the kernel's number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// One capability, written `NET_RAW` or `CAP_NET_RAW` in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capability(u8);

impl Capability {
    /// The kernel's number, 0 to 40.
    pub fn number(self) -> u8 {
        self.0
    }

    pub fn name(self) -> &'static str {
        NAMES[usize::from(self.0)]
    }
}

impl FromStr for Capability {
    type Err = Error;

    fn from_str(text: &str) -> Result<Capability> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        NAMES
            .iter()
            .position(|known| *known == name)
            .map(|number| Capability(number as u8))
            .ok_or_else(|| {
                Error::new(
                    Kind::InvalidInput,
                    format!("cannot find a capability `{}`", text.escape_debug()),
                )
            })
    }
}

/// A set of capabilities; bit n is the capability with the kernel's number n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Capabilities(u64);

impl Capabilities {
    pub const NONE: Capabilities = Capabilities(0);

    /// Every capability this table names.
    pub const ALL: Capabilities = Capabilities((1 << NAMES.len()) - 1);

    /// What docker gives a container (moby `oci/caps/defaults.go`): CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW
    /// SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE.
    pub const DEFAULT: Capabilities = Capabilities(
        1 | 1 << 1
            | 1 << 3
            | 1 << 4
            | 1 << 5
            | 1 << 6
            | 1 << 7
            | 1 << 8
            | 1 << 10
            | 1 << 13
            | 1 << 18
            | 1 << 27
            | 1 << 29
            | 1 << 31,
    );

    pub fn bits(self) -> u64 {
        self.0
    }

    /// Bits beyond the table are dropped.
    pub fn from_bits(bits: u64) -> Capabilities {
        Capabilities(bits & Capabilities::ALL.0)
    }

    pub fn contains(self, capability: Capability) -> bool {
        self.0 & (1 << capability.0) != 0
    }

    #[must_use]
    pub fn with(self, capability: Capability) -> Capabilities {
        Capabilities(self.0 | 1 << capability.0)
    }

    #[must_use]
    pub fn without(self, capability: Capability) -> Capabilities {
        Capabilities(self.0 & !(1 << capability.0))
    }

    #[must_use]
    pub fn union(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 | other.0)
    }

    pub fn iter(self) -> impl Iterator<Item = Capability> {
        (0..NAMES.len() as u8)
            .map(Capability)
            .filter(move |capability| self.contains(*capability))
    }

    /// Docker's `--cap-drop` and `--cap-add` on top of [`Capabilities::DEFAULT`]: `ALL` first, then names; add wins.
    pub fn requested(add: &[String], drop: &[String]) -> Result<Capabilities> {
        let is_all = |text: &String| text.eq_ignore_ascii_case("all");
        let mut set = if drop.iter().any(is_all) {
            Capabilities::NONE
        } else {
            Capabilities::DEFAULT
        };
        for name in drop.iter().filter(|name| !is_all(name)) {
            set = set.without(name.parse()?);
        }
        if add.iter().any(is_all) {
            set = Capabilities::ALL;
            for name in drop.iter().filter(|name| !is_all(name)) {
                set = set.without(name.parse()?);
            }
        }
        for name in add.iter().filter(|name| !is_all(name)) {
            set = set.with(name.parse()?);
        }
        Ok(set)
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Capability::name).collect();
        f.write_str(&names.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_dockers_fourteen() {
        assert_eq!(
            Capabilities::DEFAULT.to_string(),
            "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP"
        );
    }

    #[test]
    fn requests_follow_docker() {
        let request = |add: &[&str], drop: &[&str]| {
            let own = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
            Capabilities::requested(&own(add), &own(drop))
        };
        assert_eq!(request(&[], &["all"]).unwrap(), Capabilities::NONE);
        assert_eq!(
            request(&["cap_net_admin"], &["ALL"]).unwrap().to_string(),
            "NET_ADMIN"
        );
        assert_eq!(
            request(&["ALL"], &["MKNOD"]).unwrap(),
            Capabilities::ALL.without("MKNOD".parse().unwrap())
        );
        assert!(request(&["NOPE"], &[]).is_err());
    }
}
