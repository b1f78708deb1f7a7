//! Re-hashes a store and says what is wrong with it.
//!
//! 1. Hash every object and every manifest.
//! 2. Read every record; look for every part that it names.
//! 3. Name every file that should not be there.
//! 4. [`Store::repair`], if asked: remove what is damaged and the records that need it, so that the steps which made it
//!    run again.
//!
//! Invariants: verifying changes nothing; what nobody refers to is garbage, not a problem; others may work in the store
//! meanwhile, and what they do is no problem either.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use crate::action::{self, ACTION_VERSION, Parts};
use crate::disk::each;
use crate::error::{At, StoreError};
use crate::id::{ActionKey, ContentId};
use crate::layout::FOLDERS;
use crate::lock;
use crate::store::{Store, Tally};

/// Something that is wrong with a store.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "problem", rename_all = "kebab-case")]
pub enum Problem {
    /// Its content does not hash to its name.
    CorruptObject {
        id: ContentId,
        path: Utf8PathBuf,
    },
    /// A manifest that does not hash to its name.
    CorruptTree {
        id: ContentId,
        path: Utf8PathBuf,
    },
    /// An output of an action names an object or a manifest that is not there, or whose size is another.
    MissingObject {
        key: ActionKey,
        output: String,
        path: Utf8PathBuf,
    },
    BadRecord {
        path: Utf8PathBuf,
        why: String,
    },
    /// A record that a newer program wrote.
    UnknownRecord {
        path: Utf8PathBuf,
        version: u32,
    },
    /// Nothing that a store writes.
    StrayFile {
        path: Utf8PathBuf,
    },
}

impl Problem {
    /// Whether [`Store::repair`] does something about it.
    pub fn is_repairable(&self) -> bool {
        !matches!(self, Problem::UnknownRecord { .. } | Problem::StrayFile { .. })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::CorruptObject { path, .. } => write!(f, "object `{path}` does not hash to its name"),
            Problem::CorruptTree { path, .. } => write!(f, "tree `{path}` does not hash to its name"),
            Problem::MissingObject { key, output, path } => {
                write!(f, "output `{output}` of action `{}` needs `{path}`, which is missing", key.short())
            }
            Problem::BadRecord { path, why } => write!(f, "action record `{path}` is damaged: {why}"),
            Problem::UnknownRecord { path, version } => {
                write!(f, "action record `{path}` has version {version}, this program knows version {ACTION_VERSION}")
            }
            Problem::StrayFile { path } => write!(f, "`{path}` is nothing that a store writes"),
        }
    }
}

/// What [`Store::verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct VerifyReport {
    pub objects: Tally,
    pub trees: Tally,
    pub actions: u64,
    /// Sorted by kind, then by path.
    pub problems: Vec<Problem>,
    /// Objects, trees and stages that nobody refers to; `gc` removes them.
    pub garbage: Tally,
}

impl VerifyReport {
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
}

/// A hashed file: its id by name, its size, and whether the two agree. `None` where it vanished meanwhile.
type Checked = Option<(ContentId, u64, bool)>;

pub(crate) fn verify(store: &Store) -> Result<VerifyReport, StoreError> {
    let (disk, layout) = (store.disk(), store.layout());
    let mut report = VerifyReport::default();
    let mut stray = strays(store)?;

    // 1. Objects and manifests.
    let objects = ids(store, &layout.objects(), &mut stray)?;
    let hashed: Vec<Checked> = each(disk.lanes(), &objects, |id| {
        let path = layout.object(id);
        let Some(stat) = disk.stat(&path).at("look at", &path)? else { return Ok(None) };
        match disk.hash(&path).at("hash", &path) {
            Err(error) if error.is_not_found() => Ok(None),
            hash => Ok(Some((*id, stat.bytes, hash? == *id))),
        }
    })?;
    let mut sizes = BTreeMap::new();
    for (id, bytes, good) in hashed.into_iter().flatten() {
        report.objects.add(bytes);
        sizes.insert(id, bytes);
        if !good {
            report.problems.push(Problem::CorruptObject { id, path: layout.object(&id) });
        }
    }
    let mut tree_sizes = BTreeMap::new();
    for id in ids(store, &layout.trees(), &mut stray)? {
        let path = layout.tree(&id);
        let text = match disk.read(&path).at("read", &path) {
            Err(error) if error.is_not_found() => continue,
            text => text?,
        };
        report.trees.add(text.len() as u64);
        tree_sizes.insert(id, text.len() as u64);
        if ContentId::of_tree(&text) != id || crate::tree::parse(&text).is_none() {
            report.problems.push(Problem::CorruptTree { id, path });
        }
    }

    // 2. Records.
    let mut needed = BTreeSet::new();
    let mut needed_trees = BTreeSet::new();
    for (shard, name) in action::shards(disk, &layout.actions())? {
        let path = layout.actions().join(&shard).join(&name);
        let key = name.strip_suffix(".json").and_then(|hex| hex.parse::<ActionKey>().ok());
        let Some(key) = key.filter(|key| layout.record(key) == path) else {
            stray.push(path);
            continue;
        };
        let action = match action::read(disk, layout, &key) {
            Ok(Some(action)) => action,
            Ok(None) => continue,
            Err(StoreError::Record { path, why }) => {
                report.problems.push(Problem::BadRecord { path, why });
                continue;
            }
            Err(StoreError::RecordVersion { path, found: version, .. }) => {
                report.problems.push(Problem::UnknownRecord { path, version });
                continue;
            }
            Err(error) => return Err(error),
        };
        report.actions += 1;
        let mut missing = Vec::new();
        for (output, artifact) in &action.outputs {
            let lost = |path| Problem::MissingObject { key, output: output.clone(), path };
            match action::parts(disk, layout, artifact)? {
                Some(Parts { tree, objects }) => {
                    needed_trees.extend(tree);
                    for (id, bytes) in objects {
                        let path = layout.object(&id);
                        // Not the listing of phase 1: the object may be younger than that.
                        let there = disk.stat(&path).at("look at", &path)?.is_some_and(|stat| stat.bytes == bytes);
                        // One that is there in another size does not hash to its name either, and was already named.
                        if !there && !sizes.contains_key(&id) {
                            missing.push(lost(path));
                        }
                        needed.insert(id);
                    }
                }
                // A damaged one was already named.
                None if tree_sizes.contains_key(&artifact.id) => {}
                None => missing.push(lost(layout.tree(&artifact.id))),
            }
        }
        // gc may have had the action while we looked for its parts.
        if !missing.is_empty() && disk.stat(&path).at("look at", &path)?.is_some() {
            report.problems.extend(missing);
        }
    }

    // 3. What nobody needs, and what should not be there.
    let unneeded = sizes.iter().filter(|(id, _)| !needed.contains(id));
    let unneeded_trees = tree_sizes.iter().filter(|(id, _)| !needed_trees.contains(id));
    unneeded.chain(unneeded_trees).for_each(|(_, bytes)| report.garbage.add(*bytes));
    for stage in crate::gc::stale_stages(store)? {
        report.garbage.add(stage.bytes);
    }
    stray.sort_unstable();
    report.problems.extend(stray.into_iter().map(|path| Problem::StrayFile { path }));
    Ok(report)
}

