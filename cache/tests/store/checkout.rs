//! What leaves the store, and why nobody out there can spoil what stays.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;

use actloom_cache::{Artifact, Problem, Store, StoreError};

use crate::faults::{Copies, Fault, Faults};
use crate::{Home, action, key, overwrite};

fn setup(home: &Home, copies: Copies) -> (Store, Artifact) {
    let disk = Faults::new(&home.path.join("backups"), Fault::Never).copies(copies);
    let store = Store::open_with(&home.root(), Arc::new(disk)).unwrap();
    home.file("t/data", b"data");
    let script = home.file("t/bin/run", b"#!/bin/sh\n");
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
    let tree = store.put(&home.path.join("t")).unwrap();
    store.publish(&action("a", &[("out", &tree)])).unwrap();
    (store, tree)
}

fn mode(path: &camino::Utf8Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn every_way_of_checking_out_gives_the_same_read_only_files() {
    for copies in [Copies::Reflinks, Copies::Links, Copies::None] {
        let home = Home::make();
        let (store, tree) = setup(&home, copies);
        let dest = home.path.join("dest");
        store.checkout(&tree, &dest).unwrap();
        assert_eq!(fs::read(dest.join("data")).unwrap(), b"data");
        assert_eq!(fs::read(dest.join("bin/run")).unwrap(), b"#!/bin/sh\n");
        assert_eq!((mode(&dest.join("data")), mode(&dest.join("bin/run"))), (0o444, 0o555), "{copies:?}");
        let links = fs::metadata(dest.join("data")).unwrap().nlink();
        assert_eq!(links, if copies == Copies::Links { 2 } else { 1 }, "{copies:?}");
        // The executable has a mode of its own and so is never the object itself.
        assert_eq!(fs::metadata(dest.join("bin/run")).unwrap().nlink(), 1);
        assert_eq!(store.put(&dest).unwrap(), tree, "{copies:?}: what was checked out is what was put");
    }
}

#[test]
fn objects_and_manifests_are_read_only_and_bear_the_stamp() {
    let home = Home::make();
    let (_, _) = setup(&home, Copies::Links);
    let mut seen = 0;
    for part in ["objects", "trees"] {
        for shard in home.root().join("v1").join(part).read_dir_utf8().unwrap() {
            for file in shard.unwrap().path().read_dir_utf8().unwrap() {
                let path = file.unwrap().path().to_owned();
                assert_eq!(mode(&path), 0o444, "{path}");
                assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), actloom_cache::disk::stamp(), "{path}");
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 3);
}

#[test]
fn a_checkout_overwrites_nothing() {
    let home = Home::make();
    let (store, tree) = setup(&home, Copies::Links);
    let file = store.put(&home.file("f", b"f")).unwrap();
    let dest = home.file("dest", b"precious");
    for artifact in [&tree, &file] {
        let error = store.checkout(artifact, &dest).unwrap_err();
        assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    }
    assert_eq!(fs::read(&dest).unwrap(), b"precious");
}

#[test]
fn writing_to_a_checkout_that_shares_nothing_leaves_the_store_alone() {
    for copies in [Copies::Reflinks, Copies::None] {
        let home = Home::make();
        let (store, tree) = setup(&home, copies);
        let dest = home.path.join("dest");
        store.checkout(&tree, &dest).unwrap();
        overwrite(&dest.join("data"), b"EVIL");
        assert!(store.verify().unwrap().is_clean(), "{copies:?}");
        assert_eq!(store.read_file(&tree, Some("data")).unwrap(), b"data", "{copies:?}");
    }
}

#[test]
fn writing_through_a_hard_link_is_seen_at_once_and_mended_by_running_again() {
    let home = Home::make();
    let (store, tree) = setup(&home, Copies::Links);
    let recorded = store.action(&key("a")).unwrap().unwrap();
    let dest = home.path.join("dest");
    store.checkout(&tree, &dest).unwrap();
    // Same length: only the time gives it away.
    overwrite(&dest.join("data"), b"EVIL");

    assert!(!store.complete(&recorded).unwrap());
    let data = store.files(&tree).unwrap().into_iter().find(|entry| entry.path == "data").unwrap();
    let again = store.checkout(&tree, &home.path.join("dest2")).unwrap_err();
    assert!(matches!(&again, StoreError::Corrupt { id, .. } if *id == data.id), "{again}");
    assert!(!home.path.join("dest2").exists(), "a failed checkout leaves nothing");
    assert!(matches!(store.read_file(&tree, Some("data")), Err(StoreError::Corrupt { .. })));
    let problems = store.verify().unwrap().problems;
    assert!(matches!(&problems[..], [Problem::CorruptObject { id, .. }] if *id == data.id), "{problems:?}");

    assert_eq!(store.put(&home.path.join("t")).unwrap(), tree);
    assert!(store.complete(&recorded).unwrap());
    assert!(store.verify().unwrap().is_clean());
}

#[test]
fn a_store_copied_without_its_times_is_as_good_as_before() {
    let home = Home::make();
    let (store, tree) = setup(&home, Copies::Links);
    let recorded = store.action(&key("a")).unwrap().unwrap();
    let data = store.files(&tree).unwrap().into_iter().find(|entry| entry.path == "data").unwrap();
    let hex = data.id.to_string();
    let object = home.root().join("v1/objects").join(&hex[..2]).join(&hex);
    let stamped = fs::metadata(&object).unwrap().modified().unwrap();
    fs::File::open(&object).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    assert!(store.complete(&recorded).unwrap());
    assert_eq!(fs::metadata(&object).unwrap().modified().unwrap(), stamped, "hashed once, then known again");
}
