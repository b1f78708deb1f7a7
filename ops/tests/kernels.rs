//! Every kernel of the processor against the plain one in float64, and the plain one against finite differences of
//! itself: so the judge is judged as well.
//!
//! Shapes are drawn from a seed, odd ones and ones above the thresholds of threading among them.

#![expect(clippy::unwrap_used, reason = "a test that cannot run its kernel should stop")]

use actloom_ops::nn::kernel::{self, AdamStep, Cache, Kernels, RopeTable, Weight};
use actloom_ops::nn::layer::{self, Param, TokenStats};
use actloom_ops::nn::{Heads, Packing, plain};
use actloom_ops::rng::Rng;
use candle_core::{DType, Device, Tensor};

const CPU: Kernels = Kernels::Cpu;

fn random(rng: &mut Rng, shape: &[usize], std: f64) -> Tensor {
    let data: Vec<f32> = (0..shape.iter().product()).map(|_| (rng.normal() * std) as f32).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// 1 + 0.1 normal, as the weights of norms.
fn scales(rng: &mut Rng, n: usize) -> Tensor {
    (random(rng, &[n], 0.1) + 1.0).unwrap()
}

fn wide(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F64).unwrap()
}

fn numbers(t: &Tensor) -> Vec<f64> {
    wide(t).flatten_all().unwrap().to_vec1().unwrap()
}

/// No entry is further off than `tolerance` times the largest entry wanted.
fn near(got: &Tensor, want: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(got.elem_count(), want.elem_count(), "{what}: sizes");
    near_numbers(&numbers(got), &numbers(want), tolerance, what);
}

fn near_numbers(got: &[f64], want: &[f64], tolerance: f64, what: &str) {
    let size = want.iter().fold(1e-6f64, |a, b| a.max(b.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * size, "{what}: entry {i} is {g}, expected {w} (largest {size})");
    }
}

fn inner(a: &Tensor, b: &Tensor) -> f64 {
    (a.flatten_all().unwrap() * b.flatten_all().unwrap()).unwrap().sum_all().unwrap().to_scalar().unwrap()
}

/// `f` moves along random directions of each input as its gradients say, by central differences in float64.
fn slopes(rng: &mut Rng, f: impl Fn(&[Tensor]) -> f64, inputs: &[Tensor], gradients: &[Tensor], what: &str) {
    assert_eq!(inputs.len(), gradients.len());
    for (i, gradient) in gradients.iter().enumerate() {
        assert_eq!((inputs[i].dtype(), gradient.dtype()), (DType::F64, DType::F64), "{what}: the judge is float64");
        for _ in 0..3 {
            let direction = wide(&random(rng, inputs[i].dims(), 1.0));
            let step = 1e-5;
            let moved = |by: f64| {
                let mut inputs = inputs.to_vec();
                inputs[i] = (&inputs[i] + (&direction * by).unwrap()).unwrap();
                f(&inputs)
            };
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            let want = inner(gradient, &direction);
            let size = inner(gradient, gradient).sqrt() * inner(&direction, &direction).sqrt();
            assert!((slope - want).abs() < 1e-6 * (size + 1.0), "{what}: input {i} has slope {slope}, gradient {want}");
        }
    }
}

