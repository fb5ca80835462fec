//! Ground for the two suites: the **escape suite** (`tests/escape.rs`), which tries to get out of a wall from inside and
//! takes single defences out to see that each attempt fails for its own reason, and the **contract suite**
//! (`tests/engines.rs`), which asks the same of every engine and then counts what is left on the host.

pub mod binaries;
pub mod bounded;
pub mod cell;
pub mod defence;
pub mod land;
pub mod luna;
pub mod peer;
