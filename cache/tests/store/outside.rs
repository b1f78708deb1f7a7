//! What files and folders outside the store hold, and when they are read again.

use std::fs;
use std::os::unix::fs::symlink;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use crate::Home;

#[test]
fn what_lies_outside_has_the_id_it_would_have_in_the_store() {
    let home = Home::make();
    let store = home.store();
    home.file("model/config.json", b"{}");
    home.file("model/deep/er/weights", b"abc");
    let lone = home.file("chat.jsonl", b"{}\n");
    for path in [home.path.join("model"), lone] {
        assert_eq!(store.identify(&path).unwrap(), store.put(&path).unwrap(), "{path}");
    }
}

#[test]
fn links_are_followed_and_names_with_a_dot_are_left_out() {
    let home = Home::make();
    let store = home.store();
    home.file("plain/config.json", b"{}");
    home.file("plain/weights", b"abc");
    let plain = store.identify(&home.path.join("plain")).unwrap();
    // As a cache of Hugging Face lays it out.
    let (a, b) = (home.file("hub/blobs/1", b"{}"), home.file("hub/blobs/2", b"abc"));
    let snapshot = home.path.join("hub/snapshot");
    fs::create_dir(&snapshot).unwrap();
    symlink(a, snapshot.join("config.json")).unwrap();
    symlink(b, snapshot.join("weights")).unwrap();
    home.file("hub/snapshot/.git/HEAD", b"main");
    home.file("hub/snapshot/.gitattributes", b"*");
    assert_eq!(store.identify(&snapshot).unwrap(), plain);
    symlink(&snapshot, home.path.join("link")).unwrap();
    assert_eq!(store.identify(&home.path.join("link")).unwrap(), plain, "the path itself is a link");
}

#[test]
fn a_folder_that_leads_back_to_itself_and_a_link_to_nothing_are_refused_by_name() {
    let home = Home::make();
    let store = home.store();
    home.file("round/a/b", b"x");
    symlink(home.path.join("round"), home.path.join("round/a/back")).unwrap();
    let error = store.identify(&home.path.join("round")).unwrap_err().to_string();
    assert!(error.contains("round/a/back") && error.contains("a folder that it lies in"), "{error}");
    // Two ways to one folder are no circle.
    home.file("twice/a/b", b"x");
    symlink(home.path.join("twice/a"), home.path.join("twice/c")).unwrap();
    assert_eq!(store.identify(&home.path.join("twice")).unwrap().bytes, 2);
    fs::create_dir(home.path.join("dangling")).unwrap();
    symlink("nowhere", home.path.join("dangling/x")).unwrap();
    let error = store.identify(&home.path.join("dangling")).unwrap_err().to_string();
    assert!(error.contains("dangling/x"), "{error}");
    assert!(store.identify(&home.path.join("none")).is_err());
}

#[test]
fn every_edit_is_seen_at_once_however_quick_and_however_alike() {
    let home = Home::make();
    let store = home.store();
    let folder = home.path.join("data");
    let mut last = None;
    for round in 0..40u8 {
        // The same size, and the same modification time: only the content differs.
        let path = home.file("data/x", &[round]);
        fs::File::open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(9)).unwrap();
        let now = store.identify(&folder).unwrap().id;
        assert_ne!(Some(now), last, "round {round}");
        last = Some(now);
    }
    fs::remove_file(folder.join("x")).unwrap();
    assert_ne!(Some(store.identify(&folder).unwrap().id), last);
}

#[test]
fn a_large_file_is_read_once_and_again_only_when_it_was_touched() {
    let home = Home::make();
    let path = home.path.join("large");
    fs::File::create(&path).unwrap().set_len(200 << 20).unwrap();
    // Younger than two seconds, it would not be trusted.
    sleep(Duration::from_millis(2100));
    let timed = || {
        let start = Instant::now();
        (home.store().identify(&path).unwrap(), start.elapsed())
    };
    let (first, reading) = timed();
    let (second, remembering) = timed();
    assert_eq!(first, second);
    assert!(remembering * 5 < reading, "{remembering:?} the second time, {reading:?} the first");
    fs::File::open(&path).unwrap().set_modified(SystemTime::now()).unwrap();
    let (third, again) = timed();
    assert_eq!(first, third, "a touch changes no content");
    assert!(remembering * 5 < again, "{again:?} after a touch");
    assert!(home.store().verify().unwrap().is_clean(), "what is remembered is no stray file");
}

#[test]
fn what_is_remembered_may_be_lost_or_damaged() {
    let home = Home::make();
    let store = home.store();
    let path = home.file("x", b"abc");
    let id = store.identify(&path).unwrap();
    let known = home.root().join("v1/known");
    for file in fs::read_dir(&known).unwrap() {
        fs::write(file.unwrap().path(), b"{\"v\":1,\"files\":").unwrap();
    }
    assert_eq!(store.identify(&path).unwrap(), id);
    fs::remove_dir_all(&known).unwrap();
    assert_eq!(store.identify(&path).unwrap(), id, "and where nothing can be remembered");
}
