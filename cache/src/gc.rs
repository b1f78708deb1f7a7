//! Forgetting: a plan first, then its execution.
//!
//! 1. [`inventory`] lists what is there, what refers to what, and what live sessions have pinned.
//! 2. [`decide`] is pure: an inventory and a policy give a plan. [`plan`] is both together.
//! 3. [`collect`] executes a plan while no session can note anything, and looks at everything again before it removes it:
//!    what was locked, pinned, used or referred to since the plan stays.
//!
//! What goes: actions that were last used too long ago; then, while the rest is too large, the least recently used ones;
//! every object and tree that no remaining action and no pin refers to; stages whose session is dead; scratch folders
//! whose action is published, or which nobody has written to for too long.
//!
//! Invariants: kept and pinned actions never go, however large the store. Records go first, and their folders are synced
//! before the first tree goes, and those before the first object: a crash at any point leaves no reference to something
//! that is gone. `gc` judges no damage: a damaged record stops it, because what the record referred to is unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::Serialize;

use crate::action;
use crate::disk::each;
use crate::error::{At, StoreError};
use crate::id::{ActionKey, Artifact, ContentId, Form};
use crate::layout::KEY_PREFIX;
use crate::lock::{self, Pin, Sessions};
use crate::store::Store;

/// What may stay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// For objects, trees and records together. Stages and scratch folders do not count.
    pub max_bytes: Option<u64>,
    /// Since the last use of an action, or the last write to a scratch folder.
    pub max_age: Option<Duration>,
    /// Never removed.
    pub keep: BTreeSet<ActionKey>,
}

/// What a store holds, as far as gc cares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    pub now: Timestamp,
    pub actions: BTreeMap<ActionKey, ActionEntry>,
    pub objects: BTreeMap<ContentId, u64>,
    /// Sizes of the manifests.
    pub trees: BTreeMap<ContentId, u64>,
    /// Of dead sessions only.
    pub stages: Vec<StageEntry>,
    pub scratch: Vec<ScratchEntry>,
    pub pinned: References,
    pub pinned_actions: BTreeSet<ActionKey>,
}

/// One recorded action.
#[derive(Clone, Debug, PartialEq)]
pub struct ActionEntry {
    pub last_used: Timestamp,
    /// Of the record.
    pub bytes: u64,
    pub refers: References,
}

/// Objects and trees.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct References {
    pub objects: BTreeSet<ContentId>,
    pub trees: BTreeSet<ContentId>,
}

/// Something left in the stage by a dead session.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageEntry {
    pub name: String,
    pub bytes: u64,
}

/// A scratch folder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScratchEntry {
    pub key: ActionKey,
    /// The newest time of all that is in it.
    pub modified: Timestamp,
    pub bytes: u64,
}

/// What [`collect`] is to remove.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GcPlan {
    /// Least recently used first.
    pub actions: Vec<Doomed>,
    pub trees: Vec<ContentId>,
    pub objects: Vec<ContentId>,
    pub stages: Vec<StageEntry>,
    pub scratch: Vec<ScratchEntry>,
    /// Bytes of all of these.
    pub frees: u64,
    /// Bytes of the objects, trees and records that stay.
    pub keeps: u64,
}

/// An action to forget.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Doomed {
    pub key: ActionKey,
    pub last_used: Timestamp,
    pub why: Why,
}

/// Why an action goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// Not used for longer than [`Policy::max_age`].
    Age,
    /// The least recently used one of a store larger than [`Policy::max_bytes`].
    Space,
}

impl GcPlan {
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
            && self.trees.is_empty()
            && self.objects.is_empty()
            && self.stages.is_empty()
            && self.scratch.is_empty()
    }
}

/// What [`collect`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    pub actions: u64,
    pub trees: u64,
    pub objects: u64,
    pub stages: u64,
    pub scratch: u64,
    pub bytes: u64,
    /// Parts of the plan that stayed, because they are locked or in use by now.
    pub skipped: u64,
}

