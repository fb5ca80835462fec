//! The small kernel: everything built in, compiled from the distribution's kernel source with Luna's configuration.
//!
//! What is made is named by what went into it (source version, configuration), so that the same is compiled once.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use luna_core::event::{Progress, Sink};
use luna_core::name::Name;
use luna_core::{Error, Kind, Result};

use super::draft::Draft;
use super::manifest::{Architecture, Origin};
use super::package::{self, Package};
use super::{Kernel, Store, Trust, fetch, tool, verify};

const COMMON: &str = include_str!("../../kernel/common.config");
const X86_64: &str = include_str!("../../kernel/x86_64.config");
const AARCH64: &str = include_str!("../../kernel/aarch64.config");

/// Without these no sandbox boots: a source that does not know one of them by this name is refused before it is compiled.
const ESSENTIAL: [&str; 9] = [
    "CONFIG_VIRTIO_PCI=y",
    "CONFIG_VIRTIO_BLK=y",
    "CONFIG_VIRTIO_CONSOLE=y",
    "CONFIG_EROFS_FS=y",
    "CONFIG_EXT4_FS=y",
    "CONFIG_OVERLAY_FS=y",
    "CONFIG_DEVTMPFS=y",
    "CONFIG_BLK_DEV_INITRD=y",
    "CONFIG_SECCOMP_FILTER=y",
];

/// About as many steps as a build has; they are only counted.
const STEPS: u32 = 1650;

/// What to build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildRequest {
    /// A source archive (`linux-X.Y.tar.xz`); the distribution's newest `linux-source` package where absent.
    pub source: Option<PathBuf>,
    /// Compilers at once; the number of processors where absent.
    pub jobs: Option<u32>,
}

/// Where the source comes from, before any of it is unpacked.
enum Source {
    Archive {
        path: PathBuf,
        name: String,
        version: String,
    },
    Package(Package),
}

/// The kernel in the store, compiled unless the same was.
pub fn build(store: &Store, request: &BuildRequest, progress: Sink) -> Result<Kernel> {
    let architecture = host()?;
    let configuration = configuration(architecture);
    let config = verify::digest_of(configuration.as_bytes());
    tool::require("build a kernel", &TOOLS)?;
    let source = find(request)?;
    let (package, version) = match &source {
        Source::Archive { name, version, .. } => (name.clone(), version.clone()),
        Source::Package(package) => (package.name.clone(), package.version.clone()),
    };
    let name = name(&["small", &version, &config[..8]])?;
    if let Ok(kernel) = store.get(&name)
        && kernel.verify(Trust::Changed).is_ok()
    {
        return Ok(kernel);
    }
    let draft = Draft::new(store)?;
    let work = draft.path().join("work");
    let tree = unpack(&source, &work, progress)?;
    let compiled = compile(architecture, &configuration, &tree, &work, request.jobs, progress)?;
    fs::copy(work.join("build/.config"), draft.path().join("config"))
        .map_err(|e| Error::io("cannot keep the kernel's configuration", e))?;
    let origin = Origin::Built {
        package,
        version,
        config,
    };
    let manifest = fetch::take(&draft, name, architecture, origin, &compiled, None)?;
    draft.publish(&manifest)
}

const TOOLS: [(&str, &str); 11] = [
    ("make", "make"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("strip", "binutils"),
    ("bc", "bc"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
    ("perl", "perl"),
    // objtool reads ELF files with it.
    ("/usr/include/libelf.h", "libelf-dev"),
];

/// This host's architecture.
pub(super) fn host() -> Result<Architecture> {
    Architecture::host().ok_or_else(|| {
        Error::new(Kind::Unsupported, "cannot make a kernel for this processor").because(format!(
            "Luna has machines for x86_64 and aarch64, not {}",
            std::env::consts::ARCH
        ))
    })
}

/// A store's name from words that may hold what a name may not.
pub(super) fn name(words: &[&str]) -> Result<Name> {
    let text: String = words
        .join("-")
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '-'
            }
        })
        .take(Name::MAX)
        .collect();
    text.parse()
}

