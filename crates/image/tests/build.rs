//! Whole builds with real processes: steps run under `unshare` over a real overlay, with a small root file system made
//! of a static busybox. Needs root and busybox; where one is missing each test says so and passes.

#![allow(
    clippy::needless_pass_by_value,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, says why it was skipped, and has the signatures of what it tests"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use luna_core::engine::Mount;
use luna_core::event::Progress;
use luna_core::process::ExitStatus;
use luna_core::spec::Network;
use luna_core::{Error, Kind};
use luna_image::build::{BuildRequest, Step, build};
use luna_image::{ConfigChanges, Image, Reference, Store, import};

struct Bench {
    directory: tempfile::TempDir,
    store: Store,
    /// Everything that progress said.
    said: Mutex<String>,
}

/// `None` where the host cannot run steps.
fn bench() -> Option<Bench> {
    let busybox = Path::new("/bin/busybox");
    if !rustix::process::getuid().is_root() || !busybox.exists() {
        println!("skipped: steps need root and /bin/busybox (Debian: busybox-static)");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store"), false).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, content: &[u8], link: Option<&str>| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(content.len() as u64);
        header.set_mtime(1_000_000_000);
        match link {
            Some(target) => tar.append_link(&mut header, path, target).unwrap(),
            None => tar.append_data(&mut header, path, content).unwrap(),
        }
    };
    for (path, mode) in [
        ("usr/", 0o755),
        ("usr/bin/", 0o755),
        ("etc/", 0o755),
        ("tmp/", 0o1777),
        ("run/", 0o755),
    ] {
        add(path, tar::EntryType::Directory, mode, b"", None);
    }
    add(
        "usr/bin/busybox",
        tar::EntryType::Regular,
        0o755,
        &std::fs::read(busybox).unwrap(),
        None,
    );
    for applet in [
        "sh", "cat", "ls", "mkdir", "rm", "touch", "stat", "id", "env", "true", "false", "ln", "sleep",
        "grep",
    ] {
        add(
            &format!("usr/bin/{applet}"),
            tar::EntryType::Symlink,
            0o777,
            b"",
            Some("busybox"),
        );
    }
    add("bin", tar::EntryType::Symlink, 0o777, b"", Some("usr/bin"));
    add(
        "etc/passwd",
        tar::EntryType::Regular,
        0o644,
        b"root:x:0:0::/:/bin/sh\nme:x:1000:1001::/:/bin/sh\n",
        None,
    );
    add(
        "etc/group",
        tar::EntryType::Regular,
        0o644,
        b"root:x:0:\nstaff:x:50:\n",
        None,
    );
    let archive = tar.into_inner().unwrap();
    let name: Reference = "base:1".parse().unwrap();
    import(
        &store,
        &mut &archive[..],
        Some(&name),
        &ConfigChanges::default(),
        &|_| {},
    )
    .unwrap();
    Some(Bench {
        directory,
        store,
        said: Mutex::new(String::new()),
    })
}

impl Bench {
    fn context(&self) -> PathBuf {
        self.directory.path().join("context")
    }