#[test]
fn rms_norm_and_its_gradient_are_those_of_float64() {
    let mut rng = Rng::new(1, 0);
    for (rows, d) in [(1, 1), (1, 2), (3, 7), (5, 16), (63, 33), (65, 48), (130, 300), (64, 1024)] {
        for (eps, size) in [(1e-6, 1.0), (1e-5, 1e-3), (1e-6, 50.0)] {
            let what = format!("({rows}, {d}), eps {eps}, size {size}");
            let (x, w) = (random(&mut rng, &[rows, d], size), scales(&mut rng, d));
            let (dy, start) = (random(&mut rng, &[rows, d], 1.0), random(&mut rng, &[d], 1.0));
            let (y, rstd) = kernel::rms_norm(CPU, &x, &w, eps).unwrap();
            let mut dw = start.copy().unwrap();
            let dx = kernel::rms_norm_backward(CPU, &dy, &x, &w, &rstd, Some(&mut dw)).unwrap();
            let frozen = kernel::rms_norm_backward(CPU, &dy, &x, &w, &rstd, None).unwrap();
            assert_eq!(numbers(&dx), numbers(&frozen), "{what}: a frozen weight changes dx");

            let (x, w, dy) = (wide(&x), wide(&w), wide(&dy));
            let (y64, rstd64) = plain::rms_norm(&x, &w, eps).unwrap();
            let (dx64, dw64) = plain::rms_norm_backward(&dy, &x, &w, &rstd64).unwrap();
            near(&y, &y64, 1e-6, &what);
            near(&rstd, &rstd64, 1e-6, &what);
            // d = 1 leaves almost nothing of dx: it is the difference of two equal numbers
            if d > 1 {
                near(&dx, &dx64, 1e-5, &what);
            }
            near(&dw, &(dw64.clone() + wide(&start)).unwrap(), 5e-6, &what);
            if rows * d < 5000 && size >= 1.0 {
                let f = |i: &[Tensor]| inner(&plain::rms_norm(&i[0], &i[1], eps).unwrap().0, &dy);
                slopes(&mut rng, f, &[x.clone(), w.clone()], &[dx64, dw64], &what);
            }
        }
    }
}

#[test]
fn rms_norm_over_heads_norms_every_head_by_itself() {
    let mut rng = Rng::new(2, 0);
    let (n, heads, d) = (9, 3, 10);
    let (x, w) = (random(&mut rng, &[n, heads * d], 1.0), scales(&mut rng, d));
    let (y, rstd) = kernel::rms_norm(CPU, &x, &w, 1e-6).unwrap();
    assert_eq!((y.dims(), rstd.elem_count()), ([n, heads * d].as_slice(), n * heads));
    let apart = x.reshape((n * heads, d)).unwrap();
    assert_eq!(numbers(&y), numbers(&kernel::rms_norm(CPU, &apart, &w, 1e-6).unwrap().0));
}

#[test]
fn rope_turns_pairs_by_position_and_its_gradient_turns_back() {
    let mut rng = Rng::new(3, 0);
    for (n, heads, d, theta, scale) in [
        (1, 1, 2, 1e4f64, 1.0f32),
        (7, 3, 6, 1e4, 1.25),
        (70, 2, 16, 1e6, 1.0),
        (33, 5, 128, 5e5, 1.0),
        (300, 4, 64, 1e6, 1.1),
    ] {
        let what = format!("({n}, {heads}, {d}), theta {theta}, scale {scale}");
        let positions: Vec<u32> = (0..n).map(|_| rng.below(2000) as u32).collect();
        // the frequencies and angles are float32 by definition (transformers); everything after them is float64
        let frequencies: Vec<f32> = (0..d / 2).map(|i| theta.powf(-2.0 * i as f64 / d as f64) as f32).collect();
        let mut table = RopeTable::new(frequencies.clone(), scale);
        table.reserve(2000);
        let x = random(&mut rng, &[n, heads * d], 1.0);
        let turned = kernel::rope(CPU, x.copy().unwrap(), heads, &table, &positions, 1.0).unwrap();
        let back = kernel::rope(CPU, turned.copy().unwrap(), heads, &table, &positions, -1.0).unwrap();

        let angles: Vec<f64> = positions
            .iter()
            .flat_map(|p| frequencies.iter().map(|frequency| f64::from(*p as f32 * frequency)))
            .collect();
        let angles = Tensor::from_vec(angles, (n, 1, d / 2), &Device::Cpu).unwrap();
        let scale = f64::from(scale);
        let (cos, sin) = ((angles.cos().unwrap() * scale).unwrap(), (angles.sin().unwrap() * scale).unwrap());
        let x = wide(&x);
        let want = plain::rope(&x, heads, &cos, &sin).unwrap();
        near(&turned, &want, 1e-6, &what);
        near(&back, &(&x * (scale * scale)).unwrap(), 1e-6, &what);
        let dy = wide(&random(&mut rng, &[n, heads * d], 1.0));
        let dx = plain::rope(&dy, heads, &cos, &sin.neg().unwrap()).unwrap();
        let f = |i: &[Tensor]| inner(&plain::rope(&i[0], heads, &cos, &sin).unwrap(), &dy);
        slopes(&mut rng, f, &[x], &[dx], &what);
    }
}

