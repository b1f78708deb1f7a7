//! Several threads and several processes on one store.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use actloom_cache::Store;
use actloom_cache::gc::{self, Policy};
use camino::Utf8PathBuf;

use crate::{Home, action, key, publish_file, write};

/// Runs one of the ignored tests below in a process of its own.
fn spawn(test: &str, home: &Home) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", &format!("sharing::{test}")])
        .env("STORE_OF_PARENT", home.root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn parents_store() -> Store {
    let root = std::env::var("STORE_OF_PARENT").expect("this test is run by another one");
    Store::open(&Utf8PathBuf::from(root)).unwrap()
}

fn say(word: &str) {
    // Not `println`, which the harness would take for itself.
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n{word}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Waits until the child says `word`.
fn hear(child: &mut Child, word: &str) {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == word), "the child never said `{word}`");
}

#[test]
#[ignore = "run by `a_killed_process_lets_go_of_its_locks_and_its_pins`"]
fn child_that_holds_a_lock_and_an_unpublished_object() {
    let store = parents_store();
    let _lock = store.lock(&key("contended")).unwrap().unwrap();
    let stage = store.stage(&key("contended")).unwrap();
    write(&stage.path().join("out"), b"unpublished");
    store.put(&stage.path().join("out")).unwrap();
    say("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn a_killed_process_lets_go_of_its_locks_and_its_pins() {
    let home = Home::make();
    let store = home.store();
    let mut child = spawn("child_that_holds_a_lock_and_an_unpublished_object", &home);
    hear(&mut child, "ready");
    assert!(store.lock(&key("contended")).unwrap().is_none());
    assert!(store.lock(&key("another")).unwrap().is_some());
    assert!(gc::plan(&store, &Policy::default()).unwrap().is_empty());

    child.kill().unwrap();
    child.wait().unwrap();
    assert!(store.lock(&key("contended")).unwrap().is_some());
    let plan = gc::plan(&store, &Policy::default()).unwrap();
    assert_eq!((plan.objects.len(), plan.stages.len()), (1, 1), "the object, and the stage that nobody removed");
    gc::collect(&store, &plan).unwrap();
    assert_eq!(store.usage().unwrap().objects.count, 0);
}

#[test]
#[ignore = "run by `processes_killed_at_any_moment_leave_a_store_that_verifies`"]
fn child_that_publishes_until_it_is_killed() {
    let store = parents_store();
    say("ready");
    for n in 0.. {
        let stage = store.stage(&key("x")).unwrap();
        for file in 0..5 {
            write(&stage.path().join(format!("t/{file}")), format!("{}", (n * file) % 97).as_bytes());
        }
        let tree = store.put(&stage.path().join("t")).unwrap();
        store.publish(&action(&format!("{}", n % 50), &[("out", &tree)])).unwrap();
    }
}

#[test]
fn processes_killed_at_any_moment_leave_a_store_that_verifies() {
    let home = Home::make();
    for round in 0..6 {
        let mut children: Vec<Child> =
            (0..2).map(|_| spawn("child_that_publishes_until_it_is_killed", &home)).collect();
        children.iter_mut().for_each(|child| hear(child, "ready"));
        std::thread::sleep(Duration::from_millis(20 + 37 * round));
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let store = home.store();
        let report = store.verify().unwrap();
        assert!(report.is_clean(), "round {round}: {:?}", report.problems);
        for action in store.actions().unwrap() {
            assert!(store.complete(&action).unwrap());
        }
    }
    assert!(!home.store().actions().unwrap().is_empty(), "the children were killed before they did anything");
}

#[test]
fn one_key_is_held_by_one_thread_at_a_time_even_while_gc_sweeps_lock_files() {
    let home = Home::light();
    let store = home.store();
    let done = AtomicBool::new(false);
    let inside = AtomicUsize::new(0);
    let entered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                gc::collect(&store, &gc::GcPlan::default()).unwrap();
            }
        });
        for _ in 0..4 {
            // Clones of one store, as the steps of one run have them.
            let store = store.clone();
            let (inside, entered, done) = (&inside, &entered, &done);
            scope.spawn(move || {
                let mut mine = 0;
                while mine < 500 {
                    let Some(lock) = store.lock(&key("one")).unwrap() else { continue };
                    if inside.fetch_add(1, Ordering::SeqCst) != 0 {
                        done.store(true, Ordering::SeqCst);
                        panic!("two threads hold one key");
                    }
                    assert_eq!(*lock.key(), key("one"));
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(lock);
                    mine += 1;
                    if entered.fetch_add(1, Ordering::SeqCst) == 4 * 500 - 1 {
                        done.store(true, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    assert_eq!(entered.into_inner(), 2000);
}

#[test]
fn writers_and_a_greedy_collector_never_break_each_other() {
    let home = Home::make();
    home.store();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let home = &home;
                scope.spawn(move || {
                    for n in 0..40 {
                        // A store of its own each time, so that earlier work is no longer pinned. Contents repeat across
                        // writers, so that puts meet objects which the collector is about to remove.
                        let store = home.store();
                        let stage = store.stage(&key("w")).unwrap();
                        write(&stage.path().join("t/shared"), format!("{}", n % 3).as_bytes());
                        write(&stage.path().join("t/own"), format!("{writer} {n}").as_bytes());
                        let tree = store.put(&stage.path().join("t")).unwrap();
                        let file = publish_file(&store, &format!("file {}", n % 3), format!("{}", n % 3).as_bytes());
                        let made = action(&format!("{writer} {n}"), &[("out", &tree)]);
                        store.publish(&made).unwrap();
                        for made in [made, file] {
                            store.used(&made.key).unwrap();
                            assert!(store.complete(&made).unwrap(), "gc took what is in use");
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let store = home.store();
            let policy = Policy { max_bytes: Some(0), ..Policy::default() };
            let mut collected = 0;
            while !done.load(Ordering::SeqCst) {
                let plan = gc::plan(&store, &policy).unwrap();
                collected += gc::collect(&store, &plan).unwrap().objects;
            }
            assert!(collected > 0, "the collector never collected anything");
        });
        scope.spawn(|| {
            let store = home.store();
            while !done.load(Ordering::SeqCst) {
                let report = store.verify().unwrap();
                assert!(report.is_clean(), "{:?}", report.problems);
            }
        });
        // Also where a writer has failed, or the others would wait for ever.
        let failed = writers.into_iter().filter_map(|writer| writer.join().err()).next();
        done.store(true, Ordering::SeqCst);
        if let Some(panic) = failed {
            std::panic::resume_unwind(panic);
        }
    });
    let report = home.store().verify().unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
}
