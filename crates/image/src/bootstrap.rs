//! A base image where there is no registry: made with `mmdebstrap` from the package mirror this machine already uses,
//! then imported like any root filesystem.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use luna_core::event::{Progress, Sink};
use luna_core::{Error, Kind, Result};

use crate::import::{ConfigChanges, import_as};
use crate::{Image, Reference, Store};

/// Left out of `-slim` images, as Debian's own leave it out (debuerreotype, `slimify-excludes`).
const SLIM: [&str; 8] = [
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-include=/usr/share/locale/locale.alias",
    "--dpkgopt=path-exclude=/usr/share/info/*",
    "--dpkgopt=path-exclude=/usr/share/lintian/*",
    "--dpkgopt=path-exclude=/usr/share/groff/*",
];

/// What a reference asks to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    /// `debian` or `ubuntu`.
    distribution: &'static str,
    suite: String,
    slim: bool,
}

/// Whether [`bootstrap`] knows how to make `reference`: `debian:*` and `ubuntu:*` of docker's library.
pub fn is_supported(reference: &Reference) -> bool {
    plan(reference).is_some()
}

/// Makes `reference` from the machine's package mirror and gives it that name. Takes a minute or so; needs root (or a
/// user namespace with many ids) and the `mmdebstrap` package.
pub fn bootstrap(store: &Store, reference: &Reference, progress: Sink) -> Result<Image> {
    let make = || {
        let plan = plan(reference).ok_or_else(|| {
            Error::new(Kind::Unsupported, "cannot make this image here")
                .because("only `debian:SUITE` and `ubuntu:SUITE` can be made from packages")
                .hint(format!("luna pull {}", reference.familiar()))
        })?;
        let mirror = mirror(Path::new("/etc/apt"), &plan)?;
        progress(Progress::Note {
            text: format!(
                "making {} from the packages of {} {}",
                reference.familiar(),
                plan.distribution,
                plan.suite
            ),
        });
        run(store, reference, &plan, &mirror, progress)
    };
    make().map_err(|error: Error| error.context(format!("cannot bootstrap `{}`", reference.familiar())))
}

fn run(store: &Store, reference: &Reference, plan: &Plan, mirror: &Mirror, progress: Sink) -> Result<Image> {
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--variant=minbase", "--format=tar", "--quiet"])
        .args([
            "--aptopt=Acquire::Languages \"none\"",
            "--aptopt=APT::Install-Recommends \"false\"",
        ])
        .arg("--customize-hook=rm -rf \"$1\"/var/cache/apt/* \"$1\"/var/log/*")
        .arg(format!("--components={}", mirror.components));
    if plan.slim {
        command.args(SLIM);
    }
    if let Some(keyring) = &mirror.keyring {
        command.arg(format!("--keyring={}", keyring.display()));
    }
    command
        .arg(&plan.suite)
        .arg("-")
        .arg(&mirror.uri)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| Error::io("cannot run `mmdebstrap`", error).hint("apt-get install mmdebstrap"))?;
    let mut output = child
        .stdout
        .take()
        .expect("its standard output was asked to be a pipe");
    let errors = child
        .stderr
        .take()
        .expect("its standard error was asked to be a pipe");
    let complaints = std::thread::spawn(move || {
        let mut text = Vec::new();
        // Only the beginning is shown; the rest must pass so that the program does not block.
        let mut errors = errors;
        let _ = (&mut errors).take(64 << 10).read_to_end(&mut text);
        let _ = std::io::copy(&mut errors, &mut std::io::sink());
        String::from_utf8_lossy(&text).into_owned()
    });
    let changes = ConfigChanges {
        command: Some(vec!["bash".to_owned()]),
        comment: Some(format!(
            "{} {} made by luna from packages",
            plan.distribution, plan.suite
        )),
        ..ConfigChanges::default()
    };
    // The name is given only when the program ended well: half an archive must not become the image.
    let imported = import_as(store, &mut output, None, &changes, true, progress);
    drop(output);
    let status = child
        .wait()
        .map_err(|error| Error::io("cannot wait for `mmdebstrap`", error))?;
    let complaints = complaints.join().unwrap_or_default();
    if !status.success() {
        let last = complaints.lines().rev().find(|line| !line.trim().is_empty());
        return Err(Error::new(
            Kind::Unavailable,
            "cannot make the root filesystem with `mmdebstrap`",
        )
        .because(last.unwrap_or("it gave no reason").trim().to_owned())
        .hint("check that `apt-get update` works on this machine"));
    }
    let image = imported?;
    store.tag(&image, reference)?;
    store.get(&reference.to_string())
}

fn plan(reference: &Reference) -> Option<Plan> {
    if reference.registry() != "docker.io" || reference.digest().is_some() {
        return None;
    }
    let distribution = match reference.repository() {
        "library/debian" => "debian",
        "library/ubuntu" => "ubuntu",
        _ => return None,
    };
    let tag = reference.tag()?;
    let (suite, slim) = match tag.strip_suffix("-slim") {
        Some(suite) => (suite, true),
        None => (tag, false),
    };
    let suite = match (distribution, suite) {
        ("debian", "latest" | "stable" | "12") => "bookworm",
        ("debian", "13") => "trixie",
        ("debian", "11") => "bullseye",
        ("ubuntu", "latest" | "24.04") => "noble",
        ("ubuntu", "22.04") => "jammy",
        (_, suite) => suite,
    };
    let reads_well = !suite.is_empty() && suite.bytes().all(|b| b.is_ascii_lowercase());
    reads_well.then(|| Plan {
        distribution,
        suite: suite.to_owned(),
        slim,
    })
}