/// Plans what to remove; removes nothing.
///
/// # Errors
/// A damaged record, by path; the file system's.
pub fn plan(store: &Store, policy: &Policy) -> Result<GcPlan, StoreError> {
    Ok(decide(&inventory(store)?, policy))
}

/// Decides what goes.
pub fn decide(inventory: &Inventory, policy: &Policy) -> GcPlan {
    let mut plan = GcPlan::default();
    let too_old = |then: Timestamp| {
        let age = Duration::try_from(inventory.now.duration_since(then)).unwrap_or_default();
        policy.max_age.is_some_and(|max| age > max)
    };

    // How many remaining actions (and pins) refer to each thing.
    let mut uses = Uses::new(inventory);
    let mut by_age: Vec<(Timestamp, ActionKey, &ActionEntry)> =
        inventory.actions.iter().map(|(key, entry)| (entry.last_used, *key, entry)).collect();
    by_age.sort_unstable_by_key(|(last_used, key, _)| (*last_used, *key));
    for (last_used, key, entry) in by_age {
        if policy.keep.contains(&key) || inventory.pinned_actions.contains(&key) {
            continue;
        }
        // Oldest first, so that by the time space alone decides, all that age condemns is gone already.
        let why = if too_old(last_used) {
            Why::Age
        } else if policy.max_bytes.is_some_and(|max| uses.bytes > max) {
            Why::Space
        } else {
            break;
        };
        uses.release(inventory, entry);
        plan.actions.push(Doomed { key, last_used, why });
    }

    plan.trees = inventory.trees.keys().filter(|id| !uses.trees.contains_key(id)).copied().collect();
    plan.objects = inventory.objects.keys().filter(|id| !uses.objects.contains_key(id)).copied().collect();
    plan.stages = inventory.stages.clone();
    let finished = |entry: &&ScratchEntry| inventory.actions.contains_key(&entry.key) || too_old(entry.modified);
    let wanted = |key| policy.keep.contains(key) && !inventory.actions.contains_key(key);
    plan.scratch = inventory.scratch.iter().filter(finished).filter(|entry| !wanted(&entry.key)).cloned().collect();

    let records: u64 = plan.actions.iter().map(|doomed| inventory.actions[&doomed.key].bytes).sum();
    let trees: u64 = plan.trees.iter().map(|id| inventory.trees[id]).sum();
    let objects: u64 = plan.objects.iter().map(|id| inventory.objects[id]).sum();
    let stages: u64 = plan.stages.iter().map(|entry| entry.bytes).sum();
    let scratch: u64 = plan.scratch.iter().map(|entry| entry.bytes).sum();
    plan.frees = records + trees + objects + stages + scratch;
    plan.keeps = uses.bytes;
    plan
}

/// Reference counts, and the bytes of all that is referred to.
struct Uses {
    objects: BTreeMap<ContentId, usize>,
    trees: BTreeMap<ContentId, usize>,
    bytes: u64,
}

impl Uses {
    fn new(inventory: &Inventory) -> Self {
        let mut uses = Uses { objects: BTreeMap::new(), trees: BTreeMap::new(), bytes: 0 };
        let all = inventory.actions.values().map(|entry| &entry.refers).chain([&inventory.pinned]);
        for refers in all {
            refers.objects.iter().for_each(|id| *uses.objects.entry(*id).or_default() += 1);
            refers.trees.iter().for_each(|id| *uses.trees.entry(*id).or_default() += 1);
        }
        let size = |sizes: &BTreeMap<ContentId, u64>, id| sizes.get(id).copied().unwrap_or_default();
        uses.bytes = inventory.actions.values().map(|entry| entry.bytes).sum::<u64>()
            + uses.objects.keys().map(|id| size(&inventory.objects, id)).sum::<u64>()
            + uses.trees.keys().map(|id| size(&inventory.trees, id)).sum::<u64>();
        uses
    }

