//! Guest kernels: a directory each, made whole, verified before it is booted.
//!
//! ```text
//! ROOT/kernels/NAME/
//!   kernel.json       the manifest (manifest.rs)
//!   vmlinux           or bzImage, or Image on arm64
//!   tree/             modular kernels only: what is /lib/modules/RELEASE in the guest
//!   verified.json     which files had their digest checked, and what they looked like then
//! ROOT/kernels/.new-*  being made; locked by whoever makes it, swept by the next who makes one
//! ```
//! A kernel comes from one of three places: [`build`] compiles the small one, [`fetch`] unpacks the distribution's,
//! [`import`] takes what somebody else made. The engine asks for [`Store::choose`] and gets files that are what
//! their manifest says.

pub mod build;
mod draft;
pub mod fetch;
pub mod import;
pub(crate) mod initramfs;
mod inspect;
pub mod manifest;
pub(crate) mod modules;
mod package;
pub(crate) mod tool;
mod verify;

use std::fs;
use std::path::{Path, PathBuf};

use luna_core::engine::Accelerator;
use luna_core::name::Name;
use luna_core::{Error, Kind, Result};

pub use initramfs::initramfs;
use manifest::Manifest;
pub use manifest::{Architecture, Form, Origin};

/// All kernels of one Luna.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

/// A kernel in the store. Its paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub name: Name,
    pub directory: PathBuf,
    /// What `-kernel` names.
    pub path: PathBuf,
    pub form: Form,
    pub architecture: Architecture,
    pub release: String,
    pub origin: Origin,
    /// What init loads, in this order; empty where everything is built in.
    pub modules: Vec<PathBuf>,
    /// What is `/lib/modules/RELEASE` in the guest; only for a kernel that loads modules.
    pub tree: Option<PathBuf>,
    /// Bytes of the kernel file.
    pub size: u64,
    manifest: Manifest,
}

/// What lies in the store under one name: a kernel, or why it is none.
#[derive(Debug)]
pub struct Entry {
    pub name: Name,
    pub kernel: Result<Kernel>,
}

/// How much is read before a kernel is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Digests of files that changed (size, times, inode) since they were last checked.
    Changed,
    /// Every digest.
    Nothing,
}

impl Store {
    /// The store in `directory`, which need not exist.
    pub fn open(directory: &Path) -> Store {
        Store {
            directory: directory.to_owned(),
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Everything in it, by name.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let fail = |e| Error::io(format!("cannot list `{}`", self.directory.display()), e);
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fail(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            if let Ok(name) = entry.map_err(fail)?.file_name().to_string_lossy().parse::<Name>() {
                let kernel = self.get(&name);
                found.push(Entry { name, kernel });
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// The kernel of that name, as its manifest tells of it; nothing is verified.
    pub fn get(&self, name: &Name) -> Result<Kernel> {
        let directory = self.directory.join(name.as_str());
        let path = directory.join("kernel.json");
        let bytes = match fs::File::open(&path).and_then(|file| read_at_most(file, manifest::MAXIMUM + 1)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("cannot find a kernel `{name}`"), error)
                    .hint("`luna kernel ls` lists them all"));
            }
            Err(error) => return Err(Error::io(format!("cannot read `{}`", path.display()), error)),
        };
        let manifest = Manifest::parse(&bytes).map_err(|e| corrupt(name, e))?;
        if manifest.name != *name {
            let why = Error::new(
                Kind::Corrupt,
                format!("its manifest calls it `{}`", manifest.name),
            );
            return Err(corrupt(name, why));
        }
        Ok(Kernel::of(directory, manifest))
    }

    /// The kernel to boot: the one asked for, else the best of this architecture: built before imported before fetched,
    /// then the newest. It is verified, so that what is booted is what was made.
    pub fn choose(&self, requested: Option<&str>) -> Result<Kernel> {
        let kernel = match requested {
            Some(name) => self.get(&name.parse()?)?,
            None => self
                .list()?
                .into_iter()
                .filter_map(|entry| entry.kernel.ok())
                .filter(|kernel| Some(kernel.architecture) == Architecture::host())
                .min_by(preferred)
                .ok_or_else(|| {
                    Error::new(Kind::NotFound, "cannot find a guest kernel")
                        .because(format!("`{}` has none for this processor", self.directory.display()))
                        .hint("`luna kernel fetch` takes the distribution's; `luna kernel build` makes a smaller one")
                })?,
        };
        if Some(kernel.architecture) != Architecture::host() {
            return Err(
                Error::new(Kind::Unsupported, format!("cannot boot kernel `{}`", kernel.name)).because(
                    format!(
                        "it is for {}, this host is {}",
                        kernel.architecture.as_str(),
                        std::env::consts::ARCH
                    ),
                ),
            );
        }
        kernel.verify(Trust::Changed)?;
        Ok(kernel)
    }

    /// Deletes a kernel. A machine that runs on it keeps running.
    pub fn remove(&self, name: &Name) -> Result<()> {
        let fail = |e| Error::io(format!("cannot remove kernel `{name}`"), e);
        let path = self.directory.join(name.as_str());
        if !path.exists() {
            return Err(
                Error::new(Kind::NotFound, format!("cannot find a kernel `{name}`"))
                    .hint("`luna kernel ls` lists them all"),
            );
        }
        // Out of sight at once and whole; what a crash leaves of it is swept with the drafts.
        let draft = draft::Draft::new(self)?;
        fs::rename(&path, draft.path().join("removed")).map_err(fail)
    }
}

impl Kernel {
    fn of(directory: PathBuf, manifest: Manifest) -> Kernel {
        Kernel {
            name: manifest.name.clone(),
            path: directory.join(&manifest.image.file),
            form: manifest.form,
            architecture: manifest.architecture,
            release: manifest.release.clone(),
            origin: manifest.origin.clone(),
            modules: manifest
                .modules
                .iter()
                .map(|module| directory.join(&module.file))
                .collect(),
            tree: manifest.tree.as_ref().map(|tree| directory.join(tree)),
            size: manifest.image.size,
            directory,
            manifest,
        }
    }

