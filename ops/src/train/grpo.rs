//! Group-relative policy optimisation. Shao et al., "DeepSeekMath", 2024; conventions of TRL's loss.
//!
//! 1. Questions or tasks are chosen. 2. At each, G attempts are drawn and judged; with a refill, groups without variance
//!    are replaced. 3. Each attempt is compared with its group. 4. Updates: `passes` over the batch, each cut into `updates`
//!    parts; the loss is that of [`objective`](super::objective), computed row by row by [`update`](super::update). 5. Metrics
//!    and warnings. 6. Validation. 7. Checkpoint.
//!
//! Left out of the published algorithm: nothing of the objective. Old log-probabilities are those of sampling in every part
//! of every pass. The sampler and the trainer share their kernels, so they are the sampler's, unless a `correction` asks
//! for the trainer's, and the gap between the two is measured at every batch (`logp_gap`). A group's prompt is computed
//! once, and equal responses of a group are one segment whose terms add up: both are exact.
//!
//! Invariants: a batch is atomic, a stop falls between two; the first pass takes the groups in the batch's order, each later
//! one in a seeded order of its own; the learning rate depends on how far training is, not on what was left out.

use std::time::{Duration, Instant};

use actloom_engine::event::Level;
use actloom_engine::op::{OpContext, OpError};
use serde_json::json;

use super::checkpoint;
use super::collect::{self, Compare, Order, Place};
use super::draw::{How, Source};
use super::objective::{Objective, Tally};
use super::optimizer;
use super::schedule::Schedule;
use super::shape::{self, Shape};
use super::update::{self, Outcome as Update};
use super::validation::{self, Keep, Track, Validate};
use super::watch::{Seen, Watch};
use crate::model::Model;
use crate::rng::Rng;

/// Settings of the objective and the sampling.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Attempts at each question or task.
    pub group: usize,
    pub epochs: u64,
    /// Questions or tasks in one batch of sampling.
    pub batch: usize,
    pub order: Order,
    /// Rounds of sampling, at most, that replace groups without variance; 0 keeps them.
    pub refill: u64,
    /// Parts that each pass cuts a batch into, an optimizer update for each; a part has a group at least.
    pub updates: usize,
    /// Passes over each batch.
    pub passes: usize,
    pub lr: f64,
    pub schedule: Schedule,
    pub warmup: u64,
    pub optimizer: optimizer::Settings,
    /// Batches between two checkpoints.
    pub checkpoint_every: u64,
    pub temperature: f32,
    pub max_tokens: usize,
    pub objective: Objective,
    pub compare: Compare,
    pub shape: Shape,
    /// Weight of the divergence as a price in the reward, estimated as the objective says; 0 leaves it out.
    pub kl_in_reward: f64,
    pub validate: Option<Validate>,
    pub row_tokens: usize,
    /// What is sampled and how data is ordered.
    pub seed: u64,
}

/// Tokens and the time they took; never part of a result.
#[derive(Default)]
struct Speed {
    tokens: u64,
    time: Duration,
}

impl Speed {
    fn add(&mut self, tokens: u64, since: Instant) {
        self.tokens += tokens;
        self.time += since.elapsed();
    }

