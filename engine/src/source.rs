//! Recipe texts by id, so that a span can always find its line.

use camino::Utf8PathBuf;

/// Index into [`Sources`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(pub usize);

/// One text: a file, or the command line's `--set`.
#[derive(Clone, Debug)]
pub struct Source {
    /// As shown in diagnostics.
    pub name: String,
    /// The file it came from; `None` for command-line text.
    pub path: Option<Utf8PathBuf>,
    pub text: String,
}

/// Every text a recipe was made of, in the order read.
#[derive(Clone, Debug, Default)]
pub struct Sources(pub Vec<Source>);

impl Sources {
    pub fn add(&mut self, source: Source) -> SourceId {
        self.0.push(source);
        SourceId(self.0.len() - 1)
    }

    pub fn get(&self, id: SourceId) -> &Source {
        &self.0[id.0]
    }
}