    fn file(&self, path: &str, content: &str) {
        let path = self.context().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn request(&self) -> BuildRequest {
        std::fs::create_dir_all(self.context()).unwrap();
        BuildRequest {
            no_host_ca: true,
            ..BuildRequest::new(self.context())
        }
    }

    fn build(&self, request: &BuildRequest) -> luna_core::Result<Image> {
        self.said.lock().unwrap().clear();
        build(&self.store, request, &mut run, &|progress| {
            let mut said = self.said.lock().unwrap();
            match progress {
                Progress::Note { text } => writeln!(said, "{text}").unwrap(),
                Progress::Output { text } => said.push_str(&text),
                _ => {}
            }
        })
    }

    fn built(&self, dockerfile: &str) -> Image {
        self.file("Dockerfile", dockerfile);
        self.build(&self.request())
            .unwrap_or_else(|error| panic!("{error:?}\n{}", self.said()))
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// What a shell in the image answers.
    fn ask(&self, image: &Image, script: &str) -> String {
        let answer = Mutex::new(Vec::new());
        let text = format!("FROM {}\nRUN {script}\n", image.id.hex());
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("Dockerfile"), text).unwrap();
        let request = BuildRequest {
            no_host_ca: true,
            no_cache: true,
            ..BuildRequest::new(directory.path())
        };
        let name: Reference = "asked".parse().unwrap();
        self.store.tag(image, &name).unwrap();
        std::fs::write(
            directory.path().join("Dockerfile"),
            format!("FROM asked\nRUN {script}\n"),
        )
        .unwrap();
        build(&self.store, &request, &mut run, &|progress| {
            if let Progress::Output { text } = progress {
                answer.lock().unwrap().extend_from_slice(text.as_bytes());
            }
        })
        .unwrap();
        String::from_utf8(answer.into_inner().unwrap()).unwrap()
    }

    /// Paths of the image's topmost layer.
    fn top(&self, image: &Image) -> Vec<String> {
        let directory = self.store.layer_directory(image.layers.last().unwrap());
        let mut paths = Vec::new();
        walk(&directory, &directory, &mut paths);
        paths.sort();
        paths
    }
}

fn walk(root: &Path, directory: &Path, paths: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        paths.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        if path.symlink_metadata().unwrap().is_dir() {
            walk(root, &path, paths);
        }
    }
}

/// Runs a step as an engine would, as far as these tests need it.
fn run(step: Step<'_>) -> luna_core::Result<ExitStatus> {
    let quote = |path: &Path| format!("'{}'", path.display());
    let lower: Vec<String> = step
        .tree
        .lower
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let root = step.tree.work.with_file_name("root");
    std::fs::create_dir(&root).unwrap();
    let mut script = String::from("set -e\n");
    writeln!(
        script,
        "mount -t overlay overlay -o lowerdir='{}',upperdir={},workdir={} {}",
        lower.join(":"),
        quote(&step.tree.upper),
        quote(&step.tree.work),
        quote(&root)
    )
    .unwrap();
    writeln!(script, "cd {}; mkdir -p proc dev etc run; mount -t proc proc proc; mount -t tmpfs tmpfs dev; touch dev/null etc/resolv.conf; mount --bind /dev/null dev/null", quote(&root)).unwrap();
    for mount in &step.mounts {
        match mount {
            Mount::Bind {
                source,
                target,
                read_only,
            } => {
                let inside = root.join(target.strip_prefix("/").unwrap());
                let parent = inside.parent().unwrap();
                if source.is_dir() {
                    writeln!(script, "mkdir -p {}", quote(&inside)).unwrap();
                } else {
                    writeln!(script, "mkdir -p {}; touch {}", quote(parent), quote(&inside)).unwrap();
                }
                writeln!(script, "mount --bind {} {}", quote(source), quote(&inside)).unwrap();
                if *read_only {
                    writeln!(script, "mount -o remount,bind,ro {}", quote(&inside)).unwrap();
                }
            }
            Mount::Tmpfs { target, .. } => {
                let inside = root.join(target.strip_prefix("/").unwrap());
                writeln!(script, "mkdir -p {0}; mount -t tmpfs tmpfs {0}", quote(&inside)).unwrap();
            }
        }
    }
    let ids = match step.process.user.as_str() {
        "" => "",
        "me" => "--setgid=1001 --setuid=1000",
        other => panic!("no such user in these tests: {other}"),
    };
    writeln!(
        script,
        "exec unshare --root={} --wd={} {ids} \"$@\"",
        quote(&root),
        step.process.cwd
    )
    .unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child"]);
    if step.network == Network::None {
        command.arg("--net");
    }
    let mut child = command
        .args(["/bin/sh", "-c", &script, "sh"])
        .args(["env", "-i"])
        .args(
            step.process
                .env
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        )
        .args(&step.process.args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Error::io("cannot start a step", error))?;
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    std::thread::scope(|scope| {
        for stream in [&mut out as &mut (dyn std::io::Read + Send), &mut err] {
            let output = step.output;
            scope.spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count) = stream.read(&mut buffer) {
                    if count == 0 {
                        break;
                    }
                    output.write(&buffer[..count]);
                }
            });
        }
    });
    let status = child
        .wait()
        .map_err(|error| Error::io("cannot wait for a step", error))?;
    Ok(ExitStatus::Code(status.code().unwrap_or(255) as u8))
}

