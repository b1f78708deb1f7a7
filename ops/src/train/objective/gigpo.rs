//! Advantages of whole episodes and of their steps: GiGPO. Feng et al., "Group-in-Group Policy Optimization", 2025.
//!
//! An episode is compared with the others of its task by its total reward; a step, with every step of those episodes taken
//! at the same observation, by its discounted return. The two add up. A step whose observation was met only once is
//! compared with nothing and adds 0.

use std::collections::BTreeMap;

/// Settings of the comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Discount of later rewards in a step's return.
    pub discount: f64,
    /// Weight of the step's advantage beside the episode's.
    pub step_weight: f64,
    /// What divides; `None` subtracts the mean only.
    pub deviation: Option<Deviation>,
}

/// A standard deviation as divisor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deviation {
    /// n - 1 below the sum of squares instead of n.
    pub sample: bool,
    /// Added to it.
    pub eps: f64,
}

impl Default for Settings {
    fn default() -> Self {
        let deviation = Some(Deviation { sample: true, eps: 1e-6 });
        Settings { discount: 0.95, step_weight: 1.0, deviation }
    }
}

/// Advantages of the episodes of one task.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Advantages {
    /// Of each episode.
    pub episode: Vec<f64>,
    /// Discounted return from each step on.
    pub returns: Vec<Vec<f64>>,
    /// Of each step among its equals.
    pub step: Vec<Vec<f64>>,
    /// episode + `step_weight` step.
    pub advantage: Vec<Vec<f64>>,
}

/// Values beside their mean; zeros where all are equal.
fn compare(values: &[f64], deviation: Option<Deviation>) -> Vec<f64> {
    if values.iter().all(|v| *v == values[0]) {
        return vec![0.0; values.len()];
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let scale = deviation.map_or(1.0, |d| {
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        (squares / if d.sample { n - 1.0 } else { n }).sqrt() + d.eps
    });
    values.iter().map(|v| (v - mean) / scale).collect()
}

/// Compares the episodes of one task; each is a list of (observation acted at, reward).
pub fn advantages<S: Ord>(episodes: &[Vec<(S, f64)>], settings: Settings) -> Advantages {
    let totals: Vec<f64> = episodes.iter().map(|e| e.iter().map(|s| s.1).sum()).collect();
    let episode = compare(&totals, settings.deviation);
    let mut returns: Vec<Vec<f64>> = Vec::with_capacity(episodes.len());
    let mut equals: BTreeMap<&S, Vec<(usize, usize)>> = BTreeMap::new();
    for (e, steps) in episodes.iter().enumerate() {
        let mut later = 0.0;
        let mut of_episode: Vec<f64> = steps
            .iter()
            .rev()
            .map(|(_, reward)| {
                later = reward + settings.discount * later;
                later
            })
            .collect();
        of_episode.reverse();
        returns.push(of_episode);
        for (t, (state, _)) in steps.iter().enumerate() {
            equals.entry(state).or_default().push((e, t));
        }
    }
    let mut step: Vec<Vec<f64>> = returns.iter().map(|r| vec![0.0; r.len()]).collect();
    for places in equals.values() {
        let values: Vec<f64> = places.iter().map(|(e, t)| returns[*e][*t]).collect();
        for ((e, t), advantage) in places.iter().zip(compare(&values, settings.deviation)) {
            step[*e][*t] = advantage;
        }
    }
    let together = |(a, steps): (&f64, &Vec<f64>)| steps.iter().map(|s| a + settings.step_weight * s).collect();
    let advantage = episode.iter().zip(&step).map(together).collect();
    Advantages { episode, returns, step, advantage }
}
