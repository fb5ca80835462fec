//! From flags to a [`Spec`]: everything that can be wrong with a command line is found here, before anything happens.

mod boot;
mod env;
mod health;
mod limits;
mod mounts;
mod security;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use luna_core::spec::{LogLimits, Network, PortMapping, RestartPolicy, Spec, Stop, WallRequest};
use luna_core::{Error, Kind, Result};
use luna_runtime::{parse_port, signal};

use crate::cli::run::SandboxFlags;

pub(crate) use env::variables;
pub(crate) use limits::{change, limits};

/// What `run`, `create` and `explain` ask for.
pub(crate) fn spec(flags: &SandboxFlags, remove: bool) -> Result<Spec> {
    // Only `explain` may leave the image out: it plays no part in the choice.
    let (image, command) = flags
        .words
        .split_first()
        .map_or(("", &[][..]), |(image, rest)| (image.as_str(), rest));
    if flags.publish_all {
        return Err(Error::new(Kind::Unsupported, "cannot map all ports of an image")
            .hint("name the ports: `--publish 8080:80`"));
    }
    let boot = boot::boot(flags)?;
    let image = match &boot {
        Some(boot) => boot.disk.to_string_lossy().into_owned(),
        None => image.to_owned(),
    };
    let mut spec = Spec::new(image);
    spec.boot = boot;
    spec.name = flags.name.as_deref().map(str::parse).transpose()?;
    spec.wall = WallRequest {
        isolation: flags.isolation.into(),
        require: flags.require.map(Into::into),
    };
    spec.program.command = command.to_vec();
    spec.program.entrypoint = flags.entrypoint.as_ref().map(|program| {
        if program.is_empty() {
            Vec::new()
        } else {
            vec![program.clone()]
        }
    });
    spec.program.env = variables(&flags.env_file, &flags.env)?;
    spec.program.workdir.clone_from(&flags.workdir);
    spec.program.user.clone_from(&flags.user);
    spec.program.groups.clone_from(&flags.group_add);
    spec.program.terminal = flags.tty;
    spec.program.stdin = flags.interactive;
    spec.hostname = flags.hostname.as_deref().map(hostname).transpose()?;
    spec.labels = labels(&flags.label)?;
    spec.resources = limits(&flags.limits)?;
    spec.resources.shm = flags.shm_size.as_deref().map(str::parse).transpose()?;
    spec.machine.kernel.clone_from(&flags.kernel);
    spec.machine.disk = flags.disk.as_deref().map(str::parse).transpose()?;
    spec.resources.rlimits = limits::rlimits(&flags.ulimit)?;
    spec.mounts = mounts::mounts(&flags.volume, &flags.mount, &flags.tmpfs)?;
    spec.read_only = flags.read_only;
    spec.network = network(&flags.network)?;
    spec.ports = ports(&flags.publish, spec.network)?;
    spec.extra_hosts = flags
        .add_host
        .iter()
        .map(|text| extra_host(text))
        .collect::<Result<_>>()?;
    spec.dns = flags
        .dns
        .iter()
        .map(|text| address(text, "name server"))
        .collect::<Result<_>>()?;
    spec.security = security::security(flags)?;
    spec.restart = restart(&flags.restart)?;
    spec.health = health::health(&flags.health)?;
    spec.stop = Stop {
        signal: flags.stop_signal.as_deref().map(checked_signal).transpose()?,
        grace: flags.stop_timeout.map(Duration::from_secs),
    };
    spec.log = log_limits(&flags.log_opt)?;
    spec.remove = remove;
    if remove && spec.restart != RestartPolicy::No {
        return Err(
            Error::new(Kind::InvalidInput, "cannot use `--rm` and `--restart` together")
                .because("a sandbox that is removed when it ends cannot be started again")
                .hint("leave one of them out"),
        );
    }
    Ok(spec)
}

/// `--network`.
pub(crate) fn network(text: &str) -> Result<Network> {
    match text {
        "none" => Ok(Network::None),
        "host" => Ok(Network::Host),
        _ => Err(Error::new(
            Kind::NotFound,
            format!("cannot find a network `{}`", text.escape_debug()),
        )
        .because("this Luna has `none` and `host`")
        .hint("ports work without a network too: `--network none --publish 8080:80`")),
    }
}

