//! The laws that hold the crates apart. `tests/law.rs` applies them to this repository; the functions here take plain
//! values, so that each law is also seen refusing what it is there to refuse.
//!
//! Invariants: a law never passes because something was not found: a crate that the table does not name is a breach,
//! and so is a file that does not parse.

pub mod edges;
pub mod source;
