//! Manifests and indexes as registries and archives hold them (image-spec `manifest.md`, `image-index.md`; docker's
//! schema 2). Parsing is pure, strict about what matters, bounded, and never re-writes: bytes are kept as they came.

use luna_core::{Error, Kind, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::image::Config;
use crate::{Compression, Digest, Layer, Platform};

/// Manifests, indexes and configs are refused past this, as containerd and docker do (4 MiB).
pub const LIMIT: usize = 4 << 20;

/// More layers than any overlay mount can take.
const MAX_LAYERS: usize = 500;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What a manifest points to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<DescriptorPlatform>,
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorPlatform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// One image: a config and its layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    pub media_type: String,
    pub config: Descriptor,
    /// Bottom first.
    pub layers: Vec<Descriptor>,
}

/// Images for several platforms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    pub media_type: String,
    pub manifests: Vec<Descriptor>,
}

/// What a registry answers with for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    Image(Manifest),
    Index(Index),
}

impl Document {
    /// Reads either kind. `media_type` is what the transport said; the document's own word must not contradict it.
    pub fn parse(bytes: &[u8], media_type: Option<&str>) -> Result<Document> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Raw {
            schema_version: u32,
            media_type: Option<String>,
            config: Option<Descriptor>,
            layers: Option<Vec<Descriptor>>,
            manifests: Option<Vec<Descriptor>>,
        }
        check_size(bytes, "manifest")?;
        let raw: Raw = from_json(bytes, "manifest")?;
        let malformed =
            |why: &'static str| Err(Error::new(Kind::Corrupt, "cannot read an image manifest").because(why));
        if raw.schema_version != 2 {
            return Err(Error::new(Kind::Unsupported, "cannot read an image manifest")
                .because(format!(
                    "its schema version is {}, only 2 is known",
                    raw.schema_version
                ))
                .hint("push the image again with a current tool"));
        }
        let known = |text: &str| matches!(text, OCI_MANIFEST | OCI_INDEX | DOCKER_MANIFEST | DOCKER_LIST);
        let outer = media_type.filter(|text| known(text));
        if let (Some(outer), Some(own)) = (outer, raw.media_type.as_deref())
            && outer != own
        {
            return malformed("its media type contradicts the one it was sent with");
        }
        // A document that reads as both kinds means different images to different readers (CVE-2021-41190).
        match (raw.config, raw.layers, raw.manifests) {
            (Some(config), Some(layers), None) => {
                let media_type = raw
                    .media_type
                    .or(outer.map(str::to_owned))
                    .unwrap_or_else(|| OCI_MANIFEST.to_owned());
                if !matches!(media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST) {
                    return malformed("its media type is not an image manifest's");
                }
                if layers.len() > MAX_LAYERS {
                    return malformed("it has more than 500 layers");
                }
                Ok(Document::Image(Manifest {
                    schema_version: 2,
                    media_type,
                    config,
                    layers,
                }))
            }
            (None, None, Some(manifests)) => {
                let media_type = raw
                    .media_type
                    .or(outer.map(str::to_owned))
                    .unwrap_or_else(|| OCI_INDEX.to_owned());
                if !matches!(media_type.as_str(), OCI_INDEX | DOCKER_LIST) {
                    return malformed("its media type is not an index's");
                }
                Ok(Document::Index(Index {
                    media_type,
                    manifests,
                }))
            }
            _ => malformed("it is neither an image nor an index, or it is both"),
        }
    }
}

impl Index {
    /// The first entry for `platform`.
    pub fn select(&self, platform: &Platform) -> Result<&Descriptor> {
        let offered = |descriptor: &Descriptor| {
            descriptor.platform.as_ref().map(|p| Platform {
                os: p.os.clone(),
                architecture: p.architecture.clone(),
                variant: p.variant.clone(),
            })
        };
        let is_image = |d: &&Descriptor| matches!(d.media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST);
        let images: Vec<&Descriptor> = self.manifests.iter().filter(is_image).collect();
        let fitting = images
            .iter()
            .find(|d| offered(d).is_some_and(|other| platform.accepts(&other)));
        match (fitting, images.as_slice()) {
            (Some(found), _) => Ok(found),
            (None, [only]) if only.platform.is_none() => Ok(only),
            _ => {
                let mut names: Vec<String> = images
                    .iter()
                    .filter_map(|d| offered(d))
                    .filter(|p| p.os != "unknown")
                    .map(|p| p.to_string())
                    .collect();
                names.truncate(12);
                Err(
                    Error::new(Kind::NotFound, format!("cannot find an image for `{platform}`")).because(
                        match names.is_empty() {
                            true => "the index names no platform".to_owned(),
                            false => format!("the index has {}", names.join(", ")),
                        },
                    ),
                )
            }
        }
    }
}

