//! `inspect`: everything about sandboxes, images and volumes, in docker's shape where docker has one.

use luna_core::error::Kind;
use luna_core::spec::RestartPolicy;
use luna_core::{Error, Result};
use luna_runtime::image::Image;
use luna_runtime::{PlannedMount, Runtime, Sandbox, State, Status, Volume};
use serde_json::{Map, Value, json};

use super::Front;
use crate::cli::look::{InspectArgs, Type};
use crate::output::Template;

/// Docker's "no time".
const NEVER: &str = "0001-01-01T00:00:00Z";

pub(super) fn inspect(front: &Front, args: &InspectArgs, kind: Option<Type>) -> Result<u8> {
    let format = args.format.as_deref().filter(|format| *format != "json");
    let template = format.map(Template::parse).transpose()?;
    let runtime = front.runtime()?;
    let mut found = Vec::new();
    let mut code = 0;
    for name in &args.names {
        match one(&runtime, name, kind) {
            Ok(value) => found.push(value),
            Err(error) => {
                front.printer.error(&error);
                code = error.kind().exit_code();
            }
        }
    }
    match template {
        Some(template) => {
            for value in &found {
                front.printer.line(template.render(value)?)?;
            }
        }
        None => front.printer.json(&Value::Array(found))?,
    }
    Ok(code)
}

/// Sandboxes first, then images, then volumes, unless the type is given.
fn one(runtime: &Runtime, name: &str, kind: Option<Type>) -> Result<Value> {
    let unless_missing = |outcome: Result<Value>| match outcome {
        Err(error) if kind.is_none() && error.kind() == Kind::NotFound => Ok(None),
        outcome => outcome.map(Some),
    };
    if matches!(kind, None | Some(Type::Sandbox))
        && let Some(value) = unless_missing(runtime.find(name).and_then(|sandbox| of_sandbox(&sandbox)))?
    {
        return Ok(value);
    }
    if matches!(kind, None | Some(Type::Image)) {
        let image = match runtime.store().get(name) {
            // What is no reference at all may still be a volume.
            Err(error) if kind.is_none() && error.kind() == Kind::InvalidInput => None,
            image => unless_missing(image.map(|image| of_image(&image)))?,
        };
        if let Some(value) = image {
            return Ok(value);
        }
    }
    if matches!(kind, None | Some(Type::Volume))
        && let Ok(parsed) = name.parse()
        && let Some(value) = unless_missing(runtime.volumes().get(&parsed).map(|volume| of_volume(&volume)))?
    {
        return Ok(value);
    }
    let what = match kind {
        None => "anything called",
        Some(Type::Sandbox) => "a sandbox",
        Some(Type::Image) => "an image",
        Some(Type::Volume) => "a volume",
    };
    Err(Error::new(
        Kind::NotFound,
        format!("cannot find {what} `{}`", name.escape_debug()),
    )
    .hint("`luna ps -a`, `luna images` and `luna volume ls` list what there is"))
}

fn value(of: &impl serde::Serialize) -> Value {
    serde_json::to_value(of).expect("plain values always encode")
}

fn of_sandbox(sandbox: &Sandbox) -> Result<Value> {
    let record = &sandbox.record;
    let status = sandbox.status()?;
    let spec = &record.spec;
    let process = record.process();
    let args = process.map_or(&[][..], |process| &process.args);
    let mounts: Vec<Value> = record.mounts.iter().map(of_mount).collect();
    let env: Vec<_> = process
        .iter()
        .flat_map(|process| &process.env)
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    Ok(json!({
        "Id": record.id,
        "Name": record.name,
        "Created": record.created,
        "Path": args.first(),
        "Args": args.get(1..).unwrap_or_default(),
        "State": of_state(&status),
        "Image": record.image_id().unwrap_or_default(),
        "RestartCount": status.restarts,
        "LogPath": sandbox.directory().join("log.json"),
        "Platform": "linux",
        "Mounts": mounts,
        "Config": {
            "Hostname": record.hostname,
            "User": process.map(|process| &process.user),
            "Env": env,
            "Cmd": args,
            "Image": record.reference(),
            "WorkingDir": process.map(|process| &process.cwd),
            "Entrypoint": spec.program.entrypoint,
            "Tty": process.is_some_and(|process| process.terminal.is_some()),
            "OpenStdin": process.is_none_or(|process| process.stdin),
            "Labels": record.labels,
            "StopSignal": luna_runtime::signal::name(record.stop_signal),
            "StopTimeout": record.stop_grace.as_secs(),
            "Healthcheck": record.health,
        },
        "HostConfig": of_host_config(sandbox),
        "NetworkSettings": {
            "Mode": spec.network,
            "Ports": of_ports(&status),
        },
        "Luna": {
            "decision": record.decision,
            "boot": spec.boot,
            "wall": record.decision.engine.wall,
            "ids": record.ids,
            "nested_user_namespaces": record.nested_user_namespaces,
            "directory": sandbox.directory(),
            "supervisor": status.supervisor,
        },
    }))
}

fn of_state(status: &Status) -> Value {
    let health = status.health.as_ref().map(|health| {
        json!({
            "Status": health.status,
            "FailingStreak": health.failing,
            "Log": health.last_exit.map(|exit| json!({"ExitCode": exit, "Output": health.last_output})).into_iter().collect::<Vec<_>>(),
        })
    });
    let error = status.error.as_ref().map(|error| {
        let words: Vec<_> = std::iter::once(&error.message)
            .chain(&error.causes)
            .map(String::as_str)
            .collect();
        words.join(": ")
    });
    json!({
        "Status": status.state,
        "Running": status.state.live(),
        "Paused": status.state == State::Paused,
        "Restarting": status.state == State::Restarting,
        "OOMKilled": status.out_of_memory,
        "Dead": false,
        "Pid": status.supervisor.filter(|_| status.state.live()).unwrap_or(0),
        "ExitCode": status.exit_code.unwrap_or(0),
        "Error": error.unwrap_or_default(),
        "StartedAt": status.started.as_deref().unwrap_or(NEVER),
        "FinishedAt": status.finished.as_deref().unwrap_or(NEVER),
        "Health": health,
    })
}

