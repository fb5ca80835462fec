//! Which stages a build needs, in which order, and what each starts from. Pure: names of images are found here, the
//! images themselves are not asked for.

use std::collections::{BTreeMap, BTreeSet};

use super::dockerfile::{Action, Dockerfile, Flaw, RunNetwork, Stage};
use super::expand;
use super::flags::StepMount;
use crate::{Platform, Reference};
use luna_core::spec::Network;

/// Arguments that need no ARG (Dockerfile reference, "Predefined ARGs"); they never reach history or cache keys.
pub(crate) const PREDEFINED: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// What a build does, with every name resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Indexes into the Dockerfile's stages with what each starts from; in order, the target last.
    pub(crate) stages: Vec<(usize, Base, Platform)>,
    /// ARGs before the first FROM, expanded; `None` without a value.
    pub(crate) globals: BTreeMap<String, Option<String>>,
    /// For people: arguments that no ARG takes.
    pub(crate) unused: Vec<String>,
}

/// Where a stage begins, or where COPY and mounts take files from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Base {
    Scratch,
    Stage(usize),
    Image(Reference),
}

/// What the user chose, as far as planning needs it.
pub(crate) struct Choices<'a> {
    pub(crate) arguments: &'a BTreeMap<String, String>,
    pub(crate) target: Option<&'a str>,
    pub(crate) platform: &'a Platform,
    pub(crate) network: Network,
}

pub(crate) fn plan(dockerfile: &Dockerfile, choices: &Choices<'_>) -> Result<Plan, Flaw> {
    let automatic = platform_arguments(choices.platform);
    let mut globals: BTreeMap<String, Option<String>> = BTreeMap::new();
    for declaration in &dockerfile.arguments {
        let lookup = |name: &str| {
            globals
                .get(name)
                .cloned()
                .flatten()
                .or_else(|| automatic.get(name).cloned())
        };
        let default = match &declaration.default {
            Some(default) => Some(
                expand::word(default, dockerfile.escape, &lookup)
                    .map_err(|why| Flaw::new(declaration.line, why))?,
            ),
            None => None,
        };
        let value = choices.arguments.get(&declaration.name).cloned().or(default);
        let value = value.or_else(|| automatic.get(&declaration.name).cloned());
        globals.insert(declaration.name.clone(), value);
    }
    let lookup = |name: &str| {
        globals
            .get(name)
            .cloned()
            .flatten()
            .or_else(|| automatic.get(name).cloned())
    };
    let mut bases = Vec::new();
    for (index, stage) in dockerfile.stages.iter().enumerate() {
        let expand = |text: &str| {
            expand::word(text, dockerfile.escape, &lookup).map_err(|why| Flaw::new(stage.line, why))
        };
        let image = expand(&stage.image)?;
        if image.is_empty() {
            return Err(Flaw::new(
                stage.line,
                format!("`{}` expands to nothing", stage.image.escape_debug()),
            )
            .hint("give its ARG a default, or pass it with `--build-arg`"));
        }
        let platform = match stage.platform.as_deref().map(expand).transpose()? {
            Some(text) if !text.is_empty() => text
                .parse()
                .map_err(|error: luna_core::Error| Flaw::new(stage.line, error.message().to_owned()))?,
            _ => choices.platform.clone(),
        };
        let base = if image == "scratch" {
            Base::Scratch
        } else if let Some(earlier) = named(&dockerfile.stages[..index], &image) {
            Base::Stage(earlier)
        } else {
            Base::Image(reference(&image, stage.line)?)
        };
        bases.push((base, platform));
    }
    check_network(dockerfile, choices.network)?;
    let sources = (0..dockerfile.stages.len())
        .map(|index| sources(dockerfile, index))
        .collect::<Result<Vec<_>, Flaw>>()?;
    let target = target(dockerfile, choices.target)?;
    let mut needed = BTreeSet::new();
    let mut todo = vec![target];
    while let Some(index) = todo.pop() {
        if !needed.insert(index) {
            continue;
        }
        if let Base::Stage(base) = bases[index].0 {
            todo.push(base);
        }
        for (base, _) in &sources[index] {
            if let Base::Stage(source) = base {
                todo.push(*source);
            }
        }
    }
    let declared: BTreeSet<&str> = dockerfile
        .stages
        .iter()
        .flat_map(|stage| &stage.instructions)
        .filter_map(|instruction| match &instruction.action {
            Action::Arg(declarations) => Some(declarations),
            _ => None,
        })
        .flatten()
        .chain(&dockerfile.arguments)
        .map(|declaration| declaration.name.as_str())
        .collect();
    let unused = choices.arguments.keys().filter(|name| {
        !declared.contains(name.as_str())
            && !PREDEFINED.contains(&name.as_str())
            && *name != "SOURCE_DATE_EPOCH"
    });
    Ok(Plan {
        stages: needed
            .iter()
            .map(|index| (*index, bases[*index].0.clone(), bases[*index].1.clone()))
            .collect(),
        unused: unused.cloned().collect(),
        globals,
    })
}

