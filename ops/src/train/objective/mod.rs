//! Objectives of policy optimisation: from log-probabilities and advantages to a loss, its gradient and its metrics.
//!
//! Per token with log-probability l, that of the policy it was sampled from `old`, advantage A, reference `ref`:
//!
//! 1. log-ratio = l - old, or for `Level::Sequence` its mean over the response's counting tokens (GSPO); r = exp(log-ratio).
//! 2. loss = -min(min(r, delta) A, clip(r, 1 - low, 1 + high) A) (`Surrogate::Clip`), or -c A l with the constant
//!    c = min(r, 1 + high) (`Surrogate::Weight`, CISPO).
//! 3. It is multiplied by a constant weight for the gap between sampler and trainer, where there is a `Correction`.
//! 4. beta KL(policy || reference), estimated from the token, is added after clipping and weighting.
//! 5. Tokens are weighted to one number by `Aggregation`.
//!
//! Invariants: everything is computed in float64, from float32 or float64; an advantage of 0 gives a surrogate of exactly 0
//! and no gradient, whatever the ratio; a token that does not count has no part in any number.

pub mod advantage;
pub mod dpo;
pub mod gigpo;
pub mod math;
mod tally;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use math::exp;
pub use tally::Tally;

/// What has a ratio, or a weight, of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Each token.
    #[default]
    Token,
    /// Each response: the geometric mean of its tokens' ratios (GSPO).
    Sequence,
}

/// How a ratio becomes a loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Surrogate {
    /// -min(ratio A, clip(ratio) A): outside the range a token has no gradient (PPO, GRPO).
    #[default]
    Clip,
    /// -min(ratio, 1 + clip_high) A logp, the ratio a constant: every token keeps its gradient (CISPO).
    Weight,
}

/// How token losses become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Aggregation {
    /// Sum over tokens divided by the update's token count (DAPO).
    #[default]
    Token,
    /// Mean over tokens of each response, then over responses (GRPO).
    Sequence,
    /// Sum over tokens divided by responses times `max_tokens` (Dr. GRPO).
    Constant,
}

/// Estimates of KL(policy || reference) from one token; d = ref - logp. Schulman, 2020.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KlEstimator {
    /// -d: unbiased as a number; on policy its own gradient is 0 on average.
    K1,
    /// d^2 / 2: its gradient is that of the divergence on policy.
    K2,
    /// exp(d) - d - 1: unbiased, never negative.
    #[default]
    K3,
}

impl KlEstimator {
    /// The estimate for d = ref - logp.
    pub fn value(self, d: f64) -> f64 {
        self.at(d).0
    }

    /// The estimate and its derivative with respect to the policy's log-probability.
    fn at(self, d: f64) -> (f64, f64) {
        match self {
            KlEstimator::K1 => (-d, 1.0),
            KlEstimator::K2 => (d * d / 2.0, -d),
            KlEstimator::K3 => (exp(d) - d - 1.0, 1.0 - exp(d)),
        }
    }
}

/// What happens to a weight above the cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// It becomes the cap.
    Truncate,
    /// It becomes 0.
    Mask,
}

/// Importance weights for tokens that another engine sampled: exp(old - sampling), where `old` is the trainer's number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Correction {
    /// Of each token, or one for the whole response: exp of the sum.
    pub level: Level,
    pub bound: Bound,
    pub cap: f64,
}

/// Weights of one response's tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    /// As used.
    pub used: Vec<f64>,
    /// Before the cap.
    pub raw: Vec<f64>,
}

impl Correction {
    /// Weights of a response; tokens that do not count have no part in the sum.
    pub fn weights<T: Copy + Into<f64>>(&self, old: &[T], sampling: &[T], mask: Option<&[bool]>) -> Weights {
        let counts = |i: usize| mask.is_none_or(|m| m[i]);
        let gaps: Vec<f64> = old.iter().zip(sampling).map(|(o, s)| (*o).into() - (*s).into()).collect();
        let raw: Vec<f64> = match self.level {
            Level::Token => gaps.into_iter().map(exp).collect(),
            Level::Sequence => {
                let sum: f64 = gaps.iter().enumerate().filter(|(i, _)| counts(*i)).map(|(_, g)| g).sum();
                vec![exp(sum); gaps.len()]
            }
        };
        let bound = |w: &f64| match self.bound {
            Bound::Truncate => w.min(self.cap),
            Bound::Mask if *w > self.cap => 0.0,
            Bound::Mask => *w,
        };
        Weights { used: raw.iter().map(bound).collect(), raw }
    }
}

