//! Folders by content: a sorted manifest that names the objects of all files below.
//!
//! The manifest is text, one file a line: `<id> <bytes> <x or -> <path>`, sorted by the bytes of the path, every line
//! ended by a newline. The tree's id is the hash of that text in a domain of its own.
//!
//! Invariants: the id depends on relative paths, contents and executable bits, and on nothing else: no order of
//! creation, no times, no owner, no empty folders (a tree is its files). Paths are relative, `/` between parts, and every
//! part is a plain name, so that a tree checks out alike everywhere and never outside its folder.

use std::fmt::Write;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use crate::disk::{Disk, Kind};
use crate::error::{At, StoreError};
use crate::id::ContentId;

/// One file of a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TreeEntry {
    /// Relative, `/` between parts. Empty for the one entry of a file artifact.
    pub path: String,
    pub id: ContentId,
    pub bytes: u64,
    pub executable: bool,
}

/// The canonical manifest of entries that are sorted by path.
pub(crate) fn manifest(entries: &[TreeEntry]) -> String {
    let mut text = String::new();
    for entry in entries {
        let mark = if entry.executable { 'x' } else { '-' };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{} {} {mark} {}", entry.id, entry.bytes, entry.path);
    }
    text
}

/// Reads a manifest back; `None` where it is not in canonical form.
pub(crate) fn parse(text: &[u8]) -> Option<Vec<TreeEntry>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries: Vec<TreeEntry> = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(4, ' ');
        let id = fields.next()?.parse().ok()?;
        let bytes = fields.next()?.parse().ok()?;
        let executable = match fields.next()? {
            "x" => true,
            "-" => false,
            _ => return None,
        };
        let path = fields.next()?.to_owned();
        if !path.split('/').all(|name| odd(name).is_none()) {
            return None;
        }
        entries.push(TreeEntry { path, id, bytes, executable });
    }
    // One tree, one text: this also refuses an unsorted or unfinished one.
    let sorted = entries.is_sorted_by(|a, b| a.path.as_bytes() < b.path.as_bytes());
    (sorted && manifest(&entries) == text).then_some(entries)
}

/// Why a name is not kept, if so.
pub(crate) fn odd(name: &str) -> Option<&'static str> {
    if name.is_empty() || name == "." || name == ".." {
        return Some("its name is no plain name");
    }
    if name.contains(|c: char| c.is_control()) {
        return Some("its name holds a control character");
    }
    // Each is a separator or a stream somewhere.
    if name.contains(['\\', '/', ':']) {
        return Some("its name holds `\\` or `:`, which not every system can spell");
    }
    None
}

/// A file about to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Below the folder that was scanned; empty for a lone file.
    pub path: String,
    pub bytes: u64,
    pub executable: bool,
    /// Somebody holds another name of it.
    pub shared: bool,
}

/// Lists all files below `root`, sorted by path; refuses by name whatever cannot be kept.
pub(crate) fn scan(disk: &dyn Disk, root: &Utf8Path) -> Result<Vec<Found>, StoreError> {
    let mut found = Vec::new();
    let mut open = vec![String::new()];
    while let Some(folder) = open.pop() {
        let dir = inside(root, &folder);
        for name in disk.list(&dir).at("list", &dir)? {
            let Some(name) = name.to_str() else {
                let path = dir.as_std_path().join(&name).display().to_string();
                return Err(StoreError::Refused { path, why: "its name is not valid UTF-8" });
            };
            let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
            let full = dir.join(name);
            let refused = |why| StoreError::Refused { path: full.to_string(), why };
            if let Some(why) = odd(name) {
                return Err(refused(why));
            }
            let stat = disk.stat(&full).at("look at", &full)?;
            match stat.map(|stat| (stat, stat.kind)) {
                Some((_, Kind::Dir)) => open.push(path),
                Some((stat, Kind::File)) => {
                    found.push(Found { path, bytes: stat.bytes, executable: stat.executable, shared: stat.links > 1 })
                }
                Some((_, Kind::Symlink)) => return Err(refused("it is a symbolic link, expected a file or folder")),
                Some((_, Kind::Other)) => return Err(refused("it is neither a file nor a folder")),
                None => return Err(refused("it vanished while the folder was read")),
            }
        }
    }
    found.sort_unstable_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
    Ok(found)
}

/// `root` itself for the empty path.
pub(crate) fn inside(root: &Utf8Path, path: &str) -> Utf8PathBuf {
    if path.is_empty() { root.to_owned() } else { root.join(path) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(path: &str, content: &[u8], executable: bool) -> TreeEntry {
        let bytes = content.len() as u64;
        TreeEntry { path: path.to_owned(), id: ContentId::of_file(content), bytes, executable }
    }

    #[test]
    fn the_manifest_of_a_known_tree_and_its_id_never_change() {
        let text = manifest(&[entry("a b/run.sh", b"abc", true), entry("config.json", b"", false)]);
        assert_eq!(
            text,
            "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85 3 x a b/run.sh\n\
             af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262 0 - config.json\n"
        );
        // As Python's blake3 1.0.11 says: `blake3(text, derive_key_context="actloom tree 1")`.
        assert_eq!(
            ContentId::of_tree(text.as_bytes()).to_string(),
            "7930c20d67ce79dfdad925dec1793878222bb40f0f7fa208a29bab3232e59ebd"
        );
    }

    #[test]
    fn a_manifest_that_could_escape_or_is_out_of_form_is_not_read() {
        let id = ContentId::of_file(b"");
        for line in ["../x", "/etc/passwd", "a//b", "a/./b", "a\\b", "", "a\u{7}"] {
            assert_eq!(parse(format!("{id} 0 - {line}\n").as_bytes()), None, "{line:?}");
        }
        assert_eq!(parse(format!("{id} 0 - b\n{id} 0 - a\n").as_bytes()), None, "unsorted");
        assert_eq!(parse(format!("{id} 0 - a\n{id} 0 - a\n").as_bytes()), None, "twice");
        assert_eq!(parse(format!("{id} 0 - a").as_bytes()), None, "unfinished");
        assert_eq!(parse(format!("{id} 007 - a\n").as_bytes()), None, "number");
        assert_eq!(parse(format!("{id} 0 - a\n").as_bytes()), Some(vec![entry("a", b"", false)]));
    }

    proptest! {
        #[test]
        fn manifests_read_back(files in proptest::collection::btree_map("[a-z. é]{0,3}[a-z](/[a-z]{1,3}){0,2}", any::<(Vec<u8>, bool)>(), 0..8)) {
            let entries: Vec<TreeEntry> = files.iter().map(|(path, (bytes, x))| entry(path, bytes, *x)).collect();
            prop_assert_eq!(parse(manifest(&entries).as_bytes()), Some(entries));
        }
    }
}