#[test]
fn swiglu_and_its_gradient_are_those_of_float64() {
    let mut rng = Rng::new(4, 0);
    for (n, m, size) in [(1, 1, 1.0), (3, 5, 30.0), (17, 31, 1.0), (64, 64, 4.0), (65, 1009, 1.0), (40, 2048, 10.0)] {
        let what = format!("({n}, {m}), size {size}");
        let (gate, up) = (random(&mut rng, &[n, m], size), random(&mut rng, &[n, m], 1.0));
        let dy = random(&mut rng, &[n, m], 1.0);
        let y = kernel::swiglu(CPU, &gate, &up).unwrap();
        let (dgate, dup) = kernel::swiglu_backward(CPU, &dy, &gate, &up).unwrap();
        let (gate, up, dy) = (wide(&gate), wide(&up), wide(&dy));
        near(&y, &plain::swiglu(&gate, &up).unwrap(), 1e-6, &what);
        let (g64, u64) = plain::swiglu_backward(&dy, &gate, &up).unwrap();
        near(&dgate, &g64, 1e-6, &what);
        near(&dup, &u64, 1e-6, &what);
        if n * m < 5000 {
            let f = |i: &[Tensor]| inner(&plain::swiglu(&i[0], &i[1]).unwrap(), &dy);
            slopes(&mut rng, f, &[gate, up], &[g64, u64], &what);
        }
    }
}

#[test]
fn swiglu_of_gates_far_from_zero_is_finite() {
    let gate = Tensor::new(&[-1e4f32, -200.0, -90.0, 90.0, 200.0, 1e4], &Device::Cpu).unwrap();
    let one = gate.ones_like().unwrap();
    let y = numbers(&kernel::swiglu(CPU, &gate, &one).unwrap());
    let (dgate, _) = kernel::swiglu_backward(CPU, &one, &gate, &one).unwrap();
    for (i, (y, slope)) in y.iter().zip(numbers(&dgate)).enumerate() {
        let g = numbers(&gate)[i];
        let (want, tilt) = if g < 0.0 { (0.0, 0.0) } else { (g, 1.0) };
        assert!((y - want).abs() < 1e-6 && (slope - tilt).abs() < 1e-6, "gate {g}: {y}, slope {slope}");
    }
}

#[test]
fn products_with_weights_and_their_gradients_are_those_of_float64() {
    let mut rng = Rng::new(5, 0);
    for (n, input, out) in
        [(1, 1, 1), (1, 7, 3), (2, 48, 64), (5, 33, 17), (31, 65, 47), (96, 100, 129), (257, 130, 61), (1, 512, 1000)]
    {
        let what = format!("({n}, {input}) x ({out}, {input})");
        let (x, w) = (random(&mut rng, &[n, input], 1.0), random(&mut rng, &[out, input], 1.0));
        let (dy, start) = (random(&mut rng, &[n, out], 1.0), random(&mut rng, &[out, input], 1.0));
        let packed = Weight::new(CPU, &w).unwrap();
        let y = kernel::linear(&x, &packed).unwrap();
        let dx = kernel::linear_dx(CPU, &dy, &w).unwrap();
        let mut dw = start.copy().unwrap();
        kernel::linear_dw(CPU, &dy, &x, &mut dw).unwrap();
        for i in [0, n / 2, n - 1] {
            let alone = kernel::linear(&x.narrow(0, i, 1).unwrap().contiguous().unwrap(), &packed).unwrap();
            assert_eq!(numbers(&alone), numbers(&y.get(i).unwrap()), "{what}: row {i} depends on the others");
        }
        let (x, w, dy) = (wide(&x), wide(&w), wide(&dy));
        near(&y, &x.matmul(&w.t().unwrap()).unwrap(), 3e-6, &what);
        near(&dx, &dy.matmul(&w).unwrap(), 3e-6, &what);
        let want = (wide(&start) + dy.t().unwrap().matmul(&x).unwrap()).unwrap();
        near(&dw, &want, 3e-6, &what);
    }
}