#[test]
fn files_and_programs_make_layers() {
    let Some(bench) = bench() else { return };
    bench.file("app/start.sh", "#!/bin/sh\necho started\n");
    bench.file("app/data/a.txt", "A");
    bench.file("app/secret.key", "hidden");
    bench.file(".dockerignore", "**/*.key\n");
    let image = bench.built(
        "FROM base:1\nARG WHO=world\nENV GREETING=\"hello $WHO\"\nWORKDIR /opt/app\nCOPY --chmod=755 app/start.sh ./\nCOPY --chown=me:staff app .\nRUN echo \"$GREETING\" > /greeting && cat data/a.txt\nCOPY --chown=me app/data/a.txt /bin/tool\nEXPOSE 8080\nUSER me\nRUN id -u && echo mine > /tmp/mine\nLABEL a=b\nCMD [\"/opt/app/start.sh\"]\n",
    );
    assert!(bench.said().contains("[7/7] RUN id -u"), "{}", bench.said());
    assert_eq!(
        image
            .config
            .config()
            .as_ref()
            .unwrap()
            .exposed_ports()
            .as_deref()
            .unwrap(),
        ["8080/tcp"]
    );
    let answer = bench.ask(
        &image,
        "cat /greeting /bin/tool; ls /opt/app; stat -c '%n %a %u:%g' /opt/app /opt/app/data /opt/app/start.sh /usr/bin/tool /tmp /tmp/mine; ls -d /bin /proc /dev /etc/resolv.conf 2>&1",
    );
    assert!(answer.starts_with("hello world\nAdata\nstart.sh\n"), "{answer}");
    for line in [
        "/opt/app 755 0:0",
        "/opt/app/data 755 1000:50",
        "/opt/app/start.sh 644 1000:50",
        "/usr/bin/tool 644 1000:1001",
        "/tmp 1777 0:0",
        "/tmp/mine 644 1000:1001",
    ] {
        assert!(answer.contains(line), "{line} is missing in\n{answer}");
    }
    assert_eq!(bench.top(&image), ["tmp", "tmp/mine"]);
}

#[test]
fn a_known_step_is_not_run_again_and_a_changed_file_is_noticed() {
    let Some(bench) = bench() else { return };
    bench.file("a", "1");
    let text = "FROM base:1\nCOPY a /a\nRUN cat /a > /b\nLABEL x=1\n";
    let first = bench.built(text);
    let again = bench.built(text);
    assert_eq!(first.id, again.id);
    assert!(bench.said().contains("[3/3] CACHED RUN"), "{}", bench.said());
    // Only a time changed.
    bench.file("a", "1");
    bench.built(text);
    assert!(bench.said().contains("[2/3] CACHED COPY"), "{}", bench.said());
    bench.file("a", "2");
    let changed = bench.built(text);
    assert!(!bench.said().contains("CACHED"), "{}", bench.said());
    assert_eq!(bench.ask(&changed, "cat /b"), "2");
    let fresh = BuildRequest {
        no_cache: true,
        ..bench.request()
    };
    bench.build(&fresh).unwrap();
    assert!(!bench.said().contains("CACHED"));
}