    pub fn modular(&self) -> bool {
        self.tree.is_some()
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Checks that the kernel file and the modules of a boot are what the manifest says; names the first that is not.
    pub fn verify(&self, trust: Trust) -> Result<()> {
        verify::verify(&self.directory, &self.manifest, trust).map_err(|e| corrupt(&self.name, e))
    }

    /// What the kernel is told. The engine may add to it; each word's reason is in docs/decisions/0008.
    pub fn command_line(&self, accelerator: Accelerator) -> String {
        let mut words = vec![
            "console=hvc0",
            "quiet",
            // A stopped kernel is a stopped machine (QEMU runs with `-no-reboot`).
            "panic=-1",
            "reboot=t",
            // Grace periods wait for interrupts instead of the next tick: mounts and namespaces become quick.
            "rcupdate.rcu_expedited=1",
            "cryptomgr.notests",
        ];
        if self.architecture == Architecture::X86_64 {
            words.extend(["tsc=reliable", "no_timer_check", "noreplace-smp"]);
        }
        if accelerator == Accelerator::Tcg {
            // Emulation does not speculate across the guest's own boundaries: there is nothing to mitigate.
            words.push("mitigations=off");
            if self.architecture == Architecture::X86_64 {
                // Each processor but the first would measure its delay loop, and on a busy host fail five times: 0.2 s.
                // That of 2.5 GHz at 250 Hz; only a few short waits of drivers go by it.
                words.push("lpj=10000000");
                // Reading ACPI's tables takes a quarter of an emulated boot. Processors and interrupts are found without
                // them, and a machine ends by a reset. A distribution's kernel is tried with them only, by its makers too.
                if !self.modular() {
                    words.push("acpi=off");
                }
            }
        }
        words.join(" ")
    }
}

fn preferred(a: &Kernel, b: &Kernel) -> std::cmp::Ordering {
    let newest = || release_key(&b.release).cmp(&release_key(&a.release));
    a.origin
        .rank()
        .cmp(&b.origin.rank())
        .then_with(newest)
        .then_with(|| b.name.cmp(&a.name))
}

/// The numbers of a release: 6.1.10 is newer than 6.1.9.
pub(crate) fn release_key(release: &str) -> Vec<u64> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

fn corrupt(name: &Name, because: Error) -> Error {
    match because.kind() {
        Kind::Corrupt => because
            .context(format!("cannot use kernel `{name}`"))
            .hint(format!(
                "remove it with `luna kernel rm {name}` and make it again"
            )),
        _ => because.context(format!("cannot use kernel `{name}`")),
    }
}

fn read_at_most(file: fs::File, most: usize) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    file.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::kernel::manifest::{File, VERSION};

