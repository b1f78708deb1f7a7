//! Group-relative policy optimisation. Shao et al., "DeepSeekMath", 2024; conventions of TRL's loss.
//!
//! 1. Questions or tasks are chosen. 2. At each, G attempts are drawn and judged. 3. Each is compared with its group.
//! 4. Updates: the loss is that of [`objective`](super::objective), computed row by row by [`update`](super::update).
//! 5. Metrics. 6. Checkpoint.
//!
//! Left out of the published algorithm: nothing of the objective; several epochs over one batch are `updates`. The
//! sampler and the trainer share their kernels, so old log-probabilities are the sampler's, unless a `correction` asks for
//! the trainer's, and the gap between the two is measured at every batch (`logp_gap`). A group's prompt is computed once,
//! and equal responses of a group are one segment whose terms add up: both are exact.

use std::collections::BTreeMap;

use actloom_engine::event::Level;
use actloom_engine::op::{OpContext, OpError};

use super::checkpoint::{self, Position};
use super::draw::{Drawn, How, Source};
use super::objective::advantage::{Advantage, advantages};
use super::objective::{Objective, Tally, gigpo};
use super::optimizer::{self, Optimizer};
use super::schedule::Schedule;
use super::update::{self, Group, Outcome as Update, Sample};
use crate::model::Model;
use crate::reward::Outcome;
use crate::rng::Rng;

/// Settings of the objective and the sampling.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Attempts at each question or task.
    pub group: usize,
    pub epochs: u64,
    /// Questions or tasks in one batch of sampling.
    pub batch: usize,
    /// Optimizer updates taken on each batch.
    pub updates: usize,
    pub lr: f64,
    pub schedule: Schedule,
    pub warmup: u64,
    pub optimizer: optimizer::Settings,
    /// Batches between two checkpoints.
    pub checkpoint_every: u64,
    pub temperature: f32,
    pub max_tokens: usize,
    pub objective: Objective,
    pub advantage: Advantage,
    /// Compares episodes step by step, in place of `advantage`.
    pub gigpo: Option<gigpo::Settings>,
    pub row_tokens: usize,
    /// What is sampled and how data is ordered.
    pub seed: u64,
}

/// An advantage for each response of each attempt of each group: that of its attempt, or with GiGPO that of its turn.
///
/// # Errors
/// GiGPO of attempts that are no episodes.
fn compare(drawn: &[Drawn], settings: &Settings) -> Result<Vec<Vec<Vec<f64>>>, OpError> {
    let Some(gigpo) = settings.gigpo else {
        let rewards: Vec<Vec<f64>> =
            drawn.iter().map(|d| d.attempts.iter().map(|a| a.outcome.reward).collect()).collect();
        let spread = |(d, of_group): (&Drawn, Vec<f64>)| {
            d.attempts.iter().zip(of_group).map(|(a, advantage)| vec![advantage; a.samples.len()]).collect()
        };
        return Ok(drawn.iter().zip(advantages(&rewards, settings.advantage)).map(spread).collect());
    };
    let of_group = |d: &Drawn| {
        for a in &d.attempts {
            let (have, want) = (a.steps.len(), a.samples.len());
            if have != want {
                return Err(OpError::with_help(
                    format!("an attempt at task {} has {have} steps, expected {want}: one for each response", d.index),
                    "compare steps where whole episodes are attempted",
                ));
            }
        }
        let steps = d.attempts.iter().map(|a| a.steps.iter().map(|s| (s.state.as_str(), s.reward)).collect());
        let episodes: Vec<Vec<(&str, f64)>> = steps.collect();
        Ok(gigpo::advantages(&episodes, gigpo).advantage)
    };
    drawn.iter().map(of_group).collect()
}

/// Groups of responses with their advantages.
fn grouped(drawn: Vec<Drawn>, advantages: Vec<Vec<Vec<f64>>>) -> Vec<Group> {
    let group = |(d, of_group): (Drawn, Vec<Vec<f64>>)| {
        let advantages = of_group.into_iter().flatten();
        let samples = d.attempts.into_iter().flat_map(|a| a.samples);
        let samples = samples.zip(advantages).map(|(sample, advantage)| Sample { advantage, ..sample }).collect();
        Group { question: d.index, samples }
    };
    drawn.into_iter().zip(advantages).map(group).collect()
}