#[test]
fn a_bias_is_added_to_every_row_and_its_gradient_is_their_sum() {
    let mut rng = Rng::new(15, 0);
    for (n, out) in [(1, 1), (3, 7), (129, 33), (40, 1024)] {
        let what = format!("({n}, {out})");
        let (y, b) = (random(&mut rng, &[n, out], 1.0), random(&mut rng, &[out], 1.0));
        let (dy, start) = (random(&mut rng, &[n, out], 1.0), random(&mut rng, &[out], 1.0));
        let got = kernel::add_bias(CPU, y.copy().unwrap(), &b).unwrap();
        near(&got, &wide(&y).broadcast_add(&wide(&b)).unwrap(), 1e-7, &what);
        let mut db = start.copy().unwrap();
        kernel::add_columns(CPU, &dy, &mut db).unwrap();
        near(&db, &(wide(&start) + wide(&dy).sum(0).unwrap()).unwrap(), 2e-6, &what);
    }
}

/// A forest with segments of every length, empty ones too.
fn forest(rng: &mut Rng, trees: usize, longest: usize) -> Packing {
    let mut packing = Packing::new();
    for _ in 0..trees {
        let mut segments = vec![packing.root(rng.between(1, longest))];
        // depth first: the next segment continues an ancestor of the last, or the last itself
        for _ in 0..rng.below(5) {
            segments.truncate(rng.between(1, segments.len()));
            let parent = segments[segments.len() - 1];
            segments.push(packing.child(parent, rng.below(longest + 1)));
        }
    }
    packing
}

fn attention_case(rng: &mut Rng, packing: &Packing, heads: Heads, size: f64) {
    let (n, Heads { h, hk, d, .. }) = (packing.len(), heads);
    let what = format!("{n} tokens, {heads:?}, size {size}, {packing:?}");
    let q = random(rng, &[n, h * d], size);
    let (k, v) = (random(rng, &[n, hk * d], 1.0), random(rng, &[n, hk * d], 1.0));
    let dout = random(rng, &[n, h * d], 1.0);
    let (out, stats) = kernel::attention(CPU, &q, &k, &v, packing, heads).unwrap();
    let (dq, dk, dv) = kernel::attention_backward(CPU, &dout, &q, &k, &v, &stats, packing, heads).unwrap();

    let (q, k, v, dout) = (wide(&q), wide(&k), wide(&v), wide(&dout));
    let (out64, p) = plain::attention(&q, &k, &v, packing, heads).unwrap();
    let (dq64, dk64, dv64) = plain::attention_backward(&dout, &q, &k, &v, &p, heads).unwrap();
    near(&out, &out64, 3e-6, &what);
    near(&dq, &dq64, 1e-5, &what);
    near(&dk, &dk64, 1e-5, &what);
    near(&dv, &dv64, 3e-6, &what);
    if n < 60 {
        let f = |i: &[Tensor]| inner(&plain::attention(&i[0], &i[1], &i[2], packing, heads).unwrap().0, &dout);
        slopes(rng, f, &[q, k, v], &[dq64, dk64, dv64], &what);
    }
}

#[test]
fn attention_and_its_gradients_are_those_of_float64() {
    let mut rng = Rng::new(6, 0);
    for (h, hk, d) in [(1, 1, 2), (2, 1, 6), (4, 2, 16), (6, 3, 10), (8, 2, 34), (3, 3, 64), (5, 1, 80), (2, 2, 128)] {
        for (trees, longest, size) in [(1, 1, 1.0), (1, 9, 1.0), (3, 5, 4.0), (2, 17, 1.0), (4, 30, 1.0)] {
            for window in [None, Some(1), Some(3), Some(16), Some(1000)] {
                let packing = forest(&mut rng, trees, longest);
                attention_case(&mut rng, &packing, Heads { h, hk, d, window }, size);
            }
        }
    }
}

