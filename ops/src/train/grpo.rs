//! Group-relative policy optimisation. Shao et al., "DeepSeekMath", 2024; conventions of TRL's loss.
//!
//! For each prompt: G sampled responses, a reward each, advantage A = (r - mean) / (sample std + 1e-4) within the
//! group; per token, ratio = exp(logp - logp_old), loss = -min(ratio A, clip(ratio, 1 - low, 1 + high) A) + beta k3,
//! k3 = exp(ref - logp) - (ref - logp) - 1, added after clipping; summed over tokens and divided by the token count of
//! the whole update (`token`, as DAPO) or averaged by sequence first (`sequence`, as GRPO).
//!
//! Left out of the published algorithm: nothing of the objective; several epochs over one batch are `updates`. The
//! sampler and the trainer share their kernels, so old log-probabilities are the sampler's and the gap between the two
//! is measured at every update (`logp_gap`). A group's prompt is computed once, and equal responses of a group are one
//! segment whose terms add up: both are exact.

use actloom_engine::event::Level;
use actloom_engine::op::{OpContext, OpError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::batch::Row;
use super::checkpoint::{self, Position};
use super::optimizer::{self, Optimizer};
use super::schedule::Schedule;
use crate::infer::{Completion, Request, Sampling, complete};
use crate::model::{Model, failed};
use crate::nn::cpu::simd::exp;
use crate::reward::Outcome;
use crate::rng::Rng;

/// How token losses become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Aggregation {
    /// Sum over tokens divided by the update's token count (DAPO).
    #[default]
    Token,
    /// Mean over tokens of each response, then over responses (GRPO).
    Sequence,
}

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
    pub clip_low: f32,
    pub clip_high: f32,
    pub kl: f32,
    pub aggregation: Aggregation,
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

/// One group after sampling.
struct Group {
    question: usize,
    completions: Vec<Completion>,
    advantages: Vec<f32>,
}

/// (r - mean) / (sample std + 1e-4); zeros where the rewards are all equal.
pub fn advantages(rewards: &[f64]) -> Vec<f32> {
    let n = rewards.len() as f64;
    let mean = rewards.iter().sum::<f64>() / n;
    if rewards.iter().all(|r| *r == rewards[0]) {
        return vec![0.0; rewards.len()];
    }
    let variance = rewards.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    rewards.iter().map(|r| ((r - mean) / (variance.sqrt() + 1e-4)) as f32).collect()
}

/// d loss / d logp of one token, and whether the low or the high side clipped it.
///
/// `old` is the log-probability it was sampled with, `reference` the one for KL (weight `kl`).
pub fn token_gradient(
    logp: f32,
    old: f32,
    reference: Option<f32>,
    advantage: f32,
    settings: &Settings,
) -> (f32, bool, bool) {
    let ratio = exp(logp - old);
    let low = advantage < 0.0 && ratio < 1.0 - settings.clip_low;
    let high = advantage > 0.0 && ratio > 1.0 + settings.clip_high;
    let mut gradient = if low || high { 0.0 } else { -ratio * advantage };
    if let Some(reference) = reference {
        gradient += settings.kl * (1.0 - exp(reference - logp));
    }
    (gradient, low, high)
}

/// A segment of a row: one distinct response, with the advantages of everyone who gave it.
struct Piece {
    advantages: Vec<f32>,
    weights: Vec<f32>,
    old: Vec<f32>,
    reference: Vec<f32>,
}

/// Packs groups into rows: prompt as root, distinct responses as children. Each target gets its piece and position.
fn rows(groups: &[&Group], prompts: &dyn Questions, settings: &Settings, keep_flat: bool) -> Vec<(Row, Vec<Piece>)> {
    let tokens: usize = groups.iter().flat_map(|g| &g.completions).map(|c| c.ids.len()).sum();
    let responses: usize = groups.iter().map(|g| g.completions.len()).sum();
    let mut out: Vec<(Row, Vec<Piece>)> = Vec::new();
    for group in groups {
        if !keep_flat && group.advantages.iter().all(|a| *a == 0.0) {
            continue;
        }
        let prompt = prompts.prompt(group.question);
        let size = prompt.len() + group.completions.iter().map(|c| c.ids.len()).sum::<usize>();
        if out.last().is_none_or(|(row, _)| row.ids.len() + size > settings.row_tokens) {
            out.push((Row::default(), Vec::new()));
        }
        let Some((row, pieces)) = out.last_mut() else { continue };
        let root = row.add(0, None, prompt, |_| false);
        row.members.pop();
        let mut distinct: Vec<(&[u32], usize)> = Vec::new();
        for (completion, advantage) in group.completions.iter().zip(&group.advantages) {
            let weight = match settings.aggregation {
                Aggregation::Token => 1.0 / tokens as f32,
                Aggregation::Sequence => 1.0 / (completion.ids.len() * responses) as f32,
            };
            if let Some((_, piece)) = distinct.iter().find(|(ids, _)| *ids == completion.ids) {
                pieces[*piece].advantages.push(*advantage);
                pieces[*piece].weights.push(weight);
                continue;
            }
            let piece = pieces.len();
            distinct.push((&completion.ids, piece));
            pieces.push(Piece {
                advantages: vec![*advantage],
                weights: vec![weight],
                old: completion.logps.clone(),
                reference: Vec::new(),
            });
            row.add(piece, Some(root), &completion.ids, |_| true);
        }
    }
    out
}

