//! `pairs`: expert action and alternative side by side, in seeded random order, exactly balanced.
//!
//! 1. Which episodes are held out: whole tasks.
//! 2. The pairs of every state.
//! 3. The limit, the order of each pair, and copies in the other order.
//!
//! Invariants: in training and among what is held out alike, the expert's action stands second in exactly half of the
//! pairs (one less where their number is odd); no task is in both parts; pairs hold text and never token ids, so that
//! another model may learn from them.

use std::collections::{BTreeSet, HashMap, HashSet};

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::past;
use crate::artifact::{self, Episode, Pair, SCHEMA_VERSION, Samples, Task};
use crate::rng::Rng;

/// Parameters of `pairs`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Pairs at most for one state: the alternatives that were sampled first.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1024))]
    pub per_state: usize,
    /// Which alternatives are taken.
    #[serde(default)]
    pub only: Only,
    /// Share of episodes whose pairs are kept away from training. Episodes of one task go together, so that it can be a
    /// few more.
    #[serde(default = "tenth")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub held_out: f64,
    /// What is kept of the turns before a state.
    #[serde(default)]
    pub past: Kept,
    /// Pairs for training at most, copies in the other order counted, taken in seeded random order; 0 takes all.
    #[serde(default)]
    pub limit: usize,
    /// Write each pair twice, in both orders, one behind the other.
    #[serde(default)]
    pub both_orders: bool,
}

/// Which alternatives are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Only {
    #[default]
    All,
    /// Those that were possible.
    Admissible,
}

/// What is kept of the turns before a state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// What was done and seen.
    #[default]
    Texts,
    /// Also what was said and which actions were possible, for prompts that tell them.
    Whole,
}

fn one() -> usize {
    1
}
fn tenth() -> f64 {
    0.1
}

/// The op.
pub struct Pairs;

impl Op for Pairs {
    type Params = Params;
    const NAME: &'static str = "pairs";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "puts the expert's action and an alternative side by side";

    fn ports(&self, _: &Params) -> Ports {
        let tests = "episodes of the tasks that will be tested on; the step fails if one of them is trained on";
        Ports::new()
            .input("states", Kind::EPISODES, "the expert episodes that the alternatives were sampled at")
            .input("alternatives", Kind::SAMPLES, "what the policy would have done")
            .port("tests", &[Kind::EPISODES], Arity::ManyOptional, tests)
            .output("pairs", Kind::PAIRS, "one pair a line")
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        if p.both_orders && !p.limit.is_multiple_of(2) {
            let what = format!("{} pairs cannot each stand beside their copy, expected an even number", p.limit);
            return vec![Problem::new(&["limit"], what)];
        }
        Vec::new()
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let episodes: Vec<Episode> = artifact::read(ctx.input("states"))?;
        let samples: Vec<Samples> = artifact::read(ctx.input("alternatives"))?;
        // 1. what is held out, and whether a test is not
        let out = held_out(&episodes, p.held_out, ctx.seed("held-out"));
        let mut tests = Tests::default();
        for input in ctx.inputs("tests") {
            tests.add(artifact::read(&input.path)?);
        }
        for (e, episode) in episodes.iter().enumerate().filter(|(e, _)| !out.contains(e)) {
            tests.refuse(e, episode)?;
        }
        // 2. the pairs
        let (mut pairs, mut equal) = (Vec::new(), 0);
        for line in &samples {
            let (episode, turn) = state(&episodes, line)?;
            let wanted = line.alternatives.iter().filter(|a| {
                equal += usize::from(a.action == line.expert);
                a.action != line.expert && (p.only == Only::All || a.admissible)
            });
            for alternative in wanted.take(p.per_state) {
                pairs.push(Pair {
                    v: SCHEMA_VERSION,
                    task: episode.task.clone(),
                    episode: line.episode,
                    turn: line.turn,
                    past: past(episode, line.turn, p.past == Kept::Whole),
                    shown: [line.expert.clone(), alternative.action.clone()],
                    expert: 0,
                    actions: turn.actions.clone(),
                    held_out: out.contains(&line.episode),
                });
            }
        }
        if equal > 0 {
            ctx.metric(0, "equal_left_out", equal as f64);
        }
        // 3. limit and order
        let mut rng = Rng::new(ctx.seed("order"), 0);
        let limit = if p.both_orders { p.limit / 2 } else { p.limit };
        if p.limit > 0 {
            shorten(&mut pairs, limit, &mut rng);
        }
        balance(&mut pairs, &mut rng);
        if p.both_orders {
            pairs = pairs.into_iter().flat_map(|pair| [pair.swapped(), pair]).collect();
        }
        if pairs.is_empty() {
            return Err(match p.only {
                Only::Admissible => OpError::with_help(
                    "there is no pair: no alternative is admissible and another action than the expert's",
                    "write `only = \"all\"`, or draw admissible ones: `source = \"uniform\"` of `alternatives`",
                ),
                Only::All => OpError::with_help(
                    "there is no pair: every alternative equals the expert's action",
                    "raise `per_state` or `temperature` of `alternatives`",
                ),
            });
        }
        ctx.metric(0, "pairs", pairs.iter().filter(|p| !p.held_out).count() as f64);
        ctx.metric(0, "held_out", pairs.iter().filter(|p| p.held_out).count() as f64);
        artifact::write(ctx.output("pairs"), &pairs)
    }
}

