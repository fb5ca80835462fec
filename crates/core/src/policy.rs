//! The choice of the wall: pure, made before anything is downloaded, always explained.
//!
//! A floor is never lowered: `auto` picks the fastest wall at or above it, and where there is none the run is refused.
//! Nothing an image says about itself reaches this module.

use serde::{Deserialize, Serialize};

use crate::engine::{EngineProfile, Wall};
use crate::host::{EngineReport, HostReport};
use crate::spec::{Floor, Isolation, Spec};
use crate::{Error, Kind, Result};

/// The second noun: which wall, why, and what became of the others. Stored with the sandbox; a restart reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    pub asked: Asked,
    pub engine: EngineProfile,
    pub reason: String,
    pub rejected: Vec<Rejection>,
}

/// The part of a spec that bears on the choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    pub isolation: Isolation,
    pub require: Option<Floor>,
    pub privileged: bool,
}

impl Asked {
    pub fn of(spec: &Spec) -> Asked {
        Asked {
            isolation: spec.wall.isolation,
            require: spec.wall.require,
            privileged: spec.security.privileged,
        }
    }

    /// The lowest rung of the ladder that satisfies what was required.
    fn floor(&self) -> (u8, &'static str) {
        match (self.require, self.privileged) {
            (Some(Floor::HardwareVirtualization), _) => (3, "hardware virtualization is required"),
            (Some(Floor::OwnKernel), _) => (2, "a kernel of its own is required"),
            (None, true) => (2, "`--privileged` needs a kernel of its own"),
            (None, false) => (1, "nothing more is required"),
        }
    }
}

/// A wall that was not chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejection {
    pub engine: EngineProfile,
    pub because: String,
    /// The command or setting that would change it.
    pub fix: Option<String>,
}

/// Picks the wall for what was asked on this host, or refuses.
pub fn decide(asked: &Asked, host: &HostReport) -> Result<Decision> {
    let (floor, floor_reason) = asked.floor();
    let mut candidates: Vec<&EngineReport> = Vec::new();
    let mut rejected = Vec::new();
    for engine in &host.engines {
        match objection(asked, floor, floor_reason, engine) {
            Some(rejection) => rejected.push(rejection),
            None => candidates.push(engine),
        }
    }
    // The fastest wall that satisfies the floor: the container before any VM, then hardware before emulation.
    candidates.sort_by_key(|engine| (engine.profile.wall, u8::MAX - engine.profile.rung()));
    let Some(chosen) = candidates.first() else {
        return Err(refusal(asked, floor_reason, &rejected));
    };
    for other in &candidates[1..] {
        rejected.push(Rejection {
            engine: other.profile,
            because: format!(
                "available, but {} is enough and faster",
                describe(&chosen.profile)
            ),
            fix: (other.profile.wall == Wall::Vm && chosen.profile.wall == Wall::Container)
                .then(|| "--isolation vm".to_owned()),
        });
    }
    let reason = match asked.isolation {
        Isolation::Auto => format!("{floor_reason}, and this is the fastest wall that offers it"),
        Isolation::Container | Isolation::Vm => "it was asked for".to_owned(),
    };
    Ok(Decision {
        asked: asked.clone(),
        engine: chosen.profile,
        reason,
        rejected,
    })
}

/// Why each wall that cannot be had cannot: the whole of what a refusal is made of.
pub fn rejections(asked: &Asked, host: &HostReport) -> Vec<Rejection> {
    let (floor, floor_reason) = asked.floor();
    host.engines
        .iter()
        .filter_map(|engine| objection(asked, floor, floor_reason, engine))
        .collect()
}

/// A wall in words: `the container`, `the VM (software emulation)`.
pub fn describe(profile: &EngineProfile) -> &'static str {
    match profile.rung() {
        1 => "the container",
        2 => "the VM (software emulation)",
        _ => "the VM (hardware virtualization)",
    }
}

fn objection(asked: &Asked, floor: u8, floor_reason: &str, engine: &EngineReport) -> Option<Rejection> {
    let reject = |because: String, fix: Option<String>| {
        Some(Rejection {
            engine: engine.profile,
            because,
            fix,
        })
    };
    let wanted = match asked.isolation {
        Isolation::Auto => None,
        Isolation::Container => Some(Wall::Container),
        Isolation::Vm => Some(Wall::Vm),
    };
    if let Some(wanted) = wanted
        && wanted != engine.profile.wall
    {
        return reject(
            format!("`--isolation {wanted}` was asked for"),
            Some("--isolation auto".to_owned()),
        );
    }
    if engine.profile.rung() < floor {
        return reject(format!("too weak: {floor_reason}"), None);
    }
    let obstacle = engine.obstacle()?;
    reject(
        format!("{}: {}", obstacle.name, obstacle.detail),
        obstacle.fix.clone(),
    )
}

