//! A model of ours as a policy: the sampler that training uses, over the same weights.
//!
//! Invariant: this is the only file between the trait and the sampler.

use std::sync::Arc;

use actloom_engine::op::{DeviceRequest, OpError};
use camino::Utf8Path;

use super::Identity;
use super::local::{Done, Job, Local, Weights, held_to};
use crate::infer::{BATCH, Completion, Finish, Request, complete};
use crate::model::{self, Model, Sequence, failed, open_device};
use crate::text::Text;

/// A model that could also be trained.
pub type Own = Local<Model>;

/// Loads a Hugging Face folder.
///
/// # Errors
/// Names what is missing.
pub(super) fn load(folder: &Utf8Path, device: DeviceRequest) -> Result<Own, OpError> {
    let (device, why) = open_device(device)?;
    let mut model = model::load(folder, &device)?;
    model.freeze();
    let text = Text::load(folder, &model.config.eos)?;
    if text.vocabulary() > model.config.vocab_size {
        let (have, want) = (model.config.vocab_size, text.vocabulary());
        return Err(OpError::failed(format!("the tokenizer of `{folder}` has {want} entries, the model {have}")));
    }
    let served = folder.file_name().unwrap_or("model").to_owned();
    Ok(Local::new(model, Arc::new(text), identity(served, why)))
}

/// A model that is being trained, for as long as it plays: nothing is copied, and what it says is what it was at the
/// time.
pub fn lend(model: &Model, text: Arc<Text>) -> Local<&Model> {
    Local::new(model, text, identity("model".to_owned(), format!("{:?}", model.device.location())))
}

fn identity(served: String, at: String) -> Identity {
    Identity { make: "own", served: vec![served], listed: Vec::new(), at, reproducible: true }
}

impl Weights for Model {
    type Sequence = Sequence;

    fn sequence(&self) -> Sequence {
        Model::sequence(self)
    }

    fn positions(&self) -> usize {
        self.config.max_positions
    }

    fn width(&self) -> usize {
        BATCH
    }

    fn memory(&self) -> Result<Option<String>, OpError> {
        Model::memory(self).map_err(failed)
    }

    fn together(&self) -> usize {
        usize::MAX
    }

    fn shares(&self) -> bool {
        true
    }

    fn read(&self, sequence: &mut Sequence, ids: &[u32]) -> Result<(), OpError> {
        self.extend(&mut [(sequence, ids)]).map_err(failed)?;
        Ok(())
    }

    fn complete(
        &self,
        text: &Text,
        jobs: Vec<Job<'_, Sequence>>,
        stopping: &dyn Fn() -> bool,
    ) -> Result<Vec<Done<Sequence>>, OpError> {
        let mut requests = Vec::with_capacity(jobs.len());
        for Job { sequence, feed, allowed, sampling, rng } in jobs {
            let choice = held_to(allowed, text)?.map(Arc::new);
            let mut prompt = sequence.ids().to_vec();
            prompt.extend(feed);
            // what a sequence has read is not computed again; where nothing is read, prompts share their beginnings
            let from = Some(sequence).filter(|s| !s.is_empty());
            requests.push(Request { prompt, from, sampling: sampling.clone(), choice, rng });
        }
        let done = complete(self, text, requests, stopping)?;
        let ended = |c: &Completion| matches!(c.finish, Finish::End | Finish::StopString);
        Ok(done
            .into_iter()
            .map(|c| Done { ended: ended(&c), sequence: c.sequence, ids: c.ids, logps: c.logps, text: c.text })
            .collect())
    }
}
