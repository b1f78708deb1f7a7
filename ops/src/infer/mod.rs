//! Sampling: batched decoding over caches, with one random stream a request.
//!
//! Invariants: a request's tokens do not depend on what else is in the batch (kernels are batch-invariant and streams
//! are its own); a prompt that several requests share is computed once; log-probabilities come from the code that the
//! trainer uses, so they are equal to the bit.

use actloom_engine::op::OpError;

use crate::model::{Model, Sequence, failed};
use crate::nn::cpu::rows::row_stats;
use crate::nn::cpu::simd::exp;
use crate::rng::Rng;

/// One thing to be continued.
pub struct Request {
    /// What the model has seen already; its cache goes on.
    pub sequence: Sequence,
    /// Tokens to feed before the first sample; at least one.
    pub feed: Vec<u32>,
    /// 0 takes the likeliest token (the lowest id of equals).
    pub temperature: f32,
    pub max_tokens: usize,
    /// Answers to be held to, as token ids with their end token; empty means free.
    pub allowed: Vec<Vec<u32>>,
    pub rng: Rng,
}

/// What became of a request.
pub struct Completion {
    /// The cache after everything but the last sampled token.
    pub sequence: Sequence,
    /// Sampled tokens, the end token included if it was reached.
    pub ids: Vec<u32>,
    /// Log-probability of each, under the distribution it was drawn from.
    pub logps: Vec<f32>,
    /// An end token was reached.
    pub ended: bool,
}

/// Largest number of requests that decode side by side.
pub const BATCH: usize = 96;

/// A token drawn from softmax(logits / temperature), and its log-probability.
pub fn draw(logits: &[f32], temperature: f32, rng: &mut Rng) -> (u32, f32) {
    if temperature == 0.0 {
        let mut best = 0;
        for (i, z) in logits.iter().enumerate() {
            if *z > logits[best] {
                best = i;
            }
        }
        return (best as u32, row_stats(logits, best, 1.0).logp);
    }
    let scale = 1.0 / temperature;
    let lse = row_stats(logits, 0, temperature).lse;
    let mut left = rng.uniform();
    let mut chosen = 0;
    for (i, z) in logits.iter().enumerate() {
        let p = f64::from(exp(z * scale - lse));
        if p > 0.0 {
            chosen = i;
            left -= p;
            if left < 0.0 {
                break;
            }
        }
    }
    (chosen as u32, row_stats(logits, chosen, temperature).logp)
}

/// Puts every token that cannot lead to an allowed answer out of reach.
pub fn hold(logits: &mut [f32], said: &[u32], allowed: &[Vec<u32>]) {
    let mut open: Vec<u32> =
        allowed.iter().filter(|a| a.len() > said.len() && a.starts_with(said)).map(|a| a[said.len()]).collect();
    open.sort_unstable();
    let mut next = open.iter().peekable();
    for (id, z) in logits.iter_mut().enumerate() {
        while next.next_if(|n| (**n as usize) < id).is_some() {}
        if next.peek().is_none_or(|n| **n as usize != id) {
            *z = f32::NEG_INFINITY;
        }
    }
}

/// Completes every request; the order of the answers is that of the requests. `stopping` ends early with `Interrupted`.
///
/// # Errors
/// The model's, and `Interrupted`.
pub fn complete(
    model: &Model,
    eos: &[u32],
    requests: Vec<Request>,
    stopping: &dyn Fn() -> bool,
) -> Result<Vec<Completion>, OpError> {
    struct Active {
        index: usize,
        request: Request,
        ids: Vec<u32>,
        logps: Vec<f32>,
    }
    let _span = tracing::debug_span!("complete", requests = requests.len()).entered();
    let mut done: Vec<Option<Completion>> = requests.iter().map(|_| None).collect();
    let mut waiting = requests.into_iter().enumerate();
    let mut active: Vec<Active> = Vec::new();
    loop {
        while active.len() < BATCH
            && let Some((index, request)) = waiting.next()
        {
            active.push(Active { index, request, ids: Vec::new(), logps: Vec::new() });
        }
        if active.is_empty() {
            break;
        }
        if stopping() {
            return Err(OpError::Interrupted);
        }
        let mut batch: Vec<_> =
            active.iter_mut().map(|a| (&mut a.request.sequence, a.request.feed.as_slice())).collect();
        let mut logits = model.extend(&mut batch).and_then(|z| z.to_vec2::<f32>()).map_err(failed)?;
        for (a, z) in active.iter_mut().zip(&mut logits) {
            if !a.request.allowed.is_empty() {
                hold(z, &a.ids, &a.request.allowed);
            }
            let (id, logp) = draw(z, a.request.temperature, &mut a.request.rng);
            a.ids.push(id);
            a.logps.push(logp);
            a.request.feed = vec![id];
        }
        let mut i = 0;
        while i < active.len() {
            let a = &active[i];
            let ended = a.ids.last().is_some_and(|id| eos.contains(id));
            let full = a.request.sequence.len() + 1 >= model.config.max_positions;
            if ended || full || a.ids.len() >= a.request.max_tokens {
                let a = active.remove(i);
                done[a.index] = Some(Completion { sequence: a.request.sequence, ids: a.ids, logps: a.logps, ended });
            } else {
                i += 1;
            }
        }
    }
    Ok(done.into_iter().flatten().collect())
}

/// The cache after a prompt but for its last token, and that token: what several requests start from.
///
/// # Errors
/// The model's.
pub fn prefill(model: &Model, prompt: &[u32]) -> Result<(Sequence, Vec<u32>), OpError> {
    let mut sequence = model.sequence();
    let Some((last, head)) = prompt.split_last() else { return Err(OpError::failed("the prompt has no token")) };
    if !head.is_empty() {
        model.extend(&mut [(&mut sequence, head)]).map_err(failed)?;
    }
    Ok((sequence, vec![*last]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_distribution_and_held_tokens_never_come() {
        let mut rng = Rng::new(5, 0);
        let mut counts = [0u32; 4];
        for _ in 0..8000 {
            let mut z = vec![0.0, 1.0, 5.0, 2.0];
            hold(&mut z, &[9], &[vec![9, 1], vec![9, 3], vec![8, 2]]);
            counts[draw(&z, 1.0, &mut rng).0 as usize] += 1;
        }
        assert_eq!((counts[0], counts[2]), (0, 0));
        let share = f64::from(counts[3]) / 8000.0;
        let want = 1.0 / (1.0 + (-1.0f64).exp());
        assert!((share - want).abs() < 0.02, "{share}, expected {want}");
        assert_eq!(draw(&[1.0, 3.0, 3.0], 0.0, &mut rng).0, 1);
    }
}
