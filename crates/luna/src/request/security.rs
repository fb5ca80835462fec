//! How tight the wall is drawn.

use luna_core::capability::Capabilities;
use luna_core::spec::{Device, Seccomp, Security};
use luna_core::{Error, Kind, Result};

use crate::cli::run::SandboxFlags;

pub(super) fn security(flags: &SandboxFlags) -> Result<Security> {
    Capabilities::requested(&flags.cap_add, &flags.cap_drop)
        .map_err(|error| error.hint("capabilities(7) lists them; `ALL` is all of them"))?;
    let mut security = Security {
        cap_add: flags.cap_add.clone(),
        cap_drop: flags.cap_drop.clone(),
        privileged: flags.privileged,
        devices: flags
            .device
            .iter()
            .map(|text| device(text))
            .collect::<Result<_>>()?,
        ..Security::default()
    };
    for option in &flags.security_opt {
        let unknown = |because: &str| {
            Error::new(
                Kind::InvalidInput,
                format!("cannot use `--security-opt {}`", option.escape_debug()),
            )
            .because(because.to_owned())
            .hint(
                "there are `no-new-privileges[=BOOL]`, `nested-userns`, `seccomp=unconfined`, \
                     `apparmor=PROFILE` and `label=LABEL`",
            )
        };
        match option.split_once(['=', ':']).unwrap_or((option, "")) {
            ("no-new-privileges", "" | "true") => security.allow_new_privileges = false,
            ("no-new-privileges", "false") => security.allow_new_privileges = true,
            ("nested-userns", "") => security.nested_user_namespaces = true,
            ("seccomp", "unconfined") => security.seccomp = Seccomp::Unconfined,
            ("seccomp", _) => return Err(unknown("profiles in files are not supported")),
            ("apparmor", profile) if !profile.is_empty() => security.apparmor = Some(profile.to_owned()),
            ("label", label) if !label.is_empty() => security.selinux = Some(label.to_owned()),
            _ => return Err(unknown("there is no such option")),
        }
    }
    Ok(security)
}

/// `host[:sandbox[:rwm]]`; making device nodes (`m`) is never allowed and so means nothing.
fn device(text: &str) -> Result<Device> {
    let invalid = |because: &str| {
        Error::new(
            Kind::InvalidInput,
            format!("cannot read the device `{}`", text.escape_debug()),
        )
        .because(because.to_owned())
        .hint("write for example `--device /dev/fuse` or `--device /dev/sda:/dev/disk:r`")
    };
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, access) = match parts.as_slice() {
        [source] => (*source, *source, "rwm"),
        [source, target] if target.starts_with('/') => (*source, *target, "rwm"),
        [source, access] => (*source, *source, *access),
        [source, target, access] => (*source, *target, *access),
        _ => return Err(invalid("it has too many colons")),
    };
    if !source.starts_with('/') || !target.starts_with('/') {
        return Err(invalid("both paths are absolute"));
    }
    if access.is_empty() || !access.chars().all(|letter| matches!(letter, 'r' | 'w' | 'm')) {
        return Err(invalid("access is made of `r`, `w` and `m`"));
    }
    Ok(Device {
        source: source.into(),
        target: target.into(),
        read: access.contains('r'),
        write: access.contains('w'),
    })
}
