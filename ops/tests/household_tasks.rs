//! Generated households: tasks, splits, experts, random play.

use actloom_ops::env::Env;
use actloom_ops::env::household::{self, Household, Settings, Size, Split, TaskKind};

const SIZES: [Size; 4] = [Size::Tiny, Size::Small, Size::Medium, Size::Alfred];
const SPLITS: [Split; 3] = [Split::Train, Split::Id, Split::Ood];

fn of_size(size: Size) -> Settings {
    Settings { size, ..Settings::default() }
}

/// Lets the expert play; gives its steps, or panics with the transcript.
fn solve(world: &mut Household, limit: usize) -> usize {
    let mut transcript = world.reset().text;
    for steps in 0..limit {
        let Some(action) = world.expert() else {
            assert!(world.won(), "the expert gave up:\n{transcript}");
            return steps;
        };
        assert!(world.admissible().contains(&action), "`{action}` is not admissible:\n{transcript}");
        let observed = world.step(&action);
        transcript.push_str(&format!("\n> {action}\n{}", observed.text));
    }
    assert!(world.won(), "not won within {limit} steps:\n{transcript}");
    limit
}

#[test]
#[ignore = "prints numbers for the curious"]
fn statistics() {
    use std::io::Write;
    let mut out = std::io::stderr();
    for size in SIZES {
        for split in SPLITS {
            let at = std::time::Instant::now();
            let tasks = household::tasks(&of_size(size), split, 600, 3);
            let made = at.elapsed();
            let at = std::time::Instant::now();
            let steps: Vec<usize> = tasks.iter().map(|task| solve(&mut task.play(), 150)).collect();
            let searched = at.elapsed();
            let at = std::time::Instant::now();
            let plans: Vec<usize> = tasks.iter().take(60).map(|task| task.play().plan().unwrap().len()).collect();
            let planned = at.elapsed();
            let mean = |steps: &[usize]| steps.iter().sum::<usize>() as f64 / steps.len() as f64;
            writeln!(
                out,
                "{size:?} {split:?}: made {made:?}; search {:.2} (max {}) in {searched:?}; plan {:.2} in {planned:?}",
                mean(&steps),
                steps.iter().max().unwrap(),
                mean(&plans)
            )
            .unwrap();
            for kind in TaskKind::ALL {
                let of: Vec<usize> =
                    tasks.iter().zip(&steps).filter(|(t, _)| t.goal().kind == kind).map(|(_, s)| *s).collect();
                write!(out, "  {} {:.1}", kind.name(), mean(&of)).unwrap();
            }
            writeln!(out).unwrap();
        }
    }
}

#[test]
fn the_searching_expert_wins_every_task_and_needs_few_steps_in_tiny_rooms() {
    for size in SIZES {
        for split in SPLITS {
            let count = if size == Size::Tiny { 1500 } else { 300 };
            let tasks = household::tasks(&of_size(size), split, count, 11);
            let steps: usize = tasks.iter().map(|task| solve(&mut task.play(), 120)).sum();
            let mean = steps as f64 / count as f64;
            assert!(size != Size::Tiny || (5.0..=9.5).contains(&mean), "{split:?}: {mean} steps");
        }
    }
}
