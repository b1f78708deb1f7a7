//! `alternatives`: what else could be done at each state of expert episodes: a policy's own actions, or admissible ones
//! drawn uniformly.
//!
//! 1. Every state has `per_state` places; each is the policy's or a uniform draw's.
//! 2. All empty places are drawn for, and what was drawn goes through the filters.
//! 3. With `refill`, places that stayed empty are drawn for again.
//!
//! Invariants: a place's draw depends on the state, the place and the round alone, never on what is drawn beside it; no
//! alternative stands twice at a state; what was executed left no trace: the next action begins in the state again.

use std::borrow::Cow;
use std::collections::BTreeSet;

use actloom_engine::event::Level;
use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem, Resources};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{self, Filters, kept};
use super::replay::{Replay, Tried};
use crate::artifact::{self, Alternative, Episode, SCHEMA_VERSION, Samples};
use crate::env::{Suite, WorldSettings};
use crate::policy::{Ask, Policy, Sampling, open_with};
use crate::rng::Rng;
use crate::text::Prompt;

/// Who alternatives are drawn by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The policy says them.
    #[default]
    Policy,
    /// Each admissible action of the state is as likely as every other; none is drawn twice.
    Uniform,
    /// `share` of them uniformly, the others by the policy.
    Mixed,
}

/// What is not kept. Duplicates at a state never are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unwanted {
    /// The expert's action, letter by letter.
    Exact,
    /// Also the expert's action in other spelling, and duplicates in other spelling. Spellings are equal where the
    /// texts are, once in lower case, without blanks around them and with one space for each run of blanks inside.
    Canonical,
    /// Actions that are not on the state's list of admissible ones; with `execute`, those that the environment refuses
    /// where it says so.
    Inadmissible,
    /// Actions that lead where the expert's leads, as far as can be perceived: same observation, reward, score, end and
    /// admissible actions. Needs `execute`.
    SameOutcome,
}

/// Parameters of `alternatives`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Draws at each state, and the most that are kept.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1024))]
    pub per_state: usize,
    #[serde(default)]
    pub source: Source,
    /// With `source = "mixed"`: the share of `per_state` that is drawn uniformly, rounded to whole draws; 0.5 if left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub share: Option<f64>,
    /// What is not kept.
    #[serde(default = "exact")]
    pub drop: Vec<Unwanted>,
    /// How often a draw that was not kept is made again.
    #[serde(default)]
    #[schemars(range(max = 1000))]
    pub refill: usize,
    /// Take every alternative in the environment and record what comes of it. Needs `world`.
    #[serde(default)]
    pub execute: bool,
    /// With `execute`: the world that the episodes were played in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub world: Option<WorldSettings>,
    #[serde(default = "temperature")]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub temperature: f64,
    #[serde(default)]
    pub filters: Filters,
    /// How states are put, and how replies are read.
    #[serde(default)]
    pub prompt: Prompt,
    /// Longest reply, in tokens; a longer one is cut off and counts as not ended.
    #[serde(default = "max_tokens")]
    #[schemars(range(min = 1, max = 100000))]
    pub max_tokens: usize,
}

fn one() -> usize {
    1
}
/// The share of uniform draws where none is named.
const SHARE: f64 = 0.5;

fn exact() -> Vec<Unwanted> {
    vec![Unwanted::Exact]
}
fn temperature() -> f64 {
    1.0
}
fn max_tokens() -> usize {
    32
}

impl Params {
    fn drops(&self, what: Unwanted) -> bool {
        self.drop.contains(&what)
    }

    /// How many of a state's places are the policy's; the first ones are.
    fn by_policy(&self) -> usize {
        match self.source {
            Source::Policy => self.per_state,
            Source::Uniform => 0,
            Source::Mixed => self.per_state - (self.per_state as f64 * self.share.unwrap_or(SHARE)).round() as usize,
        }
    }

    /// An action as it is compared.
    fn spelled<'a>(&self, action: &'a str) -> Cow<'a, str> {
        if self.drops(Unwanted::Canonical) { canonical(action).into() } else { action.into() }
    }
}

