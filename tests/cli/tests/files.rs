//! `cp` and volumes.

use std::fs;
use std::os::unix::fs::symlink;

use cli_tests::Luna;

#[test]
fn files_and_directories_land_where_docker_puts_them() {
    let Some(luna) = Luna::new() else { return };
    luna.line("run -d --name a busybox sleep 1000").ok();
    let host = luna.path("host");
    fs::create_dir_all(host.join("tree/inner")).unwrap();
    fs::write(host.join("file"), "text").unwrap();
    fs::write(host.join("tree/inner/leaf"), "leaf").unwrap();
    symlink("inner/leaf", host.join("tree/link")).unwrap();
    let path = |name: &str| host.join(name).display().to_string();
    let cat = |file: &str| luna.run(["exec", "a", "cat", file]).ok();

    luna.run(["cp", &path("file"), "a:/tmp"]).ok();
    assert_eq!(cat("/tmp/file"), "text");
    luna.run(["cp", &path("file"), "a:/tmp/renamed"]).ok();
    assert_eq!(cat("/tmp/renamed"), "text");
    luna.run(["cp", &path("tree"), "a:/tmp"]).ok();
    assert_eq!(cat("/tmp/tree/link"), "leaf");
    luna.run(["cp", &path("tree"), "a:/tmp/other"]).ok();
    assert_eq!(cat("/tmp/other/inner/leaf"), "leaf");
    luna.run(["cp", &format!("{}/.", path("tree")), "a:/tmp"]).ok();
    assert_eq!(cat("/tmp/inner/leaf"), "leaf");
    luna.run(["cp", &path("tree"), "a:/tmp/file"]).fails(125);
    luna.run(["cp", &path("file"), "a:/nowhere/file"]).fails(125);
    luna.run(["cp", &path("missing"), "a:/tmp"]).fails(125);

    luna.run(["cp", "a:/tmp/tree", &path("back")]).ok();
    assert_eq!(fs::read_to_string(host.join("back/inner/leaf")).unwrap(), "leaf");
    assert_eq!(
        fs::read_link(host.join("back/link")).unwrap().to_str(),
        Some("inner/leaf")
    );
    luna.run(["cp", "a:/tmp/file", &path("tree")]).ok();
    assert_eq!(fs::read_to_string(host.join("tree/file")).unwrap(), "text");
    luna.run(["cp", "a:/tmp/tree/.", &path("")]).ok();
    assert!(host.join("inner/leaf").exists());
    luna.run(["cp", "a:/tmp/tree", &path("file")]).fails(125);
    luna.run(["cp", "a:/missing", &path("x")]).fails(125);

    let socket = std::os::unix::net::UnixListener::bind(host.join("tree/inner/socket")).unwrap();
    let copied = luna.run(["cp", &path("tree"), "a:/home/tree"]);
    assert!(
        copied.err.contains("sockets cannot be copied: 1 left out"),
        "{}",
        copied.err
    );
    copied.ok();
    assert_eq!(cat("/home/tree/inner/leaf"), "leaf");
    drop(socket);
    fs::remove_file(host.join("tree/inner/socket")).unwrap();
    luna.run(["cp", "a:/tmp", "a:/home"]).fails(125);

    let archive = luna.command(["cp", "a:/tmp/tree", "-"]).output().unwrap();
    assert!(archive.status.success());
    luna.run(["exec", "a", "mkdir", "/tmp/through"]).ok();
    luna.fed(["cp", "-", "a:/tmp/through"], &archive.stdout).ok();
    assert_eq!(cat("/tmp/through/tree/inner/leaf"), "leaf");
}

#[test]
fn volumes_outlive_sandboxes() {
    let Some(luna) = Luna::new() else { return };
    assert_eq!(luna.line("volume create kept").ok(), "kept\n");
    luna.line("run -d --name a -v kept:/k -v /anonymous busybox sleep 1000")
        .ok();
    assert_eq!(luna.line("volume ls -q").ok().lines().count(), 2);
    let used = luna.line("volume rm kept").fails(125);
    assert!(used.contains("because: sandbox `a` uses it"), "{used}");
    luna.line("rm --force --volumes a").ok();
    assert_eq!(luna.line("volume ls -q").ok(), "kept\n");
    assert!(luna.line("volume inspect kept").ok().contains("\"Mountpoint\""));
    let silent = luna.line("volume prune --all").fails(125);
    assert!(
        silent.ends_with("error: cannot remove anything without a yes\n  hint: `--force` does not ask\n"),
        "{silent}"
    );
    luna.fed(["volume", "prune", "--all"], b"no\n").ok();
    let unnamed = luna.line("volume create").line();
    assert_eq!(luna.line("volume prune --force").line(), unnamed);
    assert_eq!(luna.fed(["volume", "prune", "--all"], b"yes\n").ok(), "kept\n");
    luna.line("volume rm kept").fails(125);
    luna.line("volume rm --force kept").ok();
}