/// Runs GRPO on `model` in place. `reference` is the frozen model of the KL term, wanted where the objective's
/// `kl` is not 0. `validation` is asked where the settings say so; it is never trained on.
///
/// # Errors
/// `Interrupted` with a checkpoint in scratch; what the optimizer refuses.
pub fn run(
    ctx: &OpContext<'_>,
    model: &mut Model,
    reference: Option<&Model>,
    text: &crate::text::Text,
    source: &mut dyn Source,
    _validation: Option<&mut dyn Source>,
    settings: &Settings,
) -> Result<(), OpError> {
    let batches = source.len().div_ceil(settings.batch) as u64;
    let steps = batches * settings.epochs;
    let total_updates = steps * settings.updates as u64;
    let (mut optimizer, mut position) = match checkpoint::load(ctx.scratch(), model, &settings.optimizer)? {
        Some(found) => {
            ctx.resume_metrics(found.1.step)?;
            found
        }
        None => (Optimizer::new(settings.optimizer.clone()), Position::default()),
    };
    let counter = |name: &str| position.counters.get(name).copied().unwrap_or(0.0);
    let (mut updates, mut skipped) = (counter("updates") as u64, counter("skipped"));
    let (mut sampled, mut trained) = (0u64, 0u64);
    let how = update::Settings {
        objective: settings.objective,
        temperature: settings.temperature,
        longest: settings.max_tokens,
        row_tokens: settings.row_tokens,
    };
    for step in position.step..steps {
        let at = step + 1;
        let _span = tracing::debug_span!("batch", step).entered();
        // 1. which questions: a fresh order each epoch
        let (epoch, batch) = (step / batches, (step % batches) as usize);
        let mut order: Vec<usize> = (0..source.len()).collect();
        Rng::at(settings.seed, &[0, epoch]).shuffle(&mut order);
        let chosen = &order[batch * settings.batch..source.len().min((batch + 1) * settings.batch)];
        // 2. draw G attempts at each
        let sampling = tracing::debug_span!("sample").entered();
        let how_drawn = How {
            group: settings.group,
            temperature: settings.temperature,
            max_tokens: settings.max_tokens,
            seed: settings.seed,
            stream: &[1, step],
        };
        let drawn = source.draw(ctx, model, text, chosen, &how_drawn)?;
        drop(sampling);
        // 3. compare within the group
        let attempts = || drawn.iter().flat_map(|d| &d.attempts);
        let outcomes: Vec<Outcome> = attempts().map(|a| a.outcome).collect();
        let truncated = attempts().map(|a| a.truncated).sum::<usize>() as f64;
        let mut facts: BTreeMap<&'static str, (f64, f64)> = BTreeMap::new();
        for (name, value) in attempts().flat_map(|a| &a.facts) {
            let (sum, count) = facts.entry(name).or_default();
            (*sum, *count) = (*sum + value, *count + 1.0);
        }
        let compared = compare(&drawn, settings)?;
        let mut groups = grouped(drawn, compared);
        let responses: usize = groups.iter().map(|g| g.samples.len()).sum();
        let tokens: usize = groups.iter().flat_map(|g| &g.samples).map(|s| s.ids.len()).sum();
        sampled += tokens as u64;
        let at_batch = |error: OpError| match error {
            OpError::Failed { message, help } => OpError::Failed { message: format!("batch {at}: {message}"), help },
            other => other,
        };
        update::score(model, &mut groups, &how).map_err(at_batch)?;
        // 4. updates: the batch in order, cut into equal parts
        let mut seen: Vec<Update> = Vec::new();
        let (mut norm, mut steps_taken) = (0.0, 0);
        let share = groups.len().div_ceil(settings.updates);
        for part in groups.chunks(share) {
            let _span = tracing::debug_span!("update").entered();
            let lr = settings.lr * settings.schedule.factor(updates, total_updates, settings.warmup);
            updates += 1;
            let update = update::accumulate(model, reference, part, &how).map_err(at_batch)?;
            let reached = update.reached;
            trained += update.trained;
            seen.push(update);
            if reached {
                norm += optimizer.step(model, lr).map_err(|e| checkpoint::with_last(ctx.scratch(), e))?;
                steps_taken += 1;
            } else {
                skipped += 1.0;
            }
        }
        // 5. report
        let n = outcomes.len() as f64;
        let mean = |f: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(f).sum::<f64>() / n;
        let reward = mean(&|o| o.reward);
        let correct = mean(&|o| f64::from(u8::from(o.correct)));
        let flat = groups.iter().filter(|g| g.flat()).count() as f64;
        let truncated = truncated / responses.max(1) as f64;
        ctx.metric(at, "reward", reward);
        ctx.metric(at, "accuracy", correct);
        ctx.metric(at, "malformed", mean(&|o| f64::from(u8::from(o.malformed))));
        for position in 0..2 {
            let there: Vec<_> = outcomes.iter().filter(|o| o.position == Some(position)).collect();
            if !there.is_empty() {
                let right = there.iter().filter(|o| o.correct).count() as f64 / there.len() as f64;
                ctx.metric(at, ["accuracy_first", "accuracy_second"][position], right);
            }
        }
        ctx.metric(at, "length", tokens as f64 / responses.max(1) as f64);
        ctx.metric(at, "truncated", truncated);
        ctx.metric(at, "zero_variance", flat / groups.len() as f64);
        for (name, (sum, count)) in facts {
            ctx.metric(at, name, sum / count);
        }
        report(ctx, at, &seen, &settings.objective);
        if steps_taken > 0 {
            ctx.metric(at, "grad_norm", norm / f64::from(steps_taken));
        }
        if truncated > 0.5 {
            let help = format!(
                "{:.0} % of the responses of batch {at} ran out of tokens; raise `max_tokens`",
                truncated * 100.0
            );
            ctx.say(Level::Warning, help);
        }
        ctx.progress(at, steps, "batches", format!("reward {reward:.3}, right {:.0} %", correct * 100.0));
        // 6. checkpoint, and stop if asked to
        position.step = at;
        position.counters.insert("updates".into(), updates as f64);
        position.counters.insert("skipped".into(), skipped);
        position.counters.insert("optimizer".into(), optimizer.steps() as f64);
        let stopping = ctx.stopping();
        if at < steps && (stopping || at.is_multiple_of(settings.checkpoint_every)) {
            ctx.sync_metrics()?;
            checkpoint::save(ctx.scratch(), model, &optimizer, &position)?;
            if stopping {
                return Err(OpError::Interrupted);
            }
        }
    }
    if skipped > 0.0 {
        ctx.say(
            Level::Info,
            format!("{skipped} of {total_updates} updates had no group with unequal rewards, and were left out"),
        );
    }
    checkpoint::check_finite(model, steps).map_err(|e| checkpoint::with_last(ctx.scratch(), e))?;
    ctx.note("tokens_sampled", sampled);
    ctx.note("tokens_trained", trained);
    Ok(())
}

