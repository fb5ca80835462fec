//! A root filesystem archive becomes an image of one layer (`luna import`).

use std::io::Read;

use luna_core::event::{Progress, Sink};
use luna_core::{Error, Kind, Result};
use oci_spec::image::{Arch, ConfigBuilder, History, ImageConfiguration, ImageConfigurationBuilder, Os};

use crate::layer::{self, Compression, Decoder, Limits};
use crate::{Extensions, Image, Platform, Reference, Store};

/// What to write into the config of an image that brings none: `docker import --change`.
#[derive(Clone, Debug, Default)]
pub struct ConfigChanges {
    pub entrypoint: Option<Vec<String>>,
    pub command: Option<Vec<String>>,
    pub env: Vec<String>,
    pub labels: std::collections::BTreeMap<String, String>,
    pub exposed_ports: Vec<String>,
    pub volumes: Vec<String>,
    pub user: Option<String>,
    pub working_directory: Option<String>,
    pub stop_signal: Option<String>,
    /// The host's where absent.
    pub platform: Option<Platform>,
    /// RFC 3339; absent leaves it out, which keeps the image's id a function of its content.
    pub created: Option<String>,
    /// What to say in the history, for people.
    pub comment: Option<String>,
}

/// Reads a root filesystem as tar, plain or compressed with gzip or zstd.
pub fn import(
    store: &Store,
    tar: &mut dyn Read,
    reference: Option<&Reference>,
    changes: &ConfigChanges,
    progress: Sink,
) -> Result<Image> {
    import_as(store, tar, reference, changes, false, progress)
}

pub(crate) fn import_as(
    store: &Store,
    tar: &mut dyn Read,
    reference: Option<&Reference>,
    changes: &ConfigChanges,
    built_here: bool,
    progress: Sink,
) -> Result<Image> {
    let name = reference.map_or("an image".to_owned(), |r| format!("`{}`", r.familiar()));
    let failed = |error: Error| error.context(format!("cannot import {name}"));
    let config = configuration(changes).map_err(failed)?;
    let _hold = store.hold()?;
    let limits = Limits::from_environment()?;
    let mut counted = Reporting {
        inner: tar,
        done: 0,
        reported: 0,
        progress,
    };
    progress(Progress::Started {
        key: KEY.to_owned(),
        label: LABEL.to_owned(),
        total: None,
    });
    let (compression, source) = layer::sniff(&mut counted).map_err(failed)?;
    let mut plain = Decoder::new(source, compression, &limits).map_err(failed)?;
    let layer = store
        .add_layer(&mut plain, Compression::default(), progress)
        .map_err(failed)?;
    progress(Progress::Finished {
        key: KEY.to_owned(),
        label: LABEL.to_owned(),
    });
    store.add_image(config, &Extensions::default(), &[layer], reference, built_here)
}

const KEY: &str = "import";
const LABEL: &str = "Importing";

fn configuration(changes: &ConfigChanges) -> Result<ImageConfiguration> {
    let platform = changes.platform.clone().unwrap_or_else(Platform::host);
    let invalid = |error| Error::new(Kind::Internal, "cannot write a config").because(error);
    let mut inner = ConfigBuilder::default();
    let defaults = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    inner = inner.env(if changes.env.is_empty() {
        defaults
    } else {
        changes.env.clone()
    });
    if let Some(entrypoint) = &changes.entrypoint {
        inner = inner.entrypoint(entrypoint.clone());
    }
    if let Some(command) = &changes.command {
        inner = inner.cmd(command.clone());
    }
    if !changes.labels.is_empty() {
        inner = inner.labels(
            changes
                .labels
                .clone()
                .into_iter()
                .collect::<std::collections::HashMap<_, _>>(),
        );
    }
    if !changes.exposed_ports.is_empty() {
        inner = inner.exposed_ports(changes.exposed_ports.clone());
    }
    if !changes.volumes.is_empty() {
        inner = inner.volumes(changes.volumes.clone());
    }
    if let Some(user) = &changes.user {
        inner = inner.user(user.clone());
    }
    if let Some(directory) = &changes.working_directory {
        inner = inner.working_dir(directory.clone());
    }
    if let Some(signal) = &changes.stop_signal {
        inner = inner.stop_signal(signal.clone());
    }
    let mut history = History::default();
    history.set_created(changes.created.clone());
    history.set_comment(Some(
        changes
            .comment
            .clone()
            .unwrap_or_else(|| "imported by luna".to_owned()),
    ));
    let mut config = ImageConfigurationBuilder::default()
        .architecture(Arch::from(platform.architecture.as_str()))
        .os(Os::from(platform.os.as_str()))
        .config(inner.build().map_err(invalid)?)
        .rootfs(oci_spec::image::RootFs::default())
        .history(vec![history])
        .build()
        .map_err(invalid)?;
    config.set_variant(platform.variant);
    config.set_created(changes.created.clone());
    Ok(config)
}

/// Tells of bytes read, not more often than every MiB.
struct Reporting<'a> {
    inner: &'a mut dyn Read,
    done: u64,
    reported: u64,
    progress: Sink<'a>,
}

impl Read for Reporting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.done += count as u64;
        if self.done - self.reported > 1 << 20 {
            self.reported = self.done;
            (self.progress)(Progress::Advanced {
                key: KEY.to_owned(),
                done: self.done,
            });
        }
        Ok(count)
    }
}
