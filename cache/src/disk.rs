//! The only door to the file system, and the place where tests inject faults.
//!
//! Invariants: every method is one step that may fail or be the last one before a crash; none retries or cleans up.
//! Nothing is durable before it is synced: a file's bytes by [`Disk::sync_file`], a name by [`Disk::sync_dir`] of the
//! folder that holds it.

use std::ffi::OsString;
use std::fmt::Debug;
use std::fs::{self, File, FileTimes, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::id::ContentId;

/// The modification time of everything frozen: an even second, which even FAT can hold.
pub fn stamp() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

/// What stands at a path. Links are not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    File,
    Dir,
    Symlink,
    /// A socket, a pipe, a device.
    Other,
}

/// What one `stat` says.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    pub kind: Kind,
    pub bytes: u64,
    pub modified: SystemTime,
    /// Names of this file; 1 where the system does not say.
    pub links: u64,
    pub executable: bool,
}

/// What stands at a path, links followed, and by what one notices that it changed. Times are nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    pub kind: Kind,
    pub bytes: u64,
    pub executable: bool,
    pub modified: i64,
    /// The last change of content or properties, which nobody can set; `modified` where the system does not say.
    pub changed: i64,
    /// 0 where the system does not say, and so the next.
    pub device: u64,
    pub inode: u64,
}

/// What a folder holds, all levels together.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    pub files: u64,
    pub bytes: u64,
    /// The newest of all modification times, the folder's own among them.
    pub modified: SystemTime,
}

/// How to take a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Waits; others may share it.
    Shared,
    /// Waits; alone.
    Exclusive,
    /// Alone or not at all.
    Try,
}

/// A lock file, locked until dropped. The system releases it when the process dies.
#[derive(Debug)]
pub struct Locked(File);

/// The file system as the store sees it.
pub trait Disk: Debug + Send + Sync {
    /// `None` where nothing is.
    fn stat(&self, path: &Utf8Path) -> io::Result<Option<Stat>>;
    /// Names in a folder, sorted.
    fn list(&self, dir: &Utf8Path) -> io::Result<Vec<OsString>>;
    fn read(&self, path: &Utf8Path) -> io::Result<Vec<u8>>;
    /// Hash of a whole file.
    fn hash(&self, path: &Utf8Path) -> io::Result<ContentId>;
    /// Sizes below `path`, which may also be a file.
    fn measure(&self, path: &Utf8Path) -> io::Result<Measure>;
    /// With parents; fine where it exists.
    fn create_dir(&self, path: &Utf8Path) -> io::Result<()>;
    /// A new file; fails where one exists.
    fn write(&self, path: &Utf8Path, bytes: &[u8]) -> io::Result<()>;
    /// Makes a file read-only and gives it the [`stamp`].
    fn freeze(&self, path: &Utf8Path, executable: bool) -> io::Result<()>;
    fn sync_file(&self, path: &Utf8Path) -> io::Result<()>;
    fn sync_dir(&self, path: &Utf8Path) -> io::Result<()>;
    /// Replaces a file at `to`, in one step.
    fn rename(&self, from: &Utf8Path, to: &Utf8Path) -> io::Result<()>;
    /// A new file that shares the old one's blocks until either is written. Not every file system can.
    fn reflink(&self, from: &Utf8Path, to: &Utf8Path) -> io::Result<()>;
    /// A second name for one file.
    fn link(&self, from: &Utf8Path, to: &Utf8Path) -> io::Result<()>;
    fn copy(&self, from: &Utf8Path, to: &Utf8Path) -> io::Result<()>;
    /// Sets the modification time.
    fn touch(&self, path: &Utf8Path, time: SystemTime) -> io::Result<()>;
    fn remove_file(&self, path: &Utf8Path) -> io::Result<()>;
    /// A file, or a folder with all that is in it.
    fn remove_all(&self, path: &Utf8Path) -> io::Result<()>;
    /// Opens or creates a lock file. `None` where [`Lock::Try`] found it taken.
    fn lock(&self, path: &Utf8Path, how: Lock) -> io::Result<Option<Locked>>;
    /// Writes at the end of a lock file in one call.
    fn append(&self, file: &Locked, bytes: &[u8]) -> io::Result<()>;
    /// How many calls may wait on this disk at once.
    fn lanes(&self) -> usize;