/// Tasks of equal keys are the same task.
fn key(task: &Task) -> (&str, &str, Option<u64>) {
    (&task.env, &task.id, task.seed)
}

/// Which episodes are held out: tasks in seeded order, until there are enough episodes.
fn held_out(episodes: &[Episode], share: f64, seed: u64) -> BTreeSet<usize> {
    let mut places = HashMap::new();
    let mut tasks: Vec<Vec<usize>> = Vec::new();
    for (e, episode) in episodes.iter().enumerate() {
        let place = *places.entry(key(&episode.task)).or_insert(tasks.len());
        if place == tasks.len() {
            tasks.push(Vec::new());
        }
        tasks[place].push(e);
    }
    Rng::new(seed, 0).shuffle(&mut tasks);
    let wanted = (episodes.len() as f64 * share).round() as usize;
    let mut out = BTreeSet::new();
    for task in tasks {
        if out.len() >= wanted {
            break;
        }
        out.extend(task);
    }
    out
}

/// Tasks that will be tested on.
#[derive(Default)]
struct Tests {
    keys: HashSet<(String, String, Option<u64>)>,
    /// Start and goal, which are the whole task as an agent sees it.
    texts: HashSet<(String, String)>,
}

impl Tests {
    fn add(&mut self, episodes: Vec<Episode>) {
        for Episode { task, start, .. } in episodes {
            self.keys.insert((task.env, task.id, task.seed));
            self.texts.insert((start, task.goal));
        }
    }

    /// Refuses to train on a test.
    fn refuse(&self, number: usize, episode: &Episode) -> Result<(), OpError> {
        let Episode { task, start, .. } = episode;
        let what = if self.keys.contains(&(task.env.clone(), task.id.clone(), task.seed)) {
            "its task is among the tests"
        } else if self.texts.contains(&(start.clone(), task.goal.clone())) {
            "a test begins with the same text and has the same goal"
        } else {
            return Ok(());
        };
        Err(OpError::with_help(
            format!("episode {number} (`{} {}`) would be trained on, and {what}", task.env, task.id),
            "make the demonstrations of other tasks, or leave it out of them",
        ))
    }
}

/// The state that a line of samples speaks of.
fn state<'a>(episodes: &'a [Episode], line: &Samples) -> Result<(&'a Episode, &'a artifact::Turn), OpError> {
    let episode = episodes.get(line.episode);
    let Some((episode, turn)) = episode.and_then(|e| e.turns.get(line.turn).map(|t| (e, t))) else {
        let (e, t) = (line.episode, line.turn);
        return Err(OpError::failed(format!("the samples speak of turn {t} of episode {e}, which is not there")));
    };
    if turn.action != line.expert {
        return Err(OpError::with_help(
            format!("episode {}, turn {}: the samples were made with other episodes", line.episode, line.turn),
            "give `states` the episodes that `alternatives` was given",
        ));
    }
    Ok((episode, turn))
}

