//! Registries: pull, push, login (OCI distribution-spec; docker's registry v2).
//!
//! ```text
//! pull:  name ─▶ manifest (index ─▶ platform) ─▶ config ─▶ layers, three at a time ─▶ Store::register
//!                                                          download ─▶ .part-<digest> ─▶ followed by the unpacker
//! ```
//! Manifest and config are kept as the bytes they came as, so a push repeats them. The protocol is
//! spoken by [`connection`] itself, because the clients there are read manifests, tokens and error pages without a bound
//! and take any address a registry names for one where credentials may go. This is the only place with tokio: one
//! private current-thread runtime per call, nothing of it leaves the module.

mod connection;
mod credentials;
mod download;
mod token;
mod upload;

use std::time::Duration;

use luna_core::event::{Progress, Sink};
use luna_core::{Error, Kind, Result};

use crate::image::Config;
use crate::manifest::{self, Descriptor, Document, Manifest};
use crate::{Digest, Image, Platform, Reference, Store};
use connection::{Connection, Purpose};
pub use credentials::Credentials;

/// How to reach a registry.
#[derive(Clone, Debug)]
pub struct Access {
    /// Allow plain HTTP and certificates nobody vouches for. Loopback may always speak plain HTTP.
    pub insecure: bool,
    /// Give up when not a byte comes for this long.
    pub stall: Duration,
    /// Instead of what docker's `config.json` holds.
    pub credentials: Option<Credentials>,
}

impl Default for Access {
    fn default() -> Access {
        Access {
            insecure: false,
            stall: Duration::from_secs(30),
            credentials: None,
        }
    }
}

#[derive(Clone, Debug)]
pub struct PullOptions {
    pub platform: Platform,
    pub access: Access,
}

