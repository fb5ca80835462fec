//! The executables under test, built as the suite was.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where cargo put this suite, and puts everything else built with the same profile.
fn directory() -> PathBuf {
    let own = std::env::current_exe().expect("a running program has a path");
    own.parent()
        .and_then(Path::parent)
        .expect("a test lies in `deps` of the target directory")
        .to_owned()
}

fn build(package: &str, name: &str) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package", package, "--bin", name]);
    if directory().ends_with("release") {
        cargo.arg("--release");
    }
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(
        cargo.status().expect("cargo runs").success(),
        "`{name}` was built"
    );
    directory().join(name)
}

/// `luna-init`, built on first use.
pub fn init() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("luna-guest", "luna-init"))
}

/// `luna-virtiofs`, built on first use.
pub fn virtiofs() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("luna-virtiofs", "luna-virtiofs"))
}

/// `luna`: the one that `LUNA` names, or built on first use.
pub fn luna() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| std::env::var_os("LUNA").map_or_else(|| build("luna", "luna"), PathBuf::from))
}

/// The attempts' program; cargo builds it with the suite.
pub fn attempt() -> PathBuf {
    directory().join("attempt")
}

/// The launcher of single walls; cargo builds it with the suite.
pub fn cell() -> PathBuf {
    directory().join("cell")
}
