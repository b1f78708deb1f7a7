//! What can go wrong with a store, named by path and operation.
//!
//! Invariant: messages are lower case, without a full stop, fact first; a damaged store is told apart from a disk that
//! refuses.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};

use crate::id::{ActionKey, ContentId};

/// Why a store operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system said no. The cause is part of the message, hence no `source`.
    #[error("cannot {operation} `{path}`: {cause}")]
    Io { operation: &'static str, path: Utf8PathBuf, cause: io::Error },
    #[error("`{root}` holds a store of layout `{found}`, this program knows `{known}`")]
    Layout { root: Utf8PathBuf, found: String, known: String },
    #[error("action record `{path}` is damaged: {why}")]
    Record { path: Utf8PathBuf, why: String },
    #[error("action record `{path}` has version {found}, this program knows version {known}")]
    RecordVersion { path: Utf8PathBuf, found: u32, known: u32 },
    /// Something that a store does not keep: a symbolic link, a socket, a name that not every system can spell.
    #[error("cannot store `{path}`: {why}")]
    Refused { path: String, why: &'static str },
    /// Something outside the store that cannot be an input.
    #[error("cannot use `{path}` as an input: {why}")]
    Outside { path: Utf8PathBuf, why: &'static str },
    #[error("cannot check out to `{path}`: it exists, expected a free path")]
    Exists { path: Utf8PathBuf },
    #[error("`{path}` is missing from the store")]
    Missing { id: ContentId, path: Utf8PathBuf },
    #[error("`{path}` is not what was stored: its content does not hash to its name")]
    Corrupt { id: ContentId, path: Utf8PathBuf },
    #[error("action `{key}` is no longer in the store")]
    Gone { key: ActionKey },
    #[error("tree `{tree}` has no file `{inner}`")]
    NoSuchFile { tree: ContentId, inner: String },
    #[error("artifact `{id}` is a {form}, expected a {expected}")]
    WrongForm { id: ContentId, form: &'static str, expected: &'static str },
    #[error("cannot publish action `{key}`: output `{output}` is not in the store, expected it to be put first")]
    NotPut { key: ActionKey, output: String },
}

impl StoreError {
    /// Whether the disk said that something is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, StoreError::Io { cause, .. } if cause.kind() == io::ErrorKind::NotFound)
    }
}

/// Names operation and path of a disk error.
pub(crate) trait At<T> {
    fn at(self, operation: &'static str, path: &Utf8Path) -> Result<T, StoreError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, operation: &'static str, path: &Utf8Path) -> Result<T, StoreError> {
        self.map_err(|cause| StoreError::Io { operation, path: path.to_owned(), cause })
    }
}
