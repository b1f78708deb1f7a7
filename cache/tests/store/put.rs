//! What putting, publishing and reading back keep, share and refuse.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;

use actloom_cache::{ActionKey, Artifact, ContentId, Disk, Form, Store, StoreError};

use crate::faults::{Fault, Faults};
use crate::{Home, action, key, publish_file, write};

#[test]
fn a_published_action_is_found_complete_and_readable_by_another_process() {
    let home = Home::make();
    let published = publish_file(&home.store(), "a", b"hello");
    let store = home.store();
    let found = store.action(&key("a")).unwrap().unwrap();
    assert_eq!(found, published);
    assert!(store.complete(&found).unwrap());
    assert_eq!(store.read_file(&found.outputs["out"], None).unwrap(), b"hello");
    assert_eq!(fs::read(store.path_of(&found.outputs["out"]).unwrap()).unwrap(), b"hello");
    assert_eq!(store.actions().unwrap(), [published]);
    assert_eq!(store.action(&key("b")).unwrap(), None);
}

#[test]
fn ids_of_a_known_file_and_a_known_tree_never_change() {
    let home = Home::make();
    let store = home.store();
    let file = store.put(&home.file("f", b"abc")).unwrap();
    let abc = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
    assert_eq!(file, Artifact { id: abc.parse().unwrap(), form: Form::File, bytes: 3 });

    let script = home.file("t/a b/run.sh", b"abc");
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
    home.file("t/config.json", b"");
    let tree = store.put(&home.path.join("t")).unwrap();
    // The same vector as in the manifest's own test, where its provenance stands.
    let id = "7930c20d67ce79dfdad925dec1793878222bb40f0f7fa208a29bab3232e59ebd";
    assert_eq!(tree, Artifact { id: id.parse().unwrap(), form: Form::Tree, bytes: 3 });
}

