//! Steps a second of the native worlds, admissible actions of every state included, and how they grow with threads and
//! instances. `cargo run --release -p actloom-ops --example bench_worlds [FOLDER_OF_A_CATALOGUE]`.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::time::Instant;

use actloom_ops::env::household::{self, Size};
use actloom_ops::env::{Env, Suite, WorldSettings};
use actloom_ops::rng::Rng;
use rayon::prelude::*;

/// Steps of each instance.
const STEPS: usize = 400;

/// Random admissible actions; an episode that ends begins again. Gives steps and the number of actions listed.
fn wander(env: &mut dyn Env, index: u64) -> (usize, usize) {
    let mut rng = Rng::at(7, &[index]);
    let (mut listed, mut now) = (0, env.reset().unwrap());
    for _ in 0..STEPS {
        if now.done {
            now = env.reset().unwrap();
            continue;
        }
        let actions = env.admissible().unwrap().unwrap();
        listed += actions.len();
        now = env.step(&actions[rng.below(actions.len())]).unwrap();
    }
    (STEPS, listed)
}

fn measure(name: &str, suite: &dyn Suite, split: &str, instances: usize, threads: usize) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let clock = Instant::now();
    let mut games: Vec<Box<dyn Env>> =
        pool.install(|| (0..instances).into_par_iter().map(|i| suite.open(split, i, 0).unwrap()).collect());
    let opened = clock.elapsed().as_secs_f64();
    let clock = Instant::now();
    let counts: Vec<(usize, usize)> =
        pool.install(|| games.par_iter_mut().enumerate().map(|(i, env)| wander(&mut **env, i as u64)).collect());
    let spent = clock.elapsed().as_secs_f64();
    let steps: usize = counts.iter().map(|c| c.0).sum();
    let listed: usize = counts.iter().map(|c| c.1).sum();
    println!(
        "{name:<24} {instances:>6} instances {threads:>2} threads  {:>9.0} steps/s  {:>5.1} actions listed  open {:>7.3} ms each",
        steps as f64 / spent,
        listed as f64 / steps as f64,
        1e3 * opened / instances as f64,
    );
}

fn main() {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    for (name, size) in [("household tiny", Size::Tiny), ("household alfred", Size::Alfred)] {
        let settings = household::Settings { size, ..household::Settings::default() };
        let suite = WorldSettings::Household(settings).open(None).unwrap();
        for (instances, threads) in [(64, 1), (4096, 1), (4096, cores)] {
            measure(name, &*suite, "train", instances, threads);
        }
    }
    if let Some(folder) = std::env::args().nth(1) {
        let world: WorldSettings = serde_json::from_str(r#"{"env": "webshop"}"#).unwrap();
        let suite = world.open(Some(folder.as_str().into())).unwrap();
        let there = suite.count("train").unwrap().unwrap();
        for (instances, threads) in [(64, 1), (1024, 1), (1024, cores)] {
            measure("webshop", &*suite, "train", instances.min(there), threads);
        }
    }
}
