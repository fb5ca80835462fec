//! What an exported disk tells its machine, which has no host to ask: one postcard value in a file of the first root.

use luna_core::process::Process;
use serde::{Deserialize, Serialize};

use super::Violation;
use super::machine::Setup;
use super::message::{decode, encode};

/// The file's name, below the first root.
pub const FILE: &str = "luna.machine";
/// The version of its content; init and the file are always put on a disk together.
pub const VERSION: u16 = 1;
/// The small file that the guest fills in itself, by what its network says.
pub const RESOLVER: &str = "/etc/resolv.conf";

/// Everything a machine needs to become one image, whenever it is turned on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standalone {
    pub version: u16,
    /// The partition that holds the image, by its name in the partition table.
    pub base: String,
    /// The partition that holds what is written.
    pub upper: String,
    /// Its entropy and its time are not looked at: the machine has its own clock and generator.
    pub setup: Setup,
    /// Started again whenever it ends.
    pub process: Process,
}

impl Standalone {
    /// The file's content.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads the file; one of another version cannot be read.
    pub fn parse(bytes: &[u8]) -> Result<Standalone, Violation> {
        match decode::<Standalone>(bytes) {
            Ok(told) if told.version == VERSION => Ok(told),
            _ => Err(Violation("a description of the machine that cannot be read")),
        }
    }
}