    /// A kernel in `directory` whose boot loads these modules.
    pub(crate) fn kernel_with(directory: &Path, modules: &[(&str, &[u8])]) -> Kernel {
        fs::create_dir_all(directory.join("tree")).unwrap();
        let file = |name: String, content: &[u8]| {
            fs::write(directory.join(&name), content).unwrap();
            File {
                size: content.len() as u64,
                sha256: verify::digest(&directory.join(&name)).unwrap(),
                file: name,
            }
        };
        let manifest = Manifest {
            version: VERSION,
            name: directory
                .file_name()
                .unwrap()
                .to_string_lossy()
                .trim_start_matches('.')
                .parse()
                .unwrap(),
            architecture: Architecture::host().unwrap(),
            release: "6.1.2-test".to_owned(),
            image: file("vmlinux".to_owned(), b"\x7fELF"),
            form: Form::Vmlinux,
            origin: Origin::Imported {},
            modules: modules
                .iter()
                .map(|(name, content)| file(format!("tree/{name}"), content))
                .collect(),
            tree: (!modules.is_empty()).then(|| "tree".to_owned()),
        };
        fs::write(directory.join("kernel.json"), manifest.to_json()).unwrap();
        Kernel::of(directory.to_owned(), manifest)
    }

    fn store_with(names: &[(&str, Origin, &str)]) -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        for (name, origin, release) in names {
            let path = directory.path().join(name);
            let mut manifest = kernel_with(&path, &[]).manifest;
            manifest.origin = origin.clone();
            manifest.release = (*release).to_owned();
            fs::write(path.join("kernel.json"), manifest.to_json()).unwrap();
        }
        let store = Store::open(directory.path());
        (directory, store)
    }

    fn built() -> Origin {
        Origin::Built {
            package: "linux-source-6.1".to_owned(),
            version: "6.1.170-1".to_owned(),
            config: String::new(),
        }
    }

    fn fetched() -> Origin {
        Origin::Fetched {
            package: "linux-image-cloud-amd64".to_owned(),
            version: "6.1.170-1".to_owned(),
        }
    }

    #[test]
    fn a_built_kernel_is_chosen_before_a_newer_fetched_one() {
        let (_keep, store) = store_with(&[
            ("cloud", fetched(), "6.12.1"),
            ("old", built(), "6.1.9-luna"),
            ("small", built(), "6.1.10-luna"),
        ]);
        assert_eq!(store.choose(None).unwrap().name.as_str(), "small");
        assert_eq!(store.choose(Some("cloud")).unwrap().name.as_str(), "cloud");
        assert_eq!(store.choose(Some("none")).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(
            store.choose(Some("../cloud")).unwrap_err().kind(),
            Kind::InvalidInput
        );
    }

    #[test]
    fn an_empty_store_says_what_to_do() {
        let store = Store::open(Path::new("/nonexistent/kernels"));
        let error = store.choose(None).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.hint_text().unwrap().contains("luna kernel"));
    }

    #[test]
    fn a_corrupted_kernel_is_named() {
        let (_keep, store) = store_with(&[("small", built(), "6.1.9-luna")]);
        let kernel = store.choose(None).unwrap();
        // Twice: the first look remembers, and the second must not believe what was remembered.
        store.choose(None).unwrap();
        fs::write(&kernel.path, b"\x7fELG").unwrap();
        let error = store.choose(None).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.message().contains("`small`"), "{error:?}");
        assert!(format!("{error:?}").contains("vmlinux"), "{error:?}");
        fs::write(kernel.directory.join("kernel.json"), b"{").unwrap();
        let entries = store.list().unwrap();
        assert_eq!(entries[0].kernel.as_ref().unwrap_err().kind(), Kind::Corrupt);
        store.remove(&kernel.name).unwrap();
        assert!(store.list().unwrap().is_empty());
        assert_eq!(fs::read_dir(store.directory()).unwrap().count(), 0);
    }
}
