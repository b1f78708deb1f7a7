//! Sums over the responses of an update, and the metrics they make.
//!
//! Invariants: shares and means are over tokens, or over responses where the ratio is a response's; a response without
//! a token that counts has no part in them.

use super::{Level, Term, Weights};

/// Sums over an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tally {
    /// Tokens that counted.
    pub tokens: f64,
    /// Loss of the update.
    pub loss: f64,
    /// What ratios are of: tokens or responses.
    units: f64,
    ratio: f64,
    low: f64,
    high: f64,
    kl: f64,
    /// Smallest share of a response that was clipped low, and largest that was clipped high.
    lowest: f64,
    highest: f64,
    weighted: f64,
    weight: f64,
    heaviest: f64,
    cut: f64,
}

impl Default for Tally {
    fn default() -> Self {
        Tally {
            tokens: 0.0,
            loss: 0.0,
            units: 0.0,
            ratio: 0.0,
            low: 0.0,
            high: 0.0,
            kl: 0.0,
            lowest: f64::INFINITY,
            highest: 0.0,
            weighted: 0.0,
            weight: 0.0,
            heaviest: 0.0,
            cut: 0.0,
        }
    }
}

impl Tally {
    /// Adds a response's tokens.
    pub fn add<'a>(&mut self, level: Level, terms: impl IntoIterator<Item = &'a Option<Term>>) {
        let (mut n, mut ratio, mut low, mut high) = (0.0, 0.0, 0.0, 0.0);
        for term in terms.into_iter().flatten() {
            n += 1.0;
            ratio += term.ratio;
            low += f64::from(u8::from(term.low));
            high += f64::from(u8::from(term.high));
            self.kl += term.kl;
            self.loss += term.loss;
        }
        if n == 0.0 {
            return;
        }
        self.tokens += n;
        self.lowest = self.lowest.min(low / n);
        self.highest = self.highest.max(high / n);
        let of = if level == Level::Token { 1.0 } else { n };
        self.units += n / of;
        self.ratio += ratio / of;
        self.low += low / of;
        self.high += high / of;
    }

    /// Adds a response's weights; those above `cap` were cut.
    pub fn add_weights(&mut self, weights: &Weights, mask: Option<&[bool]>, cap: f64) {
        for (_, w) in weights.raw.iter().enumerate().filter(|(i, _)| mask.is_none_or(|m| m[*i])) {
            self.weighted += 1.0;
            self.weight += w;
            self.heaviest = self.heaviest.max(*w);
            self.cut += f64::from(u8::from(*w > cap));
        }
    }

    /// Adds what another saw.
    pub fn merge(&mut self, other: &Tally) {
        self.tokens += other.tokens;
        self.loss += other.loss;
        self.units += other.units;
        self.ratio += other.ratio;
        self.low += other.low;
        self.high += other.high;
        self.kl += other.kl;
        self.lowest = self.lowest.min(other.lowest);
        self.highest = self.highest.max(other.highest);
        self.weighted += other.weighted;
        self.weight += other.weight;
        self.heaviest = self.heaviest.max(other.heaviest);
        self.cut += other.cut;
    }

    /// Share that was clipped low, high.
    pub fn clipped(&self) -> (f64, f64) {
        (self.low / self.units.max(1.0), self.high / self.units.max(1.0))
    }

    /// Smallest share of one response that was clipped low, largest that was clipped high.
    pub fn extremes(&self) -> (f64, f64) {
        (if self.lowest.is_finite() { self.lowest } else { 0.0 }, self.highest)
    }

    /// Mean ratio.
    pub fn ratio(&self) -> f64 {
        self.ratio / self.units.max(1.0)
    }

    /// Mean KL estimate of a token.
    pub fn kl(&self) -> f64 {
        self.kl / self.tokens.max(1.0)
    }

    /// Mean and largest weight before the cap, and the share above it; `None` where nothing was weighted.
    pub fn weights(&self) -> Option<(f64, f64, f64)> {
        (self.weighted > 0.0).then(|| (self.weight / self.weighted, self.heaviest, self.cut / self.weighted))
    }
}
