//! How a token is drawn: temperature, then top-k, top-p and min-p, in the order of transformers.
//!
//! Invariants: the draw is a function of logits, settings and random stream; sums run in the order of ids, so a tie or a
//! rounding never depends on a sort; log-probabilities come from `row_stats`, the trainer's own code.

use actloom_engine::op::OpError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::nn::cpu::rows::row_stats;
use crate::nn::cpu::simd::{exp, versions};
use crate::rng::Rng;

/// How answers are drawn, and where they end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the likeliest token, the lowest id of equals.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub temperature: f64,
    /// Only the k likeliest tokens, and those as likely as the k-th; 0: all.
    #[schemars(range(min = 0, max = 10000000))]
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability; 1: all.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub top_p: f64,
    /// Only tokens at least this share as likely as the likeliest; 0: all.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_p: f64,
    /// Longest answer, in tokens.
    #[schemars(range(min = 1, max = 1000000))]
    pub max_tokens: usize,
    /// Texts that end an answer; the answer's text ends before them.
    pub stop: Vec<String>,
    /// Tokens that end an answer, beside the model's own.
    pub stop_ids: Vec<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            max_tokens: 256,
            stop: Vec::new(),
            stop_ids: Vec::new(),
        }
    }
}

impl Sampling {
    /// The plain distribution at a temperature.
    pub fn plain(temperature: f64, max_tokens: usize) -> Self {
        Sampling { temperature, max_tokens, ..Sampling::default() }
    }

    /// Refuses settings that mean nothing.
    ///
    /// # Errors
    /// Names the setting and its range.
    pub fn check(&self) -> Result<(), OpError> {
        let refuse = |name: &str, found: &dyn std::fmt::Display, range: &str| {
            Err(OpError::failed(format!("`{name}` is {found}, expected {range}")))
        };
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return refuse("temperature", &self.temperature, "a number not below 0");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", &self.top_p, "above 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return refuse("min_p", &self.min_p, "from 0 to 1");
        }
        if self.max_tokens == 0 {
            return refuse("max_tokens", &0, "at least 1");
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(OpError::failed("a text in `stop` is empty, expected at least one character"));
        }
        Ok(())
    }

    /// Nothing is cut off the distribution.
    pub fn is_whole(&self) -> bool {
        self.temperature == 0.0 || (self.top_k == 0 && self.top_p >= 1.0 && self.min_p <= 0.0)
    }
}

/// A drawn token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    pub id: u32,
    /// Log-probability under the distribution it was drawn from: tempered, held to allowed answers, cut, renormalised.
    /// At temperature 0 nothing is drawn, and the distribution is the one at temperature 1.
    pub logp: f32,
    /// Log-probability under softmax(logits): no temperature, nothing cut.
    pub full: f32,
}

/// A draw that somebody else makes.
#[derive(Clone, Debug)]
pub struct Draw {
    pub settings: Sampling,
    /// Ids that the draw is held to, ascending.
    pub open: Option<Vec<u32>>,
    /// (seed, stream, position) of the uniform number.
    pub place: (u64, u64, u64),
}

/// Buffers of [`draw`], kept between calls.
#[derive(Default)]
pub struct Scratch {
    masked: Vec<f32>,
    weights: Vec<f32>,
    ids: Vec<u32>,
}

versions! {
/// p = exp(z scale - lse)
fn probabilities(z: &[f32], scale: f32, lse: f32, p: &mut [f32]) {
    for (p, z) in p.iter_mut().zip(z) {
        *p = exp(z * scale - lse);
    }
}
}

/// Draws from the distribution that `settings` makes of `logits`, held to the ids of `open` if there are any.
pub fn draw(logits: &[f32], settings: &Sampling, open: Option<&[u32]>, rng: &mut Rng, scratch: &mut Scratch) -> Drawn {
    let Scratch { masked, weights, ids } = scratch;
    let held = open.is_some() || !settings.is_whole();
    if held {
        masked.clear();
        match open {
            None => masked.extend_from_slice(logits),
            Some(open) => {
                masked.resize(logits.len(), f32::NEG_INFINITY);
                open.iter().for_each(|id| masked[*id as usize] = logits[*id as usize]);
            }
        }
        if !settings.is_whole() {
            cut(masked, settings, weights, ids);
        }
    }
    let z: &[f32] = if held { masked } else { logits };
    let greedy = settings.temperature == 0.0;
    let temperature = if greedy { 1.0 } else { settings.temperature as f32 };
    let id = if greedy { likeliest(z) } else { pick(z, temperature, rng, weights) };
    let logp = row_stats(z, id, temperature).logp;
    let full = if held || temperature != 1.0 { row_stats(logits, id, 1.0).logp } else { logp };
    Drawn { id: id as u32, logp, full }
}

/// The likeliest token, the lowest id of equals.
fn likeliest(z: &[f32]) -> usize {
    let mut best = 0;
    for (i, x) in z.iter().enumerate() {
        if *x > z[best] {
            best = i;
        }
    }
    best
}

