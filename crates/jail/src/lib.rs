//! The one wall round one trusted first process: namespaces, mounts, cgroups, capabilities, seccomp and Landlock.
//!
//! [`launch`] takes a [`Spec`] with nothing left to decide and returns a [`Jailed`] whose drop ends it. The container
//! engine jails an init with it, the VM engine its VMM; nothing in here knows of images or machines.
//!
//! The launcher's own namespaces, working directory, signal state and descriptors stay as they are: mounts are made
//! detached and handed to the child, which attaches them in its own namespace. What runs between clone and execve is a
//! list of steps written beforehand (`plan`), followed without allocation (`child`).

mod cgroup;
mod child;
mod ids;
mod jailed;
mod landlock;
mod launch;
mod mount;
mod plan;
mod probe;
mod resolve;
pub mod rootless;
mod sealed;
mod seccomp;
pub mod spec;
mod step;
mod sys;

pub use jailed::{Handle, Jailed};
pub use launch::{launch, reclaim};
pub use probe::probe;
pub use sealed::{sealed, sealed_bytes};
pub use spec::Spec;
