//! One update of policy optimisation: groups of responses as packed rows, their losses and gradients.
//!
//! 1. Groups become rows: the prompt once, the distinct responses of a group as its children.
//! 2. What the objective needs beforehand is scored: the reference for KL, the policy itself where a ratio is a whole
//!    response's.
//! 3. Each row goes forward and backward; the objective gives each token's coefficient.
//!
//! Invariants: equal responses of a group are one segment whose coefficients add up, which is exact; a number that is not
//! finite stops the run, with the response it belongs to, before a weight changes.

use std::sync::Arc;

use actloom_engine::op::OpError;

use super::batch::Row;
use super::objective::{Credit, Objective, Response, Size, Tally, Term, Weights};
use crate::model::{Model, failed};
use crate::nn::layer::TokenStats;

/// What is known of a sampled response.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// What it answers; the samples of a group may share it.
    pub prompt: Arc<[u32]>,
    /// Tokens, the end among them.
    pub ids: Vec<u32>,
    /// Log-probability of each token, as the sampler gave it.
    pub sampling: Vec<f32>,
    /// The trainer's at that time, where it was asked; else the sampler's is taken for it.
    pub scored: Option<Vec<f32>>,
    pub advantage: f64,
    /// For the gap between sampler and trainer.
    pub weights: Option<Weights>,
}

impl Sample {
    /// What ratios are to.
    fn old(&self) -> &[f32] {
        self.scored.as_ref().unwrap_or(&self.sampling)
    }
}

/// Responses that were compared with each other: the answers to one question, or the turns of the episodes of one task.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// Index of the question or task, for messages.
    pub question: usize,
    pub samples: Vec<Sample>,
}

impl Group {
    /// No response was better than another.
    pub fn flat(&self) -> bool {
        self.samples.iter().all(|s| s.advantage == 0.0)
    }
}

/// How an update is computed.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub objective: Objective,
    pub temperature: f32,
    /// Longest response allowed, in tokens.
    pub longest: usize,
    /// Tokens of a packed row.
    pub row_tokens: usize,
}

/// Who gave a response: indices of the group and within it.
type Member = (usize, usize);

/// A row, and who gave each of its distinct responses.
struct Packed {
    row: Row,
    pieces: Vec<Vec<Member>>,
}

/// Sums over an update beside those of the objective.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    pub tally: Tally,
    pub entropy: f64,
    /// Largest and summed |trainer - sampler| log-probability of a token.
    pub gap: f64,
    pub gap_sum: f64,
    /// Tokens that went through the trainer, prompts among them.
    pub trained: u64,
    /// Some coefficient was not 0.
    pub reached: bool,
}

fn pack(groups: &[Group], settings: &Settings) -> Vec<Packed> {
    let mut out: Vec<Packed> = Vec::new();
    for (g, group) in groups.iter().enumerate() {
        if settings.objective.kl == 0.0 && group.flat() {
            continue;
        }
        let mut prompts: Vec<&Arc<[u32]>> = Vec::new();
        for sample in &group.samples {
            if !prompts.contains(&&sample.prompt) {
                prompts.push(&sample.prompt);
            }
        }
        let of_prompts: usize = prompts.iter().map(|p| p.len()).sum();
        let size = of_prompts + group.samples.iter().map(|s| s.ids.len()).sum::<usize>();
        if out.last().is_none_or(|p| p.row.ids.len() + size > settings.row_tokens) {
            out.push(Packed { row: Row::default(), pieces: Vec::new() });
        }
        let Some(Packed { row, pieces }) = out.last_mut() else { continue };
        for prompt in prompts {
            let root = row.add(0, None, prompt, |_| false);
            row.members.pop();
            let first = pieces.len();
            for (s, sample) in group.samples.iter().enumerate().filter(|(_, s)| s.prompt == *prompt) {
                let equal = pieces[first..].iter_mut().find(|p| group.samples[p[0].1].ids == sample.ids);
                if let Some(piece) = equal {
                    piece.push((g, s));
                    continue;
                }
                row.add(pieces.len(), Some(root), &sample.ids, |_| true);
                pieces.push(vec![(g, s)]);
            }
        }
    }
    out
}

/// Log-probabilities of each piece's tokens.
fn score_row(model: &Model, packed: &Packed, temperature: f32) -> Result<Vec<Vec<f32>>, OpError> {
    let row = &packed.row;
    let stats = model.score(&row.ids, &row.packing, &row.targets, temperature).map_err(failed)?;
    Ok(row.members.iter().map(|(_, range)| stats[range.clone()].iter().map(|s| s.logp).collect()).collect())
}

