//! The words every other crate speaks: what was asked ([`spec`]), what the host can do ([`host`]), which wall
//! follows ([`policy`]), what an engine builds ([`engine`]), what was measured of it ([`isolation`]) and how failure is
//! told ([`error`]).
//!
//! Nothing in here performs I/O or waits; it can be read, tested and fuzzed without a machine.

pub mod capability;
pub mod engine;
pub mod error;
pub mod event;
pub mod host;
pub mod isolation;
pub mod name;
pub mod policy;
pub mod process;
pub mod spec;
pub mod units;

pub use error::{Error, Kind, Result};
