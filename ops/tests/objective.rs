//! What holds for every objective, and for an update of a model by one.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures should stop")]

use actloom_ops::model::{self, Model};
use actloom_ops::train::batch::Row;
use actloom_ops::train::objective::advantage::{Advantage, advantages};
use actloom_ops::train::objective::{
    Aggregation, Bound, Correction, Credit, KlEstimator, Level, Objective, Response, Surrogate, Weights,
};
use actloom_ops::train::update::{Group, Sample, Settings, accumulate, score};
use camino::Utf8PathBuf;
use candle_core::Device;
use proptest::prelude::*;
use proptest::sample::select;

const KINDS: [Advantage; 4] = [Advantage::Group, Advantage::Batch, Advantage::None, Advantage::Rloo];

fn objectives() -> impl Strategy<Value = Objective> {
    let levels = select(vec![Level::Token, Level::Sequence]);
    let surrogates = select(vec![Surrogate::Clip, Surrogate::Weight]);
    let estimators = select(vec![KlEstimator::K1, KlEstimator::K2, KlEstimator::K3]);
    let aggregations = select(vec![Aggregation::Token, Aggregation::Sequence, Aggregation::Constant]);
    let numbers = (0.05..0.5f64, 0.05..0.5f64, proptest::option::of(1.6..2.0f64), 0.0..0.5f64, any::<bool>());
    (levels, surrogates, estimators, aggregations, numbers).prop_map(
        |(ratio, surrogate, kl_estimator, aggregation, (clip_low, clip_high, delta, kl, kl_times_ratio))| Objective {
            ratio,
            surrogate,
            clip_low,
            clip_high,
            delta,
            correction: None,
            kl,
            kl_estimator,
            kl_times_ratio,
            aggregation,
        },
    )
}

/// A response with a mask, and everything about it.
#[derive(Clone, Debug)]
struct Case {
    logps: Vec<f64>,
    old: Vec<f64>,
    reference: Vec<f64>,
    mask: Vec<bool>,
    advantage: f64,
}

