//! Advantages of whole episodes and of their steps: GiGPO. Feng et al., "Group-in-Group Policy Optimization", 2025.
//!
//! An episode is compared with the others of its task by its total reward; a step, with every step of those episodes taken
//! at the same observation, by its discounted return. The two add up. A step whose observation was met only once is
//! compared with nothing and adds 0.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::advantage::flat;

/// How steps are compared, as a recipe says it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Gigpo {
    /// Discount of later rewards in a step's return.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub discount: f64,
    /// Weight of the step's advantage beside the episode's; 0 leaves the episode's.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub step_weight: f64,
    /// What divides the distance from the mean, of episodes and of steps.
    pub deviation: Divisor,
}

/// A standard deviation as divisor; 1e-6 is added to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Divisor {
    /// With n - 1 below the sum of squares.
    #[default]
    Sample,
    /// With n.
    Population,
    /// Nothing divides.
    None,
}

impl Default for Gigpo {
    fn default() -> Self {
        let Settings { discount, step_weight, .. } = Settings::default();
        Gigpo { discount, step_weight, deviation: Divisor::Sample }
    }
}

impl Gigpo {
    /// As the comparison takes them.
    pub fn settings(&self) -> Settings {
        let of = |sample| Some(Deviation { sample, eps: EPS });
        let deviation = match self.deviation {
            Divisor::Sample => of(true),
            Divisor::Population => of(false),
            Divisor::None => None,
        };
        Settings { discount: self.discount, step_weight: self.step_weight, deviation }
    }
}

/// Added to a standard deviation before it divides.
const EPS: f64 = 1e-6;

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
        let deviation = Some(Deviation { sample: true, eps: EPS });
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

/// Values beside their mean; zeros where all are equal, but for rounding.
fn compare(values: &[f64], deviation: Option<Deviation>) -> Vec<f64> {
    if flat(values) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_recipe_leaves_out_is_the_published_setting() {
        assert_eq!(Gigpo::default().settings(), Settings::default());
        let gigpo: Gigpo = serde_json::from_str(r#"{ "deviation": "none", "discount": 0.9 }"#).unwrap();
        assert_eq!(gigpo.settings(), Settings { discount: 0.9, step_weight: 1.0, deviation: None });
    }

    #[test]
    fn equal_states_are_compared_by_their_discounted_returns_and_others_with_nothing() {
        let settings = Settings { discount: 0.5, step_weight: 1.0, deviation: None };
        let episodes = [vec![("a", 0.0), ("b", 1.0)], vec![("a", 0.0), ("c", 0.0)], vec![("a", 0.0)]];
        let found = advantages(&episodes, settings);
        assert_eq!(found.returns, [vec![0.5, 1.0], vec![0.0, 0.0], vec![0.0]]);
        let third = 1.0 / 3.0;
        assert_eq!(found.step[0], [0.5 - 0.5 * third, 0.0]);
        assert_eq!(found.step[1], [-0.5 * third, 0.0]);
        assert_eq!(found.episode, [1.0 - third, -third, -third]);
        let flat = advantages(&[vec![("a", 1.0)], vec![("a", 1.0)]], settings);
        assert!(flat.advantage.iter().flatten().all(|a| *a == 0.0));
    }

    #[test]
    fn returns_that_differ_by_rounding_alone_are_equal() {
        let settings = Settings { discount: 1.0, ..Settings::default() };
        let (one, other) = (vec![("a", -0.1), ("b", -0.2), ("c", -0.3)], vec![("a", -0.3), ("d", -0.2), ("e", -0.1)]);
        let found = advantages(&[one, other], settings);
        assert_ne!(found.returns[0][0], found.returns[1][0], "the order of a sum counts");
        assert!(found.advantage.iter().flatten().all(|a| *a == 0.0), "{found:?}");
    }

    #[test]
    fn a_state_met_twice_in_one_episode_is_compared_with_itself() {
        let settings = Settings { discount: 0.5, step_weight: 1.0, deviation: None };
        let found = advantages(&[vec![("a", 0.0), ("a", 1.0)], vec![("b", 0.0)]], settings);
        assert_eq!(found.step[0], [-0.25, 0.25], "the later of the two was nearer to the reward");
    }
}
