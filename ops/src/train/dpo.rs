//! Direct preference optimisation. Rafailov et al., 2023 (arXiv 2305.18290).
//!
//! 1. Before training: log-probabilities of both answers of every pair under the starting model, the reference.
//! 2. Each update, first pass: both answers of its pairs are scored.
//! 3. The objective turns the four sums of a pair into one coefficient.
//! 4. Second pass: forward and backward, with that coefficient on the chosen answer's tokens and its negative on the
//!    rejected one's.
//!
//! The answers of an update's pairs are branches of what their prompts have in common, which is computed once. Left out of the published algorithm:
//! nothing. The loss of the chosen answer that may be added (RPO; Pang et al., 2024, arXiv 2404.19733) is here the mean
//! over all chosen tokens of an update, as in `sft`, not over each answer's own.
//!
//! Invariants: both passes run the same rows through the same kernels, so at the start every margin is exactly 0; a number
//! that is not finite stops the run, with the pair it belongs to, before a weight changes.

use actloom_engine::op::{OpContext, OpError};
use serde::{Deserialize, Serialize};

use super::batch::Row;
use super::checkpoint;
use super::forest::Forest;
use super::objective::dpo::{Objective, Pair};
use super::sft::Plan;
use crate::model::{Model, failed};

/// A prompt, and the better and the worse answer to it, end tokens included.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Preferred {
    /// Where it comes from, for messages.
    pub place: String,
    pub prompt: Vec<u32>,
    pub chosen: Vec<u32>,
    pub rejected: Vec<u32>,
}

impl Preferred {
    /// The longer of its two sequences, in tokens.
    pub fn length(&self) -> usize {
        self.prompt.len() + self.chosen.len().max(self.rejected.len())
    }
}

/// Log-probabilities of both answers of a pair, each summed over its tokens, in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logps {
    pub chosen: f64,
    pub rejected: f64,
}

/// What an update minimises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    pub objective: Objective,
    /// Weight of the chosen answers' own loss; 0: none.
    pub sft_weight: f64,
    /// Tokens of a packed row.
    pub row_tokens: usize,
}

/// Sums over the pairs of an update.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    pub pairs: f64,
    /// Of the preferences alone.
    pub loss: f64,
    /// Pairs whose chosen answer gained more than the rejected one.
    pub right: f64,
    pub reward_chosen: f64,
    pub reward_rejected: f64,
    pub logp_chosen: f64,
    pub logp_rejected: f64,
    /// Tokens of chosen answers.
    pub chosen_tokens: f64,
    /// Tokens that went through the model, once for both passes.
    pub tokens: u64,
}

/// Packs the answers of pairs: those of pair k are members 2k and 2k + 1, and what prompts have in common is computed once.
fn pack(pairs: &[&Preferred], limit: usize) -> Vec<Row> {
    let mut forest = Forest::new(limit);
    for (k, pair) in pairs.iter().enumerate() {
        for (which, answer) in [&pair.chosen, &pair.rejected].into_iter().enumerate() {
            let prompt = pair.prompt.len();
            forest.add(2 * k + which, &[&pair.prompt[..], answer].concat(), |token| token >= prompt);
        }
    }
    forest.rows()
}

/// Log-probabilities of packed pairs.
fn score_rows(model: &Model, rows: &[Row], pairs: &[&Preferred]) -> Result<Vec<Logps>, OpError> {
    let mut sums = vec![0.0; 2 * pairs.len()];
    for row in rows {
        let stats = model.score(&row.ids, &row.packing, &row.targets, 1.0).map_err(failed)?;
        for (stats, owners) in stats.iter().zip(&row.owners) {
            owners.iter().for_each(|owner| sums[owner.member] += f64::from(stats.logp));
        }
    }
    let logps: Vec<Logps> = sums.chunks(2).map(|s| Logps { chosen: s[0], rejected: s[1] }).collect();
    for (pair, logps) in pairs.iter().zip(&logps) {
        for (which, logp) in [("chosen", logps.chosen), ("rejected", logps.rejected)] {
            if !logp.is_finite() {
                let place = &pair.place;
                return Err(OpError::with_help(
                    format!("the log-probability of the {which} answer of {place} is {logp}, expected a finite number"),
                    "lower the learning rate, or check the weights of the model; no weight changed in this update",
                ));
            }
        }
    }
    Ok(logps)
}

/// Log-probabilities of all pairs under a model.
///
/// # Errors
/// candle's; names the pair whose log-probability is not finite.
pub fn score(model: &Model, pairs: &[&Preferred], row_tokens: usize) -> Result<Vec<Logps>, OpError> {
    score_rows(model, &pack(pairs, row_tokens), pairs)
}