/// An objective: the settings of steps 1 to 5.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    pub ratio: Level,
    pub surrogate: Surrogate,
    /// How far below 1 the ratio may fall, for bad responses; not used by `Surrogate::Weight`.
    pub clip_low: f64,
    /// How far above 1 it may rise, for good responses.
    pub clip_high: f64,
    /// Largest ratio that counts, for bad responses too.
    pub delta: Option<f64>,
    pub correction: Option<Correction>,
    /// Weight of the KL term; 0 leaves it out.
    pub kl: f64,
    pub kl_estimator: KlEstimator,
    /// Multiplies the estimate by the ratio, so that it is unbiased off policy too.
    pub kl_times_ratio: bool,
    pub aggregation: Aggregation,
}

impl Default for Objective {
    fn default() -> Self {
        Objective {
            ratio: Level::Token,
            surrogate: Surrogate::Clip,
            clip_low: 0.2,
            clip_high: 0.2,
            delta: None,
            correction: None,
            kl: 0.0,
            kl_estimator: KlEstimator::K3,
            kl_times_ratio: false,
            aggregation: Aggregation::Token,
        }
    }
}

/// Sizes of the whole update, which divide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Tokens that count.
    pub tokens: usize,
    pub responses: usize,
    /// Longest response allowed, in tokens.
    pub longest: usize,
}

/// Advantages of a response's tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Credit<'a> {
    /// One for all of them.
    Response(f64),
    /// One each.
    Tokens(&'a [f64]),
}

/// A response as the objective sees it, but for the policy's log-probabilities; slices have one entry a token.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a, T> {
    pub credit: Credit<'a>,
    /// `None`: the policy itself, so that every ratio is 1 and still has its gradient.
    pub old: Option<&'a [T]>,
    /// Wanted where `Objective::kl` is not 0.
    pub reference: Option<&'a [T]>,
    /// Which tokens count; `None`: all.
    pub mask: Option<&'a [bool]>,
    /// Wanted where there is a correction.
    pub weights: Option<&'a Weights>,
}

impl<T> Response<'_, T> {
    fn counts(&self, i: usize) -> bool {
        self.mask.is_none_or(|m| m[i])
    }

    fn advantage(&self, i: usize) -> f64 {
        match self.credit {
            Credit::Response(a) => a,
            Credit::Tokens(each) => each[i],
        }
    }
}

/// What one token adds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Term {
    /// Its part of the update's loss.
    pub loss: f64,
    /// d update's loss / d its log-probability.
    pub gradient: f64,
    pub ratio: f64,
    /// The KL estimate, without its weight.
    pub kl: f64,
    /// Clipped for a bad response.
    pub low: bool,
    /// Clipped for a good one.
    pub high: bool,
}

/// A loss, and how it moves with the token's log-probability: by itself, and through the ratio's logarithm.
struct Part {
    term: Term,
    direct: f64,
    through: f64,
}

impl Objective {
    /// Whether a token's gradient needs the log-probabilities of its whole response.
    pub fn needs_whole(&self) -> bool {
        self.ratio == Level::Sequence
    }

    /// Weight of each token of a response of `tokens` counting tokens.
    pub fn share(&self, size: Size, tokens: usize) -> f64 {
        match self.aggregation {
            Aggregation::Token => 1.0 / size.tokens.max(1) as f64,
            Aggregation::Sequence => 1.0 / (tokens.max(1) as f64 * size.responses.max(1) as f64),
            Aggregation::Constant => 1.0 / (size.longest.max(1) as f64 * size.responses.max(1) as f64),
        }
    }

    /// Loss of step 2 and its slope in the ratio's logarithm; whether it was clipped low, high.
    fn clipped(&self, ratio: f64, advantage: f64) -> (f64, f64, bool, bool) {
        let (bottom, top) = (1.0 - self.clip_low, 1.0 + self.clip_high);
        let (low, high) = (advantage < 0.0 && ratio < bottom, advantage > 0.0 && ratio > top);
        if advantage == 0.0 {
            return (0.0, 0.0, false, false); // also where the ratio overflowed
        }
        let cut = self.delta.is_some_and(|delta| ratio > delta);
        let free = self.delta.map_or(ratio, |delta| ratio.min(delta)) * advantage;
        let held = ratio.clamp(bottom, top) * advantage;
        let moves = if free <= held { !cut } else { (bottom..=top).contains(&ratio) };
        let slope = if moves { -ratio * advantage } else { 0.0 };
        (-free.min(held), slope, low, high)
    }