/// Where packages come from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mirror {
    uri: String,
    /// Joined by commas.
    components: String,
    keyring: Option<PathBuf>,
}

/// The first source of apt's that serves this distribution: the machine's own choice of mirror.
fn mirror(apt: &Path, plan: &Plan) -> Result<Mirror> {
    let mut files = vec![apt.join("sources.list")];
    if let Ok(entries) = std::fs::read_dir(apt.join("sources.list.d")) {
        let mut more: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    let keyring = keyring(plan)?;
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        let found = match file.extension().is_some_and(|extension| extension == "sources") {
            true => from_deb822(&text, plan),
            false => from_list(&text, plan),
        };
        if let Some((uri, components)) = found {
            return Ok(Mirror {
                uri,
                components,
                keyring,
            });
        }
    }
    Err(Error::new(
        Kind::NotFound,
        format!("cannot find a package mirror of {}", plan.distribution),
    )
    .because(format!("no source below `{}` serves it", apt.display()))
    .hint(format!(
        "add a line such as `deb URI {} main` to /etc/apt/sources.list",
        plan.suite
    )))
}

/// Another distribution's packages are only as good as the key they are checked with.
fn keyring(plan: &Plan) -> Result<Option<PathBuf>> {
    let path = PathBuf::from(format!(
        "/usr/share/keyrings/{}-archive-keyring.gpg",
        plan.distribution
    ));
    match path.is_file() {
        true => Ok(Some(path)),
        false => Err(Error::new(
            Kind::NotFound,
            format!("cannot check the packages of {}", plan.distribution),
        )
        .because(format!("`{}` is not there", path.display()))
        .hint(match plan.distribution {
            "ubuntu" => "apt-get install ubuntu-keyring",
            _ => "apt-get install debian-archive-keyring",
        })),
    }
}

/// Whether a source is the distribution's archive itself, not its security or updates sub-archive or another vendor.
fn serves(uri: &str, suites: &[&str], plan: &Plan) -> bool {
    let path = uri.trim_end_matches('/');
    let is_web = path.starts_with("http://") || path.starts_with("https://");
    is_web
        && path.ends_with(&format!("/{}", plan.distribution))
        && suites.iter().any(|suite| !suite.contains("security"))
}

fn from_list(text: &str, plan: &Plan) -> Option<(String, String)> {
    text.lines().find_map(|line| {
        let line = line.split('#').next()?.trim();
        let mut rest = line.strip_prefix("deb ")?.trim_start();
        if let Some(options) = rest.strip_prefix('[') {
            rest = options.split_once(']')?.1.trim_start();
        }
        let mut words = rest.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        let components: Vec<&str> = words.collect();
        serves(uri, &[suite], plan).then(|| (uri.to_owned(), components.join(",")))
    })
}

fn from_deb822(text: &str, plan: &Plan) -> Option<(String, String)> {
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| {
            stanza.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        if field("Enabled") == Some("no") || !field("Types")?.split_whitespace().any(|kind| kind == "deb") {
            return None;
        }
        let suites: Vec<&str> = field("Suites")?.split_whitespace().collect();
        let components: Vec<&str> = field("Components").unwrap_or("main").split_whitespace().collect();
        let uri = field("URIs")?
            .split_whitespace()
            .find(|uri| serves(uri, &suites, plan))?;
        Some((uri.to_owned(), components.join(",")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(text: &str) -> Option<Plan> {
        plan(&Reference::parse(text).unwrap())
    }

    #[test]
    fn what_can_be_made_is_told_from_what_cannot() {
        let slim = planned("debian:bookworm-slim").unwrap();
        assert_eq!((slim.suite.as_str(), slim.slim), ("bookworm", true));
        assert_eq!(planned("debian").unwrap().suite, "bookworm");
        assert_eq!(planned("ubuntu:24.04").unwrap().suite, "noble");
        for other in [
            "alpine",
            "ghcr.io/library/debian:bookworm",
            "debian:12.5-slim",
            "me/debian:bookworm",
        ] {
            assert_eq!(planned(other), None, "{other}");
        }
    }

    #[test]
    fn apts_sources_are_read_in_both_forms() {
        let plan = planned("debian:bookworm").unwrap();
        let list = "# deb http://commented/debian bookworm main\n\
                    deb http://deb.example.org/debian-security bookworm-security main\n\
                    deb [arch=amd64 signed-by=/k.gpg] https://mirror.example.org/debian bookworm main contrib\n";
        assert_eq!(
            from_list(list, &plan).unwrap(),
            (
                "https://mirror.example.org/debian".to_owned(),
                "main,contrib".to_owned()
            )
        );
        let deb822 = "Types: deb\nURIs: http://a.example/debian-security\nSuites: bookworm-security\nComponents: main\n\n\
                      Types: deb deb-src\nURIs: http://a.example/debian/\nSuites: bookworm bookworm-updates\nComponents: main\n";
        assert_eq!(
            from_deb822(deb822, &plan).unwrap(),
            ("http://a.example/debian/".to_owned(), "main".to_owned())
        );
        assert_eq!(from_list("deb file:/srv/debian bookworm main", &plan), None);
    }
}