/// Where there is a correction: asks the trainer for its own log-probabilities before the first update of a batch, and
/// weights each response by their distance from the sampler's. Costs one forward pass over the batch.
///
/// # Errors
/// candle's; a log-probability that is not finite.
pub fn score(model: &Model, groups: &mut [Group], settings: &Settings) -> Result<(), OpError> {
    let Some(correction) = settings.objective.correction else { return Ok(()) };
    for packed in pack(groups, settings) {
        let logps = score_row(model, &packed, settings.temperature)?;
        for (members, logps) in packed.pieces.iter().zip(&logps) {
            for member in members {
                check(groups, *member, logps, "the trainer's log-probability")?;
                let sample = &mut groups[member.0].samples[member.1];
                sample.weights = Some(correction.weights(logps, &sample.sampling, None));
                sample.scored = Some(logps.clone());
            }
        }
    }
    Ok(())
}

/// Which number of which response is not finite.
fn not_finite(groups: &[Group], (g, s): Member, token: usize, what: &str, value: f64) -> OpError {
    let (group, position) = (&groups[g], token + 1);
    OpError::with_help(
        format!(
            "{what} of token {position} of response {} of {} to question {} is {value}, expected a finite number",
            s + 1,
            group.samples.len(),
            group.question
        ),
        "lower the learning rate, or set `clip_high` or `delta`; the weights before this update were kept",
    )
}

fn check(groups: &[Group], member: Member, values: &[f32], what: &str) -> Result<(), OpError> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(not_finite(groups, member, i, what, f64::from(values[i]))),
        None => Ok(()),
    }
}

/// Adds the gradients of one update to `model` and says what it saw. `reference` is wanted where the objective has a KL term.
///
/// # Errors
/// candle's; names the response whose log-probability, loss or gradient is not finite.
pub fn accumulate(
    model: &mut Model,
    reference: Option<&Model>,
    groups: &[Group],
    settings: &Settings,
) -> Result<Outcome, OpError> {
    let objective = &settings.objective;
    let size = Size {
        tokens: groups.iter().flat_map(|g| &g.samples).map(|s| s.ids.len()).sum(),
        responses: groups.iter().map(|g| g.samples.len()).sum(),
        longest: settings.longest,
    };
    let mut out = Outcome::default();
    for packed in pack(groups, settings) {
        let row = &packed.row;
        let references = match reference {
            Some(reference) if objective.kl > 0.0 => Some(score_row(reference, &packed, settings.temperature)?),
            _ => None,
        };
        let sample = |(g, s): Member| &groups[g].samples[s];
        let response = |piece: usize, member: Member| {
            let sample = sample(member);
            Response {
                credit: Credit::Response(sample.advantage),
                old: Some(sample.old()),
                reference: references.as_ref().map(|r| r[piece].as_slice()),
                mask: None,
                weights: sample.weights.as_ref(),
            }
        };
        // terms of each member of each piece, token by token
        let mut terms: Vec<Vec<Vec<Option<Term>>>> = match objective.needs_whole() {
            true => {
                let logps = score_row(model, &packed, settings.temperature)?;
                let of = |(p, members): (usize, &Vec<Member>)| {
                    members.iter().map(|m| objective.response(&logps[p], &response(p, *m), size)).collect()
                };
                packed.pieces.iter().enumerate().map(of).collect()
            }
            false => packed.pieces.iter().map(|members| vec![Vec::new(); members.len()]).collect(),
        };
        let mut owner = Vec::with_capacity(row.targets.len());
        for (piece, range) in &row.members {
            owner.extend((0..range.len()).map(|i| (*piece, i)));
        }
        let mut wrong: Option<OpError> = None;
        let coefficient = |target: usize, stats: TokenStats| {
            let (piece, i) = owner[target];
            let logp = f64::from(stats.logp);
            let mut sum = 0.0;
            for (member, terms) in packed.pieces[piece].iter().zip(&mut terms[piece]) {
                let sampling = &sample(*member).sampling;
                if !objective.needs_whole() {
                    let share = objective.share(size, sampling.len());
                    terms.push(objective.token(i, logp, share, &response(piece, *member)));
                }
                let Some(term) = terms[i] else { continue };
                sum += term.gradient;
                let numbers = [("the log-probability", logp), ("the loss", term.loss), ("the gradient", term.gradient)];
                // as float32, which is what the gradient becomes
                let bad = numbers.iter().find(|(_, n)| !(*n as f32).is_finite());
                if let (None, Some((what, value))) = (&wrong, bad) {
                    wrong = Some(not_finite(groups, *member, i, what, *value));
                }
                let gap = (logp - f64::from(sampling[i])).abs();
                out.gap = out.gap.max(gap);
                out.gap_sum += gap;
                out.entropy += f64::from(stats.entropy);
            }
            out.reached |= sum != 0.0;
            sum as f32
        };
        model.train(&row.ids, &row.packing, &row.targets, settings.temperature, coefficient).map_err(failed)?;
        if let Some(error) = wrong {
            return Err(error);
        }
        out.trained += row.ids.len() as u64;
        for (members, terms) in packed.pieces.iter().zip(&terms) {
            for (member, terms) in members.iter().zip(terms) {
                out.tally.add(objective.ratio, terms);
                if let (Some(weights), Some(correction)) = (&sample(*member).weights, objective.correction) {
                    out.tally.add_weights(weights, None, correction.cap);
                }
            }
        }
    }
    Ok(out)
}
