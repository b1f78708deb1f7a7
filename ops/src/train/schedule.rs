//! Learning-rate schedules: warm-up, then constant, linear or cosine decay to zero.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    Constant,
    /// Falls in a straight line to zero at the last step.
    #[default]
    Linear,
    /// Falls along half a cosine to zero at the last step.
    Cosine,
}

impl Schedule {
    /// Factor on the peak rate for step `step` (from 0) of `steps`, of which `warmup` climb linearly.
    pub fn factor(self, step: u64, steps: u64, warmup: u64) -> f64 {
        self.after(step as f64, steps, warmup)
    }

    /// The same after `done` of `steps`, which need not be a whole number.
    pub fn after(self, done: f64, steps: u64, warmup: u64) -> f64 {
        if done < warmup as f64 {
            return ((done + 1.0) / warmup as f64).min(1.0);
        }
        let done = (done - warmup as f64) / steps.saturating_sub(warmup).max(1) as f64;
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - done,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_climbs_and_decay_falls_towards_zero() {
        let f = |step| Schedule::Linear.factor(step, 10, 2);
        assert_eq!([f(0), f(1), f(2), f(6)], [0.5, 1.0, 1.0, 0.5]);
        assert!(f(9) > 0.0);
        assert_eq!(Schedule::Constant.factor(9, 10, 0), 1.0);
        assert!((Schedule::Cosine.factor(5, 10, 0) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn between_two_steps_the_rate_is_between_theirs_and_never_above_the_peak() {
        let f = |done| Schedule::Linear.after(done, 10, 2);
        assert_eq!([f(0.5), f(1.5), f(6.0), f(6.4)], [0.75, 1.0, 0.5, 0.45]);
    }
}
