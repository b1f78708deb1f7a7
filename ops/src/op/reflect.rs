//! `reflect`: the self-reflection of Early Experience (arXiv 2510.08558): why is the expert's action taken, and not another?
//!
//! 1. At a state the policy is told the expert's action and what came of it, and alternatives with what came of them.
//! 2. It writes an inner monologue that ends in the expert's action. One that ends in another action, in none, or does
//!    not end in time is not kept.
//! 3. Monologues that give away how they came about, or tell an outcome before it happens, are counted and dropped: in
//!    play nobody will have told the model what comes next.
//! 4. A state whose monologue was not kept is asked again, up to `tries` times.
//!
//! `sft` learns from what is kept: at the state alone, the monologue and the action. Left out of the published method: its
//! prompt is not copied word for word; all of it is in the recipe's hands.
//!
//! Invariant: a reflection is kept only with the expert's action as its own last word, read by the prompt that reads
//! actions in play.

use std::borrow::Cow;

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem, Resources};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{self, Filters, kept, past};
use super::forms::{outcomes, sampled_at};
use super::leaks::{Filter, Leaks, Pattern, Words, words};
use super::pairs::Kept;
use crate::artifact::{self, Episode, Outcome, Reflection, SCHEMA_VERSION, Samples, Turn};
use crate::policy::{Ask, Policy, open_with};
use crate::rng::Rng;
use crate::text::prompt::Thinking;
use crate::text::prompt::fill::{fill, names};
use crate::text::{Message, Prompt, Role, said};

/// Parameters of `reflect`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Only the first so many states that have alternatives; 0 takes all.
    #[serde(default)]
    pub limit: usize,
    /// Alternatives that are told at most, in the order they were sampled in.
    #[serde(default = "per_state")]
    #[schemars(range(min = 1, max = 1024))]
    pub per_state: usize,
    /// How often a state is asked at most, until a reflection is kept.
    #[serde(default = "tries")]
    #[schemars(range(min = 1, max = 1024))]
    pub tries: u64,
    #[serde(default = "temperature")]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub temperature: f64,
    #[serde(default)]
    pub filters: Filters,
    /// Longest reflection with its action, in tokens; a longer one counts as unfinished.
    #[serde(default = "max_tokens")]
    #[schemars(range(min = 1, max = 100000))]
    pub max_tokens: usize,
    /// How states are put, and how the monologue and its action are read: it must have a reasoning.
    #[serde(default = "prompt")]
    pub prompt: Prompt,
    /// How the reflection is asked for.
    #[serde(default)]
    pub texts: Texts,
    /// What becomes of reflections that give something away.
    #[serde(default)]
    pub leaks: OnLeak,
    /// Words that give a reflection away, unless the state holds them. `#` stands for a number, `word*` for all words
    /// that begin so.
    #[serde(default = "leak_words")]
    pub leak_words: Vec<String>,
    /// So many words in a row of an outcome are told before they happen, unless the state holds them. A shorter outcome
    /// counts as a whole, if it has three words. 0 looks for none.
    #[serde(default = "outcome_words")]
    #[schemars(range(min = 0, max = 1000))]
    pub outcome_words: usize,
    /// What is kept of the turns before a state.
    #[serde(default)]
    pub past: Kept,
}

/// Texts with placeholders; `{{` and `}}` are braces. A line whose placeholders are all empty is left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Texts {
    /// What is asked behind the state: `{expert}` (the expert's action), `{outcome}` (what came of it), `{alternatives}`.
    pub question: String,
    /// One alternative: `{number}` (from 1), `{action}`, `{outcome}`.
    pub alternative: String,
}

impl Default for Texts {
    fn default() -> Self {
        Texts {
            question: "You will do this: {expert}\nThen you will see:\n{outcome}\n\n\
                       If you did something else:\n{alternatives}\n\n\
                       Think aloud as one who does not know yet what will come: what is the goal, what is known here, why \
                       is each of the other actions worse, and why is the first one best? Speak in the first person, use \
                       only what can be seen at this moment, and do not say that you were told an action or what it leads \
                       to. End with exactly the action: {expert}"
                .to_owned(),
            alternative: "- {action}\n  Then you would see: {outcome}".to_owned(),
        }
    }
}

