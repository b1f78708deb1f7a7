//! Action records: which artifacts a key stands for.
//!
//! A record is one JSON object, `{"check":"<hash>","action":{...}}`, where `check` is the blake3 hash of the action's own
//! bytes as written. The file's modification time is the time of the action's last use.
//!
//! Invariants: a record is written after everything it names is durable, and replaced in one step; a record that was cut
//! short or altered is an error that names the file, never a result.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::disk::{Disk, each};
use crate::error::{At, StoreError};
use crate::id::{ActionKey, Artifact, ContentId, Form};
use crate::layout::Layout;
use crate::{object, tree};

/// Version of the record; the field `v`.
pub const ACTION_VERSION: u32 = 1;

/// The recorded result of one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// [`ACTION_VERSION`].
    pub v: u32,
    pub key: ActionKey,
    /// By output name.
    pub outputs: BTreeMap<String, Artifact>,
    /// What the key was made of, readable; `why` compares two of these.
    pub manifest: Value,
    /// What did not enter the key: device, versions, times.
    pub provenance: Value,
}

const HEAD: &str = "{\"check\":\"";
const MIDDLE: &str = "\",\"action\":";
const TAIL: &str = "}\n";

/// The bytes of a record.
fn encode(action: &Action) -> Result<Vec<u8>, String> {
    let body = serde_json::to_string(action).map_err(|error| error.to_string())?;
    let check = blake3::hash(body.as_bytes()).to_hex();
    Ok([HEAD, &check, MIDDLE, &body, TAIL].concat().into_bytes())
}

/// What a record says, or why it says nothing.
enum Decoded {
    Action(Box<Action>),
    Version(u32),
    Damaged(String),
}

fn decode(bytes: &[u8], key: &ActionKey) -> Decoded {
    let Some((check, body)) = split(bytes) else {
        return Decoded::Damaged("it is cut short or no record".to_owned());
    };
    if blake3::hash(body.as_bytes()).to_hex().as_str() != check {
        return Decoded::Damaged("its content does not match its check".to_owned());
    }
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    match serde_json::from_str::<Version>(body) {
        Ok(Version { v: ACTION_VERSION }) => {}
        Ok(Version { v }) => return Decoded::Version(v),
        Err(error) => return Decoded::Damaged(error.to_string()),
    }
    match serde_json::from_str::<Action>(body) {
        Ok(action) if action.key == *key => Decoded::Action(Box::new(action)),
        Ok(action) => Decoded::Damaged(format!("it is the record of `{}`", action.key)),
        Err(error) => Decoded::Damaged(error.to_string()),
    }
}

fn split(bytes: &[u8]) -> Option<(&str, &str)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let rest = text.strip_prefix(HEAD)?.strip_suffix(TAIL)?;
    let (check, rest) = rest.split_at_checked(64)?;
    Some((check, rest.strip_prefix(MIDDLE)?))
}

/// Reads the record of `key`; `None` where there is none, an error where it is damaged.
pub(crate) fn read(disk: &dyn Disk, layout: &Layout, key: &ActionKey) -> Result<Option<Action>, StoreError> {
    let path = layout.record(key);
    let bytes = match disk.read(&path).at("read", &path) {
        Err(error) if error.is_not_found() => return Ok(None),
        bytes => bytes?,
    };
    match decode(&bytes, key) {
        Decoded::Action(action) => Ok(Some(*action)),
        Decoded::Version(found) => Err(StoreError::RecordVersion { path, found, known: ACTION_VERSION }),
        Decoded::Damaged(why) => Err(StoreError::Record { path, why }),
    }
}

/// Keys of all records, sorted. Names that are no record are left to `verify`.
pub(crate) fn keys(disk: &dyn Disk, layout: &Layout) -> Result<Vec<ActionKey>, StoreError> {
    let mut keys = Vec::new();
    for (_, name) in shards(disk, &layout.actions())? {
        if let Some(key) = name.strip_suffix(".json").and_then(|hex| hex.parse().ok()) {
            keys.push(key);
        }
    }
    Ok(keys)
}

/// All (shard, name) below a sharded folder, sorted; names that are not UTF-8 appear with replacement characters.
pub(crate) fn shards(disk: &dyn Disk, folder: &Utf8Path) -> Result<Vec<(String, String)>, StoreError> {
    let mut all = Vec::new();
    for shard in disk.list(folder).at("list", folder)? {
        let shard = shard.to_string_lossy().into_owned();
        let dir = folder.join(&shard);
        let names = match disk.list(&dir).at("list", &dir) {
            // A stray file among the shards.
            Err(StoreError::Io { cause, .. }) if cause.kind() == std::io::ErrorKind::NotADirectory => {
                all.push((String::new(), shard));
                continue;
            }
            names => names?,
        };
        all.extend(names.into_iter().map(|name| (shard.clone(), name.to_string_lossy().into_owned())));
    }
    Ok(all)
}

/// What an artifact consists of, or `None` where its manifest is missing or damaged.
pub(crate) struct Parts {
    pub tree: Option<ContentId>,
    /// Object and size, by id.
    pub objects: BTreeMap<ContentId, u64>,
}