    // What lies outside the store is only read, and never by a map: a file that is cut short under one ends the process.

    /// Links followed; an error where nothing is.
    fn look(&self, path: &Utf8Path) -> io::Result<Look> {
        look(&fs::metadata(path)?)
    }

    /// The path without links.
    fn real(&self, path: &Utf8Path) -> io::Result<Utf8PathBuf> {
        path.canonicalize_utf8()
    }

    /// Hash of a whole file that others may change meanwhile.
    fn hash_unmapped(&self, path: &Utf8Path) -> io::Result<ContentId> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        Ok(ContentId::from_bytes(hasher.finalize().into()))
    }
}

/// The machine's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

/// Below this many bytes, threads cost more than they hash.
const PARALLEL_HASH: u64 = 256 << 10;

impl Disk for RealDisk {
    fn stat(&self, path: &Utf8Path) -> io::Result<Option<Stat>> {
        match fs::symlink_metadata(path) {
            Ok(meta) => Ok(Some(stat_of(&meta)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn list(&self, dir: &Utf8Path) -> io::Result<Vec<OsString>> {
        let mut names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn read(&self, path: &Utf8Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn hash(&self, path: &Utf8Path) -> io::Result<ContentId> {
        let mut hasher = blake3::Hasher::new();
        if fs::metadata(path)?.len() < PARALLEL_HASH {
            hasher.update_reader(File::open(path)?)?;
        } else {
            hasher.update_mmap_rayon(path)?;
        }
        Ok(ContentId::from_bytes(hasher.finalize().into()))
    }

    fn measure(&self, path: &Utf8Path) -> io::Result<Measure> {
        measure(path.as_std_path())
    }

    fn create_dir(&self, path: &Utf8Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn write(&self, path: &Utf8Path, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().write(true).create_new(true).open(path)?.write_all(bytes)
    }

    fn freeze(&self, path: &Utf8Path, executable: bool) -> io::Result<()> {
        let file = File::open(path)?;
        let mut permissions = file.metadata()?.permissions();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            permissions.set_mode(if executable { 0o555 } else { 0o444 });
        }
        #[cfg(not(unix))]
        {
            let _ = executable;
            permissions.set_readonly(true);
        }
        file.set_times(FileTimes::new().set_modified(stamp()))?;
        file.set_permissions(permissions)
    }

    fn sync_file(&self, path: &Utf8Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn sync_dir(&self, path: &Utf8Path) -> io::Result<()> {
        // Elsewhere a folder cannot be opened, and renames are journalled.
        if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
    }

    fn rename(&self, from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn reflink(&self, from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
        reflink_copy::reflink(from, to)
    }

    fn link(&self, from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn copy(&self, from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
        let mut source = File::open(from)?;
        let mut target = OpenOptions::new().write(true).create_new(true).open(to)?;
        io::copy(&mut source, &mut target).map(drop)
    }

    fn touch(&self, path: &Utf8Path, time: SystemTime) -> io::Result<()> {
        File::open(path)?.set_times(FileTimes::new().set_modified(time))
    }

    fn remove_file(&self, path: &Utf8Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_all(&self, path: &Utf8Path) -> io::Result<()> {
        if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
    }

    fn lock(&self, path: &Utf8Path, how: Lock) -> io::Result<Option<Locked>> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        match how {
            Lock::Shared => file.lock_shared()?,
            Lock::Exclusive => file.lock()?,
            Lock::Try => match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            },
        }
        Ok(Some(Locked(file)))
    }

    fn append(&self, file: &Locked, bytes: &[u8]) -> io::Result<()> {
        (&file.0).write_all(bytes)
    }

    fn lanes(&self) -> usize {
        // Waiting for a sync costs no processor, and the file system commits those that wait together in one go.
        16
    }
}

fn stat_of(meta: &fs::Metadata) -> io::Result<Stat> {
    let kind = if meta.is_file() {
        Kind::File
    } else if meta.is_dir() {
        Kind::Dir
    } else if meta.is_symlink() {
        Kind::Symlink
    } else {
        Kind::Other
    };
    #[cfg(unix)]
    let (links, executable) = {
        use std::os::unix::fs::MetadataExt;
        (meta.nlink(), meta.mode() & 0o111 != 0)
    };
    #[cfg(not(unix))]
    let (links, executable) = (1, false);
    Ok(Stat { kind, bytes: meta.len(), modified: meta.modified()?, links, executable })
}

fn look(meta: &fs::Metadata) -> io::Result<Look> {
    let stat = stat_of(meta)?;
    let modified = nanoseconds(stat.modified);
    #[cfg(unix)]
    let (changed, device, inode) = {
        use std::os::unix::fs::MetadataExt;
        (meta.ctime().saturating_mul(1_000_000_000).saturating_add(meta.ctime_nsec()), meta.dev(), meta.ino())
    };
    #[cfg(not(unix))]
    let (changed, device, inode) = (modified, 0, 0);
    Ok(Look { kind: stat.kind, bytes: stat.bytes, executable: stat.executable, modified, changed, device, inode })
}

/// Since 1970; the ends of the range stand for what lies beyond.
pub(crate) fn nanoseconds(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |n| -n),
    }
}

fn measure(path: &std::path::Path) -> io::Result<Measure> {
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_dir() {
        return Ok(Measure { files: 1, bytes: meta.len(), modified: meta.modified()? });
    }
    let mut sum = Measure { files: 0, bytes: 0, modified: meta.modified()? };
    for entry in fs::read_dir(path)? {
        // Others write here while we look: what is gone again weighs nothing.
        let part = match measure(&entry?.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            part => part?,
        };
        sum.files += part.files;
        sum.bytes += part.bytes;
        sum.modified = sum.modified.max(part.modified);
    }
    Ok(sum)
}

/// Applies `work` to every item, on as many threads as the disk has lanes; results keep the items' order.
///
/// # Errors
/// One of those that occurred; no new item is begun after it.
pub(crate) fn each<T: Sync, R: Send, E: Send>(
    lanes: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let lanes = lanes.min(items.len());
    if lanes <= 1 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::with_capacity(items.len()));
    let failed: Mutex<Option<E>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                while let Some((index, item)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    items.get(index).map(|item| (index, item))
                } {
                    match work(item) {
                        Ok(result) => done.lock().unwrap_or_else(PoisonError::into_inner).push((index, result)),
                        Err(error) => {
                            next.store(items.len(), Ordering::Relaxed);
                            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_on_many_lanes_keeps_the_order_and_reports_a_failure() {
        let items: Vec<usize> = (0..1000).collect();
        let doubled = each(8, &items, |n| Ok::<_, ()>(n * 2)).unwrap();
        assert_eq!(doubled, items.iter().map(|n| n * 2).collect::<Vec<_>>());
        assert_eq!(each(8, &items, |n| if *n == 500 { Err("no") } else { Ok(()) }), Err("no"));
    }

    #[test]
    fn large_and_small_files_hash_alike_by_both_roads() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        for bytes in [0, 1, PARALLEL_HASH - 1, PARALLEL_HASH, 3 * PARALLEL_HASH + 17] {
            let content: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
            let path = dir.join(bytes.to_string());
            RealDisk.write(&path, &content).unwrap();
            assert_eq!(RealDisk.hash(&path).unwrap(), ContentId::of_file(&content));
        }
    }
}