#[test]
fn attention_over_long_rows_is_that_of_float64() {
    let mut rng = Rng::new(7, 0);
    for window in [None, Some(100)] {
        attention_case(&mut rng, &Packing::single(400), Heads { h: 4, hk: 2, d: 32, window }, 2.0);
        let packing = forest(&mut rng, 2, 120);
        attention_case(&mut rng, &packing, Heads { h: 4, hk: 2, d: 64, window }, 1.0);
    }
}

/// The rows of every path from a root to a segment, by what `Packing` says of its trees.
fn paths(packing: &Packing, ends: &[usize]) -> Vec<Vec<u32>> {
    let mut ranges = Vec::new();
    ends.iter()
        .map(|row| {
            packing.visible(*row, &mut ranges);
            ranges.iter().cloned().flatten().map(|row| row as u32).collect()
        })
        .collect()
}

#[test]
fn a_tree_is_attended_as_each_of_its_paths_alone() {
    let mut rng = Rng::new(8, 0);
    for window in [None, Some(4)] {
        let heads = Heads { h: 4, hk: 2, d: 12, window };
        // a prompt with three answers, one of which goes on in two ways; and a sequence of its own
        let mut packing = Packing::new();
        let prompt = packing.root(5);
        packing.child(prompt, 3);
        let second = packing.child(prompt, 4);
        packing.child(second, 2);
        packing.child(second, 6);
        packing.child(prompt, 1);
        packing.root(7);
        let sequences: [&[u32]; 6] = [
            &[0, 1, 2, 3, 4, 5, 6, 7],
            &[0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13],
            &[0, 1, 2, 3, 4, 8, 9, 10, 11, 14, 15, 16, 17, 18, 19],
            &[0, 1, 2, 3, 4, 20],
            &[21, 22, 23, 24, 25, 26, 27],
            &[0, 1, 2],
        ];
        let ends: Vec<usize> = sequences.iter().map(|s| s[s.len() - 1] as usize).collect();
        assert_eq!(paths(&packing, &ends), sequences);
        let n = packing.len();
        let q = random(&mut rng, &[n, 48], 1.0);
        let (k, v) = (random(&mut rng, &[n, 24], 1.0), random(&mut rng, &[n, 24], 1.0));
        let (whole, _) = kernel::attention(CPU, &q, &k, &v, &packing, heads).unwrap();
        let (judge, _) = plain::attention(&wide(&q), &wide(&k), &wide(&v), &packing, heads).unwrap();
        for rows in sequences {
            let index = Tensor::new(rows, &Device::Cpu).unwrap();
            let pick = |t: &Tensor| t.index_select(&index, 0).unwrap();
            let single = Packing::single(rows.len());
            let (alone, _) = kernel::attention(CPU, &pick(&q), &pick(&k), &pick(&v), &single, heads).unwrap();
            assert_eq!(numbers(&alone), numbers(&pick(&whole)), "the tree changed bits of {rows:?}");
            let (alone, _) =
                plain::attention(&wide(&pick(&q)), &wide(&pick(&k)), &wide(&pick(&v)), &single, heads).unwrap();
            near(&pick(&judge), &alone, 1e-13, "the judge of a tree and of a path");
        }
    }
}