impl Default for PullOptions {
    fn default() -> PullOptions {
        PullOptions {
            platform: Platform::host(),
            access: Access::default(),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct PushOptions {
    pub access: Access,
}

/// Fetches what `reference` names for one platform. What is here already is not fetched again, what a broken pull left
/// is resumed; on error the store has what it had before.
pub fn pull(store: &Store, reference: &Reference, options: &PullOptions, progress: Sink) -> Result<Image> {
    fetch(store, reference, options, progress)
        .map_err(|error| error.context(format!("cannot pull `{}`", reference.familiar())))
}

fn fetch(store: &Store, reference: &Reference, options: &PullOptions, progress: Sink) -> Result<Image> {
    let _hold = store.hold()?;
    let connection = Connection::open(reference, &options.access, Purpose::Pull)?;
    let name = match reference.digest() {
        Some(digest) => digest.to_string(),
        None => reference.tag().unwrap_or("latest").to_owned(),
    };
    let (bytes, media_type) = connection.manifest(&name)?;
    if let Some(promised) = reference.digest() {
        check_digest("manifest", &bytes, promised)?;
    }
    let (bytes, manifest) = match Document::parse(&bytes, media_type.as_deref())? {
        Document::Image(manifest) => (bytes, manifest),
        Document::Index(index) => {
            let chosen = index.select(&options.platform)?;
            let (bytes, _) = connection.manifest(&chosen.digest.to_string())?;
            check("manifest", &bytes, chosen)?;
            match Document::parse(&bytes, Some(&chosen.media_type))? {
                Document::Image(manifest) => (bytes, manifest),
                Document::Index(_) => {
                    return Err(Error::new(Kind::Corrupt, "cannot read an image manifest")
                        .because("the index points to another index"));
                }
            }
        }
    };
    manifest.check_is_image()?;
    let config_bytes = config(store, &connection, &manifest)?;
    let config = Config::parse(&config_bytes)?;
    let layers = manifest.layers(&config)?;
    download::layers(store, &connection, &layers, progress)?;
    let image = store.register(&bytes, &config_bytes, &layers, Some(reference), false)?;
    if !options.platform.accepts(&image.platform()) {
        progress(Progress::Note {
            text: format!(
                "this image is made for {}, not for {}",
                image.platform(),
                options.platform
            ),
        });
    }
    Ok(image)
}

fn config(store: &Store, connection: &Connection, manifest: &Manifest) -> Result<Vec<u8>> {
    if let Ok(bytes) = store.read_blob(manifest.config.digest) {
        return Ok(bytes);
    }
    if manifest.config.size > manifest::LIMIT as u64 {
        return Err(
            Error::new(Kind::Exhausted, "cannot read an image config").because(format!(
                "it has {} bytes, more than 4 MiB are refused",
                manifest.config.size
            )),
        );
    }
    let bytes = connection.small_blob(manifest.config.digest)?;
    check("config", &bytes, &manifest.config)?;
    Ok(bytes)
}

fn check(what: &str, bytes: &[u8], descriptor: &Descriptor) -> Result<()> {
    if bytes.len() as u64 != descriptor.size {
        return Err(broken(
            what,
            format!(
                "it has {} bytes where {} were promised",
                bytes.len(),
                descriptor.size
            ),
        ));
    }
    check_digest(what, bytes, descriptor.digest)
}

fn check_digest(what: &str, bytes: &[u8], promised: Digest) -> Result<()> {
    let digest = Digest::of(bytes);
    match digest == promised {
        true => Ok(()),
        false => Err(broken(
            what,
            format!("its digest is `{digest}`, promised was `{promised}`"),
        )),
    }
}

fn broken(what: &str, why: String) -> Error {
    Error::new(Kind::Corrupt, format!("cannot accept the registry's {what}"))
        .because(why)
        .hint("try again; if it stays like this, the registry or a proxy before it damages what it serves")
}

/// Sends the image that is called `reference` here to where that name points, byte for byte as the store has it; what
/// the registry has already is not sent. Answers with the manifest's digest.
pub fn push(store: &Store, reference: &Reference, options: &PushOptions, progress: Sink) -> Result<Digest> {
    let send = || -> Result<Digest> {
        let Some(tag) = reference.tag() else {
            return Err(Error::new(Kind::InvalidInput, "cannot push to a digest")
                .because("a digest follows from what is pushed")
                .hint(format!("luna tag {reference} {}:TAG", reference.familiar_name())));
        };
        let image = store.get(&reference.to_string())?;
        let _hold = store.hold()?;
        let connection = Connection::open(reference, &options.access, Purpose::Push)?;
        upload::image(store, &connection, &image, tag, progress)?;
        Ok(image.manifest)
    };
    send().map_err(|error| error.context(format!("cannot push `{}`", reference.familiar())))
}

/// Tries `credentials` on `registry` (`docker.io` for docker's hub) and stores them where docker does.
pub fn login(registry: &str, credentials: &Credentials, access: &Access) -> Result<()> {
    let log_in = || -> Result<()> {
        let probe = registry_reference(registry)?;
        let access = Access {
            credentials: Some(credentials.clone()),
            ..access.clone()
        };
        Connection::verify_login(&probe, &access)?;
        credentials::Config::read()?.store(probe.registry(), credentials)
    };
    log_in().map_err(|error| error.context(format!("cannot log in to `{}`", registry.escape_debug())))
}

/// Forgets the login for `registry`; false when there was none.
pub fn logout(registry: &str) -> Result<bool> {
    let probe = registry_reference(registry)?;
    credentials::Config::read()?.forget(probe.registry())
}

/// A registry alone is no reference; any repository completes it.
fn registry_reference(registry: &str) -> Result<Reference> {
    let host = registry
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .trim_end_matches('/');
    let host = match host {
        "" | "index.docker.io/v1" => "docker.io",
        host => host,
    };
    let reference = Reference::parse(&format!("{host}/luna/login"))?;
    // A word without a dot or a port reads as a repository's first part, not as a host.
    match reference.registry().eq_ignore_ascii_case(host) {
        true => Ok(reference),
        false => Err(Error::new(
            Kind::InvalidInput,
            format!("cannot read `{}` as a registry", registry.escape_debug()),
        )
        .hint("write its host, for example `ghcr.io` or `localhost:5000`")),
    }
}