/// The configuration that is asked for: what all architectures have and what this one has.
fn configuration(architecture: Architecture) -> String {
    let own = match architecture {
        Architecture::X86_64 => X86_64,
        Architecture::Aarch64 => AARCH64,
    };
    format!("{COMMON}\n{own}")
}

fn find(request: &BuildRequest) -> Result<Source> {
    if let Some(path) = &request.source {
        let path = fs::canonicalize(path)
            .map_err(|e| Error::io(format!("cannot find the source `{}`", path.display()), e))?;
        let digest = verify::digest(&path)?;
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        return Ok(Source::Archive {
            path,
            name,
            version: digest[..12].to_owned(),
        });
    }
    tool::require("fetch the kernel's source", &package::TOOLS)?;
    let found = package::candidate("linux-source", "linux-source-")?;
    let installed = PathBuf::from(format!("/usr/src/{}.tar.xz", found.name));
    if installed.exists() && installed_version(&found.name).as_deref() == Some(found.version.as_str()) {
        return Ok(Source::Archive {
            path: installed,
            name: found.name,
            version: found.version,
        });
    }
    Ok(Source::Package(found))
}

fn installed_version(package: &str) -> Option<String> {
    let mut query = tool::command("dpkg-query");
    query.args(["-W", "-f", "${Version}", package]);
    tool::run("ask for a package", &mut query).ok()
}

/// Unpacks the source into `work` and gives its directory.
fn unpack(source: &Source, work: &Path, progress: Sink) -> Result<PathBuf> {
    let fail = |e| Error::io("cannot unpack the kernel's source", e);
    let place = work.join("source");
    fs::create_dir_all(&place).map_err(fail)?;
    let (archive, fetched) = match source {
        Source::Archive { path, .. } => (path.clone(), None),
        Source::Package(package) => {
            let tree = package::unpacked(package, work, progress)?;
            (tree.join(format!("usr/src/{}.tar.xz", package.name)), Some(tree))
        }
    };
    let begin = |label: &str| Progress::Started {
        key: "source".to_owned(),
        label: label.to_owned(),
        total: None,
    };
    progress(begin("unpack the kernel's source"));
    tool::run(
        "unpack the kernel's source",
        tool::command("tar")
            .arg("-xf")
            .arg(&archive)
            .arg("-C")
            .arg(&place),
    )?;
    if let Some(tree) = fetched {
        let _ = fs::remove_dir_all(tree);
    }
    progress(Progress::Finished {
        key: "source".to_owned(),
        label: "unpacked the kernel's source".to_owned(),
    });
    let mut entries = fs::read_dir(&place).map_err(fail)?.flatten();
    match (entries.next(), entries.next()) {
        (Some(only), None) if only.path().join("Kconfig").exists() => Ok(only.path()),
        _ => Err(Error::new(
            Kind::InvalidInput,
            format!("cannot build `{}`", archive.display()),
        )
        .because("it is no archive of a Linux source tree")),
    }
}

/// Configures and compiles; gives the kernel file.
fn compile(
    architecture: Architecture,
    configuration: &str,
    tree: &Path,
    work: &Path,
    jobs: Option<u32>,
    progress: Sink,
) -> Result<PathBuf> {
    let build = work.join("build");
    let fail = |e| Error::io("cannot build the kernel", e);
    fs::create_dir_all(&build).map_err(fail)?;
    let fragment = build.join("fragment");
    fs::write(&fragment, configuration).map_err(fail)?;
    let (arch, target) = match architecture {
        Architecture::X86_64 => ("x86_64", "vmlinux"),
        Architecture::Aarch64 => ("arm64", "Image"),
    };
    let make = || {
        let mut command = tool::command("make");
        command
            .arg("-C")
            .arg(tree)
            .arg(format!("O={}", build.display()))
            .arg(format!("ARCH={arch}"))
            // The same source and configuration give the same bytes, and nothing of this host is in them.
            .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
            .env("KBUILD_BUILD_USER", "luna")
            .env("KBUILD_BUILD_HOST", "luna");
        command
    };
    tool::run(
        "configure the kernel",
        make().arg("allnoconfig").env("KCONFIG_ALLCONFIG", &fragment),
    )?;
    let taken = fs::read_to_string(build.join(".config")).map_err(fail)?;
    let (missing, dropped) = judged(configuration, &taken);
    if !missing.is_empty() {
        return Err(
            Error::new(Kind::Unsupported, "cannot build a kernel from this source")
                .because(format!("it does not offer {}", missing.join(", "))),
        );
    }
    if !dropped.is_empty() {
        progress(Progress::Note {
            text: format!("this source does not offer {}", dropped.join(", ")),
        });
    }
    let jobs =
        jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |count| count.get() as u32));
    compile_all(make().arg(format!("-j{jobs}")).arg(target), work, progress)?;
    match architecture {
        Architecture::Aarch64 => Ok(build.join("arch/arm64/boot/Image")),
        Architecture::X86_64 => {
            let stripped = build.join("vmlinux.stripped");
            tool::run(
                "strip the kernel",
                tool::command("strip")
                    .arg("-o")
                    .arg(&stripped)
                    .arg(build.join("vmlinux")),
            )?;
            Ok(stripped)
        }
    }
}

