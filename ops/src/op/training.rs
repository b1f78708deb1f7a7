//! Parameters that all training ops share, and what they do to a model before and after.
//!
//! Invariant: one name means one thing in `pretrain`, `sft`, `act` and `rl`; only defaults differ, by [`Defaults`].

use std::marker::PhantomData;

use actloom_engine::event::Level;
use actloom_engine::op::{Kind, OpContext, OpError, Ports, Problem};
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gpu::parts::Purpose;
use crate::gpu::tape::Keep;
use crate::model::lora::{self, Lora};
use crate::model::{self, Model, copy_text_files, failed, first_line};
use crate::train::batch::Example;
use crate::train::optimizer::Settings;
use crate::train::schedule::Schedule;
use crate::train::sft;

/// What differs from op to op.
pub trait Defaults {
    const LEARNING_RATE: f64;
    const WARMUP: u64 = 0;
    /// Updates, or batches of sampling, between two checkpoints.
    const CHECKPOINT: u64;
    /// The model says something while it is trained.
    const SAMPLES: bool = false;
}

/// How a model is trained, whatever it is trained on.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(bound = "D: Defaults")]
#[schemars(bound = "D: Defaults", rename = "Training")]
pub struct Training<D> {
    /// Peak of the learning rate.
    #[serde(default = "learning_rate::<D>")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub learning_rate: f64,
    #[serde(default)]
    pub schedule: Schedule,
    /// Updates of warm-up.
    #[serde(default = "warmup::<D>")]
    pub warmup: u64,
    #[serde(default)]
    pub optimizer: Settings,
    /// Trains small matrices beside the weights, which stay as they are. The output `model` has them merged; `adapter`
    /// holds them alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// Tokens of a packed row: the memory of an update.
    #[serde(default = "row_tokens")]
    #[schemars(range(min = 64, max = 1048576))]
    pub row_tokens: usize,
    /// Keeps only the input of each layer and computes the rest again in the backward: a third more time for a small part
    /// of the memory, and the same results.
    #[serde(default)]
    pub recompute: bool,
    /// Updates between two checkpoints (batches in `act` and `rl`); what a killed run loses at most.
    #[serde(default = "checkpoint_every::<D>")]
    #[schemars(range(min = 1))]
    pub checkpoint_every: u64,
    #[serde(skip)]
    of: PhantomData<D>,
}

fn learning_rate<D: Defaults>() -> f64 {
    D::LEARNING_RATE
}
fn warmup<D: Defaults>() -> u64 {
    D::WARMUP
}
fn checkpoint_every<D: Defaults>() -> u64 {
    D::CHECKPOINT
}
fn row_tokens() -> usize {
    2048
}

impl<D: Defaults> Training<D> {
    /// A plan of maximum-likelihood training; its length is the caller's.
    pub fn plan(&self) -> sft::Plan {
        sft::Plan {
            steps: 0,
            lr: self.learning_rate,
            schedule: self.schedule,
            warmup: self.warmup,
            optimizer: self.optimizer.clone(),
            row_tokens: self.row_tokens,
            checkpoint_every: self.checkpoint_every,
            facts: Vec::new(),
        }
    }

    /// The trained model, and the adapter where there is one.
    pub fn outputs(&self, ports: Ports) -> Ports {
        let ports = ports.output("model", Kind::MODEL, "the trained model");
        match self.lora {
            Some(_) => ports.output("adapter", Kind::ADAPTER, "the low-rank matrices alone"),
            None => ports,
        }
    }

    /// What no sampler may differ in from its trainer.
    pub fn check_sampled(&self) -> Vec<Problem> {
        let drops = self.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0);
        let message = "dropout makes the trainer compute something else than the sampler, expected 0";
        if drops { vec![Problem::new(&["lora", "dropout"], message)] } else { Vec::new() }
    }

    /// Attaches adapters, freezes what is not trained, sets what saves memory. `longest` is the longest row that is known to come.
    ///
    /// # Errors
    /// Names targets and groups that the model does not have.
    pub fn prepare(&self, ctx: &OpContext<'_>, model: &mut Model, longest: usize) -> Result<(), OpError> {
        if let Some(lora) = &self.lora {
            lora::attach(model, lora, ctx.seed("lora"))?;
        }
        model.recompute = self.recompute;
        self.optimizer.apply(model)?;
        let (row_tokens, moments) = (self.row_tokens.max(longest), self.optimizer.moments);
        let keep = self.recompute.then_some(Keep::Inputs);
        model.on_device_for(|purpose| {
            let sample = purpose.sample.filter(|_| D::SAMPLES);
            Purpose { row_tokens, keep, sample, moments, ..purpose }
        });
        say_memory(ctx, model.memory().map_err(failed)?);
        let size = |trainable: bool| -> usize {
            let params = model.params().into_iter().filter(|p| p.trainable || !trainable);
            params.map(|p| p.value.elem_count()).sum()
        };
        ctx.note("parameters", size(false));
        ctx.note("trainable_parameters", size(true));
        Ok(())
    }
}

/// The longest of all examples, in tokens.
pub fn longest<'e>(examples: impl IntoIterator<Item = &'e Example>) -> usize {
    examples.into_iter().map(|example| example.ids.len()).max().unwrap_or(0)
}

/// A model that stays as it was, to hold the one that is trained against; what it takes on a device is told.
///
/// # Errors
/// As [`model::load`]; when it does not fit beside the other.
pub fn load_reference(ctx: &OpContext<'_>, folder: &Utf8Path, beside: &Model) -> Result<Model, OpError> {
    let reference = model::load_beside(folder, beside)?;
    let memory = reference.memory().map_err(|error| {
        OpError::with_help(
            format!("the reference of `kl`: {}", first_line(&error)),
            "`kl = 0` needs no reference; a smaller `row_tokens` leaves more room",
        )
    })?;
    if let Some(memory) = memory {
        ctx.say(Level::Info, format!("reference: {memory}").as_str());
        ctx.note("memory_of_reference", memory);
    }
    Ok(reference)
}

/// Tells what was reserved on a device.
pub fn say_memory(ctx: &OpContext<'_>, memory: Option<String>) {
    if let Some(memory) = memory {
        ctx.say(Level::Info, memory.as_str());
        ctx.note("memory", memory);
    }
}

/// Writes a trained model, adapters merged, with the text files of the one it came from; and its adapter alone.
///
/// # Errors
/// The file system's.
pub fn publish(ctx: &OpContext<'_>, model: &Model, from: &Utf8Path) -> Result<(), OpError> {
    if lora::is_attached(model) {
        // No path of this machine may enter a result; PEFT is told the base by whoever loads it.
        lora::save_adapter(model, ctx.output("adapter"), "")?;
    }
    let to = ctx.output("model");
    copy_text_files(from, to)?;
    model::save(model, to)
}
