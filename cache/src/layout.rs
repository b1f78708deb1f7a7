//! Every path of a store.
//!
//! ```text
//! <root>/v1/objects/ab/<id>        one file each, read-only
//!           trees/ab/<id>          one manifest each
//!           actions/ab/<key>.json  one record each; its modification time is the action's last use
//!           locks/store            shared by whoever pins, exclusive for gc
//!           locks/session-*        one per open store: what it has pinned
//!           locks/key-*            one per action key that was ever locked
//!           stage/<session>.<n>    being written; garbage once its session is dead
//!           scratch/<key>/         what an interrupted step continues from
//!           runs/                  the engine's journal
//!           known/<hash>.json      what a path outside the store held, and how its files looked
//! ```
//!
//! Invariant: the version is a folder's name, so that a program never meets files of a layout that it does not know.

use camino::{Utf8Path, Utf8PathBuf};

use crate::id::{ActionKey, ContentId};

/// Name of the folder that holds this layout.
pub const VERSION: &str = "v1";

/// Folders below `v1`, in the order created.
pub const FOLDERS: [&str; 8] = ["objects", "trees", "actions", "locks", "stage", "scratch", "runs", "known"];

pub(crate) const SESSION_PREFIX: &str = "session-";
pub(crate) const KEY_PREFIX: &str = "key-";

/// Paths below one root.
#[derive(Clone, Debug)]
pub struct Layout {
    root: Utf8PathBuf,
    base: Utf8PathBuf,
}

impl Layout {
    pub fn new(root: &Utf8Path) -> Self {
        Layout { root: root.to_owned(), base: root.join(VERSION) }
    }

    pub fn root(&self) -> &Utf8Path {
        &self.root
    }

    /// `<root>/v1`.
    pub fn base(&self) -> &Utf8Path {
        &self.base
    }

    pub fn objects(&self) -> Utf8PathBuf {
        self.base.join("objects")
    }

    pub fn object(&self, id: &ContentId) -> Utf8PathBuf {
        sharded(self.objects(), &id.to_string(), "")
    }

    pub fn trees(&self) -> Utf8PathBuf {
        self.base.join("trees")
    }

    pub fn tree(&self, id: &ContentId) -> Utf8PathBuf {
        sharded(self.trees(), &id.to_string(), "")
    }

    pub fn actions(&self) -> Utf8PathBuf {
        self.base.join("actions")
    }

    pub fn record(&self, key: &ActionKey) -> Utf8PathBuf {
        sharded(self.actions(), &key.to_string(), ".json")
    }

    pub fn locks(&self) -> Utf8PathBuf {
        self.base.join("locks")
    }

    pub fn store_lock(&self) -> Utf8PathBuf {
        self.locks().join("store")
    }

    pub fn session(&self, name: &str) -> Utf8PathBuf {
        self.locks().join(format!("{SESSION_PREFIX}{name}"))
    }

    pub fn key_lock(&self, key: &ActionKey) -> Utf8PathBuf {
        self.locks().join(format!("{KEY_PREFIX}{key}"))
    }

    pub fn stage(&self) -> Utf8PathBuf {
        self.base.join("stage")
    }

    pub fn scratches(&self) -> Utf8PathBuf {
        self.base.join("scratch")
    }

    pub fn scratch(&self, key: &ActionKey) -> Utf8PathBuf {
        self.scratches().join(key.to_string())
    }

    pub fn runs(&self) -> Utf8PathBuf {
        self.base.join("runs")
    }

    pub fn known(&self) -> Utf8PathBuf {
        self.base.join("known")
    }
}

/// 256 folders a kind keep each of them small on every file system.
fn sharded(folder: Utf8PathBuf, hex: &str, suffix: &str) -> Utf8PathBuf {
    let mut path = folder;
    path.push(&hex[..2]);
    path.push(format!("{hex}{suffix}"));
    path
}
