//! Tree packing: rows of shared beginnings give what each sequence gives alone.
//!
//! Judges: the set of distinct beginnings counts the tokens that must be computed; every way to cut sorted sequences into rows;
//! a model that takes each sequence in a row of its own, gradients added up in float64.

#![expect(clippy::unwrap_used, reason = "a test that cannot run its model should stop")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use actloom_ops::model::{self, Model};
use actloom_ops::nn::layer::TokenStats;
use actloom_ops::train::batch::{Example, Owner, Row};
use actloom_ops::train::forest::Forest;
use actloom_ops::train::objective::{
    Aggregation, Bound, Correction, Credit, KlEstimator, Level, Objective, Response, Surrogate, Weights,
};
use actloom_ops::train::sft;
use actloom_ops::train::update::{self, Group, Sample, Settings};
use camino::Utf8PathBuf;
use candle_core::Device;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// Sequences over three tokens, most of which go on where an earlier one was cut, with what counts in them.
fn examples(most: usize) -> impl Strategy<Value = Vec<Example>> {
    let token = (3u32..6, proptest::bool::weighted(0.6));
    let piece = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), vec(token, 0..7));
    vec(piece, 1..most).prop_map(|pieces| {
        let mut out: Vec<Example> = Vec::new();
        for (from, keep, tail) in pieces {
            let mut e = Example::default();
            if !out.is_empty() {
                e = out[from.index(out.len())].clone();
                e.truncate(keep.index(e.ids.len() + 1));
            }
            tail.into_iter().for_each(|(id, learn)| e.push(&[id], learn));
            if e.ids.is_empty() {
                e.push(&[3], true);
            }
            out.push(e);
        }
        out
    })
}

fn rows(examples: &[Example], limit: usize, order: impl IntoIterator<Item = usize>) -> Vec<Row> {
    let mut forest = Forest::new(limit);
    for member in order {
        forest.add(member, &examples[member].ids, |token| examples[member].learn[token]);
    }
    forest.rows()
}

/// What a sequence must compute: its tokens before the last target.
fn needed(e: &Example) -> &[u32] {
    let last = (1..e.ids.len()).rev().find(|i| e.learn[*i]);
    &e.ids[..last.unwrap_or(0)]
}

fn beginnings<'a>(paths: &[&'a [u32]]) -> BTreeSet<&'a [u32]> {
    paths.iter().flat_map(|path| (1..=path.len()).map(|n| &path[..n])).collect()
}

