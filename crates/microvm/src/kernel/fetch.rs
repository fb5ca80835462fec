//! The distribution's own kernel, unpacked without being installed: modular, so that it can load what a small one lacks.

use std::fs;
use std::path::{Path, PathBuf};

use luna_core::event::{Progress, Sink};
use luna_core::name::Name;
use luna_core::{Error, Kind, Result};

use super::draft::Draft;
use super::manifest::{Architecture, File, Form, Manifest, Origin, VERSION};
use super::{Kernel, Store, Trust, build, inspect, modules, package, tool, verify};

/// What to fetch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchRequest {
    /// A package of a kernel, or one that depends on it; the distribution's cloud kernel where absent.
    pub package: Option<String>,
}

/// The kernel in the store, fetched unless this version of it is there.
pub fn fetch(store: &Store, request: &FetchRequest, progress: Sink) -> Result<Kernel> {
    let architecture = build::host()?;
    tool::require("fetch a kernel", &package::TOOLS)?;
    let wanted = match &request.package {
        Some(package) => package.clone(),
        None => format!("linux-image-cloud-{}", architecture.package()),
    };
    let found = package::candidate(&wanted, "linux-image-")?;
    let name = name_of(&found)?;
    if let Ok(kernel) = store.get(&name)
        && kernel.verify(Trust::Changed).is_ok()
    {
        return Ok(kernel);
    }
    let draft = Draft::new(store)?;
    let unpacked = package::unpacked(&found, &draft.path().join("work"), progress)?;
    progress(Progress::Started {
        key: "modules".to_owned(),
        label: format!("look through the modules of {}", found.name),
        total: None,
    });
    let origin = Origin::Fetched {
        package: found.name.clone(),
        version: found.version.clone(),
    };
    let image = only(&unpacked.join("boot"), "vmlinuz-").ok_or_else(|| no_kernel(&found.name))?;
    let tree = ["lib/modules", "usr/lib/modules"]
        .iter()
        .find_map(|place| only(&unpacked.join(place), ""))
        .ok_or_else(|| no_kernel(&found.name))?;
    let manifest = take(&draft, name, architecture, origin, &image, Some(&tree))?;
    let kernel = draft.publish(&manifest)?;
    progress(Progress::Finished {
        key: "modules".to_owned(),
        label: format!(
            "kernel {} ({}, {} modules at boot)",
            kernel.name,
            kernel.release,
            kernel.modules.len()
        ),
    });
    Ok(kernel)
}

fn no_kernel(package: &str) -> Error {
    Error::new(
        Kind::InvalidInput,
        format!("cannot fetch a kernel from the package `{package}`"),
    )
    .because("it holds no kernel with modules")
    .hint("name a package such as `linux-image-cloud-amd64`")
}

/// `linux-image-6.1.0-50-cloud-amd64` in version 6.1.170-1 is `cloud-6.1.170-1`.
fn name_of(package: &package::Package) -> Result<Name> {
    let kind = package
        .name
        .trim_start_matches("linux-image-")
        .split('-')
        .find(|part| matches!(*part, "cloud" | "rt"))
        .unwrap_or("full");
    build::name(&[kind, &package.version])
}

/// The one entry of `directory` whose name begins with `prefix`.
fn only(directory: &Path, prefix: &str) -> Option<PathBuf> {
    let mut entries = fs::read_dir(directory)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let first = entries.next()?.path();
    entries.next().is_none().then_some(first)
}

/// Moves a kernel file and its modules into the draft and describes them.
pub(super) fn take(
    draft: &Draft,
    name: Name,
    architecture: Architecture,
    origin: Origin,
    image: &Path,
    tree: Option<&Path>,
) -> Result<Manifest> {
    let found = inspect::inspect(image)?;
    if found.architecture != architecture {
        return Err(Error::new(
            Kind::Unsupported,
            format!("cannot use `{}` as a kernel", image.display()),
        )
        .because(format!(
            "it is for {}, not {}",
            found.architecture.as_str(),
            architecture.as_str()
        )));
    }
    let file = match found.form {
        Form::Vmlinux => "vmlinux",
        Form::BzImage => "bzImage",
        Form::Image => "Image",
    };
    let placed = draft.path().join(file);
    fs::copy(image, &placed).map_err(|e| Error::io(format!("cannot copy `{}`", image.display()), e))?;
    let modules = match tree {
        None => Vec::new(),
        Some(tree) => {
            let place = draft.path().join("tree");
            fs::rename(tree, &place)
                .map_err(|e| Error::io(format!("cannot move `{}`", tree.display()), e))?;
            take_modules(draft.path(), &found.release)?
        }
    };
    Ok(Manifest {
        version: VERSION,
        name,
        architecture,
        release: found.release,
        image: verify::describe(draft.path(), file)?,
        form: found.form,
        origin,
        modules,
        tree: tree.map(|_| "tree".to_owned()),
    })
}

