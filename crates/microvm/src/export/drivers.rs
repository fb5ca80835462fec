//! The modules of a kernel that shall start anywhere: every disk, network card and bus that a hypervisor shows its guests.

use std::fs;
use std::path::Path;

use luna_core::{Error, Kind, Result};

use crate::kernel::modules::{self, Index, Need};
use crate::kernel::{Kernel, tool};

/// In the order they are loaded. Those that must be there tell a full kernel from one made for a single hypervisor.
const EVERYWHERE: [(&str, Need); 53] = [
    // Buses. Hyper-V's and Xen's refuse to load elsewhere, and so does what needs them.
    ("virtio_pci", Need::Must),
    ("virtio_rng", Need::May),
    ("hv_vmbus", Need::Must),
    ("button", Need::May),
    ("evdev", Need::May),
    ("crc32c_intel", Need::May),
    ("crc32c_generic", Need::May),
    ("crct10dif_generic", Need::May),
    // Disks.
    ("sd_mod", Need::Must),
    ("ata_piix", Need::Must),
    ("ata_generic", Need::May),
    ("ahci", Need::Must),
    ("nvme", Need::Must),
    ("virtio_blk", Need::Must),
    ("virtio_scsi", Need::Must),
    ("vmw_pvscsi", Need::Must),
    ("mptspi", Need::May),
    ("mptsas", Need::May),
    ("mpt3sas", Need::May),
    ("megaraid_sas", Need::May),
    ("BusLogic", Need::May),
    ("sym53c8xx", Need::May),
    ("hv_storvsc", Need::Must),
    ("xen_blkfront", Need::May),
    // Network cards.
    ("af_packet", Need::Must),
    ("ipv6", Need::May),
    ("virtio_net", Need::Must),
    ("e1000", Need::Must),
    ("e1000e", Need::Must),
    ("igb", Need::May),
    ("igbvf", Need::May),
    ("ixgbevf", Need::May),
    ("ena", Need::May),
    ("vmxnet3", Need::Must),
    ("hv_netvsc", Need::Must),
    ("xen_netfront", Need::May),
    ("pcnet32", Need::May),
    ("8139cp", Need::May),
    ("8139too", Need::May),
    ("tulip", Need::May),
    // The hypervisor's wishes: memory back, time, an orderly end.
    ("virtio_balloon", Need::May),
    ("vmw_balloon", Need::May),
    ("hv_balloon", Need::May),
    ("hv_utils", Need::May),
    // File systems.
    ("ext4", Need::Must),
    ("erofs", Need::Must),
    ("overlay", Need::Must),
    ("fuse", Need::May),
    ("unix", Need::May),
    ("tun", Need::May),
    ("veth", Need::May),
    ("loop", Need::May),
    ("binfmt_misc", Need::May),
];

/// The most bytes all modules may have: they are read by a firmware's slow drivers.
const MAXIMUM: usize = 64 << 20;

/// Whether this kernel has what every hypervisor needs of it.
pub(super) fn fits(kernel: &Kernel) -> bool {
    kernel
        .tree
        .as_ref()
        .and_then(|tree| Index::read(tree).ok())
        .is_some_and(|index| missing(&index).is_none())
}

fn missing(index: &Index) -> Option<&'static str> {
    EVERYWHERE
        .iter()
        .find(|(name, need)| *need == Need::Must && !index.has(name))
        .map(|(name, _)| *name)
}

/// The modules' names and contents, each after what it needs.
pub(super) fn drivers(kernel: &Kernel) -> Result<Vec<(String, Vec<u8>)>> {
    let unfit = |why: String| {
        Error::new(
            Kind::Unsupported,
            format!("cannot export with kernel `{}`", kernel.name),
        )
        .because(why)
        .hint("take a full one: `luna kernel fetch linux-image-amd64`")
    };
    let Some(tree) = &kernel.tree else {
        return Err(unfit("it has no modules".to_owned()));
    };
    let index = Index::read(tree)?;
    if let Some(name) = missing(&index) {
        return Err(unfit(format!("it has no `{name}`")));
    }
    let order = index.order(&EVERYWHERE, &|path| modules::needs(path, &plain(path)?))?;
    let mut size = 0;
    order
        .iter()
        .map(|path| {
            let content = plain(path)?;
            size += content.len();
            if size > MAXIMUM {
                return Err(unfit(format!("its modules have more than {} MiB", MAXIMUM >> 20)));
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let name = name.split_once(".ko").map_or(&*name, |(name, _)| name);
            Ok((format!("{name}.ko"), content))
        })
        .collect()
}

/// A module's content without its compression; the tree stays as it is.
fn plain(path: &Path) -> Result<Vec<u8>> {
    let fail = |e| Error::io(format!("cannot read the kernel module `{}`", path.display()), e);
    let (unpacker, package) = match path.extension().and_then(|end| end.to_str()) {
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        Some("gz") => ("gzip", "gzip"),
        _ => return fs::read(path).map_err(fail),
    };
    tool::require("read the modules of this kernel", &[(unpacker, package)])?;
    let output = tool::command(unpacker)
        .args(["-d", "-c", "-q", "--"])
        .arg(path)
        .output()
        .map_err(fail)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(tool::failed(
        &format!("decompress `{}`", path.display()),
        unpacker,
        &said,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::modules::tests::module;
    use crate::kernel::tests::kernel_with;

    #[test]
    fn a_kernel_for_one_hypervisor_is_refused_and_a_full_one_taken() {
        let directory = tempfile::tempdir().unwrap();
        let content = module(b"depends=\0");
        let kernel = kernel_with(directory.path(), &[("virtio_pci.ko", &content)]);
        let error = drivers(&kernel).unwrap_err();
        assert!(error.hint_text().unwrap().contains("linux-image-amd64"));
        assert!(!fits(&kernel));
        for (name, need) in EVERYWHERE {
            if need == Need::Must {
                fs::write(directory.path().join(format!("tree/{name}.ko")), &content).unwrap();
            }
        }
        let needing = module(b"depends=helper\0");
        fs::write(directory.path().join("tree/ahci.ko"), needing).unwrap();
        fs::write(directory.path().join("tree/helper.ko"), &content).unwrap();
        assert!(fits(&kernel));
        let names: Vec<_> = drivers(&kernel)
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let place = |wanted: &str| names.iter().position(|name| name == wanted).unwrap();
        assert_eq!(place("helper.ko") + 1, place("ahci.ko"));
    }
}
