//! `kernel.json`: what a kernel directory says about itself.
//!
//! ```json
//! {
//!   "version": 1,
//!   "name": "small-6.1.170-1-0f3c9a12",
//!   "architecture": "x86_64",
//!   "release": "6.1.170-luna",
//!   "image": {"file": "vmlinux", "size": 15728640, "sha256": "…"},
//!   "form": "vmlinux",
//!   "origin": {"built": {"package": "linux-source-6.1", "version": "6.1.170-1", "config": "…"}},
//!   "modules": [{"file": "tree/kernel/drivers/virtio/virtio_pci.ko", "size": 40960, "sha256": "…"}],
//!   "tree": "tree"
//! }
//! ```
//! Read strictly: an unknown field, another version, or a path that leaves the directory is refused.

use std::path::{Component, Path};

use luna_core::name::Name;
use luna_core::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// The version this Luna writes and reads.
pub const VERSION: u32 = 1;

/// The most bytes of JSON that are read, and the most modules a boot may load.
pub const MAXIMUM: usize = 1 << 20;
const MODULES: usize = 512;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub version: u32,
    pub name: Name,
    pub architecture: Architecture,
    /// What `uname -r` says in the guest.
    pub release: String,
    pub image: File,
    pub form: Form,
    pub origin: Origin,
    /// What init loads before it mounts anything, in this order. Empty where everything is built in.
    pub modules: Vec<File>,
    /// The directory that is `/lib/modules/RELEASE` in the guest; only a kernel that loads modules has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<String>,
}

/// One file of the directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Relative to the kernel's directory.
    pub file: String,
    pub size: u64,
    /// 64 lower-case hexadecimal digits.
    pub sha256: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Architecture {
    #[serde(rename = "x86_64")]
    X86_64,
    #[serde(rename = "aarch64")]
    Aarch64,
}

impl Architecture {
    /// This host's; `None` on one that Luna has no machine for.
    pub fn host() -> Option<Architecture> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Architecture::X86_64),
            "aarch64" => Some(Architecture::Aarch64),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Architecture::X86_64 => "x86_64",
            Architecture::Aarch64 => "aarch64",
        }
    }

    /// Debian's word for it.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Architecture::X86_64 => "amd64",
            Architecture::Aarch64 => "arm64",
        }
    }
}

/// What kind of file the kernel is, and so how a machine enters it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// An uncompressed ELF file with a PVH entry.
    Vmlinux,
    /// x86's self-extracting image.
    BzImage,
    /// arm64's `Image`.
    Image,
}

/// Where a kernel came from; a built one is preferred to an imported one, and that to a fetched one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Origin {
    Built {
        package: String,
        version: String,
        /// SHA-256 of the configuration that was asked for.
        config: String,
    },
    Imported {},
    Fetched {
        package: String,
        version: String,
    },
}

impl Origin {
    /// Lower is preferred.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Origin::Built { .. } => 0,
            Origin::Imported {} => 1,
            Origin::Fetched { .. } => 2,
        }
    }

    pub fn verb(&self) -> &'static str {
        match self {
            Origin::Built { .. } => "built",
            Origin::Imported {} => "imported",
            Origin::Fetched { .. } => "fetched",
        }
    }
}

impl Manifest {
    /// Reads a manifest, whoever wrote it.
    pub fn parse(bytes: &[u8]) -> Result<Manifest> {
        // The version first: a newer one may have any other field.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let corrupt = || Error::new(Kind::Corrupt, "cannot read a kernel's manifest");
        if bytes.len() > MAXIMUM {
            return Err(corrupt().because(format!("it is larger than {} KiB", MAXIMUM >> 10)));
        }
        let versioned: Versioned = serde_json::from_slice(bytes).map_err(|e| corrupt().because(e))?;
        if versioned.version != VERSION {
            return Err(
                Error::new(Kind::Unsupported, "cannot read a kernel's manifest").because(format!(
                    "it has version {}, this Luna knows {VERSION}",
                    versioned.version
                )),
            );
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| corrupt().because(e))?;
        manifest.check().map_err(|why| corrupt().because(why))?;
        Ok(manifest)
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("strings and numbers are always JSON");
        bytes.push(b'\n');
        bytes
    }

