//! What RUN steps trust: the certificate authorities that this host trusts, for the step and never for the image.
//! Many networks intercept TLS with a root of their own; without it nothing can be fetched.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use luna_core::{Error, Result};

/// Where Linux distributions keep the bundle (Go's `crypto/x509/root_linux.go`).
const BUNDLES: [&str; 7] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/ca-certificates/extracted/tls-ca-bundle.pem",
];
const MAXIMUM_BUNDLE: u64 = 16 << 20;

/// In a directory inside the step that no image uses (Luna's own has a `/run/luna`) and that is never in a layer.
pub(crate) const BUNDLE: &str = "/run/luna-build/ca.crt";
pub(crate) const APT: &str = "/run/luna-build/apt.conf";

/// Variables by which programs are told of a bundle: OpenSSL and Go, node, pip, requests, git, curl.
const VARIABLES: [&str; 6] = [
    "SSL_CERT_FILE",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "CURL_CA_BUNDLE",
];

/// Files to lay over a step, and the variables that name them.
#[derive(Debug)]
pub(crate) struct Trust {
    /// On the host, and inside the step.
    pub(crate) files: Vec<(PathBuf, &'static str)>,
    pub(crate) env: Vec<(&'static str, &'static str)>,
}

/// Copies the host's bundle into `directory`, where a step's user may read it. `None` where the host has none.
pub(crate) fn prepare(directory: &Path) -> Result<Option<Trust>> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let Some(source) = named
        .into_iter()
        .chain(BUNDLES.map(PathBuf::from))
        .find(|path| path.is_file())
    else {
        return Ok(None);
    };
    let reading = |error| {
        Error::io(
            format!("cannot read the host's certificates `{}`", source.display()),
            error,
        )
    };
    let mut bundle = Vec::new();
    File::open(&source)
        .map_err(reading)?
        .take(MAXIMUM_BUNDLE)
        .read_to_end(&mut bundle)
        .map_err(reading)?;
    let certificates = directory.join("ca.crt");
    let apt = directory.join("apt.conf");
    write(&certificates, &bundle)?;
    // apt's own TLS reads neither OpenSSL's variables nor curl's.
    write(&apt, format!("Acquire::https::CAInfo \"{BUNDLE}\";\n").as_bytes())?;
    let mut env: Vec<_> = VARIABLES.iter().map(|name| (*name, BUNDLE)).collect();
    env.push(("APT_CONFIG", APT));
    Ok(Some(Trust {
        files: vec![(certificates, BUNDLE), (apt, APT)],
        env,
    }))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |error| Error::io(format!("cannot write `{}`", path.display()), error);
    std::fs::write(path, bytes).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o444)).map_err(failed)
}
