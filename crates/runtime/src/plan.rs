//! From what was asked and what the image says to a record with nothing left to decide. Pure.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use luna_core::capability::Capabilities;
use luna_core::engine::EngineProfile;
use luna_core::process::{Process, TerminalSize};
use luna_core::spec::{HealthCheck, HealthRequest, Mount, Spec};
use luna_core::{Error, Kind, Result};
use luna_image::{Healthcheck, Image};

use crate::signal;

/// Docker's `PATH` for images that set none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const GRACE: Duration = Duration::from_secs(10);
/// A whole system takes longer to go down than a program.
const SYSTEM_GRACE: Duration = Duration::from_secs(60);

/// The label by which an image asks for nested user namespaces. Asking grants nothing.
const NESTED_LABEL: &str = "dev.luna.request.nested-userns";

/// What an image says about running it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ImageDefaults {
    user: Option<String>,
    env: Vec<String>,
    entrypoint: Vec<String>,
    command: Vec<String>,
    volumes: Vec<String>,
    working_directory: Option<String>,
    labels: BTreeMap<String, String>,
    stop_signal: Option<String>,
    shell: Vec<String>,
    health: Option<Healthcheck>,
}

/// What decides whether an image's request for nested user namespaces is granted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nesting {
    /// Whether this host built the image.
    pub(crate) built_here: bool,
    /// Whether the policy grants it to this image.
    pub(crate) granted: bool,
    /// Whether the policy has it behind this wall.
    pub(crate) allowed: bool,
}

impl ImageDefaults {
    pub(crate) fn of(image: &Image) -> ImageDefaults {
        let config = image.config.config().clone().unwrap_or_default();
        ImageDefaults {
            user: config.user().clone(),
            env: config.env().clone().unwrap_or_default(),
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            command: config.cmd().clone().unwrap_or_default(),
            volumes: config.volumes().clone().unwrap_or_default(),
            working_directory: config.working_dir().clone(),
            labels: image.labels(),
            stop_signal: config.stop_signal().clone(),
            shell: image.extensions.shell.clone().unwrap_or_default(),
            health: image.extensions.healthcheck.clone(),
        }
    }
}

/// The parts of a record that follow from spec and image.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) process: Process,
    pub(crate) keeping: Keeping,
}

/// How a sandbox is kept, whatever runs in it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Keeping {
    pub(crate) stop_signal: u8,
    pub(crate) stop_grace: Duration,
    pub(crate) health: Option<HealthCheck>,
    /// The image's labels under the user's.
    pub(crate) labels: BTreeMap<String, String>,
    /// The user's mounts and the image's anonymous volumes, outer targets before inner ones.
    pub(crate) mounts: Vec<Mount>,
    pub(crate) nested_user_namespaces: bool,
}

/// Decides everything that needs no disk.
pub(crate) fn plan(
    spec: &Spec,
    image: &ImageDefaults,
    nesting: Nesting,
    engine: EngineProfile,
) -> Result<Plan> {
    let mut labels = image.labels.clone();
    let nested_requested = labels.get(NESTED_LABEL).is_some_and(|value| value == "true");
    labels.extend(spec.labels.clone());
    let stop_signal = match spec.stop.signal.as_deref().or(image.stop_signal.as_deref()) {
        Some(text) => signal::parse(text)?,
        None => signal::TERM,
    };
    Ok(Plan {
        process: process(spec, image, engine)?,
        keeping: Keeping {
            stop_signal,
            stop_grace: spec.stop.grace.unwrap_or(GRACE),
            health: health(spec, image)?,
            labels,
            mounts: mounts(spec, image)?,
            nested_user_namespaces: spec.security.nested_user_namespaces
                || (nested_requested && nesting.allowed && (nesting.built_here || nesting.granted)),
        },
    })
}