/// An action in lower case, with one space for each run of blanks and none around it: what text environments take for
/// the same command.
pub fn canonical(action: &str) -> String {
    action.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// What the policy's random numbers are for.
pub(super) const PURPOSE: &str = "samples";

/// WebShop's blank to be filled in, which is no action.
const BLANK: &str = "<your query>";

/// The op.
pub struct Alternatives;

impl Op for Alternatives {
    type Params = Params;
    const NAME: &'static str = "alternatives";
    const VERSION: u32 = 4;
    const ABOUT: &'static str = "draws actions other than the expert's at the states of its episodes";

    fn ports(&self, p: &Params) -> Ports {
        let arity = if p.source == Source::Uniform { Arity::Optional } else { Arity::One };
        let ports = Ports::new()
            .port(
                "policy",
                &[Kind::MODEL, Kind::POLICY],
                arity,
                "whose actions are sampled; not used where all are uniform",
            )
            .input("states", Kind::EPISODES, "expert episodes; each turn is a state");
        let ports = match &p.world {
            Some(world) => world.port(ports),
            None => ports,
        };
        ports.output("samples", Kind::SAMPLES, "actions that differ from the expert's, one state a line")
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        let mut problems = p.prompt.check();
        problems.extend(p.world.iter().flat_map(|world| world.check(None)));
        if p.share.is_some() && p.source != Source::Mixed {
            let what = "`share` is for `source = \"mixed\"`, and the source is another one";
            problems.push(Problem::new(&["share"], what).help("write `source = \"mixed\"`, or leave `share` out"));
        }
        if p.source == Source::Mixed && [0, p.per_state].contains(&p.by_policy()) {
            let (n, who) = (p.per_state, if p.by_policy() == 0 { "uniform" } else { "the policy's" });
            let what = format!("of {n} draws a state all are {who}, expected some of each");
            problems.push(Problem::new(&["per_state"], what).help("raise `per_state`, or change `share` or `source`"));
        }
        if !p.execute && p.world.is_some() {
            let what = "`world` is for `execute = true`, and nothing is executed";
            problems.push(Problem::new(&["world"], what).help("write `execute = true`, or leave `world` out"));
        }
        if p.execute && p.world.is_none() {
            let what = "`execute` needs the world that the episodes were played in";
            problems.push(Problem::new(&["execute"], what).help("write `world = { env = \"household\" }`"));
        }
        if p.drops(Unwanted::SameOutcome) && !p.execute {
            let what = "`same_outcome` is known only of actions that are taken";
            problems.push(Problem::new(&["drop"], what).help("write `execute = true`, or leave it out"));
        }
        if p.refill > 0 && p.temperature == 0.0 && p.source == Source::Policy {
            let what = "at `temperature = 0` a policy says the same again, whatever `refill` is";
            problems.push(Problem::new(&["refill"], what).help("raise `temperature`, or leave `refill` out"));
        }
        problems
    }

    fn resources(&self, p: &Params) -> Resources {
        Resources { cpu: 1, gpu: u32::from(p.source != Source::Uniform) }
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let mut policy = match (p.source, ctx.input_opt("policy")) {
            (Source::Uniform, _) | (_, None) => None,
            (_, Some(path)) => Some(common::open_policy_for(ctx, path, &p.prompt)?),
        };
        let suite = match p.world.as_ref().filter(|_| p.execute) {
            Some(world) => Some(world.open(ctx.input_opt("data"))?),
            None => None,
        };
        if let Some(suite) = &suite {
            ctx.note("world", suite.identity());
        }
        let episodes: Vec<Episode> = artifact::read(ctx.input("states"))?;
        check_lists(p, &episodes)?;
        let mut lines = Vec::new();
        let mut counts = Counts::default();
        for (chunk, part) in episodes.chunks(CHUNK).enumerate() {
            let first = chunk * CHUNK;
            let (more, n) = kept(ctx, &format!("episodes-{first}"), || {
                let (mut lines, mut counts) = (Vec::new(), Counts::default());
                for (i, episode) in part.iter().enumerate() {
                    if ctx.stopping() {
                        return Err(OpError::Interrupted);
                    }
                    let of = Of { p, number: first + i, episode };
                    of.draw(ctx, &mut policy, suite.as_deref(), &mut lines, &mut counts)?;
                }
                Ok((lines, counts))
            })?;
            lines.extend(more);
            counts.add(n);
            ctx.progress((first + part.len()) as u64, episodes.len() as u64, "episodes", "");
        }
        if let Some(policy) = &policy {
            common::note_policy(ctx, &**policy);
        }
        if let Some(suite) = &suite {
            let same = policy.as_ref().is_none_or(|policy| policy.identity().reproducible);
            ctx.note("reproducible", same && suite.reproducible());
        }
        if counts.strayed > 0 {
            let what =
                "left out of execution: the environment, which does not promise to be reproducible, did not lead there";
            ctx.say(Level::Warning, format!("{} of {} states {what} again", counts.strayed, lines.len()));
        }
        tell(p, ctx, &lines, &counts);
        artifact::write(ctx.output("samples"), &lines)
    }
}

/// Refuses episodes without the lists that the parameters need.
fn check_lists(p: &Params, episodes: &[Episode]) -> Result<(), OpError> {
    let what = match p {
        _ if p.by_policy() < p.per_state => "uniform draws need",
        _ if p.drops(Unwanted::Inadmissible) && !p.execute => "`drop = [\"inadmissible\"]` needs",
        _ => return Ok(()),
    };
    let bare = episodes
        .iter()
        .enumerate()
        .find_map(|(e, episode)| episode.turns.iter().position(|turn| turn.actions.is_empty()).map(|turn| (e, turn)));
    match bare {
        None => Ok(()),
        Some((e, turn)) => Err(OpError::with_help(
            format!("episode {e} does not hold the admissible actions of turn {turn}, which {what}"),
            "write `actions = \"always\"` in the step that made the episodes",
        )),
    }
}

/// The numbers of the step.
fn tell(p: &Params, ctx: &mut OpContext<'_>, lines: &[Samples], counts: &Counts) {
    let left: usize = lines.iter().map(|l| l.alternatives.len()).sum();
    let share = |n: usize, of: usize| n as f64 / of.max(1) as f64;
    let drawn = |n: usize| share(n, counts.drawn);
    ctx.metric(0, "states", lines.len() as f64);
    ctx.metric(0, "sampled", counts.drawn as f64);
    ctx.metric(0, "kept", left as f64);
    ctx.metric(0, "empty_states", share(lines.iter().filter(|l| l.alternatives.is_empty()).count(), lines.len()));
    ctx.metric(0, "equal_to_expert", drawn(counts.equal));
    ctx.metric(0, "canonical_equal", drawn(counts.respelled));
    ctx.metric(0, "duplicates", drawn(counts.twice));
    ctx.metric(0, "unfinished", drawn(counts.unfinished));
    if !p.prompt.is_plain() {
        ctx.metric(0, "malformed", drawn(counts.malformed));
    }
    // where no list is known, nothing is
    if counts.bare == 0 {
        let admissible = lines.iter().flat_map(|l| &l.alternatives).filter(|a| a.admissible).count();
        ctx.metric(0, "admissible", share(admissible, left));
    }
    if p.drops(Unwanted::Inadmissible) {
        ctx.metric(0, "inadmissible_dropped", drawn(counts.inadmissible));
    }
    if p.drops(Unwanted::SameOutcome) {
        ctx.metric(0, "same_outcome", drawn(counts.same));
    }
    if p.refill > 0 {
        ctx.metric(0, "refilled", counts.refilled as f64);
        // places that are drawn again are those where the policy says the expert's action: the first round is unbiased
        ctx.metric(0, "equal_to_expert_first", share(counts.first_equal, counts.first));
    }
    if p.execute {
        ctx.metric(0, "not_executed_states", share(counts.strayed, lines.len()));
    }
}

/// Episodes between two checkpoints.
const CHUNK: usize = 16;

/// What became of the draws.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Counts {
    drawn: usize,
    /// The expert's action.
    equal: usize,
    /// The expert's action in other spelling.
    respelled: usize,
    unfinished: usize,
    malformed: usize,
    /// Found at the state before.
    twice: usize,
    inadmissible: usize,
    /// Leads where the expert's action leads.
    same: usize,
    /// Kept by a later round.
    refilled: usize,
    /// States that were not reached again.
    strayed: usize,
    /// States whose admissible actions are not known.
    bare: usize,
    /// Draws of the first round, and those that were the expert's action.
    first: usize,
    first_equal: usize,
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.drawn += other.drawn;
        self.equal += other.equal;
        self.respelled += other.respelled;
        self.unfinished += other.unfinished;
        self.malformed += other.malformed;
        self.twice += other.twice;
        self.inadmissible += other.inadmissible;
        self.same += other.same;
        self.refilled += other.refilled;
        self.strayed += other.strayed;
        self.bare += other.bare;
        self.first += other.first;
        self.first_equal += other.first_equal;
    }
}

