//! One RUN for whoever can run it: what the builder hands to the runtime, which has the engines.

use luna_core::engine::{Mount, Tree};
use luna_core::process::Process;
use luna_core::spec::Network;

/// A program to run over a stage's layers. The runtime starts it behind a wall, waits, and answers with its exit
/// status; the builder then makes a layer of what is in `tree.upper`.
///
/// What the runtime owes: every file that the step leaves in `upper` belongs to `id_base` (of the build's request) plus
/// its id inside the step; whiteouts and opaque directories are overlayfs' own; nothing else writes to `upper` any more
/// when the call returns. The builder removes the mount points that an engine had to make.
#[derive(Debug)]
pub struct Step<'a> {
    /// `[2/7] RUN make`: for logs and for the sandbox's name.
    pub label: &'a str,
    /// Lower directories topmost first, never empty; upper and work are fresh, owned by `id_base`, in one file system.
    pub tree: Tree,
    /// Names of users are looked up inside, by init.
    pub process: Process,
    /// In the order in which to mount them. Sources belong to the builder until the call returns; owners in them are
    /// ids of the step, as in a volume.
    pub mounts: Vec<Mount>,
    pub network: Network,
    /// Takes standard output and standard error as they come, in pieces of any size, from any thread.
    pub output: Output<'a>,
}

/// Where a step's output goes.
#[derive(Clone, Copy)]
pub struct Output<'a>(pub(super) &'a (dyn Fn(&[u8]) + Send + Sync));

impl Output<'_> {
    pub fn write(&self, bytes: &[u8]) {
        (self.0)(bytes);
    }
}

impl std::fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Output")
    }
}
