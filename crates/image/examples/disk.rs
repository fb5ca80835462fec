//! Makes the root disk of an image in a store, says how long each time took and prints the disk's path. `benches/disk`
//! runs it beside other tools.
//!
//! `disk STORE IMAGE` for an image, `disk --directory DIRECTORY OUT` for a directory.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program, not a library"
)]

use std::path::Path;
use std::time::Instant;

use luna_core::{Error, Kind, Result};
use luna_image::{Store, erofs};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let start = Instant::now();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--directory", directory, out] => {
            erofs::from_directory(Path::new(directory), Path::new(out))?;
            println!("{out}");
        }
        [store, image] => {
            let store = Store::open(Path::new(store), false)?;
            let path = store.disk(&store.get(image)?, &|_| {})?;
            println!("{}", path.display());
        }
        _ => return Err(Error::new(Kind::InvalidInput, "cannot read the arguments")),
    }
    eprintln!("{:.2} s, {} at most", start.elapsed().as_secs_f64(), peak());
    Ok(())
}

/// The most memory this process had.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or_else(|| "?".to_owned(), |text| text.trim().to_owned())
}
