//! Confines the thread that unpacks to its target directory with Landlock, where the kernel has it.
//!
//! This is the second fence: the first is that every path is resolved from a descriptor. It needs Landlock's second
//! version (Linux 5.19), since the first one forbids links between directories altogether.

use std::os::fd::{AsFd, OwnedFd};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError,
};
use luna_core::{Error, Kind, Result};

/// After this, the calling thread (no other) can open, make or change nothing outside `directory`.
pub(crate) fn to_directory(directory: &OwnedFd) -> Result<()> {
    let all = AccessFs::from_all(ABI::V5);
    let restrict = || -> Result<(), RulesetError> {
        let created = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V2))?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)?
            .create()?;
        created
            .add_rule(PathBeneath::new(directory.as_fd(), all))?
            .restrict_self()?;
        Ok(())
    };
    match restrict() {
        // Where the kernel has none or an early one, the first fence stands alone.
        Ok(()) | Err(RulesetError::HandleAccesses(_) | RulesetError::CreateRuleset(_)) => Ok(()),
        Err(error) => {
            Err(Error::new(Kind::Internal, "cannot confine the thread that unpacks layers").because(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_is_out_of_reach() {
        let inside = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let canary = outside.path().join("canary");
        std::fs::write(&canary, "sings").unwrap();
        let path = inside.path().to_owned();
        let fd: OwnedFd = std::fs::File::open(&path).unwrap().into();
        let canary_seen = canary.clone();
        let reached = std::thread::spawn(move || {
            to_directory(&fd).unwrap();
            std::fs::write(path.join("made"), "in here").unwrap();
            (
                std::fs::read(&canary_seen).is_ok(),
                std::fs::write(&canary_seen, "silent").is_ok(),
            )
        })
        .join()
        .unwrap();
        if !std::path::Path::new("/sys/kernel/security/landlock").exists() && reached == (true, true) {
            println!("skipped: this kernel has no Landlock");
            return;
        }
        assert_eq!(reached, (false, false));
        assert_eq!(std::fs::read_to_string(canary).unwrap(), "sings");
    }
}
