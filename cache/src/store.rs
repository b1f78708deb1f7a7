//! The store itself: opens the folder and ties objects, trees, records and locks together.
//!
//! Invariants: a method either does the whole of what it says or leaves only garbage; every path handed out lies in this
//! store; what is noted in the session is noted before it is relied on (see [`crate::lock`]).

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use crate::action::{self, Action};
use crate::disk::{Disk, Kind, RealDisk, each};
use crate::error::{At, StoreError};
use crate::id::{ActionKey, Artifact, ContentId, Form};
use crate::layout::{FOLDERS, Layout, VERSION};
use crate::lock::{self, KeyLock, Pin, Session};
use crate::object::{self, Outgoing, Way};
use crate::tree::{self, Found, TreeEntry};
use crate::verify::{self, VerifyReport};

/// A content-addressed folder. Cheap to clone; clones share one session.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

struct Inner {
    layout: Layout,
    disk: Arc<dyn Disk>,
    session: Mutex<Option<Session>>,
    staged: AtomicU64,
    /// Damaged records that were warned of; once each is enough.
    damaged: Mutex<BTreeSet<ActionKey>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "store at `{}`", self.layout.root())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(session) = self.session.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            session.end(&*self.disk, &self.layout);
        }
    }
}

/// A folder to write outputs into, gone when dropped.
#[derive(Debug)]
pub struct Stage {
    store: Store,
    path: Utf8PathBuf,
}

impl Stage {
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.store.discard(&self.path);
    }
}

/// How many files, and how many bytes they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    pub count: u64,
    pub bytes: u64,
}

/// What a store holds, by folder. `count` counts files, wherever they lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub objects: Tally,
    pub trees: Tally,
    pub actions: Tally,
    pub scratch: Tally,
    pub stage: Tally,
    pub runs: Tally,
}

impl Usage {
    pub fn bytes(&self) -> u64 {
        [self.objects, self.trees, self.actions, self.scratch, self.stage, self.runs].iter().map(|t| t.bytes).sum()
    }
}

impl Store {
    /// Opens the store at `root`, and creates what is not there yet.
    ///
    /// # Errors
    /// A folder that holds only layouts this program does not know; the file system's.
    pub fn open(root: &Utf8Path) -> Result<Store, StoreError> {
        Self::open_with(root, Arc::new(RealDisk))
    }