#[test]
fn a_tree_id_depends_on_names_contents_and_executable_bits_and_on_nothing_else() {
    let home = Home::make();
    let store = home.store();
    let files = ["z", "a", "sub/b", "sub.c", "sub-d/e"];
    let make = |name: &str, order: &[&str]| {
        for file in order {
            home.file(&format!("{name}/{file}"), file.as_bytes());
        }
        home.path.join(name)
    };
    let reference = store.put(&make("one", &files)).unwrap();

    let mut backwards = files;
    backwards.reverse();
    let other = make("two", &backwards);
    let old = fs::File::open(other.join("a")).unwrap();
    old.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    fs::create_dir(other.join("hollow")).unwrap();
    fs::set_permissions(other.join("z"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(store.put(&other).unwrap(), reference);

    let script = make("three", &files);
    fs::set_permissions(script.join("z"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_ne!(store.put(&script).unwrap().id, reference.id);
    let renamed = make("four", &files);
    fs::rename(renamed.join("z"), renamed.join("y")).unwrap();
    assert_ne!(store.put(&renamed).unwrap().id, reference.id);
    let changed = make("five", &files);
    fs::write(changed.join("z"), "Z").unwrap();
    assert_ne!(store.put(&changed).unwrap().id, reference.id);

    let paths: Vec<String> = store.files(&reference).unwrap().into_iter().map(|entry| entry.path).collect();
    assert_eq!(paths, ["a", "sub-d/e", "sub.c", "sub/b", "z"]);
}

#[test]
fn what_lies_in_a_stage_is_moved_and_what_lies_outside_is_copied() {
    let home = Home::make();
    let store = home.store();
    let stage = store.stage(&key("a")).unwrap();
    let staged = stage.path().join("out");
    write(&staged, b"staged");
    let inode = fs::metadata(&staged).unwrap().ino();
    let artifact = store.put(&staged).unwrap();
    assert!(!staged.exists());
    assert_eq!(fs::metadata(store.path_of(&artifact).unwrap()).unwrap().ino(), inode);

    let outside = home.file("mine", b"mine");
    let artifact = store.put(&outside).unwrap();
    let object = store.path_of(&artifact).unwrap();
    fs::write(&outside, b"still mine to write").unwrap();
    assert_eq!(fs::read(object).unwrap(), b"mine");
}

#[test]
fn a_staged_file_with_a_second_name_is_copied_so_that_the_name_leads_nowhere() {
    let home = Home::make();
    let store = home.store();
    let stage = store.stage(&key("a")).unwrap();
    let checkpoint = store.scratch(&key("a")).unwrap().join("checkpoint");
    write(&checkpoint, b"weights");
    fs::create_dir(stage.path().join("out")).unwrap();
    fs::hard_link(&checkpoint, stage.path().join("out/model")).unwrap();
    let artifact = store.put(&stage.path().join("out")).unwrap();
    fs::write(&checkpoint, b"SEVEN B").unwrap();
    assert_eq!(store.read_file(&artifact, Some("model")).unwrap(), b"weights");
    assert!(store.verify().unwrap().is_clean());
}

#[test]
fn content_that_is_already_there_is_not_written_again() {
    let home = Home::make();
    let disk = Arc::new(Faults::new(&home.path.join("backups"), Fault::Never));
    let store = Store::open_with(&home.root(), Arc::clone(&disk) as Arc<dyn Disk>).unwrap();
    let put = |name: &str| {
        for n in 0..10 {
            home.file(&format!("{name}/{n}"), &[n; 100]);
        }
        store.put(&home.path.join(name)).unwrap()
    };
    let first = put("one");
    assert_eq!(disk.count("sync_file"), 11, "ten objects and a manifest");
    let object = store.path_of(&Artifact { form: Form::File, ..store_entry(&store, &first) }).unwrap();
    let inode = fs::metadata(&object).unwrap().ino();
    assert_eq!(put("two"), first);
    assert_eq!(disk.count("sync_file"), 11, "nothing was written");
    assert_eq!(fs::metadata(&object).unwrap().ino(), inode);
}

fn store_entry(store: &Store, tree: &Artifact) -> Artifact {
    let entry = store.files(tree).unwrap().remove(0);
    Artifact { id: entry.id, form: Form::File, bytes: entry.bytes }
}

#[test]
fn publishing_syncs_each_folder_once_however_many_objects_it_holds() {
    let home = Home::make();
    let disk = Arc::new(Faults::new(&home.path.join("backups"), Fault::Never));
    let store = Store::open_with(&home.root(), Arc::clone(&disk) as Arc<dyn Disk>).unwrap();
    for n in 0..600 {
        home.file(&format!("many/{n}"), n.to_string().as_bytes());
    }
    let tree = store.put(&home.path.join("many")).unwrap();
    let before = disk.count("sync_dir");
    store.publish(&action("a", &[("out", &tree), ("again", &tree)])).unwrap();
    let shards = fs::read_dir(home.root().join("v1/objects")).unwrap().count();
    assert!((150..=256).contains(&shards), "{shards} shards");
    // Root, v1, objects, trees, one shard of trees, one of actions, actions.
    assert_eq!(disk.count("sync_dir") - before, shards + 7);
}

#[test]
fn answering_for_a_cached_step_takes_a_read_and_one_stat_an_object() {
    let home = Home::make();
    let disk = Arc::new(Faults::new(&home.path.join("backups"), Fault::Never));
    let store = Store::open_with(&home.root(), Arc::clone(&disk) as Arc<dyn Disk>).unwrap();
    for n in 0..100 {
        publish_file(&store, &n.to_string(), n.to_string().as_bytes());
    }
    let before = disk.calls().len();
    for n in 0..100 {
        let found = store.action(&key(&n.to_string())).unwrap().unwrap();
        assert!(store.complete(&found).unwrap());
    }
    assert_eq!(disk.calls().len() - before, 200);
    let before = disk.calls().len();
    (0..100).for_each(|n| store.used(&key(&n.to_string())).unwrap());
    assert!(disk.calls().len() - before <= 300, "a lock, a note and a touch each");
}

#[test]
fn an_action_is_not_published_before_its_outputs_are_put() {
    let home = Home::make();
    let store = home.store();
    let absent = Artifact { id: ContentId::of_file(b"absent"), form: Form::File, bytes: 6 };
    let error = store.publish(&action("a", &[("out", &absent)])).unwrap_err();
    assert!(matches!(&error, StoreError::NotPut { output, .. } if output == "out"), "{error}");
    let absent = Artifact { form: Form::Tree, ..absent };
    assert!(store.publish(&action("a", &[("out", &absent)])).is_err());
    assert_eq!(store.action(&key("a")).unwrap(), None);
    assert_eq!(fs::read_dir(home.root().join("v1/stage")).unwrap().count(), 0);
}

#[test]
fn links_sockets_and_odd_names_are_refused_by_name_and_stay_where_they_are() {
    let home = Home::make();
    let store = home.store();
    let refuse = |path: &camino::Utf8Path, named: &str| {
        let error = store.put(path).unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(named), "{error} does not name {named}");
    };
    let stage = store.stage(&key("a")).unwrap();
    let tree = stage.path().join("out");
    write(&tree.join("fine"), b"fine");
    symlink("fine", tree.join("link")).unwrap();
    refuse(&tree, "out/link");
    refuse(&tree.join("link"), "out/link");
    assert!(tree.join("fine").exists(), "a refused tree is not taken");
    fs::remove_file(tree.join("link")).unwrap();

    let _socket = std::os::unix::net::UnixListener::bind(home.path.join("s")).unwrap();
    refuse(&home.path.join("s"), "/s");
    for name in ["a\\b", "a\nb", "a:b"] {
        write(&tree.join(name), b"");
        refuse(&tree, name);
        fs::remove_file(tree.join(name)).unwrap();
    }
    let odd = std::os::unix::ffi::OsStringExt::from_vec(b"caf\xe9".to_vec());
    let odd: std::ffi::OsString = odd;
    fs::write(tree.as_std_path().join(&odd), b"").unwrap();
    refuse(&tree, "caf");
    fs::remove_file(tree.as_std_path().join(&odd)).unwrap();
    assert_eq!(store.put(&tree).unwrap().bytes, 4);

    let error = store.put(&home.path.join("nowhere")).unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
}

#[test]
fn an_empty_file_and_an_empty_folder_are_artifacts_too() {
    let home = Home::make();
    let store = home.store();
    let file = store.put(&home.file("f", b"")).unwrap();
    fs::create_dir(home.path.join("t")).unwrap();
    let tree = store.put(&home.path.join("t")).unwrap();
    assert_ne!(file.id, tree.id);
    store.publish(&action("a", &[("file", &file), ("tree", &tree)])).unwrap();
    assert_eq!(store.read_file(&file, None).unwrap(), b"");
    assert_eq!(store.files(&tree).unwrap(), []);
    store.checkout(&tree, &home.path.join("u")).unwrap();
    assert!(home.path.join("u").is_dir());
    assert!(store.verify().unwrap().is_clean());
}

#[test]
fn reading_asks_for_the_form_that_an_artifact_has() {
    let home = Home::make();
    let store = home.store();
    let file = store.put(&home.file("f", b"file")).unwrap();
    home.file("t/sub/g", b"inner");
    let tree = store.put(&home.path.join("t")).unwrap();
    assert_eq!(store.read_file(&tree, Some("sub/g")).unwrap(), b"inner");
    assert!(matches!(store.read_file(&tree, Some("g")), Err(StoreError::NoSuchFile { .. })));
    assert!(matches!(store.read_file(&tree, None), Err(StoreError::WrongForm { .. })));
    assert!(matches!(store.read_file(&file, Some("f")), Err(StoreError::WrongForm { .. })));
    assert_eq!(store.path_of(&tree), None);
    assert_eq!(store.files(&file).unwrap()[0].path, "");
}

#[test]
fn a_stage_goes_with_its_owner_and_scratch_stays() {
    let home = Home::make();
    let store = home.store();
    let stage = store.stage(&key("a")).unwrap();
    let other = store.stage(&key("a")).unwrap();
    let path = stage.path().to_owned();
    assert_ne!(path, other.path());
    write(&path.join("deep/file"), b"");
    drop(stage);
    assert!(!path.exists() && other.path().exists());

    write(&store.scratch(&key("a")).unwrap().join("checkpoint"), b"half");
    let again = home.store().scratch(&key("a")).unwrap();
    assert_eq!(fs::read(again.join("checkpoint")).unwrap(), b"half");
    store.clear_scratch(&key("a")).unwrap();
    store.clear_scratch(&key("a")).unwrap();
    assert!(!again.exists());
}

#[test]
fn a_store_of_another_layout_is_refused_and_left_alone() {
    let home = Home::make();
    fs::create_dir_all(home.root().join("v2/objects")).unwrap();
    let error = Store::open(&home.root()).unwrap_err();
    assert!(matches!(&error, StoreError::Layout { found, .. } if found == "v2"), "{error}");
    assert!(!home.root().join("v1").exists());
    // Beside files of others, and beside a newer layout that grew next to ours, the store works.
    let home = Home::make();
    home.file("store/video.txt", b"");
    home.store();
    fs::create_dir_all(home.root().join("v2")).unwrap();
    home.store();
}

#[test]
fn a_record_of_a_newer_program_is_an_error_that_says_so() {
    let home = Home::make();
    let store = home.store();
    let file = store.put(&home.file("f", b"x")).unwrap();
    let newer = actloom_cache::Action { v: 2, ..action("a", &[("out", &file)]) };
    assert!(matches!(store.publish(&newer), Err(StoreError::RecordVersion { found: 2, known: 1, .. })));
}

#[test]
fn usage_counts_files_and_bytes_by_folder() {
    let home = Home::make();
    let store = home.store();
    publish_file(&store, "a", b"12345");
    write(&store.scratch(&key("b")).unwrap().join("c"), b"123");
    write(&store.runs_dir().join("r/log"), b"1234567");
    let usage = store.usage().unwrap();
    assert_eq!((usage.objects.count, usage.objects.bytes), (1, 5));
    assert_eq!((usage.scratch.count, usage.scratch.bytes), (1, 3));
    assert_eq!((usage.runs.count, usage.runs.bytes), (1, 7));
    assert_eq!((usage.trees.count, usage.actions.count, usage.stage.count), (0, 1, 0));
    assert_eq!(usage.bytes(), 15 + usage.actions.bytes);
}

#[test]
fn keys_that_share_their_first_digits_are_kept_apart() {
    let home = Home::make();
    let store = home.store();
    let file = store.put(&home.file("f", b"x")).unwrap();
    let keys: Vec<ActionKey> =
        (0..3u8).map(|n| ActionKey::from_bytes([&[7; 31][..], &[n]].concat().try_into().unwrap())).collect();
    for key in &keys {
        let mut one = action("a", &[("out", &file)]);
        one.key = *key;
        store.publish(&one).unwrap();
    }
    assert_eq!(store.actions().unwrap().iter().map(|a| a.key).collect::<Vec<_>>(), keys);
}