    /// Tokens a second.
    fn rate(&self) -> f64 {
        self.tokens as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

/// Sizes of the parts of a batch of so many groups: `updates` of them, or one for each group where there are fewer; as even
/// as can be, the larger ones first.
fn parts(groups: usize, updates: usize) -> Vec<usize> {
    let count = updates.min(groups);
    (0..count).map(|i| groups / count + usize::from(i < groups % count)).collect()
}

/// Updates of a full batch that precede update `place` of `count` in batch `step`: what was left out of earlier batches
/// counts as taken, and a batch of fewer updates than a full one is as long as a full one.
fn done(step: u64, (place, count): (usize, usize), full: u64) -> f64 {
    (step * full) as f64 + (place as u64 * full) as f64 / count.max(1) as f64
}

/// Runs GRPO on `model` in place. `reference` is the frozen model of the KL term, wanted where its weight in the loss or
/// the reward is not 0. `validation` is asked where the settings say so; it is never trained on.
///
/// # Errors
/// `Interrupted` with a checkpoint in scratch; what the optimizer refuses; validation that is set and has no source.
pub fn run(
    ctx: &OpContext<'_>,
    model: &mut Model,
    reference: Option<&Model>,
    text: &crate::text::Text,
    source: &mut dyn Source,
    mut validation: Option<&mut dyn Source>,
    settings: &Settings,
) -> Result<(), OpError> {
    let batches = source.len().div_ceil(settings.batch) as u64;
    let steps = batches * settings.epochs;
    // of a batch that has a group for each part
    let full = (settings.updates * settings.passes) as u64;
    let (mut optimizer, mut position, fresh) = checkpoint::begin(ctx, model, &settings.optimizer)?;
    let counter = |name: &str| position.counters.get(name).copied().unwrap_or(0.0);
    let (mut updates, mut skipped) = (counter("updates") as u64, counter("skipped"));
    let mut watch = Watch::restore(&position.counters);
    let mut track = Track::restore(&position.counters);
    let (mut sampled, mut trained) = (Speed::default(), Speed::default());
    let how = update::Settings {
        objective: settings.objective,
        temperature: settings.temperature,
        longest: settings.max_tokens,
        row_tokens: settings.row_tokens,
    };
    let mut validate = |at: u64, model: &mut Model, track: &mut Track| -> Result<(), OpError> {
        let Some(how) = &settings.validate else { return Ok(()) };
        let Some(source) = validation.as_deref_mut() else {
            return Err(OpError::with_help("there is nothing to validate on", "leave `validate` out"));
        };
        let limits = (settings.max_tokens, settings.seed);
        let (reward, accuracy) = validation::ask(ctx, (model, text), source, how, limits)
            .map_err(|e| checkpoint::with_last(ctx.scratch(), placed(&format!("validation after batch {at}"), e)))?;
        ctx.metric(at, "validation_reward", reward);
        ctx.metric(at, "validation_accuracy", accuracy);
        if track.see(at, reward) && how.keep == Keep::Best {
            checkpoint::keep(ctx.scratch(), model, at)?;
        }
        Ok(())
    };
    if fresh {
        validate(0, model, &mut track)?;
    }
    for step in position.step..steps {
        let at = step + 1;
        let _span = tracing::debug_span!("batch", step).entered();
        let at_batch = |error: OpError| placed(&format!("batch {at}"), error);
        // 1. which questions: a fresh order each epoch
        let (epoch, first) = (step / batches, (step % batches) as usize * settings.batch);
        let order = collect::order(source, settings.order, settings.seed, epoch);
        let want = settings.batch.min(order.len() - first);
        let place = Place { order: &order, first, want, refill: settings.refill };
        // 2. draw G attempts at each
        let sampling = tracing::debug_span!("sample").entered();
        let since = Instant::now();
        let drawing = How {
            group: settings.group,
            temperature: settings.temperature,
            max_tokens: settings.max_tokens,
            seed: settings.seed,
            stream: &[1, step],
        };
        let rules = (&settings.shape, &settings.compare);
        let (mut drawn, sums) = collect::collect(ctx, (model, text), source, place, &drawing, rules)
            .map_err(|e| checkpoint::with_last(ctx.scratch(), at_batch(e)))?;
        sampled.add(sums.tokens as u64, since);
        drop(sampling);
        // 3. compare within the group
        let since = Instant::now();
        let mut price = None;
        if let Some(reference) = reference.filter(|_| settings.kl_in_reward > 0.0) {
            let rule = (settings.kl_in_reward, settings.objective.kl_estimator);
            price = Some(shape::charge(reference, &mut drawn, rule, &how).map_err(at_batch)?);
        }
        let attempts = drawn.iter().map(|d| d.attempts.len()).sum::<usize>();
        let advantages = collect::compare(&drawn, &settings.compare).map_err(at_batch)?;
        let mut groups = collect::grouped(drawn, advantages);
        update::score(model, &mut groups, &how).map_err(at_batch)?;
        // 4. updates: the batch cut into even parts, in its own order first and then in others
        let mut seen: Vec<Update> = Vec::new();
        let (mut norm, mut steps_taken) = (0.0, 0);
        let sizes = parts(groups.len(), settings.updates);
        let count = sizes.len() * settings.passes;
        for pass in 0..settings.passes {
            if pass > 0 {
                Rng::at(settings.seed, &[3, step, pass as u64]).shuffle(&mut groups);
            }
            let mut rest = groups.as_slice();
            for size in &sizes {
                let _span = tracing::debug_span!("update").entered();
                let (part, later) = rest.split_at(*size);
                rest = later;
                let done = done(step, (seen.len(), count), full);
                let lr = settings.lr * settings.schedule.after(done, steps * full, settings.warmup);
                updates += 1;
                let update = update::accumulate(model, reference, part, &how).map_err(at_batch)?;
                let reached = update.reached;
                seen.push(update);
                if reached {
                    norm += optimizer.step(model, lr).map_err(|e| checkpoint::with_last(ctx.scratch(), e))?;
                    steps_taken += 1;
                } else {
                    skipped += 1.0;
                }
                if seen.len() == count {
                    ctx.metric(at, "lr", lr);
                }
            }
        }
        if groups.is_empty() {
            // every group that was drawn was dropped
            updates += full;
            skipped += full as f64;
        }
        trained.add(seen.iter().map(|u| u.trained).sum(), since);
        // 5. report
        sums.report(ctx, at);
        if settings.refill > 0 {
            ctx.metric(at, "drawn", sums.groups as f64);
            ctx.metric(at, "refilled", (sums.groups - want) as f64);
            ctx.metric(at, "kept", groups.len() as f64);
        }
        if let Some(kl) = price {
            let tokens: usize = groups.iter().flat_map(|g| &g.samples).map(|s| s.ids.len()).sum();
            ctx.metric(at, "kl", kl / tokens.max(1) as f64);
            ctx.metric(at, "reward_kl", -settings.kl_in_reward * kl / attempts.max(1) as f64);
        }
        report(ctx, at, &seen, &settings.objective);
        ctx.metric(at, "grad_norm", norm / f64::from(steps_taken.max(1)));
        for warning in watch.see(at, &Seen { refilled: settings.refill > 0, ..sums.seen() }) {
            ctx.say(Level::Warning, warning);
        }
        let (reward, right) = (sums.mean_reward(), sums.accuracy() * 100.0);
        let speeds = format!("tokens/s: {:.0} sampled, {:.0} trained", sampled.rate(), trained.rate());
        ctx.progress(at, steps, "batches", format!("reward {reward:.3}, right {right:.0} %, {speeds}"));
        // 6. validation
        let mut over = at == steps;
        if let Some(how) = settings.validate.filter(|how| over || at.is_multiple_of(how.every)) {
            validate(at, model, &mut track)?;
            if !over && track.over(&how) {
                over = true;
                let best = track.best.map_or(0, |best| best.0);
                let none = track.without_gain;
                ctx.say(
                    Level::Info,
                    format!("training ends after batch {at} of {steps}: {none} validations without a better reward than that after batch {best}"),
                );
            }
        }
        // 7. checkpoint, and stop if asked to
        position.step = at;
        position.counters.insert("updates".into(), updates as f64);
        position.counters.insert("skipped".into(), skipped);
        position.counters.insert("optimizer".into(), optimizer.steps() as f64);
        watch.save(&mut position.counters);
        track.save(&mut position.counters);
        if over {
            break;
        }
        let stopping = ctx.stopping();
        if stopping || at.is_multiple_of(settings.checkpoint_every) {
            ctx.sync_metrics()?;
            checkpoint::save(ctx.scratch(), model, &optimizer, &position)?;
            if let Some((best, _)) = track.best {
                checkpoint::forget_others(ctx.scratch(), best)?;
            }
            if stopping {
                return Err(OpError::Interrupted);
            }
        }
    }
    if skipped > 0.0 {
        ctx.say(
            Level::Info,
            format!("{skipped} of {updates} updates had no group with unequal rewards, and were left out"),
        );
    }
    checkpoint::check_finite(model, position.step).map_err(|e| checkpoint::with_last(ctx.scratch(), e))?;
    if let (Some((best, reward)), Some(Keep::Best)) = (track.best, settings.validate.map(|how| how.keep)) {
        checkpoint::take_kept(ctx.scratch(), model, best)?;
        ctx.note("best", json!({ "batch": best, "validation_reward": reward }));
    }
    ctx.note("tokens_sampled", sampled.tokens);
    ctx.note("tokens_trained", trained.tokens);
    let speed = json!({ "sampled_per_second": sampled.rate(), "trained_per_second": trained.rate() });
    ctx.note("speed", speed);
    Ok(())
}

/// An error with its place.
fn placed(place: &str, error: OpError) -> OpError {
    match error {
        OpError::Failed { message, help } => OpError::Failed { message: format!("{place}: {message}"), help },
        other => other,
    }
}

/// Metrics of a batch's updates. Where no group had unequal rewards the loss is 0, and there are no tokens of which more
/// could be said. The gap between sampler and trainer is that of the first part: the others meet weights that have changed
/// since they were sampled, on purpose.
fn report(ctx: &OpContext<'_>, at: u64, seen: &[Update], objective: &Objective) {
    let tokens: f64 = seen.iter().map(|u| u.tally.tokens).sum();
    if tokens == 0.0 {
        return ctx.metric(at, "loss", 0.0);
    }
    let entropy = seen.iter().map(|u| u.entropy).sum::<f64>() / tokens;
    let mut tally = Tally::default();
    seen.iter().for_each(|u| tally.merge(&u.tally));
    let (low, high) = tally.clipped();
    ctx.metric(at, "loss", tally.loss / seen.len() as f64);
    ctx.metric(at, "entropy", entropy);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_cut_into_as_many_parts_as_were_asked_for_and_none_is_empty() {
        assert_eq!(parts(16, 5), [4, 3, 3, 3, 3]);
        assert_eq!(parts(16, 4), [4; 4]);
        assert_eq!(parts(5, 2), [3, 2]);
        assert_eq!(parts(3, 8), [1, 1, 1]);
        assert_eq!(parts(0, 8), [0; 0]);
        for (groups, updates) in (1..40).flat_map(|g| (1..12).map(move |u| (g, u))) {
            let sizes = parts(groups, updates);
            assert_eq!((sizes.len(), sizes.iter().sum::<usize>()), (updates.min(groups), groups));
            assert!(sizes.iter().all(|s| *s > 0) && sizes[0] - sizes[sizes.len() - 1] <= 1, "{sizes:?}");
        }
    }

    #[test]
    fn the_end_of_training_is_the_end_of_the_schedule_whatever_was_left_out() {
        // full batches count as updates do
        let full: Vec<f64> = (0..2).flat_map(|step| (0..3).map(move |place| done(step, (place, 3), 3))).collect();
        assert_eq!(full, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        // a batch of which two groups were left, and one that was dropped whole, take the place of a full one
        assert_eq!([done(0, (0, 2), 6), done(0, (1, 2), 6), done(2, (0, 6), 6)], [0.0, 3.0, 12.0]);
        let rate = |step, place, count| Schedule::Linear.after(done(step, (place, count), 6), 3 * 6, 0);
        assert_eq!(rate(2, 0, 6), rate(2, 0, 1), "the same progress, the same rate");
        assert!((rate(2, 5, 6) - 1.0 / 18.0).abs() < 1e-12, "the last update is the last of the schedule");
    }
}
