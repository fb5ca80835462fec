//! The laws of `law` applied to this repository.

use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};
use law::edges::Member;

fn metadata() -> Metadata {
    MetadataCommand::new()
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .no_deps()
        .exec()
        .expect("cargo reads its own workspace")
}

fn assert_none(breaches: &[String]) {
    assert!(
        breaches.is_empty(),
        "the law is broken:\n  {}",
        breaches.join("\n  ")
    );
}

#[test]
fn crates_use_only_what_they_may() {
    let metadata = metadata();
    let members: Vec<_> = metadata
        .workspace_packages()
        .into_iter()
        .map(|package| Member {
            name: package.name.to_string(),
            directory: package
                .manifest_path
                .strip_prefix(&metadata.workspace_root)
                .expect("a member lies in its workspace")
                .parent()
                .expect("a manifest lies in a directory")
                .to_string(),
            uses: package
                .dependencies
                .iter()
                .filter(|dependency| dependency.kind != DependencyKind::Development)
                .map(|dependency| dependency.name.clone())
                .collect(),
        })
        .collect();
    assert!(members.len() > 10, "only {} members found", members.len());
    assert_none(&law::edges::breaches(&members));
}

#[test]
fn the_map_shows_the_table() {
    let root = metadata().workspace_root;
    let page = fs::read_to_string(root.join("ARCHITECTURE.md")).expect("the map is there");
    let rows: Vec<Vec<_>> = page
        .lines()
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    let missing: Vec<_> = law::edges::map()
        .into_iter()
        .filter(|(name, uses)| {
            !rows.iter().any(|row| {
                matches!(row[..], ["", crate_name, _, may_use, ..] if crate_name.trim_matches('`') == name && may_use == uses)
            })
        })
        .map(|(name, uses)| format!("`ARCHITECTURE.md` does not say that `{name}` may use {uses}"))
        .collect();
    assert_none(&missing);
}

#[test]
fn source_says_only_what_it_may() {
    let mut files = 0;
    let mut found = Vec::new();
    for package in metadata().workspace_packages() {
        let directory = package
            .manifest_path
            .parent()
            .expect("a manifest lies in a directory");
        if directory
            .parent()
            .is_none_or(|parent| !parent.ends_with("crates"))
        {
            continue;
        }
        for path in rust_files(directory.as_std_path()) {
            let text = fs::read_to_string(&path).expect("source is UTF-8");
            let relative = path.strip_prefix(directory).expect("the file was found under it");
            found.extend(law::source::breaches(&package.name, relative, &text));
            files += 1;
        }
    }
    assert!(files > 10, "only {files} files found");
    assert_none(&found);
}

#[test]
fn every_member_takes_the_workspaces_lints() {
    let deaf: Vec<_> = metadata()
        .workspace_packages()
        .into_iter()
        .filter(|package| {
            let manifest = fs::read_to_string(&package.manifest_path).expect("cargo has just read it");
            !manifest.contains("[lints]\nworkspace = true")
        })
        .map(|package| format!("`{}` has lints of its own", package.name))
        .collect();
    assert_none(&deaf);
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("a crate's directory is readable") {
        let path = entry.expect("a crate's directory is readable").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