impl Manifest {
    /// The manifest of a config and layers that come without one.
    pub(crate) fn compose(config: &[u8], layers: &[Layer]) -> Result<Vec<u8>> {
        let descriptor = |media_type: &str, digest: Digest, size: u64| Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: std::collections::BTreeMap::new(),
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            config: descriptor(OCI_CONFIG, Digest::of(config), config.len() as u64),
            layers: layers
                .iter()
                .map(|layer| descriptor(&layer.media_type, layer.digest, layer.size))
                .collect(),
        };
        serde_json::to_vec(&manifest)
            .map_err(|error| Error::new(Kind::Internal, "cannot write a manifest").because(error))
    }

    /// Layers with their diff ids from the config, checked to agree in number and in form.
    pub(crate) fn layers(&self, config: &Config) -> Result<Vec<Layer>> {
        if config.diff_ids.len() != self.layers.len() {
            return Err(
                Error::new(Kind::Corrupt, "cannot use an image manifest").because(format!(
                    "it has {} layers and its config has {} diff ids",
                    self.layers.len(),
                    config.diff_ids.len()
                )),
            );
        }
        self.layers
            .iter()
            .zip(&config.diff_ids)
            .map(|(descriptor, diff_id)| {
                Compression::of_media_type(&descriptor.media_type)?;
                Ok(Layer {
                    digest: descriptor.digest,
                    diff_id: *diff_id,
                    size: descriptor.size,
                    media_type: descriptor.media_type.clone(),
                })
            })
            .collect()
    }

    /// The config must be one for containers: an artifact has none.
    pub(crate) fn check_is_image(&self) -> Result<()> {
        match self.config.media_type.as_str() {
            OCI_CONFIG | DOCKER_CONFIG => Ok(()),
            other => Err(
                Error::new(Kind::Unsupported, "cannot use this manifest as an image").because(format!(
                    "it is an artifact of type `{}`",
                    other.chars().take(100).collect::<String>().escape_debug()
                )),
            ),
        }
    }
}

pub(crate) fn check_size(bytes: &[u8], what: &str) -> Result<()> {
    if bytes.len() <= LIMIT {
        return Ok(());
    }
    Err(Error::new(
        Kind::Exhausted,
        format!("cannot read a {what} of {} bytes", bytes.len()),
    )
    .because("more than 4 MiB are refused"))
}

pub(crate) fn from_json<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::new(Kind::Corrupt, format!("cannot read an image {what}")).because(error))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn image() -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"{OCI_CONFIG}","digest":"{D}","size":2}},"layers":[]}}"#
        )
    }

    #[test]
    fn a_manifest_reads_and_a_contradiction_is_refused() {
        let text = image();
        assert!(matches!(
            Document::parse(text.as_bytes(), Some(OCI_MANIFEST)).unwrap(),
            Document::Image(_)
        ));
        assert!(Document::parse(text.as_bytes(), Some(OCI_INDEX)).is_err());
        let both = text.replace("\"layers\":[]", "\"layers\":[],\"manifests\":[]");
        assert!(Document::parse(both.as_bytes(), None).is_err());
        let old = text.replace("\"schemaVersion\":2", "\"schemaVersion\":1");
        assert_eq!(
            Document::parse(old.as_bytes(), None).unwrap_err().kind(),
            Kind::Unsupported
        );
        let negative = text.replace("\"size\":2", "\"size\":-2");
        assert!(Document::parse(negative.as_bytes(), None).is_err());
    }

    #[test]
    fn a_platform_is_chosen_or_the_choice_is_shown() {
        let entry = |os: &str, architecture: &str| {
            format!(
                r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{D}","size":2,"platform":{{"os":"{os}","architecture":"{architecture}"}}}}"#
            )
        };
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{},{},{}]}}"#,
            entry("unknown", "unknown"),
            entry("linux", "arm64"),
            entry("linux", "amd64")
        );
        let Document::Index(index) = Document::parse(text.as_bytes(), Some(OCI_INDEX)).unwrap() else {
            panic!("an index")
        };
        let found = index.select(&"linux/amd64".parse().unwrap()).unwrap();
        assert_eq!(found.platform.as_ref().unwrap().architecture, "amd64");
        let error = index.select(&"linux/riscv64".parse().unwrap()).unwrap_err();
        assert_eq!(error.causes(), ["the index has linux/arm64, linux/amd64"]);
    }

    #[test]
    fn oversized_documents_are_refused_unread() {
        let error = Document::parse(&vec![b' '; LIMIT + 1], None).unwrap_err();
        assert_eq!(error.kind(), Kind::Exhausted);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Document::parse(&bytes, None);
            let _ = Config::parse(&bytes);
        }

        #[test]
        fn a_mutated_manifest_never_panics(at in 0usize..200, byte in any::<u8>()) {
            let mut bytes = image().into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Document::parse(&bytes, None);
        }
    }
}