/// Metrics of a batch's updates. The gap between sampler and trainer is that of the first part: the others meet weights
/// that have changed since they were sampled, on purpose.
fn report(ctx: &OpContext<'_>, at: u64, seen: &[Update], objective: &Objective) {
    let tokens: f64 = seen.iter().map(|u| u.tally.tokens).sum();
    if tokens == 0.0 {
        return;
    }
    let mut tally = Tally::default();
    seen.iter().for_each(|u| tally.merge(&u.tally));
    let (low, high) = tally.clipped();
    ctx.metric(at, "loss", tally.loss / seen.len() as f64);
    ctx.metric(at, "entropy", seen.iter().map(|u| u.entropy).sum::<f64>() / tokens);
    ctx.metric(at, "clip_low", low);
    ctx.metric(at, "clip_high", high);
    ctx.metric(at, "clip_region", low + high);
    ctx.metric(at, "ratio", tally.ratio());
    if let Some(first) = seen.first().filter(|u| u.tally.tokens > 0.0) {
        ctx.metric(at, "logp_gap", first.gap);
        ctx.metric(at, "logp_gap_mean", first.gap_sum / first.tally.tokens);
    }
    if objective.kl > 0.0 {
        ctx.metric(at, "kl", tally.kl());
    }
    if let Some((mean, largest, cut)) = tally.weights() {
        ctx.metric(at, "weight_mean", mean);
        ctx.metric(at, "weight_max", largest);
        ctx.metric(at, "weight_cut", cut);
    }
}
