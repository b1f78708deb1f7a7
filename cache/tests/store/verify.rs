//! `verify` finds every kind of damage, and nothing in a store that is only busy.

use std::fs;

use actloom_cache::{Artifact, ContentId, Problem, Store, StoreError};
use camino::Utf8PathBuf;

use crate::{Home, action, key, overwrite, publish_file, write};

fn object(store: &Store, artifact: &Artifact) -> Utf8PathBuf {
    store.path_of(artifact).unwrap()
}

fn only(store: &Store) -> Problem {
    let mut problems = store.verify().unwrap().problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.remove(0)
}

#[test]
fn a_flipped_bit_that_neither_size_nor_time_betrays_is_found() {
    let home = Home::make();
    let store = home.store();
    let artifact = publish_file(&store, "a", &[7; 5000]).outputs["out"].clone();
    assert!(store.verify().unwrap().is_clean());
    let path = object(&store, &artifact);
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    let mut content = fs::read(&path).unwrap();
    content[4321] ^= 0x10;
    overwrite(&path, &content);
    fs::File::open(&path).unwrap().set_modified(time).unwrap();
    assert_eq!(only(&store), Problem::CorruptObject { id: artifact.id, path });
}

#[test]
fn a_missing_object_is_found_once_for_each_action_that_needs_it() {
    let home = Home::make();
    let store = home.store();
    let artifact = publish_file(&store, "a", b"x").outputs["out"].clone();
    store.publish(&action("b", &[("copy", &artifact)])).unwrap();
    let path = object(&store, &artifact);
    fs::remove_file(&path).unwrap();
    let mut found: Vec<_> = store
        .verify()
        .unwrap()
        .problems
        .into_iter()
        .map(|problem| match problem {
            Problem::MissingObject { key, output, path: missing } if missing == path => (key, output),
            other => panic!("{other:?}"),
        })
        .collect();
    found.sort();
    let mut expected = vec![(key("a"), "out".to_owned()), (key("b"), "copy".to_owned())];
    expected.sort();
    assert_eq!(found, expected);
    assert!(!store.complete(&store.action(&key("a")).unwrap().unwrap()).unwrap());
}

#[test]
fn a_missing_or_altered_manifest_is_found() {
    let home = Home::make();
    let store = home.store();
    home.file("t/a", b"a");
    let tree = store.put(&home.path.join("t")).unwrap();
    store.publish(&action("a", &[("out", &tree)])).unwrap();
    let hex = tree.id.to_string();
    let path = home.root().join("v1/trees").join(&hex[..2]).join(&hex);
    let text = fs::read_to_string(&path).unwrap();
    overwrite(&path, text.replace(" a\n", " b\n").as_bytes());
    assert_eq!(only(&store), Problem::CorruptTree { id: tree.id, path: path.clone() });
    assert!(matches!(store.files(&tree), Err(StoreError::Corrupt { .. })));
    fs::remove_file(&path).unwrap();
    assert_eq!(only(&store), Problem::MissingObject { key: key("a"), output: "out".to_owned(), path });
    assert!(matches!(store.files(&tree), Err(StoreError::Missing { .. })));
}

#[test]
fn a_truncated_record_is_found_and_named_and_counts_as_absent_until_it_is_replaced() {
    let home = Home::make();
    let store = home.store();
    publish_file(&store, "a", b"x");
    let hex = key("a").to_string();
    let path = home.root().join("v1/actions").join(&hex[..2]).join(format!("{hex}.json"));
    let length = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 10).unwrap();
    assert!(matches!(only(&store), Problem::BadRecord { path: found, .. } if found == path));
    assert_eq!(store.action(&key("a")).unwrap(), None);
    publish_file(&store, "b", b"y");
    assert_eq!(store.actions().unwrap().iter().map(|action| action.key).collect::<Vec<_>>(), [key("b")]);
    // gc cannot know what it referred to, and so removes nothing.
    let plan = actloom_cache::gc::plan(&store, &actloom_cache::gc::Policy::default());
    assert!(matches!(&plan, Err(error @ StoreError::Record { .. }) if error.to_string().contains(path.as_str())));

    let again = publish_file(&store, "a", b"x");
    assert_eq!(store.action(&key("a")).unwrap(), Some(again));
    assert!(store.verify().unwrap().is_clean());
}

#[test]
fn repair_forgets_actions_whose_parts_are_gone_so_that_the_store_verifies() {
    let home = Home::make();
    let store = home.store();
    let artifact = publish_file(&store, "a", b"x").outputs["out"].clone();
    publish_file(&store, "fine", b"fine");
    let lost = object(&store, &artifact);
    fs::remove_file(&lost).unwrap();
    let report = store.verify().unwrap();
    // Whoever holds the key is at work on it.
    let lock = store.lock(&key("a")).unwrap().unwrap();
    assert_eq!(home.store().repair(&report).unwrap(), 0);
    drop(lock);
    assert_eq!(store.repair(&report).unwrap(), 1);
    assert!(store.verify().unwrap().is_clean());
    assert_eq!(store.action(&key("a")).unwrap(), None);
    assert!(store.action(&key("fine")).unwrap().is_some());
}