pub(crate) fn parts(disk: &dyn Disk, layout: &Layout, artifact: &Artifact) -> Result<Option<Parts>, StoreError> {
    if artifact.form == Form::File {
        return Ok(Some(Parts { tree: None, objects: BTreeMap::from([(artifact.id, artifact.bytes)]) }));
    }
    let path = layout.tree(&artifact.id);
    let text = match disk.read(&path).at("read", &path) {
        Err(error) if error.is_not_found() => return Ok(None),
        text => text?,
    };
    if ContentId::of_tree(&text) != artifact.id {
        return Ok(None);
    }
    Ok(tree::parse(&text).map(|entries| Parts {
        tree: Some(artifact.id),
        objects: entries.into_iter().map(|entry| (entry.id, entry.bytes)).collect(),
    }))
}

/// Parts of an artifact whose every object is there, judged by `stat`.
pub(crate) fn whole(disk: &dyn Disk, layout: &Layout, artifact: &Artifact) -> Result<Option<Parts>, StoreError> {
    let Some(parts) = parts(disk, layout, artifact)? else { return Ok(None) };
    for (id, bytes) in &parts.objects {
        if !object::intact(disk, &layout.object(id), id, *bytes)? {
            return Ok(None);
        }
    }
    Ok(Some(parts))
}

/// Writes the record of an action whose every part is in the store.
///
/// 1. Look for every part.
/// 2. Sync the folders that hold them: this makes names durable that `put` has only renamed. It also covers parts that
///    another process put and has not published yet. One sync a folder, however many objects it holds.
/// 3. Write the record into the stage, sync it, rename it, sync its folder.
pub(crate) fn publish(disk: &dyn Disk, layout: &Layout, action: &Action, staged: &Utf8Path) -> Result<(), StoreError> {
    let path = layout.record(&action.key);
    if action.v != ACTION_VERSION {
        return Err(StoreError::RecordVersion { path, found: action.v, known: ACTION_VERSION });
    }

    let mut folders: BTreeSet<Utf8PathBuf> = [layout.root(), layout.base()].map(Utf8Path::to_owned).into();
    for (output, artifact) in &action.outputs {
        let Some(parts) = whole(disk, layout, artifact)? else {
            return Err(StoreError::NotPut { key: action.key, output: output.clone() });
        };
        if let Some(tree) = parts.tree {
            folders.insert(layout.trees());
            folders.extend(layout.tree(&tree).parent().map(Utf8Path::to_owned));
        }
        if !parts.objects.is_empty() {
            folders.insert(layout.objects());
        }
        folders.extend(parts.objects.keys().filter_map(|id| layout.object(id).parent().map(Utf8Path::to_owned)));
    }

    let folders: Vec<Utf8PathBuf> = folders.into_iter().collect();
    each(disk.lanes(), &folders, |folder| disk.sync_dir(folder).at("sync", folder))?;

    let bytes = encode(action).map_err(|why| StoreError::Record { path: path.clone(), why })?;
    disk.write(staged, &bytes).at("write", staged)?;
    disk.sync_file(staged).at("sync", staged)?;
    let folder = path.parent().unwrap_or(layout.base());
    disk.create_dir(folder).at("create folder", folder)?;
    disk.rename(staged, &path).at("move a record to", &path)?;
    disk.sync_dir(folder).at("sync", folder)?;
    let actions = layout.actions();
    disk.sync_dir(&actions).at("sync", &actions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn action() -> Action {
        let id = ContentId::of_file(b"abc");
        Action {
            v: ACTION_VERSION,
            key: ActionKey::of(b"m"),
            outputs: BTreeMap::from([("out".to_owned(), Artifact { id, form: Form::File, bytes: 3 })]),
            manifest: json!({"z": 1e-5, "a": [1, "é\n", null], "f": -0.0}),
            provenance: json!({"device": "cpu"}),
        }
    }

    #[test]
    fn a_record_is_one_json_object_and_reads_back() {
        let bytes = encode(&action()).unwrap();
        let json: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["action"]["outputs"]["out"]["form"], "file");
        assert!(matches!(decode(&bytes, &action().key), Decoded::Action(a) if *a == action()));
    }

    #[test]
    fn no_cut_and_no_flipped_bit_of_a_record_goes_unseen() {
        let bytes = encode(&action()).unwrap();
        for end in 0..bytes.len() {
            assert!(matches!(decode(&bytes[..end], &action().key), Decoded::Damaged(_)), "cut at {end}");
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert!(matches!(decode(&bytes, &action().key), Decoded::Damaged(_)), "flipped at {at}");
        }
    }

    #[test]
    fn a_record_of_another_key_or_version_is_no_answer() {
        let bytes = encode(&action()).unwrap();
        assert!(matches!(decode(&bytes, &ActionKey::of(b"other")), Decoded::Damaged(_)));
        let newer = encode(&Action { v: 2, ..action() }).unwrap();
        assert!(matches!(decode(&newer, &action().key), Decoded::Version(2)));
    }
}
