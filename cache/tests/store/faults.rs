//! A disk that counts, fails, dies and loses power, around the real one.
//!
//! What is durable is modelled as a strict reading of POSIX: a file's bytes once the file was synced, a name once its
//! folder was. At a power cut every folder independently keeps some prefix of what was done to it since its last sync,
//! and every file that was never synced is torn. (The source of a rename is forgotten at once: sources lie in the stage,
//! where anything may be missing.)

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use actloom_cache::disk::{Lock, Locked, Measure, Stat};
use actloom_cache::{ContentId, Disk, RealDisk};
use camino::{Utf8Path, Utf8PathBuf};

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Fault {
    #[default]
    Never,
    /// The call of this number fails, once.
    Once(usize),
    /// The process is killed at the call of this number: that call and all after it do nothing.
    Kill(usize),
}

/// Which copies the file system can make.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Copies {
    Reflinks,
    #[default]
    Links,
    None,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<&'static str>,
    dead: bool,
    /// Inodes whose bytes are durable.
    synced: BTreeSet<u64>,
    /// By folder, what was done to its names since its last sync.
    changes: BTreeMap<Utf8PathBuf, Vec<Change>>,
}

#[derive(Debug)]
enum Change {
    Added(String),
    /// Removed or replaced; the file as it was.
    Lost(String, Utf8PathBuf),
}

#[derive(Debug)]
pub struct Faults {
    fault: Fault,
    copies: Copies,
    /// Syncs of folders do nothing: what a test of crashes must notice.
    lies: bool,
    backups: Utf8PathBuf,
    state: Mutex<State>,
}

impl Faults {
    /// `backups`: a folder on the same file system, outside the store.
    pub fn new(backups: &Utf8Path, fault: Fault) -> Faults {
        fs::create_dir_all(backups).unwrap();
        let backups = backups.to_owned();
        Faults { fault, copies: Copies::default(), lies: false, backups, state: Mutex::default() }
    }

    pub fn copies(mut self, copies: Copies) -> Faults {
        self.copies = copies;
        self
    }

    pub fn lying(mut self) -> Faults {
        self.lies = true;
        self
    }

    /// Names of all calls so far.
    pub fn calls(&self) -> Vec<&'static str> {
        self.state.lock().unwrap().calls.clone()
    }

    pub fn count(&self, name: &str) -> usize {
        self.calls().iter().filter(|call| **call == name).count()
    }

    /// Whether the fault has struck.
    pub fn struck(&self) -> bool {
        match self.fault {
            Fault::Never => false,
            Fault::Once(n) | Fault::Kill(n) => self.state.lock().unwrap().calls.len() > n,
        }
    }

    /// Cuts the power: of each folder's unsynced changes, the first `pick(how many)` survive.
    pub fn cut_power(&self, root: &Utf8Path, mut pick: impl FnMut(usize) -> usize) {
        let mut state = self.state.lock().unwrap();
        for (folder, mut changes) in std::mem::take(&mut state.changes) {
            let keep = pick(changes.len());
            while changes.len() > keep {
                match changes.pop().unwrap() {
                    Change::Added(name) => remove(&folder.join(name)),
                    Change::Lost(name, backup) => {
                        remove(&folder.join(&name));
                        if folder.exists() {
                            fs::hard_link(backup, folder.join(name)).unwrap();
                        }
                    }
                }
            }
        }
        for part in ["objects", "trees", "actions", "stage"] {
            tear(&root.join("v1").join(part), &state.synced, &mut pick);
        }
    }

    fn call(&self, name: &'static str) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let number = state.calls.len();
        state.calls.push(name);
        match self.fault {
            Fault::Once(n) if n == number => return Err(io::Error::other("injected fault")),
            Fault::Kill(n) if n == number => state.dead = true,
            _ => {}
        }
        if state.dead { Err(io::Error::other("killed")) } else { Ok(()) }
    }

    fn added(&self, path: &Utf8Path) {
        self.change(path, Change::Added(path.file_name().unwrap().to_owned()));
    }

    fn change(&self, path: &Utf8Path, change: Change) {
        let mut state = self.state.lock().unwrap();
        state.changes.entry(path.parent().unwrap().to_owned()).or_default().push(change);
    }

    /// Remembers the file at `path`, if any, before it goes.
    fn back_up(&self, path: &Utf8Path) -> Option<Change> {
        if !fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file()) {
            return None;
        }
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let backup = self.backups.join(NUMBER.fetch_add(1, Ordering::Relaxed).to_string());
        fs::hard_link(path, &backup).unwrap();
        Some(Change::Lost(path.file_name().unwrap().to_owned(), backup))
    }
}

fn remove(path: &Utf8Path) {
    if path.is_dir() {
        fs::remove_dir_all(path).unwrap();
    } else if path.exists() {
        fs::remove_file(path).unwrap();
    }
}

