//! One update of policy optimisation: responses as packed rows, their losses and gradients.
//!
//! 1. Prompts with their responses become a forest: what two of them begin with is computed once.
//! 2. What the objective needs beforehand is scored: the reference for KL, the policy itself where a ratio is a whole
//!    response's.
//! 3. Each row goes forward and backward; the objective gives each token's coefficient.
//!
//! Invariants: a target that several responses share has the sum of their coefficients, which is exact; a number that is not
//! finite stops the run, with the response it belongs to, before a weight changes.

use std::sync::Arc;

use actloom_engine::op::OpError;

use super::batch::{Owner, Row};
use super::forest::Forest;
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

/// The responses that take part, and the rows that hold them: owners of targets are places in the list.
fn pack(groups: &[Group], settings: &Settings) -> (Vec<Member>, Vec<Row>) {
    let mut members = Vec::new();
    let mut forest = Forest::new(settings.row_tokens);
    for (g, group) in groups.iter().enumerate() {
        if settings.objective.kl == 0.0 && group.flat() {
            continue;
        }
        for (s, sample) in group.samples.iter().enumerate() {
            let prompt = sample.prompt.len();
            assert!(prompt > 0, "BUG: a response has no prompt, and nothing predicts its first token");
            forest.add(members.len(), &[&*sample.prompt, &sample.ids].concat(), |token| token >= prompt);
            members.push((g, s));
        }
    }
    (members, forest.rows())
}

/// Log-probabilities of each member's tokens.
fn score_rows(
    model: &Model,
    groups: &[Group],
    (members, rows): (&[Member], &[Row]),
    temperature: f32,
) -> Result<Vec<Vec<f32>>, OpError> {
    let samples: Vec<&Sample> = members.iter().map(|(g, s)| &groups[*g].samples[*s]).collect();
    let mut logps: Vec<Vec<f32>> = samples.iter().map(|s| vec![0.0; s.ids.len()]).collect();
    for row in rows {
        let stats = model.score(&row.ids, &row.packing, &row.targets, temperature).map_err(failed)?;
        for (stats, owners) in stats.iter().zip(&row.owners) {
            for Owner { member, token } in owners {
                logps[*member][token - samples[*member].prompt.len()] = stats.logp;
            }
        }
    }
    Ok(logps)
}

/// Where there is a correction: asks the trainer for its own log-probabilities before the first update of a batch, and
/// weights each response by their distance from the sampler's. Costs one forward pass over the batch.
///
/// # Errors
/// candle's; a log-probability that is not finite.
pub fn score(model: &Model, groups: &mut [Group], settings: &Settings) -> Result<(), OpError> {
    let Some(correction) = settings.objective.correction else { return Ok(()) };
    let (members, rows) = pack(groups, settings);
    let logps = score_rows(model, groups, (&members, &rows), settings.temperature)?;
    for (member, logps) in members.into_iter().zip(logps) {
        check(groups, member, &logps, "the trainer's log-probability")?;
        let sample = &mut groups[member.0].samples[member.1];
        sample.weights = Some(correction.weights(&logps, &sample.sampling, None));
        sample.scored = Some(logps);
    }
    Ok(())
}

/// Which number of which response is not finite.
fn not_finite(groups: &[Group], (g, s): Member, token: usize, what: &str, value: f64) -> OpError {
    let (group, position) = (&groups[g], token + 1);
    OpError::with_help(
        format!(
            "{what} of token {position} of response {} of {} to question {} is {value:e}, expected a number that float32 holds",
            s + 1,
            group.samples.len(),
            group.question
        ),
        "lower the learning rate, `kl` if there is one, or set `clip_high` or `delta`; the weights before this update were kept",
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
    let (members, rows) = pack(groups, settings);
    let of_rows = |model: &Model| score_rows(model, groups, (&members, &rows), settings.temperature);
    let references = match reference {
        Some(reference) if objective.kl > 0.0 => Some(of_rows(reference)?),
        _ => None,
    };
    let samples: Vec<&Sample> = members.iter().map(|(g, s)| &groups[*g].samples[*s]).collect();
    let response = |member: usize| Response {
        credit: Credit::Response(samples[member].advantage),
        old: Some(samples[member].old()),
        reference: references.as_ref().map(|r| r[member].as_slice()),
        mask: None,
        weights: samples[member].weights.as_ref(),
    };
    // terms of each member, token by token
    let mut terms: Vec<Vec<Option<Term>>> = match objective.needs_whole() {
        true => {
            let logps = of_rows(model)?;
            logps.iter().enumerate().map(|(m, logps)| objective.response(logps, &response(m), size)).collect()
        }
        false => samples.iter().map(|s| vec![None; s.ids.len()]).collect(),
    };
    let mut out = Outcome::default();
    for row in &rows {
        let mut wrong: Option<OpError> = None;
        let coefficient = |target: usize, stats: TokenStats| {
            let logp = f64::from(stats.logp);
            let mut sum = 0.0;
            for Owner { member, token } in &row.owners[target] {
                let sample = samples[*member];
                let i = token - sample.prompt.len();
                if !objective.needs_whole() {
                    let share = objective.share(size, sample.ids.len());
                    terms[*member][i] = objective.token(i, logp, share, &response(*member));
                }
                let Some(term) = terms[*member][i] else { continue };
                sum += term.gradient;
                let numbers = [("the log-probability", logp), ("the loss", term.loss), ("the gradient", term.gradient)];
                // as float32, which is what the gradient becomes
                let bad = numbers.iter().find(|(_, n)| !(*n as f32).is_finite());
                if let (None, Some((what, value))) = (&wrong, bad) {
                    wrong = Some(not_finite(groups, members[*member], i, what, *value));
                }
                let gap = (logp - f64::from(sample.sampling[i])).abs();
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
    }
    for (sample, terms) in samples.iter().zip(&terms) {
        out.tally.add(objective.ratio, terms);
        if let (Some(weights), Some(correction)) = (&sample.weights, objective.correction) {
            out.tally.add_weights(weights, None, correction.cap);
        }
    }
    Ok(out)
}