/// Sums over an update, for its metrics.
#[derive(Default)]
struct Tally {
    tokens: f64,
    entropy: f64,
    kl: f64,
    low: f64,
    high: f64,
    gap: f64,
}

/// Runs GRPO on `model` in place. `reference` is the frozen model of the KL term, wanted where `settings.kl` is not 0.
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
        let mut groups = Vec::with_capacity(chosen.len());
        let mut outcomes = Vec::new();
        for question in chosen {
            let completions: Vec<Completion> = completions.by_ref().take(settings.group).collect();
            let mut rewards = Vec::with_capacity(settings.group);
            for c in &completions {
                let outcome = questions.judge(*question, c.ended().then_some(c.text.as_str()));
                rewards.push(outcome.reward);
                outcomes.push(outcome);
            }
            groups.push(Group { question: *question, advantages: advantages(&rewards), completions });
        }
        let responses: usize = groups.iter().map(|g| g.completions.len()).sum();
        let tokens: usize = groups.iter().flat_map(|g| &g.completions).map(|c| c.ids.len()).sum();
        sampled += tokens as u64;
        // 4. updates: the batch in order, cut into equal parts
        let mut tally = Tally::default();
        let (mut norm, mut steps_taken) = (0.0, 0);
        let share = groups.len().div_ceil(settings.updates);
        for part in groups.chunks(share) {
            let _span = tracing::debug_span!("update").entered();
            let part: Vec<&Group> = part.iter().collect();
            let lr = settings.lr * settings.schedule.factor(updates, total_updates, settings.warmup);
            updates += 1;
            let mut reached = false;
            for (row, mut pieces) in rows(&part, questions, settings, settings.kl > 0.0) {
                if let (Some(reference), true) = (reference, settings.kl > 0.0) {
                    let stats =
                        reference.score(&row.ids, &row.packing, &row.targets, settings.temperature).map_err(failed)?;
                    for (piece, range) in &row.members {
                        pieces[*piece].reference = stats[range.clone()].iter().map(|s| s.logp).collect();
                    }
                }
                let mut owner = Vec::with_capacity(row.targets.len());
                for (piece, range) in &row.members {
                    owner.extend((0..range.len()).map(|i| (*piece, i)));
                }
                model
                    .train(&row.ids, &row.packing, &row.targets, settings.temperature, |target, stats| {
                        let (piece, i) = owner[target];
                        let p = &pieces[piece];
                        let mut gradient = 0.0;
                        for (advantage, weight) in p.advantages.iter().zip(&p.weights) {
                            let reference = p.reference.get(i).copied();
                            let (g, low, high) = token_gradient(stats.logp, p.old[i], reference, *advantage, settings);
                            gradient += g * weight;
                            tally.tokens += 1.0;
                            tally.entropy += f64::from(stats.entropy);
                            tally.low += f64::from(u8::from(low));
                            tally.high += f64::from(u8::from(high));
                            tally.gap = tally.gap.max(f64::from((stats.logp - p.old[i]).abs()));
                            if let Some(r) = reference {
                                let d = f64::from(r - stats.logp);
                                tally.kl += d.exp() - d - 1.0;
                            }
                        }
                        gradient
                    })
                    .map_err(failed)?;
                trained += row.ids.len() as u64;
                reached = true;
            }
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
        let flat = groups.iter().filter(|g| g.advantages.iter().all(|a| *a == 0.0)).count() as f64;
        let truncated = groups.iter().flat_map(|g| &g.completions).filter(|c| !c.ended()).count() as f64 / n;
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
        if tally.tokens > 0.0 {
            ctx.metric(at, "entropy", tally.entropy / tally.tokens);
            ctx.metric(at, "clip_low", tally.low / tally.tokens);
            ctx.metric(at, "clip_high", tally.high / tally.tokens);
            if settings.updates == 1 {
                // later updates of one batch differ on purpose; the first must not
                ctx.metric(at, "logp_gap", tally.gap);
            }
            if settings.kl > 0.0 {
                ctx.metric(at, "kl", tally.kl / tally.tokens);
            }
        }
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
    ctx.note("tokens_sampled", sampled);
    ctx.note("tokens_trained", trained);
    Ok(())
}
