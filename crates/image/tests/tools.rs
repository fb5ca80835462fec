//! Images of other tools, through files and a real registry, bit for bit. Each test says which tool is missing and
//! passes without it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says why it skips"
)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use luna_core::event::Progress;
use luna_image::archive::{SaveFormat, load, load_layout, save, save_layout};
use luna_image::registry::{PullOptions, PushOptions, pull, push};
use luna_image::{ConfigChanges, Digest, Image, Reference, Store, import};

fn quiet(_: Progress) {}

fn has(tools: &[&str]) -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return false;
    }
    tools.iter().all(|tool| {
        let here = Command::new("sh")
            .args(["-c", &format!("command -v {tool}")])
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !here {
            println!("skipped: `{tool}` is not installed");
        }
        here
    })
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn store(directory: &Path, name: &str) -> Store {
    Store::open(&directory.join(name), false).unwrap()
}

fn sample(store: &Store) -> Image {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, mode) in [("etc/motd", 0o644), ("usr/bin/su", 0o4755)] {
        let mut header = tar::Header::new_gnu();
        header.set_size(path.len() as u64);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        archive.append_data(&mut header, path, path.as_bytes()).unwrap();
    }
    let bytes = archive.into_inner().unwrap();
    let changes = ConfigChanges {
        command: Some(vec!["/bin/sh".to_owned()]),
        created: Some("2024-01-01T00:00:00Z".to_owned()),
        ..ConfigChanges::default()
    };
    let reference = Reference::parse("sample:1").unwrap();
    import(store, &mut &bytes[..], Some(&reference), &changes, &quiet).unwrap()
}