/// Adds the gradients of one update to `model` and says what it saw.
///
/// # Errors
/// candle's; names the pair whose numbers are not finite.
pub fn accumulate(
    model: &mut Model,
    pairs: &[&Preferred],
    reference: &[Logps],
    settings: &Settings,
) -> Result<Sums, OpError> {
    let mut sums = Sums { pairs: pairs.len() as f64, ..Sums::default() };
    sums.chosen_tokens = pairs.iter().map(|pair| pair.chosen.len()).sum::<usize>() as f64;
    let own = settings.sft_weight / sums.chosen_tokens;
    let rows = pack(pairs, settings.row_tokens);
    // 1. both answers under the model as it is
    let logps = score_rows(model, &rows, pairs)?;
    // 2. a coefficient for each answer's tokens
    let mut coefficients = Vec::with_capacity(2 * pairs.len());
    for ((pair, logps), reference) in pairs.iter().zip(&logps).zip(reference) {
        let judged = settings.objective.judge(
            &Pair {
                chosen: logps.chosen,
                rejected: logps.rejected,
                reference_chosen: reference.chosen,
                reference_rejected: reference.rejected,
            },
            pairs.len(),
        );
        if !(judged.loss as f32).is_finite() || !(judged.gradient as f32).is_finite() {
            let place = &pair.place;
            return Err(OpError::with_help(
                format!("the loss of {place} is {}, expected a finite number", judged.loss),
                "lower `beta` or the learning rate; no weight changed in this update",
            ));
        }
        coefficients.extend([judged.gradient - own, -judged.gradient]);
        sums.loss += judged.loss;
        sums.right += f64::from(u8::from(judged.logit > 0.0));
        sums.reward_chosen += judged.reward_chosen;
        sums.reward_rejected += judged.reward_rejected;
        sums.logp_chosen += logps.chosen;
        sums.logp_rejected += logps.rejected;
    }
    // 3. gradients
    for row in &rows {
        let of = |i: usize| row.owners[i].iter().map(|owner| coefficients[owner.member]).sum::<f64>() as f32;
        model.train(&row.ids, &row.packing, &row.targets, 1.0, |i, _| of(i)).map_err(failed)?;
        sums.tokens += row.ids.len() as u64;
    }
    Ok(sums)
}

/// Trains `model` in place. `batch(step)` gives the indices of an update's pairs.
///
/// # Errors
/// `Interrupted` with a checkpoint in scratch; what the optimizer refuses; numbers that are not finite.
pub fn run(
    ctx: &OpContext<'_>,
    model: &mut Model,
    pairs: &[Preferred],
    reference: &[Logps],
    settings: &Settings,
    plan: &Plan,
    batch: impl Fn(u64) -> Vec<usize>,
) -> Result<(), OpError> {
    let (mut optimizer, mut position, fresh) = checkpoint::begin(ctx, model, &plan.optimizer)?;
    if fresh {
        plan.facts.iter().for_each(|(name, value)| ctx.metric(0, name, *value));
    }
    let mut tokens = 0u64;
    for step in position.step..plan.steps {
        let _span = tracing::debug_span!("update", step).entered();
        // 1. the pairs of this update, and their gradients
        let chosen = batch(step);
        let some: Vec<&Preferred> = chosen.iter().map(|i| &pairs[*i]).collect();
        let references: Vec<Logps> = chosen.iter().map(|i| reference[*i]).collect();
        let at = step + 1;
        let sums = accumulate(model, &some, &references, settings).map_err(|error| match error {
            OpError::Failed { message, help } => checkpoint::with_last(
                ctx.scratch(),
                OpError::Failed { message: format!("update {at}: {message}"), help },
            ),
            other => other,
        })?;
        tokens += sums.tokens;
        // 2. clip and step
        let lr = plan.lr * plan.schedule.factor(step, plan.steps, plan.warmup);
        let norm = optimizer.step(model, lr).map_err(|e| checkpoint::with_last(ctx.scratch(), e))?;
        // 3. report
        let n = sums.pairs;
        let nll = -sums.logp_chosen / sums.chosen_tokens;
        let loss = sums.loss / n + settings.sft_weight * nll;
        let accuracy = sums.right / n;
        ctx.metric(at, "loss", loss);
        if settings.sft_weight > 0.0 {
            ctx.metric(at, "preference_loss", sums.loss / n);
            ctx.metric(at, "chosen_loss", nll);
        }
        ctx.metric(at, "accuracy", accuracy);
        ctx.metric(at, "margin", (sums.reward_chosen - sums.reward_rejected) / n);
        ctx.metric(at, "reward_chosen", sums.reward_chosen / n);
        ctx.metric(at, "reward_rejected", sums.reward_rejected / n);
        ctx.metric(at, "logp_chosen", sums.logp_chosen / n);
        ctx.metric(at, "logp_rejected", sums.logp_rejected / n);
        ctx.metric(at, "grad_norm", norm);
        ctx.metric(at, "lr", lr);
        ctx.progress(at, plan.steps, "updates", format!("loss {loss:.3}, right {:.0} %", accuracy * 100.0));
        // 4. checkpoint, and stop if asked to
        position.step = at;
        checkpoint::after_update(ctx, model, &optimizer, &position, (plan.steps, plan.checkpoint_every))?;
    }
    checkpoint::check_finite(model, plan.steps).map_err(|e| checkpoint::with_last(ctx.scratch(), e))?;
    ctx.note("tokens_trained", tokens);
    Ok(())
}