impl Texts {
    fn check(&self) -> Vec<Problem> {
        let texts: [(&str, &str, &[&str], &[&str]); 2] = [
            ("question", &self.question, &["expert", "outcome", "alternatives"], &["expert"]),
            ("alternative", &self.alternative, &["number", "action", "outcome"], &["action"]),
        ];
        let mut problems = Vec::new();
        for (key, text, known, needed) in texts {
            let path = ["texts", key];
            let found = match names(text) {
                Ok(found) => found,
                Err(what) => {
                    problems.push(Problem::new(&path, what).help("write `{{` for a brace"));
                    continue;
                }
            };
            let has = known.iter().map(|name| format!("`{{{name}}}`")).collect::<Vec<_>>().join(", ");
            for name in found.iter().filter(|name| !known.contains(name)) {
                let what = format!("this text has no placeholder `{{{name}}}`");
                problems.push(Problem::new(&path, what).help(format!("it has {has}; write `{{{{` for a brace")));
            }
            for name in needed.iter().filter(|name| !found.contains(name)) {
                problems.push(Problem::new(&path, format!("`{{{name}}}` is missing from this text")));
            }
        }
        problems
    }

    /// The question, about these actions.
    fn ask(&self, expert: &str, outcome: &str, alternatives: &[(String, String)]) -> String {
        let tell = |(number, (action, outcome)): (usize, &(String, String))| {
            fill(&self.alternative, |name| match name {
                "number" => Some((number + 1).to_string().into()),
                "action" => Some(action.as_str().into()),
                "outcome" => Some(said(outcome).trim().into()),
                _ => None,
            })
        };
        let told = alternatives.iter().enumerate().map(tell).collect::<Vec<_>>().join("\n");
        fill(&self.question, |name| {
            Some(Cow::from(match name {
                "expert" => expert,
                "outcome" => said(outcome).trim(),
                "alternatives" => told.as_str(),
                _ => return None,
            }))
        })
    }
}

/// What becomes of reflections that give something away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnLeak {
    /// They are counted and left out.
    #[default]
    Drop,
    /// They are counted and kept.
    Keep,
}

fn per_state() -> usize {
    3
}
fn tries() -> u64 {
    1
}
fn temperature() -> f64 {
    1.0
}
fn max_tokens() -> usize {
    512
}
fn outcome_words() -> usize {
    6
}
fn prompt() -> Prompt {
    Prompt { thinking: Some(Thinking::Required), ..Prompt::default() }
}
fn leak_words() -> Vec<String> {
    let words = [
        "expert",
        "experts",
        "alternative",
        "alternatives",
        "demonstration",
        "demonstrations",
        "action #",
        "actions #",
        "option #",
        "ground truth",
    ];
    words.map(str::to_owned).to_vec()
}

/// A state that is asked about.
struct State<'a> {
    number: usize,
    episode: &'a Episode,
    turn: usize,
    tried: Vec<(&'a str, &'a Outcome)>,
}

impl State<'_> {
    fn expert(&self) -> &Turn {
        &self.episode.turns[self.turn]
    }

    /// The state with the question behind it.
    fn messages(&self, p: &Params) -> Result<Vec<Message>, OpError> {
        let mut messages = common::state(&p.prompt, (self.number, self.episode), self.turn, p.prompt.tells_replies())?;
        let tried: Vec<(String, String)> =
            self.tried.iter().map(|(action, o)| ((*action).to_owned(), o.observation.clone())).collect();
        if let Some(last) = messages.last_mut().filter(|last| last.role == Role::User) {
            last.content.push_str("\n\n");
            last.content.push_str(&p.texts.ask(&self.expert().action, &self.expert().observation, &tried));
        }
        Ok(messages)
    }

    /// What the state says, text by text; the actions that are asked about may be named, too.
    fn known(&self) -> Vec<Words> {
        let Episode { task, start, turns, .. } = self.episode;
        let mut texts = vec![task.goal.as_str(), start.as_str()];
        for turn in &turns[..self.turn] {
            texts.extend([turn.action.as_str(), turn.observation.as_str()]);
        }
        texts.push(&self.expert().action);
        texts.extend(self.expert().actions.iter().map(String::as_str));
        texts.extend(self.tried.iter().map(|(action, _)| *action));
        texts.into_iter().map(words).collect()
    }

    fn outcomes(&self) -> Vec<&str> {
        let tried = self.tried.iter().map(|(_, outcome)| outcome.observation.as_str());
        std::iter::once(self.expert().observation.as_str()).chain(tried).collect()
    }
}