fn refusal(asked: &Asked, floor_reason: &str, rejected: &[Rejection]) -> Error {
    let because: Vec<_> = rejected
        .iter()
        .map(|rejection| format!("{}: {}", describe(&rejection.engine), rejection.because))
        .collect();
    let because = if because.is_empty() {
        "this Luna has no engines".to_owned()
    } else {
        because.join("; ")
    };
    let hint = rejected
        .iter()
        .filter(|rejection| !rejection.because.starts_with("too weak"))
        .find_map(|rejection| rejection.fix.clone())
        .filter(|fix| asked.isolation != Isolation::Auto || !fix.starts_with("--isolation"));
    let message = match asked.isolation {
        Isolation::Auto => format!("cannot find a wall for this: {floor_reason}"),
        Isolation::Container => format!("cannot use the container wall: {floor_reason}"),
        Isolation::Vm => format!("cannot use the VM wall: {floor_reason}"),
    };
    let error = Error::new(Kind::Refused, message).because(because);
    match hint {
        Some(hint) => error.hint(hint),
        None => error.hint("`luna host` lists every wall, what was tried and what would change it"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::{Accelerator, RootForm};
    use crate::host::{Check, Outcome};
    use crate::units::Bytes;

    fn engine(wall: Wall, accelerator: Option<Accelerator>, works: bool) -> EngineReport {
        let root = if wall == Wall::Vm {
            RootForm::Disk
        } else {
            RootForm::Tree
        };
        let outcome = if works { Outcome::Works } else { Outcome::Missing };
        let check = Check {
            name: "it".into(),
            outcome,
            detail: "was tried".into(),
            fix: Some("fix it".into()),
            took: Duration::ZERO,
        };
        EngineReport {
            profile: EngineProfile {
                wall,
                accelerator,
                root,
            },
            checks: vec![check],
        }
    }

    fn host(container: bool, tcg: bool, kvm: bool, available: Bytes) -> HostReport {
        HostReport {
            kernel: "6.1".into(),
            architecture: "x86_64".into(),
            cpus: 2,
            memory_total: Bytes::mebibytes(1024),
            memory_available: available,
            rootless: false,
            engines: vec![
                engine(Wall::Container, None, container),
                engine(Wall::Vm, Some(Accelerator::Tcg), tcg),
                engine(Wall::Vm, Some(Accelerator::Kvm), kvm),
            ],
        }
    }

    fn asked(isolation: Isolation, require: Option<Floor>, privileged: bool) -> Asked {
        Asked {
            isolation,
            require,
            privileged,
        }
    }

    /// Host, what is asked, and the wall expected; none is a refusal.
    type Row<'a> = (&'a HostReport, Asked, Option<(Wall, Option<Accelerator>)>);

    #[test]
    fn the_choice_as_a_table() {
        use Accelerator::{Kvm, Tcg};
        use Floor::{HardwareVirtualization as Hardware, OwnKernel};
        use Isolation::{Auto, Container, Vm};
        let plenty = Bytes::mebibytes(900);
        let everything = host(true, true, true, plenty);
        let no_kvm = host(true, true, false, plenty);
        let only_container = host(true, false, false, plenty);
        let table: [Row<'_>; 12] = [
            (
                &everything,
                asked(Auto, None, false),
                Some((Wall::Container, None)),
            ),
            (&everything, asked(Vm, None, false), Some((Wall::Vm, Some(Kvm)))),
            (
                &everything,
                asked(Auto, Some(OwnKernel), false),
                Some((Wall::Vm, Some(Kvm))),
            ),
            (&everything, asked(Container, Some(OwnKernel), false), None),
            (&everything, asked(Auto, None, true), Some((Wall::Vm, Some(Kvm)))),
            (&everything, asked(Container, None, true), None),
            (
                &no_kvm,
                asked(Auto, Some(OwnKernel), false),
                Some((Wall::Vm, Some(Tcg))),
            ),
            (&no_kvm, asked(Auto, Some(Hardware), false), None),
            (&no_kvm, asked(Vm, Some(Hardware), false), None),
            (
                &only_container,
                asked(Auto, None, false),
                Some((Wall::Container, None)),
            ),
            (&only_container, asked(Auto, Some(OwnKernel), false), None),
            (&only_container, asked(Vm, None, false), None),
        ];
        for (host, asked, expected) in table {
            let outcome = decide(&asked, host);
            let Some((wall, accelerator)) = expected else {
                let error = outcome.unwrap_err();
                assert_eq!(error.kind(), Kind::Refused, "{asked:?}");
                assert!(error.hint_text().is_some());
                continue;
            };
            let decision = outcome.unwrap();
            assert_eq!(
                (decision.engine.wall, decision.engine.accelerator),
                (wall, accelerator),
                "{asked:?}"
            );
            assert_eq!(
                decision.rejected.len(),
                2,
                "every other engine is explained: {asked:?}"
            );
        }
    }

    #[test]
    fn low_memory_never_beats_a_floor() {
        let starved = host(true, true, false, Bytes::mebibytes(8));
        let decision = decide(&asked(Isolation::Auto, Some(Floor::OwnKernel), false), &starved).unwrap();
        assert_eq!(decision.engine.wall, Wall::Vm);
        let without_vm = host(true, false, false, Bytes::mebibytes(8));
        assert!(
            decide(
                &asked(Isolation::Auto, Some(Floor::OwnKernel), false),
                &without_vm
            )
            .is_err()
        );
    }
}
