//! Crash safety: whatever disk operation is the last one, the store that is left verifies, and the work can be redone.

use std::sync::Arc;

use actloom_cache::gc::{self, Policy};
use actloom_cache::{Artifact, Disk, Store, StoreError};

use crate::faults::{Fault, Faults};
use crate::{Home, action, key, overwrite, write};

/// Everything that a run does to a store: puts of files and folders, with content of every kind that meets content
/// which is already there, publishing, reuse, checkout, scratch, and a gc that forgets one of two actions.
fn work(home: &Home, disk: &Arc<Faults>) -> Result<Vec<Artifact>, StoreError> {
    let open = || Store::open_with(&home.root(), Arc::clone(disk) as Arc<dyn Disk>);
    let mut artifacts = Vec::new();
    {
        let store = open()?;
        let Some(_lock) = store.lock(&key("first"))? else { panic!("the lock is taken") };
        write(&store.scratch(&key("first"))?.join("checkpoint"), b"half way");

        let stage = store.stage(&key("first"))?;
        let model = stage.path().join("model");
        write(&model.join("config.json"), b"{}");
        write(&model.join("weights/a"), b"same bytes");
        write(&model.join("weights/b"), b"same bytes");
        write(&model.join("empty"), b"");
        artifacts.push(store.put(&model)?);
        artifacts.push(store.put(&home.file("metrics", b"loss 1.0"))?);
        store.publish(&action("first", &[("model", &artifacts[0]), ("metrics", &artifacts[1])]))?;
        store.clear_scratch(&key("first"))?;

        // Shares an object with the first; is published twice, as a forced run does.
        let stage = store.stage(&key("second"))?;
        write(&stage.path().join("t/config.json"), b"{}");
        write(&stage.path().join("t/new"), b"new");
        artifacts.push(store.put(&stage.path().join("t"))?);
        let second = action("second", &[("out", &artifacts[2])]);
        store.publish(&second)?;
        store.publish(&second)?;

        let found = store.action(&key("first"))?;
        assert!(found.is_some_and(|found| store.complete(&found).unwrap_or(true)), "what was published is complete");
        store.used(&key("first"))?;
        store.checkout(&artifacts[0], &stage.path().join("inputs"))?;
    }
    {
        // A second process, after the first one has ended and its pins with it.
        let store = open()?;
        let policy = Policy { max_bytes: Some(0), keep: [key("second")].into(), ..Policy::default() };
        let plan = gc::plan(&store, &policy)?;
        gc::collect(&store, &plan)?;
        assert!(store.action(&key("first"))?.is_none(), "gc forgets what does not fit");
    }
    Ok(artifacts)
}

/// Deterministic, and different for every seed.
fn random(seed: usize) -> impl FnMut(usize) -> usize {
    let mut state = seed as u64;
    move |up_to| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as usize % (up_to + 1)
    }
}

/// A disk without faults, and without the cost of real syncs.
fn healthy(home: &Home) -> Arc<Faults> {
    Arc::new(Faults::new(&home.path.join("healthy"), Fault::Never))
}

fn redo_gives(home: &Home, expected: &[Artifact], why: &str) {
    let disk = healthy(home);
    assert_eq!(work(home, &disk).unwrap(), expected, "{why}");
    let store = Store::open_with(&home.root(), disk).unwrap();
    let report = store.verify().unwrap();
    assert!(report.is_clean(), "{why}: after the work was redone: {:?}", report.problems);
    gc::collect(&store, &gc::plan(&store, &Policy::default()).unwrap()).unwrap();
    let report = store.verify().unwrap();
    assert!(report.is_clean() && report.garbage.count == 0, "{why}: after gc: {report:?}");
    let second = store.action(&key("second")).unwrap().unwrap();
    assert!(store.complete(&second).unwrap(), "{why}");
}

fn verifies(home: &Home, why: &str) {
    let store = Store::open_with(&home.root(), healthy(home)).unwrap();
    let report = store.verify().unwrap();
    assert!(report.is_clean(), "{why}: {:?}", report.problems);
    for action in store.actions().unwrap() {
        assert!(store.complete(&action).unwrap(), "{why}: an action lost its outputs");
    }
}

fn undisturbed() -> (Vec<Artifact>, usize) {
    let home = Home::light();
    let disk = healthy(&home);
    let expected = work(&home, &disk).unwrap();
    (expected, disk.calls().len())
}