/// Leaves so many pairs for training; those that are held out stay.
fn shorten(pairs: &mut Vec<Pair>, limit: usize, rng: &mut Rng) {
    let mut training: Vec<usize> = (0..pairs.len()).filter(|i| !pairs[*i].held_out).collect();
    rng.shuffle(&mut training);
    let drop: BTreeSet<usize> = training.into_iter().skip(limit).collect();
    let mut index = 0;
    pairs.retain(|_| {
        index += 1;
        !drop.contains(&(index - 1))
    });
}

/// Turns exactly half of each part round (one pair less where their number is odd).
fn balance(pairs: &mut [Pair], rng: &mut Rng) {
    for part in [false, true] {
        let mut chosen: Vec<usize> = (0..pairs.len()).filter(|i| pairs[*i].held_out == part).collect();
        rng.shuffle(&mut chosen);
        for i in chosen.iter().take(chosen.len() / 2) {
            pairs[*i] = pairs[*i].swapped();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::artifact::Past;
    use crate::eval::scores::tests::episode;

    fn pair(number: usize, held_out: bool) -> Pair {
        Pair {
            v: SCHEMA_VERSION,
            task: episode("id/0", "look", true, &[]).task,
            episode: number,
            turn: 0,
            past: Past::of_texts("s".to_owned(), Vec::new()),
            shown: ["right".to_owned(), format!("wrong {number}")],
            expert: 0,
            actions: Vec::new(),
            held_out,
        }
    }

    proptest! {
        #[test]
        fn each_part_is_balanced_and_the_limit_is_exact(
            parts in proptest::collection::vec(any::<bool>(), 0..60), limit in 0..40usize, seed: u64,
        ) {
            let mut pairs: Vec<Pair> = parts.iter().enumerate().map(|(i, out)| pair(i, *out)).collect();
            let mut rng = crate::rng::Rng::new(seed, 0);
            let of = |pairs: &[Pair], part: bool| pairs.iter().filter(|p| p.held_out == part).count();
            let (training, held) = (of(&pairs, false), of(&pairs, true));
            shorten(&mut pairs, limit, &mut rng);
            prop_assert_eq!((of(&pairs, false), of(&pairs, true)), (training.min(limit), held));
            balance(&mut pairs, &mut rng);
            for part in [false, true] {
                let second = pairs.iter().filter(|p| p.held_out == part && p.expert == 1).count();
                prop_assert_eq!(second, of(&pairs, part) / 2);
            }
            for p in &pairs {
                prop_assert_eq!(&p.shown[p.expert], "right");
                prop_assert_eq!(&p.shown[1 - p.expert], &format!("wrong {}", p.episode));
            }
        }

        #[test]
        fn episodes_of_one_task_are_held_out_together(
            tasks in proptest::collection::vec(0..6usize, 0..40), share in 0.0..=1.0f64, seed: u64,
        ) {
            let episodes: Vec<Episode> = tasks.iter().map(|t| episode(&format!("id/{t}"), "look", true, &[])).collect();
            let out = held_out(&episodes, share, seed);
            let wanted = (episodes.len() as f64 * share).round() as usize;
            let largest = (0..6).map(|t| tasks.iter().filter(|u| **u == t).count()).max().unwrap_or(0);
            prop_assert!(out.len() >= wanted && out.len() < wanted + largest.max(1), "{} of {wanted}", out.len());
            for (a, task) in tasks.iter().enumerate() {
                for (b, other) in tasks.iter().enumerate() {
                    prop_assert!(task != other || out.contains(&a) == out.contains(&b));
                }
            }
        }
    }
}