#[test]
fn attention_over_a_cache_is_that_of_the_whole_row() {
    let mut rng = Rng::new(9, 0);
    for (h, hk, d, window) in [(4, 2, 16, None), (4, 2, 16, Some(5)), (3, 1, 10, None), (8, 8, 64, Some(70))] {
        let heads = Heads { h, hk, d, window };
        let lengths = [150, 3, 77];
        let parts: Vec<[Tensor; 3]> =
            lengths.iter().map(|n| [h, hk, hk].map(|heads| random(&mut rng, &[*n, heads * d], 1.0))).collect();
        for kernels in [Kernels::Cpu, Kernels::Plain] {
            let mut caches: Vec<Cache> = lengths.iter().map(|_| Cache::new(kernels)).collect();
            let mut done = [0; 3];
            let mut outs: Vec<Vec<Tensor>> = vec![Vec::new(); 3];
            while done != lengths {
                // each sequence grows by a few tokens, those that are complete rest
                let now: Vec<usize> = (0..3).filter(|i| done[*i] < lengths[*i]).collect();
                let grow: Vec<usize> = now.iter().map(|i| rng.between(1, 40).min(lengths[*i] - done[*i])).collect();
                let take = |part: usize| {
                    let pieces: Vec<Tensor> =
                        now.iter().zip(&grow).map(|(i, n)| parts[*i][part].narrow(0, done[*i], *n).unwrap()).collect();
                    Tensor::cat(&pieces, 0).unwrap().contiguous().unwrap()
                };
                let (q, k, v) = (take(0), take(1), take(2));
                let mut at = 0;
                let rows: Vec<_> = grow
                    .iter()
                    .map(|n| {
                        at += n;
                        at - n..at
                    })
                    .collect();
                let mut batch: Vec<_> = caches
                    .iter_mut()
                    .enumerate()
                    .filter(|(i, _)| now.contains(i))
                    .zip(&rows)
                    .map(|((_, cache), rows)| (cache, rows.clone()))
                    .collect();
                let out = kernel::cached_attention(&q, &k, &v, &mut batch, heads).unwrap();
                for (i, rows) in now.iter().zip(rows) {
                    outs[*i].push(out.narrow(0, rows.start, rows.len()).unwrap());
                    done[*i] += rows.len();
                }
            }
            for (out, [q, k, v]) in outs.iter().zip(&parts) {
                let out = Tensor::cat(out, 0).unwrap();
                let packing = Packing::single(q.dim(0).unwrap());
                let (want, _) = plain::attention(&wide(q), &wide(k), &wide(v), &packing, heads).unwrap();
                near(&out, &want, 3e-6, &format!("{kernels:?} {heads:?}"));
                if kernels == Kernels::Cpu {
                    let (packed, _) = kernel::attention(CPU, q, k, v, &packing, heads).unwrap();
                    assert_eq!(numbers(&out), numbers(&packed), "the cache changed bits");
                }
            }
        }
    }
}

/// softmax(x W^T / temperature): probabilities (n, v) and their logarithms.
fn distribution(x: &Tensor, w: &Tensor, temperature: f64) -> (Tensor, Tensor) {
    let z = (x.matmul(&w.t().unwrap()).unwrap() / temperature).unwrap();
    let z = z.broadcast_sub(&z.max_keepdim(1).unwrap()).unwrap();
    let log = z.broadcast_sub(&z.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap()).unwrap();
    (log.exp().unwrap(), log)
}

