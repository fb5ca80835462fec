//! One Dockerfile built by Luna and by buildah: the same files, modes, owners and config. Needs root, busybox and
//! buildah; where one is missing the test says so and passes.

#![allow(
    clippy::needless_pass_by_value,
    clippy::unnecessary_wraps,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, says why it was skipped, and has the signatures of what it tests"
)]

use std::path::Path;
use std::process::Command;

use luna_core::process::ExitStatus;
use luna_image::Store;
use luna_image::build::{BuildRequest, Step, build};

const DOCKERFILE: &str = "\
FROM scratch AS base
ADD root.tar /
FROM base AS made
ARG WHAT=thing
RUN mkdir -p /out/deep && echo $WHAT > /out/deep/file && ln -s deep/file /out/link && chmod 750 /out/deep
FROM base
ENV A=1 B=\"two words\"
ENV C=${A:-x}${NOPE:+y}
LABEL one=1 two=\"2 3\"
WORKDIR /srv/app
COPY --chown=5:6 tree ./
COPY tree/*.txt /bin/
COPY --from=made /out /from/
COPY --chmod=700 tree/a.txt renamed
RUN rm /etc/gone && echo \"$C\" > c && touch /tmp/t && chmod 4711 /tmp/t && rm -rf /opt/x && mkdir /opt/x && touch /opt/x/new
EXPOSE 80 53/udp
VOLUME /data
USER 5
STOPSIGNAL SIGINT
ENTRYPOINT [\"/bin/sh\"]
CMD [\"-c\", \"true\"]
";

/// Type, mode, owner, link and path of everything, then the digests of files.
const LIST: &str = "find . -path ./proc -prune -o -path ./sys -prune -o -path ./dev -prune -o -path ./run -prune \
     -o -printf '%y %m %U:%G %l %p\\n' | sort; find srv etc from opt tmp usr/bin/a.txt -type f | sort | xargs sha256sum";

fn shell(script: &str) -> String {
    let output = Command::new("/bin/sh").args(["-ec", script]).output().unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a step over an overlay, without any wall.
fn run(step: Step<'_>) -> luna_core::Result<ExitStatus> {
    let lower: Vec<String> = step
        .tree
        .lower
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let root = step.tree.work.with_file_name("root");
    std::fs::create_dir(&root).unwrap();
    let script = format!(
        "mount -t overlay overlay -o lowerdir={},upperdir={},workdir={} {root} && exec unshare --root={root} --wd={} \"$@\"",
        lower.join(":"),
        step.tree.upper.display(),
        step.tree.work.display(),
        step.process.cwd,
        root = root.display(),
    );
    let output = Command::new("unshare")
        .args(["--mount", "/bin/sh", "-c", &script, "sh"])
        .args(&step.process.args)
        .env_clear()
        .envs(step.process.env.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap();
    step.output.write(&output.stderr);
    Ok(ExitStatus::Code(output.status.code().unwrap_or(255) as u8))
}

#[test]
fn buildah_makes_the_same_image() {
    let present = |path: &str| Path::new(path).exists();
    if !rustix::process::getuid().is_root() || !present("/bin/busybox") || !present("/usr/bin/buildah") {
        println!("skipped: needs root, /bin/busybox and /usr/bin/buildah (Debian: busybox-static, buildah)");
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let at = temporary.path().display();
    shell(&format!(
        "umask 022; mkdir -p {at}/root/usr/bin {at}/root/etc {at}/root/tmp {at}/root/opt/x {at}/context/tree/sub; cd {at}/root
         chmod 1777 tmp; cp /bin/busybox usr/bin/; ln -s usr/bin bin; touch etc/gone opt/x/old
         for a in sh mkdir echo ln chmod rm touch true; do ln -s busybox usr/bin/$a; done
         echo root:x:0:0::/:/bin/sh > etc/passwd; echo root:x:0: > etc/group
         tar --owner=0 --group=0 -cf ../context/root.tar .
         cd {at}/context; echo a > tree/a.txt; echo b > tree/b.txt; echo s > tree/sub/s; ln -s a.txt tree/l
         chmod 600 tree/b.txt; chmod 711 tree/sub; echo no > tree/ignored.o; echo '**/*.o' > .dockerignore"
    ));
    std::fs::write(temporary.path().join("context/Dockerfile"), DOCKERFILE).unwrap();
    let store = Store::open(&temporary.path().join("store"), false).unwrap();
    let request = BuildRequest {
        no_host_ca: true,
        ..BuildRequest::new(temporary.path().join("context"))
    };
    let image = build(&store, &request, &mut run, &|_| {}).unwrap();
    let tree: Vec<String> = store
        .tree(&image, &|_| {})
        .unwrap()
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let ours = shell(&format!(
        "mkdir {at}/mounted; unshare --mount sh -ec 'mount -t overlay -o ro,lowerdir={} overlay {at}/mounted; cd {at}/mounted; {}'",
        tree.join(":"),
        LIST.replace('\'', "'\\''")
    ));
    let buildah = format!("buildah --storage-driver vfs --root {at}/peer --runroot {at}/run");
    shell(&format!(
        "{buildah} bud --isolation chroot --network host -t peer {at}/context >/dev/null 2>{at}/log || {{ cat {at}/log >&2; exit 1; }}"
    ));
    let theirs = shell(&format!(
        "c=$({buildah} from --pull-never localhost/peer); cd $({buildah} mount $c); {LIST}; cd /; {buildah} umount $c >/dev/null; {buildah} rm $c >/dev/null"
    ));
    // What buildah's own mounts leave in the image, and the mode it gives the root of nothing.
    let left = ["etc/hosts", "etc/hostname", "etc/resolv.conf", "./data", " ."];
    let files = |text: &str| -> Vec<String> {
        let kept = |line: &&str| !left.iter().any(|end| line.ends_with(end));
        text.lines().filter(kept).map(str::to_owned).collect()
    };
    assert_eq!(files(&ours), files(&theirs), "ours, then buildah's");
    let inspected = shell(&format!("{buildah} inspect --type image localhost/peer"));
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    let config = &inspected["OCIv1"]["config"];
    let own: serde_json::Value = serde_json::from_slice(&store.config_bytes(&image).unwrap()).unwrap();
    for field in [
        "Env",
        "User",
        "ExposedPorts",
        "Entrypoint",
        "Cmd",
        "Volumes",
        "WorkingDir",
        "StopSignal",
    ] {
        assert_eq!(own["config"][field], config[field], "{field}");
    }
    for label in ["one", "two"] {
        assert_eq!(own["config"]["Labels"][label], config["Labels"][label], "{label}");
    }
}