fn ports(texts: &[String], network: Network) -> Result<Vec<PortMapping>> {
    let mut ports: Vec<PortMapping> = Vec::new();
    for text in texts {
        ports.extend(parse_port(text)?);
    }
    if network == Network::Host && !ports.is_empty() {
        return Err(
            Error::new(Kind::InvalidInput, "cannot map ports in the host's own network")
                .because("the program's ports are the host's already")
                .hint("leave out `--publish`, or `--network host`"),
        );
    }
    for (index, port) in ports.iter().enumerate() {
        if port.host != 0
            && ports[..index]
                .iter()
                .any(|other| (other.address, other.host) == (port.address, port.host))
        {
            return Err(Error::new(
                Kind::InvalidInput,
                format!("cannot map `{}:{}` twice", port.address, port.host),
            ));
        }
    }
    Ok(ports)
}

fn address(text: &str, what: &str) -> Result<IpAddr> {
    text.trim_matches(['[', ']']).parse().map_err(|_| {
        Error::new(
            Kind::InvalidInput,
            format!("cannot read `{}` as a {what}", text.escape_debug()),
        )
        .because("it must be an IP address")
    })
}

fn extra_host(text: &str) -> Result<(String, IpAddr)> {
    let (name, rest) = text.split_once(['=', ':']).ok_or_else(|| {
        Error::new(
            Kind::InvalidInput,
            format!("cannot read the host `{}`", text.escape_debug()),
        )
        .hint("write `name:address`, for example `--add-host db:10.0.0.5`")
    })?;
    Ok((hostname(name)?, address(rest, "host's address")?))
}

/// RFC 1123, with the underscore that people use anyway.
fn hostname(text: &str) -> Result<String> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if text.len() <= 64 && text.split('.').all(label) {
        return Ok(text.to_owned());
    }
    Err(Error::new(
        Kind::InvalidInput,
        format!("cannot use `{}` as a hostname", text.escape_debug()),
    )
    .because("it is 1 to 64 letters, digits, dashes and dots"))
}

/// `NAME=VALUE` or `NAME`, the last of one name winning.
pub(crate) fn labels(texts: &[String]) -> Result<BTreeMap<String, String>> {
    texts
        .iter()
        .map(|text| match text.split_once('=').unwrap_or((text, "")) {
            ("", _) => Err(Error::new(
                Kind::InvalidInput,
                format!("cannot read the label `{}`", text.escape_debug()),
            )
            .hint("write `--label name=value`")),
            (name, value) => Ok((name.to_owned(), value.to_owned())),
        })
        .collect()
}

/// `--restart`.
pub(crate) fn restart(text: &str) -> Result<RestartPolicy> {
    let invalid = || {
        Error::new(
            Kind::InvalidInput,
            format!("cannot read the restart policy `{}`", text.escape_debug()),
        )
        .hint("write `no`, `on-failure`, `on-failure:5`, `always` or `unless-stopped`")
    };
    match text.split_once(':') {
        None => match text {
            "no" => Ok(RestartPolicy::No),
            "on-failure" => Ok(RestartPolicy::OnFailure(0)),
            "always" => Ok(RestartPolicy::Always),
            "unless-stopped" => Ok(RestartPolicy::UnlessStopped),
            _ => Err(invalid()),
        },
        Some(("on-failure", times)) => times.parse().map(RestartPolicy::OnFailure).map_err(|_| invalid()),
        Some(_) => Err(invalid()),
    }
}

fn checked_signal(text: &str) -> Result<String> {
    signal::parse(text)?;
    Ok(text.to_owned())
}

fn log_limits(options: &[String]) -> Result<LogLimits> {
    let mut limits = LogLimits::default();
    for option in options {
        let invalid = || {
            Error::new(
                Kind::InvalidInput,
                format!("cannot read the log option `{}`", option.escape_debug()),
            )
            .hint("write `max-size=10m` or `max-file=3`")
        };
        match option.split_once('=').ok_or_else(invalid)? {
            ("max-size", size) => limits.size = size.parse()?,
            ("max-file", files) => {
                limits.files = files
                    .parse()
                    .ok()
                    .filter(|files| (1..=1000).contains(files))
                    .ok_or_else(invalid)?;
            }
            _ => return Err(invalid()),
        }
    }
    Ok(limits)
}

