//! The few statistics that tables of agents need: means, spreads, intervals, bootstraps, McNemar's test.
//!
//! Invariants: nothing returns NaN for finite inputs (what is not defined is `None`); the bootstrap is a function of
//! its arguments, whatever the number of threads.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::rng::Rng;

/// How an interval was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Student's t over the values of the axis `over`.
    Student,
    /// Wilson's over the episodes of one result.
    Wilson,
    /// Percentile bootstrap: over tasks; of differences in several results, over results and the tasks of each.
    Bootstrap,
}

/// A 95 % interval and where it comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
    pub method: Method,
}

impl Interval {
    pub fn new([low, high]: [f64; 2], method: Method) -> Interval {
        Interval { low, high, method }
    }
}

/// 97.5 % quantile of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// 97.5 % quantiles of Student's t for 1 to 10 degrees of freedom, where the expansion below is too coarse.
const T: [f64; 10] = [
    12.706_204_736_174_694,
    4.302_652_729_696_144,
    3.182_446_305_284_264,
    2.776_445_105_198_06,
    2.570_581_835_636_314,
    2.446_911_851_144_969,
    2.364_624_251_592_785,
    2.306_004_135_204_172,
    2.262_157_162_798_205,
    2.228_138_851_986_274,
];

/// The arithmetic mean; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    Some(values.iter().sum::<f64>() / values.len() as f64)
}

/// Sum of squared distances from the mean, in two passes.
fn squares(values: &[f64]) -> Option<f64> {
    let mean = mean(values)?;
    Some(values.iter().map(|x| (x - mean) * (x - mean)).sum())
}

/// The standard deviation with `n - 1` below: an estimate for seeds that were not run. `None` of fewer than two.
pub fn sample_std(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    Some((squares(values)? / (values.len() - 1) as f64).sqrt())
}

/// The standard deviation with `n` below: the spread of the values at hand. `None` of nothing.
pub fn population_std(values: &[f64]) -> Option<f64> {
    Some((squares(values)? / values.len() as f64).sqrt())
}

/// Wilson's 95 % interval for a share of `won` in `n` (Wilson 1927, equation 5, without continuity correction).
/// `None` of nothing.
pub fn wilson(won: usize, n: usize) -> Option<[f64; 2]> {
    if n == 0 {
        return None;
    }
    let (p, n) = (won as f64 / n as f64, n as f64);
    let below = 1.0 + Z * Z / n;
    let centre = (p + Z * Z / (2.0 * n)) / below;
    let half = Z / below * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    // At the ends the formula gives 0 and 1 up to rounding: an interval never leaves the range nor excludes p.
    Some([(centre - half).clamp(0.0, p), (centre + half).clamp(p, 1.0)])
}

/// 97.5 % quantile of Student's t: tabulated to 10 degrees of freedom, then the Cornish-Fisher expansion in 1/df
/// (Abramowitz and Stegun 26.7.5; below 1e-4 off).
///
/// # Panics
/// At 0 degrees of freedom, where there is no such distribution.
pub fn student_t(df: usize) -> f64 {
    assert!(df > 0, "BUG: student's t has no 0 degrees of freedom");
    if let Some(&t) = T.get(df - 1) {
        return t;
    }
    let v = df as f64;
    let (z3, z5, z7, z9) = (Z.powi(3), Z.powi(5), Z.powi(7), Z.powi(9));
    Z + (z3 + Z) / (4.0 * v)
        + (5.0 * z5 + 16.0 * z3 + 3.0 * Z) / (96.0 * v.powi(2))
        + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * Z) / (384.0 * v.powi(3))
        + (79.0 * z9 + 776.0 * z7 + 1482.0 * z5 - 1920.0 * z3 - 945.0 * Z) / (92_160.0 * v.powi(4))
}

/// Student's 95 % interval for the mean of a normal population. `None` of fewer than two values.
pub fn t_interval(values: &[f64]) -> Option<[f64; 2]> {
    let (mean, std) = (mean(values)?, sample_std(values)?);
    let half = student_t(values.len() - 1) * std / (values.len() as f64).sqrt();
    Some([mean - half, mean + half])
}

/// The `q` quantile of sorted values, linear between neighbours (type 7 of Hyndman and Fan). `None` of nothing.
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let place = q.clamp(0.0, 1.0) * (sorted.len().checked_sub(1)?) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(low + (high - low) * place.fract())
}

