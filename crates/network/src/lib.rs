//! What goes between a sandbox and the world. Knows no engine: whoever has a way in hands it over as a closure.

pub mod ports;