    fn part<T: Copy + Into<f64>>(&self, i: usize, logp: f64, ratio: f64, share: f64, of: &Response<'_, T>) -> Part {
        let advantage = of.advantage(i);
        let mut term = Term { ratio, ..Term::default() };
        let (mut direct, mut through) = (0.0, 0.0);
        match self.surrogate {
            Surrogate::Clip => {
                (term.loss, through, term.low, term.high) = self.clipped(ratio, advantage);
            }
            Surrogate::Weight if advantage == 0.0 => {}
            Surrogate::Weight => {
                let cap = 1.0 + self.clip_high;
                term.high = advantage > 0.0 && ratio > cap;
                direct = -ratio.min(cap) * advantage;
                term.loss = direct * logp;
            }
        }
        assert!(
            self.correction.is_none() || of.weights.is_some(),
            "BUG: a response was not weighted for its correction"
        );
        if let Some(weights) = of.weights {
            let w = weights.used[i];
            (term.loss, direct, through) = (term.loss * w, direct * w, through * w);
        }
        if self.kl > 0.0 {
            let Some(reference) = of.reference else { panic!("BUG: there is a KL term and no reference was scored") };
            let (mut k, mut slope) = self.kl_estimator.at(reference[i].into() - logp);
            if self.kl_times_ratio {
                (k, slope) = (k * ratio, slope * ratio);
                through += self.kl * k;
            }
            term.kl = k;
            term.loss += self.kl * k;
            direct += self.kl * slope;
        }
        term.loss *= share;
        Part { term, direct: direct * share, through: through * share }
    }

    /// One token of a response whose tokens have weight `share`; `None` where it does not count.
    ///
    /// # Panics
    /// Where the ratio is the whole response's: a bug in the caller, which must use [`Objective::response`]. As that, where a
    /// reference or weights are wanted and not given.
    pub fn token<T: Copy + Into<f64>>(&self, i: usize, logp: f64, share: f64, of: &Response<'_, T>) -> Option<Term> {
        assert!(!self.needs_whole(), "BUG: a token's gradient was asked for without its response");
        if !of.counts(i) {
            return None;
        }
        let old = of.old.map_or(logp, |old| old[i].into());
        let part = self.part(i, logp, exp(logp - old), share, of);
        Some(Term { gradient: part.direct + part.through, ..part.term })
    }

    /// All tokens of a response; `None` for those that do not count.
    pub fn response<T: Copy + Into<f64>>(&self, logps: &[T], of: &Response<'_, T>, size: Size) -> Vec<Option<Term>> {
        let counting = (0..logps.len()).filter(|i| of.counts(*i)).count();
        let share = self.share(size, counting);
        if !self.needs_whole() {
            return logps.iter().enumerate().map(|(i, logp)| self.token(i, (*logp).into(), share, of)).collect();
        }
        let gap = |i: usize| of.old.map_or(0.0, |old| logps[i].into() - old[i].into());
        let n = counting.max(1) as f64;
        let ratio = exp((0..logps.len()).filter(|i| of.counts(*i)).map(gap).sum::<f64>() / n);
        let part = |(i, logp): (usize, &T)| of.counts(i).then(|| self.part(i, (*logp).into(), ratio, share, of));
        let parts: Vec<Option<Part>> = logps.iter().enumerate().map(part).collect();
        // the ratio's logarithm is a mean: each token moves it by 1 / n
        let through = parts.iter().flatten().map(|p| p.through).sum::<f64>() / n;
        parts.into_iter().map(|p| p.map(|p| Term { gradient: p.direct + through, ..p.term })).collect()
    }
}

/// Loss, gradients and metrics of a whole update at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    pub loss: f64,
    /// d loss / d log-probability of each token of each response; 0 where it does not count.
    pub gradients: Vec<Vec<f64>>,
    pub tally: Tally,
}

impl Objective {
    /// An update whose log-probabilities are all known; `longest` is the longest response allowed, in tokens.
    pub fn batch<T: Copy + Into<f64>>(&self, responses: &[(&[T], Response<'_, T>)], longest: usize) -> Batch {
        let counting = |(logps, of): &(&[T], Response<'_, T>)| (0..logps.len()).filter(|i| of.counts(*i)).count();
        let size = Size { tokens: responses.iter().map(counting).sum(), responses: responses.len(), longest };
        let mut batch = Batch::default();
        for (logps, of) in responses {
            let terms = self.response(logps, of, size);
            batch.tally.add(self.ratio, &terms);
            if let (Some(weights), Some(correction)) = (of.weights, self.correction) {
                batch.tally.add_weights(weights, of.mask, correction.cap);
            }
            batch.gradients.push(terms.iter().map(|t| t.map_or(0.0, |t| t.gradient)).collect());
        }
        batch.loss = batch.tally.loss;
        batch
    }
}
