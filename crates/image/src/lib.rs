//! OCI images on this host: what they are called ([`Reference`], [`Digest`]), where they are kept ([`Store`]), how
//! their layers become directories ([`layer`]) and how they come and go ([`registry`], [`archive`], [`import`],
//! [`bootstrap`], [`build`]).
//!
//! Every byte that enters is hashed on its way in and refused when it is not what its digest says; a layer becomes
//! visible only whole. Nothing in here knows an engine, prints, or waits for more than a network peer (with a bound).
//!
//! ```text
//! registry / archive / tar ──bytes──▶ blobs/sha256/<digest>          as they came, so a push repeats them bit for bit
//!                              └────▶ layers/<diff id>/              unpacked, in overlayfs' form, shared by images
//!                              └────▶ disks/<chain>.erofs            the same layers as a machine's root disk
//!                                     images.json                    which manifests there are and what they are called
//! ```

#![allow(
    clippy::match_bool,
    reason = "a match on a question reads as a table of its two answers"
)]

pub mod archive;
pub mod bootstrap;
pub mod build;
pub mod diff;
mod digest;
pub mod erofs;
mod files;
mod image;
pub mod import;
pub mod layer;
pub mod manifest;
mod platform;
mod populate;
mod reference;
pub mod registry;
mod store;
mod tarball;

pub use digest::{Digest, Hasher};
pub use image::{Extensions, Healthcheck, Image, Layer};
pub use import::{ConfigChanges, import};
pub use layer::remove::remove_tree;
pub use layer::{Compression, Limits};
pub use platform::Platform;
pub use populate::populate;
pub use reference::Reference;
pub use store::{Hold, Pruned, Removed, Store};