/// Runs make and counts its steps aloud.
fn compile_all(make: &mut std::process::Command, work: &Path, progress: Sink) -> Result<()> {
    let fail = |e| Error::io("cannot build the kernel", e);
    let key = "compile".to_owned();
    progress(Progress::Started {
        key: key.clone(),
        label: "compile the kernel (about 8 minutes on two processors)".to_owned(),
        total: None,
    });
    let complaints = work.join("complaints");
    let mut child = make
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&complaints).map_err(fail)?)
        .spawn()
        .map_err(fail)?;
    let output = child.stdout.take().expect("it was piped");
    let mut steps = 0;
    for _ in BufReader::new(output.take(64 << 20))
        .lines()
        .map_while(Result::ok)
    {
        steps += 1;
        if steps % (STEPS / 10) == 0 && steps < STEPS {
            progress(Progress::Note {
                text: format!(
                    "  compiled {} of about 100 %",
                    u64::from(steps) * 100 / u64::from(STEPS)
                ),
            });
        }
    }
    let status = child.wait().map_err(fail)?;
    if !status.success() {
        let said = fs::read_to_string(&complaints).unwrap_or_default();
        return Err(tool::failed("build the kernel", "make", &said));
    }
    progress(Progress::Finished {
        key,
        label: format!("compiled the kernel ({steps} steps)"),
    });
    Ok(())
}

/// Which lines of the configuration did not come true: essential ones, and others.
fn judged<'a>(asked: &'a str, taken: &str) -> (Vec<&'a str>, Vec<&'a str>) {
    let taken: std::collections::BTreeSet<_> = taken.lines().collect();
    asked
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && !line.ends_with("=n") && !taken.contains(line))
        .partition(|line| ESSENTIAL.contains(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_configuration_is_one() {
        for architecture in [Architecture::X86_64, Architecture::Aarch64] {
            let text = configuration(architecture);
            let mut seen = std::collections::BTreeSet::new();
            for line in text
                .lines()
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
            {
                let (option, value) = line.split_once('=').unwrap();
                assert!(option.starts_with("CONFIG_") && !value.is_empty(), "{line}");
                assert!(seen.insert(option), "{option} is there twice");
            }
            for essential in ESSENTIAL {
                assert!(text.lines().any(|line| line == essential), "{essential}");
            }
        }
    }

    #[test]
    fn what_a_source_does_not_offer_is_told_apart() {
        let (missing, dropped) = judged(
            "# why\nCONFIG_VIRTIO_BLK=y\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=n\n",
            "CONFIG_B=y\n# CONFIG_A is not set\n",
        );
        assert_eq!(
            (missing, dropped),
            (vec!["CONFIG_VIRTIO_BLK=y"], vec!["CONFIG_A=y"])
        );
    }

    #[test]
    fn versions_become_names() {
        let text = |words: &[&str]| name(words).map(|name| name.to_string());
        assert_eq!(
            text(&["small", "1:6.1~rc2+x", "ab"]).unwrap(),
            "small-1-6.1-rc2-x-ab"
        );
        assert!(text(&["../x"]).is_err());
    }
}