/// A percentile bootstrap's 95 % interval for the mean of paired differences: each resample draws as many pairs as
/// there are, with replacement (Efron and Tibshirani 1993, chapter 13). `None` of fewer than two pairs.
pub fn bootstrap(differences: &[f64], resamples: usize, seed: u64) -> Option<[f64; 2]> {
    let n = differences.len();
    if n < 2 || resamples == 0 {
        return None;
    }
    let mut means: Vec<f64> = (0..resamples)
        .map(|r| {
            let mut rng = Rng::new(seed, r as u64);
            let sum: f64 = (0..n).map(|_| differences[rng.below(n)]).sum();
            sum / n as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    Some([quantile(&means, 0.025)?, quantile(&means, 0.975)?])
}

/// The same for differences in groups, such as the tasks of each seed: each resample draws as many groups as there are,
/// with replacement, and from each as many differences as it has (Davison and Hinkley 1997, section 3.8). One group is
/// resampled as by [`bootstrap`]; empty ones are left out.
pub fn bootstrap_groups(groups: &[Vec<f64>], resamples: usize, seed: u64) -> Option<[f64; 2]> {
    let groups: Vec<&[f64]> = groups.iter().map(Vec::as_slice).filter(|group| !group.is_empty()).collect();
    if groups.len() < 2 {
        return bootstrap(groups.first()?, resamples, seed);
    }
    if resamples == 0 {
        return None;
    }
    let resample = |r: usize| {
        let mut rng = Rng::new(seed, r as u64);
        let (mut sum, mut n) = (0.0, 0);
        for _ in 0..groups.len() {
            let group = groups[rng.below(groups.len())];
            sum += (0..group.len()).map(|_| group[rng.below(group.len())]).sum::<f64>();
            n += group.len();
        }
        sum / n as f64
    };
    let mut means: Vec<f64> = (0..resamples).into_par_iter().map(resample).collect();
    means.sort_by(f64::total_cmp);
    Some([quantile(&means, 0.025)?, quantile(&means, 0.975)?])
}

/// Percentile bootstraps' 95 % intervals of several ratios of sums, over the same resamples: `parts[m][i]` is what unit
/// `i` (a task) adds to the numerator and to the denominator of number `m`. A mean over episodes is such a ratio, so
/// episodes of one task stay together. `None` of fewer than two units, and where more than one resample in twenty
/// leaves a number without a denominator.
pub fn bootstrap_ratios(parts: &[Vec<(f64, f64)>], resamples: usize, seed: u64) -> Vec<Option<[f64; 2]>> {
    let n = parts.first().map_or(0, Vec::len);
    if n < 2 || resamples == 0 {
        return vec![None; parts.len()];
    }
    let resample = |r: usize| -> Vec<Option<f64>> {
        let mut rng = Rng::new(seed, r as u64);
        let mut times = vec![0.0; n];
        (0..n).for_each(|_| times[rng.below(n)] += 1.0);
        let ratio = |parts: &Vec<(f64, f64)>| {
            let sums = parts.iter().zip(&times).fold((0.0, 0.0), |(a, b), ((x, y), t)| (a + t * x, b + t * y));
            (sums.1 > 0.0).then(|| sums.0 / sums.1)
        };
        parts.iter().map(ratio).collect()
    };
    let drawn: Vec<Vec<Option<f64>>> = (0..resamples).into_par_iter().map(resample).collect();
    let interval = |m: usize| {
        let mut values: Vec<f64> = drawn.iter().filter_map(|values| values[m]).collect();
        if 20 * (resamples - values.len()) > resamples {
            return None;
        }
        values.sort_by(f64::total_cmp);
        Some([quantile(&values, 0.025)?, quantile(&values, 0.975)?])
    };
    (0..parts.len()).map(interval).collect()
}

/// The probability that `k` of `n` episodes, drawn without replacement, hold one of the `won` at least: an unbiased
/// estimate of success in `k` tries (Chen et al. 2021, equation 1). `None` where `k` is more than there are.
pub fn success_at(k: usize, won: usize, n: usize) -> Option<f64> {
    if k > n || won > n {
        return None;
    }
    if won + k > n {
        return Some(1.0);
    }
    let none: f64 = (0..k).map(|i| (n - won - i) as f64 / (n - i) as f64).product();
    Some(1.0 - none)
}

/// The two-sided p-value of the exact McNemar test: `b` tasks were won by one side alone, `c` by the other alone, and
/// under the hypothesis each was as likely to fall to either (a binomial with share 1/2). 1 where there is none.
pub fn mcnemar(b: usize, c: usize) -> f64 {
    let (n, least) = (b + c, b.min(c));
    if 2 * least >= n {
        return 1.0;
    }
    // ln of the largest of the terms C(n, i) / 2^n, i <= least; the others follow by ratios that fall below 1
    let ln: f64 = (0..least).map(|i| ((n - i) as f64).ln() - ((i + 1) as f64).ln()).sum();
    let ln = ln - n as f64 * std::f64::consts::LN_2;
    let (mut sum, mut term) = (0.0, 1.0);
    for i in (0..=least).rev() {
        sum += term;
        term *= i as f64 / (n - i + 1) as f64;
        if term < 1e-18 * sum {
            break;
        }
    }
    (2.0 * sum * ln.exp()).min(1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(a: f64, b: f64, tolerance: f64) -> bool {
        (a - b).abs() <= tolerance
    }

    #[test]
    fn mean_and_both_spreads_match_a_textbook_example() {
        // 2, 4, 4, 4, 5, 5, 7, 9: mean 5, population variance 4, sample variance 32 / 7.
        let values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        assert_eq!(mean(&values), Some(5.0));
        assert_eq!(population_std(&values), Some(2.0));
        assert!(close(sample_std(&values).unwrap(), (32.0f64 / 7.0).sqrt(), 1e-15));
    }

    #[test]
    fn what_is_not_defined_is_none() {
        assert_eq!(mean(&[]), None);
        assert_eq!(sample_std(&[1.0]), None);
        assert_eq!(population_std(&[]), None);
        assert_eq!(population_std(&[1.0]), Some(0.0));
        assert_eq!(wilson(0, 0), None);
        assert_eq!(t_interval(&[1.0]), None);
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(bootstrap(&[1.0], 100, 0), None);
    }

    #[test]
    fn wilson_matches_published_values() {
        // 8 of 10 and 0 of 10; the last is z^2 / (n + z^2).
        let [low, high] = wilson(8, 10).unwrap();
        assert!(close(low, 0.490_162_5, 1e-6) && close(high, 0.943_317_8, 1e-6), "{low} {high}");
        let [low, high] = wilson(0, 10).unwrap();
        assert!(low == 0.0 && close(high, 3.841_458_82 / 13.841_458_82, 1e-8), "{low} {high}");
        assert_eq!(wilson(10, 10).unwrap()[1], 1.0);
    }

    #[test]
    fn student_quantiles_match_tables_on_both_sides_of_the_switch() {
        assert!(close(student_t(1), 12.7062, 1e-4));
        assert!(close(student_t(4), 2.776_445, 1e-6));
        assert!(close(student_t(11), 2.200_985, 1e-4));
        assert!(close(student_t(30), 2.042_272, 1e-5));
        assert!(close(student_t(1000), 1.962_339, 1e-6));
    }

    #[test]
    fn the_t_interval_of_one_two_three_is_two_plus_minus_four_point_three_over_root_three() {
        let [low, high] = t_interval(&[1.0, 2.0, 3.0]).unwrap();
        let half = 4.302_652_73 / 3.0f64.sqrt();
        assert!(close(low, 2.0 - half, 1e-8) && close(high, 2.0 + half, 1e-8));
    }

    #[test]
    fn quantiles_are_linear_between_neighbours() {
        let sorted = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(quantile(&sorted, 0.0), Some(1.0));
        assert_eq!(quantile(&sorted, 0.5), Some(2.5));
        assert_eq!(quantile(&sorted, 1.0), Some(4.0));
    }

    #[test]
    fn the_bootstrap_agrees_with_the_normal_interval_on_many_pairs() {
        // 1000 pairs: 300 better, 200 worse, 500 equal. Mean 0.1, standard error sqrt((0.5 - 0.01) / 1000).
        let differences: Vec<f64> =
            (0..1000).map(|i| [1.0, -1.0, 0.0][[0, 0, 0, 1, 1, 2, 2, 2, 2, 2][i % 10]]).collect();
        let half = Z * (0.49f64 / 1000.0).sqrt();
        let [low, high] = bootstrap(&differences, 2000, 7).unwrap();
        assert!(close(low, 0.1 - half, 0.004) && close(high, 0.1 + half, 0.004), "{low} {high}");
    }

    #[test]
    fn the_bootstrap_repeats_with_its_seed_and_moves_with_another() {
        let differences = [0.3, -0.1, 0.7, 0.2, -0.4];
        assert_eq!(bootstrap(&differences, 500, 1), bootstrap(&differences, 500, 1));
        assert_ne!(bootstrap(&differences, 500, 1), bootstrap(&differences, 500, 2));
        assert_eq!(bootstrap(&[0.25; 6], 100, 3), Some([0.25, 0.25]));
    }

    #[test]
    fn the_bootstrap_of_ratios_is_that_of_means_where_denominators_are_one() {
        let values = [0.3, -0.1, 0.7, 0.2, -0.4];
        let parts: Vec<(f64, f64)> = values.iter().map(|v| (*v, 1.0)).collect();
        let [low, high] = bootstrap_ratios(&[parts], 500, 1)[0].unwrap();
        let [low_of_means, high_of_means] = bootstrap(&values, 500, 1).unwrap();
        assert!(close(low, low_of_means, 1e-12) && close(high, high_of_means, 1e-12));
    }

    #[test]
    fn episodes_of_one_task_stay_together_in_a_resample() {
        // two tasks of fifty episodes each, one always won, one never: fifty is not a hundred independent episodes
        let [low, high] = bootstrap_ratios(&[vec![(50.0, 50.0), (0.0, 50.0)]], 400, 3)[0].unwrap();
        assert_eq!([low, high], [0.0, 1.0]);
    }

    #[test]
    fn a_ratio_that_many_resamples_do_not_define_has_no_interval() {
        let mut parts = vec![(0.0, 0.0); 20];
        parts[0] = (7.0, 1.0);
        assert_eq!(bootstrap_ratios(&[parts, vec![(1.0, 2.0); 20]], 400, 3), [None, Some([0.5, 0.5])]);
        assert_eq!(bootstrap_ratios(&[vec![(1.0, 1.0)]], 400, 3), [None]);
    }

    #[test]
    fn success_at_k_counts_the_ways_to_draw_a_won_one() {
        // of 4 episodes 1 was won: 2 of them hold it in 3 of 6 ways
        assert_eq!(success_at(2, 1, 4), Some(0.5));
        assert_eq!(success_at(1, 1, 4), Some(0.25));
        assert_eq!(success_at(4, 1, 4), Some(1.0));
        assert_eq!((success_at(3, 0, 4), success_at(5, 1, 4)), (Some(0.0), None));
    }

    #[test]
    fn mcnemars_p_values_match_the_binomial_by_hand() {
        assert_eq!(mcnemar(0, 0), 1.0);
        assert_eq!(mcnemar(3, 3), 1.0);
        assert!(close(mcnemar(0, 5), 2.0 / 32.0, 1e-15));
        assert!(close(mcnemar(8, 2), 2.0 * (1.0 + 10.0 + 45.0) / 1024.0, 1e-15));
        // 25 against 10 of 35: 2 * sum of C(35, i), i <= 10, over 2^35
        assert!(close(mcnemar(25, 10), 0.016_673_847_800, 1e-11), "{}", mcnemar(25, 10));
        // far beyond where 2^-n is a number
        assert!(close(mcnemar(2100, 1900), 0.001_649_266_375, 1e-11), "{}", mcnemar(2100, 1900));
        assert_eq!(mcnemar(100_000, 0), 0.0);
    }

    proptest! {
        #[test]
        fn mcnemar_is_a_probability_and_does_not_care_who_is_who(b in 0usize..500, c in 0usize..500) {
            let p = mcnemar(b, c);
            prop_assert!((0.0..=1.0).contains(&p) && p == mcnemar(c, b));
        }

        #[test]
        fn success_in_more_tries_is_never_less(n in 1usize..40, part in 0.0f64..=1.0) {
            let won = (part * n as f64).round() as usize;
            let at: Vec<f64> = (1..=n).map(|k| success_at(k, won, n).unwrap()).collect();
            prop_assert!(close(at[0], won as f64 / n as f64, 1e-12));
            prop_assert!(at.windows(2).all(|w| w[0] <= w[1] + 1e-12));
        }

        #[test]
        fn wilson_holds_the_share_and_stays_a_share(n in 1usize..2000, part in 0.0f64..=1.0) {
            let won = (part * n as f64).round() as usize;
            let [low, high] = wilson(won, n).unwrap();
            let p = won as f64 / n as f64;
            prop_assert!(0.0 <= low && low <= p && p <= high && high <= 1.0);
        }

        #[test]
        fn the_bootstrap_stays_between_the_extremes(d in proptest::collection::vec(-1.0f64..1.0, 2..20), seed: u64) {
            let [low, high] = bootstrap(&d, 50, seed).unwrap();
            let least = d.iter().copied().fold(f64::INFINITY, f64::min);
            let most = d.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            prop_assert!(least - 1e-12 <= low && low <= high && high <= most + 1e-12);
        }

        #[test]
        fn shifting_values_shifts_the_mean_and_keeps_the_spread(
            d in proptest::collection::vec(-10.0f64..10.0, 2..20), by in -10.0f64..10.0,
        ) {
            let moved: Vec<f64> = d.iter().map(|x| x + by).collect();
            prop_assert!(close(mean(&moved).unwrap(), mean(&d).unwrap() + by, 1e-9));
            prop_assert!(close(sample_std(&moved).unwrap(), sample_std(&d).unwrap(), 1e-9));
        }
    }
}
