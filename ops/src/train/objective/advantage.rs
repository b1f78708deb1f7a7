//! What a response was worth beside the others of its group.
//!
//! Invariant: a group whose rewards are all equal, but for rounding, has advantages of exactly 0, so nothing is learned from it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Added to a standard deviation before it divides.
const STD_EPS: f64 = 1e-4;

/// How rewards become advantages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Advantage {
    /// (r - group mean) / (group's sample standard deviation + 1e-4). GRPO.
    #[default]
    Group,
    /// (r - group mean) / (sample standard deviation of all rewards of the batch + 1e-4).
    Batch,
    /// r - group mean. Dr. GRPO.
    None,
    /// r - mean of the group's other rewards. RLOO.
    Rloo,
}

/// Distance, as a share of the largest of some rewards, up to which they are equal: sums of the same parts in another order
/// differ by less.
const ROUNDING: f64 = 1e-9;

/// Whether all are equal, but for rounding. What is not finite equals nothing.
pub fn flat(values: &[f64]) -> bool {
    let largest = values.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
    largest.is_finite() && values.iter().all(|v| (v - values[0]).abs() <= ROUNDING * largest)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Sample standard deviation (n - 1); 0 for fewer than two values.
fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|r| (r - mean).powi(2)).sum();
    (squares / (values.len() as f64 - 1.0).max(1.0)).sqrt()
}

/// Advantages of the rewards of a batch, group by group.
pub fn advantages(groups: &[Vec<f64>], kind: Advantage) -> Vec<Vec<f64>> {
    let all = match kind {
        Advantage::Batch => deviation(&groups.concat()),
        _ => 0.0,
    };
    let of_group = |rewards: &Vec<f64>| -> Vec<f64> {
        let n = rewards.len() as f64;
        if flat(rewards) {
            return vec![0.0; rewards.len()];
        }
        let (sum, mean) = (rewards.iter().sum::<f64>(), mean(rewards));
        let scale = match kind {
            Advantage::Group => deviation(rewards) + STD_EPS,
            Advantage::Batch => all + STD_EPS,
            Advantage::None | Advantage::Rloo => 1.0,
        };
        let one = |r: &f64| match kind {
            Advantage::Rloo => r - (sum - r) / (n - 1.0),
            _ => (r - mean) / scale,
        };
        rewards.iter().map(one).collect()
    };
    groups.iter().map(of_group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewards_that_differ_by_rounding_alone_are_equal() {
        let (one, other) = (-0.1 - 0.2 - 0.3, -0.3 - 0.2 - 0.1);
        assert_ne!(one, other, "the order of a sum counts");
        for kind in [Advantage::Group, Advantage::Batch, Advantage::None, Advantage::Rloo] {
            let found = advantages(&[vec![one, other, one], vec![0.0, 1.0]], kind);
            assert_eq!(found[0], [0.0; 3], "{kind:?}");
            assert_ne!(found[1], [0.0; 2], "{kind:?}");
        }
        assert!(flat(&[1e6, 1e6 + 1e-4]) && !flat(&[1e6, 1e6 + 1e-2]), "relative to the size of rewards");
        assert!(!flat(&[0.0, 1e-12]) && flat(&[0.0, -0.0]) && flat(&[]));
        assert!(!flat(&[f64::NAN, f64::NAN]) && !flat(&[1.0, f64::INFINITY]));
    }
}