impl Case {
    fn of(&self) -> (&[f64], Response<'_, f64>) {
        let of = Response {
            credit: Credit::Response(self.advantage),
            old: Some(&self.old),
            reference: Some(&self.reference),
            mask: Some(&self.mask),
            weights: None,
        };
        (&self.logps, of)
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let token = (-4.0..-0.1f64, -0.8..0.8f64, -0.8..0.8f64, proptest::bool::weighted(0.8));
    (proptest::collection::vec(token, 1..8), -2.0..2.0f64).prop_map(|(tokens, advantage)| Case {
        logps: tokens.iter().map(|t| t.0).collect(),
        old: tokens.iter().map(|t| t.0 + t.1).collect(),
        reference: tokens.iter().map(|t| t.0 + t.2).collect(),
        mask: tokens.iter().map(|t| t.3).collect(),
        advantage,
    })
}

fn batch(objective: &Objective, cases: &[Case]) -> (f64, Vec<Vec<f64>>) {
    let batch = objective.batch(&cases.iter().map(Case::of).collect::<Vec<_>>(), 10);
    (batch.loss, batch.gradients)
}

proptest! {
    #[test]
    fn gradients_are_those_of_finite_differences(
        objective in objectives(), cases in proptest::collection::vec(cases(), 1..4),
    ) {
        // differences of a constant weight are not its gradient, and at a corner there is none
        prop_assume!(objective.surrogate == Surrogate::Clip);
        let n = |case: &Case| case.mask.iter().filter(|m| **m).count().max(1) as f64;
        let corners = [1.0 - objective.clip_low, 1.0 + objective.clip_high, objective.delta.unwrap_or(9.0)];
        for case in &cases {
            let gaps: Vec<f64> = case.logps.iter().zip(&case.old).map(|(l, o)| l - o).collect();
            let whole: f64 = gaps.iter().zip(&case.mask).filter(|(_, m)| **m).map(|(g, _)| g).sum();
            for gap in gaps.iter().copied().chain([whole / n(case)]) {
                prop_assume!(corners.iter().all(|c| (gap.exp() - c).abs() > 1e-4));
            }
        }
        let (_, gradients) = batch(&objective, &cases);
        let h = 1e-6;
        for (b, row) in gradients.iter().enumerate() {
            for (i, gradient) in row.iter().enumerate() {
                let moved = |by: f64| {
                    let mut cases = cases.clone();
                    cases[b].logps[i] += by;
                    batch(&objective, &cases).0
                };
                let difference = (moved(h) - moved(-h)) / (2.0 * h);
                prop_assert!((difference - gradient).abs() < 1e-7, "{difference} and {gradient}");
            }
        }
    }

    #[test]
    fn the_order_of_responses_changes_nothing_but_the_order_of_gradients(
        objective in objectives(), cases in proptest::collection::vec(cases(), 1..5), by in 0usize..5,
    ) {
        let (loss, mut gradients) = batch(&objective, &cases);
        let mut moved = cases;
        let by = by % moved.len();
        moved.rotate_left(by);
        gradients.rotate_left(by);
        let (other, others) = batch(&objective, &moved);
        prop_assert!((loss - other).abs() < 1e-12);
        prop_assert_eq!(gradients, others);
    }

    #[test]
    fn equal_responses_have_equal_gradients_and_split_the_loss(objective in objectives(), case in cases()) {
        let (loss, gradients) = batch(&objective, std::slice::from_ref(&case));
        let (twice, pair) = batch(&objective, &[case.clone(), case]);
        prop_assert!((loss - twice).abs() < 1e-12);
        prop_assert_eq!(&pair[0], &pair[1]);
        for (one, half) in gradients[0].iter().zip(&pair[0]) {
            prop_assert!((one - 2.0 * half).abs() < 1e-12);
        }
    }

    #[test]
    fn a_response_of_which_no_token_counts_has_no_gradient_and_gives_no_nan(
        objective in objectives(), case in cases(), mut silent in cases(),
    ) {
        silent.mask.fill(false);
        let alone = objective.batch(&[silent.of()], 10);
        prop_assert_eq!((alone.loss, alone.tally.ratio(), alone.tally.kl()), (0.0, 0.0, 0.0));
        prop_assert_eq!(alone.tally.extremes(), (0.0, 0.0));
        let (loss, gradients) = batch(&objective, &[case.clone(), silent]);
        prop_assert!(gradients[1].iter().all(|g| *g == 0.0));
        prop_assert!(loss.is_finite() && gradients[0].iter().all(|g| g.is_finite()));
        if objective.aggregation == Aggregation::Token {
            prop_assert_eq!(loss, batch(&objective, &[case]).0);
        }
    }

    #[test]
    fn a_group_without_variance_has_no_gradient_however_far_the_policy_has_moved(
        objective in objectives(), mut case in cases(), reward in -5.0..5.0f64, far in select(vec![0.5, 30.0, 2000.0]),
    ) {
        let objective = Objective { kl: 0.0, ..objective };
        for kind in KINDS {
            let none = advantages(&[vec![reward; 4], vec![0.0, 1.0, 0.3]], kind);
            prop_assert_eq!(&none[0], &vec![0.0; 4]);
            case.advantage = none[0][2];
        }
        case.old.iter_mut().for_each(|o| *o -= far);
        let (loss, gradients) = batch(&objective, &[case]);
        prop_assert!(loss == 0.0 && gradients[0].iter().all(|g| *g == 0.0), "{loss}, {gradients:?}");
    }

    #[test]
    fn advantages_of_a_group_sum_to_zero_and_go_with_their_rewards(
        rewards in proptest::collection::vec(-3.0..3.0f64, 2..9), others in proptest::collection::vec(-3.0..3.0f64, 2..5),
        by in 1usize..8,
    ) {
        for kind in KINDS {
            let got = advantages(&[rewards.clone(), others.clone()], kind);
            prop_assert!(got[0].iter().sum::<f64>().abs() < 1e-9, "{kind:?}: {got:?}");
            let (mut moved, mut expected) = (rewards.clone(), got[0].clone());
            moved.rotate_left(by % rewards.len());
            expected.rotate_left(by % rewards.len());
            // groups in another order too
            let other = advantages(&[others.clone(), moved], kind);
            for (a, b) in expected.iter().zip(&other[1]) {
                prop_assert!((a - b).abs() < 1e-9, "{kind:?}");
            }
        }
    }

    #[test]
    fn what_a_clipped_loss_can_gain_is_bounded(objective in objectives(), mut case in cases(), far in -3.0..3.0f64) {
        prop_assume!(objective.surrogate == Surrogate::Clip);
        let objective = Objective { kl: 0.0, ..objective };
        case.logps.iter_mut().for_each(|l| *l += far);
        case.mask.fill(true);
        let bound = match case.advantage > 0.0 {
            true => -(1.0 + objective.clip_high) * case.advantage,
            false => (1.0 - objective.clip_low) * -case.advantage,
        };
        let length = case.logps.len();
        let scale = if objective.aggregation == Aggregation::Constant { length as f64 / 10.0 } else { 1.0 };
        let (loss, _) = batch(&objective, &[case]);
        prop_assert!(loss >= bound * scale - 1e-12, "{loss}, bound {bound}");
    }
}

#[test]
fn a_capped_weight_keeps_the_gradient_of_every_token() {
    let objective = Objective { surrogate: Surrogate::Weight, clip_high: 1.0, ..Objective::default() };
    let case =
        |old: f64| Case { logps: vec![-1.0], old: vec![old], reference: vec![0.0], mask: vec![true], advantage: 0.5 };
    let gradient = |old: f64| batch(&objective, &[case(old)]).1[0][0];
    assert!((gradient(-1.0) + 0.5).abs() < 1e-12);
    assert!((gradient(-9.0) + 1.0).abs() < 1e-12, "the ratio is e^8, its weight is 2");
    assert!((gradient(-1.0 + 0.5f64.ln().abs()) + 0.25).abs() < 1e-12, "below 1 nothing is clipped");
}

#[test]
fn weights_for_the_gap_are_cut_or_dropped_at_their_cap() {
    let (old, sampling) = ([-1.0, -2.0, -3.0], [-1.0, -3.0, -2.0]);
    let of = |level, bound| Correction { level, bound, cap: 2.0 }.weights(&old, &sampling, Some(&[true, true, false]));
    let e = 1f64.exp();
    let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
    assert!(close(&of(Level::Token, Bound::Truncate).used, &[1.0, 2.0, 1.0 / e]));
    assert!(close(&of(Level::Token, Bound::Mask).used, &[1.0, 0.0, 1.0 / e]));
    assert!(close(&of(Level::Sequence, Bound::Truncate).used, &[2.0; 3]));
    assert!(close(&of(Level::Sequence, Bound::Truncate).raw, &[e; 3]));
    assert!(close(&of(Level::Sequence, Bound::Mask).used, &[0.0; 3]));
}

fn load() -> Model {
    let folder = Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/model");
    model::load(&folder, &Device::Cpu).unwrap()
}

const PROMPTS: [&[u32]; 2] = [&[7, 30, 12, 99, 4], &[200, 3, 3, 61]];

/// Two groups of responses, the first with two equal ones; log-probabilities somewhat off the policy's.
fn groups(model: &Model, far: f32) -> Vec<Group> {
    let texts: [&[&[u32]]; 2] =
        [&[&[5, 6, 7, 317], &[8, 317], &[5, 6, 7, 317]], &[&[40, 41, 42], &[43, 44, 45, 46, 317]]];
    let advantage = [vec![1.1, -0.7, -0.4], vec![0.7, -0.7]];
    let mut out = Vec::new();
    for (g, (prompt, texts)) in PROMPTS.iter().zip(texts).enumerate() {
        let mut samples = Vec::new();
        for (s, ids) in texts.iter().enumerate() {
            let sampling = alone(model, prompt, ids)
                .iter()
                .enumerate()
                .map(|(i, l)| l + far * [0.3, -0.5, 0.1, 0.4][(i + g) % 4])
                .collect();
            let (prompt, advantage) = ((*prompt).into(), advantage[g][s]);
            samples.push(Sample { prompt, ids: ids.to_vec(), sampling, advantage, ..Sample::default() });
        }
        out.push(Group { question: 10 + g, samples });
    }
    out
}

fn row(prompt: &[u32], ids: &[u32]) -> Row {
    let mut row = Row::default();
    let root = row.add(0, None, prompt, |_| false);
    row.add(1, Some(root), ids, |_| true);
    row
}

/// Log-probabilities of one response by itself.
fn alone(model: &Model, prompt: &[u32], ids: &[u32]) -> Vec<f32> {
    let row = row(prompt, ids);
    model.score(&row.ids, &row.packing, &row.targets, 1.0).unwrap().iter().map(|s| s.logp).collect()
}

fn gradients(model: &Model) -> Vec<f32> {
    let params = model.params();
    params.iter().flat_map(|p| p.grad.as_ref().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

fn settings(objective: Objective) -> Settings {
    Settings { objective, temperature: 1.0, longest: 8, row_tokens: 64 }
}

#[test]
fn an_update_has_the_gradient_of_each_response_by_itself_added_up() {
    let plain = Objective { kl: 0.1, ..Objective::default() };
    let correction = Correction { level: Level::Sequence, bound: Bound::Truncate, cap: 1.5 };
    let cases = [
        plain,
        Objective { ratio: Level::Sequence, aggregation: Aggregation::Sequence, ..plain },
        Objective { surrogate: Surrogate::Weight, aggregation: Aggregation::Constant, ..plain },
        Objective { ratio: Level::Sequence, kl_times_ratio: true, correction: Some(correction), ..plain },
        Objective { correction: Some(correction), clip_high: 0.05, ..plain },
    ];
    let mut reference = load();
    for p in reference.params_mut() {
        p.value = (&p.value * 0.9).unwrap();
        p.changed();
    }
    for objective in cases {
        let mut model = load();
        let mut groups = groups(&model, 1.0);
        let how = settings(objective);
        score(&model, &mut groups, &how).unwrap();
        let seen = accumulate(&mut model, Some(&reference), &groups, &how).unwrap();
        assert!(seen.reached);
        assert_eq!(seen.tally.tokens, 18.0);
        // every response in a row of its own, with coefficients made at once
        let mut other = load();
        let all: Vec<(&[u32], &Sample)> =
            groups.iter().flat_map(|g| g.samples.iter().map(|s| (&*s.prompt, s))).collect();
        let logps: Vec<Vec<f32>> = all.iter().map(|(p, s)| alone(&other, p, &s.ids)).collect();
        let refs: Vec<Vec<f32>> = all.iter().map(|(p, s)| alone(&reference, p, &s.ids)).collect();
        let weights: Vec<Option<Weights>> = all
            .iter()
            .zip(&logps)
            .map(|((_, s), l)| objective.correction.map(|c| c.weights(l, &s.sampling, None)))
            .collect();
        let responses: Vec<(&[f32], Response<'_, f32>)> = (0..all.len())
            .map(|i| {
                let old = if objective.correction.is_some() { &logps[i] } else { &all[i].1.sampling };
                let of = Response {
                    credit: Credit::Response(all[i].1.advantage),
                    old: Some(old.as_slice()),
                    reference: Some(&refs[i]),
                    mask: None,
                    weights: weights[i].as_ref(),
                };
                (logps[i].as_slice(), of)
            })
            .collect();
        let batch = objective.batch(&responses, how.longest);
        for ((prompt, sample), coefficients) in all.iter().zip(&batch.gradients) {
            let row = row(prompt, &sample.ids);
            other.train(&row.ids, &row.packing, &row.targets, 1.0, |i, _| coefficients[i] as f32).unwrap();
        }
        assert!((seen.tally.loss - batch.loss).abs() < 1e-9, "{objective:?}");
        assert_eq!(seen.tally.weights().is_some(), objective.correction.is_some());
        let (got, want) = (gradients(&model), gradients(&other));
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let off = norm(&mut got.iter().zip(&want).map(|(a, b)| a - b));
        let size = norm(&mut want.iter().copied());
        assert!(size > 1e-3 && off < 2e-6 * size, "{objective:?}: off by {off} of {size}");
    }
}

#[test]
fn an_update_of_flat_groups_reaches_no_weight() {
    let mut model = load();
    let mut groups = groups(&model, 1.0);
    groups.iter_mut().flat_map(|g| &mut g.samples).for_each(|s| s.advantage = 0.0);
    for ratio in [Level::Token, Level::Sequence] {
        let objective = Objective { ratio, ..Objective::default() };
        let seen = accumulate(&mut model, None, &groups, &settings(objective)).unwrap();
        assert!(!seen.reached && seen.trained == 0 && seen.tally.tokens == 0.0, "{seen:?}");
        assert!(model.params().iter().all(|p| p.grad.is_none()));
    }
}

#[test]
fn an_update_that_clips_every_token_is_not_taken_for_a_step() {
    let mut model = load();
    let mut groups = groups(&model, 0.0);
    // the policy has already moved as far as it may, in the direction of each advantage
    for sample in groups.iter_mut().flat_map(|g| &mut g.samples) {
        let by = if sample.advantage > 0.0 { -1.0 } else { 1.0 };
        sample.sampling.iter_mut().for_each(|l| *l += by);
    }
    let seen = accumulate(&mut model, None, &groups, &settings(Objective::default())).unwrap();
    let (low, high) = seen.tally.clipped();
    assert_eq!(low + high, 1.0);
    assert!(!seen.reached, "every coefficient is 0");
}

#[test]
fn a_number_that_is_not_finite_stops_with_the_response_it_belongs_to() {
    let cases = [(f32::NAN, "the loss of token 2"), (-2000.0, "the loss of token 2")];
    for (value, what) in cases {
        let mut model = load();
        let mut groups = groups(&model, 0.0);
        groups[1].samples[1].sampling[1] = value;
        let error = accumulate(&mut model, None, &groups, &settings(Objective::default())).unwrap_err().to_string();
        assert!(error.starts_with(what) && error.contains("of response 2 of 2 to question 11 is"), "{error}");
        let whole = Objective { ratio: Level::Sequence, ..Objective::default() };
        let error = accumulate(&mut model, None, &groups, &settings(whole)).unwrap_err().to_string();
        assert!(error.contains("of response 2 of 2 to question 11 is"), "{error}");
    }
    let mut model = load();
    let groups = groups(&model, 0.0);
    for p in model.params_mut().into_iter().filter(|p| p.name == "model.norm.weight") {
        p.value = (&p.value * f64::NAN).unwrap();
        p.changed();
    }
    let error = accumulate(&mut model, None, &groups, &settings(Objective::default())).unwrap_err().to_string();
    assert!(error.starts_with("the log-probability of token 1 of response 1 of 3 to question 10 is NaN"), "{error}");
}