/// The same for a disk image's own system, in which nothing is Luna's to arrange.
pub(crate) fn system(spec: &Spec) -> Keeping {
    Keeping {
        stop_signal: signal::TERM,
        stop_grace: spec.stop.grace.unwrap_or(SYSTEM_GRACE),
        health: None,
        labels: spec.labels.clone(),
        mounts: Vec::new(),
        nested_user_namespaces: false,
    }
}

fn process(spec: &Spec, image: &ImageDefaults, engine: EngineProfile) -> Result<Process> {
    let program = &spec.program;
    // Docker's rule: a new entrypoint forgets the image's command; a new command keeps the image's entrypoint.
    let (entrypoint, image_command) = match &program.entrypoint {
        Some(entrypoint) => (entrypoint.clone(), Vec::new()),
        None => (image.entrypoint.clone(), image.command.clone()),
    };
    let command = if program.command.is_empty() {
        image_command
    } else {
        program.command.clone()
    };
    let args: Vec<String> = entrypoint.into_iter().chain(command).collect();
    if args.is_empty() {
        return Err(
            Error::new(Kind::InvalidInput, format!("cannot run `{}`", spec.image))
                .because("neither the image nor the command line names a program")
                .hint(format!("name one, for example `luna run -it {} sh`", spec.image)),
        );
    }
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => value.clone_into(old),
        None => env.push((name.to_owned(), value.to_owned())),
    };
    set("PATH", PATH);
    set("container", "luna");
    for line in &image.env {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        set(name, value);
    }
    for (name, value) in &program.env {
        set(name, value);
    }
    set("LUNA_WALL", &engine.wall.to_string());
    if let Some(accelerator) = engine.accelerator {
        set("LUNA_ACCELERATOR", &accelerator.to_string());
    }
    if let Some((name, _)) = env
        .iter()
        .find(|(name, value)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0'))
    {
        return Err(Error::new(
            Kind::InvalidInput,
            format!("cannot set the variable `{}`", name.escape_debug()),
        ));
    }
    let cwd = program
        .workdir
        .as_deref()
        .or(image.working_directory.as_deref())
        .filter(|cwd| !cwd.is_empty())
        .unwrap_or("/");
    Ok(Process {
        args,
        env,
        cwd: absolute(cwd, "working directory")?.to_string_lossy().into_owned(),
        user: program
            .user
            .clone()
            .or_else(|| image.user.clone())
            .unwrap_or_default(),
        groups: program.groups.clone(),
        terminal: program.terminal.then_some(TerminalSize {
            rows: 24,
            columns: 80,
        }),
        stdin: program.stdin,
        capabilities: if spec.security.privileged {
            Capabilities::ALL
        } else {
            Capabilities::requested(&spec.security.cap_add, &spec.security.cap_drop)?
        },
        no_new_privileges: !spec.security.allow_new_privileges && !spec.security.privileged,
        rlimits: spec.resources.rlimits.clone(),
    })
}

fn health(spec: &Spec, image: &ImageDefaults) -> Result<Option<HealthCheck>> {
    let health = match &spec.health {
        HealthRequest::Disabled => return Ok(None),
        HealthRequest::Check(check) => return Ok(Some(check.clone())),
        HealthRequest::FromImage => match &image.health {
            Some(health) if !health.test.is_empty() && health.test[0] != "NONE" => health,
            _ => return Ok(None),
        },
    };
    let Some(command) = health.command(&image.shell) else {
        return Err(Error::new(
            Kind::Corrupt,
            format!("cannot read the health check of `{}`", spec.image),
        )
        .because(format!("`{}` is no test", health.test.join(" ").escape_debug()))
        .hint("run it with `--no-healthcheck`"));
    };
    let (interval, timeout, start_period, retries) = health.timing();
    Ok(Some(HealthCheck {
        command,
        interval,
        timeout,
        start_period,
        retries,
    }))
}

