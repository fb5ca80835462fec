//! What a machine needs that takes more than a moment to make, made in the foreground, where progress can be shown: a guest
//! kernel, the image's disk, the disk of a kernel's modules. A supervisor finds all of it and waits for nothing.

use std::path::PathBuf;

use luna_core::engine::RootForm;
use luna_core::event::{Progress, Sink};
use luna_core::policy::Decision;
use luna_core::spec::Spec;
use luna_core::{Kind, Result};
use luna_image::Image;
use luna_microvm::kernel::fetch::{self, FetchRequest};
use luna_microvm::kernel::{Kernel, Store as Kernels};

use crate::runtime::Runtime;

impl Runtime {
    /// Makes what a start of this spec behind the decided wall will need. Costs a look where all is there.
    pub fn prepare(&self, spec: &Spec, decision: &Decision, image: &Image, progress: Sink) -> Result<()> {
        match decision.engine.root {
            RootForm::Tree => Ok(()),
            RootForm::Disk => {
                let kernel = self.kernel(spec, progress)?;
                if spec.security.privileged {
                    modules(&kernel)?;
                }
                self.store().disk(image, progress).map(drop)
            }
        }
    }

    /// The kernel asked for, or the best one; where there is none at all, the distribution's is fetched.
    fn kernel(&self, spec: &Spec, progress: Sink) -> Result<Kernel> {
        let kernels = self.kernels();
        let requested = spec.machine.kernel.as_deref();
        match kernels.choose(requested) {
            Err(error) if requested.is_none() && error.kind() == Kind::NotFound => {
                progress(Progress::Note {
                    text: "no guest kernel is here yet: fetching the distribution's (`luna kernel build` makes one that boots \
                           faster)"
                        .to_owned(),
                });
                fetch::fetch(&kernels, &FetchRequest::default(), progress)?;
                kernels.choose(None)
            }
            found => found,
        }
    }
}

/// The kernel of a sandbox at its start.
pub(crate) fn chosen(kernels: &Kernels, spec: &Spec) -> Result<Kernel> {
    kernels.choose(spec.machine.kernel.as_deref())
}

/// A disk of everything the kernel can load, beside the kernel; `None` for one that loads nothing.
pub(crate) fn modules(kernel: &Kernel) -> Result<Option<PathBuf>> {
    let Some(tree) = &kernel.tree else {
        return Ok(None);
    };
    let disk = kernel.directory.join("tree.erofs");
    if !disk.exists() {
        luna_image::erofs::from_directory(tree, &disk)?;
    }
    Ok(Some(disk))
}
