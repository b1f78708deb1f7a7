//! How processes share a store: a lock per key, and pins that hold `gc` off.
//!
//! **Keys.** [`KeyLock`] keeps two runs from doing one step twice. It is a file lock: the system releases it when the
//! process dies, however it dies.
//!
//! **Pins.** An object that was put but not yet published belongs to no action, and so looks like garbage. Every open
//! store therefore has a *session*: a file that it keeps locked for as long as it lives, in which it notes what it
//! relies on *before* relying on it. `gc` removes nothing that a live session has noted; the notes of a dead one count
//! for nothing. Noted are: objects and trees that `put` is about to store or finds already there, what `publish` is about
//! to record, and actions that a run declares used. A stage belongs to the session whose name it begins with.
//!
//! Invariants:
//! - Sessions note, and key locks are opened and taken, while the store's lock is *shared*; `gc` looks at notes and locks,
//!   and removes, while it is *exclusive*. So a note comes either before gc's look, and is respected, or after gc's
//!   removal, and what is gone is seen to be gone. The shared lock is held for microseconds, never while hashing or
//!   copying, so gc need not wait for a running step, only for its notes.
//! - Who holds the store's lock waits for no other, except that a new session waits for its own file, which somebody who
//!   looks at all sessions may hold for a moment without waiting for anything.
//! - A lock file is only ever removed under the exclusive lock, so that no two processes lock different files of one name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::str::FromStr;

use camino::Utf8Path;

use crate::disk::{Disk, Lock, Locked};
use crate::error::{At, StoreError};
use crate::id::{ActionKey, ContentId};
use crate::layout::{KEY_PREFIX, Layout, SESSION_PREFIX};

/// The right to run one step. Dropped, or its process dead, another may have it.
#[derive(Debug)]
pub struct KeyLock {
    key: ActionKey,
    _file: Locked,
}

impl KeyLock {
    pub fn key(&self) -> &ActionKey {
        &self.key
    }
}

/// Takes the lock of a key if nobody has it, in this process or another.
pub(crate) fn try_key(disk: &dyn Disk, layout: &Layout, key: &ActionKey) -> Result<Option<KeyLock>, StoreError> {
    let _shared = share(disk, layout)?;
    probe_key(disk, layout, key)
}

/// As [`try_key`], for those who already hold the store's lock.
pub(crate) fn probe_key(disk: &dyn Disk, layout: &Layout, key: &ActionKey) -> Result<Option<KeyLock>, StoreError> {
    let path = layout.key_lock(key);
    let file = disk.lock(&path, Lock::Try).at("lock", &path)?;
    Ok(file.map(|file| KeyLock { key: *key, _file: file }))
}

/// Holds `gc` off until dropped.
pub(crate) fn share(disk: &dyn Disk, layout: &Layout) -> Result<Locked, StoreError> {
    wait(disk, &layout.store_lock(), Lock::Shared)
}

/// Waits until nobody notes anything, and holds them off until dropped.
pub(crate) fn exclude(disk: &dyn Disk, layout: &Layout) -> Result<Locked, StoreError> {
    wait(disk, &layout.store_lock(), Lock::Exclusive)
}

fn wait(disk: &dyn Disk, path: &Utf8Path, how: Lock) -> Result<Locked, StoreError> {
    match disk.lock(path, how).at("lock", path)? {
        Some(file) => Ok(file),
        None => panic!("BUG: a lock that waits came back without the lock"),
    }
}

/// Whether a file of the `locks` folder has a name that this module gives.
pub(crate) fn is_lock_name(name: &str) -> bool {
    name == "store"
        || name.starts_with(SESSION_PREFIX)
        || name.strip_prefix(KEY_PREFIX).is_some_and(|key| key.parse::<ActionKey>().is_ok())
}

/// Something that gc must leave alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pin {
    Object(ContentId),
    Tree(ContentId),
    Action(ActionKey),
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pin::Object(id) => write!(f, "object {id}"),
            Pin::Tree(id) => write!(f, "tree {id}"),
            Pin::Action(key) => write!(f, "action {key}"),
        }
    }
}

