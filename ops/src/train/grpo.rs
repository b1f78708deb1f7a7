//! Group-relative policy optimisation. Shao et al., "DeepSeekMath", 2024; conventions of TRL's loss.
//!
//! 1. Questions are chosen. 2. For each prompt G responses are sampled. 3. Each is judged, and compared with its group.
//! 4. Updates: the loss is that of [`objective`](super::objective), computed row by row by [`update`](super::update).
//! 5. Metrics. 6. Checkpoint.
//!
//! Left out of the published algorithm: nothing of the objective; several epochs over one batch are `updates`. The
//! sampler and the trainer share their kernels, so old log-probabilities are the sampler's, unless a `correction` asks for
//! the trainer's, and the gap between the two is measured at every batch (`logp_gap`). A group's prompt is computed once,
//! and equal responses of a group are one segment whose terms add up: both are exact.

use std::sync::Arc;

use actloom_engine::event::Level;
use actloom_engine::op::{OpContext, OpError};

use super::checkpoint::{self, Position};
use super::objective::advantage::{Advantage, advantages};
use super::objective::{Objective, Tally};
use super::optimizer::{self, Optimizer};
use super::schedule::Schedule;
use super::update::{self, Group, Outcome as Update, Sample};
use crate::infer::{Request, Sampling, complete};
use crate::model::Model;
use crate::reward::Outcome;
use crate::rng::Rng;

/// Settings of the objective and the sampling.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Responses sampled for each prompt.
    pub group: usize,
    pub epochs: u64,
    /// Prompts in one batch of sampling.
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
    pub row_tokens: usize,
    /// What is sampled and how data is ordered.
    pub seed: u64,
}

/// What is asked, and what an answer is worth.
pub trait Questions {
    /// How many there are.
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Prompt of question `index`.
    fn prompt(&self, index: usize) -> &[u32];
    /// Judges an answer; `text` is `None` where it did not end in time.
    fn judge(&self, index: usize, text: Option<&str>) -> Outcome;
}

/// Runs GRPO on `model` in place. `reference` is the frozen model of the KL term, wanted where the objective's
/// `kl` is not 0.
///
/// # Errors
/// `Interrupted` with a checkpoint in scratch; what the optimizer refuses.
pub fn run(
    ctx: &OpContext<'_>,
    model: &mut Model,
    reference: Option<&Model>,
    text: &crate::text::Text,
    questions: &dyn Questions,
    settings: &Settings,
) -> Result<(), OpError> {
    let batches = questions.len().div_ceil(settings.batch) as u64;
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
        let mut order: Vec<usize> = (0..questions.len()).collect();
        Rng::at(settings.seed, &[0, epoch]).shuffle(&mut order);
        let chosen = &order[batch * settings.batch..questions.len().min((batch + 1) * settings.batch)];
        // 2. sample G responses each, the prompt computed once
        let sampling = tracing::debug_span!("sample").entered();
        let mut requests = Vec::with_capacity(chosen.len() * settings.group);
        for (place, question) in chosen.iter().enumerate() {
            for g in 0..settings.group {
                let sampling = Sampling::plain(f64::from(settings.temperature), settings.max_tokens);
                let rng = Rng::at(settings.seed, &[1, step, place as u64, g as u64]);
                requests.push(Request::new(questions.prompt(*question), sampling, rng));
            }
        }
        let mut completions = complete(model, text, requests, &|| false)?.into_iter();
        drop(sampling);
        // 3. judge, and compare within the group
        let mut groups: Vec<Group> = Vec::with_capacity(chosen.len());
        let (mut outcomes, mut rewards) = (Vec::new(), Vec::new());
        let mut truncated = 0.0;
        for question in chosen {
            let prompt: Arc<[u32]> = questions.prompt(*question).into();
            let mut samples = Vec::with_capacity(settings.group);
            let mut of_group = Vec::with_capacity(settings.group);
            for c in completions.by_ref().take(settings.group) {
                let ended = c.ended();
                let outcome = questions.judge(*question, ended.then_some(c.text.as_str()));
                if !outcome.reward.is_finite() {
                    let (r, reward) = (samples.len() + 1, outcome.reward);
                    return Err(OpError::failed(format!(
                        "the reward of response {r} of {} to question {question} is {reward}, expected a finite number",
                        settings.group
                    )));
                }
                of_group.push(outcome.reward);
                outcomes.push(outcome);
                truncated += f64::from(u8::from(!ended));
                samples.push(Sample { prompt: prompt.clone(), ids: c.ids, sampling: c.logps, ..Sample::default() });
            }
            rewards.push(of_group);
            groups.push(Group { question: *question, samples });
        }
        for (group, of_group) in groups.iter_mut().zip(advantages(&rewards, settings.advantage)) {
            for (sample, advantage) in group.samples.iter_mut().zip(of_group) {
                sample.advantage = advantage;
            }
        }
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
        let n = responses as f64;
        let mean = |f: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(f).sum::<f64>() / n;
        let reward = mean(&|o| o.reward);
        let correct = mean(&|o| f64::from(u8::from(o.correct)));
        let flat = groups.iter().filter(|g| g.flat()).count() as f64;
        let truncated = truncated / n;
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
        ctx.metric(at, "length", tokens as f64 / n);
        ctx.metric(at, "truncated", truncated);
        ctx.metric(at, "zero_variance", flat / groups.len() as f64);
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