    /// Everything the types do not say.
    fn check(&self) -> Result<(), String> {
        if !is_release(&self.release) {
            return Err(format!("`{}` is no kernel release", self.release.escape_debug()));
        }
        if self.modules.len() > MODULES {
            return Err(format!("more than {MODULES} modules"));
        }
        if !self.modules.is_empty() && self.tree.is_none() {
            return Err("it has modules and no tree of them".to_owned());
        }
        for file in self.files() {
            file.check()?;
        }
        if let Some(tree) = &self.tree {
            check_path(tree)?;
        }
        Ok(())
    }

    /// Every file a boot reads.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        std::iter::once(&self.image).chain(&self.modules)
    }

    pub fn modular(&self) -> bool {
        self.tree.is_some()
    }
}

impl File {
    fn check(&self) -> Result<(), String> {
        check_path(&self.file)?;
        let digits = self.sha256.bytes();
        if digits.len() != 64 || !digits.into_iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(format!("`{}` is no SHA-256 digest", self.sha256.escape_debug()));
        }
        Ok(())
    }
}

/// A release becomes part of a path in the guest.
pub(crate) fn is_release(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().next().is_some_and(|b| b.is_ascii_digit())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'+' | b'~'))
}

fn check_path(text: &str) -> Result<(), String> {
    let path = Path::new(text);
    let plain = !text.is_empty()
        && text.len() <= 4096
        && !text.contains('\0')
        && path.components().all(|part| matches!(part, Component::Normal(_)))
        && path.components().collect::<std::path::PathBuf>().as_os_str() == path.as_os_str();
    if plain {
        Ok(())
    } else {
        Err(format!(
            "`{}` is no path inside a kernel's directory",
            text.escape_debug()
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn sample() -> Value {
        json!({
            "version": 1,
            "name": "cloud-6.1.0-56-amd64",
            "architecture": "x86_64",
            "release": "6.1.0-56-cloud-amd64",
            "image": {"file": "bzImage", "size": 3, "sha256": DIGEST},
            "form": "bzimage",
            "origin": {"fetched": {"package": "linux-image-cloud-amd64", "version": "6.1.170-1"}},
            "modules": [{"file": "tree/kernel/virtio.ko", "size": 1, "sha256": DIGEST}],
            "tree": "tree"
        })
    }

    fn parse(value: &Value) -> Result<Manifest> {
        Manifest::parse(&serde_json::to_vec(value).unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        let manifest = parse(&sample()).unwrap();
        assert!(manifest.modular());
        assert_eq!(Manifest::parse(&manifest.to_json()).unwrap(), manifest);
    }

    #[test]
    fn hostile_manifests_are_refused() {
        let changes: [(&str, Value); 19] = [
            ("/version", json!(2)),
            ("/version", json!("1")),
            ("/name", json!("../escape")),
            ("/name", json!("")),
            ("/architecture", json!("riscv64")),
            ("/release", json!("")),
            ("/release", json!("6.1/../../etc")),
            ("/release", json!("..")),
            ("/image/file", json!("/etc/passwd")),
            ("/image/file", json!("../other/vmlinux")),
            ("/image/file", json!("a/./b")),
            ("/image/file", json!("a\u{0}b")),
            ("/image/size", json!(-1)),
            ("/image/sha256", json!("abc")),
            ("/image/sha256", json!(DIGEST.to_uppercase())),
            ("/form", json!("elf")),
            ("/modules/0/file", json!("tree/../../x.ko")),
            ("/tree", json!("..")),
            ("/tree", Value::Null),
        ];
        for (pointer, value) in changes {
            let mut hostile = sample();
            *hostile.pointer_mut(pointer).unwrap() = value.clone();
            assert!(parse(&hostile).is_err(), "{pointer} = {value} was taken");
        }
        let mut more = sample();
        more["extra"] = json!(1);
        assert!(parse(&more).is_err());
        let mut many = sample();
        many["modules"] = Value::Array(vec![many["modules"][0].clone(); MODULES + 1]);
        assert!(parse(&many).is_err());
        for bytes in [&b""[..], b"{}", b"[]", b"\xff", b"null", &vec![b' '; MAXIMUM + 1]] {
            assert!(Manifest::parse(bytes).is_err());
        }
    }

    #[test]
    fn a_newer_version_is_said_to_be_newer() {
        let error = Manifest::parse(br#"{"version": 7, "more": true}"#).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
    }
}