#[test]
fn the_head_scores_and_its_gradients_are_those_of_float64() {
    let mut rng = Rng::new(10, 0);
    for (n, d, v, temperature, size) in [
        (1, 1, 2, 1.0, 1.0),
        (7, 5, 3, 0.6, 1.0),
        (127, 16, 33, 1.0, 0.3),
        (128, 24, 320, 1.7, 0.3),
        (129, 48, 101, 0.1, 0.3),
        (300, 20, 777, 1.0, 0.2),
        (9, 12, 5003, 1.0, 3.0),
    ] {
        let what = format!("{n} targets of {v}, hidden {d}, temperature {temperature}");
        let x = random(&mut rng, &[n, d], 1.0);
        let w = random(&mut rng, &[v, d], size);
        let targets: Vec<u32> = (0..n).map(|_| rng.below(v) as u32).collect();
        let coefficients: Vec<f32> = (0..n).map(|_| rng.normal() as f32).collect();
        let mut head = Param::new("head", w.clone());
        let scored = layer::score(CPU, &x, &head, &targets, temperature).unwrap();
        let mut seen = Vec::new();
        let coefficient = |i: usize, s: TokenStats| {
            seen.push((i, s));
            coefficients[i]
        };
        let (stats, dx) = layer::score_backward(CPU, &x, &mut head, &targets, temperature, coefficient).unwrap();
        assert_eq!(stats, scored, "{what}: training and scoring differ");
        assert_eq!(seen, stats.iter().copied().enumerate().collect::<Vec<_>>(), "{what}: each row is asked for once");

        let (x, w) = (wide(&x), wide(&w));
        let temperature = f64::from(temperature);
        let pick = Tensor::new(targets.as_slice(), &Device::Cpu).unwrap().unsqueeze(1).unwrap();
        let c = wide(&Tensor::new(coefficients.as_slice(), &Device::Cpu).unwrap()).unsqueeze(1).unwrap();
        let (p, log) = distribution(&x, &w, temperature);
        let logp = log.gather(&pick, 1).unwrap();
        let entropy = (&p * &log).unwrap().sum(1).unwrap().neg().unwrap();
        let got: Vec<f64> = stats.iter().map(|s| f64::from(s.logp)).collect();
        near_numbers(&got, &numbers(&logp), 2e-6, &what);
        let got: Vec<f64> = stats.iter().map(|s| f64::from(s.entropy)).collect();
        let errors: Vec<f64> = got.iter().zip(numbers(&entropy)).map(|(a, b)| (a - b).abs()).collect();
        assert!(errors.iter().all(|e| *e < 2e-5), "{what}: entropy off by {errors:?}");

        let ones = c.ones_like().unwrap();
        let onehot = p.zeros_like().unwrap().scatter_add(&pick, &ones, 1).unwrap();
        let dz = ((onehot - p).unwrap().broadcast_mul(&c).unwrap() / temperature).unwrap();
        let (dx64, dw64) = (dz.matmul(&w).unwrap(), dz.t().unwrap().matmul(&x).unwrap());
        near(&dx, &dx64, 1e-5, &what);
        near(head.grad.as_ref().unwrap(), &dw64, 1e-5, &what);
        if n * v < 20_000 && temperature > 0.5 {
            let f = |i: &[Tensor]| inner(&distribution(&i[0], &i[1], temperature).1.gather(&pick, 1).unwrap(), &c);
            slopes(&mut rng, f, &[x, w], &[dx64, dw64], &what);
        }
    }
}

#[test]
fn the_head_adds_to_the_gradient_it_finds_and_leaves_a_frozen_matrix_alone() {
    let mut rng = Rng::new(11, 0);
    let (x, w) = (random(&mut rng, &[6, 8], 1.0), random(&mut rng, &[11, 8], 1.0));
    let targets = [0, 1, 2, 3, 10, 10];
    let run = |head: &mut Param| layer::score_backward(CPU, &x, head, &targets, 1.0, |_, _| -0.5).unwrap().1;
    let mut once = Param::new("head", w.clone());
    let dx = run(&mut once);
    let mut twice = Param::new("head", w.clone());
    run(&mut twice);
    run(&mut twice);
    let doubled = (once.grad.as_ref().unwrap() * 2.0).unwrap();
    near(twice.grad.as_ref().unwrap(), &wide(&doubled), 1e-6, "two sweeps");
    let mut frozen = Param::new("head", w);
    frozen.trainable = false;
    assert_eq!(numbers(&run(&mut frozen)), numbers(&dx));
    assert!(frozen.grad.is_none(), "a frozen matrix got memory for a gradient");
}

