//! Limits.

use luna_core::process::{Rlimit, RlimitKind};
use luna_core::spec::{PidsLimit, Resources, SwapLimit};
use luna_core::units::Bytes;
use luna_core::{Error, Kind, Result};

use crate::cli::run::LimitFlags;

/// The limits the flags name; all others are absent.
pub(crate) fn limits(flags: &LimitFlags) -> Result<Resources> {
    let mut resources = Resources::default();
    change(&mut resources, flags)?;
    Ok(resources)
}

/// Sets the limits the flags name and leaves the others.
pub(crate) fn change(resources: &mut Resources, flags: &LimitFlags) -> Result<()> {
    if let Some(text) = &flags.memory {
        resources.memory = limited(text.parse()?);
    }
    if let Some(text) = &flags.memory_swap {
        resources.memory_swap = Some(if text == "-1" {
            SwapLimit::Unlimited
        } else {
            SwapLimit::Total(text.parse()?)
        });
    }
    if let Some(SwapLimit::Total(total)) = resources.memory_swap {
        let Some(memory) = resources.memory else {
            return Err(
                Error::new(Kind::InvalidInput, "cannot limit swap without limiting memory")
                    .hint("give `--memory` too"),
            );
        };
        if total < memory {
            return Err(
                Error::new(Kind::InvalidInput, "cannot set `--memory-swap` below `--memory`")
                    .because("it counts memory and swap together"),
            );
        }
    }
    if let Some(text) = &flags.cpus {
        resources.cpus = Some(text.parse()?);
    }
    if let Some(list) = &flags.cpuset_cpus {
        check_cpus(list)?;
        resources.cpuset = Some(list.clone());
    }
    match flags.pids_limit {
        None => {}
        Some(-1) => resources.pids = Some(PidsLimit::Unlimited),
        Some(count) => {
            let count = u32::try_from(count)
                .ok()
                .filter(|count| *count > 0)
                .ok_or_else(|| {
                    Error::new(Kind::InvalidInput, format!("cannot limit processes to {count}"))
                        .hint("give a number from 1, or -1 for no limit")
                })?;
            resources.pids = Some(PidsLimit::At(count));
        }
    }
    if let Some(weight) = flags.blkio_weight {
        if !(10..=1000).contains(&weight) {
            return Err(Error::new(
                Kind::InvalidInput,
                format!("cannot use {weight} as a share of block I/O"),
            )
            .because("it lies between 10 and 1000"));
        }
        resources.blkio_weight = Some(weight);
    }
    Ok(())
}

/// Docker's 0 is no limit.
fn limited(memory: Bytes) -> Option<Bytes> {
    (memory.0 > 0).then_some(memory)
}

/// `0-2,4`.
fn check_cpus(list: &str) -> Result<()> {
    let part = |part: &str| match part.split_once('-') {
        None => part.parse::<u16>().is_ok(),
        Some((first, last)) => match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => first <= last,
            _ => false,
        },
    };
    if list.split(',').all(part) {
        return Ok(());
    }
    Err(Error::new(
        Kind::InvalidInput,
        format!("cannot read `{}` as a list of CPUs", list.escape_debug()),
    )
    .hint("write for example `0-2,4`"))
}

/// `--ulimit name=soft[:hard]`, -1 being unlimited.
pub(super) fn rlimits(texts: &[String]) -> Result<Vec<Rlimit>> {
    texts.iter().map(|text| rlimit(text)).collect()
}

fn rlimit(text: &str) -> Result<Rlimit> {
    let invalid = |because: &str| {
        Error::new(
            Kind::InvalidInput,
            format!("cannot read the limit `{}`", text.escape_debug()),
        )
        .because(because.to_owned())
        .hint("write for example `--ulimit nofile=1024:4096`")
    };
    let (name, values) = text.split_once('=').ok_or_else(|| invalid("it has no value"))?;
    let resource = match name {
        "core" => RlimitKind::Core,
        "cpu" => RlimitKind::Cpu,
        "data" => RlimitKind::Data,
        "fsize" => RlimitKind::Fsize,
        "locks" => RlimitKind::Locks,
        "memlock" => RlimitKind::Memlock,
        "msgqueue" => RlimitKind::Msgqueue,
        "nice" => RlimitKind::Nice,
        "nofile" => RlimitKind::Nofile,
        "nproc" => RlimitKind::Nproc,
        "rss" => RlimitKind::Rss,
        "rtprio" => RlimitKind::Rtprio,
        "rttime" => RlimitKind::Rttime,
        "sigpending" => RlimitKind::Sigpending,
        "stack" => RlimitKind::Stack,
        _ => return Err(invalid("there is no resource of that name")),
    };
    let value = |text: &str| match text {
        "-1" | "unlimited" => Ok(Rlimit::UNLIMITED),
        _ => text
            .parse::<u64>()
            .map_err(|_| invalid("a limit is a number, or -1 for none")),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (value(soft)?, value(hard)?);
    if soft > hard {
        return Err(invalid("the soft limit is above the hard one"));
    }
    Ok(Rlimit { resource, soft, hard })
}
