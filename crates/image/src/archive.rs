//! Images in files: docker's archive, the OCI layout as a directory or an archive (image-spec `image-layout.md`).
//!
//! ```text
//! docker-archive   manifest.json  [{Config, RepoTags, Layers}]     <id>.json   <diff id>.tar
//! OCI layout       oci-layout  index.json  blobs/sha256/<hex>
//! ```
//! An OCI layout keeps manifests, so what is saved in it and loaded again is the same to the last bit. A docker
//! archive keeps only the config and plain layers: the image id survives, the manifest is made anew.

mod load;
mod save;
mod source;

pub use load::{load, load_layout};
pub use save::{SaveFormat, save, save_layout};

use serde::{Deserialize, Serialize};

const LAYOUT_FILE: &str = "oci-layout";
const LAYOUT_CONTENT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX_FILE: &str = "index.json";
const DOCKER_FILE: &str = "manifest.json";
/// A tag alone, by image-spec; some tools write the whole name.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The whole name, as containerd and docker write it.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// One element of docker's `manifest.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}
