//! Manifests and indexes as registries and archives hold them, under every media type and under none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use luna_image::manifest::{
    DOCKER_LIST, DOCKER_MANIFEST, Document, OCI_INDEX, OCI_MANIFEST,
};
use luna_image::Platform;

fuzz_target!(|bytes: &[u8]| {
    for media_type in [None, Some(OCI_MANIFEST), Some(OCI_INDEX), Some(DOCKER_MANIFEST), Some(DOCKER_LIST)] {
        if let Ok(Document::Index(index)) = Document::parse(bytes, media_type) {
            let _ = index.select(&Platform::host());
        }
    }
});