#[test]
fn the_same_epoch_gives_the_same_image() {
    let Some(bench) = bench() else { return };
    bench.file("a/b/c", "1");
    bench.file(
        "Dockerfile",
        "FROM base:1\nWORKDIR /w\nCOPY a /deep/er/\nRUN echo x > /x; mkdir /etc/y\nCMD [\"x\"]\n",
    );
    let request = BuildRequest {
        no_cache: true,
        epoch: Some(1_700_000_000),
        references: vec!["one".parse().unwrap(), "two:2".parse().unwrap()],
        ..bench.request()
    };
    let first = bench.build(&request).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    bench.file("a/b/c", "1");
    let second = bench.build(&request).unwrap();
    assert_eq!((first.id, first.manifest), (second.id, second.manifest));
    assert_eq!(first.created.as_deref(), Some("2023-11-14T22:13:20Z"));
    assert_eq!(bench.store.get("two:2").unwrap().id, first.id);
}

#[test]
fn stages_feed_each_other_and_only_needed_ones_run() {
    let Some(bench) = bench() else { return };
    let image = bench.built(
        "FROM base:1 AS build\nRUN mkdir /out && echo made > /out/x && ln -s x /out/y && rm /etc/group\nFROM base:1 AS unused\nRUN false\nFROM scratch\nCOPY --from=build /out /\nCOPY --from=base:1 /etc/pass* /e/\nCOPY <<one.txt <<-two.txt /docs/\nfirst\none.txt\n\tsecond\n\ttwo.txt\n",
    );
    assert!(!bench.said().contains("false"));
    let view: BTreeMap<String, String> = image
        .layers
        .iter()
        .flat_map(|layer| {
            let directory = bench.store.layer_directory(layer);
            let mut paths = Vec::new();
            walk(&directory, &directory, &mut paths);
            paths.into_iter().filter_map(move |path| {
                let content = std::fs::read_to_string(directory.join(&path)).ok()?;
                Some((path, content))
            })
        })
        .collect();
    assert_eq!(view["x"], "made\n");
    assert_eq!(view["y"], "made\n");
    assert!(view["e/passwd"].starts_with("root:"));
    assert_eq!(
        (view["docs/one.txt"].as_str(), view["docs/two.txt"].as_str()),
        ("first\n", "second\n")
    );
}

