//! Content ids of files and folders outside the store, remembered until they change.
//!
//! 1. List everything below the path, links followed, and look at each file.
//! 2. Take the id of a file that looks as it did when it was hashed; hash the others.
//! 3. Remember what was hashed, in one small file of the store for each path asked about.
//!
//! Invariants: the id is the one that [`Store::put`] would give, so that a folder and its copy in the store are one
//! content. Names that begin with a dot are no part of a folder, at any depth: `.git` and the like say nothing about what
//! is in it. A remembered id is taken only where size, times and inode are the same, and only if the file was already
//! older than two seconds when it was hashed: a write in the same tick of a coarse clock would leave no trace. What is
//! remembered may be lost or removed at any time; it only costs hashing again. Nothing outside the store is written.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::disk::{Disk, Kind, Look, each, nanoseconds};
use crate::error::{At, StoreError};
use crate::id::{Artifact, ContentId, Form};
use crate::store::Store;
use crate::tree::{self, TreeEntry};

/// Version of the file that remembers.
const VERSION: u32 = 1;
/// Younger files are hashed again next time.
const SETTLED: Duration = Duration::from_secs(2);
/// How often a file that changes while it is read is read again.
const ATTEMPTS: usize = 3;

/// What is remembered about one path.
#[derive(Serialize, Deserialize)]
struct Memory {
    v: u32,
    /// The path itself, for people who look into the folder.
    path: Utf8PathBuf,
    files: Vec<Known>,
}

/// A file as it was when it was hashed.
#[derive(Clone, Serialize, Deserialize)]
struct Known {
    /// Below the path; empty for a lone file.
    path: String,
    id: ContentId,
    #[serde(flatten)]
    look: Look,
    /// When hashing began, in nanoseconds since 1970.
    hashed: i64,
}

impl Known {
    fn still(&self, look: &Look) -> bool {
        let settled = i64::try_from(SETTLED.as_nanos()).unwrap_or(i64::MAX);
        self.look == *look && look.modified.max(look.changed).saturating_add(settled) <= self.hashed
    }
}

impl Store {
    /// What a file or folder outside the store holds, named as [`Store::put`] would name it. Reads every file the first
    /// time; later, only those that have changed.
    ///
    /// # Errors
    /// Names what is missing, cannot be read, leads back to itself or is neither a file nor a folder; a file that changes
    /// all the while it is read.
    pub fn identify(&self, path: &Utf8Path) -> Result<Artifact, StoreError> {
        let disk = self.disk();
        let path = camino::absolute_utf8(path).at("resolve", path)?;
        let look = disk.look(&path).at("look at", &path)?;
        let found = match look.kind {
            Kind::File => vec![(String::new(), look)],
            Kind::Dir => {
                let mut found = Vec::new();
                walk(disk, &path, "", &mut Vec::new(), &mut found)?;
                found.sort_unstable_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
                found
            }
            Kind::Symlink | Kind::Other => return Err(refused(&path, "it is neither a file nor a folder")),
        };
        let memory = self.memory_of(&path);
        let before = recall(disk, &memory);
        let unknown = |(name, look): &&(String, Look)| !before.get(name).is_some_and(|known| known.still(look));
        let fresh: u64 = found.iter().filter(unknown).map(|(_, look)| look.bytes).sum();
        if fresh > 0 {
            tracing::debug!(%path, bytes = fresh, "hash");
        }
        let known = each(disk.lanes(), &found, |(name, look)| match before.get(name) {
            Some(known) if known.still(look) => Ok(known.clone()),
            _ => hash(disk, &path, name),
        })?;
        let entries: Vec<TreeEntry> = known
            .iter()
            .map(|file| TreeEntry {
                path: file.path.clone(),
                id: file.id,
                bytes: file.look.bytes,
                executable: file.look.executable,
            })
            .collect();
        let bytes = entries.iter().map(|entry| entry.bytes).sum();
        let same = known.len() == before.len()
            && known.iter().zip(&found).all(|(file, found)| !unknown(&found) && file.path == found.0);
        if !same {
            self.remember(&memory, &Memory { v: VERSION, path: path.clone(), files: known });
        }
        Ok(match (look.kind, entries.first()) {
            (Kind::File, Some(file)) => Artifact { id: file.id, form: Form::File, bytes },
            _ => Artifact { id: ContentId::of_tree(tree::manifest(&entries).as_bytes()), form: Form::Tree, bytes },
        })
    }

