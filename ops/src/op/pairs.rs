//! `pairs`: expert action and alternative side by side, in seeded random order, exactly balanced.
//!
//! 1. Which episodes are held out: whole tasks.
//! 2. The pairs of every state.
//! 3. The limit, the order of each pair, and copies in the other order.
//!
//! Invariants: in training and among what is held out alike, the expert's action stands second in exactly half of the
//! pairs (one less where their number is odd); no task is in both parts; no pair for training is of a test: of the same
//! task, or of an episode that is equal from its start to its end. Pairs hold text and never token ids, so that another
//! model may learn from them.

use std::collections::{BTreeSet, HashMap, HashSet};

use actloom_engine::event::Level;
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
    /// What becomes of an episode that would be trained on and is among the `tests`.
    #[serde(default)]
    pub on_leak: OnLeak,
}

/// What becomes of an episode that would be trained on and is among the tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnLeak {
    /// The step fails and names it.
    #[default]
    Refuse,
    /// It gives no pair, and is counted: `leaked`.
    Drop,
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
    const VERSION: u32 = 4;
    const ABOUT: &'static str = "puts the expert's action and an alternative side by side";

    fn ports(&self, _: &Params) -> Ports {
        let tests = "episodes of the tasks that will be tested on, none of which may be trained on: see `on_leak`";
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
        let mut leaked = BTreeSet::new();
        for (e, episode) in episodes.iter().enumerate().filter(|(e, _)| !out.contains(e)) {
            match (tests.leak(episode), p.on_leak) {
                (None, _) => {}
                (Some(_), OnLeak::Drop) => drop(leaked.insert(e)),
                (Some(what), OnLeak::Refuse) => return Err(refused(e, episode, what)),
            }
        }
        if p.on_leak == OnLeak::Drop {
            ctx.metric(0, "leaked", leaked.len() as f64);
        }
        // 2. the pairs
        let mut pairs = Vec::new();
        let mut found = Found { lines: samples.len(), leaked: leaked.len(), ..Found::default() };
        for line in &samples {
            let (episode, turn) = state(&episodes, line)?;
            found.alternatives += line.alternatives.len();
            if leaked.contains(&line.episode) {
                found.of_leaked += line.alternatives.len();
                continue;
            }
            let wanted = line.alternatives.iter().filter(|a| {
                let (equal, impossible) = (a.action == line.expert, p.only == Only::Admissible && !a.admissible);
                found.equal += usize::from(equal);
                found.inadmissible += usize::from(!equal && impossible);
                !equal && !impossible
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
        if found.equal > 0 {
            ctx.metric(0, "equal_left_out", found.equal as f64);
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
            return Err(found.none());
        }
        if found.leaked > 0 && pairs.iter().all(|pair| pair.held_out) {
            let n = found.leaked;
            let what = format!("no pair is left to train on: all {n} episodes for training are among the tests");
            ctx.say(Level::Warning, what + "; make the demonstrations of other tasks");
        }
        let (states, same) = twins(&pairs);
        ctx.metric(0, "held_out_states_in_training", states as f64);
        ctx.metric(0, "held_out_pairs_in_training", same as f64);
        ctx.metric(0, "pairs", pairs.iter().filter(|p| !p.held_out).count() as f64);
        ctx.metric(0, "held_out", pairs.iter().filter(|p| p.held_out).count() as f64);
        artifact::write(ctx.output("pairs"), &pairs)
    }
}

/// Held-out pairs whose state, as told, is one of training too, and those of which the two actions are as well: tasks are apart, and
/// two games may begin alike.
fn twins(pairs: &[Pair]) -> (usize, usize) {
    let state = |pair: &Pair| (pair.task.goal.clone(), pair.past.start.clone(), pair.past.turns.clone());
    let actions = |pair: &Pair| {
        let mut shown = pair.shown.clone();
        shown.sort();
        shown
    };
    let mut training: HashMap<_, HashSet<[String; 2]>> = HashMap::new();
    for pair in pairs.iter().filter(|pair| !pair.held_out) {
        training.entry(state(pair)).or_default().insert(actions(pair));
    }
    let found: Vec<bool> = pairs
        .iter()
        .filter(|pair| pair.held_out)
        .filter_map(|pair| Some(training.get(&state(pair))?.contains(&actions(pair))))
        .collect();
    (found.len(), found.iter().filter(|same| **same).count())
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

/// What the samples hold, and why it makes no pair.
#[derive(Default)]
struct Found {
    lines: usize,
    alternatives: usize,
    /// Equal to the expert's action.
    equal: usize,
    /// Other than the expert's action, and not admissible where that is asked for.
    inadmissible: usize,
    /// Of episodes that are among the tests.
    of_leaked: usize,
    /// Episodes that are among the tests.
    leaked: usize,
}

impl Found {
    /// The error of no pair at all.
    fn none(&self) -> OpError {
        let Found { lines, alternatives, equal, inadmissible, of_leaked, leaked } = self;
        let mut what =
            format!("there is no pair: the samples are of {lines} states and hold {alternatives} alternatives");
        if *alternatives == 0 {
            return OpError::with_help(
                what,
                "the metrics of `alternatives` say what became of its draws (`unfinished`, `equal_to_expert`, \
                 `inadmissible_dropped`, ..): raise its `refill`, `max_tokens` or `temperature`, or drop less",
            );
        }
        let reasons = [
            (*equal, "equal to the expert's action".to_owned()),
            (*inadmissible, "not admissible".to_owned()),
            (*of_leaked, format!("of {leaked} episodes that are among the tests")),
        ];
        let told: Vec<String> =
            reasons.into_iter().filter(|(n, _)| *n > 0).map(|(n, why)| format!("{n} {why}")).collect();
        if !told.is_empty() {
            what.push_str(&format!(", {}", told.join(", ")));
        }
        OpError::with_help(
            what,
            if *inadmissible > 0 {
                "write `only = \"all\"`, or draw admissible ones: `source = \"uniform\"` of `alternatives`"
            } else if *equal > 0 {
                "raise `per_state` or `temperature` of `alternatives`"
            } else {
                "make the demonstrations of other tasks than the tests"
            },
        )
    }
}

/// An episode's start and goal, and what was done and seen in it.
type Whole = (String, String, Vec<[String; 2]>);

fn whole(episode: &Episode) -> Whole {
    let turns = episode.turns.iter().map(|turn| [turn.action.clone(), turn.observation.clone()]);
    (episode.start.clone(), episode.task.goal.clone(), turns.collect())
}

/// What will be tested on.
#[derive(Default)]
struct Tests {
    tasks: HashSet<(String, String, Option<u64>)>,
    /// Another task may begin with the same text and have the same goal, with its objects in other places; what differs
    /// is seen on the way.
    episodes: HashSet<Whole>,
}

impl Tests {
    fn add(&mut self, episodes: Vec<Episode>) {
        for episode in episodes {
            self.episodes.insert(whole(&episode));
            self.tasks.insert((episode.task.env, episode.task.id, episode.task.seed));
        }
    }

    /// Why an episode is a test.
    fn leak(&self, episode: &Episode) -> Option<&'static str> {
        let Task { env, id, seed, .. } = &episode.task;
        if self.tasks.contains(&(env.clone(), id.clone(), *seed)) {
            Some("its task is among the tests")
        } else if self.episodes.contains(&whole(episode)) {
            Some("an episode of the tests is the same from its start to its end")
        } else {
            None
        }
    }
}

/// The error of training on a test.
fn refused(number: usize, episode: &Episode, what: &str) -> OpError {
    let Task { env, id, .. } = &episode.task;
    OpError::with_help(
        format!("episode {number} (`{env} {id}`) would be trained on, and {what}"),
        "make the demonstrations of other tasks, or write `on_leak = \"drop\"` to leave it out",
    )
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