/// A duration as docker and systemd write it: `90s`, `1m30s`, `500ms`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|error| {
        Error::new(
            Kind::InvalidInput,
            format!("cannot read `{}` as a duration", text.escape_debug()),
        )
        .because(error)
        .hint("write for example `30s`, `1m30s` or `500ms`")
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use luna_core::spec::{Firmware, Floor, Isolation};

    use super::*;

    #[derive(Debug, Parser)]
    #[command(disable_help_flag = true)]
    struct Line {
        #[command(flatten)]
        flags: SandboxFlags,
    }

    fn read(line: &str) -> Result<Spec> {
        let words = std::iter::once("run").chain(line.split_whitespace());
        spec(
            &Line::try_parse_from(words).expect("the grammar takes it").flags,
            false,
        )
    }

    #[test]
    fn nothing_asked_is_the_plain_spec() {
        assert_eq!(read("image").unwrap(), Spec::new("image"));
    }

    #[test]
    fn flags_become_a_spec() {
        let spec = read(
            "--name web -it -p 8080:80 -e A=1 -w /srv -u 1000:1000 --memory 512m --cpus 1.5 --pids-limit 100 \
             --restart on-failure:3 --stop-signal INT --stop-timeout 3 --isolation container --require own-kernel \
             --add-host db:10.0.0.5 --dns 1.1.1.1 --label a=b --log-opt max-size=1m --entrypoint sh image -c true",
        )
        .unwrap();
        assert_eq!(spec.name.unwrap().as_str(), "web");
        assert_eq!(spec.program.entrypoint.unwrap(), ["sh"]);
        assert_eq!(spec.program.command, ["-c", "true"]);
        assert!(spec.program.terminal && spec.program.stdin);
        assert_eq!((spec.ports[0].host, spec.ports[0].sandbox), (8080, 80));
        assert_eq!(spec.restart, RestartPolicy::OnFailure(3));
        assert_eq!(
            spec.wall,
            WallRequest {
                isolation: Isolation::Container,
                require: Some(Floor::OwnKernel)
            }
        );
        assert_eq!(spec.stop.grace, Some(Duration::from_secs(3)));
        assert_eq!(spec.log.size.0, 1 << 20);
        assert_eq!(spec.extra_hosts[0].0, "db");
    }

    #[test]
    fn a_disk_is_booted_in_an_images_place() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let disk = file.path().to_str().unwrap();
        let spec = read(&format!(
            "--boot {disk} --memory 1024m -p 8080:8080 --name n --firmware uefi"
        ))
        .unwrap();
        let boot = spec.boot.unwrap();
        assert_eq!(
            (boot.disk.as_path(), boot.firmware),
            (file.path(), Firmware::Uefi)
        );
        assert_eq!((spec.image.as_str(), spec.ports.len()), (disk, 1));
        for line in [
            "image",
            "-e A=1",
            "--user 0",
            "--entrypoint sh",
            "-v /a:/b",
            "--tmpfs /a",
            "--network host",
            "--privileged",
            "--kernel small",
            "--health-cmd true",
            "--pids-limit 10",
        ] {
            assert!(read(&format!("--boot {disk} {line}")).is_err(), "{line}");
        }
        assert!(read("--boot /nonexistent/disk").is_err());
        assert!(read("--firmware bios image").is_err());
    }

    #[test]
    fn what_is_wrong_is_told() {
        for line in [
            "--name a/b image",
            "-p 99999:80 image",
            "-p 8080:80 -p 8080:81 image",
            "-p 80:80 --network host image",
            "--network bridge image",
            "-P image",
            "--memory lots image",
            "--memory-swap 1g image",
            "--cpus 0 image",
            "--pids-limit 0 image",
            "--blkio-weight 5 image",
            "--cpuset-cpus 3-1 image",
            "--restart sometimes image",
            "--restart on-failure:x image",
            "--stop-signal NOPE image",
            "--ulimit nofile image",
            "--ulimit nofile=9:5 image",
            "--ulimit what=1 image",
            "--log-opt colour=red image",
            "--dns here image",
            "--add-host db image",
            "--hostname -a image",
            "--health-interval 5s image",
            "--health-cmd true --health-interval never image",
            "--health-cmd true --no-healthcheck image",
            "--security-opt what image",
            "--security-opt seccomp=/profile.json image",
            "--cap-add NOPE image",
            "--device relative image",
            "--device /dev/null:/dev/x:z image",
            "-v a/b:/c image",
            "-v /a:b image",
            "-v /a:/b:what image",
            "--mount type=bind,target=/a image",
            "--mount type=what,target=/a image",
            "--mount source=a image",
            "--tmpfs relative image",
            "--tmpfs /a:size=x image",
            "--env =x image",
            "--env-file /nonexistent image",
            "--label =x image",
        ] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