#[test]
fn a_process_killed_at_any_disk_operation_leaves_a_store_that_verifies() {
    let (expected, calls) = undisturbed();
    assert!(calls > 100, "the work is too small to test much: {calls} calls");
    for n in 0..calls {
        let home = Home::light();
        let disk = Arc::new(Faults::new(&home.path.join("backups"), Fault::Kill(n)));
        let result = work(&home, &disk);
        assert!(disk.struck(), "call {n} was never made");
        let why = format!("killed at call {n}, `{}`, with {:?}", disk.calls()[n], result.err());
        verifies(&home, &why);
        redo_gives(&home, &expected, &why);
    }
}

#[test]
fn a_power_cut_at_any_disk_operation_leaves_a_store_that_verifies() {
    let (expected, calls) = undisturbed();
    for n in 0..calls {
        // None of what was not synced survives; then some of it, differently each time.
        for seed in 0..4 {
            let home = Home::light();
            let disk = Arc::new(Faults::new(&home.path.join("backups"), Fault::Kill(n)));
            let _ = work(&home, &disk);
            if seed == 0 {
                disk.cut_power(&home.root(), |_| 0);
            } else {
                disk.cut_power(&home.root(), random(n * 10 + seed));
            }
            let why = format!("power cut {seed} at call {n}, `{}`", disk.calls()[n]);
            verifies(&home, &why);
            redo_gives(&home, &expected, &why);
        }
    }
}

#[test]
fn what_was_published_survives_a_power_cut() {
    let home = Home::light();
    let disk = healthy(&home);
    let artifacts = work(&home, &disk).unwrap();
    disk.cut_power(&home.root(), |_| 0);
    let store = home.store();
    let second = store.action(&key("second")).unwrap().unwrap();
    assert!(store.complete(&second).unwrap());
    assert_eq!(store.read_file(&artifacts[2], Some("new")).unwrap(), b"new");
}

/// The tests above must be able to fail: on a disk that does not sync folders, they do.
#[test]
fn a_disk_that_lies_about_syncing_is_found_out() {
    let (_, calls) = undisturbed();
    let broken = (0..calls).filter(|n| {
        (1..4).any(|seed| {
            let home = Home::light();
            let disk = Arc::new(Faults::new(&home.path.join("backups"), Fault::Kill(*n)).lying());
            let _ = work(&home, &disk);
            disk.cut_power(&home.root(), random(n * 10 + seed));
            Store::open_with(&home.root(), healthy(&home)).is_ok_and(|store| !store.verify().unwrap().is_clean())
        })
    });
    assert!(broken.count() > 0, "the model of a power cut is too kind");
}

#[test]
fn a_single_failed_operation_fails_one_call_and_spoils_nothing() {
    let (expected, calls) = undisturbed();
    for n in 0..calls {
        let home = Home::light();
        let disk = Arc::new(Faults::new(&home.path.join("backups"), Fault::Once(n)));
        let result = work(&home, &disk);
        let why = format!("call {n}, `{}`, failed with {:?}", disk.calls()[n], result.as_ref().err());
        if let Err(error) = result {
            assert!(error.to_string().starts_with("cannot "), "names no operation: {error}");
        }
        verifies(&home, &why);
        // The same process goes on, on the same disk.
        assert_eq!(work(&home, &disk).unwrap(), expected, "{why}");
        verifies(&home, &why);
    }
}

#[test]
fn redoing_the_work_mends_a_store_whose_objects_were_overwritten_or_lost() {
    let home = Home::light();
    let disk = healthy(&home);
    let expected = work(&home, &disk).unwrap();
    let store = home.store();
    let files = store.files(&expected[2]).unwrap();
    let object = |id: &actloom_cache::ContentId| {
        let hex = id.to_string();
        home.root().join("v1/objects").join(&hex[..2]).join(hex)
    };
    overwrite(&object(&files[0].id), b"[]");
    std::fs::remove_file(object(&files[1].id)).unwrap();
    let tree = expected[2].id.to_string();
    overwrite(&home.root().join("v1/trees").join(&tree[..2]).join(&tree), b"cut");
    assert!(!store.complete(&store.action(&key("second")).unwrap().unwrap()).unwrap());
    drop(store);
    redo_gives(&home, &expected, "mended");
}