#[test]
fn files_that_a_store_does_not_write_are_found() {
    let home = Home::make();
    let store = home.store();
    let artifact = publish_file(&store, "a", b"x").outputs["out"].clone();
    let hex = artifact.id.to_string();
    let base = home.root().join("v1");
    let mut strays = vec![
        base.join("notes.txt"),
        base.join("objects/loose"),
        base.join("objects").join(&hex[..2]).join("thumbs.db"),
        base.join("objects/zz").join(&hex),
        base.join("trees/ab/x"),
        base.join("actions/ab/x.json"),
        base.join("locks/mine"),
        base.join("scratch/mine"),
    ];
    strays.iter().for_each(|path| write(path, b""));
    strays.sort();
    // Anything may lie here.
    write(&base.join("runs/any"), b"");
    write(&store.scratch(&key("b")).unwrap().join("any"), b"");
    let expected: Vec<Problem> = strays.into_iter().map(|path| Problem::StrayFile { path }).collect();
    assert_eq!(store.verify().unwrap().problems, expected);
}

#[test]
fn garbage_and_work_in_progress_are_no_problems() {
    let home = Home::make();
    let store = home.store();
    publish_file(&store, "a", b"published");
    home.file("t/a", b"unpublished");
    store.put(&home.path.join("t")).unwrap();
    let stage = store.stage(&key("b")).unwrap();
    write(&stage.path().join("half"), b"written");
    let _lock = store.lock(&key("b")).unwrap().unwrap();
    store.scratch(&key("b")).unwrap();
    let report = home.store().verify().unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
    assert_eq!((report.objects.count, report.trees.count, report.actions), (2, 1, 1));
    assert_eq!(report.garbage.count, 2, "an object and a tree; the stage has a living owner");
}

#[test]
fn repair_removes_what_is_damaged_so_that_the_steps_run_again() {
    let home = Home::make();
    let store = home.store();
    let artifact = publish_file(&store, "a", &[7; 100]).outputs["out"].clone();
    publish_file(&store, "fine", b"fine");
    publish_file(&store, "b", b"b");
    home.file("t/a", b"a");
    let tree = store.put(&home.path.join("t")).unwrap();
    store.publish(&action("c", &[("out", &tree)])).unwrap();

    // A bit that rots in place: neither size nor time changes, so a lookup cannot see it.
    let path = object(&store, &artifact);
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    overwrite(&path, &[8; 100]);
    fs::File::open(&path).unwrap().set_modified(time).unwrap();
    assert!(store.complete(&store.action(&key("a")).unwrap().unwrap()).unwrap());
    let hex = key("b").to_string();
    overwrite(&home.root().join("v1/actions").join(&hex[..2]).join(format!("{hex}.json")), b"{}");
    let hex = tree.id.to_string();
    overwrite(&home.root().join("v1/trees").join(&hex[..2]).join(&hex), b"x");
    write(&home.root().join("v1/mine"), b"");

    let report = store.verify().unwrap();
    assert_eq!(report.problems.len(), 4);
    assert_eq!(
        store.repair(&report).unwrap(),
        5,
        "an object, a tree, a record, and the records that needed the former"
    );
    assert_eq!(store.repair(&report).unwrap(), 0, "what is gone is not removed twice");
    for name in ["a", "b", "c"] {
        assert_eq!(store.action(&key(name)).unwrap(), None, "{name}");
    }
    let left = only(&store);
    assert!(matches!(&left, Problem::StrayFile { path } if path.ends_with("v1/mine")) && !left.is_repairable());
    assert!(store.complete(&store.action(&key("fine")).unwrap().unwrap()).unwrap());

    publish_file(&store, "a", &[7; 100]);
    store.put(&home.path.join("t")).unwrap();
    assert_eq!(store.repair(&report).unwrap(), 0, "what was put again is right again");
    assert!(matches!(only(&store), Problem::StrayFile { path } if path.ends_with("v1/mine")));
}

#[test]
fn a_record_that_a_newer_program_wrote_is_named_and_never_removed() {
    let home = Home::make();
    let store = home.store();
    let mut newer = publish_file(&store, "a", b"x");
    newer.v = 2;
    let body = serde_json::to_string(&newer).unwrap();
    let hex = key("a").to_string();
    let path = home.root().join("v1/actions").join(&hex[..2]).join(format!("{hex}.json"));
    let record = format!("{{\"check\":\"{}\",\"action\":{body}}}\n", ContentId::of_file(body.as_bytes()));
    overwrite(&path, record.as_bytes());
    let report = store.verify().unwrap();
    assert_eq!(report.problems, [Problem::UnknownRecord { path: path.clone(), version: 2 }]);
    assert_eq!(store.repair(&report).unwrap(), 0);
    assert!(path.exists());
    let plan = actloom_cache::gc::plan(&store, &actloom_cache::gc::Policy::default());
    assert!(matches!(plan, Err(StoreError::RecordVersion { found: 2, .. })), "its objects are not garbage either");
}
