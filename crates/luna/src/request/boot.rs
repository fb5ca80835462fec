//! `--boot`: a disk image in an image's place. What only a program of Luna's own could be given is refused by name.

use std::path::Path;

use luna_core::spec::{BootRequest, Firmware};
use luna_core::{Error, Kind, Result};

use crate::cli::run::SandboxFlags;

/// The disk to boot, if one is asked for and nothing that contradicts it.
pub(super) fn boot(flags: &SandboxFlags) -> Result<Option<BootRequest>> {
    let Some(disk) = &flags.boot else {
        return match flags.firmware {
            None => Ok(None),
            Some(_) => Err(
                Error::new(Kind::InvalidInput, "cannot use `--firmware` without `--boot`")
                    .because("an image's sandbox is started without firmware"),
            ),
        };
    };
    if let Some(word) = flags.words.first() {
        return Err(Error::new(
            Kind::InvalidInput,
            format!(
                "cannot run `{}` in a disk image's own system",
                word.escape_debug()
            ),
        )
        .because("`--boot` takes no image and no program: the system in the disk starts its own")
        .hint(format!("leave it out: `luna run --boot {}`", disk.display())));
    }
    if let Some(flag) = meaningless(flags) {
        return Err(
            Error::new(Kind::InvalidInput, format!("cannot use `{flag}` with `--boot`"))
                .because("there is no init of Luna's in a disk image's own system to see to it")
                .hint("set it up in the system itself: `-it` is its console, `-p` reaches what it serves"),
        );
    }
    Ok(Some(BootRequest {
        disk: absolute(disk)?,
        firmware: flags.firmware.map_or_else(Firmware::default, Into::into),
    }))
}

/// The links of its name are followed once: a restart boots what was meant.
fn absolute(disk: &Path) -> Result<std::path::PathBuf> {
    std::fs::canonicalize(disk)
        .map_err(|e| Error::io(format!("cannot open the disk `{}`", disk.display()), e))
}

/// The first flag that init, the container wall or Luna's own kernel would have to act on.
fn meaningless(flags: &SandboxFlags) -> Option<&'static str> {
    let limits = &flags.limits;
    let health = &flags.health;
    let given = [
        (!flags.env.is_empty(), "--env"),
        (!flags.env_file.is_empty(), "--env-file"),
        (flags.workdir.is_some(), "--workdir"),
        (flags.user.is_some(), "--user"),
        (!flags.group_add.is_empty(), "--group-add"),
        (flags.entrypoint.is_some(), "--entrypoint"),
        (flags.init, "--init"),
        (!flags.cap_add.is_empty(), "--cap-add"),
        (!flags.cap_drop.is_empty(), "--cap-drop"),
        (flags.privileged, "--privileged"),
        (!flags.security_opt.is_empty(), "--security-opt"),
        (!flags.device.is_empty(), "--device"),
        (!flags.volume.is_empty(), "--volume"),
        (!flags.mount.is_empty(), "--mount"),
        (!flags.tmpfs.is_empty(), "--tmpfs"),
        (flags.read_only, "--read-only"),
        (flags.network != "none", "--network"),
        (flags.hostname.is_some(), "--hostname"),
        (!flags.dns.is_empty(), "--dns"),
        (!flags.add_host.is_empty(), "--add-host"),
        (flags.kernel.is_some(), "--kernel"),
        (flags.shm_size.is_some(), "--shm-size"),
        (!flags.ulimit.is_empty(), "--ulimit"),
        (limits.memory_swap.is_some(), "--memory-swap"),
        (limits.pids_limit.is_some(), "--pids-limit"),
        (flags.stop_signal.is_some(), "--stop-signal"),
        (health.health_cmd.is_some(), "--health-cmd"),
        (health.health_interval.is_some(), "--health-interval"),
        (health.health_timeout.is_some(), "--health-timeout"),
        (health.health_start_period.is_some(), "--health-start-period"),
        (health.health_retries.is_some(), "--health-retries"),
    ];
    given.into_iter().find_map(|(given, flag)| given.then_some(flag))
}
