//! Kernels of a training step, in the shapes of models A and B: `cargo bench -p actloom-ops --bench kernels`.
//!
//! Invariant: each group says its work (multiply-adds or elements), so criterion prints a rate that can be compared.

use std::hint::black_box;

use actloom_ops::nn::cpu::matmul::{Lhs, Packed, matmul};
use actloom_ops::nn::cpu::{packed, rows};
use actloom_ops::nn::{Heads, Packing};
use actloom_ops::rng::Rng;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn random(n: usize, stream: u64) -> Vec<f32> {
    let mut rng = Rng::new(1, stream);
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// (model, hidden, mlp, query heads, key heads, vocabulary)
const MODELS: [(&str, usize, usize, usize, usize, usize); 2] =
    [("A", 256, 768, 4, 2, 2048), ("B", 512, 1536, 8, 4, 8192)];
/// Tokens of a row.
const N: usize = 1024;

fn products(c: &mut Criterion) {
    let mut group = c.benchmark_group("matmul");
    for (model, hidden, mlp, _, _, vocab) in MODELS {
        let shapes = [("square", N, hidden, hidden), ("up", N, hidden, mlp), ("down", N, mlp, hidden)];
        for (name, n, input, out) in
            shapes.into_iter().chain([("head", 128, hidden, vocab), ("one row", 1, hidden, mlp)])
        {
            group.throughput(Throughput::Elements((n * input * out) as u64));
            let (x, w, dy) = (random(n * input, 1), random(out * input, 2), random(n * out, 3));
            let weight = Packed::transposed(&w, out, input);
            let (mut y, mut dx, mut dw) = (vec![0f32; n * out], vec![0f32; n * input], vec![0f32; out * input]);
            let id = |what: &str| BenchmarkId::new(format!("{model} {name}"), what);
            group.bench_function(id("forward"), |b| {
                b.iter(|| matmul(Lhs::rows(&x, input), &weight, &mut y, n, false));
            });
            if n == 1 {
                continue;
            }
            group.bench_function(id("dx"), |b| {
                b.iter(|| matmul(Lhs::rows(&dy, out), &Packed::rows(&w, out, input), &mut dx, n, false));
            });
            group.bench_function(id("dw"), |b| {
                b.iter(|| matmul(Lhs::transposed(&dy, out), &Packed::rows(&x, n, input), &mut dw, out, true));
            });
        }
    }
    group.finish();
}

fn attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    for (model, _, _, h, hk, _) in MODELS {
        let heads = Heads { h, hk, d: 64, window: None };
        let mut tree = Packing::new();
        let root = tree.root(512);
        (0..8).for_each(|_| {
            tree.child(root, 64);
        });
        let mut two = Packing::new();
        two.root(512);
        two.root(512);
        for (name, packing) in [("1 x 1024", Packing::single(1024)), ("2 x 512", two), ("512 + 8 x 64", tree)] {
            let n = packing.len();
            let mut visible = Vec::new();
            let pairs: usize = (0..n)
                .map(|row| {
                    packing.visible(row, &mut visible);
                    visible.iter().map(|r| r.len()).sum::<usize>()
                })
                .sum();
            group.throughput(Throughput::Elements((pairs * h * 64 * 2) as u64));
            let (q, k, v) = (random(n * h * 64, 1), random(n * hk * 64, 2), random(n * hk * 64, 3));
            let (mut out, mut stats) = (vec![0f32; q.len()], vec![0f32; n * h * 2]);
            group.bench_function(BenchmarkId::new(format!("{model} forward"), name), |b| {
                b.iter(|| packed::forward(&q, &k, &v, &packing, heads, &mut out, &mut stats));
            });
            let (mut dq, mut dk, mut dv) = (vec![0f32; q.len()], vec![0f32; k.len()], vec![0f32; v.len()]);
            group.bench_function(BenchmarkId::new(format!("{model} backward"), name), |b| {
                b.iter(|| packed::backward(&out, &q, &k, &v, &stats, &packing, heads, &mut dq, &mut dk, &mut dv));
            });
        }
    }
    group.finish();
}

fn by_rows(c: &mut Criterion) {
    let mut group = c.benchmark_group("rows");
    for (model, hidden, mlp, h, _, vocab) in MODELS {
        let mut bench = |name: &str, elements: usize, f: &mut dyn FnMut()| {
            group.throughput(Throughput::Elements(elements as u64));
            group.bench_function(BenchmarkId::new(name, model), |b| b.iter(&mut *f));
        };
        let (x, dy, w) = (random(N * hidden, 1), random(N * hidden, 2), random(hidden, 3));
        let (mut y, mut r, mut dw) = (vec![0f32; N * hidden], vec![0f32; N], vec![0f32; hidden]);
        bench("norm", x.len(), &mut || rows::rms_norm(&x, &w, 1e-6, &mut y, &mut r));
        let rstd = vec![1f32; N];
        bench("norm backward", x.len(), &mut || rows::rms_norm_backward(&dy, &x, &w, &rstd, &mut y, &mut dw));
        let (cos, sin) = (random(N * 32, 4), random(N * 32, 5));
        let positions: Vec<u32> = (0..N as u32).collect();
        let mut q = random(N * h * 64, 6);
        bench("rope", N * h * 64, &mut || rows::rope(&mut q, h, 64, &cos, &sin, &positions, 1.0));
        let (gate, up, da) = (random(N * mlp, 7), random(N * mlp, 8), random(N * mlp, 9));
        let (mut a, mut b) = (vec![0f32; N * mlp], vec![0f32; N * mlp]);
        bench("swiglu", N * mlp, &mut || rows::swiglu(&gate, &up, &mut a));
        bench("swiglu backward", N * mlp, &mut || rows::swiglu_backward(&da, &gate, &up, &mut a, &mut b));
        let z = random(128 * vocab, 10);
        bench("head statistics", z.len(), &mut || {
            z.chunks_exact(vocab).for_each(|z| {
                black_box(rows::row_stats(z, 3, 1.0));
            });
        });
        let stats = rows::row_stats(&z[..vocab], 3, 1.0);
        let mut dz = z.clone();
        bench("head gradient", z.len(), &mut || {
            dz.chunks_exact_mut(vocab).for_each(|z| rows::row_backward(z, 3, 1.0, stats, 1e-30));
        });
    }
    let n = 3_700_000;
    let (mut p, g, mut m, mut v) = (random(n, 11), random(n, 12), vec![0f32; n], vec![0f32; n]);
    let step = rows::AdamStep {
        lr: 1e-6,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.0,
        scale: 1.0,
        correction: [0.5, 0.5],
    };
    group.throughput(Throughput::Elements(n as u64));
    group.bench_function("adamw", |b| b.iter(|| rows::adamw(&mut p, &g, &mut m, &mut v, step)));
    group.bench_function("sum of squares", |b| b.iter(|| rows::sum_squares(&g)));
    group.finish();
}

criterion_group!(benches, products, attention, by_rows);
criterion_main!(benches);
