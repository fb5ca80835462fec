//! Roots, volumes, tmpfs and copies, with their owners.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use contract::bounded;
use contract::luna::{LIMIT, Luna};

pub(crate) fn a_read_only_root(luna: &Luna) {
    assert_eq!(luna.shell(&["--read-only"], "touch /x").code(), Some(1));
    assert_eq!(
        luna.shell(&["--read-only"], "echo x >> /etc/passwd").code(),
        Some(1)
    );
    assert_eq!(
        luna.says(
            &["--read-only", "--tmpfs", "/tmp"],
            "echo x > /tmp/y && cat /tmp/y"
        ),
        "x"
    );
    assert_eq!(luna.says(&[], "touch /x && echo made"), "made");
}

pub(crate) fn a_tmpfs(luna: &Luna) {
    let flags = ["--tmpfs", "/scratch:size=1m"];
    assert_eq!(
        luna.says(
            &flags,
            "dd if=/dev/zero of=/scratch/a bs=1k count=512 2>/dev/null && echo fits"
        ),
        "fits"
    );
    assert_ne!(
        luna.shell(&flags, "dd if=/dev/zero of=/scratch/a bs=1k count=2048")
            .code(),
        Some(0)
    );
}

pub(crate) fn a_bind_mount(luna: &Luna) {
    let shared = luna.path("shared");
    fs::create_dir(&shared).expect("a temporary directory can be filled");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).expect("it is ours");
    fs::write(shared.join("given"), "from the host").expect("it is ours");
    let bind = format!("{}:/data", shared.display());
    assert_eq!(
        luna.says(&["--volume", &bind], "cat /data/given; stat -c %u /data/given"),
        "from the host0"
    );
    luna.says(&["--volume", &bind, "--user", "user"], "echo x > /data/by-user");
    luna.says(&["--volume", &bind], "echo x > /data/by-root");
    let owner = |name: &str| fs::metadata(shared.join(name)).expect("it was made").uid();
    assert_eq!(
        (owner("by-user"), owner("by-root")),
        (1000, 0),
        "ids on a volume are the host's own"
    );
    let read_only = format!("{bind}:ro");
    assert_ne!(
        luna.shell(&["--volume", &read_only], "echo x > /data/given")
            .code(),
        Some(0)
    );
    assert_eq!(
        fs::read_to_string(shared.join("given")).expect("it is ours"),
        "from the host"
    );
    let missing = format!("{}:/data", luna.path("not-there").display());
    let said = luna.run(
        &[
            "--mount",
            &format!(
                "type=bind,source={},target=/data",
                luna.path("not-there").display()
            ),
        ],
        &["true"],
    );
    assert_eq!(said.code(), Some(125), "{missing}: {said:?}");
}

pub(crate) fn a_named_volume(luna: &Luna) {
    let flags = ["--volume", "kept:/var/data"];
    assert_eq!(
        luna.says(&flags, "cat /var/data/seed; stat -c %u:%g /var/data/seed"),
        "from the image\n1000:1000"
    );
    luna.says(&flags, "echo later > /var/data/more; rm /var/data/seed");
    assert_eq!(
        luna.says(&flags, "ls /var/data"),
        "more",
        "filled once, from then on its own"
    );
    assert_eq!(luna.says(&[], "ls /var/data"), "seed", "the image is as it was");
    luna.must(&["volume", "rm", "kept"]);
    assert_eq!(luna.says(&flags, "ls /var/data"), "seed");
    luna.must(&["volume", "rm", "kept"]);
    luna.says(&["--volume", "/anonymous"], "touch /anonymous/x");
    let gone = bounded::wait_until(LIMIT, || luna.must(&["volume", "ls", "--quiet"]).is_empty());
    assert!(gone, "--rm removes volumes without a name");
}

pub(crate) fn copies(luna: &Luna) {
    luna.start("copied", &[], "mkdir -p /out/deep && echo inside > /out/deep/file && chmod 640 /out/deep/file && echo ready; exec sleep 1000");
    luna.await_log("copied", "ready");
    let (here, there) = (luna.path("here"), luna.path("there"));
    fs::create_dir_all(here.join("sub")).expect("a temporary directory can be filled");
    fs::write(here.join("sub/file"), vec![7; 3 << 20]).expect("it is ours");
    let from = here.display().to_string();
    luna.must(&["cp", &from, "copied:/in"]);
    let said = luna.must(&[
        "exec",
        "copied",
        "sh",
        "-c",
        "wc -c < /in/sub/file; stat -c %u /in/sub/file",
    ]);
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["3145728", "0"]);
    let to = there.display().to_string();
    luna.must(&["cp", "copied:/out", &to]);
    assert_eq!(
        fs::read_to_string(there.join("deep/file")).expect("it was copied"),
        "inside\n"
    );
    let mode = fs::metadata(there.join("deep/file"))
        .expect("it was copied")
        .mode();
    assert_eq!(mode & 0o777, 0o640);
    // A link inside that points out of the sandbox names a file of the sandbox, never one of the host's.
    luna.must(&[
        "exec",
        "copied",
        "sh",
        "-c",
        "ln -s /etc/hostname /out/link 2>/dev/null || busybox ln -s /etc/hostname /out/link",
    ]);
    let link = luna.path("link");
    let said = luna.luna(&[
        "cp",
        "--follow-link",
        "copied:/out/link",
        &link.display().to_string(),
    ]);
    let hosts = fs::read_to_string("/etc/hostname").unwrap_or_default();
    let copied = fs::read_to_string(&link).unwrap_or_default();
    assert!(!said.success() || copied != hosts, "{said:?}");
    assert_ne!(luna.luna(&["cp", "copied:/not/there", &to]).code(), Some(0));
}
