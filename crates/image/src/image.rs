//! An image as the store knows it.

use std::collections::BTreeMap;
use std::time::Duration;

use luna_core::Result;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::manifest;
use crate::{Digest, Platform, Reference};

/// One manifest in the store with what is known of it. Plain values: holding one keeps nothing alive.
#[derive(Clone, Debug)]
pub struct Image {
    /// The digest of the config, docker's image id. Two manifests may share it when only compression differs.
    pub id: Digest,
    /// The digest of the manifest, as a registry names the image.
    pub manifest: Digest,
    pub references: Vec<Reference>,
    pub config: ImageConfiguration,
    /// What docker keeps in the config beyond image-spec.
    pub extensions: Extensions,
    /// Bottom first, as in the manifest.
    pub layers: Vec<Layer>,
    /// RFC 3339 as the config says; what an image claims, nothing to rely on.
    pub created: Option<String>,
    /// Bytes of the unpacked layers' archives together.
    pub size: u64,
    /// Built on this host from a Dockerfile or a package mirror, not fetched or loaded.
    pub built_here: bool,
}

impl Image {
    /// What to call it: its first name or the short id.
    pub fn name(&self) -> String {
        match self.references.first() {
            Some(reference) => reference.familiar(),
            None => self.id.short(),
        }
    }

    pub fn platform(&self) -> Platform {
        Platform {
            os: self.config.os().to_string(),
            architecture: self.config.architecture().to_string(),
            variant: self.config.variant().clone(),
        }
    }

    /// The labels in a fixed order.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.config
            .labels_of_config()
            .map(|labels| labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
            .unwrap_or_default()
    }
}

/// A layer as its manifest and config describe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Of the blob, compressed as it is.
    pub digest: Digest,
    /// Of the uncompressed archive; names the unpacked tree.
    pub diff_id: Digest,
    /// Bytes of the blob.
    pub size: u64,
    pub media_type: String,
}

/// What docker keeps in a config's `config` object beyond image-spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extensions {
    #[serde(rename = "Healthcheck", default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    #[serde(rename = "Shell", default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
    #[serde(rename = "OnBuild", default, skip_serializing_if = "Option::is_none")]
    pub on_build: Option<Vec<String>>,
}

/// Docker's `HEALTHCHECK`; durations are nanoseconds, 0 where docker's default is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", command]`.
    #[serde(default)]
    pub test: Vec<String>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interval: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeout: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_period: u64,
    #[serde(default, skip_serializing_if = "is_zero_u32")]
    pub retries: u32,
}

impl Healthcheck {
    /// The command to run with `shell` in front where it is a shell's, or `None` for `NONE` and nothing.
    pub fn command(&self, shell: &[String]) -> Option<Vec<String>> {
        match self.test.split_first() {
            Some((kind, rest)) if kind == "CMD" && !rest.is_empty() => Some(rest.to_vec()),
            Some((kind, rest)) if kind == "CMD-SHELL" && !rest.is_empty() => {
                let default = ["/bin/sh".to_owned(), "-c".to_owned()];
                let shell = if shell.is_empty() { &default[..] } else { shell };
                Some(shell.iter().chain(rest).cloned().collect())
            }
            _ => None,
        }
    }

    /// Interval, timeout, start period and retries with docker's defaults: 30 s, 30 s, 0 s, 3.
    pub fn timing(&self) -> (Duration, Duration, Duration, u32) {
        let or = |nanoseconds: u64, default: u64| match nanoseconds {
            0 => Duration::from_secs(default),
            n => Duration::from_nanos(n),
        };
        (
            or(self.interval, 30),
            or(self.timeout, 30),
            or(self.start_period, 0),
            if self.retries == 0 { 3 } else { self.retries },
        )
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero_u32(value: &u32) -> bool {
    *value == 0
}

/// A config as bytes and as values.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) spec: ImageConfiguration,
    pub(crate) extensions: Extensions,
    pub(crate) diff_ids: Vec<Digest>,
}

impl Config {
    /// Bounded by [`manifest::LIMIT`].
    pub(crate) fn parse(bytes: &[u8]) -> Result<Config> {
        #[derive(Deserialize)]
        struct Outer {
            #[serde(default)]
            config: Option<Extensions>,
        }
        manifest::check_size(bytes, "config")?;
        let spec: ImageConfiguration = manifest::from_json(bytes, "config")?;
        let outer: Outer = manifest::from_json(bytes, "config")?;
        let diff_ids = spec
            .rootfs()
            .diff_ids()
            .iter()
            .map(|text| text.parse())
            .collect::<Result<Vec<Digest>>>()?;
        Ok(Config {
            spec,
            extensions: outer.config.unwrap_or_default(),
            diff_ids,
        })
    }

    /// The same values always give the same bytes: objects are written with sorted keys.
    pub(crate) fn to_bytes(spec: &ImageConfiguration, extensions: &Extensions) -> Result<Vec<u8>> {
        let internal =
            |error| luna_core::Error::new(luna_core::Kind::Internal, "cannot write a config").because(error);
        let mut value = serde_json::to_value(spec).map_err(internal)?;
        let additions = serde_json::to_value(extensions).map_err(internal)?;
        if let (Some(outer), serde_json::Value::Object(additions)) = (value.as_object_mut(), additions)
            && !additions.is_empty()
        {
            let inner = outer
                .entry("config")
                .or_insert_with(|| serde_json::Value::Object(serde_json::Map::new()));
            if let Some(inner) = inner.as_object_mut() {
                inner.extend(additions);
            }
        }
        serde_json::to_vec(&value).map_err(internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_additions_survive_the_journey() {
        let text = br#"{"architecture":"amd64","os":"linux","config":{"Env":["A=b"],"Healthcheck":{"Test":["CMD-SHELL","true"],"Interval":5000000000},"Shell":["/bin/bash","-c"]},"rootfs":{"type":"layers","diff_ids":[]},"history":[]}"#;
        let config = Config::parse(text).unwrap();
        let check = config.extensions.healthcheck.clone().unwrap();
        assert_eq!(check.timing().0, Duration::from_secs(5));
        assert_eq!(
            check
                .command(config.extensions.shell.as_deref().unwrap())
                .unwrap(),
            ["/bin/bash", "-c", "true"]
        );
        let bytes = Config::to_bytes(&config.spec, &config.extensions).unwrap();
        let again = Config::parse(&bytes).unwrap();
        assert_eq!(again.extensions, config.extensions);
        assert_eq!(again.spec, config.spec);
    }
}