/// One token of softmax(z / temperature): the first at which the sum of probabilities, by id, passes a uniform number.
fn pick(z: &[f32], temperature: f32, rng: &mut Rng, weights: &mut Vec<f32>) -> usize {
    weights.resize(z.len(), 0.0);
    probabilities(z, 1.0 / temperature, row_stats(z, 0, temperature).lse, weights);
    let mut left = rng.uniform();
    let mut chosen = 0;
    for (i, p) in weights.iter().enumerate() {
        if *p > 0.0 {
            chosen = i;
            left -= f64::from(*p);
            if left < 0.0 {
                break;
            }
        }
    }
    chosen
}

/// Puts what top-k, top-p and min-p cut off, in this order, out of reach.
fn cut(z: &mut [f32], settings: &Sampling, weights: &mut Vec<f32>, ids: &mut Vec<u32>) {
    let top = z[likeliest(z)];
    // the order of cutting: likelier first, then the lower id
    let order = |z: &[f32], a: u32, b: u32| z[b as usize].total_cmp(&z[a as usize]).then(a.cmp(&b));
    // every limit is a smallest logit that stays; what ties with it stays, but for top-p, which splits ties by id
    if settings.top_k > 0 && settings.top_k < z.len() {
        ids.clear();
        ids.extend(0..z.len() as u32);
        let (_, kth, _) = ids.select_nth_unstable_by(settings.top_k - 1, |a, b| order(z, *a, *b));
        let limit = z[*kth as usize];
        z.iter_mut().filter(|z| **z < limit).for_each(|z| *z = f32::NEG_INFINITY);
    }
    if settings.top_p >= 1.0 && settings.min_p <= 0.0 {
        return;
    }
    // probabilities up to a factor: the likeliest has 1
    let scale = 1.0 / settings.temperature as f32;
    weights.resize(z.len(), 0.0);
    probabilities(z, scale, top * scale, weights);
    if settings.top_p < 1.0 {
        let total: f64 = weights.iter().map(|p| f64::from(*p)).sum();
        let want = settings.top_p * total;
        ids.clear();
        ids.extend((0..z.len() as u32).filter(|id| weights[*id as usize] > 0.0));
        // sorted as far as needed: a token stays while what is likelier does not reach `want`
        let (mut sorted, mut sum, mut kept) = (0, 0.0, 0);
        while kept == sorted && sorted < ids.len() {
            let next = (sorted * 4).max(64).min(ids.len());
            if next < ids.len() {
                ids[sorted..].select_nth_unstable_by(next - sorted - 1, |a, b| order(z, *a, *b));
            }
            ids[sorted..next].sort_unstable_by(|a, b| order(z, *a, *b));
            sorted = next;
            while kept < sorted && sum < want {
                sum += f64::from(weights[ids[kept] as usize]);
                kept += 1;
            }
        }
        for id in &ids[kept.max(1)..] {
            z[*id as usize] = f32::NEG_INFINITY;
        }
    }
    if settings.min_p > 0.0 {
        for (z, p) in z.iter_mut().zip(weights) {
            if f64::from(*p) < settings.min_p {
                *z = f32::NEG_INFINITY;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stays possible, with its probability.
    fn left(logits: &[f32], settings: &Sampling) -> Vec<(u32, f32)> {
        let mut z = logits.to_vec();
        cut(&mut z, settings, &mut Vec::new(), &mut Vec::new());
        let t = settings.temperature as f32;
        (0..z.len()).filter(|i| z[*i].is_finite()).map(|i| (i as u32, row_stats(&z, i, t).logp.exp())).collect()
    }

    fn ids(logits: &[f32], settings: &Sampling) -> Vec<u32> {
        left(logits, settings).into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn top_k_keeps_ties_with_the_last_and_top_p_splits_them_by_id() {
        let z = [1.0, 3.0, 2.0, 2.0, 0.0, 2.0];
        let k = |top_k| Sampling { top_k, ..Sampling::default() };
        assert_eq!(ids(&z, &k(1)), [1]);
        assert_eq!(ids(&z, &k(2)), [1, 2, 3, 5]);
        assert_eq!(ids(&z, &k(5)), [0, 1, 2, 3, 5]);
        assert_eq!(ids(&z, &k(100)), [0, 1, 2, 3, 4, 5]);
        // probabilities 0.25 each: half is reached by the two lowest ids
        let p = Sampling { top_p: 0.5, ..Sampling::default() };
        assert_eq!(ids(&[7.0; 4], &p), [0, 1]);
        assert_eq!(ids(&[0.0, 9.0], &Sampling { top_p: 1e-9, ..Sampling::default() }), [1]);
    }

    #[test]
    fn min_p_is_a_share_of_the_likeliest_after_the_temperature() {
        // softmax at temperature 0.5 of ln(8, 4, 1): 64 : 16 : 1
        let z = [8f32.ln(), 4f32.ln(), 0.0];
        let p = |min_p| Sampling { min_p, temperature: 0.5, ..Sampling::default() };
        assert_eq!(ids(&z, &p(0.24)), [0, 1]);
        assert_eq!(ids(&z, &p(0.26)), [0]);
        assert_eq!(ids(&z, &p(0.015)), [0, 1, 2]);
        let left = left(&z, &p(0.24));
        assert!((left[0].1 - 0.8).abs() < 1e-6 && (left[1].1 - 0.2).abs() < 1e-6, "{left:?}");
    }

    #[test]
    fn the_filters_together_are_those_of_transformers() {
        // transformers 5.23: TemperatureLogitsWarper(0.7), TopKLogitsWarper(6), TopPLogitsWarper(0.8),
        // MinPLogitsWarper(0.15) on these logits, one after the other; the ids that are left
        let z = [0.3, -1.2, 2.1, 1.9, 0.0, 1.4, -0.5, 1.1, 0.9, 2.0];
        let all = Sampling { temperature: 0.7, top_k: 6, top_p: 0.8, min_p: 0.15, ..Sampling::default() };
        let mut steps = Vec::new();
        for (top_k, top_p, min_p) in [(6, 1.0, 0.0), (6, 0.8, 0.0), (6, 0.8, 0.15), (6, 0.8, 0.5), (0, 1.0, 0.3)] {
            steps.push(ids(&z, &Sampling { top_k, top_p, min_p, ..all.clone() }));
        }
        let want: [&[u32]; 5] = [&[2, 3, 5, 7, 8, 9], &[2, 3, 5, 9], &[2, 3, 5, 9], &[2, 3, 9], &[2, 3, 5, 9]];
        assert_eq!(steps, want.map(<[u32]>::to_vec));
    }

    #[test]
    fn the_kept_part_of_a_long_vocabulary_is_that_of_a_full_sort() {
        let mut rng = Rng::new(4, 4);
        for round in 0..40 {
            let z: Vec<f32> = (0..3000).map(|_| (rng.normal() * 2.0 * 8.0).round() as f32 / 8.0).collect();
            let top_p = 0.02 + 0.97 * rng.uniform();
            let mut order: Vec<u32> = (0..3000).collect();
            order.sort_by(|a, b| z[*b as usize].total_cmp(&z[*a as usize]).then(a.cmp(b)));
            let top = z[order[0] as usize];
            let p: Vec<f64> = z.iter().map(|z| f64::from(exp(z - top))).collect();
            let want = top_p * p.iter().sum::<f64>();
            let (mut sum, mut kept) = (0.0, Vec::new());
            for id in order {
                if sum < want {
                    kept.push(id);
                }
                sum += p[id as usize];
            }
            kept.sort_unstable();
            assert_eq!(ids(&z, &Sampling { top_p, ..Sampling::default() }), kept, "round {round}, top_p {top_p}");
        }
    }

    #[test]
    fn draws_follow_the_distribution_and_carry_both_log_probabilities() {
        let mut rng = Rng::new(5, 0);
        let mut scratch = Scratch::default();
        let z = [0.0, 1.0, 5.0, 2.0];
        let mut counts = [0u32; 4];
        let settings = Sampling { temperature: 2.0, ..Sampling::default() };
        for _ in 0..8000 {
            let drawn = draw(&z, &settings, Some(&[1, 3]), &mut rng, &mut scratch);
            counts[drawn.id as usize] += 1;
            let among = [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 2.0];
            assert_eq!(drawn.logp, row_stats(&among, drawn.id as usize, 2.0).logp);
            assert_eq!(drawn.full, row_stats(&z, drawn.id as usize, 1.0).logp);
        }
        assert_eq!((counts[0], counts[2]), (0, 0));
        let share = f64::from(counts[3]) / 8000.0;
        let want = 1.0 / (1.0 + (-0.5f64).exp());
        assert!((share - want).abs() < 0.02, "{share}, expected {want}");
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let drawn = draw(&[1.0, 3.0, 3.0], &greedy, None, &mut rng, &mut scratch);
        assert_eq!((drawn.id, drawn.logp), (1, drawn.full));
    }

    #[test]
    fn settings_without_meaning_are_refused_by_name() {
        let d = Sampling::default;
        let cases: [(Sampling, &str); 5] = [
            (Sampling { temperature: f64::NAN, ..d() }, "temperature"),
            (Sampling { top_p: 0.0, ..d() }, "top_p"),
            (Sampling { min_p: 1.5, ..d() }, "min_p"),
            (Sampling { max_tokens: 0, ..d() }, "max_tokens"),
            (Sampling { stop: vec![String::new()], ..d() }, "stop"),
        ];
        for (settings, name) in cases {
            let error = settings.check().unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
        d().check().unwrap();
    }
}