    /// [`Store::open`] on a disk of the caller's choice.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(root: &Utf8Path, disk: Arc<dyn Disk>) -> Result<Store, StoreError> {
        // Absolute, because a step may well run in another folder.
        let root = camino::absolute_utf8(root).at("resolve", root)?;
        let layout = Layout::new(&root);
        if disk.stat(layout.base()).at("look at", layout.base())?.is_none() {
            if disk.stat(&root).at("look at", &root)?.is_some() {
                refuse_other_layouts(&*disk, &root)?;
            }
            tracing::debug!(%root, "new store");
        }
        let mut created = false;
        for name in FOLDERS {
            let folder = layout.base().join(name);
            if disk.stat(&folder).at("look at", &folder)?.is_none() {
                disk.create_dir(&folder).at("create folder", &folder)?;
                created = true;
            }
        }
        if created {
            for folder in [Some(layout.base()), Some(&*root), root.parent()].into_iter().flatten() {
                disk.sync_dir(folder).at("sync", folder)?;
            }
        }
        let inner =
            Inner { layout, disk, session: Mutex::new(None), staged: AtomicU64::new(0), damaged: Mutex::default() };
        Ok(Store(Arc::new(inner)))
    }

    pub fn root(&self) -> &Utf8Path {
        self.0.layout.root()
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.0.layout
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.0.disk
    }

    /// The engine's journal lies here.
    pub fn runs_dir(&self) -> Utf8PathBuf {
        self.layout().runs()
    }

    /// The recorded action of a key, if any. Its outputs may be gone: see [`Store::complete`]. A damaged record is none,
    /// with a warning that names its file: the step runs again, and publishing replaces the record.
    ///
    /// # Errors
    /// A record that a newer program wrote, by path; the file system's.
    pub fn action(&self, key: &ActionKey) -> Result<Option<Action>, StoreError> {
        match action::read(self.disk(), self.layout(), key) {
            Err(StoreError::Record { path, why }) => {
                if self.0.damaged.lock().unwrap_or_else(PoisonError::into_inner).insert(*key) {
                    tracing::warn!(
                        "action record `{path}` is damaged and counts as missing: {why}; `actloom cache verify --repair` \
                         removes it"
                    );
                }
                Ok(None)
            }
            action => action,
        }
    }

    /// Every recorded action, by key; damaged records are left out, with a warning.
    ///
    /// # Errors
    /// The first record that a newer program wrote, by path; the file system's.
    pub fn actions(&self) -> Result<Vec<Action>, StoreError> {
        let keys = action::keys(self.disk(), self.layout())?;
        let found = each(self.disk().lanes(), &keys, |key| self.action(key))?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Whether every object of every output is there. Looks at sizes and times; reads only manifests, and objects that
    /// somebody touched.
    ///
    /// # Errors
    /// The file system's.
    pub fn complete(&self, action: &Action) -> Result<bool, StoreError> {
        for artifact in action.outputs.values() {
            if action::whole(self.disk(), self.layout(), artifact)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A fresh folder on the store's file system, from which [`Store::put`] takes files without copying them.
    ///
    /// # Errors
    /// The file system's.
    pub fn stage(&self, key: &ActionKey) -> Result<Stage, StoreError> {
        let path = self.staging_path()?;
        self.disk().create_dir(&path).at("create folder", &path)?;
        tracing::trace!(key = %key.short(), %path, "stage");
        Ok(Stage { store: self.clone(), path })
    }

    /// The folder in which the step of this key keeps what an interrupted run continues from.
    ///
    /// # Errors
    /// The file system's.
    pub fn scratch(&self, key: &ActionKey) -> Result<Utf8PathBuf, StoreError> {
        let path = self.layout().scratch(key);
        self.disk().create_dir(&path).at("create folder", &path)?;
        Ok(path)
    }

    /// Where a key's scratch folder is, if it is there. Creates nothing.
    ///
    /// # Errors
    /// The file system's.
    pub fn left_scratch(&self, key: &ActionKey) -> Result<Option<Utf8PathBuf>, StoreError> {
        let path = self.layout().scratch(key);
        Ok(self.disk().stat(&path).at("look at", &path)?.map(|_| path))
    }

    /// Removes a key's scratch folder; fine where there is none. For whoever holds the key's lock.
    ///
    /// # Errors
    /// The file system's.
    pub fn clear_scratch(&self, key: &ActionKey) -> Result<(), StoreError> {
        let path = self.layout().scratch(key);
        match self.disk().remove_all(&path).at("remove", &path) {
            Err(error) if error.is_not_found() => Ok(()),
            result => result,
        }
    }

    /// Keeps a file or folder.
    ///
    /// 1. Look at everything; refuse by name what cannot be kept.
    /// 2. Take it: a path in a stage is renamed away, whole, and so is *gone* from there afterwards; anything else is
    ///    copied, and stays.
    /// 3. Hash, note the ids in the session, then place each object: freeze, sync, rename. Content that is already there
    ///    is not written again.
    ///
    /// Names become durable with [`Store::publish`]; until then, and as long as this store is open, `gc` leaves what was
    /// put alone. A lone file loses its executable bit; files of a tree keep theirs.
    ///
    /// # Errors
    /// Symbolic links, sockets and odd names, by path; the file system's. What was taken is then lost, not half stored.
    pub fn put(&self, path: &Utf8Path) -> Result<Artifact, StoreError> {
        let disk = self.disk();
        let Some(stat) = disk.stat(path).at("look at", path)? else {
            return Err(not_found("store", path));
        };
        let refused = |why| StoreError::Refused { path: path.to_string(), why };
        let (form, found) = match stat.kind {
            Kind::File => {
                let lone = Found { path: String::new(), bytes: stat.bytes, executable: false, shared: stat.links > 1 };
                (Form::File, vec![lone])
            }
            Kind::Dir => (Form::Tree, tree::scan(disk, path)?),
            Kind::Symlink => return Err(refused("it is a symbolic link, expected a file or folder")),
            Kind::Other => return Err(refused("it is neither a file nor a folder")),
        };
        let taken = self.staging_path()?;
        let placed = self.take(path, &taken, form, &found).and_then(|()| self.place(&taken, form, found));
        self.discard(&taken);
        placed
    }

    /// Moves or copies what was found at `path` to `taken`, so that nobody else has a hold of it.
    fn take(&self, path: &Utf8Path, taken: &Utf8Path, form: Form, found: &[Found]) -> Result<(), StoreError> {
        let disk = self.disk();
        let staged = path.starts_with(self.layout().stage());
        if staged {
            disk.rename(path, taken).at("take", path)?;
            // A file with another name is not ours alone: whoever has that name could still write to it.
            for file in found.iter().filter(|file| file.shared) {
                let (shared, own) = (tree::inside(taken, &file.path), self.staging_path()?);
                disk.copy(&shared, &own).at("copy", &shared)?;
                disk.rename(&own, &shared).at("replace", &shared)?;
            }
            return Ok(());
        }
        if form == Form::Tree {
            disk.create_dir(taken).at("create folder", taken)?;
        }
        each(disk.lanes(), found, |file| {
            let (from, to) = (tree::inside(path, &file.path), tree::inside(taken, &file.path));
            if let Some(folder) = to.parent().filter(|_| form == Form::Tree) {
                disk.create_dir(folder).at("create folder", folder)?;
            }
            disk.reflink(&from, &to).or_else(|_| disk.copy(&from, &to)).at("copy", &from)
        })?;
        Ok(())
    }

    fn place(&self, taken: &Utf8Path, form: Form, found: Vec<Found>) -> Result<Artifact, StoreError> {
        let (disk, layout) = (self.disk(), self.layout());
        let entries = each(disk.lanes(), &found, |file| {
            let path = tree::inside(taken, &file.path);
            let id = disk.hash(&path).at("hash", &path)?;
            Ok(TreeEntry { path: file.path.clone(), id, bytes: file.bytes, executable: file.executable })
        })?;
        let bytes = entries.iter().map(|entry| entry.bytes).sum();
        let manifest = tree::manifest(&entries);
        let id = match (form, entries.first()) {
            (Form::File, Some(file)) => file.id,
            _ => ContentId::of_tree(manifest.as_bytes()),
        };

        let mut pins: Vec<Pin> = entries.iter().map(|entry| Pin::Object(entry.id)).collect();
        if form == Form::Tree {
            pins.push(Pin::Tree(id));
        }
        self.pin(&pins)?;

        // Equal files of one tree are one object; the first of them is placed.
        let mut once = entries;
        once.sort_by_key(|entry| entry.id);
        once.dedup_by_key(|entry| entry.id);
        each(disk.lanes(), &once, |entry| {
            object::place(disk, layout, &tree::inside(taken, &entry.path), &entry.id, entry.bytes)
        })?;
        if form == Form::Tree {
            self.place_manifest(&id, manifest.as_bytes())?;
        }
        tracing::debug!(id = %id.short(), form = form.name(), files = found.len(), bytes, "put");
        Ok(Artifact { id, form, bytes })
    }

    fn place_manifest(&self, id: &ContentId, manifest: &[u8]) -> Result<(), StoreError> {
        let (disk, path) = (self.disk(), self.layout().tree(id));
        let there = disk.stat(&path).at("look at", &path)?.is_some();
        if there && disk.read(&path).at("read", &path)? == manifest {
            return Ok(());
        }
        let staged = self.staging_path()?;
        let written = (|| {
            disk.write(&staged, manifest).at("write", &staged)?;
            disk.freeze(&staged, false).at("make read-only", &staged)?;
            disk.sync_file(&staged).at("sync", &staged)?;
            let folder = path.parent().unwrap_or(self.layout().base());
            disk.create_dir(folder).at("create folder", folder)?;
            disk.rename(&staged, &path).at("move a tree to", &path)
        })();
        if written.is_err() {
            self.discard(&staged);
        }
        written
    }

    /// Records what a key stands for. When this returns, the record and all that it names survive a power cut.
    ///
    /// The outputs must have been put by this store, or by one that is still open: otherwise `gc` may have them by now.
    ///
    /// # Errors
    /// An output that is not in the store; the file system's.
    pub fn publish(&self, action: &Action) -> Result<(), StoreError> {
        let mut pins = vec![Pin::Action(action.key)];
        pins.extend(action.outputs.values().map(|artifact| match artifact.form {
            Form::File => Pin::Object(artifact.id),
            Form::Tree => Pin::Tree(artifact.id),
        }));
        self.pin(&pins)?;
        let staged = self.staging_path()?;
        let published = action::publish(self.disk(), self.layout(), action, &staged);
        if published.is_err() {
            self.discard(&staged);
        }
        tracing::debug!(key = %action.key.short(), outputs = action.outputs.len(), ok = published.is_ok(), "publish");
        published
    }

    /// Copies an artifact to `dest`, which must be free: a reflink where the file system can, else a hard link, else a
    /// copy, and read-only in each case. See [`crate::object`] for what each of them means to whoever writes there.
    ///
    /// # Errors
    /// Something at `dest`; a part that is missing or no longer what was stored; the file system's. Nothing is then left
    /// at `dest`.
    pub fn checkout(&self, artifact: &Artifact, dest: &Utf8Path) -> Result<(), StoreError> {
        let disk = self.disk();
        if disk.stat(dest).at("look at", dest)?.is_some() {
            return Err(StoreError::Exists { path: dest.to_owned() });
        }
        let entries = self.files(artifact)?;
        let mut way = Way::Reflink;
        let result = (|| {
            if artifact.form == Form::Tree {
                disk.create_dir(dest).at("create folder", dest)?;
            }
            for entry in entries {
                let file = Outgoing {
                    id: entry.id,
                    bytes: entry.bytes,
                    executable: entry.executable,
                    dest: tree::inside(dest, &entry.path),
                };
                if let Some(folder) = file.dest.parent().filter(|_| entry.path.contains('/')) {
                    disk.create_dir(folder).at("create folder", folder)?;
                }
                object::hand_out(disk, self.layout(), &file, &mut way)?;
            }
            Ok(())
        })();
        if result.is_err() {
            self.discard(dest);
        }
        result
    }

    /// Where a file artifact can be read in place, never written. `None` for trees and for what is not there.
    pub fn path_of(&self, artifact: &Artifact) -> Option<Utf8PathBuf> {
        let path = self.layout().object(&artifact.id);
        let there = artifact.form == Form::File && matches!(self.disk().stat(&path), Ok(Some(_)));
        there.then_some(path)
    }

    /// One file's bytes, checked against its id: the artifact itself, or the file of a tree that `inner` names.
    ///
    /// # Errors
    /// A file asked for the inside of, a tree asked for as a whole, an unknown `inner`; what is missing or no longer what
    /// was stored; the file system's.
    pub fn read_file(&self, artifact: &Artifact, inner: Option<&str>) -> Result<Vec<u8>, StoreError> {
        let id = match (artifact.form, inner) {
            (Form::File, None) => artifact.id,
            (Form::Tree, Some(inner)) => {
                let entry = self.files(artifact)?.into_iter().find(|entry| entry.path == inner);
                let missing = || StoreError::NoSuchFile { tree: artifact.id, inner: inner.to_owned() };
                entry.ok_or_else(missing)?.id
            }
            (form, _) => {
                let expected = if form == Form::File { Form::Tree } else { Form::File };
                let (form, expected) = (form.name(), expected.name());
                return Err(StoreError::WrongForm { id: artifact.id, form, expected });
            }
        };
        object::read(self.disk(), self.layout(), &id)
    }

    /// All files of an artifact, sorted by path. A file artifact has one, with an empty path.
    ///
    /// # Errors
    /// A manifest that is missing or no longer what was stored; the file system's.
    pub fn files(&self, artifact: &Artifact) -> Result<Vec<TreeEntry>, StoreError> {
        let id = artifact.id;
        if artifact.form == Form::File {
            return Ok(vec![TreeEntry { path: String::new(), id, bytes: artifact.bytes, executable: false }]);
        }
        let path = self.layout().tree(&id);
        let text = match self.disk().read(&path).at("read", &path) {
            Err(error) if error.is_not_found() => return Err(StoreError::Missing { id, path }),
            text => text?,
        };
        let entries = if ContentId::of_tree(&text) == id { tree::parse(&text) } else { None };
        entries.ok_or(StoreError::Corrupt { id, path })
    }

    /// Takes the lock of a key; `None` where another process, or another part of this one, holds it.
    ///
    /// # Errors
    /// The file system's.
    pub fn lock(&self, key: &ActionKey) -> Result<Option<KeyLock>, StoreError> {
        lock::try_key(self.disk(), self.layout(), key)
    }

    /// Declares that this run relies on a recorded action: sets the time of its last use, and keeps `gc` away from it
    /// for as long as this store is open.
    ///
    /// # Errors
    /// [`StoreError::Gone`] where `gc` was faster; the file system's.
    pub fn used(&self, key: &ActionKey) -> Result<(), StoreError> {
        self.pin(&[Pin::Action(*key)])?;
        let path = self.layout().record(key);
        match self.disk().touch(&path, SystemTime::now()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(StoreError::Gone { key: *key }),
            // Another user's record: it can be used, though its time cannot be set.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
            result => result.at("touch", &path),
        }
    }

    /// Counts and bytes by folder.
    ///
    /// # Errors
    /// The file system's.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let layout = self.layout();
        let tally = |path: Utf8PathBuf| -> Result<Tally, StoreError> {
            let measure = self.disk().measure(&path).at("measure", &path)?;
            Ok(Tally { count: measure.files, bytes: measure.bytes })
        };
        Ok(Usage {
            objects: tally(layout.objects())?,
            trees: tally(layout.trees())?,
            actions: tally(layout.actions())?,
            scratch: tally(layout.scratches())?,
            stage: tally(layout.stage())?,
            runs: tally(layout.runs())?,
        })
    }

    /// Re-hashes everything. See [`crate::verify`].
    ///
    /// # Errors
    /// The file system's. Damage is no error but a finding.
    pub fn verify(&self) -> Result<VerifyReport, StoreError> {
        verify::verify(self)
    }

    /// Removes what `verify` found damaged, and every record that needs what is gone, so that the steps which made it run
    /// again; how many files that were.
    ///
    /// # Errors
    /// The file system's.
    pub fn repair(&self, report: &VerifyReport) -> Result<u64, StoreError> {
        verify::repair(self, report)
    }

    /// Runs `work` on this store's session while gc is held off.
    fn in_session<T>(
        &self,
        work: impl FnOnce(&mut Session, &dyn Disk, &Layout) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (disk, layout) = (self.disk(), self.layout());
        let mut slot = self.0.session.lock().unwrap_or_else(PoisonError::into_inner);
        let _shared = lock::share(disk, layout)?;
        let session = match &mut *slot {
            Some(session) => session,
            none => none.insert(Session::begin(disk, layout)?),
        };
        work(session, disk, layout)
    }

    fn pin(&self, pins: &[Pin]) -> Result<(), StoreError> {
        self.in_session(|session, disk, layout| session.note(disk, layout, pins))
    }

    /// A free path in the stage that belongs to this store's session.
    fn staging_path(&self) -> Result<Utf8PathBuf, StoreError> {
        let begun = self.0.session.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|s| s.name.clone());
        let session = match begun {
            Some(name) => name,
            None => self.in_session(|session, _, _| Ok(session.name.clone()))?,
        };
        let number = self.0.staged.fetch_add(1, Ordering::Relaxed);
        Ok(self.layout().stage().join(format!("{session}.{number}")))
    }

    /// Removes what is no longer wanted; what cannot be removed is left to gc.
    fn discard(&self, path: &Utf8Path) {
        match self.disk().remove_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::debug!(%path, %error, "left behind for gc");
            }
            _ => {}
        }
    }
}

fn not_found(operation: &'static str, path: &Utf8Path) -> StoreError {
    StoreError::Io { operation, path: path.to_owned(), cause: std::io::ErrorKind::NotFound.into() }
}

fn refuse_other_layouts(disk: &dyn Disk, root: &Utf8Path) -> Result<(), StoreError> {
    for name in disk.list(root).at("list", root)? {
        let name = name.to_string_lossy();
        let number = name.strip_prefix('v').unwrap_or_default();
        if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) && *name != *VERSION {
            return Err(StoreError::Layout {
                root: root.to_owned(),
                found: name.into_owned(),
                known: VERSION.to_owned(),
            });
        }
    }
    Ok(())
}

impl Tally {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}
