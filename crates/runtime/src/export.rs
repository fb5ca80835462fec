//! An image as a disk for other hypervisors: what the image's own config plans, the store's disk and a full kernel, put
//! together by `luna-microvm`.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::PathBuf;

use luna_core::engine::{EngineProfile, RootForm, Wall};
use luna_core::event::{Progress, Sink};
use luna_core::spec::Spec;
use luna_core::units::Bytes;
use luna_core::{Error, Kind, Result};
use luna_image::{Image, Platform};
use luna_microvm::export::{self, Export, Exported, Format};
use luna_microvm::kernel::Kernel;
use luna_microvm::kernel::fetch::{self, FetchRequest};

use crate::plan::{self, ImageDefaults, Nesting};
use crate::runtime::Runtime;
use crate::supervisor;

/// What to export an image as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportRequest {
    pub format: Format,
    pub output: PathBuf,
    /// Of the whole disk; [`export::SIZE`] where absent.
    pub size: Option<Bytes>,
    /// A kernel in the store; the newest full one where absent, fetched where there is none.
    pub kernel: Option<String>,
}

impl Runtime {
    /// Writes a disk that starts by itself and runs the image's program. Everything is checked before the work begins.
    pub fn export(&self, image: &Image, request: &ExportRequest, progress: Sink) -> Result<Exported> {
        export::probe()?;
        let platform = image.platform();
        if !Platform::host().accepts(&platform) {
            return Err(
                Error::new(Kind::Unsupported, format!("cannot export `{}`", image.name()))
                    .because(format!("it is made for {platform}, not for {}", Platform::host())),
            );
        }
        let engine = EngineProfile {
            wall: Wall::Vm,
            accelerator: None,
            root: RootForm::Disk,
        };
        let nested = Nesting {
            built_here: image.built_here,
            granted: false,
            allowed: true,
        };
        let plan = plan::plan(
            &Spec::new(image.name()),
            &ImageDefaults::of(image),
            nested,
            engine,
        )?;
        let mut init = Vec::new();
        let mut file = File::from(supervisor::init()?);
        file.rewind()
            .and_then(|()| file.read_to_end(&mut init))
            .map_err(|e| Error::io("cannot read `luna-init`", e))?;
        let kernel = self.full_kernel(request.kernel.as_deref(), progress)?;
        let base = self.store().disk(image, progress)?;
        export::export(
            &Export {
                kernel: &kernel,
                init: &init,
                base: &base,
                hostname: hostname(&image.name()),
                process: plan.process,
                format: request.format,
                size: request.size.unwrap_or(export::SIZE),
                output: &request.output,
            },
            progress,
        )
        .map_err(|error| error.context(format!("cannot export `{}`", image.name())))
    }

    fn full_kernel(&self, requested: Option<&str>, progress: Sink) -> Result<Kernel> {
        let kernels = self.kernels();
        match export::kernel(&kernels, requested) {
            Err(error) if requested.is_none() && error.kind() == Kind::NotFound => {
                progress(Progress::Note {
                    text: "no kernel here has the drivers of every hypervisor: fetching the distribution's full one".to_owned(),
                });
                let request = FetchRequest {
                    package: Some(export::PACKAGE.to_owned()),
                };
                fetch::fetch(&kernels, &request, progress)
            }
            found => found,
        }
    }
}

/// The last part of an image's name, as a host may be called: `luna/agent:latest` is `agent`.
fn hostname(image: &str) -> String {
    let name = image.split('@').next().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default();
    let name = name.split(':').next().unwrap_or_default();
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(63)
        .collect();
    match plain.trim_matches('-') {
        "" => "luna".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_called_as_its_image() {
        for (image, expected) in [
            ("luna/agent:latest", "agent"),
            ("registry.example:5000/a/my_app:1", "my-app"),
            ("debian@sha256:00", "debian"),
            ("", "luna"),
            ("_", "luna"),
        ] {
            assert_eq!(hostname(image), expected);
        }
    }
}