/// The places that COPY and RUN of a stage take files from, each with its line.
pub(crate) fn sources(dockerfile: &Dockerfile, index: usize) -> Result<Vec<(Base, usize)>, Flaw> {
    let mut sources = Vec::new();
    for instruction in &dockerfile.stages[index].instructions {
        let line = instruction.line;
        match &instruction.action {
            Action::Copy(copy) => {
                if let Some(from) = &copy.from {
                    sources.push((source(dockerfile, index, from, line)?, line));
                }
            }
            Action::Run(run) => {
                for mount in &run.mounts {
                    if let Some(from) = mount_source(mount) {
                        sources.push((source(dockerfile, index, &from, line)?, line));
                    }
                }
            }
            _ => {}
        }
    }
    Ok(sources)
}

/// What `--from=NAME` in stage `index` means: an earlier stage by name or number, or an image.
pub(crate) fn source(dockerfile: &Dockerfile, index: usize, name: &str, line: usize) -> Result<Base, Flaw> {
    if let Some(stage) = named(&dockerfile.stages[..index], name) {
        return Ok(Base::Stage(stage));
    }
    if let Ok(number) = name.parse::<usize>() {
        return if number < index {
            Ok(Base::Stage(number))
        } else {
            Err(Flaw::new(
                line,
                format!("there is no stage {number} before this one"),
            ))
        };
    }
    if named(&dockerfile.stages[index..], name).is_some() {
        return Err(Flaw::new(
            line,
            format!(
                "the stage `{}` does not come before this one",
                name.escape_debug()
            ),
        ));
    }
    Ok(Base::Image(reference(name, line)?))
}

/// The `from` of a bind mount, which may hold variables elsewhere but not there.
fn mount_source(mount: &str) -> Option<String> {
    match StepMount::parse(mount) {
        Ok(StepMount::Bind { from, .. }) => from,
        Ok(_) => None,
        Err(_) => mount
            .split(',')
            .find_map(|field| field.trim().strip_prefix("from="))
            .map(str::to_owned),
    }
}

fn named(stages: &[Stage], name: &str) -> Option<usize> {
    stages.iter().rposition(|stage| {
        stage
            .name
            .as_deref()
            .is_some_and(|known| known.eq_ignore_ascii_case(name))
    })
}

fn reference(text: &str, line: usize) -> Result<Reference, Flaw> {
    text.parse()
        .map_err(|error: luna_core::Error| Flaw::new(line, error.message().to_owned()))
}

fn target(dockerfile: &Dockerfile, target: Option<&str>) -> Result<usize, Flaw> {
    let last = dockerfile.stages.len() - 1;
    let Some(target) = target else {
        return Ok(last);
    };
    named(&dockerfile.stages, target)
        .or_else(|| target.parse().ok().filter(|number| *number <= last))
        .ok_or_else(|| {
            let names: Vec<&str> = dockerfile
                .stages
                .iter()
                .filter_map(|stage| stage.name.as_deref())
                .collect();
            let flaw = Flaw::new(0, format!("it has no stage `{}`", target.escape_debug()));
            if names.is_empty() {
                flaw
            } else {
                flaw.hint(format!("its stages are {}", names.join(", ")))
            }
        })
}

