use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use luna_core::Kind;

use super::*;
use crate::{Compression, ConfigChanges, import};

fn quiet(_: Progress) {}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::with_limits(directory.path(), false, Limits::default()).unwrap();
    (directory, store)
}

fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_000_000_000);
        builder
            .append_data(&mut header, path, content.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn imported(store: &Store, name: &str, files: &[(&str, &str)]) -> Image {
    let reference = Reference::parse(name).unwrap();
    let bytes = archive(files);
    import(
        store,
        &mut &bytes[..],
        Some(&reference),
        &ConfigChanges::default(),
        &quiet,
    )
    .unwrap()
}

fn names(directory: &Path) -> HashSet<String> {
    std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn unused(_: &Digest) -> bool {
    false
}

#[test]
fn an_imported_archive_is_an_image_with_a_tree() {
    let (_directory, store) = store();
    let image = imported(&store, "first", &[("etc/motd", "hello")]);
    let trees = store.tree(&image, &quiet).unwrap();
    assert_eq!(trees.len(), 1);
    let file = trees[0].join("etc/motd");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "hello");
    let metadata = file.metadata().unwrap();
    assert_eq!(
        (metadata.uid(), metadata.gid(), metadata.mtime()),
        (7, 8, 1_000_000_000)
    );
    assert_eq!(image.size, 5);
    assert!(!image.built_here);
    for text in [
        "first",
        "first:latest",
        "docker.io/library/first",
        &image.id.hex()[..4],
        &image.id.to_string(),
    ] {
        assert_eq!(store.get(text).unwrap().id, image.id, "{text}");
    }
    let error = store.get("second").unwrap_err();
    assert_eq!(
        (error.kind(), error.hint_text()),
        (Kind::NotFound, Some("luna pull second:latest"))
    );
}

#[test]
fn the_same_input_is_the_same_image() {
    let (_directory, store) = store();
    let one = imported(&store, "one", &[("a", "x")]);
    let two = imported(&store, "two", &[("a", "x")]);
    assert_eq!(one.id, two.id);
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(store.get("one").unwrap().references.len(), 2);
}

#[test]
fn a_missing_tree_comes_back_from_its_blob() {
    let (_directory, store) = store();
    let image = imported(&store, "first", &[("etc/motd", "hello")]);
    let tree = store.tree(&image, &quiet).unwrap().remove(0);
    crate::layer::remove::remove_tree(&tree).unwrap();
    assert!(!tree.exists());
    assert_eq!(store.tree(&image, &quiet).unwrap(), std::slice::from_ref(&tree));
    assert_eq!(std::fs::read_to_string(tree.join("etc/motd")).unwrap(), "hello");
}

#[test]
fn a_damaged_blob_is_found_out_and_leaves_nothing() {
    let (_directory, store) = store();
    let image = imported(&store, "first", &[("etc/motd", "hello")]);
    let tree = store.tree(&image, &quiet).unwrap().remove(0);
    crate::layer::remove::remove_tree(&tree).unwrap();
    let blob = store.blob_path(image.layers[0].digest);
    let mut bytes = std::fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let error = store.tree(&image, &quiet).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
    assert!(!tree.exists());
    assert!(names(&store.layers()).iter().all(|name| !name.starts_with('.')));
}

#[test]
fn damaged_blobs_are_replaced() {
    let (_directory, store) = store();
    let image = imported(&store, "first", &[("etc/motd", "hello")]);
    let config = store.config_bytes(&image).unwrap();
    std::fs::write(store.blob_path(image.id), "damaged").unwrap();
    assert_eq!(store.list().unwrap().len(), 0);
    assert_eq!(store.add_blob(&config).unwrap(), image.id);
    assert_eq!(store.config_bytes(&image).unwrap(), config);

    let layer = &image.layers[0];
    assert!(store.has_layer(layer) && !store.discard_if_damaged(layer.digest).unwrap());
    std::fs::write(store.blob_path(layer.digest), "cut").unwrap();
    assert!(!store.has_layer(layer));
    assert!(store.discard_if_damaged(layer.digest).unwrap());
    assert!(!store.blob_path(layer.digest).exists());
}

#[test]
fn one_unreadable_image_hides_no_other() {
    let (_directory, store) = store();
    let one = imported(&store, "one", &[("a", "x")]);
    let two = imported(&store, "two", &[("a", "y")]);
    assert!(store.broken().unwrap().is_empty());
    std::fs::write(store.blob_path(one.id), "damaged").unwrap();
    let listed = store.list().unwrap();
    assert_eq!(listed.iter().map(|image| image.id).collect::<Vec<_>>(), [two.id]);
    let broken = store.broken().unwrap();
    assert_eq!(broken.len(), 1);
    assert!(broken[0].hint_text().unwrap().starts_with("luna rmi --force"));
    store.remove("one", true, &unused).unwrap();
    assert!(store.broken().unwrap().is_empty());
}

#[test]
fn tags_move_and_the_last_one_takes_the_image_along() {
    let (_directory, store) = store();
    let one = imported(&store, "one", &[("a", "x")]);
    let two = imported(&store, "two", &[("a", "y")]);
    let moving = Reference::parse("moving:1").unwrap();
    store.tag(&one, &moving).unwrap();
    store.tag(&two, &moving).unwrap();
    assert_eq!(store.get("moving:1").unwrap().id, two.id);
    assert_eq!(store.get("one").unwrap().references.len(), 1);

    let removed = store.remove("two", false, &unused).unwrap();
    assert_eq!(removed.untagged, [Reference::parse("two").unwrap()]);
    assert_eq!(removed.deleted, []);
    let error = store.remove("moving:1", false, &|_| true).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    let removed = store.remove("moving:1", false, &unused).unwrap();
    assert_eq!(removed.deleted, [two.id, two.layers[0].diff_id]);
    assert!(!store.layer_path(two.layers[0].diff_id).exists());
    assert_eq!(
        names(&store.blobs()).len(),
        3,
        "manifest, config and layer of the other image"
    );
    assert!(store.find("two").unwrap().is_none());
}

#[test]
fn an_image_in_use_only_loses_its_name_by_force() {
    let (_directory, store) = store();
    let image = imported(&store, "one", &[("a", "x")]);
    store.remove("one", true, &|_| true).unwrap();
    let left = store.get(&image.id.hex()).unwrap();
    assert!(left.references.is_empty());
    assert_eq!(store.prune(true, &|_| true).unwrap().deleted, []);
    let pruned = store.prune(false, &unused).unwrap();
    assert_eq!(pruned.deleted, [image.id, image.layers[0].diff_id]);
    assert!(pruned.freed > 0);
    assert!(names(&store.blobs()).is_empty() && names(&store.layers()).is_empty());
}

#[test]
fn removing_by_id_wants_force_when_there_are_several_names() {
    let (_directory, store) = store();
    let image = imported(&store, "one", &[("a", "x")]);
    store.tag(&image, &Reference::parse("two").unwrap()).unwrap();
    let id = image.id.short();
    assert_eq!(
        store.remove(&id, false, &unused).unwrap_err().kind(),
        Kind::Conflict
    );
    assert_eq!(store.remove(&id, true, &unused).unwrap().untagged.len(), 2);
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn a_hold_keeps_a_sweep_from_what_has_no_image_yet() {
    let (_directory, store) = store();
    let hold = store.hold().unwrap();
    let bytes = archive(&[("a", "x")]);
    let layer = store
        .add_layer(&mut &bytes[..], Compression::Gzip, &quiet)
        .unwrap();
    let pruned = store.prune(true, &unused).unwrap();
    assert!(pruned.busy && pruned.deleted.is_empty());
    assert!(store.has_layer(&layer));
    drop(hold);
    assert_eq!(store.prune(true, &unused).unwrap().deleted, [layer.diff_id]);
    assert!(!store.has_layer(&layer));
}

#[test]
fn what_a_killed_process_left_is_swept() {
    let (_directory, store) = store();
    std::fs::write(store.blobs().join(".new-1-1"), "half a blob").unwrap();
    std::fs::create_dir_all(store.layers().join(".new-1-2/deep/er")).unwrap();
    store.prune(false, &unused).unwrap();
    assert!(names(&store.blobs()).is_empty() && names(&store.layers()).is_empty());
}

#[test]
fn a_removal_that_broke_off_is_no_obstacle_to_the_next() {
    let (_directory, store) = store();
    let image = imported(&store, "one", &[("a", "x")]);
    let left = store
        .layers()
        .join(format!(".new-{}-gone", image.layers[0].diff_id.hex()));
    std::fs::create_dir_all(left.join("half")).unwrap();
    let removed = store.remove("one", false, &unused).unwrap();
    assert_eq!(removed.deleted, [image.id, image.layers[0].diff_id]);
    assert!(!store.layer_path(image.layers[0].diff_id).exists());
    store.prune(false, &unused).unwrap();
    assert!(names(&store.layers()).is_empty());
}

#[test]
fn what_cannot_be_removed_stops_nothing_else_and_is_told() {
    let (_directory, store) = store();
    let image = imported(&store, "one", &[("a", "x")]);
    let stuck = store.blob_path(image.layers[0].digest);
    std::fs::remove_file(&stuck).unwrap();
    std::fs::create_dir(&stuck).unwrap();
    assert!(store.remove("one", false, &unused).is_err());
    assert!(!store.layer_path(image.layers[0].diff_id).exists());
    std::fs::create_dir_all(store.layers().join(".new-1-2/deep")).unwrap();
    let error = store.prune(true, &unused).unwrap_err();
    assert!(error.causes().concat().contains("cannot remove"), "{error:?}");
    assert!(names(&store.layers()).is_empty());
    std::fs::remove_dir(&stuck).unwrap();
    store.prune(true, &unused).unwrap();
}

#[test]
fn a_prune_sweeps_builds_and_with_all_forgets_them() {
    let (directory, store) = store();
    let build = directory.path().join("build");
    for path in [".new-1-1/upper", "cache", "mounts/aa", "mounts/bb"] {
        std::fs::create_dir_all(build.join(path)).unwrap();
    }
    std::fs::write(build.join("cache/known.json"), "{}").unwrap();
    store.prune(false, &unused).unwrap();
    assert_eq!(
        names(&build),
        HashSet::from(["cache".to_owned(), "mounts".to_owned()])
    );
    let used = files::lock(&build.join("mounts/aa.lock"), FlockOperation::LockShared).unwrap();
    assert!(store.prune(true, &unused).unwrap().freed > 0);
    assert!(!build.join("cache").exists() && !build.join("mounts/bb").exists());
    assert!(build.join("mounts/aa").exists());
    drop(used);
    store.prune(true, &unused).unwrap();
    assert!(!build.join("mounts/aa").exists());
}

#[test]
fn an_unknown_version_is_refused_and_left_alone() {
    let (directory, store) = store();
    let path = directory.path().join("images.json");
    std::fs::write(&path, r#"{"version":2,"images":[]}"#).unwrap();
    assert_eq!(store.list().unwrap_err().kind(), Kind::Unsupported);
    std::fs::write(&path, r#"{"version":1,"images":[],"extra":1}"#).unwrap();
    assert_eq!(store.list().unwrap_err().kind(), Kind::Corrupt);
    std::fs::write(&path, "").unwrap();
    assert_eq!(store.list().unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn several_writers_lose_nothing() {
    let (_directory, store) = store();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = store.clone();
            scope.spawn(move || {
                for number in 0..5 {
                    imported(
                        &store,
                        &format!("t{thread}-{number}"),
                        &[("a", &format!("{thread}/{number}"))],
                    );
                }
            });
        }
    });
    assert_eq!(store.list().unwrap().len(), 20);
}

#[test]
fn a_disk_is_made_once_and_goes_with_its_last_image() {
    let (directory, store) = store();
    let image = imported(&store, "first", &[("etc/motd", "hello")]);
    let started = std::sync::atomic::AtomicU32::new(0);
    let count = |progress: Progress| {
        if let Progress::Started { label, .. } = progress {
            assert_eq!(label, "Making the disk of first:latest");
            started.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    };
    let disks: Vec<_> = std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| store.disk(&image, &count).unwrap()))
            .collect();
        waiting.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(disks.iter().all(|disk| *disk == disks[0]));
    assert_eq!(started.load(std::sync::atomic::Ordering::Relaxed), 1);
    let bytes = std::fs::read(&disks[0]).unwrap();

    // Another image of the same layers has the same disk; a prune leaves it.
    let layers = image.layers.clone();
    let reference = Reference::parse("second").unwrap();
    let mut config = image.config.clone();
    config.set_author(Some("somebody else".to_owned()));
    let second = store
        .add_image(config, &image.extensions, &layers, Some(&reference), false)
        .unwrap();
    assert_ne!(second.id, image.id);
    assert_eq!(store.disk(&second, &quiet).unwrap(), disks[0]);
    store.remove("first", false, &unused).unwrap();
    std::fs::write(
        directory.path().join("disks/.new-1-0"),
        "left by a killed process",
    )
    .unwrap();
    let freed = store.prune(false, &unused).unwrap().freed;
    assert!(freed > 0 && disks[0].is_file());
    assert_eq!(names(&directory.path().join("disks")).len(), 2);

    // One that was cut short is made again, with the very same bytes.
    std::fs::File::options()
        .write(true)
        .open(&disks[0])
        .and_then(|file| file.set_len(5000))
        .unwrap();
    assert_eq!(store.disk(&second, &quiet).unwrap(), disks[0]);
    assert!(std::fs::read(&disks[0]).unwrap() == bytes);

    store.remove("second", false, &unused).unwrap();
    assert!(!disks[0].exists());
    store.prune(false, &unused).unwrap();
    assert!(names(&directory.path().join("disks")).is_empty());
}

#[test]
fn no_disk_is_made_of_a_damaged_blob() {
    let (directory, store) = store();
    let image = imported(&store, "first", &[("etc/motd", "hello")]);
    let blob = store.blob_path(image.layers[0].digest);
    let mut bytes = std::fs::read(&blob).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&blob, &bytes).unwrap();
    let error = store.disk(&image, &quiet).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    std::fs::remove_file(&blob).unwrap();
    let error = store.disk(&image, &quiet).unwrap_err();
    assert_eq!(error.hint_text(), Some("luna pull first:latest"));
    let left = names(&directory.path().join("disks"));
    assert_eq!(left.len(), 1, "only the lock: {left:?}");
}