fn mounts(spec: &Spec, image: &ImageDefaults) -> Result<Vec<Mount>> {
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in &spec.mounts {
        let target = absolute(&mount.target().to_string_lossy(), "mount target")?;
        if target == Path::new("/") {
            return Err(
                Error::new(Kind::InvalidInput, "cannot mount over `/`").hint("choose a directory below it")
            );
        }
        if mounts.iter().any(|known| known.target() == target) {
            return Err(Error::new(
                Kind::InvalidInput,
                format!("cannot mount twice at `{}`", target.display()),
            ));
        }
        mounts.push(at(mount, target));
    }
    for target in &image.volumes {
        let target = absolute(target, "volume")?;
        if target != Path::new("/") && !mounts.iter().any(|known| known.target() == target) {
            mounts.push(Mount::Volume {
                name: None,
                target,
                read_only: false,
            });
        }
    }
    mounts.sort_by_key(|mount| mount.target().components().count());
    Ok(mounts)
}

fn at(mount: &Mount, target: PathBuf) -> Mount {
    match mount.clone() {
        Mount::Bind {
            source, read_only, ..
        } => Mount::Bind {
            source,
            target,
            read_only,
        },
        Mount::Volume { name, read_only, .. } => Mount::Volume {
            name,
            target,
            read_only,
        },
        Mount::Tmpfs {
            size,
            mode,
            executable,
            ..
        } => Mount::Tmpfs {
            target,
            size,
            mode,
            executable,
        },
    }
}

/// An absolute path without `.` and `..`; what names them would mean in the sandbox is not ours to guess.
fn absolute(text: &str, what: &str) -> Result<PathBuf> {
    let path = Path::new(text);
    let plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || text.contains('\0') {
        return Err(Error::new(
            Kind::InvalidInput,
            format!("cannot use `{}` as a {what}", text.escape_debug()),
        )
        .because("it must be an absolute path without `..`"));
    }
    Ok(path.components().collect())
}

#[cfg(test)]
mod tests {
    use luna_core::engine::{RootForm, Wall};

    use super::*;

