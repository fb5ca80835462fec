//! The container engine: a sandbox that shares the host's kernel, with `luna-init` as its first process behind the whole
//! wall of `luna-jail`, on a root file system of layers.
//!
//! It decides nothing: a [`Bundle`] says it all. The host never enters a running sandbox; init's channel (descriptor 3
//! inside, a stream socket) is the only way to talk to it.

mod bundle;
mod instance;

use luna_core::Result;
use luna_core::engine::{Bundle, Engine, EngineProfile, Instance, RootForm, Wall};
use luna_core::host::EngineReport;
use luna_core::name::Id;

/// The engine; it has no state, so one is as good as another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Container;

/// The descriptor at which init finds its channel.
pub const CHANNEL: i32 = 3;

impl Engine for Container {
    fn profile(&self) -> EngineProfile {
        EngineProfile {
            wall: Wall::Container,
            accelerator: None,
            root: RootForm::Tree,
        }
    }

    fn probe(&self) -> EngineReport {
        EngineReport {
            profile: self.profile(),
            checks: luna_jail::probe(),
        }
    }

    /// The sandbox dies with the thread that calls this: call it from one that lives as long as the sandbox shall.
    fn start(&self, bundle: Bundle) -> Result<Box<dyn Instance>> {
        instance::start(bundle).map(|instance| Box::new(instance) as Box<dyn Instance>)
    }

    fn reclaim(&self, id: &Id) -> Result<()> {
        luna_jail::reclaim(id.as_str())
    }
}