#[test]
fn mounts_leave_nothing_behind() {
    let Some(bench) = bench() else { return };
    bench.file("src/in.txt", "input");
    bench.file("token", "s3cret");
    let mut request = bench.request();
    request
        .secrets
        .insert("tok".to_owned(), bench.context().join("token"));
    request.no_host_ca = false;
    let dockerfile = |extra: &str| {
        format!(
            "FROM base:1\nRUN --mount=type=cache,target=/var/cache/x --mount=type=secret,id=tok,required --mount=type=secret,id=tok,env=TOKEN --mount=target=/src,source=src --mount=type=tmpfs,target=/scratch cat /src/in.txt /run/secrets/tok /var/cache/x/n 2>/dev/null; echo \"$TOKEN $SSL_CERT_FILE\"; echo 1 >> /var/cache/x/n; touch /scratch/y; stat -c %a /run/secrets/tok; {extra} touch /kept; ! touch /src/z 2>/dev/null\n"
        )
    };
    bench.file("Dockerfile", &dockerfile(""));
    let image = bench
        .build(&request)
        .unwrap_or_else(|error| panic!("{error:?} {}", bench.said()));
    assert!(bench.said().contains("inputs3crets3cret"), "{}", bench.said());
    assert!(bench.said().contains("\n400\n"), "{}", bench.said());
    assert_eq!(bench.top(&image), ["kept"]);
    // The cache outlives the build and is no input of the key.
    bench.build(&request).unwrap();
    assert!(bench.said().contains("CACHED RUN"));
    bench.file("Dockerfile", &dockerfile("true;"));
    bench.build(&request).unwrap();
    assert!(bench.said().contains("s3cret1\n"), "{}", bench.said());
    request.secrets.clear();
    request.no_cache = true;
    let error = bench.build(&request).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[test]
fn here_documents_run() {
    let Some(bench) = bench() else { return };
    let image = bench.built(
        "FROM base:1\nENV X=y\nRUN <<EOF\necho a$X > /one\necho b >> /one\nEOF\nRUN <<'EOF'\n#!/bin/cat\ninterpreted\nEOF\nRUN cat <<E > /two && echo done\nthe $X\nE\n",
    );
    assert!(bench.said().contains("interpreted\n"), "{}", bench.said());
    assert_eq!(bench.ask(&image, "cat /one /two"), "ay\nb\nthe y\n");
}

#[test]
fn a_failing_step_names_its_line_and_changes_nothing() {
    let Some(bench) = bench() else { return };
    let before = bench.store.list().unwrap().len();
    bench.file(
        "Dockerfile",
        "FROM base:1\n\nRUN echo going; \\\n  echo 'it broke' >&2; sh -c 'exit 7'\n",
    );
    let error = bench.build(&bench.request()).unwrap_err();
    let all = format!("{error:?}");
    assert!(
        all.contains("Dockerfile:3") && all.contains("exit code 7") && all.contains("it broke"),
        "{all}"
    );
    assert_eq!(bench.store.list().unwrap().len(), before);
    let left: Vec<_> = std::fs::read_dir(bench.store.root().join("build"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    for (text, part) in [
        ("FROM base:1\nCOPY nothere /\n", "no such file"),
        (
            "FROM base:1\nCOPY --chown=ghost Dockerfile /\n",
            "no user `ghost`",
        ),
        ("FROM base:1\nRUN --network=host true\n", "network"),
        ("FROM base:1\nONBUILD RUN x\n", "ONBUILD"),
        ("FROM base:1\nCOPY Dockerfile /etc/passwd/x\n", "no directory"),
        ("FROM base:1\nWORKDIR /etc/passwd\n", "no directory"),
    ] {
        bench.file("Dockerfile", text);
        let error = format!("{:?}", bench.build(&bench.request()).unwrap_err());
        assert!(
            error.contains(part) && error.contains("Dockerfile:2"),
            "{text}: {error}"
        );
    }
}

#[test]
fn what_a_killed_build_left_is_swept_and_the_live_are_not_disturbed() {
    let Some(bench) = bench() else { return };
    let directory = bench.store.root().join("build");
    std::fs::create_dir_all(directory.join(".new-1-0/step-0/upper")).unwrap();
    std::fs::create_dir_all(directory.join(".new-1-1")).unwrap();
    let live = std::fs::File::open(directory.join(".new-1-1")).unwrap();
    rustix::fs::flock(&live, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let image = bench.built("FROM base:1\nRUN --mount=type=cache,target=/c touch /c/x /y\n");
    assert!(!directory.join(".new-1-0").exists() && directory.join(".new-1-1").exists());
    luna_image::build::forget(&bench.store).unwrap();
    let left: Vec<_> = std::fs::read_dir(directory.join("mounts"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_none())
        .collect();
    assert!(left.is_empty() && !directory.join("cache").exists(), "{left:?}");
    assert_eq!(bench.ask(&image, "ls /y"), "/y\n");
}

#[test]
fn archives_are_unpacked_by_add() {
    let Some(bench) = bench() else { return };
    std::fs::create_dir_all(bench.context()).unwrap();
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(
        Vec::new(),
        flate2::Compression::fast(),
    ));
    for (path, content) in [("bin/tool", "tool"), ("new/file", "new")] {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o755);
        header.set_uid(7);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    let archive = tar.into_inner().unwrap().finish().unwrap();
    std::fs::write(bench.context().join("x.tgz"), archive).unwrap();
    let image = bench.built("FROM base:1\nADD x.tgz /\nCOPY x.tgz /plain/\n");
    let answer = bench.ask(
        &image,
        "cat /usr/bin/tool /new/file; ls /plain; stat -c %u /bin/tool; ls -d /bin/",
    );
    assert_eq!(answer, "toolnewx.tgz\n7\n/bin/\n");
}
