//! What a person or a script asks of one model or one world: sizes, logits, a text, a copy in another form, a talk, a
//! game.
//!
//! - `info`: what a folder or a file holds, without loading it. - `logits`: logits and greedy ids of given tokens.
//! - `generate`: texts for a prompt. - `talk`: a conversation whose cache goes on. - `convert`: the same weights in
//!   other types and shards. - `merge`: a model with its adapters added to the weights. - `worlds`: environments, their
//!   tasks, and captured transcripts replayed. - `device`: what a device is, whether it computes what it should, how fast.
//!
//! Invariants: plain data in and out, so that the program knows no tensor; files and folders appear whole under their
//! names or not at all, and a folder never replaces one that is there.

pub mod convert;
pub mod device;
pub mod generate;
pub mod info;
pub mod logits;
pub mod merge;
pub mod play;
pub mod stream;
pub mod talk;
pub mod worlds;

use actloom_engine::op::{DeviceRequest, OpError};
use camino::{Utf8Path, Utf8PathBuf};

use crate::model::{self, Model, lora, open_device};
use crate::text::Text;

/// Which model, and where it runs.
#[derive(Clone, Debug)]
pub struct Source {
    pub folder: Utf8PathBuf,
    /// A PEFT folder whose adapters are put on.
    pub adapter: Option<Utf8PathBuf>,
    pub device: DeviceRequest,
}

/// Loads the weights; also says where they are.
fn load(source: &Source) -> Result<(Model, String), OpError> {
    let (device, why) = open_device(source.device)?;
    let mut model = model::load(&source.folder, &device)?;
    if let Some(adapter) = &source.adapter {
        lora::load_adapter(&mut model, adapter)?;
        // as PEFT's merge: one product instead of three for every layer
        lora::merge(&mut model)?;
    }
    model.freeze();
    Ok((model, why))
}

/// Loads the weights and the text side.
fn load_with_text(source: &Source) -> Result<(Model, Text), OpError> {
    let (model, _) = load(source)?;
    let eos = end_ids(&source.folder, &model)?;
    let text = Text::load_plain(&source.folder, &eos)?;
    if text.vocabulary() > model.config.vocab_size {
        let (have, want, folder) = (model.config.vocab_size, text.vocabulary(), &source.folder);
        return Err(OpError::failed(format!("the tokenizer of `{folder}` has {want} entries, the model {have}")));
    }
    Ok((model, text))
}

/// End ids of the config and of `generation_config.json`, which may know more of them.
fn end_ids(folder: &Utf8Path, model: &Model) -> Result<Vec<u32>, OpError> {
    let mut ids = model.config.eos.clone();
    for id in info::generation_ends(folder)? {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// A folder in the making, next to where it will stand.
struct StagedFolder {
    staged: Utf8PathBuf,
    to: Utf8PathBuf,
}

impl StagedFolder {
    /// Refuses a path that is taken.
    fn new(to: &Utf8Path) -> Result<StagedFolder, OpError> {
        let to = Utf8PathBuf::from(to.as_str().trim_end_matches('/'));
        if to.file_name().is_none() {
            return Err(OpError::failed(format!("`{to}` names no new folder")));
        }
        if fs_err::symlink_metadata(&to).is_ok() {
            return Err(OpError::with_help(
                format!("`{to}` exists, expected a free path"),
                "nothing is overwritten; choose another folder",
            ));
        }
        let staged = Utf8PathBuf::from(format!("{to}.part"));
        if staged.exists() {
            // what an attempt that was killed left
            fs_err::remove_dir_all(&staged)?;
        }
        fs_err::create_dir_all(&staged)?;
        Ok(StagedFolder { staged, to })
    }

    fn path(&self) -> &Utf8Path {
        &self.staged
    }

    /// Fills the folder and gives it its name; after a failure nothing is left.
    fn fill(self, fill: impl FnOnce(&Utf8Path) -> Result<(), OpError>) -> Result<Vec<Written>, OpError> {
        let publish = || {
            fill(self.path())?;
            let mut written = Vec::new();
            for entry in fs_err::read_dir(&self.staged)? {
                let entry = entry?;
                fs_err::File::open(entry.path())?.sync_all()?;
                let name = entry.file_name().to_string_lossy().into_owned();
                written.push(Written { name, bytes: entry.metadata()?.len() });
            }
            written.sort_by(|a, b| a.name.cmp(&b.name));
            fs_err::rename(&self.staged, &self.to)?;
            Ok(written)
        };
        publish().inspect_err(|_| drop(fs_err::remove_dir_all(&self.staged)))
    }
}

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Written {
    pub name: String,
    pub bytes: u64,
}
