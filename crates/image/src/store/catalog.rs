//! `images.json`: the one file that says which images there are. Read strictly: an unknown field or version is an
//! error, not a guess.

use std::path::Path;

use luna_core::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::{Digest, Layer, Reference, files};

const VERSION: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Catalog {
    version: u32,
    pub(super) images: Vec<Record>,
}

/// One manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) id: Digest,
    pub(super) manifest: Digest,
    pub(super) references: Vec<Reference>,
    pub(super) layers: Vec<Layer>,
    pub(super) size: u64,
    pub(super) built_here: bool,
}

/// Read before the rest, which another version may spell differently.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Catalog {
    pub(super) fn read(path: &Path) -> Result<Catalog> {
        let failed =
            |error: Error| error.context(format!("cannot read the list of images `{}`", path.display()));
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Catalog {
                    version: VERSION,
                    images: Vec::new(),
                });
            }
            Err(error) => return Err(Error::io(format!("cannot read `{}`", path.display()), error)),
        };
        let corrupt = |error| Error::new(Kind::Corrupt, "cannot read JSON").because(error);
        let Version { version } = serde_json::from_slice(&bytes).map_err(|e| failed(corrupt(e)))?;
        if version != VERSION {
            return Err(Error::new(
                Kind::Unsupported,
                format!("cannot read the list of images `{}`", path.display()),
            )
            .because(format!("its version is {version}, this Luna knows {VERSION}"))
            .hint("use the Luna that wrote it, or another store"));
        }
        serde_json::from_slice(&bytes).map_err(|e| failed(corrupt(e)))
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::new(Kind::Internal, "cannot write the list of images").because(error))?;
        files::write_atomically(path, &bytes)
    }

    /// A name first, then an id; names win because they can be chosen and ids cannot.
    pub(super) fn find(&self, text: &str) -> Result<Option<&Record>> {
        if let Some(record) = self.by_name(text) {
            return Ok(Some(record));
        }
        self.by_id(text)
    }

    pub(super) fn by_name(&self, text: &str) -> Option<&Record> {
        let reference = Reference::parse(text).ok()?;
        let exact = self
            .images
            .iter()
            .find(|record| record.references.contains(&reference));
        let pinned = || {
            let digest = reference.digest()?;
            self.images.iter().find(|record| {
                record.manifest == digest
                    && record.references.iter().any(|other| {
                        other.registry() == reference.registry()
                            && other.repository() == reference.repository()
                    })
            })
        };
        exact.or_else(pinned)
    }

    pub(super) fn by_id(&self, text: &str) -> Result<Option<&Record>> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let is_id = (4..=64).contains(&digits.len())
            && digits
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !is_id {
            return Ok(None);
        }
        if let Some(whole) = Digest::from_hex(digits) {
            let found = self
                .images
                .iter()
                .find(|record| record.id == whole || record.manifest == whole);
            return Ok(found);
        }
        let mut found: Option<&Record> = None;
        for record in self
            .images
            .iter()
            .filter(|record| record.id.hex().starts_with(digits))
        {
            if found.is_some_and(|other| other.id != record.id) {
                return Err(Error::new(
                    Kind::Conflict,
                    format!("cannot tell which image `{}` means", text.escape_debug()),
                )
                .hint("write more digits of the id; `luna images --no-trunc` shows them all"));
            }
            found = Some(record);
        }
        Ok(found)
    }

    /// Removes a name from whoever has it.
    pub(super) fn take_name(&mut self, reference: &Reference) {
        for record in &mut self.images {
            record.references.retain(|other| other != reference);
        }
    }
}
