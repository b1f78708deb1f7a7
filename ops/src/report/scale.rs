//! Axes with round ticks.
//!
//! Invariants: the ticks are multiples of 1, 2 or 5 times a power of ten, they span the values, and there are 2 to 12.

use super::number;

/// One axis: round ends and ticks, ascending.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    pub low: f64,
    pub high: f64,
    pub ticks: Vec<f64>,
    step: f64,
}

impl Scale {
    /// Around these values; `None` of nothing. Zero is taken in where the values come near it.
    pub fn around(values: impl Iterator<Item = f64>, target: usize) -> Option<Scale> {
        let (mut low, mut high) =
            values.filter(|v| v.is_finite()).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        if low > high {
            return None;
        }
        if low > 0.0 && low < 0.4 * high {
            low = 0.0;
        }
        if high < 0.0 && high > 0.4 * low {
            high = 0.0;
        }
        // One value, or values that floating point can hardly tell apart: make room around them.
        if high - low <= 1e-9 * low.abs().max(high.abs()) || high == low {
            let room = if low == 0.0 { 1.0 } else { low.abs() * 0.5 };
            (low, high) = if low == 0.0 { (0.0, room) } else { (low - room, high + room) };
        }
        let step = round((high - low) / target.max(1) as f64);
        let (first, last) = ((low / step + 1e-9).floor() as i64, (high / step - 1e-9).ceil() as i64);
        let ticks: Vec<f64> = (first..=last).map(|i| i as f64 * step).collect();
        Some(Scale { low: first as f64 * step, high: last as f64 * step, ticks, step })
    }

    /// The same with the values' own ends, for an axis that should not promise more than there is.
    pub fn within(values: impl Iterator<Item = f64> + Clone, target: usize) -> Option<Scale> {
        let mut scale = Scale::around(values.clone(), target)?;
        let inside = |v: f64| (scale.low..=scale.high).contains(&v);
        let (low, high) =
            values.filter(|v| inside(*v)).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        if low < high {
            // Zero stays where it was taken in.
            scale.low = if scale.low == 0.0 { 0.0 } else { low };
            scale.high = high;
            scale.ticks.retain(|t| (scale.low..=scale.high * (1.0 + 1e-12)).contains(t));
        }
        Some(scale)
    }

    /// Where a value lies between the ends, 0 to 1.
    pub fn at(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    /// A tick's text, with the decimals the step needs.
    pub fn label(&self, tick: f64) -> String {
        if tick == 0.0 {
            return "0".to_owned();
        }
        let digits = (tick.abs().log10().floor() - self.step.log10().floor()).max(0.0) as usize + 1;
        number::short(tick, digits.max(2))
    }
}

/// The least of 1, 2, 5 x 10^n that is not below `raw`.
fn round(raw: f64) -> f64 {
    let power = 10f64.powi(raw.log10().floor() as i32);
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| raw <= f * power * (1.0 + 1e-9)).unwrap_or(10.0);
    factor * power
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(values: &[f64]) -> Vec<String> {
        let scale = Scale::around(values.iter().copied(), 4).unwrap();
        scale.ticks.iter().map(|t| scale.label(*t)).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(&[0.13, 0.97]), ["0", "0.5", "1"]);
        assert_eq!(labels(&[1.0, 400.0]), ["0", "100", "200", "300", "400"]);
        assert_eq!(labels(&[2.1, 3.4]), ["2", "2.5", "3", "3.5"]);
        assert_eq!(labels(&[1e-5, 3e-4]), ["0", "0.0001", "0.0002", "0.0003"]);
        assert_eq!(labels(&[-1.0, 1.0]), ["-1", "-0.5", "0", "0.5", "1"]);
    }

    #[test]
    fn an_axis_can_end_with_its_values() {
        let scale = Scale::within([3.0, 2196.0].into_iter(), 5).unwrap();
        assert_eq!((scale.low, scale.high, scale.ticks.last().copied()), (0.0, 2196.0, Some(2000.0)));
        assert_eq!(scale.at(2196.0), 1.0);
        let alone = Scale::within([4.0].into_iter(), 5).unwrap();
        assert!(alone.low < 4.0 && 4.0 < alone.high);
    }

    #[test]
    fn one_value_and_none_have_a_scale_or_not() {
        assert_eq!(labels(&[2.0]), ["1", "1.5", "2", "2.5", "3"]);
        assert_eq!(labels(&[0.0, 0.0]).first().map(String::as_str), Some("0"));
        assert_eq!(Scale::around([f64::NAN].into_iter(), 4), None);
    }

    proptest! {
        #[test]
        fn ticks_span_the_values_and_are_few(
            values in proptest::collection::vec(-1e6f64..1e6, 1..20), power in -6i32..6, target in 2usize..6,
        ) {
            let values: Vec<f64> = values.iter().map(|v| v * 10f64.powi(power)).collect();
            let scale = Scale::around(values.iter().copied(), target).unwrap();
            prop_assert!((2..=12).contains(&scale.ticks.len()), "{scale:?}");
            for value in values {
                prop_assert!((-1e-6..=1.0 + 1e-6).contains(&scale.at(value)), "{value} {scale:?}");
            }
        }
    }
}
