//! The choice of the wall: pure, made before anything is downloaded, always explained.
//!
//! ```text
//! ladder   container  <  vm on TCG  <  vm on KVM
//! floor    the highest of --require, --privileged, --boot, the policy's own and that of every risk that is there
//! auto     the preferred wall at or above the floor; the container where nothing prefers a machine or memory is short
//! ```
//! A floor is never lowered: where no wall at or above it can be had, the run is refused, with what would change that.
//! Nothing an image says about itself reaches this module: an [`Origin`] is what the user's reference and the store's own
//! digests say.

mod file;
mod pattern;

pub use file::{Emulation, LOW_MEMORY, MAX_FILE, Policy, Prefer, Risks, Rule};
pub use pattern::{Origin, Pattern};

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::engine::{Accelerator, EngineProfile, Wall};
use crate::host::{EngineReport, HostReport};
use crate::spec::{Floor, Isolation, Network, Spec};
use crate::units::Bytes;
use crate::{Error, Kind, Result};

/// The least memory a machine does anything useful in, where `--memory` does not say.
pub const LEAST_MACHINE: Bytes = Bytes::mebibytes(128);
/// What a machine takes beside its guest's memory: the VMM and the guest's kernel.
pub const MACHINE_OVERHEAD: Bytes = Bytes::mebibytes(64);

/// The second noun: which wall, why, and what became of the others. Stored with the sandbox; a restart reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    pub asked: Asked,
    /// The policy files that were in force.
    pub policy: Vec<PathBuf>,
    pub engine: EngineProfile,
    pub reason: String,
    pub rejected: Vec<Rejection>,
}

/// The part of a spec that bears on the choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is asked for or not by itself")]
pub struct Asked {
    pub isolation: Isolation,
    pub require: Option<Floor>,
    pub privileged: bool,
    /// A disk image with a kernel of its own.
    #[serde(default)]
    pub boot: bool,
    /// Only a container can share the host's.
    pub network: Network,
    /// User namespaces inside, and so containers in the sandbox.
    pub nested_containers: bool,
    /// Whether any secret is attached; a [`Spec`] holds none, so whoever attaches them says so here.
    pub secrets: bool,
    /// `--memory`.
    pub memory: Option<Bytes>,
    pub image: Origin,
}