/// What became of the answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Counts {
    drawn: usize,
    unfinished: usize,
    /// No reasoning, or an action that cannot be read.
    malformed: usize,
    /// Another action than the expert's.
    other: usize,
    leaked: usize,
    leaked_words: usize,
    leaked_outcome: usize,
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.drawn += other.drawn;
        self.unfinished += other.unfinished;
        self.malformed += other.malformed;
        self.other += other.other;
        self.leaked += other.leaked;
        self.leaked_words += other.leaked_words;
        self.leaked_outcome += other.leaked_outcome;
    }

    /// The monologue, if it is kept.
    fn judge<'a>(&mut self, p: &Params, filter: &Filter, state: &State<'_>, text: Option<&'a str>) -> Option<&'a str> {
        self.drawn += 1;
        let Some(text) = text else {
            self.unfinished += 1;
            return None;
        };
        let reply = p.prompt.parse(text).ok();
        let says = |text: &&str| text.chars().any(char::is_alphanumeric);
        let Some((action, monologue)) = reply.and_then(|r| Some((r.action, r.reasoning.map(str::trim).filter(says)?)))
        else {
            self.malformed += 1;
            return None;
        };
        if action != state.expert().action {
            self.other += 1;
            return None;
        }
        let leaks: Leaks = filter.look(monologue, &state.outcomes(), &state.known());
        self.leaked += usize::from(leaks.any());
        self.leaked_words += usize::from(leaks.words);
        self.leaked_outcome += usize::from(leaks.outcome);
        (!leaks.any() || p.leaks == OnLeak::Keep).then_some(monologue)
    }
}

/// What random numbers are for: not what `alternatives` needs them for, whose draws at the same state would otherwise
/// be made with the same numbers.
const PURPOSE: &str = "reflections";

/// States between two checkpoints.
const CHUNK: usize = 64;