    /// Entrypoint and command as asked, arguments as expected.
    type Row<'a> = (Option<&'a [&'a str]>, &'a [&'a str], &'a [&'a str]);

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    fn image() -> ImageDefaults {
        ImageDefaults {
            command: words(&["c"]),
            ..ImageDefaults::default()
        }
    }

    fn planned(spec: &Spec, image: &ImageDefaults) -> Result<Plan> {
        nesting(spec, image, NONE)
    }

    const NONE: Nesting = Nesting {
        built_here: false,
        granted: false,
        allowed: true,
    };

    fn nesting(spec: &Spec, image: &ImageDefaults, nesting: Nesting) -> Result<Plan> {
        let container = EngineProfile {
            wall: Wall::Container,
            accelerator: None,
            root: RootForm::Tree,
        };
        plan(spec, image, nesting, container)
    }

    #[test]
    fn entrypoint_and_command_merge_as_docker_does() {
        let image = ImageDefaults {
            entrypoint: words(&["e"]),
            ..image()
        };
        let table: [Row<'_>; 5] = [
            (None, &[], &["e", "c"]),
            (None, &["x"], &["e", "x"]),
            (Some(&["n"]), &[], &["n"]),
            (Some(&["n"]), &["x"], &["n", "x"]),
            (Some(&[]), &["x"], &["x"]),
        ];
        for (entrypoint, command, expected) in table {
            let mut spec = Spec::new("i");
            spec.program.entrypoint = entrypoint.map(words);
            spec.program.command = words(command);
            assert_eq!(
                planned(&spec, &image).unwrap().process.args,
                words(expected),
                "{entrypoint:?} {command:?}"
            );
        }
        assert_eq!(
            planned(&Spec::new("i"), &ImageDefaults::default())
                .unwrap_err()
                .kind(),
            Kind::InvalidInput
        );
    }

    #[test]
    fn variables_of_the_user_win_and_the_wall_is_told() {
        let mut spec = Spec::new("i");
        spec.program.env = vec![("A".into(), "user".into()), ("LUNA_WALL".into(), "forged".into())];
        let image = ImageDefaults {
            env: words(&["A=image", "B=2", "PATH=/p"]),
            ..image()
        };
        let env = planned(&spec, &image).unwrap().process.env;
        let get = |name: &str| {
            env.iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.as_str())
        };
        assert_eq!(
            (get("A"), get("B"), get("PATH")),
            (Some("user"), Some("2"), Some("/p"))
        );
        assert_eq!(get("LUNA_WALL"), Some("container"));
        assert_eq!(env.iter().filter(|(name, _)| name == "A").count(), 1);
    }

    #[test]
    fn a_label_asks_and_only_a_flag_the_policy_or_this_host_grants() {
        let mut asking = image();
        asking.labels.insert(NESTED_LABEL.into(), "true".into());
        let built = Nesting {
            built_here: true,
            ..NONE
        };
        let policy = Nesting {
            granted: true,
            ..NONE
        };
        let risky = Nesting {
            built_here: true,
            granted: true,
            allowed: false,
        };
        let mut spec = Spec::new("i");
        let granted = |spec: &Spec, image: &ImageDefaults, given| {
            nesting(spec, image, given)
                .unwrap()
                .keeping
                .nested_user_namespaces
        };
        assert!(!granted(&spec, &asking, NONE));
        assert!(granted(&spec, &asking, built) && granted(&spec, &asking, policy));
        assert!(!granted(&spec, &asking, risky));
        assert!(!granted(&spec, &image(), built) && !granted(&spec, &image(), policy));
        // A label given on the command line is the user's note, not the image's request.
        spec.labels.insert(NESTED_LABEL.into(), "true".into());
        assert!(!granted(&spec, &image(), built));
        // The flag was known when the wall was chosen.
        spec.security.nested_user_namespaces = true;
        assert!(granted(&spec, &image(), NONE) && granted(&spec, &image(), risky));
    }

    #[test]
    fn health_checks_in_dockers_forms() {
        let spec = Spec::new("i");
        let check = |test: &[&str]| {
            let health = Healthcheck {
                test: words(test),
                interval: 1_000_000_000,
                ..Healthcheck::default()
            };
            planned(
                &spec,
                &ImageDefaults {
                    health: Some(health),
                    ..image()
                },
            )
            .map(|plan| plan.keeping.health)
        };
        assert_eq!(check(&["NONE"]).unwrap(), None);
        let shell = check(&["CMD-SHELL", "true"]).unwrap().unwrap();
        assert_eq!(shell.command, ["/bin/sh", "-c", "true"]);
        assert_eq!(
            (shell.interval, shell.timeout, shell.retries),
            (Duration::from_secs(1), Duration::from_secs(30), 3)
        );
        assert!(check(&["WHAT", "true"]).is_err());
    }

    #[test]
    fn mounts_are_checked_and_ordered() {
        let mut spec = Spec::new("i");
        let volume = |target: &str| Mount::Volume {
            name: None,
            target: target.into(),
            read_only: false,
        };
        spec.mounts = vec![volume("/a/b/c"), volume("/a")];
        let plan = planned(
            &spec,
            &ImageDefaults {
                volumes: words(&["/a/b", "/a"]),
                ..image()
            },
        )
        .unwrap();
        let targets: Vec<_> = plan
            .keeping
            .mounts
            .iter()
            .map(|mount| mount.target().to_owned())
            .collect();
        assert_eq!(targets, [Path::new("/a"), Path::new("/a/b"), Path::new("/a/b/c")]);
        for bad in ["relative", "/", "/a/../b"] {
            spec.mounts = vec![volume(bad)];
            assert!(planned(&spec, &image()).is_err(), "{bad}");
        }
    }
}