/// What was drawn.
struct Drawn {
    action: String,
    /// Of the whole action, where the policy says it.
    logp: Option<f64>,
}

/// One state while its places are filled.
struct State {
    /// By place.
    found: Vec<Option<Alternative>>,
    /// All that was kept, as it is compared.
    seen: BTreeSet<String>,
    /// Admissible actions in the order in which they are drawn; those at the end are next.
    shuffled: Vec<String>,
    dropped: usize,
}

/// One episode of the file.
struct Of<'a> {
    p: &'a Params,
    /// Its line, from 0.
    number: usize,
    episode: &'a Episode,
}

impl Of<'_> {
    /// Draws at every state.
    fn draw(
        &self,
        ctx: &OpContext<'_>,
        policy: &mut Option<Box<dyn Policy>>,
        suite: Option<&dyn Suite>,
        lines: &mut Vec<Samples>,
        counts: &mut Counts,
    ) -> Result<(), OpError> {
        let Of { p, number, episode } = *self;
        let mut replay = suite.map(|suite| Replay::of(suite, number, episode)).transpose()?;
        counts.strayed += replay.as_ref().map_or(0, |replay| episode.turns.len() - replay.states());
        let mut states: Vec<State> = (0..episode.turns.len()).map(|turn| self.state(ctx, turn)).collect();
        counts.bare += episode.turns.iter().filter(|turn| turn.actions.is_empty()).count();
        for round in 0..=p.refill {
            let (drawn_before, equal_before) = (counts.drawn, counts.equal);
            // 1. what is drawn, place by place
            let mut drawn: Vec<Vec<(usize, Option<Drawn>)>> = Vec::with_capacity(states.len());
            for state in &mut states {
                let places = (p.by_policy()..p.per_state).filter(|place| state.found[*place].is_none());
                let mut at = Vec::new();
                for place in places.collect::<Vec<_>>() {
                    let Some(action) = state.shuffled.pop() else { break };
                    at.push((place, Some(Drawn { action, logp: None })));
                }
                drawn.push(at);
            }
            if let Some(policy) = policy {
                self.sample(ctx, &mut **policy, round, &states, &mut drawn, counts)?;
            }
            if drawn.iter().all(Vec::is_empty) {
                break;
            }
            // 2. what of it is kept
            for (turn, (state, drawn)) in states.iter_mut().zip(drawn).enumerate() {
                for (place, drawn) in drawn {
                    counts.drawn += 1;
                    let Some(drawn) = drawn else { continue };
                    let kept = self.keep(turn, drawn, state, &mut replay, counts)?;
                    counts.refilled += usize::from(round > 0 && kept.is_some());
                    state.found[place] = kept;
                }
            }
            if round == 0 {
                counts.first += counts.drawn - drawn_before;
                counts.first_equal += counts.equal - equal_before;
            }
        }
        for (turn, State { found, dropped, .. }) in states.into_iter().enumerate() {
            let expert = episode.turns[turn].action.clone();
            let alternatives = found.into_iter().flatten().collect();
            lines.push(Samples { v: SCHEMA_VERSION, episode: number, turn, expert, alternatives, dropped });
        }
        Ok(())
    }

    /// A state with nothing in its places.
    fn state(&self, ctx: &OpContext<'_>, turn: usize) -> State {
        let mut shuffled = Vec::new();
        if self.p.by_policy() < self.p.per_state {
            shuffled.extend(self.episode.turns[turn].actions.iter().filter(|a| !a.contains(BLANK)).cloned());
            Rng::at(ctx.seed("uniform"), &[self.number as u64, turn as u64]).shuffle(&mut shuffled);
        }
        State { found: vec![None; self.p.per_state], seen: BTreeSet::new(), shuffled, dropped: 0 }
    }

    /// Asks the policy for its empty places; what it says goes before what was drawn uniformly.
    fn sample(
        &self,
        ctx: &OpContext<'_>,
        policy: &mut dyn Policy,
        round: usize,
        states: &[State],
        drawn: &mut [Vec<(usize, Option<Drawn>)>],
        counts: &mut Counts,
    ) -> Result<(), OpError> {
        let p = self.p;
        let seed = ctx.seed(PURPOSE);
        let sampling: Sampling = p.filters.sampling(p.temperature, p.max_tokens);
        let empty = |turn: usize| (0..p.by_policy()).filter(move |place| states[turn].found[*place].is_none());
        let open: Vec<usize> = (0..states.len()).filter(|turn| empty(*turn).next().is_some()).collect();
        for some in open.chunks(policy.width()) {
            let mut asks = Vec::with_capacity(some.len() * p.per_state);
            let mut places = Vec::with_capacity(asks.capacity());
            let mut sessions = Vec::with_capacity(some.len());
            for &turn in some {
                let state = common::state(&p.prompt, (self.number, self.episode), turn, p.prompt.tells_replies())?;
                let session = open_with(policy, &state, p.max_tokens)?;
                sessions.push(session);
                for place in empty(turn) {
                    let mut path = vec![self.number as u64, turn as u64, place as u64];
                    path.extend((round > 0).then_some(round as u64));
                    let rng = Rng::at(seed, &path);
                    asks.push(Ask { session, allowed: &[], sampling: &sampling, rng, keep: false });
                    places.push((turn, place));
                }
            }
            let answers = policy.answer(&asks, &|| ctx.stopping())?;
            sessions.into_iter().for_each(|session| policy.close(session));
            for ((turn, place), answer) in places.into_iter().zip(&answers).rev() {
                let said = self.said(answer.ended(), answer.logps.as_deref(), counts);
                drawn[turn].insert(0, (place, said));
            }
        }
        Ok(())
    }

    /// The action that a reply says.
    fn said(&self, text: Option<&str>, logps: Option<&[f32]>, counts: &mut Counts) -> Option<Drawn> {
        let Some(text) = text else {
            counts.unfinished += 1;
            return None;
        };
        match self.p.prompt.parse(text) {
            Ok(reply) => {
                // what a reasoning led to is not as likely as the reasoning with it
                let logps = logps.filter(|_| reply.reasoning.is_none());
                let logp = logps.map(|l| l.iter().map(|l| f64::from(*l)).sum());
                Some(Drawn { action: reply.action.to_owned(), logp })
            }
            Err(_) => {
                counts.malformed += 1;
                None
            }
        }
    }

    /// What is left of a draw behind the filters.
    fn keep(
        &self,
        turn: usize,
        Drawn { action, logp }: Drawn,
        state: &mut State,
        replay: &mut Option<Replay>,
        counts: &mut Counts,
    ) -> Result<Option<Alternative>, OpError> {
        let p = self.p;
        let expert = &self.episode.turns[turn];
        let (equal, respelled) = (action == expert.action, canonical(&action) == canonical(&expert.action));
        counts.equal += usize::from(equal);
        counts.respelled += usize::from(respelled && !equal);
        if (equal && p.drops(Unwanted::Exact)) || (respelled && p.drops(Unwanted::Canonical)) {
            state.dropped += 1;
            return Ok(None);
        }
        let spelled = p.spelled(&action).into_owned();
        if state.seen.contains(&spelled) {
            counts.twice += 1;
            return Ok(None);
        }
        let mut alternative = Alternative { admissible: expert.actions.contains(&action), action, logp, outcome: None };
        if let Some(replay) = replay.as_mut().filter(|replay| turn < replay.states()) {
            let Tried { outcome, valid, same } =
                replay.attempt(turn, &alternative.action, p.drops(Unwanted::SameOutcome))?;
            alternative.outcome = Some(outcome);
            if valid.is_none() && expert.actions.is_empty() && p.drops(Unwanted::Inadmissible) {
                return Err(OpError::with_help(
                    format!(
                        "nothing says whether `{}` is admissible at turn {turn} of episode {}",
                        alternative.action, self.number
                    ),
                    "write `actions = \"always\"` in the step that made the episodes, or take `inadmissible` out of `drop`",
                ));
            }
            alternative.admissible = valid.unwrap_or(alternative.admissible);
            if same {
                counts.same += 1;
                return Ok(None);
            }
        }
        if !alternative.admissible && p.drops(Unwanted::Inadmissible) {
            counts.inadmissible += 1;
            return Ok(None);
        }
        state.seen.insert(spelled);
        Ok(Some(alternative))
    }
}