    fn memory_of(&self, path: &Utf8Path) -> Utf8PathBuf {
        self.layout().known().join(format!("{}.json", ContentId::of_file(path.as_str().as_bytes())))
    }

    /// Replaces what was remembered, in one step. A store that cannot be written still plans.
    fn remember(&self, file: &Utf8Path, memory: &Memory) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let staged = file.with_extension(format!("{}-{number}.new", std::process::id()));
        let written = serde_json::to_vec(memory)
            .map_err(std::io::Error::from)
            .and_then(|bytes| self.disk().write(&staged, &bytes))
            .and_then(|()| self.disk().rename(&staged, file));
        if let Err(error) = written {
            tracing::debug!(%file, %error, "cannot remember what a path holds");
            // Most likely it is not there; else it stays behind and is never read.
            let _ = self.disk().remove_file(&staged);
        }
    }
}

/// What is remembered, by name; nothing where that cannot be read.
fn recall(disk: &dyn Disk, file: &Utf8Path) -> HashMap<String, Known> {
    let memory: Option<Memory> = disk.read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let files = memory.filter(|memory| memory.v == VERSION).map(|memory| memory.files).unwrap_or_default();
    files.into_iter().map(|file| (file.path.clone(), file)).collect()
}

/// Every file below `folder`, links followed. `above` is what the folders on the way down really are.
fn walk(
    disk: &dyn Disk,
    root: &Utf8Path,
    folder: &str,
    above: &mut Vec<Utf8PathBuf>,
    found: &mut Vec<(String, Look)>,
) -> Result<(), StoreError> {
    let dir = tree::inside(root, folder);
    let real = disk.real(&dir).at("resolve", &dir)?;
    if above.contains(&real) {
        return Err(refused(&dir, "it is a link to a folder that it lies in"));
    }
    above.push(real);
    let mut names: BTreeMap<String, Utf8PathBuf> = BTreeMap::new();
    for name in disk.list(&dir).at("list", &dir)? {
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let Some(name) = name.to_str() else {
            let path = dir.as_std_path().join(&name).display().to_string();
            return Err(StoreError::Refused { path, why: "its name is not valid UTF-8" });
        };
        if let Some(why) = tree::odd(name) {
            return Err(refused(&dir.join(name), why));
        }
        names.insert(name.to_owned(), dir.join(name));
    }
    for (name, full) in names {
        let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
        let look = disk.look(&full).at("look at", &full)?;
        match look.kind {
            Kind::File => found.push((path, look)),
            Kind::Dir => walk(disk, root, &path, above, found)?,
            Kind::Symlink | Kind::Other => return Err(refused(&full, "it is neither a file nor a folder")),
        }
    }
    above.pop();
    Ok(())
}

/// Hashes a file that stays the same meanwhile.
fn hash(disk: &dyn Disk, root: &Utf8Path, name: &str) -> Result<Known, StoreError> {
    let full = tree::inside(root, name);
    for _ in 0..ATTEMPTS {
        let hashed = now();
        let look = disk.look(&full).at("look at", &full)?;
        let id = disk.hash_unmapped(&full).at("hash", &full)?;
        if disk.look(&full).at("look at", &full)? == look {
            return Ok(Known { path: name.to_owned(), id, look, hashed });
        }
    }
    Err(refused(&full, "it changes while it is read"))
}

fn now() -> i64 {
    nanoseconds(SystemTime::now())
}

fn refused(path: &Utf8Path, why: &'static str) -> StoreError {
    StoreError::Outside { path: path.to_owned(), why }
}
