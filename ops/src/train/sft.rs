//! Maximum-likelihood training on masked sequences: pretraining and imitation share this loop.
//!
//! Each update takes a batch of examples, packs them into rows in which common beginnings are computed once, adds up
//! gradients of the mean negative log-probability over the *whole step's* targets, clips, and takes one AdamW step. Which examples an update takes is a function of
//! the seed and the update's number, so a run continues from a checkpoint to the same bytes.

use actloom_engine::op::{OpContext, OpError};

use super::batch::Example;
use super::checkpoint;
use super::forest::Forest;
use super::optimizer::{self, Settings};
use super::schedule::Schedule;
use crate::model::{Model, failed, lora};

/// What the loop needs to know beside the examples.
pub struct Plan {
    pub steps: u64,
    pub lr: f64,
    pub schedule: Schedule,
    pub warmup: u64,
    pub optimizer: Settings,
    /// Tokens of a packed row: the memory of a step.
    pub row_tokens: usize,
    /// Updates between two checkpoints.
    pub checkpoint_every: u64,
    /// Numbers about the data, recorded once as metrics of step 0.
    pub facts: Vec<(&'static str, f64)>,
}

/// What an update saw.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Tokens that count, each as often as an example has it.
    pub targets: usize,
    /// Means over them: negative log-probability, and entropy of the prediction; both in nats.
    pub loss: f64,
    pub entropy: f64,
    /// Tokens that went through the model.
    pub computed: u64,
}

/// Adds to `model` the gradient of `weight` times the mean negative log-probability of the examples' targets. `update` is its
/// number, for adapters that drop entries.
///
/// # Errors
/// candle's; examples that hold nothing to learn.
pub fn accumulate(
    model: &mut Model,
    examples: &[Example],
    weight: f64,
    row_tokens: usize,
    update: u64,
) -> Result<Sums, OpError> {
    let targets: usize = examples.iter().map(Example::targets).sum();
    if targets == 0 {
        return Err(OpError::failed(format!("update {} has nothing to learn: every token is masked", update + 1)));
    }
    let mut forest = Forest::new(row_tokens);
    for (member, example) in examples.iter().enumerate() {
        forest.add(member, &example.ids, |token| example.learn[token]);
    }
    let coefficient = -weight / targets as f64;
    let (mut loss, mut entropy, mut computed) = (0.0, 0.0, 0);
    for (number, row) in forest.rows().into_iter().enumerate() {
        lora::set_dropout(model, update, number as u64);
        // a target counts for every example that has it
        let times = |target: usize| row.owners[target].len() as f64;
        let stats = model
            .train(&row.ids, &row.packing, &row.targets, 1.0, |target, _| (coefficient * times(target)) as f32)
            .map_err(failed)?;
        for (target, stats) in stats.iter().enumerate() {
            loss -= times(target) * f64::from(stats.logp);
            entropy += times(target) * f64::from(stats.entropy);
        }
        computed += row.ids.len() as u64;
    }
    let n = targets as f64;
    Ok(Sums { targets, loss: loss / n, entropy: entropy / n, computed })
}

/// Trains `model` in place. `batch(step)` gives the examples of an update.
///
/// # Errors
/// `Interrupted` with a checkpoint in scratch; an update whose examples hold nothing to learn; what the optimizer
/// refuses.
pub fn run(
    ctx: &OpContext<'_>,
    model: &mut Model,
    plan: &Plan,
    mut batch: impl FnMut(u64) -> Result<Vec<Example>, OpError>,
) -> Result<(), OpError> {
    let (mut optimizer, mut position, fresh) = checkpoint::begin(ctx, model, &plan.optimizer)?;
    if fresh {
        plan.facts.iter().for_each(|(name, value)| ctx.metric(0, name, *value));
    }
    let mut tokens = 0u64;
    for step in position.step..plan.steps {
        let _span = tracing::debug_span!("update", step).entered();
        // 1. the examples of this update
        let examples = tracing::debug_span!("examples").in_scope(|| batch(step))?;
        // 2. gradients of the mean over the step's targets
        let sums = accumulate(model, &examples, 1.0, plan.row_tokens, step)?;
        tokens += sums.computed;
        // 3. refuse what is not finite, clip and step
        if !sums.loss.is_finite() {
            let of = optimizer::not_finite(model)?
                .map_or(String::new(), |name| format!(", and so is the gradient of `{name}`"));
            let error = OpError::with_help(
                format!("the loss is not finite at update {}{of}", step + 1),
                "lower the learning rate, or check the weights of the model",
            );
            return Err(checkpoint::with_last(ctx.scratch(), error));
        }
        let lr = plan.lr * plan.schedule.factor(step, plan.steps, plan.warmup);
        let norm = tracing::debug_span!("optimizer")
            .in_scope(|| optimizer.step(model, lr))
            .map_err(|e| checkpoint::with_last(ctx.scratch(), e))?;
        // 4. report
        let at = step + 1;
        ctx.metric(at, "loss", sums.loss);
        ctx.metric(at, "entropy", sums.entropy);
        ctx.metric(at, "grad_norm", norm);
        ctx.metric(at, "lr", lr);
        let cut = examples.iter().filter(|e| e.cut).count();
        if cut > 0 {
            ctx.metric(at, "truncated", cut as f64);
        }
        ctx.metric(at, "tokens", examples.iter().map(|e| e.ids.len()).sum::<usize>() as f64);
        ctx.progress(at, plan.steps, "updates", format!("loss {:.3}", sums.loss));
        // 5. checkpoint, and stop if asked to
        position.step = at;
        checkpoint::after_update(ctx, model, &optimizer, &position, (plan.steps, plan.checkpoint_every))?;
    }
    checkpoint::check_finite(model, plan.steps).map_err(|e| checkpoint::with_last(ctx.scratch(), e))?;
    ctx.note("tokens_trained", tokens);
    Ok(())
}
