//! What the wall needs of the host, found out by building one: a jail with everything but a program in it, and one cgroup
//! for each limit. Nothing is left behind.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Instant;

use luna_core::host::{Check, Outcome};
use luna_core::spec::PidsLimit;
use luna_core::units::{Bytes, MilliCpus};
use luna_core::{Error, Result};
use rustix::fs::Access;

use crate::cgroup::Cgroups;
use crate::jailed::Process;
use crate::launch;
use crate::plan::{Inherited, Plan};
use crate::spec::{Defences, Ids, Limits, Network, Program, Root, SecurityLabels, Spec};
use crate::step::Step;
use crate::{ids, landlock, sealed, seccomp, sys};

/// Ids that no sandbox and no user has: only the probe's own files could belong to them.
const PROBE_IDS: Ids = Ids {
    base: 2_000_000_000,
    count: 65_536,
};

/// Each thing the wall needs, tried. In the order a jail needs them: after the first that is missing the rest of the
/// wall cannot be tried and is left out.
pub fn probe() -> Vec<Check> {
    let mut checks = Vec::new();
    build_wall(&mut checks);
    landlock_scopes(&mut checks);
    for (name, limits) in [
        (
            "cgroup memory limit",
            Limits {
                memory: Some(Bytes::mebibytes(64)),
                ..Limits::default()
            },
        ),
        (
            "cgroup CPU limit",
            Limits {
                cpus: Some(MilliCpus(500)),
                ..Limits::default()
            },
        ),
        (
            "cgroup process limit",
            Limits {
                pids: Some(PidsLimit::At(64)),
                ..Limits::default()
            },
        ),
    ] {
        let begin = Instant::now();
        // Dropped at once, which removes it.
        let made = Cgroups::create(&format!("probe-{}", std::process::id()), &limits, None).map(drop);
        checks.push(told(
            name,
            begin,
            made.map(|()| "made and removed".to_owned()),
            Outcome::Absent,
        ));
    }
    checks
}

fn build_wall(checks: &mut Vec<Check>) {
    let begin = Instant::now();
    let scratch = match Scratch::new() {
        Ok(scratch) => scratch,
        Err(error) => return checks.push(told("scratch directory", begin, Err(error), Outcome::Missing)),
    };
    let parts = scratch
        .spec()
        .and_then(|spec| Ok((wall_without_program(&spec)?, launch::status_sockets()?, spec)));
    let (plan, (ours, theirs), spec) = match parts {
        Ok(parts) => parts,
        Err(error) => return checks.push(told("probe", begin, Err(error), Outcome::Missing)),
    };
    let mut step = |name, begin, result: Result<String>| {
        let failed = result.is_err();
        checks.push(told(name, begin, result, Outcome::Missing));
        failed
    };

    let begin = Instant::now();
    let body = || crate::child::run(&plan.steps, theirs.as_raw_fd(), ours.as_raw_fd());
    let spawned = sys::spawn(launch::clone_flags(&spec), None, &body);
    let process = match spawned {
        Ok((pid, pidfd)) => Process::new(pid, pidfd),
        Err(error) => {
            step("namespaces", begin, Err(launch::namespaces_refused(error)));
            return;
        }
    };
    drop(theirs);
    step(
        "namespaces",
        begin,
        Ok("user, mount, pid, network, ipc, uts".to_owned()),
    );

    let begin = Instant::now();
    let namespace = launch::map_ids(&spec, &process);
    let mapped = namespace
        .as_ref()
        .map(|_| format!("{} ids", spec.ids.count))
        .map_err(copy);
    if step("id mapping", begin, mapped) {
        return;
    }
    let Ok(namespace) = namespace else { return };

    let begin = Instant::now();
    let mounts = launch::make_mounts(&spec, &plan, namespace.as_ref());
    let way = if ids::inside_user_namespace() {
        "user attributes"
    } else {
        "layers mapped to its ids"
    };
    if step(
        "overlay root",
        begin,
        mounts.as_ref().map(|_| way.to_owned()).map_err(copy),
    ) {
        return;
    }
    let Ok(mounts) = mounts else { return };

    let begin = Instant::now();
    let built = launch::send(&ours, &mounts).and_then(|()| launch::await_program(&ours, &plan, &process));
    step(
        "mounts and confinement",
        begin,
        built.map(|()| "pivot_root, capabilities, seccomp".to_owned()),
    );
}

