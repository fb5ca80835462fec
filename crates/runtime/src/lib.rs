//! Luna's runtime: a spec becomes a decision, a bundle, an instance and a status. Every front door stands on
//! [`Runtime`]; none holds logic of its own.
//!
//! ```text
//! front door ──▶ Runtime ── create ──▶ sandbox on disk
//!                   └────── start  ──▶ supervisor process ──▶ engine ──▶ instance
//! front door ──▶ control::client ────▶ supervisor             (attach, exec, stop, copy, …)
//! ```
//! There is no daemon: one hidden supervisor per sandbox owns its instance, its ports and its log. Whoever holds a
//! [`Runtime`] may vanish at any moment.

mod build;
pub mod control;
mod events;
mod export;
mod health;
mod host;
mod layout;
mod log;
mod plan;
mod policy;
mod prepare;
mod ranges;
mod record;
mod registry;
mod runtime;
mod sandbox;
pub mod signal;
pub mod supervisor;
mod volumes;

pub use events::Events;
pub use export::ExportRequest;
pub use layout::Layout;
pub use log::{Line as LogLine, Reader as LogReader, Source as LogSource};
pub use policy::PolicyFile;
pub use record::{Content, Health, HealthStatus, ImageName, PlannedMount, Record, State, Status, TOKEN};
pub use runtime::{Pruned, Runtime, Supervision};
pub use sandbox::Sandbox;
pub use volumes::{Volume, Volumes};

// What a front door needs of the crates below, so that it depends on the runtime alone.
pub use luna_guest::protocol::{FileKind, FileStatus, GuestProcess};
pub use luna_image as image;
pub use luna_image::build::BuildRequest;
pub use luna_jail::rootless;
pub use luna_microvm::export::{Exported, Format as ExportFormat};
pub use luna_microvm::kernel;
pub use luna_network::ports::parse as parse_port;