/// Cuts every file short that was never synced.
fn tear(path: &Utf8Path, synced: &BTreeSet<u64>, pick: &mut impl FnMut(usize) -> usize) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    if meta.is_dir() {
        for entry in path.read_dir_utf8().unwrap() {
            tear(entry.unwrap().path(), synced, pick);
        }
    } else if !synced.contains(&meta.ino()) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        let length = pick(meta.len() as usize) as u64;
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
    }
}

fn forget(path: &Utf8Path, synced: &mut BTreeSet<u64>) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    if meta.is_dir() {
        path.read_dir_utf8().unwrap().for_each(|entry| forget(entry.unwrap().path(), synced));
    } else if meta.nlink() == 1 {
        // The number may be given to another file.
        synced.remove(&meta.ino());
    }
}

impl Disk for Faults {
    fn stat(&self, path: &Utf8Path) -> io::Result<Option<Stat>> {
        self.call("stat")?;
        RealDisk.stat(path)
    }

    fn list(&self, dir: &Utf8Path) -> io::Result<Vec<OsString>> {
        self.call("list")?;
        RealDisk.list(dir)
    }

    fn read(&self, path: &Utf8Path) -> io::Result<Vec<u8>> {
        self.call("read")?;
        RealDisk.read(path)
    }

    fn hash(&self, path: &Utf8Path) -> io::Result<ContentId> {
        self.call("hash")?;
        RealDisk.hash(path)
    }

    fn measure(&self, path: &Utf8Path) -> io::Result<Measure> {
        self.call("measure")?;
        RealDisk.measure(path)
    }

    fn create_dir(&self, path: &Utf8Path) -> io::Result<()> {
        self.call("create_dir")?;
        let new: Vec<&Utf8Path> = path.ancestors().take_while(|path| !path.exists()).collect();
        RealDisk.create_dir(path)?;
        new.into_iter().rev().for_each(|path| self.added(path));
        Ok(())
    }

    fn write(&self, path: &Utf8Path, bytes: &[u8]) -> io::Result<()> {
        let alive = self.call("write");
        // Whoever dies while writing has written some of it.
        let bytes = if alive.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        if alive.is_ok() || self.struck() {
            RealDisk.write(path, bytes)?;
            self.added(path);
        }
        alive
    }

    fn freeze(&self, path: &Utf8Path, executable: bool) -> io::Result<()> {
        self.call("freeze")?;
        RealDisk.freeze(path, executable)
    }

    fn sync_file(&self, path: &Utf8Path) -> io::Result<()> {
        self.call("sync_file")?;
        let inode = fs::metadata(path)?.ino();
        self.state.lock().unwrap().synced.insert(inode);
        Ok(())
    }

    fn sync_dir(&self, path: &Utf8Path) -> io::Result<()> {
        self.call("sync_dir")?;
        fs::read_dir(path)?;
        if !self.lies {
            self.state.lock().unwrap().changes.remove(path);
        }
        Ok(())
    }

    fn rename(&self, from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
        self.call("rename")?;
        let lost = self.back_up(to);
        RealDisk.rename(from, to)?;
        match lost {
            Some(lost) => self.change(to, lost),
            None => self.added(to),
        }
        Ok(())
    }

    fn reflink(&self, from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
        self.call("reflink")?;
        if self.copies != Copies::Reflinks {
            return Err(io::ErrorKind::Unsupported.into());
        }
        RealDisk.copy(from, to)?;
        self.added(to);
        Ok(())
    }

    fn link(&self, from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
        self.call("link")?;
        if self.copies == Copies::None {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        RealDisk.link(from, to)?;
        self.added(to);
        Ok(())
    }

    fn copy(&self, from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
        self.call("copy")?;
        RealDisk.copy(from, to)?;
        self.added(to);
        Ok(())
    }

    fn touch(&self, path: &Utf8Path, time: SystemTime) -> io::Result<()> {
        self.call("touch")?;
        RealDisk.touch(path, time)
    }

    fn remove_file(&self, path: &Utf8Path) -> io::Result<()> {
        self.call("remove_file")?;
        let lost = self.back_up(path);
        RealDisk.remove_file(path)?;
        if let Some(lost) = lost {
            self.change(path, lost);
        }
        Ok(())
    }

    fn remove_all(&self, path: &Utf8Path) -> io::Result<()> {
        self.call("remove_all")?;
        forget(path, &mut self.state.lock().unwrap().synced);
        RealDisk.remove_all(path)
    }

    fn lock(&self, path: &Utf8Path, how: Lock) -> io::Result<Option<Locked>> {
        self.call("lock")?;
        RealDisk.lock(path, how)
    }

    fn append(&self, file: &Locked, bytes: &[u8]) -> io::Result<()> {
        let alive = self.call("append");
        if alive.is_err() {
            RealDisk.append(file, &bytes[..bytes.len() / 2])?;
        }
        alive?;
        RealDisk.append(file, bytes)
    }

    fn lanes(&self) -> usize {
        // One call after the other, so that the n-th is the same one every time.
        1
    }
}
