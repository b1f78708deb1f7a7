//! Files by content.
//!
//! 1. `place` keeps a staged file: freeze, sync, rename; where the same content already is, nothing is written.
//! 2. `intact` answers from one `stat` whether an object is still what was stored.
//! 3. `hand_out` gives a copy to somebody outside the store.
//!
//! Invariants: an object is read-only, and its modification time is [`crate::disk::stamp`]. Whoever writes to it through a
//! hard link (only root or somebody who first changes its mode can) also changes that time, so the next lookup
//! re-hashes it and either puts the stamp back or calls it lost; the step that made it then runs again and replaces it.
//! What neither size nor time betrays, such as a bit that rots on the platter, `verify` finds.
//!
//! How a copy is handed out depends on the file system. A *reflink* (btrfs, XFS, APFS, ReFS) shares blocks until one
//! side is written: the copy costs no space, and nothing done to it can reach the store. Without reflinks, a *hard
//! link* costs no space either but is the object itself under another name; the read-only mode guards it, and the stamp
//! betrays who goes around the mode. Across file systems, and for executables (a hard link cannot have a mode of its
//! own), it is a plain *copy*.

use camino::{Utf8Path, Utf8PathBuf};

use crate::disk::{Disk, Kind, stamp};
use crate::error::{At, StoreError};
use crate::id::ContentId;
use crate::layout::Layout;

/// Keeps the staged file `source`, which nobody else has a hold of. Its name is durable once
/// the folders of the object are synced (`action` does that for all objects of an action at once).
pub(crate) fn place(
    disk: &dyn Disk,
    layout: &Layout,
    source: &Utf8Path,
    id: &ContentId,
    bytes: u64,
) -> Result<(), StoreError> {
    let target = layout.object(id);
    if intact(disk, &target, id, bytes)? {
        return Ok(());
    }
    let folder = target.parent().unwrap_or(layout.base());
    disk.create_dir(folder).at("create folder", folder)?;
    disk.freeze(source, false).at("make read-only", source)?;
    disk.sync_file(source).at("sync", source)?;
    disk.rename(source, &target).at("move an object to", &target)
}

/// Whether the object at `path` is there and still what was stored. One `stat`, unless somebody touched the file.
pub(crate) fn intact(disk: &dyn Disk, path: &Utf8Path, id: &ContentId, bytes: u64) -> Result<bool, StoreError> {
    let Some(stat) = disk.stat(path).at("look at", path)? else { return Ok(false) };
    if stat.kind != Kind::File || stat.bytes != bytes {
        return Ok(false);
    }
    if stat.modified == stamp() {
        return Ok(true);
    }
    // Written to, or copied here by something that does not keep times.
    if disk.hash(path).at("hash", path)? != *id {
        return Ok(false);
    }
    if let Err(error) = disk.freeze(path, false) {
        // A store of somebody else's: its content is right, only slower to tell.
        tracing::debug!(%path, %error, "cannot put the stamp back");
    }
    Ok(true)
}

/// Whole content of an object, checked against its id.
pub(crate) fn read(disk: &dyn Disk, layout: &Layout, id: &ContentId) -> Result<Vec<u8>, StoreError> {
    let path = layout.object(id);
    let bytes = match disk.read(&path).at("read", &path) {
        Err(error) if error.is_not_found() => return Err(StoreError::Missing { id: *id, path }),
        bytes => bytes?,
    };
    if ContentId::of_file(&bytes) != *id {
        return Err(StoreError::Corrupt { id: *id, path });
    }
    Ok(bytes)
}

/// Ways to hand out a copy, best first. One value serves one checkout: what failed once is not tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Reflink,
    Link,
    Copy,
}

/// One file on its way out.
pub(crate) struct Outgoing {
    pub id: ContentId,
    pub bytes: u64,
    pub executable: bool,
    /// Nothing is there yet.
    pub dest: Utf8PathBuf,
}

pub(crate) fn hand_out(disk: &dyn Disk, layout: &Layout, file: &Outgoing, way: &mut Way) -> Result<(), StoreError> {
    let path = layout.object(&file.id);
    if !intact(disk, &path, &file.id, file.bytes)? {
        return Err(match disk.stat(&path).at("look at", &path)? {
            Some(_) => StoreError::Corrupt { id: file.id, path },
            None => StoreError::Missing { id: file.id, path },
        });
    }
    let dest = &file.dest;
    if *way == Way::Reflink {
        match disk.reflink(&path, dest) {
            Ok(()) => return disk.freeze(dest, file.executable).at("make read-only", dest),
            Err(_) => *way = Way::Link,
        }
    }
    if *way == Way::Link && !file.executable {
        match disk.link(&path, dest) {
            Ok(()) => return Ok(()),
            // Another file system, or a store of somebody else's whose files may not be linked.
            Err(_) => *way = Way::Copy,
        }
    }
    disk.copy(&path, dest).at("copy an object to", dest)?;
    disk.freeze(dest, file.executable).at("make read-only", dest)
}