fn of_host_config(sandbox: &Sandbox) -> Value {
    use luna_core::spec::{PidsLimit, SwapLimit};
    let spec = &sandbox.record.spec;
    let resources = &spec.resources;
    let (policy, retries) = match spec.restart {
        RestartPolicy::No => ("no", 0),
        RestartPolicy::OnFailure(retries) => ("on-failure", retries),
        RestartPolicy::Always => ("always", 0),
        RestartPolicy::UnlessStopped => ("unless-stopped", 0),
    };
    let bindings = spec
        .ports
        .iter()
        .map(|port| {
            let binding = json!([{"HostIp": port.address, "HostPort": port.host.to_string()}]);
            (format!("{}/tcp", port.sandbox), binding)
        })
        .collect::<Map<_, _>>();
    json!({
        "NetworkMode": spec.network,
        "PortBindings": bindings,
        "RestartPolicy": {"Name": policy, "MaximumRetryCount": retries},
        "AutoRemove": spec.remove,
        "CapAdd": spec.security.cap_add,
        "CapDrop": spec.security.cap_drop,
        "Privileged": spec.security.privileged,
        "ReadonlyRootfs": spec.read_only,
        "Memory": resources.memory.map_or(0, |memory| memory.0),
        "MemorySwap": match resources.memory_swap {
            None => json!(0),
            Some(SwapLimit::Unlimited) => json!(-1),
            Some(SwapLimit::Total(total)) => json!(total.0),
        },
        "NanoCpus": resources.cpus.map_or(0, |cpus| u64::from(cpus.0) * 1_000_000),
        "CpusetCpus": resources.cpuset.as_deref().unwrap_or_default(),
        "PidsLimit": match resources.pids {
            None => Value::Null,
            Some(PidsLimit::Unlimited) => json!(-1),
            Some(PidsLimit::At(count)) => json!(count),
        },
        "BlkioWeight": resources.blkio_weight.unwrap_or(0),
        "ShmSize": resources.shm.map_or(64 << 20, |size| size.0),
        "Ulimits": resources.rlimits.iter().map(|limit| json!({"Name": limit.resource, "Soft": limit.soft, "Hard": limit.hard})).collect::<Vec<_>>(),
        "Devices": spec.security.devices,
        "ExtraHosts": spec.extra_hosts.iter().map(|(name, address)| format!("{name}:{address}")).collect::<Vec<_>>(),
        "Dns": spec.dns,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": spec.log.size.0.to_string(), "max-file": spec.log.files.to_string()}},
    })
}

fn of_ports(status: &Status) -> Value {
    let mut ports = Map::new();
    for port in &status.ports {
        let binding = json!({"HostIp": port.address, "HostPort": port.host.to_string()});
        match ports
            .entry(format!("{}/tcp", port.sandbox))
            .or_insert_with(|| json!([]))
        {
            Value::Array(bindings) => bindings.push(binding),
            _ => unreachable!("only arrays are put in"),
        }
    }
    Value::Object(ports)
}

fn of_mount(mount: &PlannedMount) -> Value {
    match mount {
        PlannedMount::Bind {
            source,
            target,
            read_only,
        } => json!({
            "Type": "bind", "Source": source, "Destination": target, "RW": !read_only,
        }),
        PlannedMount::Volume {
            name,
            target,
            read_only,
            anonymous,
        } => json!({
            "Type": "volume", "Name": name, "Destination": target, "RW": !read_only, "Anonymous": anonymous,
        }),
        PlannedMount::Tmpfs {
            target,
            size,
            mode,
            executable,
        } => json!({
            "Type": "tmpfs", "Source": "", "Destination": target, "RW": true,
            "Size": size, "Mode": format!("{mode:o}"), "Executable": executable,
        }),
    }
}

fn of_image(image: &Image) -> Value {
    let digests: Vec<_> = image
        .references
        .iter()
        .map(|reference| format!("{}@{}", reference.familiar_name(), image.manifest))
        .collect();
    let mut config = value(image.config.config());
    if let (Value::Object(config), Value::Object(more)) = (&mut config, value(&image.extensions)) {
        config.extend(more);
    }
    json!({
        "Id": image.id.to_string(),
        "RepoTags": image.references.iter().map(luna_runtime::image::Reference::familiar).collect::<Vec<_>>(),
        "RepoDigests": digests,
        "Created": image.created,
        "Author": image.config.author(),
        "Architecture": image.platform().architecture,
        "Variant": image.platform().variant,
        "Os": image.platform().os,
        "Size": image.size,
        "Config": config,
        "RootFS": {
            "Type": "layers",
            "Layers": image.layers.iter().map(|layer| layer.diff_id.to_string()).collect::<Vec<_>>(),
        },
        "Luna": {
            "manifest": image.manifest.to_string(),
            "layers": image.layers,
            "built_here": image.built_here,
        },
    })
}

pub(super) fn of_volume(volume: &Volume) -> Value {
    json!({
        "Name": volume.name,
        "Driver": "local",
        "Mountpoint": volume.data,
        "CreatedAt": humantime::format_rfc3339_seconds(volume.created).to_string(),
        "Scope": "local",
        "Labels": {},
        "Options": {},
    })
}
