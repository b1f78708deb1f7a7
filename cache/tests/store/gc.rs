//! Collecting on a real store: what goes, in which order, and what stays because somebody needs it.

use std::fs;
use std::time::{Duration, SystemTime};

use actloom_cache::gc::{self, Policy, Why};
use actloom_cache::{Store, StoreError};

use crate::{Home, action, key, publish_file, write};

fn age(home: &Home, name: &str, hours: u64) {
    let hex = key(name).to_string();
    let path = home.root().join("v1/actions").join(&hex[..2]).join(format!("{hex}.json"));
    let then = SystemTime::now() - Duration::from_secs(3600 * hours);
    fs::File::open(path).unwrap().set_modified(then).unwrap();
}

fn names(store: &Store, candidates: &[&str]) -> Vec<String> {
    let found: Vec<_> = store.actions().unwrap().iter().map(|action| action.key).collect();
    candidates.iter().filter(|name| found.contains(&key(name))).map(|name| (*name).to_owned()).collect()
}

/// Three actions of 1000 bytes each, used one, two and three days ago.
fn three(home: &Home) {
    let store = home.store();
    for (n, name) in ["new", "middle", "old"].into_iter().enumerate() {
        publish_file(&store, name, &[n as u8; 1000]);
        age(home, name, 24 * (n as u64 + 1));
    }
}

#[test]
fn the_least_recently_used_go_first_until_the_rest_fits() {
    let home = Home::make();
    three(&home);
    let store = home.store();
    let all = gc::plan(&store, &Policy::default()).unwrap();
    assert!(all.is_empty(), "{all:?}");
    let plan = gc::plan(&store, &Policy { max_bytes: Some(all.keeps - 1), ..Policy::default() }).unwrap();
    assert_eq!(
        plan.actions.iter().map(|doomed| (doomed.key, doomed.why)).collect::<Vec<_>>(),
        [(key("old"), Why::Space)]
    );
    assert_eq!(plan.frees + plan.keeps, all.keeps);
    let before = store.usage().unwrap().bytes();
    let done = gc::collect(&store, &plan).unwrap();
    assert_eq!((done.actions, done.objects, done.bytes, done.skipped), (1, 1, plan.frees, 0));
    assert_eq!(store.usage().unwrap().bytes(), before - plan.frees);
    assert_eq!(names(&store, &["new", "middle", "old"]), ["new", "middle"]);
    assert!(store.verify().unwrap().is_clean());
}

#[test]
fn use_renews_and_age_condemns_except_for_what_is_kept() {
    let home = Home::make();
    three(&home);
    home.store().used(&key("old")).unwrap();
    let store = home.store();
    let day = Duration::from_secs(86400);
    let policy = Policy { max_age: Some(day / 2), keep: [key("new")].into(), ..Policy::default() };
    let plan = gc::plan(&store, &policy).unwrap();
    assert_eq!(
        plan.actions.iter().map(|doomed| (doomed.key, doomed.why)).collect::<Vec<_>>(),
        [(key("middle"), Why::Age)]
    );
    gc::collect(&store, &plan).unwrap();
    assert_eq!(names(&store, &["new", "middle", "old"]), ["new", "old"]);
}

#[test]
fn what_was_put_and_not_yet_published_stays_while_its_process_lives() {
    let home = Home::make();
    let running = home.store();
    home.file("t/a", b"a");
    let tree = running.put(&home.path.join("t")).unwrap();
    let stage = running.stage(&key("a")).unwrap();
    let other = home.store();
    let policy = Policy { max_bytes: Some(0), max_age: Some(Duration::ZERO), ..Policy::default() };
    let plan = gc::plan(&other, &policy).unwrap();
    assert!(plan.is_empty(), "{plan:?}");
    gc::collect(&other, &plan).unwrap();
    running.publish(&action("a", &[("out", &tree)])).unwrap();
    assert!(stage.path().exists());
    assert!(gc::plan(&other, &policy).unwrap().is_empty(), "what was published is in use too");
    drop(stage);
    drop(running);
    let plan = gc::plan(&other, &policy).unwrap();
    assert_eq!((plan.actions.len(), plan.trees.len(), plan.objects.len()), (1, 1, 1));
}

#[test]
fn what_a_living_process_has_declared_used_is_not_even_planned() {
    let home = Home::make();
    three(&home);
    let running = home.store();
    running.used(&key("old")).unwrap();
    let policy = Policy { max_bytes: Some(0), ..Policy::default() };
    let plan = gc::plan(&home.store(), &policy).unwrap();
    assert_eq!(plan.actions.iter().map(|doomed| doomed.key).collect::<Vec<_>>(), [key("middle"), key("new")]);
    drop(running);
    assert_eq!(gc::plan(&home.store(), &policy).unwrap().actions.len(), 3);
}

#[test]
fn garbage_that_is_put_again_after_the_plan_stays() {
    let home = Home::make();
    let file = home.file("f", b"twice");
    home.store().put(&file).unwrap();
    let collector = home.store();
    let plan = gc::plan(&collector, &Policy::default()).unwrap();
    assert_eq!(plan.objects.len(), 1);
    let running = home.store();
    let artifact = running.put(&file).unwrap();
    let done = gc::collect(&collector, &plan).unwrap();
    assert_eq!((done.objects, done.skipped), (0, 1));
    running.publish(&action("a", &[("out", &artifact)])).unwrap();
    assert!(running.verify().unwrap().is_clean());
}