/// Debian's registry on a free port of loopback; killed on drop.
struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    fn start(directory: &Path) -> Registry {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = directory.join("registry.yml");
        let data = directory.join("registry");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            data.display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", config.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Registry { child, port };
        let patience = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                patience.elapsed() < Duration::from_secs(20),
                "the registry does not start"
            );
            std::thread::yield_now();
        }
        registry
    }

    fn name(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }

    fn digest(&self, rest: &str) -> String {
        let name = format!("docker://{}", self.name(rest));
        run(
            "skopeo",
            &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &name],
        )
        .trim()
        .to_owned()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_real_registry_gives_back_what_it_got() {
    if !has(&["docker-registry", "skopeo"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::start(directory.path());
    let mine = store(directory.path(), "mine");
    let image = sample(&mine);
    let reference = Reference::parse(&registry.name("a/sample:1")).unwrap();
    mine.tag(&image, &reference).unwrap();
    let pushed = push(&mine, &reference, &PushOptions::default(), &quiet).unwrap();
    assert_eq!(pushed, image.manifest);
    assert_eq!(registry.digest("a/sample:1"), pushed.to_string());

    // From skopeo, in docker's own format and gzip, as most images in the world are.
    let archive = directory.path().join("docker.tar");
    let mut file = std::fs::File::create(&archive).unwrap();
    save(
        &mine,
        &["sample:1".to_owned()],
        SaveFormat::DockerArchive,
        &mut file,
    )
    .unwrap();
    let from = format!("docker-archive:{}", archive.display());
    let to = format!("docker://{}", registry.name("b/docker:2"));
    run(
        "skopeo",
        &["copy", "--dest-tls-verify=false", "--format=v2s2", &from, &to],
    );
    let theirs = registry.digest("b/docker:2");
    let other = store(directory.path(), "other");
    let reference = Reference::parse(&registry.name("b/docker:2")).unwrap();
    let pulled = pull(&other, &reference, &PullOptions::default(), &quiet).unwrap();
    assert_eq!(pulled.manifest.to_string(), theirs);
    let tree = other.tree(&pulled, &quiet).unwrap();
    assert_eq!(
        std::fs::read_to_string(tree[0].join("etc/motd")).unwrap(),
        "etc/motd"
    );
    let again = Reference::parse(&registry.name("c/again:3")).unwrap();
    other.tag(&pulled, &again).unwrap();
    push(&other, &again, &PushOptions::default(), &quiet).unwrap();
    assert_eq!(registry.digest("c/again:3"), theirs);

    // By digest, into an empty store.
    let pinned = Reference::parse(&format!("{}@{theirs}", registry.name("c/again"))).unwrap();
    let third = store(directory.path(), "third");
    assert_eq!(
        pull(&third, &pinned, &PullOptions::default(), &quiet).unwrap().id,
        pulled.id
    );
    assert_eq!(third.get(&pinned.to_string()).unwrap().id, pulled.id);
}

#[test]
fn skopeo_reads_what_is_saved_and_the_other_way_round() {
    if !has(&["skopeo"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let mine = store(directory.path(), "mine");
    let image = sample(&mine);
    let names = ["sample:1".to_owned()];

    let mut bytes = Vec::new();
    save(&mine, &names, SaveFormat::OciArchive, &mut bytes).unwrap();
    std::fs::write(path("oci.tar"), &bytes).unwrap();
    let inspected = run(
        "skopeo",
        &["inspect", "--raw", &format!("oci-archive:{}", path("oci.tar"))],
    );
    assert_eq!(Digest::of(inspected.as_bytes()), image.manifest);
    let other = store(directory.path(), "other");
    let loaded = load(&other, &mut &bytes[..], &quiet).unwrap();
    assert_eq!(loaded[0].manifest, image.manifest);
    assert_eq!(loaded[0].references, image.references);
    let mut again = Vec::new();
    save(&other, &names, SaveFormat::OciArchive, &mut again).unwrap();
    assert_eq!(Digest::of(&again), Digest::of(&bytes));

    let mut bytes = Vec::new();
    save(&mine, &names, SaveFormat::DockerArchive, &mut bytes).unwrap();
    std::fs::write(path("docker.tar"), &bytes).unwrap();
    let copied = format!("docker-archive:{}:sample:1", path("copied.tar"));
    run(
        "skopeo",
        &["copy", &format!("docker-archive:{}", path("docker.tar")), &copied],
    );
    let third = store(directory.path(), "third");
    let mut file = std::fs::File::open(path("copied.tar")).unwrap();
    let loaded = load(&third, &mut file, &quiet).unwrap();
    assert_eq!(loaded[0].layers[0].diff_id, image.layers[0].diff_id);
    assert_eq!(loaded[0].references, image.references);

    // Compressed as a whole, as people mail them.
    run("gzip", &["-k", &path("docker.tar")]);
    let fourth = store(directory.path(), "fourth");
    let mut file = std::fs::File::open(path("docker.tar.gz")).unwrap();
    assert_eq!(load(&fourth, &mut file, &quiet).unwrap()[0].id, image.id);
}

#[test]
fn umoci_and_luna_share_a_layout() {
    if !has(&["umoci", "skopeo"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let mine = store(directory.path(), "mine");
    let image = sample(&mine);
    save_layout(&mine, &["sample:1".to_owned()], Path::new(&path("layout"))).unwrap();
    run(
        "skopeo",
        &[
            "copy",
            &format!("oci:{}:1", path("layout")),
            &format!("oci:{}:1", path("copy")),
        ],
    );
    let other = store(directory.path(), "other");
    let loaded = load_layout(&other, Path::new(&path("copy")), &quiet).unwrap();
    assert_eq!(loaded[0].manifest, image.manifest);

    // An image made by umoci alone, with a whiteout in its second layer.
    let theirs = path("umoci");
    run("umoci", &["init", "--layout", &theirs]);
    run("umoci", &["new", "--image", &format!("{theirs}:x")]);
    run(
        "umoci",
        &["unpack", "--image", &format!("{theirs}:x"), &path("bundle")],
    );
    std::fs::create_dir_all(directory.path().join("bundle/rootfs/etc")).unwrap();
    std::fs::write(directory.path().join("bundle/rootfs/etc/gone"), "x").unwrap();
    std::fs::write(directory.path().join("bundle/rootfs/etc/kept"), "y").unwrap();
    run(
        "umoci",
        &[
            "repack",
            "--image",
            &format!("{theirs}:x"),
            "--refresh-bundle",
            &path("bundle"),
        ],
    );
    std::fs::remove_file(directory.path().join("bundle/rootfs/etc/gone")).unwrap();
    run(
        "umoci",
        &["repack", "--image", &format!("{theirs}:x"), &path("bundle")],
    );
    let third = store(directory.path(), "third");
    let loaded = load_layout(&third, Path::new(&theirs), &quiet).unwrap();
    let trees = third.tree(&loaded[0], &quiet).unwrap();
    assert_eq!(trees.len(), 2);
    let gone = trees[0].join("etc/gone").symlink_metadata().unwrap();
    assert!(std::os::unix::fs::FileTypeExt::is_char_device(&gone.file_type()));
    assert_eq!(std::fs::read_to_string(trees[1].join("etc/kept")).unwrap(), "y");
    // Back out: the same manifest.
    let id = loaded[0].id.to_string();
    save_layout(&third, &[id], Path::new(&path("back"))).unwrap();
    let back = store(directory.path(), "back-store");
    let again = load_layout(&back, Path::new(&path("back")), &quiet).unwrap();
    assert_eq!(again[0].manifest, loaded[0].manifest);
}

/// A mount that goes when this does.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_is_said_plainly_and_loses_nothing() {
    if !has(&["mount", "umount"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let small = directory.path().join("small");
    std::fs::create_dir(&small).unwrap();
    run(
        "mount",
        &["-t", "tmpfs", "-o", "size=1m", "tmpfs", small.to_str().unwrap()],
    );
    let _mounted = Mounted(&small);
    let store = Store::open(&small, false).unwrap();
    let image = sample(&store);
    let mut archive = tar::Builder::new(Vec::new());
    let content = vec![1; 4 << 20];
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    archive.append_data(&mut header, "big", &content[..]).unwrap();
    let bytes = archive.into_inner().unwrap();
    let reference = Reference::parse("big:1").unwrap();
    let error = import(
        &store,
        &mut &bytes[..],
        Some(&reference),
        &ConfigChanges::default(),
        &quiet,
    )
    .unwrap_err();
    assert_eq!(error.kind(), luna_core::Kind::Exhausted, "{error:?}");
    assert!(error.hint_text().unwrap().contains("luna prune"), "{error:?}");
    assert_eq!(store.get("sample:1").unwrap().id, image.id);
    assert!(store.find("big:1").unwrap().is_none());
    let left = std::fs::read_dir(small.join("layers")).unwrap().count();
    assert_eq!(left, 2, "the first image's tree and its record");
}
