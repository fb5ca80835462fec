//! What a step was seen to make of its inputs. `build/cache/<key>.json` in the store, one record a key; the layer itself
//! lies with all others, and a record whose layer was pruned is no hit.

use std::path::PathBuf;

use luna_core::Result;
use serde::{Deserialize, Serialize};

use super::source::field;
use crate::{Digest, Hasher, Layer, Store, files};

const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    version: u32,
    /// `None` where the step changed nothing.
    pub(crate) layer: Option<Layer>,
    /// RFC 3339.
    pub(crate) created: String,
}

impl Record {
    pub(crate) fn new(layer: Option<Layer>, created: String) -> Record {
        Record {
            version: VERSION,
            layer,
            created,
        }
    }
}

/// Collects a step's inputs into its key.
#[derive(Debug)]
pub(crate) struct Key(Hasher);

impl Key {
    /// Every key depends on the layers below and on the clamp of times.
    pub(crate) fn new(kind: &str, below: &[Layer], epoch: Option<u64>) -> Key {
        let mut key = Key(Hasher::default());
        key.text("luna build cache 1");
        key.text(kind);
        key.text(&format!("{epoch:?}"));
        for layer in below {
            key.text(&layer.diff_id.hex());
        }
        key.text("");
        key
    }

    pub(crate) fn text(&mut self, text: &str) {
        field(&mut self.0, text.as_bytes());
    }

    pub(crate) fn hasher(&mut self) -> &mut Hasher {
        &mut self.0
    }

    pub(crate) fn finish(self) -> Digest {
        self.0.finish()
    }
}

/// The record for `key` if its layer is still here. A record that cannot be read is none.
pub(crate) fn find(store: &Store, key: Digest) -> Option<Record> {
    let bytes = std::fs::read(path(store, key)).ok()?;
    let record: Record = serde_json::from_slice(&bytes).ok()?;
    let usable =
        record.version == VERSION && record.layer.as_ref().is_none_or(|layer| store.has_layer(layer));
    usable.then_some(record)
}

pub(crate) fn keep(store: &Store, key: Digest, record: &Record) -> Result<()> {
    let path = path(store, key);
    let bytes = serde_json::to_vec(record).expect("a record is plain data");
    files::create_private_directory(path.parent().expect("a record lies in a directory"))?;
    files::write_atomically(&path, &bytes)
}

fn path(store: &Store, key: Digest) -> PathBuf {
    store
        .root()
        .join("build/cache")
        .join(format!("{}.json", key.hex()))
}