/// Removes what is still damaged of what a report names: corrupt objects and trees, and bad records; then every record
/// that needs something which is not there. What is left verifies, but for what is not ours to judge: a newer program's
/// record, and a stray file, which may be somebody's.
pub(crate) fn repair(store: &Store, report: &VerifyReport) -> Result<u64, StoreError> {
    let (disk, layout) = (store.disk(), store.layout());
    let _alone = lock::exclude(disk, layout)?;
    let mut removed = 0;
    let mut remove = |path: &Utf8Path, damaged: Result<bool, StoreError>| match damaged {
        Ok(true) => {
            disk.remove_file(path).at("remove", path)?;
            removed += 1;
            Ok(())
        }
        Err(error) if !error.is_not_found() => Err(error),
        Ok(false) | Err(_) => Ok(()),
    };
    for problem in &report.problems {
        // Somebody may have put the right content since.
        match problem {
            Problem::CorruptObject { id, path } => {
                remove(path, disk.hash(path).at("hash", path).map(|found| found != *id))?;
            }
            Problem::CorruptTree { id, path } => {
                let text = disk.read(path).at("read", path);
                remove(path, text.map(|text| ContentId::of_tree(&text) != *id || crate::tree::parse(&text).is_none()))?;
            }
            Problem::BadRecord { path, .. } => {
                let key = path.file_stem().and_then(|hex| hex.parse::<ActionKey>().ok());
                let Some(key) = key else { continue };
                // Whoever has the lock is about to write it anew.
                let Some(_lock) = lock::probe_key(disk, layout, &key)? else { continue };
                remove(path, Ok(matches!(action::read(disk, layout, &key), Err(StoreError::Record { .. }))))?;
            }
            Problem::MissingObject { .. } | Problem::UnknownRecord { .. } | Problem::StrayFile { .. } => {}
        }
    }
    if report.problems.iter().all(|problem| !problem.is_repairable()) {
        return Ok(removed);
    }
    for key in action::keys(disk, layout)? {
        let Some(_lock) = lock::probe_key(disk, layout, &key)? else { continue };
        let Ok(Some(action)) = action::read(disk, layout, &key) else { continue };
        remove(&layout.record(&key), store.complete(&action).map(|complete| !complete))?;
    }
    Ok(removed)
}

/// Ids of all files below a sharded folder that lie where they belong.
fn ids(store: &Store, folder: &Utf8Path, stray: &mut Vec<Utf8PathBuf>) -> Result<Vec<ContentId>, StoreError> {
    let mut ids = Vec::new();
    for (shard, name) in action::shards(store.disk(), folder)? {
        match name.parse::<ContentId>() {
            Ok(id) if name[..2] == shard => ids.push(id),
            _ => stray.push(folder.join(shard).join(name)),
        }
    }
    Ok(ids)
}

/// Files in places where a store keeps none. Inside stages, scratch folders and `runs`, anything may lie.
fn strays(store: &Store) -> Result<Vec<Utf8PathBuf>, StoreError> {
    let (disk, layout) = (store.disk(), store.layout());
    let mut stray = Vec::new();
    let mut check = |folder: &Utf8Path, belongs: &dyn Fn(&str) -> bool| -> Result<(), StoreError> {
        for name in disk.list(folder).at("list", folder)? {
            let name = name.to_string_lossy();
            if !belongs(&name) {
                stray.push(folder.join(&*name));
            }
        }
        Ok(())
    };
    check(layout.base(), &|name| FOLDERS.contains(&name))?;
    check(&layout.locks(), &lock::is_lock_name)?;
    check(&layout.scratches(), &|name| name.parse::<ActionKey>().is_ok())?;
    Ok(stray)
}