/// Asks some states until each has a reflection, or was asked often enough.
fn ask(
    ctx: &OpContext<'_>,
    policy: &mut dyn Policy,
    p: &Params,
    filter: &Filter,
    states: &[State<'_>],
) -> Result<(Vec<Option<Reflection>>, Counts), OpError> {
    let sampling = p.filters.sampling(p.temperature, p.max_tokens);
    let seed = ctx.seed(PURPOSE);
    let mut done: Vec<Option<Reflection>> = vec![None; states.len()];
    let mut counts = Counts::default();
    for attempt in 0..p.tries {
        let open: Vec<usize> = (0..states.len()).filter(|i| done[*i].is_none()).collect();
        for some in open.chunks(policy.width()) {
            let mut asks = Vec::with_capacity(some.len());
            for i in some {
                let state = &states[*i];
                let session = open_with(policy, &state.messages(p)?, p.max_tokens)?;
                let rng = Rng::at(seed, &[state.number as u64, state.turn as u64, attempt]);
                asks.push(Ask { session, allowed: &[], sampling: &sampling, rng, keep: false });
            }
            let answers = policy.answer(&asks, &|| ctx.stopping())?;
            for ((i, answer), ask) in some.iter().zip(answers).zip(asks) {
                policy.close(ask.session);
                let State { number, episode, turn, .. } = states[*i];
                let Some(monologue) = counts.judge(p, filter, &states[*i], answer.ended()) else { continue };
                done[*i] = Some(Reflection {
                    v: SCHEMA_VERSION,
                    task: episode.task.clone(),
                    episode: number,
                    turn,
                    past: past(episode, turn, p.past == Kept::Whole),
                    actions: episode.turns[turn].actions.clone(),
                    reflection: monologue.to_owned(),
                    action: episode.turns[turn].action.clone(),
                });
            }
        }
    }
    Ok((done, counts))
}

/// The op.
pub struct Reflect;

impl Op for Reflect {
    type Params = Params;
    const NAME: &'static str = "reflect";
    const VERSION: u32 = 2;
    const ABOUT: &'static str =
        "has a policy say why the expert's action is better: Early Experience's self-reflection";

    fn ports(&self, _: &Params) -> Ports {
        Ports::new()
            .port("policy", &[Kind::MODEL, Kind::POLICY], Arity::One, "who reflects")
            .input("states", Kind::EPISODES, "expert episodes; each turn is a state")
            .input(
                "alternatives",
                Kind::SAMPLES,
                "other actions at these states, executed (`execute = true` of `alternatives`)",
            )
            .output("reflections", Kind::REFLECTIONS, "what was kept, one state a line")
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        let mut problems = p.prompt.check();
        problems.extend(p.texts.check());
        if p.prompt.thinking() == Thinking::None {
            let message = "a reflection is the reasoning before the action, and the prompt has none";
            problems.push(Problem::new(&["prompt", "thinking"], message).help("write `thinking = \"required\"`"));
        }
        for pattern in &p.leak_words {
            if let Err(what) = Pattern::parse(pattern) {
                problems.push(Problem::new(&["leak_words"], what));
            }
        }
        problems
    }

    fn resources(&self, _: &Params) -> Resources {
        Resources { cpu: 1, gpu: 1 }
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let mut policy = common::open_policy_for(ctx, ctx.input("policy"), &p.prompt)?;
        let episodes: Vec<Episode> = artifact::read(ctx.input("states"))?;
        let samples: Vec<Samples> = artifact::read(ctx.input("alternatives"))?;
        // 1. the states that have something to compare with
        let mut states = Vec::with_capacity(samples.len());
        for line in &samples {
            let (episode, _) = sampled_at(&episodes, line)?;
            let tried = outcomes(line, p.per_state)?;
            if !tried.is_empty() {
                states.push(State { number: line.episode, episode, turn: line.turn, tried });
            }
        }
        let alone = samples.len() - states.len();
        if p.limit > 0 {
            states.truncate(p.limit);
        }
        if states.is_empty() {
            return Err(OpError::with_help(
                format!("no state has an alternative to compare with, of {} states", samples.len()),
                "raise `per_state` or `temperature` of `alternatives`",
            ));
        }
        // 2. reflections
        let patterns = p.leak_words.iter().map(|text| Pattern::parse(text).map_err(OpError::failed));
        let filter = Filter { patterns: patterns.collect::<Result<_, OpError>>()?, run: p.outcome_words };
        let (mut reflections, mut counts) = (Vec::new(), Counts::default());
        for (chunk, part) in states.chunks(CHUNK).enumerate() {
            let first = chunk * CHUNK;
            let (more, n) = kept(ctx, &format!("states-{first}"), || ask(ctx, &mut *policy, p, &filter, part))?;
            reflections.extend(more.into_iter().flatten());
            counts.add(n);
            ctx.progress((first + part.len()) as u64, states.len() as u64, "states", "");
        }
        common::note_policy(ctx, &*policy);
        // 3. what came of it
        if reflections.is_empty() {
            let Counts { drawn, unfinished, malformed, other, leaked, .. } = counts;
            return Err(OpError::with_help(
                format!(
                    "no reflection is left to keep: of {drawn} answers {unfinished} did not end, {malformed} were malformed, \
                     {other} ended in another action and {leaked} gave something away"
                ),
                "raise `max_tokens` or `tries`, or change the question in `texts`",
            ));
        }
        for (name, n) in [
            ("asked", states.len()),
            ("kept", reflections.len()),
            ("without_alternatives", alone),
            ("drawn", counts.drawn),
            ("unfinished", counts.unfinished),
            ("malformed", counts.malformed),
            ("wrong_action", counts.other),
            ("leaked", counts.leaked),
            ("leaked_words", counts.leaked_words),
            ("leaked_outcome", counts.leaked_outcome),
        ] {
            ctx.metric(0, name, n as f64);
        }
        artifact::write(ctx.output("reflections"), &reflections)
    }
}

#[cfg(test)]
mod tests {
    use actloom_engine::op::seed_for;

    use super::*;

    #[test]
    fn reflections_are_not_drawn_with_the_numbers_of_the_alternatives() {
        use super::super::alternatives;
        let of = |purpose| Rng::at(seed_for(7, purpose), &[1, 2, 0]).next_u64();
        assert_ne!(of(PURPOSE), of(alternatives::PURPOSE));
    }
}