/// Fewest tokens of all ways to cut the sorted sequences into rows.
fn fewest(paths: &[&[u32]], limit: usize) -> usize {
    let mut best = vec![0];
    for end in 1..=paths.len() {
        let cost = |start: usize| {
            let size = beginnings(&paths[start..end]).len();
            (size <= limit || start + 1 == end).then(|| best[start] + size)
        };
        best.push((0..end).filter_map(cost).min().unwrap());
    }
    best[paths.len()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_token_sees_its_own_sequence_and_no_beginning_is_computed_twice_in_a_row(
        examples in examples(14), limit in select(vec![1usize, 5, 9, 17, 40, 10_000]),
    ) {
        let rows = rows(&examples, limit, 0..examples.len());
        let mut found: BTreeMap<Owner, usize> = BTreeMap::new();
        let mut homes: BTreeMap<usize, usize> = BTreeMap::new();
        let mut seen = Vec::new();
        for (number, row) in rows.iter().enumerate() {
            prop_assert_eq!(row.ids.len(), row.packing.len());
            prop_assert_eq!(row.targets.len(), row.owners.len());
            // what each token sees
            let mut sees: Vec<Vec<u32>> = Vec::new();
            for at in 0..row.ids.len() {
                row.packing.visible(at, &mut seen);
                sees.push(seen.iter().cloned().flatten().map(|k| row.ids[k]).collect());
                prop_assert_eq!(row.packing.positions()[at] as usize + 1, sees[at].len());
            }
            let distinct: BTreeSet<&Vec<u32>> = sees.iter().collect();
            prop_assert_eq!(distinct.len(), row.ids.len(), "a beginning was computed twice");
            for (target, owners) in row.targets.iter().zip(&row.owners) {
                prop_assert!(!owners.is_empty() && owners.is_sorted());
                for owner in owners {
                    let e = &examples[owner.member];
                    prop_assert_eq!(&sees[target.row as usize][..], &e.ids[..owner.token]);
                    prop_assert_eq!(target.id, e.ids[owner.token]);
                    prop_assert_eq!(*homes.entry(owner.member).or_insert(number), number, "a sequence in two rows");
                    *found.entry(*owner).or_default() += 1;
                }
            }
            let distinct: BTreeSet<(u32, u32)> = row.targets.iter().map(|t| (t.row, t.id)).collect();
            prop_assert_eq!(distinct.len(), row.targets.len(), "a target is there twice");
            let longest = homes.iter().filter(|(_, home)| **home == number).map(|(m, _)| needed(&examples[*m]).len());
            prop_assert!(row.ids.len() <= limit || Some(row.ids.len()) == longest.max(), "{} > {limit}", row.ids.len());
        }
        // every target of every member, once
        let wanted = examples.iter().enumerate().flat_map(|(member, e)| {
            (1..e.ids.len()).filter(|token| e.learn[*token]).map(move |token| (Owner { member, token }, 1))
        });
        prop_assert_eq!(found, wanted.collect::<BTreeMap<_, _>>());
    }

    #[test]
    fn rows_compute_the_fewest_tokens_that_their_limit_allows(
        examples in examples(12), limit in select(vec![1usize, 5, 9, 17, 40, 10_000]),
    ) {
        let total: usize = rows(&examples, limit, 0..examples.len()).iter().map(|row| row.ids.len()).sum();
        let mut paths: Vec<&[u32]> = examples.iter().map(needed).filter(|path| !path.is_empty()).collect();
        paths.sort_unstable();
        let alone: usize = paths.iter().map(|path| path.len()).sum();
        prop_assert!(total <= alone);
        prop_assert!(total <= fewest(&paths, limit), "{total} tokens, {} would do", fewest(&paths, limit));
        if limit == 10_000 {
            prop_assert_eq!(total, beginnings(&paths).len());
        }
    }

    #[test]
    fn equal_sequences_in_another_order_give_the_same_rows(
        (examples, order) in examples(14)
            .prop_flat_map(|e| { let order: Vec<usize> = (0..e.len()).collect(); (Just(e), Just(order).prop_shuffle()) }),
        limit in select(vec![5usize, 17, 10_000]),
    ) {
        prop_assert_eq!(rows(&examples, limit, 0..examples.len()), rows(&examples, limit, order));
    }
}

#[test]
fn an_episode_with_its_questions_and_answers_is_one_tree() {
    let turns: [&[u32]; 2] = [&[1, 2, 3], &[4, 5]];
    let (question, answers): (&[u32], [&[u32]; 3]) = (&[9], [&[20, 21, 30], &[20, 22, 30], &[20, 21, 30]]);
    let mut forest = Forest::new(100);
    let mut member = 0;
    for n in 1..=2 {
        for answer in answers {
            let prompt = [&turns[..n].concat(), question].concat();
            forest.add(member, &[&prompt, answer].concat(), |token| token >= prompt.len());
            member += 1;
        }
    }
    let rows = forest.rows();
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    // the last token of an answer predicts nothing, so it is not computed; the second token is where answers part
    let tail = [9, 20, 21, 22];
    assert_eq!(row.ids, [&[1, 2, 3][..], &[4, 5], &tail, &tail].concat());
    assert_eq!(row.packing.positions(), [0, 1, 2, 3, 4, 5, 6, 7, 7, 3, 4, 5, 5]);
    assert_eq!(row.packing.trees(), std::slice::from_ref(&(0..13)));
    // 20 is one target of three owners, 21 of two
    let owners: Vec<usize> = row.owners.iter().map(Vec::len).collect();
    assert_eq!(owners, [3, 2, 1, 2, 1, 3, 2, 1, 2, 1]);
    assert_eq!(row.owners[0], [3, 4, 5].map(|member| Owner { member, token: 6 }));
}

#[test]
fn nothing_to_learn_makes_no_row() {
    let mut forest = Forest::new(8);
    forest.add(0, &[], |_| true);
    forest.add(1, &[5], |_| true);
    forest.add(2, &[5, 6, 7], |token| token == 0);
    assert_eq!(forest.rows(), []);
}

fn load() -> Model {
    let folder = Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/model");
    model::load(&folder, &Device::Cpu).unwrap()
}

/// Gradients of every parameter.
fn gradients(model: &Model) -> Vec<(String, Vec<f64>)> {
    let flat = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let of = |p: &&actloom_ops::nn::layer::Param| {
        let grad = p.grad.as_ref().map_or_else(|| vec![0.0; p.value.elem_count()], flat);
        (p.name.clone(), grad.into_iter().map(f64::from).collect())
    };
    model.params().iter().map(of).collect()
}

fn forget(model: &mut Model) {
    model.params_mut().into_iter().for_each(|p| p.grad = None);
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

/// Sums in float64 of what sequences give one by one, and of the sizes of it.
#[derive(Default)]
struct Alone {
    sums: Vec<Vec<f64>>,
    sizes: Vec<f64>,
}

impl Alone {
    /// Adds the gradient of a sequence in a row of its own.
    fn add(
        &mut self,
        model: &mut Model,
        ids: &[u32],
        learn: impl Fn(usize) -> bool,
        coefficients: &[f64],
    ) -> Vec<TokenStats> {
        let mut row = Row::default();
        row.add(0, None, ids, learn);
        forget(model);
        let stats = model.train(&row.ids, &row.packing, &row.targets, 1.0, |i, _| coefficients[i] as f32).unwrap();
        for (i, (_, gradient)) in gradients(model).into_iter().enumerate() {
            if self.sums.len() <= i {
                self.sums.push(vec![0.0; gradient.len()]);
                self.sizes.push(0.0);
            }
            self.sizes[i] += norm(gradient.iter().copied());
            self.sums[i].iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
        }
        stats
    }

    /// Whether the gradients of `model` are these within rounding.
    /// A gradient that is 0 by algebra (of queries, where all tokens are one) is rounding of all the others.
    fn check(&self, model: &Model) -> Result<(), TestCaseError> {
        let floor = 2e-7 * norm(self.sizes.iter().copied());
        for ((name, got), (want, size)) in gradients(model).iter().zip(self.sums.iter().zip(&self.sizes)) {
            let off = norm(got.iter().zip(want).map(|(a, b)| a - b));
            prop_assert!(off <= 1e-5 * size + floor, "`{}` is off by {} of {}, floor {}", name, off, size, floor);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn packed_examples_have_the_loss_entropy_and_gradients_of_each_alone(
        examples in examples(9), limit in select(vec![1usize, 9, 25, 10_000]), weight in select(vec![1.0f64, 0.3]),
    ) {
        let mut model = load();
        let targets: usize = examples.iter().map(Example::targets).sum();
        prop_assume!(targets > 0);
        let sums = sft::accumulate(&mut model, &examples, weight, limit, 0).unwrap();
        let (mut other, mut alone, mut loss, mut entropy) = (load(), Alone::default(), 0.0, 0.0);
        for e in &examples {
            let coefficients = vec![-weight / targets as f64; e.targets()];
            for stats in alone.add(&mut other, &e.ids, |token| e.learn[token], &coefficients) {
                loss -= f64::from(stats.logp) / targets as f64;
                entropy += f64::from(stats.entropy) / targets as f64;
            }
        }
        prop_assert_eq!(sums.targets, targets);
        prop_assert!((sums.loss - loss).abs() < 1e-6 * loss.abs(), "{} and {}", sums.loss, loss);
        prop_assert!((sums.entropy - entropy).abs() < 1e-6 * entropy, "{} and {}", sums.entropy, entropy);
        prop_assert!(sums.computed as usize <= examples.iter().map(|e| e.ids.len()).sum());
        alone.check(&model)?;
    }
}

/// Prompt, response, advantage, distance of the sampler from the policy.
type Planned = (Vec<u32>, Vec<u32>, f64, f64);

/// An update before the model has said anything: prompts with common beginnings, responses some of which are equal.
#[derive(Clone, Debug)]
struct Plan {
    groups: Vec<Vec<Planned>>,
}

fn plans() -> impl Strategy<Value = Plan> {
    let ids = |n| vec(3u32..6, n);
    let sample = (any::<prop::sample::Index>(), ids(1..5usize), -1.5..1.5f64, -0.4..0.4f64);
    (vec(ids(1..6), 1..4), vec(vec(sample, 1..5), 1..4)).prop_map(|(tails, groups)| {
        // prompts of which each goes on with the one before, or beside it
        let mut prompts: Vec<Vec<u32>> = Vec::new();
        for (i, tail) in tails.into_iter().enumerate() {
            let before = prompts.last().cloned().unwrap_or_default();
            prompts.push([&before[..before.len() / (1 + i % 2)], &tail].concat());
        }
        let of = |(prompt, ids, advantage, off): (prop::sample::Index, _, _, _)| {
            (prompts[prompt.index(prompts.len())].clone(), ids, advantage, off)
        };
        Plan { groups: groups.into_iter().map(|group| group.into_iter().map(of).collect()).collect() }
    })
}

fn objectives() -> impl Strategy<Value = Objective> {
    let levels = select(vec![Level::Token, Level::Sequence]);
    let surrogates = select(vec![Surrogate::Clip, Surrogate::Weight]);
    let estimators = select(vec![KlEstimator::K1, KlEstimator::K2, KlEstimator::K3]);
    let aggregations = select(vec![Aggregation::Token, Aggregation::Sequence, Aggregation::Constant]);
    let correction = Correction { level: Level::Sequence, bound: Bound::Truncate, cap: 1.5 };
    let numbers = (select(vec![0.0, 0.1]), any::<bool>(), proptest::option::of(Just(correction)));
    (levels, surrogates, estimators, aggregations, numbers).prop_map(
        |(ratio, surrogate, kl_estimator, aggregation, (kl, kl_times_ratio, correction))| Objective {
            ratio,
            surrogate,
            kl,
            kl_estimator,
            kl_times_ratio,
            aggregation,
            correction,
            ..Objective::default()
        },
    )
}

/// Log-probabilities of one response by itself.
fn score_alone(model: &Model, sample: &Sample) -> Vec<TokenStats> {
    let (prompt, mut row) = (sample.prompt.len(), Row::default());
    row.add(0, None, &[&*sample.prompt, &sample.ids].concat(), |token| token >= prompt);
    model.score(&row.ids, &row.packing, &row.targets, 1.0).unwrap()
}

fn logps(stats: &[TokenStats]) -> Vec<f32> {
    stats.iter().map(|s| s.logp).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_packed_update_has_the_loss_gap_entropy_and_gradients_of_each_response_alone(
        plan in plans(), objective in objectives(), row_tokens in select(vec![1usize, 12, 30, 10_000]),
    ) {
        let mut model = load();
        let mut reference = load();
        for p in reference.params_mut() {
            p.value = (&p.value * 0.9).unwrap();
            p.changed();
        }
        let mut groups: Vec<Group> = Vec::new();
        for (question, samples) in plan.groups.into_iter().enumerate() {
            let mut group = Group { question, samples: Vec::new() };
            for (prompt, ids, advantage, off) in samples {
                let prompt: Arc<[u32]> = prompt.into();
                let mut sample = Sample { prompt, ids, advantage, ..Sample::default() };
                let here = logps(&score_alone(&model, &sample));
                sample.sampling = here.iter().enumerate().map(|(i, l)| l + (off * [1.0, -0.7][i % 2]) as f32).collect();
                group.samples.push(sample);
            }
            groups.push(group);
        }
        // 1. packed
        let how = Settings { objective, temperature: 1.0, longest: 6, row_tokens };
        update::score(&model, &mut groups, &how).unwrap();
        let seen = update::accumulate(&mut model, Some(&reference), &groups, &how).unwrap();
        // 2. alone, with coefficients made at once
        let (mut other, mut alone) = (load(), Alone::default());
        let samples: Vec<&Sample> = groups.iter().flat_map(|g| &g.samples).collect();
        let here: Vec<Vec<TokenStats>> = samples.iter().map(|s| score_alone(&other, s)).collect();
        let logp: Vec<Vec<f32>> = here.iter().map(|stats| logps(stats)).collect();
        let there: Vec<Vec<f32>> = samples.iter().map(|s| logps(&score_alone(&reference, s))).collect();
        let weights: Vec<Option<Weights>> = samples
            .iter()
            .zip(&logp)
            .map(|(s, l)| objective.correction.map(|c| c.weights(l, &s.sampling, None)))
            .collect();
        let responses: Vec<(&[f32], Response<'_, f32>)> = (0..samples.len())
            .map(|i| {
                let old = if objective.correction.is_some() { &logp[i] } else { &samples[i].sampling };
                let of = Response {
                    credit: Credit::Response(samples[i].advantage),
                    old: Some(old.as_slice()),
                    reference: Some(&there[i]),
                    mask: None,
                    weights: weights[i].as_ref(),
                };
                (logp[i].as_slice(), of)
            })
            .collect();
        let batch = objective.batch(&responses, how.longest);
        for (sample, coefficients) in samples.iter().zip(&batch.gradients) {
            let (prompt, ids) = (sample.prompt.len(), [&*sample.prompt, &sample.ids].concat());
            alone.add(&mut other, &ids, |token| token >= prompt, coefficients);
        }
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs() + 1e-7;
        prop_assert!(near(seen.tally.loss, batch.tally.loss), "loss {} and {}", seen.tally.loss, batch.tally.loss);
        prop_assert!(near(seen.tally.ratio(), batch.tally.ratio()));
        prop_assert!(near(seen.tally.kl(), batch.tally.kl()));
        prop_assert_eq!(seen.tally.clipped(), batch.tally.clipped());
        prop_assert_eq!(seen.tally.tokens, batch.tally.tokens);
        let gaps = logp.iter().zip(&samples).flat_map(|(l, s)| l.iter().zip(&s.sampling));
        let gaps: Vec<f64> = gaps.map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).collect();
        prop_assert!(near(seen.gap_sum, gaps.iter().sum()) && near(seen.gap, gaps.iter().copied().fold(0.0, f64::max)));
        let entropy: f64 = here.iter().flatten().map(|s| f64::from(s.entropy)).sum();
        prop_assert!(near(seen.entropy, entropy));
        let whole: usize = samples.iter().map(|s| s.prompt.len() + s.ids.len()).sum();
        prop_assert!(seen.trained as usize <= whole);
        alone.check(&model)?;
    }
}