/// A Dockerfile cannot give itself the host's network: the user has to.
fn check_network(dockerfile: &Dockerfile, network: Network) -> Result<(), Flaw> {
    if network == Network::Host {
        return Ok(());
    }
    for instruction in dockerfile.stages.iter().flat_map(|stage| &stage.instructions) {
        if let Action::Run(run) = &instruction.action
            && run.network == RunNetwork::Host
        {
            return Err(Flaw::new(
                instruction.line,
                "it asks for the host's network, which this build was not given",
            )
            .hint("allow it with `--network host`"));
        }
    }
    Ok(())
}

/// TARGETPLATFORM and its parts, and the same for BUILD: this host.
pub(crate) fn platform_arguments(target: &Platform) -> BTreeMap<String, String> {
    let mut arguments = BTreeMap::new();
    for (prefix, platform) in [("TARGET", target), ("BUILD", &Platform::host())] {
        let variant = platform.variant.clone().unwrap_or_default();
        arguments.insert(format!("{prefix}PLATFORM"), platform.to_string());
        arguments.insert(format!("{prefix}OS"), platform.os.clone());
        arguments.insert(format!("{prefix}ARCH"), platform.architecture.clone());
        arguments.insert(format!("{prefix}VARIANT"), variant);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::*;

    fn planned(text: &str, arguments: &[(&str, &str)], target: Option<&str>) -> Result<Plan, Flaw> {
        let arguments = arguments
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect();
        let platform = "linux/arm64".parse().unwrap();
        let choices = Choices {
            arguments: &arguments,
            target,
            platform: &platform,
            network: Network::None,
        };
        plan(&parse(text.as_bytes()).unwrap(), &choices)
    }

    fn indexes(plan: &Plan) -> Vec<usize> {
        plan.stages.iter().map(|(index, ..)| *index).collect()
    }

    #[test]
    fn only_needed_stages_are_planned() {
        let text = "FROM a AS one\nFROM b AS two\nFROM scratch AS three\nCOPY --from=ONE x y\nFROM three\nRUN --mount=type=bind,from=1,target=/m x\n";
        assert_eq!(indexes(&planned(text, &[], None).unwrap()), [0, 1, 2, 3]);
        let three = planned(text, &[], Some("Three")).unwrap();
        assert_eq!(indexes(&three), [0, 2]);
        assert_eq!(three.stages[1].1, Base::Scratch);
        assert!(planned(text, &[], Some("four")).is_err());
        assert_eq!(indexes(&planned(text, &[], Some("1")).unwrap()), [1]);
    }

    #[test]
    fn arguments_reach_from() {
        let text = "ARG V=12\nARG IMAGE=debian:$V-slim\nFROM --platform=linux/${TARGETARCH} $IMAGE AS x\n";
        let default = planned(text, &[], None).unwrap();
        assert_eq!(
            default.stages[0].1,
            Base::Image("debian:12-slim".parse().unwrap())
        );
        assert_eq!(default.stages[0].2.architecture, "arm64");
        let other = planned(text, &[("V", "13"), ("NOPE", "1"), ("http_proxy", "x")], None).unwrap();
        assert_eq!(other.stages[0].1, Base::Image("debian:13-slim".parse().unwrap()));
        assert_eq!(other.unused, ["NOPE"]);
        assert!(planned("ARG A\nFROM $A\n", &[], None).is_err());
    }

    #[test]
    fn names_that_lead_nowhere_are_flaws() {
        for text in [
            "FROM a\nCOPY --from=1 x y\n",
            "FROM a\nCOPY --from=later x y\nFROM b AS later\n",
            "FROM a AS me\nCOPY --from=me x y\n",
            "FROM a:b:c\n",
            "FROM a\nRUN --network=host x\n",
        ] {
            assert!(planned(text, &[], None).is_err(), "{text}");
        }
    }
}