impl Asked {
    pub fn of(spec: &Spec, image: Origin) -> Asked {
        Asked {
            isolation: spec.wall.isolation,
            require: spec.wall.require,
            privileged: spec.security.privileged,
            boot: spec.boot.is_some(),
            network: spec.network,
            nested_containers: spec.security.nested_user_namespaces,
            secrets: false,
            memory: spec.resources.memory,
            image,
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

/// The rung that must be reached, and who wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// As [`EngineProfile::rung`] counts.
    pub rung: u8,
    pub because: String,
    pub fix: Option<String>,
}

/// The highest of all demands on the wall.
pub fn floor(asked: &Asked, policy: &Policy) -> Demand {
    let mut highest = Demand {
        rung: 1,
        because: "nothing more is required".to_owned(),
        fix: None,
    };
    let mut demand = |floor: Floor, because: String, fix: String| {
        if rung(floor) > highest.rung {
            highest = Demand {
                rung: rung(floor),
                because,
                fix: Some(fix),
            };
        }
    };
    if let Some(floor) = asked.require {
        demand(
            floor,
            format!("{} is required", words(floor)),
            format!("leave out `--require {floor}`, or run on a host that has it"),
        );
    }
    if asked.privileged {
        demand(
            Floor::OwnKernel,
            "`--privileged` needs a kernel of its own".to_owned(),
            "leave out `--privileged`; `--cap-add` grants single capabilities".to_owned(),
        );
    }
    if asked.boot {
        demand(
            Floor::OwnKernel,
            "`--boot` starts the disk image's own kernel".to_owned(),
            "name an image in place of `--boot` to share the host's kernel".to_owned(),
        );
    }
    let risks = &policy.risks;
    let untrusted = !risks.trusts(&asked.image);
    let rules = [
        (true, &policy.floor, "floor", ""),
        (
            untrusted,
            &risks.untrusted,
            "risks.untrusted",
            " for an image it does not trust",
        ),
        (
            asked.secrets,
            &risks.secrets,
            "risks.secrets",
            " where secrets are attached",
        ),
        (
            asked.privileged,
            &risks.privileged,
            "risks.privileged",
            " for `--privileged`",
        ),
        (
            asked.nested_containers,
            &risks.nested_containers,
            "risks.nested-containers",
            " for nested containers",
        ),
    ];
    for (there, rule, key, what) in rules {
        if let Some(Rule { value, file }) = rule.as_ref().filter(|_| there) {
            let file = file.display();
            let fix = if key == "risks.untrusted" {
                format!("name the image in `{key}.trusted` of `{file}`")
            } else {
                format!("change `{key}` in `{file}`")
            };
            demand(
                *value,
                format!("the policy wants {}{what} (`{key}` in `{file}`)", words(*value)),
                fix,
            );
        }
    }
    highest
}

fn rung(floor: Floor) -> u8 {
    match floor {
        Floor::OwnKernel => 2,
        Floor::HardwareVirtualization => 3,
    }
}

fn words(floor: Floor) -> &'static str {
    match floor {
        Floor::OwnKernel => "a kernel of its own",
        Floor::HardwareVirtualization => "hardware virtualization",
    }
}

/// Picks the wall for what was asked under this policy on this host, or refuses.
pub fn decide(asked: &Asked, policy: &Policy, host: &HostReport) -> Result<Decision> {
    let demand = floor(asked, policy);
    let mut candidates: Vec<&EngineReport> = Vec::new();
    let mut rejected = Vec::new();
    for engine in &host.engines {
        match objection(asked, policy, &demand, host, engine) {
            Some(rejection) => rejected.push(rejection),
            None => candidates.push(engine),
        }
    }
    let machine_first = prefers_machine(policy) && host.memory_available >= policy.low_memory();
    candidates.sort_by_key(|engine| {
        let profile = &engine.profile;
        (profile.own_kernel() != machine_first, u8::MAX - profile.rung())
    });
    let Some(chosen) = candidates.first() else {
        return Err(refusal(asked, &demand, &rejected));
    };
    let reason = reason(asked, policy, &demand, host, chosen.profile);
    for other in &candidates[1..] {
        let fix = (other.profile.wall != chosen.profile.wall)
            .then(|| format!("--isolation {}", other.profile.wall));
        rejected.push(Rejection {
            engine: other.profile,
            because: format!(
                "available, but {} comes first: {reason}",
                describe(&chosen.profile)
            ),
            fix,
        });
    }
    Ok(Decision {
        asked: asked.clone(),
        policy: policy.files.clone(),
        engine: chosen.profile,
        reason,
        rejected,
    })
}

/// Whether a sandbox of this decision may be made of an image that turned out to be `image`: what it was decided for by
/// name may have been trusted by name alone.
pub fn confirm(decision: &Decision, policy: &Policy, image: &Origin) -> Result<()> {
    let asked = Asked {
        image: image.clone(),
        ..decision.asked.clone()
    };
    let demand = floor(&asked, policy);
    if decision.engine.rung() >= demand.rung {
        return Ok(());
    }
    let refused = Error::new(
        Kind::Refused,
        format!("cannot run this image in {}", describe(&decision.engine)),
    )
    .because(format!(
        "it is not the image that was decided for: {}",
        demand.because
    ));
    Err(match demand.fix {
        Some(fix) => refused.hint(fix),
        None => refused,
    })
}

impl Policy {
    /// Whether what an image asks for by its label may be granted behind this wall: nested containers as a risk want a
    /// floor, and the label was not known when the wall was chosen.
    pub fn allows_nested(&self, engine: &EngineProfile) -> bool {
        let risk = &self.risks.nested_containers;
        risk.as_ref().is_none_or(|rule| engine.rung() >= rung(rule.value))
    }
}

/// Why each wall that cannot be had cannot: the whole of what a refusal is made of.
pub fn rejections(asked: &Asked, policy: &Policy, host: &HostReport) -> Vec<Rejection> {
    let demand = floor(asked, policy);
    host.engines
        .iter()
        .filter_map(|engine| objection(asked, policy, &demand, host, engine))
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

fn prefers_machine(policy: &Policy) -> bool {
    policy
        .prefer
        .as_ref()
        .is_some_and(|rule| rule.value == Prefer::Vm)
}

/// Why the chosen wall and not another that could be had.
fn reason(
    asked: &Asked,
    policy: &Policy,
    demand: &Demand,
    host: &HostReport,
    chosen: EngineProfile,
) -> String {
    if asked.isolation != Isolation::Auto {
        return "it was asked for".to_owned();
    }
    if asked.network == Network::Host {
        return "`--network host` was asked for, and only the container can share it".to_owned();
    }
    let because = &demand.because;
    match &policy.prefer {
        Some(Rule {
            value: Prefer::Vm,
            file,
        }) if demand.rung == 1 => {
            let file = file.display();
            if chosen.own_kernel() {
                format!("{because}, and the policy prefers a machine (`prefer` in `{file}`)")
            } else if host.memory_available < policy.low_memory() {
                format!(
                    "{because}, and memory is short: {} available, below {} (`low-memory` of the policy)",
                    host.memory_available,
                    policy.low_memory()
                )
            } else {
                format!("{because}, and no machine can be had here")
            }
        }
        _ => format!("{because}, and this is the fastest wall that offers it"),
    }
}

fn objection(
    asked: &Asked,
    policy: &Policy,
    demand: &Demand,
    host: &HostReport,
    engine: &EngineReport,
) -> Option<Rejection> {
    let profile = engine.profile;
    let reject = |because: String, fix: Option<String>| {
        Some(Rejection {
            engine: profile,
            because,
            fix,
        })
    };
    let wanted = match asked.isolation {
        Isolation::Auto => None,
        Isolation::Container => Some(Wall::Container),
        Isolation::Vm => Some(Wall::Vm),
    };
    if let Some(wanted) = wanted.filter(|wanted| *wanted != profile.wall) {
        return reject(
            format!("`--isolation {wanted}` was asked for"),
            Some("--isolation auto".to_owned()),
        );
    }
    if profile.rung() < demand.rung {
        return reject(format!("too weak: {}", demand.because), demand.fix.clone());
    }
    if asked.network == Network::Host && profile.own_kernel() {
        return reject(
            "it cannot share the host's network, which `--network host` asks for".to_owned(),
            Some("leave out `--network host`; ports work without a network".to_owned()),
        );
    }
    if let Some(Rule {
        value: Emulation::Refuse,
        file,
    }) = &policy.emulation
        && profile.accelerator == Some(Accelerator::Tcg)
    {
        let file = file.display();
        return reject(
            format!("the policy refuses software emulation (`emulation` in `{file}`)"),
            Some(format!("set `emulation = \"allow\"` in `{file}`")),
        );
    }
    if let Some(obstacle) = engine.obstacle() {
        return reject(
            format!("{}: {}", obstacle.name, obstacle.detail),
            obstacle.fix.clone(),
        );
    }
    if profile.own_kernel() {
        let needed = Bytes(
            asked
                .memory
                .unwrap_or(LEAST_MACHINE)
                .0
                .saturating_add(MACHINE_OVERHEAD.0),
        );
        if needed > host.memory_available {
            let fix = if asked.memory.is_some_and(|memory| memory > LEAST_MACHINE) {
                "ask for less with `--memory`, or stop something: `luna stats` shows who uses memory"
            } else {
                "stop something: `luna stats` shows who uses memory"
            };
            return reject(
                format!(
                    "it needs {needed} of memory and {} of the host's is available",
                    host.memory_available
                ),
                Some(fix.to_owned()),
            );
        }
    }
    None
}

fn refusal(asked: &Asked, demand: &Demand, rejected: &[Rejection]) -> Error {
    let because: Vec<_> = rejected
        .iter()
        .map(|rejection| format!("{}: {}", describe(&rejection.engine), rejection.because))
        .collect();
    let because = if because.is_empty() {
        "this Luna has no engines".to_owned()
    } else {
        because.join("; ")
    };
    // What makes a strong enough wall available comes before what lowers the demand.
    let strong = |rejection: &&Rejection| rejection.engine.rung() >= demand.rung;
    let not_the_flag = |fix: &String| !fix.starts_with("--isolation");
    let hint = rejected
        .iter()
        .filter(strong)
        .filter_map(|rejection| rejection.fix.clone())
        .find(not_the_flag)
        .or_else(|| demand.fix.clone())
        .or_else(|| rejected.iter().find_map(|rejection| rejection.fix.clone()));
    let what = &demand.because;
    let message = match asked.isolation {
        Isolation::Auto => format!("cannot find a wall for this: {what}"),
        Isolation::Container => format!("cannot use the container wall: {what}"),
        Isolation::Vm => format!("cannot use the VM wall: {what}"),
    };
    let error = Error::new(Kind::Refused, message).because(because);
    match hint {
        Some(hint) => error.hint(hint),
        None => error.hint("`luna host` lists every wall, what was tried and what would change it"),
    }
}

#[cfg(test)]
mod tests;