fn landlock_scopes(checks: &mut Vec<Check>) {
    let begin = Instant::now();
    let (outcome, detail) = match sys::landlock_version() {
        Ok(version) if version >= landlock::SCOPES_SINCE => (Outcome::Works, format!("version {version}")),
        Ok(version) => (
            Outcome::Absent,
            format!("version {version} has no scopes: Linux 6.12 brings them"),
        ),
        Err(error) => (Outcome::Absent, format!("the kernel has none ({error})")),
    };
    checks.push(Check {
        name: "Landlock scopes".to_owned(),
        outcome,
        detail,
        fix: None,
        took: begin.elapsed(),
    });
}

fn told(name: &str, begin: Instant, result: Result<String>, otherwise: Outcome) -> Check {
    let (outcome, detail, fix) = match result {
        Ok(detail) => (Outcome::Works, detail, None),
        Err(error) => {
            let mut causes = vec![error.message().to_owned()];
            causes.extend(error.causes());
            (otherwise, causes.join(": "), error.hint_text().map(str::to_owned))
        }
    };
    Check {
        name: name.to_owned(),
        outcome,
        detail,
        fix,
        took: begin.elapsed(),
    }
}

fn copy(error: &Error) -> Error {
    error.report().into()
}

/// The whole list of steps, but at the end the child says that it got there instead of running a program.
fn wall_without_program(spec: &Spec) -> Result<Plan> {
    let inherited = Inherited {
        cgroups: Vec::new(),
        seccomp: seccomp::program(&spec.defences.seccomp, spec.defences.capabilities),
        landlock: None,
    };
    let mut plan = Plan::new(spec, &inherited)?;
    plan.steps.pop();
    plan.steps.push(Step::Stop);
    Ok(plan)
}

/// Three empty directories for an overlay, removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        // `/tmp` may be a tmpfs where `/var`, which holds the layers, is on disk, and not every kernel maps ids on both.
        let place = match std::env::var_os("TMPDIR") {
            None if rustix::fs::access("/var/tmp", Access::WRITE_OK).is_ok() => PathBuf::from("/var/tmp"),
            _ => std::env::temp_dir(),
        };
        let path = place.join(format!("luna-probe-{}", std::process::id()));
        let cannot = |error: std::io::Error| Error::io(format!("cannot make `{}`", path.display()), error);
        // Fails if it is there, so nobody else's directory is ever used, or removed.
        std::fs::create_dir(&path).map_err(cannot)?;
        let scratch = Scratch(path.clone());
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir(scratch.0.join(name)).map_err(cannot)?;
        }
        Ok(scratch)
    }

    fn spec(&self) -> Result<Spec> {
        let base = if ids::inside_user_namespace() {
            0
        } else {
            PROBE_IDS.base
        };
        Ok(Spec {
            name: "probe".into(),
            program: Program {
                executable: sealed::sealed_bytes(&[])?,
                arguments: Vec::new(),
                environment: Vec::new(),
                stdio: [None, None, None],
                descriptors: Vec::new(),
            },
            ids: Ids { base, ..PROBE_IDS },
            root: Root::Overlay {
                lower: vec![self.0.join("lower")],
                upper: self.0.join("upper"),
                work: self.0.join("work"),
                read_only: false,
            },
            hostname: "probe".into(),
            files: Vec::new(),
            mounts: Vec::new(),
            shared_memory: Bytes::mebibytes(1),
            network: Network::Own,
            limits: Limits::default(),
            rlimits: Vec::new(),
            security_labels: SecurityLabels::default(),
            defences: Defences::default(),
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // There is nobody to tell; the system cleans its temporary directory sooner or later.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