#[test]
fn an_action_used_locked_or_published_again_after_the_plan_stays() {
    let policy = Policy { max_bytes: Some(0), ..Policy::default() };
    type Meanwhile = fn(&Store);
    let meanwhiles: [(&str, Meanwhile); 3] = [
        ("used", |store| store.used(&key("a")).unwrap()),
        ("published", |store| drop(publish_file(store, "a", b"x"))),
        ("used by one that has ended", |store| Store::open(store.root()).unwrap().used(&key("a")).unwrap()),
    ];
    for (what, meanwhile) in meanwhiles {
        let home = Home::make();
        publish_file(&home.store(), "a", b"x");
        age(&home, "a", 1);
        let collector = home.store();
        let plan = gc::plan(&collector, &policy).unwrap();
        assert_eq!(plan.actions.len(), 1, "{what}");
        let running = home.store();
        meanwhile(&running);
        let done = gc::collect(&collector, &plan).unwrap();
        assert_eq!((done.actions, done.objects, done.skipped), (0, 0, 2), "{what}");
        assert!(collector.verify().unwrap().is_clean());
    }

    let home = Home::make();
    publish_file(&home.store(), "a", b"x");
    let collector = home.store();
    let plan = gc::plan(&collector, &policy).unwrap();
    let lock = home.store().lock(&key("a")).unwrap().unwrap();
    assert_eq!(gc::collect(&collector, &plan).unwrap().actions, 0, "locked");
    drop(lock);
    assert_eq!(gc::collect(&collector, &plan).unwrap().actions, 1, "free again");
    assert!(matches!(home.store().used(&key("a")), Err(StoreError::Gone { .. })));
}

#[test]
fn stages_of_the_dead_go_and_scratch_goes_once_its_action_is_published_or_old() {
    let home = Home::make();
    let store = home.store();
    write(&home.root().join("v1/stage/99-dead.0/out"), b"12345");
    publish_file(&store, "done", b"x");
    for name in ["done", "half", "locked"] {
        write(&store.scratch(&key(name)).unwrap().join("checkpoint"), b"123");
    }
    let _lock = store.lock(&key("locked")).unwrap().unwrap();

    let plan = gc::plan(&store, &Policy::default()).unwrap();
    assert_eq!(plan.scratch.iter().map(|entry| entry.key).collect::<Vec<_>>(), [key("done")]);
    assert_eq!(plan.stages.iter().map(|entry| (&*entry.name, entry.bytes)).collect::<Vec<_>>(), [("99-dead.0", 5)]);
    assert_eq!(plan.frees, 8);
    let done = gc::collect(&store, &plan).unwrap();
    assert_eq!((done.stages, done.scratch, done.bytes), (1, 1, 8));
    assert!(!home.root().join("v1/scratch").join(key("done").to_string()).exists());

    let plan = gc::plan(&store, &Policy { max_age: Some(Duration::ZERO), ..Policy::default() }).unwrap();
    assert_eq!(plan.scratch.len(), 2);
    let done = gc::collect(&store, &plan).unwrap();
    assert_eq!((done.scratch, done.skipped), (1, 1), "the locked one stays");
    assert!(home.root().join("v1/scratch").join(key("locked").to_string()).exists());
}

#[test]
fn scratch_that_was_written_to_after_the_plan_stays() {
    let home = Home::make();
    let store = home.store();
    let scratch = store.scratch(&key("a")).unwrap();
    let plan = gc::plan(&store, &Policy { max_age: Some(Duration::ZERO), ..Policy::default() }).unwrap();
    assert_eq!(plan.scratch.len(), 1);
    std::thread::sleep(Duration::from_millis(20));
    write(&scratch.join("checkpoint"), b"new");
    assert_eq!(gc::collect(&store, &plan).unwrap().scratch, 0);
    assert!(scratch.join("checkpoint").exists());
}

#[test]
fn lock_files_of_nobody_are_swept_and_those_of_somebody_are_not() {
    let home = Home::make();
    let store = home.store();
    store.stage(&key("a")).unwrap();
    drop(store.lock(&key("free")).unwrap());
    let _held = store.lock(&key("held")).unwrap().unwrap();
    write(&home.root().join("v1/locks/session-dead"), b"\nobject half");
    gc::collect(&store, &gc::plan(&store, &Policy::default()).unwrap()).unwrap();
    let mut left: Vec<String> = home
        .root()
        .join("v1/locks")
        .read_dir_utf8()
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_owned())
        .collect();
    left.sort();
    assert_eq!(left.len(), 3, "{left:?}");
    assert_eq!(left[0], format!("key-{}", key("held")));
    assert!(left[1].starts_with("session-") && left[1] != "session-dead");
    assert_eq!(left[2], "store");
    assert!(home.store().lock(&key("held")).unwrap().is_none());
}
