//! Images: named, listed, archived, built, removed.

use std::fs;

use cli_tests::Luna;
use serde_json::Value;

#[test]
fn images_are_listed_in_every_form() {
    let Some(luna) = Luna::new() else { return };
    luna.line("tag busybox example.org/tools/box:1").ok();
    let table = luna.line("images").ok();
    assert!(table.starts_with("REPOSITORY "), "{table}");
    assert_eq!(table.lines().count(), 3);
    assert_eq!(
        luna.line("images --quiet").ok().lines().count(),
        1,
        "one image of two names has one id"
    );
    let names = luna.run(["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok();
    assert_eq!(names, "busybox:latest\nexample.org/tools/box:1\n");
    let list: Value = serde_json::from_str(&luna.line("images --json busybox").ok()).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
    let image: Value = serde_json::from_str(&luna.line("image inspect busybox").ok()).unwrap();
    assert_eq!(image[0]["Config"]["Cmd"], serde_json::json!(["sh"]));
    assert!(
        luna.line("rmi example.org/tools/box:1")
            .ok()
            .starts_with("Untagged: example.org/tools/box:1\n")
    );
    luna.line("images --filter colour=red").fails(125);
}

#[test]
fn archives_carry_images_from_one_luna_to_another() {
    let Some(luna) = Luna::new() else { return };
    let other = Luna::bare();
    for format in ["docker-archive", "oci-archive"] {
        let archive = luna.path(format).display().to_string();
        luna.run(["save", "--format", format, "--output", &archive, "busybox"])
            .ok();
        assert_eq!(
            other.run(["load", "--input", &archive]).ok(),
            "Loaded image: busybox:latest\n"
        );
        assert_eq!(
            other.line("images -q --no-trunc").ok(),
            luna.line("images -q --no-trunc").ok()
        );
        assert_eq!(other.line("run --rm busybox echo here").ok(), "here\n");
        other.line("rmi --force busybox").ok();
    }
    let (link, file) = (luna.path("link"), luna.path("file"));
    std::os::unix::fs::symlink("file", &link).unwrap();
    luna.run(["save", "--output", link.to_str().unwrap(), "busybox"])
        .ok();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink() && fs::metadata(&file).unwrap().len() > 0);
    luna.run(["save", "--output", "/dev/null", "busybox"]).ok();
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    luna.run(["save", "--output", file.to_str().unwrap(), "missing"])
        .fails(125);
    assert!(
        fs::metadata(&file).unwrap().len() > 0,
        "a failure leaves what was there"
    );
    assert!(luna.line("history busybox").ok().starts_with("CREATED "));
    assert!(
        other
            .fed(["load"], b"no archive")
            .fails(125)
            .starts_with("error: cannot load the archive\n")
    );
}

#[test]
fn an_image_in_use_stays() {
    let Some(luna) = Luna::new() else { return };
    luna.line("create --name a busybox").ok();
    luna.line("rmi busybox").fails(125);
    luna.line("rm a").ok();
    luna.line("rmi busybox").ok();
    assert_eq!(luna.line("images -q").ok(), "");
    let gone = luna.line("run --pull never busybox").fails(125);
    assert!(
        gone.starts_with("error: cannot find the image `busybox`\n"),
        "{gone}"
    );
}

#[test]
fn a_dockerfile_becomes_an_image() {
    let Some(luna) = Luna::new() else { return };
    let context = luna.path("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("page"), "hello\n").unwrap();
    let dockerfile = "FROM busybox\nARG WHO=nobody\nCOPY page /srv/page\nRUN echo \"for $WHO\" >> /srv/page\nCMD [\"cat\", \"/srv/page\"]\n";
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let context = context.display().to_string();
    let id = luna
        .run([
            "build",
            "--quiet",
            "-t",
            "site",
            "--build-arg",
            "WHO=luna",
            &context,
        ])
        .line();
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(luna.line("run --rm site").ok(), "hello\nfor luna\n");
    let layers = luna
        .run(["image", "inspect", "--format", "{{json .RootFS.Layers}}", "site"])
        .ok();
    let again = luna
        .run([
            "build",
            "--quiet",
            "-t",
            "site",
            "--build-arg",
            "WHO=luna",
            &context,
        ])
        .line();
    let layers_again = luna
        .run(["image", "inspect", "--format", "{{json .RootFS.Layers}}", &again])
        .ok();
    assert_eq!(
        layers, layers_again,
        "the second build takes every layer from the first"
    );
    fs::write(luna.path("context/Dockerfile"), "FROM busybox\nFRBO x\n").unwrap();
    let flaw = luna.run(["build", &context]).fails(125);
    assert!(flaw.contains("FRBO"), "{flaw}");
    luna.run(["build", "/nonexistent"]).fails(125);
}

#[test]
fn pruning_keeps_what_is_used() {
    let Some(luna) = Luna::new() else { return };
    luna.line("run --name ended busybox true").ok();
    luna.line("run -d --name running busybox sleep 1000").ok();
    let pruned = luna.line("prune --force --all").ok();
    assert!(
        pruned.contains("removed sandbox: ended\n") && !pruned.contains("running"),
        "{pruned}"
    );
    assert_eq!(luna.line("images -q").ok().lines().count(), 1);
}
