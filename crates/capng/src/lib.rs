//! Stands in for the crate `capng`, whose own code is a binding to libcap-ng: what virtiofsd calls of it, on rustix, so that
//! Luna's executables link no C library beside the C library. `[patch.crates-io]` in the workspace's `Cargo.toml` puts it
//! there.
//!
//! As in libcap-ng, a thread collects changes with [`clear`] and [`update`] and [`apply`] makes them the kernel's. Unlike
//! it, nothing is remembered after that: the next change begins from what the thread has by then, which is what a thread
//! that changes its user in between needs.

use std::cell::Cell;
use std::fmt;

use rustix::thread::{CapabilitySet, CapabilitySets};

pub type Capability = u32;

/// What could not be done.
#[derive(Debug)]
pub enum Error {
    ApplyCapabilities,
    GetCapabilityId(String),
    GetProcessCapabilities,
    UpdateCapability(Capability),
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::ApplyCapabilities => f.write_str("cannot set the thread's capabilities"),
            Error::GetCapabilityId(name) => write!(f, "no capability `{name}`"),
            Error::GetProcessCapabilities => f.write_str("cannot read the thread's capabilities"),
            Error::UpdateCapability(number) => write!(f, "cannot change capability {number}"),
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// One of a thread's sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    EFFECTIVE,
    PERMITTED,
    INHERITABLE,
}

/// What [`clear`] and [`apply`] are about: the three sets, or the bounding set too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    CAPS,
    BOTH,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    DROP,
    ADD,
}

#[derive(Clone, Copy, Debug)]
pub struct CUpdate {
    pub action: Action,
    pub cap_type: Type,
    pub capability: Capability,
}

thread_local! {
    /// Changes that are not applied yet, on top of what the thread had at the first of them.
    static PENDING: Cell<Option<CapabilitySets>> = const { Cell::new(None) };
}

fn pending() -> Result<CapabilitySets> {
    match PENDING.get() {
        Some(sets) => Ok(sets),
        None => rustix::thread::capabilities(None).map_err(|_| Error::GetProcessCapabilities),
    }
}

fn bit(capability: Capability) -> Option<CapabilitySet> {
    let bits = 1u64.checked_shl(capability)?;
    Some(CapabilitySet::from_bits_retain(bits))
}

/// Forgets what is not applied and begins from what the thread has.
pub fn get_caps_process() -> Result<()> {
    PENDING.set(None);
    pending().map(|sets| PENDING.set(Some(sets)))
}

/// Empties the three sets. The bounding set is the jail's business; asking for it makes no difference.
pub fn clear(_set: Set) {
    PENDING.set(Some(CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    }));
}

pub fn update(updates: Vec<CUpdate>) -> Result<()> {
    let mut sets = pending()?;
    for CUpdate {
        action,
        cap_type,
        capability,
    } in updates
    {
        let bit = bit(capability).ok_or(Error::UpdateCapability(capability))?;
        let set = match cap_type {
            Type::EFFECTIVE => &mut sets.effective,
            Type::PERMITTED => &mut sets.permitted,
            Type::INHERITABLE => &mut sets.inheritable,
        };
        set.set(bit, action == Action::ADD);
    }
    PENDING.set(Some(sets));
    Ok(())
}

/// Makes the changes the kernel's.
pub fn apply(_set: Set) -> Result<()> {
    let sets = pending()?;
    PENDING.set(None);
    rustix::thread::set_capabilities(None, sets).map_err(|_| Error::ApplyCapabilities)
}

/// Whether the thread has it, changes that are not applied included.
pub fn have_capability(which: Type, capability: Capability) -> bool {
    let (Ok(sets), Some(bit)) = (pending(), bit(capability)) else {
        return false;
    };
    match which {
        Type::EFFECTIVE => sets.effective,
        Type::PERMITTED => sets.permitted,
        Type::INHERITABLE => sets.inheritable,
    }
    .contains(bit)
}

/// By the name without `CAP_`, in any case (`linux/capability.h`); those that virtiofsd's library asks for and the usual ones
/// of a file server.
pub fn name_to_capability(name: &str) -> Result<Capability> {
    const NAMES: [(&str, CapabilitySet); 9] = [
        ("CHOWN", CapabilitySet::CHOWN),
        ("DAC_OVERRIDE", CapabilitySet::DAC_OVERRIDE),
        ("DAC_READ_SEARCH", CapabilitySet::DAC_READ_SEARCH),
        ("FOWNER", CapabilitySet::FOWNER),
        ("FSETID", CapabilitySet::FSETID),
        ("SETGID", CapabilitySet::SETGID),
        ("SETUID", CapabilitySet::SETUID),
        ("MKNOD", CapabilitySet::MKNOD),
        ("SETFCAP", CapabilitySet::SETFCAP),
    ];
    NAMES
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, set)| set.bits().trailing_zeros())
        .ok_or_else(|| Error::GetCapabilityId(name.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn change(action: Action, capability: Capability) {
        update(vec![CUpdate {
            action,
            cap_type: Type::EFFECTIVE,
            capability,
        }])
        .unwrap();
    }

    #[test]
    fn a_capability_is_put_down_and_taken_up_again() {
        let number = name_to_capability("fsetid").unwrap();
        assert_eq!(number, 4);
        let permitted = have_capability(Type::PERMITTED, number);
        if !have_capability(Type::EFFECTIVE, number) {
            // Not root: adding what is not permitted fails, and is forgotten.
            change(Action::ADD, number);
            assert_eq!(apply(Set::CAPS).is_ok(), permitted);
            return;
        }
        let has = || {
            let sets = rustix::thread::capabilities(None).unwrap();
            sets.effective.contains(CapabilitySet::FSETID)
        };
        change(Action::DROP, number);
        assert!(has(), "not before it is applied");
        apply(Set::CAPS).unwrap();
        assert!(!has());
        assert!(permitted && have_capability(Type::PERMITTED, number));
        change(Action::ADD, number);
        apply(Set::CAPS).unwrap();
        assert!(has());
    }

    #[test]
    fn what_is_no_capability_is_refused() {
        assert!(name_to_capability("NONSENSE").is_err());
        let wild = CUpdate {
            action: Action::ADD,
            cap_type: Type::PERMITTED,
            capability: 64,
        };
        assert!(update(vec![wild]).is_err());
        assert!(!have_capability(Type::EFFECTIVE, 64));
    }
}
