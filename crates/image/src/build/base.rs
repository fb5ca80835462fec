//! Images that a build begins with or copies from, brought before the first step: the one that is here, else the
//! registry's, else, only where no registry can be reached and the image is Debian's or Ubuntu's, one made from packages.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use luna_core::event::{Progress, Sink};
use luna_core::{Error, Kind, Result};

use super::BuildRequest;
use super::dockerfile::Dockerfile;
use super::plan::{self, Base, Plan};
use crate::registry::{self, PullOptions};
use crate::{Image, Platform, Reference, Store, bootstrap};

/// Every image that the plan names, by name and platform, its layers unpacked.
pub(crate) fn find_all(
    store: &Store,
    request: &BuildRequest,
    dockerfile: &Dockerfile,
    plan: &Plan,
    progress: Sink,
) -> Result<BTreeMap<(Reference, String), Image>> {
    let mut images = BTreeMap::new();
    for (index, base, platform) in &plan.stages {
        let sources = plan::sources(dockerfile, *index).map_err(|flaw| {
            Error::new(
                Kind::Internal,
                "cannot read the sources of a stage that was planned",
            )
            .because(flaw.message)
        })?;
        let bases = std::iter::once(base).chain(sources.iter().map(|(base, _)| base));
        for base in bases {
            let Base::Image(reference) = base else {
                continue;
            };
            let key = (reference.clone(), platform.to_string());
            if let Entry::Vacant(free) = images.entry(key) {
                let image = find(store, request, reference, platform, progress)?;
                store.tree(&image, progress)?;
                free.insert(image);
            }
        }
    }
    Ok(images)
}

fn find(
    store: &Store,
    request: &BuildRequest,
    reference: &Reference,
    platform: &Platform,
    progress: Sink,
) -> Result<Image> {
    if !request.pull
        && let Some(image) = store.find(&reference.to_string())?
        && platform.accepts(&image.platform())
    {
        return Ok(image);
    }
    let options = PullOptions {
        platform: platform.clone(),
        access: request.access.clone(),
    };
    let error = match registry::pull(store, reference, &options, progress) {
        Ok(image) => return Ok(image),
        Err(error) => error,
    };
    let unreachable = matches!(error.kind(), Kind::Unavailable | Kind::TimedOut);
    if !unreachable || *platform != Platform::host() || !bootstrap::is_supported(reference) {
        return Err(error);
    }
    let why = error.causes().pop().unwrap_or_else(|| error.message().to_owned());
    progress(Progress::Note {
        text: format!(
            "the registry of `{}` cannot be reached ({why}); making it from this machine's package mirror",
            reference.familiar()
        ),
    });
    bootstrap::bootstrap(store, reference, progress)
}
