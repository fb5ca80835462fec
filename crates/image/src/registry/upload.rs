//! An image on its way to a registry (distribution-spec "Pushing blobs", in one piece each): layers, then the config,
//! then the manifest that names them.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream;
use luna_core::event::{Progress, Sink};
use luna_core::{Error, Kind, Result};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Response, Url};

use super::connection::Connection;
use crate::manifest::Document;
use crate::{Digest, Image, Store};

const CHUNK: usize = 256 << 10;

pub(super) fn image(
    store: &Store,
    connection: &Connection,
    image: &Image,
    tag: &str,
    progress: Sink,
) -> Result<()> {
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
    connection.runtime.block_on(async {
        let url = format!("{}/manifests/{tag}", connection.base);
        let answer = connection
            .ask(|| {
                connection
                    .http
                    .put(&url)
                    .header(CONTENT_TYPE, &parsed.media_type)
                    .body(manifest.clone())
            })
            .await?;
        taken(connection, answer, "send the manifest to").await.map(drop)
    })
}

async fn taken(connection: &Connection, answer: Response, deed: &str) -> Result<Response> {
    match answer.status().is_success() {
        true => Ok(answer),
        false => Err(connection.refused(answer, deed).await),
    }
}

fn blob(store: &Store, connection: &Connection, digest: Digest, size: u64, progress: Sink) -> Result<()> {
    let key = digest.short();
    let finished = |label: String| {
        progress(Progress::Finished {
            key: key.clone(),
            label,
        });
    };
    connection.runtime.block_on(async {
        let url = format!("{}/blobs/{digest}", connection.base);
        let there = connection.ask(|| connection.http.head(&url)).await?;
        // Some registries answer a question about what they do not have with 401 or 403; the upload will tell.
        if there.status().is_success() {
            finished(format!("Already there {key}"));
            return Ok(());
        }
        progress(Progress::Started {
            key: key.clone(),
            label: format!("Pushing {key}"),
            total: Some(size),
        });
        let url = format!("{}/blobs/uploads/", connection.base);
        let begun = connection
            .ask(|| connection.http.post(&url).header(CONTENT_LENGTH, 0))
            .await?;
        let begun = taken(connection, begun, "begin an upload to").await?;
        let target = target(&begun, digest)?;
        let sent = Arc::new(AtomicU64::new(0));
        let request = connection
            .http
            .put(target.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, size)
            .body(body(store.open_blob(digest)?, Arc::clone(&sent)));
        let answer = connection.send_body(target, request, &sent).await?;
        taken(connection, answer, "send a layer to").await?;
        finished(format!("Pushed {key}"));
        Ok(())
    })
}

/// Where a begun upload is to be sent, absolute or relative to what was asked.
fn target(begun: &Response, digest: Digest) -> Result<Url> {
    let location = begun
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok());
    let url = location.and_then(|location| begun.url().join(location).ok());
    let mut url = url.ok_or_else(|| {
        Error::new(Kind::Corrupt, "cannot upload to the registry")
            .because("it does not say where an upload goes")
    })?;
    url.query_pairs_mut().append_pair("digest", &digest.to_string());
    Ok(url)
}

/// The file in pieces, counted as they go.
fn body(file: File, sent: Arc<AtomicU64>) -> Body {
    Body::wrap_stream(stream::unfold(file, move |mut file| {
        let sent = Arc::clone(&sent);
        async move {
            let mut buffer = vec![0; CHUNK];
            match file.read(&mut buffer) {
                Ok(0) => None,
                Ok(count) => {
                    buffer.truncate(count);
                    sent.fetch_add(count as u64, Ordering::Relaxed);
                    Some((Ok(bytes::Bytes::from(buffer)), file))
                }
                Err(error) => Some((Err(error), file)),
            }
        }
    }))
}