    fn release(&mut self, inventory: &Inventory, entry: &ActionEntry) {
        let freed = drop_uses(&mut self.objects, &inventory.objects, &entry.refers.objects)
            + drop_uses(&mut self.trees, &inventory.trees, &entry.refers.trees);
        self.bytes -= entry.bytes + freed;
    }
}

/// Takes one use of each id away; the bytes of those that were the last.
fn drop_uses(
    uses: &mut BTreeMap<ContentId, usize>,
    sizes: &BTreeMap<ContentId, u64>,
    ids: &BTreeSet<ContentId>,
) -> u64 {
    let mut freed = 0;
    for id in ids {
        match uses.get_mut(id) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                uses.remove(id);
                freed += sizes.get(id).copied().unwrap_or_default();
            }
        }
    }
    freed
}

/// Lists what is there.
///
/// The order matters, because others work meanwhile: what is listed as an object was put before the pins were read, and
/// what was pinned by a session that has ended since is recorded by the time the records are read, or given up.
///
/// # Errors
/// A damaged record, by path; the file system's.
pub fn inventory(store: &Store) -> Result<Inventory, StoreError> {
    let (disk, layout) = (store.disk(), store.layout());
    let objects = sizes(store, &layout.objects(), |id| layout.object(id))?;
    let trees = sizes(store, &layout.trees(), |id| layout.tree(id))?;
    let (stages, pins) = {
        let _shared = lock::share(disk, layout)?;
        let sessions = lock::sessions(disk, layout)?;
        (stale(store, &sessions)?, sessions.pins)
    };
    let (pinned, pinned_actions) = resolve(store, &pins)?;
    let actions = entries(store)?;

    let mut scratch = Vec::new();
    let folder = layout.scratches();
    for name in disk.list(&folder).at("list", &folder)? {
        let Some(key) = name.to_str().and_then(|name| name.parse::<ActionKey>().ok()) else { continue };
        let path = layout.scratch(&key);
        match disk.measure(&path).at("measure", &path) {
            Err(error) if error.is_not_found() => {}
            measure => {
                let measure = measure?;
                scratch.push(ScratchEntry { key, modified: timestamp(measure.modified), bytes: measure.bytes });
            }
        }
    }
    let now = timestamp(SystemTime::now());
    Ok(Inventory { now, actions, objects, trees, stages, scratch, pinned, pinned_actions })
}

/// What dead sessions left in the stage.
pub(crate) fn stale_stages(store: &Store) -> Result<Vec<StageEntry>, StoreError> {
    let _shared = lock::share(store.disk(), store.layout())?;
    stale(store, &lock::sessions(store.disk(), store.layout())?)
}

fn stale(store: &Store, sessions: &Sessions) -> Result<Vec<StageEntry>, StoreError> {
    let (disk, folder) = (store.disk(), store.layout().stage());
    let mut stages = Vec::new();
    for name in disk.list(&folder).at("list", &folder)? {
        let name = name.to_string_lossy().into_owned();
        let session = name.split('.').next().unwrap_or_default();
        if sessions.live.contains(session) {
            continue;
        }
        let path = folder.join(&name);
        match disk.measure(&path).at("measure", &path) {
            // A session that ended just now has cleared up behind itself.
            Err(error) if error.is_not_found() => {}
            measure => stages.push(StageEntry { name, bytes: measure?.bytes }),
        }
    }
    Ok(stages)
}

fn sizes(
    store: &Store,
    folder: &Utf8Path,
    path_of: impl Fn(&ContentId) -> Utf8PathBuf + Sync,
) -> Result<BTreeMap<ContentId, u64>, StoreError> {
    let disk = store.disk();
    let names = action::shards(disk, folder)?;
    // A file in the wrong place is `verify`'s to name.
    let ids: Vec<ContentId> = names
        .into_iter()
        .filter_map(|(shard, name)| Some((folder.join(shard).join(&name), name.parse().ok()?)))
        .filter_map(|(path, id)| (path_of(&id) == path).then_some(id))
        .collect();
    let stats = each(disk.lanes(), &ids, |id| {
        let path = path_of(id);
        Ok(disk.stat(&path).at("look at", &path)?.map(|stat| (*id, stat.bytes)))
    })?;
    Ok(stats.into_iter().flatten().collect())
}