/// Orders the modules a boot needs below `directory/tree`, uncompressed so that init can hand them to the kernel as they
/// are, and indexes the tree for a modprobe in the guest.
fn take_modules(directory: &Path, release: &str) -> Result<Vec<File>> {
    let tree = directory.join("tree");
    // Links to the headers' directory, which is not here.
    for link in ["build", "source"] {
        let _ = fs::remove_file(tree.join(link));
    }
    let index = modules::Index::read(&tree)?;
    let depends = |path: &Path| modules::depends(&plain(path)?);
    let order = index.order(&modules::BOOT, &depends)?;
    let files = order
        .iter()
        .map(|path| {
            let path = plain(path)?;
            let relative = path
                .strip_prefix(directory)
                .expect("the tree is below the directory");
            verify::describe(directory, &relative.to_string_lossy())
        })
        .collect::<Result<_>>()?;
    // Without depmod only the modules of the boot can be loaded by name.
    if tool::is_there("depmod") {
        index_tree(directory, &tree, release)?;
    }
    Ok(files)
}

/// depmod wants the tree at its usual place.
fn index_tree(directory: &Path, tree: &Path, release: &str) -> Result<()> {
    let base = directory.join("work/depmod");
    let place = base.join("lib/modules");
    let fail = |e| Error::io("cannot index the modules", e);
    fs::create_dir_all(&place).map_err(fail)?;
    fs::rename(tree, place.join(release)).map_err(fail)?;
    let outcome = tool::run(
        "index the modules",
        tool::command("depmod").arg("-b").arg(&base).arg(release),
    );
    fs::rename(place.join(release), tree).map_err(fail)?;
    outcome.map(drop)
}

/// The module without its compression; the compressed file is gone then.
fn plain(path: &Path) -> Result<PathBuf> {
    let name = path.to_string_lossy();
    let (unpacker, package, end) = match path.extension().and_then(|end| end.to_str()) {
        Some("xz") => ("xz", "xz-utils", ".xz"),
        Some("zst") => ("zstd", "zstd", ".zst"),
        Some("gz") => ("gzip", "gzip", ".gz"),
        _ => return Ok(path.to_owned()),
    };
    let bare = PathBuf::from(name.trim_end_matches(end));
    if bare.exists() {
        return Ok(bare);
    }
    tool::require("read the modules of this kernel", &[(unpacker, package)])?;
    let doing = format!("decompress `{}`", path.display());
    let mut command = tool::command(unpacker);
    command.args(["-d", "-q"]).arg("--").arg(path);
    tool::run(&doing, &mut command)?;
    let _ = fs::remove_file(path);
    Ok(bare)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::kernel::modules::tests::module;

    #[test]
    fn kernels_are_named_by_kind_and_version() {
        let name = |package: &str, version: &str| {
            name_of(&package::Package {
                name: package.to_owned(),
                version: version.to_owned(),
                size: None,
            })
            .unwrap()
            .to_string()
        };
        assert_eq!(
            name("linux-image-6.1.0-50-cloud-amd64", "6.1.170-1"),
            "cloud-6.1.170-1"
        );
        assert_eq!(
            name("linux-image-6.1.0-50-amd64", "6.1.170-1~bpo+1"),
            "full-6.1.170-1-bpo-1"
        );
    }

    #[test]
    fn modules_of_a_boot_are_found_decompressed_and_ordered() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree/kernel");
        fs::create_dir_all(&tree).unwrap();
        let write = |name: &str, info: &[u8]| fs::write(tree.join(name), module(info)).unwrap();
        write("virtio-pci.ko", b"depends=virtio_ring\0");
        write("virtio_ring.ko", b"depends=\0");
        for name in ["virtio_blk", "virtio_console", "ext4", "erofs", "overlay"] {
            write(&format!("{name}.ko"), b"depends=virtio-ring\0");
        }
        let packed = Command::new("xz").arg(tree.join("virtio_ring.ko")).status();
        if !packed.is_ok_and(|status| status.success()) {
            println!("skipped: this host has no xz");
            return;
        }
        let files = take_modules(directory.path(), "6.1.2-test").unwrap();
        let names: Vec<_> = files.iter().map(|file| file.file.as_str()).collect();
        assert_eq!(
            names[..2],
            ["tree/kernel/virtio_ring.ko", "tree/kernel/virtio-pci.ko"]
        );
        assert_eq!(names.len(), 7);
    }
}