impl FromStr for Pin {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let (kind, id) = line.split_once(' ').ok_or(())?;
        match kind {
            "object" => id.parse().map(Pin::Object).map_err(|_| ()),
            "tree" => id.parse().map(Pin::Tree).map_err(|_| ()),
            "action" => id.parse().map(Pin::Action).map_err(|_| ()),
            _ => Err(()),
        }
    }
}

/// One open store's own lock file, and what it has noted there.
#[derive(Debug)]
pub(crate) struct Session {
    pub name: String,
    file: Locked,
    noted: BTreeSet<Pin>,
}

impl Session {
    /// Begins a session. The caller holds the store's lock shared.
    pub fn begin(disk: &dyn Disk, layout: &Layout) -> Result<Session, StoreError> {
        // A fresh hasher is seeded by the system: process ids alone repeat, across machines even at once.
        let random = std::hash::RandomState::new().build_hasher().finish();
        let name = format!("{}-{random:016x}", std::process::id());
        let file = wait(disk, &layout.session(&name), Lock::Exclusive)?;
        Ok(Session { name, file, noted: BTreeSet::new() })
    }

    /// Notes pins. The caller holds the store's lock shared.
    pub fn note(&mut self, disk: &dyn Disk, layout: &Layout, pins: &[Pin]) -> Result<(), StoreError> {
        let new: Vec<Pin> = pins.iter().filter(|pin| !self.noted.contains(pin)).copied().collect();
        if new.is_empty() {
            return Ok(());
        }
        // The newline comes first, so that a note that a full disk cut short spoils no later one.
        let text: String = new.iter().map(|pin| format!("\n{pin}")).collect::<String>() + "\n";
        let path = layout.session(&self.name);
        disk.append(&self.file, text.as_bytes()).at("write", &path)?;
        self.noted.extend(new);
        Ok(())
    }

    /// Ends the session in order; one whose process dies is ended by gc.
    pub fn end(self, disk: &dyn Disk, layout: &Layout) {
        let path = layout.session(&self.name);
        if let Err(error) = disk.remove_file(&path) {
            tracing::debug!(%path, %error, "a session's file stays behind for gc");
        }
    }
}

/// Every session's notes. The lock of a dead one is held until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    /// Names of those whose process lives.
    pub live: BTreeSet<String>,
    pub dead: BTreeMap<String, Locked>,
    pub pins: BTreeSet<Pin>,
}

/// Looks at all sessions. The caller holds the store's lock, at least shared.
pub(crate) fn sessions(disk: &dyn Disk, layout: &Layout) -> Result<Sessions, StoreError> {
    let mut all = Sessions::default();
    let locks = layout.locks();
    for name in disk.list(&locks).at("list", &locks)? {
        let Some(name) = name.to_str().and_then(|name| name.strip_prefix(SESSION_PREFIX)) else { continue };
        let path = layout.session(name);
        // One that ended since the listing is recreated here, found free, and so counted dead: no harm.
        if let Some(lock) = disk.lock(&path, Lock::Try).at("lock", &path)? {
            all.dead.insert(name.to_owned(), lock);
            continue;
        }
        all.live.insert(name.to_owned());
        match disk.read(&path).at("read", &path) {
            Err(error) if error.is_not_found() => {}
            text => {
                all.pins.extend(String::from_utf8_lossy(&text?).lines().filter_map(|line| line.parse::<Pin>().ok()))
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_read_back_and_half_a_pin_is_none() {
        for pin in [
            Pin::Object(ContentId::of_file(b"a")),
            Pin::Tree(ContentId::of_tree(b"a")),
            Pin::Action(ActionKey::of(b"a")),
        ] {
            let line = pin.to_string();
            assert_eq!(line.parse(), Ok(pin));
            assert_eq!(line[..line.len() - 1].parse::<Pin>(), Err(()));
        }
    }
}
