//! An image on its way to a registry: layers, then the config, then the manifest that names them.

use std::io::Read;

use futures_util::stream;
use luna_core::event::{Progress, Sink};
use luna_core::{Error, Kind, Result};
use oci_client::errors::OciDistributionError;

use super::connection::Connection;
use crate::manifest::Document;
use crate::{Digest, Image, Store};

const CHUNK: usize = 256 << 10;

pub(super) fn image(store: &Store, connection: &Connection, image: &Image, progress: Sink) -> Result<()> {
    let manifest = store.manifest_bytes(image)?;
    let Document::Image(parsed) = Document::parse(&manifest, None)? else {
        return Err(Error::new(Kind::Internal, "cannot push an index as an image"));
    };
    let mut seen = std::collections::HashSet::new();
    for layer in &image.layers {
        if seen.insert(layer.digest) {
            blob(store, connection, layer.digest, layer.size, progress)?;
        }
    }
    blob(store, connection, image.id, parsed.config.size, progress)?;
    let media_type = parsed.media_type.parse().map_err(|_| {
        Error::new(
            Kind::Internal,
            "cannot push a manifest whose media type is no header value",
        )
    })?;
    let sent = connection.runtime.block_on(connection.oci.push_manifest_raw(
        &connection.reference,
        manifest,
        media_type,
    ));
    sent.map(|_| ()).map_err(|error| connection.explain_oci(error))
}

fn blob(store: &Store, connection: &Connection, digest: Digest, size: u64, progress: Sink) -> Result<()> {
    let key = digest.short();
    let name = digest.to_string();
    let reference = &connection.reference;
    let exists = connection
        .runtime
        .block_on(connection.oci.blob_exists(reference, &name));
    match exists {
        Ok(true) => {
            progress(Progress::Finished {
                key: key.clone(),
                label: format!("Already there {key}"),
            });
            return Ok(());
        }
        // Some registries answer a question about what they do not have with 401 or 403; the upload will tell.
        Ok(false) | Err(OciDistributionError::ServerError { .. }) => {}
        Err(error) => return Err(connection.explain_oci(error)),
    }
    progress(Progress::Started {
        key: key.clone(),
        label: format!("Pushing {key}"),
        total: Some(size),
    });
    let file = store.open_blob(digest)?;
    let chunks = stream::unfold(file, |mut file| async move {
        let mut buffer = vec![0; CHUNK];
        match file.read(&mut buffer) {
            Ok(0) => None,
            Ok(count) => {
                buffer.truncate(count);
                Some((Ok(bytes::Bytes::from(buffer)), file))
            }
            Err(error) => Some((Err(OciDistributionError::IoError(error)), file)),
        }
    });
    let sent = connection.runtime.block_on(connection.oci.push_blob_stream(
        reference,
        chunks,
        &name,
        Some(size),
    ));
    sent.map_err(|error| connection.explain_oci(error))?;
    progress(Progress::Finished {
        key: key.clone(),
        label: format!("Pushed {key}"),
    });
    Ok(())
}
