//! The VMM on this host: where QEMU lies and what of the host's files it needs to run.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use luna_core::{Error, Kind, Result};
use rustix::fs::{Mode, OFlags};

/// The name of QEMU for this processor.
const PROGRAM: &str = concat_program();

const fn concat_program() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "qemu-system-aarch64"
    } else {
        "qemu-system-x86_64"
    }
}

const DIRECTORIES: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/usr/libexec", "/opt/qemu/bin"];

/// A QEMU that was found, with every directory its files lie in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Qemu {
    pub(crate) program: PathBuf,
    /// Directories of shared libraries and firmware; nothing else of the host is shown to it.
    pub(crate) directories: Vec<PathBuf>,
}

impl Qemu {
    /// Looks in the usual places, or at `LUNA_QEMU`.
    pub(crate) fn find() -> Result<Qemu> {
        let program = locate()?;
        let mut directories = BTreeSet::new();
        for library in libraries(&program)? {
            let Some(directory) = library.parent() else {
                continue;
            };
            // Parts of itself that QEMU loads when it needs them, by the name that is not a link's.
            let modules = std::fs::canonicalize(directory).map(|directory| directory.join("qemu"));
            directories.extend(modules.ok().filter(|path| path.is_dir()));
            directories.insert(directory.to_path_buf());
        }
        directories.extend(firmware(&program)?);
        let all: Vec<PathBuf> = directories.iter().cloned().collect();
        // A directory inside another one comes along with it.
        let directories = all
            .iter()
            .filter(|path| !all.iter().any(|other| *path != other && path.starts_with(other)))
            .cloned()
            .collect();
        Ok(Qemu { program, directories })
    }

    pub(crate) fn open(&self) -> Result<OwnedFd> {
        rustix::fs::open(&self.program, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Error::io(format!("cannot open `{}`", self.program.display()), e))
    }
}

fn locate() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("LUNA_QEMU").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(PROGRAM))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            Error::new(Kind::NotFound, format!("cannot find `{PROGRAM}`"))
                .because(format!("it is in none of {}", DIRECTORIES.join(", ")))
                .hint("install QEMU 7.2 or newer: `apt-get install qemu-system-x86`")
        })
}

/// What the dynamic loader would map for it, by the loader's own word; the loader itself included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let loader = interpreter(program)?;
    let output = run(Command::new(&loader).arg("--list").arg(program))?;
    let mut found = vec![loader];
    // `name => /path (address)`, `/path (address)` or a name the kernel provides.
    for line in output.lines() {
        let path = line.rsplit_once("=> ").map_or(line, |(_, path)| path).trim();
        let path = path.split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            found.push(path.into());
        }
    }
    Ok(found)
}

/// The `PT_INTERP` of an ELF file of 64 bits (System V ABI, "Program Header").
fn interpreter(program: &Path) -> Result<PathBuf> {
    use std::io::{Read, Seek, SeekFrom};
    let bad = || {
        Error::new(
            Kind::Unsupported,
            format!("cannot run `{}` as the VMM", program.display()),
        )
        .because("it is not a dynamically linked ELF executable of 64 bits")
        .hint("name QEMU's own executable with `LUNA_QEMU`, not a script around it")
    };
    let fail = |e| Error::io(format!("cannot read `{}`", program.display()), e);
    let mut file = std::fs::File::open(program).map_err(fail)?;
    let mut header = [0; 64];
    file.read_exact(&mut header).map_err(|_| bad())?;
    let word = |bytes: &[u8], at: usize| {
        bytes
            .get(at..at + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    };
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    if header[..5] != *b"\x7fELF\x02" {
        return Err(bad());
    }
    let (table, size, count) = (word(&header, 32), half(54), half(56));
    if !(56..=256).contains(&size) {
        return Err(bad());
    }
    let mut headers = vec![0; usize::from(size) * usize::from(count)];
    file.seek(SeekFrom::Start(table)).map_err(fail)?;
    file.read_exact(&mut headers).map_err(|_| bad())?;
    let interpreter = headers
        .chunks_exact(size.into())
        .find(|entry| entry[..4] == 3u32.to_le_bytes())
        .ok_or_else(bad)?;
    let (offset, length) = (word(interpreter, 8), word(interpreter, 32));
    if !(2..4096).contains(&length) {
        return Err(bad());
    }
    let mut name = vec![0; length as usize];
    file.seek(SeekFrom::Start(offset)).map_err(fail)?;
    file.read_exact(&mut name).map_err(|_| bad())?;
    name.pop();
    let name = String::from_utf8(name).map_err(|_| bad())?;
    Ok(name.into())
}

/// Where it looks for firmware: where the distributions put it, beside the program, or else by its own word, which takes a
/// tenth of a second to hear.
fn firmware(program: &Path) -> Result<Vec<PathBuf>> {
    const USUAL: [&str; 4] = ["share/qemu", "share/seabios", "lib/ipxe/qemu", "share/ipxe/qemu"];
    if let Some(prefix) = program.parent().and_then(Path::parent)
        && prefix.join(USUAL[0]).is_dir()
    {
        return Ok(USUAL
            .iter()
            .filter_map(|name| std::fs::canonicalize(prefix.join(name)).ok())
            .collect());
    }
    let output = run(Command::new(program).args(["-L", "help"]))?;
    Ok(output
        .lines()
        .filter_map(|line| std::fs::canonicalize(line.trim()).ok())
        .collect())
}

fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Error::io(format!("cannot run `{name}`"), e))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(
            Error::new(Kind::Unsupported, format!("cannot run `{name}`")).because(
                said.lines()
                    .next()
                    .unwrap_or("it failed without a word")
                    .to_owned(),
            ),
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_program_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(interpreter(file.path()).is_err());
        std::fs::write(file.path(), b"\x7fELF\x02".repeat(40)).unwrap();
        assert!(interpreter(file.path()).is_err());
    }
}