fn entries(store: &Store) -> Result<BTreeMap<ActionKey, ActionEntry>, StoreError> {
    let (disk, layout) = (store.disk(), store.layout());
    let keys = action::keys(disk, layout)?;
    let entries = each(disk.lanes(), &keys, |key| {
        let path = layout.record(key);
        // The time first: a use that comes between is a use that `collect` sees.
        let Some(stat) = disk.stat(&path).at("look at", &path)? else { return Ok(None) };
        let Some(action) = action::read(disk, layout, key)? else { return Ok(None) };
        let mut refers = References::default();
        for artifact in action.outputs.values() {
            refer(store, artifact, &mut refers)?;
        }
        Ok(Some((*key, ActionEntry { last_used: timestamp(stat.modified), bytes: stat.bytes, refers })))
    })?;
    Ok(entries.into_iter().flatten().collect())
}

/// Adds what an artifact consists of. What a lost manifest named is lost with it.
fn refer(store: &Store, artifact: &Artifact, refers: &mut References) -> Result<(), StoreError> {
    if artifact.form == Form::Tree {
        refers.trees.insert(artifact.id);
    }
    if let Some(parts) = action::parts(store.disk(), store.layout(), artifact)? {
        refers.objects.extend(parts.objects.into_keys());
    }
    Ok(())
}

fn resolve(store: &Store, pins: &BTreeSet<Pin>) -> Result<(References, BTreeSet<ActionKey>), StoreError> {
    let mut refers = References::default();
    let mut actions = BTreeSet::new();
    for pin in pins {
        match pin {
            Pin::Object(id) => {
                refers.objects.insert(*id);
            }
            Pin::Tree(id) => refer(store, &Artifact { id: *id, form: Form::Tree, bytes: 0 }, &mut refers)?,
            Pin::Action(key) => {
                actions.insert(*key);
            }
        }
    }
    Ok((refers, actions))
}

fn timestamp(time: SystemTime) -> Timestamp {
    // Times before the year -9999 or after 9999 come from a broken clock; such a thing counts as old.
    Timestamp::try_from(time).unwrap_or(Timestamp::MIN)
}