#[test]
fn embedding_rows_are_copied_and_their_gradients_add_up() {
    let mut rng = Rng::new(12, 0);
    for (v, d, n) in [(2, 1, 5), (7, 3, 1), (50, 33, 200), (1000, 64, 77)] {
        let table = random(&mut rng, &[v, d], 1.0);
        let ids: Vec<u32> = (0..n).map(|_| rng.below(v) as u32).collect();
        let rows = kernel::embedding(CPU, &table, &ids).unwrap();
        let dy = random(&mut rng, &[n, d], 1.0);
        let start = random(&mut rng, &[v, d], 1.0);
        let mut grad = start.copy().unwrap();
        kernel::embedding_backward(CPU, &dy, &ids, &mut grad).unwrap();
        let all = numbers(&table);
        let mut want = numbers(&start);
        let dy = numbers(&dy);
        for (i, id) in ids.iter().enumerate() {
            let at = *id as usize * d;
            assert_eq!(numbers(&rows.get(i).unwrap()), all[at..at + d]);
            for j in 0..d {
                want[at + j] += dy[i * d + j];
            }
        }
        near_numbers(&numbers(&grad), &want, 2e-6, &format!("({v}, {d}), {n} ids"));
    }
}

#[test]
fn adamw_moves_as_in_float64_over_many_steps() {
    let mut rng = Rng::new(13, 0);
    for (n, weight_decay, scale) in [(1, 0.0, 1.0), (1001, 0.1, 0.37), (40_000, 0.01, 1.0)] {
        let start = random(&mut rng, &[n], 0.1);
        let mut p = start.copy().unwrap();
        let (mut m, mut v) = (p.zeros_like().unwrap(), p.zeros_like().unwrap());
        let (mut p64, mut m64, mut v64) = (wide(&p), wide(&m), wide(&v));
        for t in 1..=8 {
            let step = AdamStep {
                lr: 1e-3,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay,
                scale,
                correction: [(1.0 - 0.9f64.powi(t)) as f32, (1.0 - 0.95f64.powi(t)) as f32],
            };
            let g = random(&mut rng, &[n], 0.1);
            kernel::adamw(CPU, &mut p, &g, &mut m, &mut v, step).unwrap();
            plain::adamw(&mut p64, &wide(&g), &mut m64, &mut v64, step).unwrap();
        }
        let what = format!("{n} entries");
        near(&m, &m64, 1e-6, &what);
        near(&v, &v64, 1e-6, &what);
        // what matters is the move: 8 steps of 1e-3
        let moved = |p: &Tensor| (wide(p) - wide(&start)).unwrap();
        near(&moved(&p), &moved(&p64), 2e-4, &what);
    }
}

#[test]
fn one_adamw_step_is_the_formula() {
    let t = |x: f32| Tensor::new(&[x], &Device::Cpu).unwrap();
    let (mut p, mut m, mut v) = (t(2.0), t(0.5), t(0.25));
    let step = AdamStep {
        lr: 0.1,
        beta1: 0.75,
        beta2: 0.5,
        eps: 0.125,
        weight_decay: 0.25,
        scale: 0.5,
        correction: [0.4375, 0.75],
    };
    kernel::adamw(CPU, &mut p, &t(3.0), &mut m, &mut v, step).unwrap();
    // g = 1.5; m = 0.75 x 0.5 + 0.25 x 1.5; v = 0.5 x 0.25 + 0.5 x 2.25
    assert_eq!((numbers(&m)[0], numbers(&v)[0]), (0.75, 1.25));
    let want = 2.0 * (1.0 - 0.1 * 0.25) - 0.1 * (0.75 / 0.4375) / ((1.25f64 / 0.75).sqrt() + 0.125);
    assert!((numbers(&p)[0] - want).abs() < 1e-6, "{} and {want}", numbers(&p)[0]);
}

#[test]
fn a_sum_of_squares_is_taken_in_float64() {
    let mut rng = Rng::new(14, 0);
    for n in [1, 4095, 4097, 100_003] {
        let x = random(&mut rng, &[n], 1e-3);
        let want: f64 = numbers(&x).iter().map(|x| x * x).sum();
        let got = kernel::sum_squares(CPU, &x).unwrap();
        assert!((got - want).abs() < 1e-12 * want, "{n}: {got}, expected {want}");
    }
}
