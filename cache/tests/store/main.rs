//! The store as its users see it, on disks that work, fail, lie and lose power.
#![expect(clippy::unwrap_used, reason = "tests")]

mod checkout;
mod crash;
mod faults;
mod gc;
mod gc_model;
mod outside;
mod put;
mod sharing;
mod verify;

use std::collections::BTreeMap;
use std::fs;

use actloom_cache::{ACTION_VERSION, Action, ActionKey, Artifact, Store};
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

/// A folder of its own for one test, gone afterwards.
pub struct Home {
    _dir: tempfile::TempDir,
    pub path: Utf8PathBuf,
}

impl Home {
    pub fn make() -> Home {
        Home::in_folder(tempfile::tempdir().unwrap())
    }

    /// In memory where the system has a folder for that: for tests that make thousands of stores, on disks that lose
    /// power without help.
    pub fn light() -> Home {
        Home::in_folder(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap())
    }

    fn in_folder(dir: tempfile::TempDir) -> Home {
        let path = Utf8PathBuf::from_path_buf(dir.path().canonicalize().unwrap()).unwrap();
        Home { _dir: dir, path }
    }

    pub fn root(&self) -> Utf8PathBuf {
        self.path.join("store")
    }

    pub fn store(&self) -> Store {
        Store::open(&self.root()).unwrap()
    }

    /// A file outside the store.
    pub fn file(&self, name: &str, content: &[u8]) -> Utf8PathBuf {
        let path = self.path.join(name);
        write(&path, content);
        path
    }
}

pub fn key(name: &str) -> ActionKey {
    ActionKey::of(name.as_bytes())
}

/// Writes a file with all its parents.
pub fn write(path: &Utf8Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

pub fn action(name: &str, outputs: &[(&str, &Artifact)]) -> Action {
    Action {
        v: ACTION_VERSION,
        key: key(name),
        outputs: outputs
            .iter()
            .map(|(name, artifact)| ((*name).to_owned(), (*artifact).clone()))
            .collect::<BTreeMap<_, _>>(),
        manifest: json!({"op": name, "params": {"rate": 1e-5}}),
        provenance: json!({"device": "cpu"}),
    }
}

/// Puts a file made of `content` and publishes it as the output `out` of the action `name`.
pub fn publish_file(store: &Store, name: &str, content: &[u8]) -> Action {
    let stage = store.stage(&key(name)).unwrap();
    let path = stage.path().join("out");
    write(&path, content);
    let action = action(name, &[("out", &store.put(&path).unwrap())]);
    store.publish(&action).unwrap();
    action
}

/// Makes a path writable and overwrites it, as root or a stubborn user could.
pub fn overwrite(path: &Utf8Path, content: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, content).unwrap();
}