/// Removes what a plan names, except for what is locked, pinned, used or referred to by now. Waits until no session notes
/// anything, and lets none note anything until it is done.
///
/// # Errors
/// A damaged record, by path, before anything is removed; the file system's. What is left then is garbage at worst.
pub fn collect(store: &Store, plan: &GcPlan) -> Result<Collected, StoreError> {
    let (disk, layout) = (store.disk(), store.layout());
    let _alone = lock::exclude(disk, layout)?;
    let sessions = lock::sessions(disk, layout)?;
    let (mut needed, in_use) = resolve(store, &sessions.pins)?;
    let mut remaining = entries(store)?;
    let mut done = Collected::default();

    // 1. Records, each under its key's lock.
    let mut touched = BTreeSet::new();
    for doomed in &plan.actions {
        let unchanged = remaining.get(&doomed.key).is_some_and(|entry| entry.last_used == doomed.last_used);
        let lock =
            if unchanged && !in_use.contains(&doomed.key) { lock::probe_key(disk, layout, &doomed.key)? } else { None };
        if lock.is_none() {
            done.skipped += 1;
            continue;
        }
        let path = layout.record(&doomed.key);
        disk.remove_file(&path).at("remove", &path)?;
        touched.extend(path.parent().map(Utf8Path::to_owned));
        done.bytes += remaining.remove(&doomed.key).map_or(0, |entry| entry.bytes);
        done.actions += 1;
    }
    sync(store, touched)?;
    for entry in remaining.into_values() {
        needed.objects.extend(entry.refers.objects);
        needed.trees.extend(entry.refers.trees);
    }

    // 2. Trees, then objects.
    let trees = unneeded(&plan.trees, &needed.trees, &mut done.skipped);
    let (count, bytes) = remove(store, trees.iter().map(|id| layout.tree(id)).collect())?;
    done.trees = count;
    done.bytes += bytes;
    sync(store, trees.iter().filter_map(|id| layout.tree(id).parent().map(Utf8Path::to_owned)).collect())?;
    let objects = unneeded(&plan.objects, &needed.objects, &mut done.skipped);
    let (count, bytes) = remove(store, objects.iter().map(|id| layout.object(id)).collect())?;
    done.objects = count;
    done.bytes += bytes;

    // 3. Stages of the dead, and scratch that nobody has written to since the plan.
    for stage in &plan.stages {
        let session = stage.name.split('.').next().unwrap_or_default();
        let path = layout.stage().join(&stage.name);
        if sessions.live.contains(session) {
            done.skipped += 1;
        } else if disk.stat(&path).at("look at", &path)?.is_some() {
            disk.remove_all(&path).at("remove", &path)?;
            done.stages += 1;
            done.bytes += stage.bytes;
        }
    }
    for entry in &plan.scratch {
        let path = layout.scratch(&entry.key);
        if disk.stat(&path).at("look at", &path)?.is_none() {
            continue;
        }
        let measure = disk.measure(&path).at("measure", &path)?;
        let lock = lock::probe_key(disk, layout, &entry.key)?;
        if lock.is_none() || timestamp(measure.modified) != entry.modified {
            done.skipped += 1;
            continue;
        }
        disk.remove_all(&path).at("remove", &path)?;
        done.scratch += 1;
        done.bytes += measure.bytes;
    }

    // 4. Lock files of the dead and of keys that nobody holds.
    for name in sessions.dead.keys() {
        let path = layout.session(name);
        disk.remove_file(&path).at("remove", &path)?;
    }
    let locks = layout.locks();
    for name in disk.list(&locks).at("list", &locks)? {
        let hex = name.to_str().and_then(|name| name.strip_prefix(KEY_PREFIX));
        let Some(key) = hex.and_then(|hex| hex.parse::<ActionKey>().ok()) else { continue };
        if let Some(_held) = lock::probe_key(disk, layout, &key)? {
            let path = layout.key_lock(&key);
            disk.remove_file(&path).at("remove", &path)?;
        }
    }
    tracing::debug!(?done, "gc");
    Ok(done)
}

fn unneeded(planned: &[ContentId], needed: &BTreeSet<ContentId>, skipped: &mut u64) -> Vec<ContentId> {
    let (stay, go): (Vec<ContentId>, Vec<ContentId>) = planned.iter().partition(|id| needed.contains(id));
    *skipped += stay.len() as u64;
    go
}

/// Removes files that may be gone already; how many there were, and their bytes.
fn remove(store: &Store, paths: Vec<Utf8PathBuf>) -> Result<(u64, u64), StoreError> {
    let disk = store.disk();
    let removed = each(disk.lanes(), &paths, |path| {
        let Some(stat) = disk.stat(path).at("look at", path)? else { return Ok(None) };
        disk.remove_file(path).at("remove", path)?;
        Ok(Some(stat.bytes))
    })?;
    let removed: Vec<u64> = removed.into_iter().flatten().collect();
    Ok((removed.len() as u64, removed.iter().sum()))
}

fn sync(store: &Store, folders: BTreeSet<Utf8PathBuf>) -> Result<(), StoreError> {
    let disk = store.disk();
    let folders: Vec<Utf8PathBuf> = folders.into_iter().collect();
    each(disk.lanes(), &folders, |folder| disk.sync_dir(folder).at("sync", folder))?;
    Ok(())
}
