//! Images made to be dangerous: what Luna mounts onto is a link that leads out of the root, and the user database is
//! anything but a file.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use contract::bounded;
use contract::cell::Cell;
use contract::land::{Land, Owner, User, unique};

use super::say;

/// What of the image is a link, and what Luna is asked to mount for it.
struct Spot {
    link: &'static str,
    file: Option<&'static str>,
    target: Option<&'static str>,
    workdir: Option<&'static str>,
    /// Something is to be made below the link, which leads to a directory that is there; else the link itself is to be
    /// mounted on, and leads to nothing yet.
    below: bool,
}

fn spot(link: &'static str) -> Spot {
    Spot {
        link,
        file: None,
        target: None,
        workdir: None,
        below: false,
    }
}

fn spots() -> Vec<Spot> {
    let below = |link| Spot {
        below: true,
        ..spot(link)
    };
    let file = |link, file| Spot {
        file: Some(file),
        ..spot(link)
    };
    vec![
        spot("dev"),
        spot("proc"),
        spot("sys"),
        spot("volume"),
        file("etc/hosts", "/etc/hosts"),
        file("etc/resolv.conf", "/etc/resolv.conf"),
        Spot {
            file: Some("/etc/hosts"),
            ..below("etc")
        },
        Spot {
            target: Some("/target"),
            ..spot("target")
        },
        Spot {
            target: Some("/deep/target"),
            ..below("deep")
        },
        Spot {
            workdir: Some("/work"),
            ..spot("work")
        },
        Spot {
            workdir: Some("/work/deeper"),
            ..below("work")
        },
    ]
}

/// The ways a link can name a place on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Absolute,
    Climbing,
    /// Through `/proc`, by a link that is none.
    Magic,
}

impl Style {
    const ALL: [Style; 3] = [Style::Absolute, Style::Climbing, Style::Magic];

    fn prefix(self) -> &'static str {
        match self {
            Style::Absolute => "",
            Style::Climbing => "../../../../../../../..",
            Style::Magic => "/proc/self/root",
        }
    }
}

impl Spot {
    /// Whether the link would lead out if links were not resolved in the root. Where it would not, something else that
    /// no spec can take out stops it as well: a WORKDIR is made by init, which has no other root; a link to what is not
    /// there yet is followed by hand, from the root; and to climb ends in the mount that the jail is built on.
    fn leads_out(&self, style: Style) -> bool {
        let by_jail = self.workdir.is_none();
        by_jail
            && match style {
                Style::Absolute => self.below,
                Style::Climbing => false,
                Style::Magic => self.link != "proc",
            }
    }
}

#[test]
fn no_image_gets_out() {
    if !rustix::process::geteuid().is_root() {
        say("skipped: hostile images need root");
        return;
    }
    let user = User::new();
    let mut lands = vec![Land::new(Owner::Root)];
    match &user {
        Ok(user) => lands.push(Land::new(user.owner())),
        Err(why) => say(&format!("skipped: hostile images of a user's: {why}")),
    }
    let mut faults = Vec::new();
    let (mut tried, mut shown) = (0, 0);
    for spot in spots() {
        for style in Style::ALL {
            for land in &lands {
                tried += 1;
                let name = format!("/{} as {style:?} link, {:?}", spot.link, land.owner);
                let changes = try_image(land, &spot, style, &[]);
                if !changes.is_empty() {
                    faults.push(format!("{name}: the host has changed: {}", changes.join("; ")));
                }
                if !spot.leads_out(style) {
                    continue;
                }
                shown += 1;
                if try_image(land, &spot, style, &["resolve_in_root"]).is_empty() {
                    faults.push(format!("{name}: without resolve_in_root nothing happens, either"));
                }
            }
        }
    }
    say(&format!(
        "{tried} hostile images change nothing on the host; {shown} of them do without resolve_in_root: {} faults",
        faults.len()
    ));
    assert!(
        faults.is_empty(),
        "{} of {tried}:\n  {}",
        faults.len(),
        faults.join("\n  ")
    );
}

/// Runs a sandbox of the image; what changed on the host.
fn try_image(land: &Land, spot: &Spot, style: Style, without: &[&str]) -> Vec<String> {
    let image = copy_of_root(land);
    let place = land.path(if spot.below { "open" } else { "open/made" });
    let link = image.join(spot.link);
    remove(&link);
    symlink(format!("{}{}", style.prefix(), place.display()), &link)
        .expect("a temporary directory can be filled");
    let mut cell = of_image(land, &image, without);
    cell.files.extend(spot.file.map(PathBuf::from));
    cell.targets.extend(spot.target.map(PathBuf::from));
    if let Some(workdir) = spot.workdir {
        workdir.clone_into(&mut cell.cwd);
    }
    let before = land.snapshot();
    // Whether there is a sandbox in the end is not the question.
    let _ = land.run(&cell, &[]);
    let after = land.snapshot();
    land.sweep();
    after.into_iter().filter(|line| !before.contains(line)).collect()
}

fn of_image(land: &Land, image: &Path, without: &[&str]) -> Cell {
    let mut cell = land.cell(without, &["/attempt".to_owned(), "say-user".to_owned()]);
    image.clone_into(&mut cell.lower);
    cell
}

/// A copy of the land's root file system that shares its files.
fn copy_of_root(land: &Land) -> PathBuf {
    let image = land.path("runs").join(format!("image-{}", unique()));
    let done = Command::new("cp")
        .arg("-al")
        .arg(land.path("lower"))
        .arg(&image)
        .status();
    assert!(
        done.is_ok_and(|status| status.success()),
        "a root file system can be linked"
    );
    image
}

fn remove(path: &Path) {
    let gone = match fs::symlink_metadata(path) {
        Ok(status) if status.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    gone.expect("the image is ours");
}

/// Long enough for a busy machine, and far below what a person would call hanging.
const PATIENCE: Duration = Duration::from_secs(15);

type Make = Box<dyn Fn(&Path)>;

#[test]
fn a_hostile_user_database_neither_hangs_nor_helps() {
    if !rustix::process::geteuid().is_root() {
        say("skipped: hostile user databases need root");
        return;
    }
    let land = Land::new(Owner::Root);
    fs::write(land.path("host/passwd"), "stranger:x:0:0::/:/bin/sh\n").expect("it is ours");
    let outside = land.path("host/passwd").display().to_string();
    let kinds: [(&str, Make); 7] = [
        (
            "a pipe",
            Box::new(|path| {
                assert!(
                    Command::new("mkfifo")
                        .arg(path)
                        .status()
                        .is_ok_and(|status| status.success())
                );
            }),
        ),
        ("an endless device", Box::new(|path| link("/dev/zero", path))),
        ("its own terminal", Box::new(|path| link("/dev/tty", path))),
        (
            "a directory",
            Box::new(|path| fs::create_dir(path).expect("the image is ours")),
        ),
        ("a circle", Box::new(|path| link("passwd", path))),
        (
            "a sparse terabyte",
            Box::new(|path| {
                let file = fs::File::create(path).expect("the image is ours");
                file.set_len(1 << 40).expect("the file system has sparse files");
            }),
        ),
        (
            "a link to the host's",
            Box::new(move |path| link(&format!("../../../../..{outside}"), path)),
        ),
    ];
    for (kind, make) in kinds {
        let image = copy_of_root(&land);
        let path = image.join("etc/passwd");
        remove(&path);
        make(&path);
        let mut cell = of_image(&land, &image, &[]);
        "stranger".clone_into(&mut cell.user);
        let begin = Instant::now();
        let said = land.run(&cell, &[]);
        assert!(
            begin.elapsed() < PATIENCE,
            "{kind}: it took {:?}",
            begin.elapsed()
        );
        assert!(
            said.status.is_some() && said.code() != Some(0),
            "{kind}: {said:?}"
        );
    }
}

fn link(to: &str, path: &Path) {
    symlink(to, path).expect("the image is ours");
}

#[test]
fn odd_users_are_nobody() {
    if !rustix::process::geteuid().is_root() {
        say("skipped: odd users need root");
        return;
    }
    let land = Land::new(Owner::Root);
    let image = land.path("lower");
    for user in [
        "-1",
        "4294967295",
        "0x0",
        "+0",
        " 0",
        "0 ",
        "0:0:0",
        ":",
        "00000000000000000000",
        "root:-1",
    ] {
        let mut cell = of_image(&land, &image, &[]);
        user.clone_into(&mut cell.user);
        let said = land.run(&cell, &[]);
        assert_ne!(said.code(), Some(0), "`{user}`: {said:?}");
        assert!(said.output.contains("not started"), "`{user}`: {said:?}");
    }
    for (user, uid) in [
        ("", "0"),
        ("0", "0"),
        ("user", "1000"),
        ("1000:0", "1000"),
        ("4242", "4242"),
    ] {
        let mut cell = of_image(&land, &image, &[]);
        user.clone_into(&mut cell.user);
        let said = land.run(&cell, &[]);
        assert_eq!(
            said.output.trim(),
            format!("succeeded {uid}"),
            "`{user}`: {said:?}"
        );
    }
}

/// The oldest way out is open in a plain chroot and closed behind `pivot_root`.
#[test]
fn a_chroot_alone_would_not_hold() {
    if !rustix::process::geteuid().is_root() {
        say("skipped: chroot needs root");
        return;
    }
    let land = Land::new(Owner::Root);
    let canary = land.path("host/canary").display().to_string();
    let words = ["/attempt", "leave-chroot", &canary, &land.secret].map(str::to_owned);
    let said = land.run(&land.cell(&[], &words), &[]);
    assert_eq!(said.code(), Some(10), "{said:?}");
    let mut chroot = Command::new("chroot");
    let said = bounded::finish(chroot.arg(land.path("lower")).args(&words), PATIENCE);
    assert!(said.is_ok_and(|said| said.success()), "a chroot was left");
}
