//! `critic`: how often a model says of two actions which is better, each pair asked in both orders; by its own
//! reasoning, without one, or after a wrong one.
//!
//! 1. The pairs, each in both orders.
//! 2. What is put at the beginning of each answer: nothing, an empty reasoning, or a wrong one.
//! 3. The questions, and the numbers of the answers.
//!
//! Invariants: a question's answer depends on its own random stream alone; the numbers have the same names whatever stands
//! before the choice, which the scores say in their conditions; both orders of a pair are one item, so that intervals and
//! comparisons keep them together; a question that no wrong reasoning could be found for is not asked, and counted.

use std::collections::BTreeSet;

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem, Resources};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::act::judge;
use super::common::{self, Filters};
use super::exam::Ended;
use crate::artifact::{self, Pair, SCHEMA_VERSION, Task};
use crate::eval::items::{Item, Part};
use crate::eval::scores::Scores;
use crate::policy::{self, Ask, Policy, check_room, open_with};
use crate::reward::{Outcome, Reward};
use crate::rng::Rng;
use crate::text::Prompt;
use crate::text::prompt::{Choosing, Reason, fill, placeholders, says_something};

/// Which pairs are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// Those kept away from training.
    #[default]
    HeldOut,
    All,
}

/// What stands before the choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reasoning {
    /// What the model says itself.
    #[default]
    Own,
    /// Nothing: the answer is begun with an empty reasoning, in the prompt's marks, and only the choice may follow.
    Removed,
    /// A wrong reasoning: the answer is begun with it, and only the choice may follow.
    Injected,
}

impl Reasoning {
    /// As a recipe says it.
    fn name(self) -> &'static str {
        match self {
            Reasoning::Own => "own",
            Reasoning::Removed => "removed",
            Reasoning::Injected => "injected",
        }
    }
}

/// A wrong reasoning that is made of the model's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Made {
    /// The model's own for this question, with the two actions exchanged where it led to the right one; where it led to
    /// the wrong one it is wrong as it is.
    Swapped,
    /// The model's own for the next pair that it reasoned about at another state.
    Other,
}

/// Where a wrong reasoning comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Rationale {
    Made(Made),
    /// A text of your own with `{wrong}`, and `{right}` if you like.
    Text(String),
}

impl Default for Rationale {
    fn default() -> Self {
        Rationale::Text("{right} does not help now. {wrong} brings the goal closer. So {wrong} is better.".to_owned())
    }
}

/// Parameters of `critic`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    #[serde(default)]
    pub which: Which,
    /// Only the first so many pairs; 0 takes all.
    #[serde(default)]
    pub limit: usize,
    /// What stands before the choice. `removed` and `injected` need a policy whose answers can be begun: a model of ours,
    /// a GGUF file, or an endpoint with `api = "completions"`.
    #[serde(default)]
    pub reasoning: Reasoning,
    /// With `reasoning = "injected"`: the wrong reasoning. A text in which `{right}` and `{wrong}` stand for the two
    /// actions; or `"swapped"` or `"other"`, which ask the model for its own reasoning first. Left out:
    /// `{right} does not help now. {wrong} brings the goal closer. So {wrong} is better.`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rationale: Option<Rationale>,
    /// With `removed` and `injected`: hold what follows to one of the two choices, so that none is malformed.
    #[serde(default)]
    pub held: bool,
    /// 0 takes the likeliest token.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub temperature: f64,
    #[serde(default)]
    pub filters: Filters,
    /// How states are put, and how answers are read.
    #[serde(default)]
    pub prompt: Prompt,
    /// Longest answer, in tokens.
    #[serde(default = "max_tokens")]
    #[schemars(range(min = 1, max = 100000))]
    pub max_tokens: usize,
}

fn max_tokens() -> usize {
    48
}

impl Params {
    /// The wrong reasoning.
    fn wrong(&self) -> Rationale {
        self.rationale.clone().unwrap_or_default()
    }
}

/// The op.
pub struct Critic;

impl Op for Critic {
    type Params = Params;
    const NAME: &'static str = "critic";
    const VERSION: u32 = 5;
    const ABOUT: &'static str = "asks a model which of two actions is better, in both orders, and counts";

    fn ports(&self, _: &Params) -> Ports {
        Ports::new()
            .port("model", &[Kind::MODEL, Kind::POLICY], Arity::One, "who is asked")
            .input("pairs", Kind::PAIRS, "what is asked")
            .output(
                "scores",
                Kind::SCORES,
                "accuracy, by position of the right answer and by pair, and the share of malformed answers",
            )
            .output("answers", Kind::ANSWERS, "what was said to each question, and what was read in it")
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        let mut problems = p.prompt.check();
        if p.held && p.reasoning == Reasoning::Own {
            let what = "an answer that holds a reasoning cannot be held to the two choices";
            problems.push(Problem::new(&["held"], what).help("write `reasoning = \"removed\"` or `\"injected\"`"));
        }
        if p.reasoning == Reasoning::Injected && p.prompt.reason == Some(Reason::None) {
            let what = "`reason = \"none\"` of the prompt leaves no place for a reasoning";
            problems.push(Problem::new(&["prompt", "reason"], what).help("leave `reason` out"));
        }
        if p.rationale.is_some() && p.reasoning != Reasoning::Injected {
            let what = "`rationale` is for `reasoning = \"injected\"`, and the reasoning is another one";
            let help = "write `reasoning = \"injected\"`, or leave `rationale` out; where an axis says the reasoning, give \
                        the variant with a rationale a step of its own";
            problems.push(Problem::new(&["rationale"], what).help(help));
        }
        if let Some(Rationale::Text(text)) = &p.rationale {
            problems.extend(check_text(text));
        }
        problems
    }

    fn resources(&self, _: &Params) -> Resources {
        Resources { cpu: 1, gpu: 1 }
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        // 1. each pair in both orders
        let mut policy = common::open_policy_for(ctx, ctx.input("model"), &p.prompt)?;
        let pairs = both_orders(read(p, ctx)?);
        // 2. what each answer begins with
        let begins = p.reasoning != Reasoning::Own && !p.prompt.begun("").is_empty();
        if (begins || p.reasoning == Reasoning::Injected) && !policy.begins() {
            return Err(policy::cannot_begin(&policy.identity()));
        }
        let own = Reading { begins: None, prompt: p.prompt.clone(), held: false };
        let reasoned = p.reasoning == Reasoning::Injected && matches!(p.wrong(), Rationale::Made(_));
        let all = (pairs.len() * if reasoned { 2 } else { 1 }) as u64;
        let mut progress = Progress { done: 0, all };
        let first =
            if reasoned { ask_all(ctx, &mut *policy, p, &pairs, &own, "own", &mut progress)? } else { Vec::new() };
        let reading = match p.reasoning {
            Reasoning::Own => own,
            Reasoning::Removed => behind(p, vec![Some(String::new()); pairs.len()]),
            Reasoning::Injected => behind(p, rationales(p, &pairs, &first)?),
        };
        let exchanged: Vec<bool> = match p.wrong() {
            Rationale::Made(Made::Swapped) if reasoned => first.iter().map(was_right).collect(),
            _ => Vec::new(),
        };
        // 3. the answers
        let told = ask_all(ctx, &mut *policy, p, &pairs, &reading, "questions", &mut progress)?;
        common::note_policy(ctx, &*policy);
        artifact::write(ctx.output("answers"), &answers(p, &pairs, &told, &reading))?;
        let scores = scores(p, &pairs, (&told, &exchanged), &reading, ctx.seed("bootstrap"));
        for (name, value) in &scores.metrics {
            if let Some(value) = value {
                ctx.metric(0, name, *value);
            }
        }
        scores.write(ctx.output("scores"))
    }
}

/// What of the text of a rationale cannot be.
fn check_text(text: &str) -> Vec<Problem> {
    let problem = |what: String| Problem::new(&["rationale"], what);
    let names = match placeholders(text) {
        Ok(names) => names,
        Err(what) => return vec![problem(what).help("write `{{` for a brace")],
    };
    let mut problems: Vec<Problem> = names
        .iter()
        .filter(|name| !["right", "wrong"].contains(name))
        .map(|name| {
            problem(format!("this text has no placeholder `{{{name}}}`")).help("it has `{right}` and `{wrong}`")
        })
        .collect();
    if !names.contains(&"wrong") {
        let what = format!("`{text}` does not argue for the wrong action: `{{wrong}}` is missing from it");
        problems.push(problem(what).help("expected `\"swapped\"`, `\"other\"`, or a text with `{wrong}`"));
    }
    problems
}

/// The pairs that are asked. Of copies in both orders the first is taken.
fn read(p: &Params, ctx: &OpContext<'_>) -> Result<Vec<Pair>, OpError> {
    let mut pairs: Vec<Pair> = artifact::read(ctx.input("pairs"))?;
    if p.which == Which::HeldOut {
        pairs.retain(|pair| pair.held_out);
    }
    let mut seen = BTreeSet::new();
    pairs.retain(|pair| {
        let mut shown = pair.shown.clone();
        shown.sort();
        seen.insert((pair.episode, pair.turn, shown))
    });
    if p.limit > 0 {
        pairs.truncate(p.limit);
    }
    if pairs.is_empty() {
        return Err(OpError::with_help(
            "there is no pair to ask",
            "raise `held_out` of `pairs`, or take `which = \"all\"`",
        ));
    }
    Ok(pairs)
}

/// Each pair as it is, and behind it the other way round.
fn both_orders(pairs: Vec<Pair>) -> Vec<Pair> {
    let both = pairs.into_iter().flat_map(|pair| {
        let other = pair.swapped();
        [pair, other]
    });
    both.collect()
}

/// How answers are begun and read.
struct Reading {
    /// The reasoning that the answer to each question begins with; `None` leaves the question out. `None` as a whole
    /// begins nothing.
    begins: Option<Vec<Option<String>>>,
    prompt: Prompt,
    held: bool,
}

fn behind(p: &Params, begins: Vec<Option<String>>) -> Reading {
    Reading { begins: Some(begins), prompt: p.prompt.at_once(), held: p.held }
}

/// What was answered to a question.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Told {
    outcome: Outcome,
    /// The reasoning, if it says something.
    reasoning: Option<String>,
    /// Which of the two is chosen.
    choice: Option<usize>,
    /// All that was said.
    text: String,
    finish: Ended,
}

/// One line of an answers file: an answer to one question, which is a pair in one of its orders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    pub v: u32,
    pub task: Task,
    /// Line of the episode in the episodes file, from 0.
    pub episode: usize,
    pub turn: usize,
    /// The two actions in the order shown.
    pub shown: [String; 2],
    /// Which of `shown` is the expert's: 0 or 1.
    pub expert: usize,
    /// What the answer was begun with; left out where nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<String>,
    /// What was said, behind what was begun.
    pub text: String,
    /// `end`, or why it did not come to its end: `length` (cut off), `room` (the question fills the context).
    pub finish: Ended,
    /// The reasoning in it, if there is one that says something.
    pub reasoning: Option<String>,
    /// Which of `shown` is chosen; `None` where neither is.
    pub choice: Option<usize>,
    pub correct: bool,
    /// An answer that is neither one of `shown` nor, where actions are named by their text, an admissible action.
    pub malformed: bool,
}

/// Questions between two checkpoints.
const CHUNK: usize = 96;

struct Progress {
    done: u64,
    all: u64,
}

/// Asks all questions; `None` for those that are left out. `name` tells the passes apart.
fn ask_all(
    ctx: &OpContext<'_>,
    policy: &mut dyn Policy,
    p: &Params,
    pairs: &[Pair],
    reading: &Reading,
    name: &str,
    progress: &mut Progress,
) -> Result<Vec<Option<Told>>, OpError> {
    let seed = ctx.seed("samples");
    let mut told = Vec::with_capacity(pairs.len());
    for first in (0..pairs.len()).step_by(CHUNK) {
        let questions: Vec<usize> = (first..pairs.len().min(first + CHUNK)).collect();
        told.extend(common::kept(ctx, &format!("{name}-{first}"), || {
            let asked = |i: &usize| reading.begins.as_ref().is_none_or(|begins| begins[*i].is_some());
            let put: Vec<usize> = questions.iter().copied().filter(asked).collect();
            let mut answers = ask(ctx, policy, p, pairs, &put, reading, seed)?.into_iter();
            Ok(questions.iter().map(|i| asked(i).then(|| answers.next()).flatten()).collect::<Vec<_>>())
        })?);
        progress.done += questions.len() as u64;
        ctx.progress(progress.done, progress.all, "questions", "");
    }
    Ok(told)
}

/// Asks some of the questions, by their numbers: each has its own random stream.
fn ask(
    ctx: &OpContext<'_>,
    policy: &mut dyn Policy,
    p: &Params,
    pairs: &[Pair],
    questions: &[usize],
    reading: &Reading,
    seed: u64,
) -> Result<Vec<Told>, OpError> {
    let sampling = p.filters.sampling(p.temperature, p.max_tokens);
    let mut told = Vec::with_capacity(questions.len());
    for some in questions.chunks(policy.width()) {
        let mut sessions = Vec::with_capacity(some.len());
        let mut allowed: Vec<Vec<String>> = vec![Vec::new(); some.len()];
        for (&i, allowed) in some.iter().zip(&mut allowed) {
            let session = open_with(policy, &common::question(&p.prompt, &pairs[i])?, p.max_tokens)?;
            if let Some(reasoning) = reading.begins.as_ref().and_then(|begins| begins[i].as_deref()) {
                let begun = p.prompt.begun(reasoning);
                if !begun.is_empty() {
                    policy.begin(session, &begun)?;
                    check_room(policy, session, p.max_tokens)?;
                }
                if reading.held {
                    *allowed = [0, 1].map(|index| p.prompt.finish(&pairs[i].shown, index)).to_vec();
                }
            }
            sessions.push(session);
        }
        let asks: Vec<Ask<'_>> = some
            .iter()
            .zip(sessions.iter().zip(&allowed))
            .map(|(&i, (&session, allowed))| {
                let rng = Rng::at(seed, &[i as u64]);
                Ask { session, allowed, sampling: &sampling, rng, keep: false }
            })
            .collect();
        let answers = policy.answer(&asks, &|| ctx.stopping())?;
        for ((&i, answer), &session) in some.iter().zip(&answers).zip(&sessions) {
            policy.close(session);
            let said = answer.ended().map(|text| match reading.begins {
                None => text.into(),
                Some(_) => p.prompt.finished(text),
            });
            let read = said.as_deref().and_then(|said| reading.prompt.read_choice(said));
            let reasoning = read.and_then(|reply| reply.reasoning).map(str::trim).filter(|r| says_something(r));
            let outcome = judge(&pairs[i], &reading.prompt, &Reward::default(), said.as_deref());
            let choice = read.and_then(|reply| reading.prompt.which(reply.action, &pairs[i].shown));
            let (text, finish) = (answer.text.clone(), answer.finish.into());
            told.push(Told { outcome, reasoning: reasoning.map(str::to_owned), choice, text, finish });
        }
    }
    Ok(told)
}

/// A wrong reasoning for each question; `None` where there is none.
fn rationales(p: &Params, pairs: &[Pair], own: &[Option<Told>]) -> Result<Vec<Option<String>>, OpError> {
    let made = match p.wrong() {
        Rationale::Text(text) => return Ok(pairs.iter().map(|pair| Some(stated(&text, pair))).collect()),
        Rationale::Made(made) => made,
    };
    let numbers = p.prompt.choosing() == Choosing::Index;
    let said = |i: usize| own[i].as_ref().and_then(|told| told.reasoning.as_deref());
    let place = |i: usize| (pairs[i].episode, pairs[i].turn);
    let found: Vec<Option<String>> = (0..pairs.len())
        .map(|i| match made {
            Made::Swapped => {
                let reasoning = said(i)?;
                // one that names no action argues for none
                let other = Some(exchanged(reasoning, &pairs[i].shown, numbers)).filter(|text| text != reasoning)?;
                match own[i].as_ref()?.outcome {
                    Outcome { correct: true, .. } => Some(other),
                    Outcome { malformed: true, .. } => None,
                    _ => Some(reasoning.to_owned()),
                }
            }
            Made::Other => {
                // a question and its other order stand side by side
                let mut others = (1..pairs.len() / 2).map(|step| (i + 2 * step) % pairs.len());
                others.find(|j| place(*j) != place(i) && said(*j).is_some()).and_then(said).map(str::to_owned)
            }
        })
        .collect();
    if found.iter().all(Option::is_none) {
        return Err(OpError::with_help(
            format!("none of {} answers holds a reasoning that could be made a wrong one", own.len()),
            "give the wrong reasoning as a text: `rationale = \"{wrong} is better than {right}.\"`",
        ));
    }
    Ok(found)
}

/// A reasoning that led to the right action, which is the one that is exchanged.
fn was_right(told: &Option<Told>) -> bool {
    told.as_ref().is_some_and(|told| told.outcome.correct)
}

/// The text of a rationale for a pair.
fn stated(text: &str, pair: &Pair) -> String {
    fill(text, |name| match name {
        "right" => Some(pair.shown[pair.expert].as_str().into()),
        "wrong" => Some(pair.shown[1 - pair.expert].as_str().into()),
        _ => None,
    })
}

/// Words behind which a number names an action.
const NAMING: [&str; 6] = ["action", "option", "number", "choice", "answer", "candidate"];

/// A text with the two actions exchanged, wherever one of them stands as a whole, in any case of its letters; with
/// `numbers` also `action 1` and `action 2`.
fn exchanged(text: &str, shown: &[String; 2], numbers: bool) -> String {
    let whole = |c: Option<char>| !c.is_some_and(char::is_alphanumeric);
    let begins = |rest: &str, what: &str| {
        let head = rest.get(..what.len());
        head.is_some_and(|head| !what.is_empty() && head.eq_ignore_ascii_case(what))
            && whole(rest.get(what.len()..).and_then(|behind| behind.chars().next()))
    };
    // of two that both stand here the longer one is meant
    let longer = usize::from(shown[1].len() > shown[0].len());
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(c) = rest.chars().next() {
        let before = &text[..text.len() - rest.len()];
        let free = whole(before.chars().next_back());
        if free && let Some(found) = [longer, 1 - longer].into_iter().find(|i| begins(rest, &shown[*i])) {
            out.push_str(&shown[1 - found]);
            rest = &rest[shown[found].len()..];
            continue;
        }
        let word = before.trim_end().rsplit(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        let named = numbers && free && NAMING.iter().any(|name| word.eq_ignore_ascii_case(name));
        out.push(match c {
            '1' if named && begins(rest, "1") => '2',
            '2' if named && begins(rest, "2") => '1',
            c => c,
        });
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// The lines of the answers file; a question that was left out has none.
fn answers(p: &Params, pairs: &[Pair], told: &[Option<Told>], reading: &Reading) -> Vec<Answered> {
    let begun = |i: usize| {
        let reasoning = reading.begins.as_ref().and_then(|begins| begins[i].as_deref())?;
        Some(p.prompt.begun(reasoning)).filter(|begun| !begun.is_empty())
    };
    let line = |(i, (pair, told)): (usize, (&Pair, &Option<Told>))| {
        let told = told.clone()?;
        Some(Answered {
            v: SCHEMA_VERSION,
            task: pair.task.clone(),
            episode: pair.episode,
            turn: pair.turn,
            shown: pair.shown.clone(),
            expert: pair.expert,
            begun: begun(i),
            text: told.text,
            finish: told.finish,
            reasoning: told.reasoning,
            choice: told.choice,
            correct: told.outcome.correct,
            malformed: told.outcome.malformed,
        })
    };
    pairs.iter().zip(told).enumerate().filter_map(line).collect()
}

/// Shares of the questions that were asked, and what each pair adds to them. `exchanged` says where the two actions were exchanged
/// in the model's own reasoning; it is empty where that is not what is put.
fn scores(
    p: &Params,
    pairs: &[Pair],
    (told, exchanged): (&[Option<Told>], &[bool]),
    reading: &Reading,
    seed: u64,
) -> Scores {
    let put = |i: usize| reading.begins.as_ref().and_then(|begins| begins[i].as_deref());
    // a question and its other order stand side by side
    let items = pairs.iter().enumerate().step_by(2).map(|(i, pair)| Item {
        task: &pair.task,
        id: format!("{} episode {} turn {}: {}", pair.task.id, pair.episode, pair.turn, pair.shown[1 - pair.expert]),
        parts: {
            let of_pair = [told[i].as_ref(), told[i + 1].as_ref()];
            let mut parts = parts(p.reasoning, of_pair, [put(i), put(i + 1)]);
            if let Some(exchanged) = exchanged.get(i..i + 2) {
                parts.extend(apart(of_pair, exchanged));
            }
            parts
        },
    });
    let mut scores = Scores::of_items(&items.collect::<Vec<_>>(), "accuracy", seed);
    scores.metrics.insert("questions".to_owned(), Some(told.iter().flatten().count() as f64));
    let mut conditions = vec![("reasoning", p.reasoning.name().to_owned())];
    if p.reasoning == Reasoning::Injected {
        let rationale = match p.wrong() {
            Rationale::Made(Made::Swapped) => "swapped".to_owned(),
            Rationale::Made(Made::Other) => "other".to_owned(),
            Rationale::Text(text) => text,
        };
        conditions.push(("rationale", rationale));
    }
    if p.held {
        conditions.push(("held", "true".to_owned()));
    }
    scores.conditions = conditions.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    scores
}

/// What a pair adds to the numbers of an exchange: the share of the questions asked, and the accuracy where it was done and where a
/// wrong reasoning was put as it was.
fn apart(told: [Option<&Told>; 2], exchanged: &[bool]) -> [Part; 3] {
    let asked: Vec<(f64, bool)> = told
        .iter()
        .zip(exchanged)
        .filter_map(|(told, exchanged)| Some((f64::from(told.as_ref()?.outcome.correct), *exchanged)))
        .collect();
    let right = |name, of: bool| {
        let some: Vec<f64> = asked.iter().filter(|(_, exchanged)| *exchanged == of).map(|(right, _)| *right).collect();
        Part::new(name, some.iter().sum(), some.len() as f64)
    };
    let share = asked.iter().filter(|(_, exchanged)| *exchanged).count() as f64;
    [
        Part::new("exchanged", share, asked.len() as f64),
        right("accuracy_exchanged", true),
        right("accuracy_as_it_was", false),
    ]
}

/// What a pair adds to each number: the answers in both orders, and the reasonings that they were begun with.
fn parts(variant: Reasoning, told: [Option<&Told>; 2], put: [Option<&str>; 2]) -> Vec<Part> {
    let sum = |name, of: &dyn Fn(&Told) -> Option<f64>| {
        let values: Vec<f64> = told.iter().flatten().filter_map(|told| of(told)).collect();
        Part::new(name, values.iter().sum(), values.len() as f64)
    };
    let right = |told: &Told| Some(f64::from(told.outcome.correct));
    let at = |position| move |told: &Told| right(told).filter(|_| told.outcome.position == Some(position));
    let both = match told {
        [Some(one), Some(other)] => {
            Part::new("consistent", f64::from(one.outcome.correct && other.outcome.correct), 1.0)
        }
        _ => Part::new("consistent", 0.0, 0.0),
    };
    let mut parts = vec![
        sum("accuracy", &right),
        sum("accuracy_first", &at(0)),
        sum("accuracy_second", &at(1)),
        both,
        sum("malformed", &|told| Some(f64::from(told.outcome.malformed))),
    ];
    let words = |text: &str| text.split_whitespace().count() as f64;
    match variant {
        Reasoning::Own => {
            parts.push(sum("reasoned", &|told| Some(f64::from(told.reasoning.is_some()))));
            parts.push(sum("reasoning_words", &|told| told.reasoning.as_deref().map(words)));
        }
        Reasoning::Injected => {
            let put: Vec<f64> = put.into_iter().flatten().map(words).collect();
            parts.push(Part::new("found", put.len() as f64, 2.0));
            parts.push(Part::new("reasoning_words", put.iter().sum(), put.len() as f64));
        }
        Reasoning::Removed => {}
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_actions_are_exchanged_as_wholes_and_nothing_else_is() {
        let shown = ["go to desk 1".to_owned(), "go to desk 10".to_owned()];
        let swap = |text: &str| exchanged(text, &shown, false);
        for (text, want) in [
            ("go to desk 1 is near, go to desk 10 is not.", "go to desk 10 is near, go to desk 1 is not."),
            ("Go to desk 1!", "go to desk 10!"),
            ("cargo to desk 1, go to desk 12", "cargo to desk 1, go to desk 12"),
            ("action 1 is better", "action 1 is better"),
            ("é go to desk 1é", "é go to desk 1é"),
            ("", ""),
        ] {
            assert_eq!(swap(text), want, "{text}");
            assert_eq!(swap(&swap(text)).to_lowercase(), text.to_lowercase(), "twice is not at all");
        }
        let numbered = |text: &str| exchanged(text, &shown, true);
        assert_eq!(numbered("Action 1 beats option 2: go to desk 10"), "Action 2 beats option 1: go to desk 1");
        assert_eq!(numbered("shelf 1, action 12, 1"), "shelf 1, action 12, 1");
    }

    #[test]
    fn a_rationale_that_does_not_argue_for_the_wrong_action_is_refused() {
        let said = |text: &str| check_text(text).into_iter().map(|p| p.message).collect::<Vec<_>>();
        assert_eq!(said("{wrong}!"), Vec::<String>::new());
        assert_eq!(said("{right} and {wrong}"), Vec::<String>::new());
        for bad in ["swaped", "{right}", "", "{wrong", "{wrong} {left}"] {
            assert_eq!(said(bad).len(), 1, "{bad}");
        }
        let Rationale::Text(text) = Rationale::default() else { panic!("the default is a text") };
        assert!(check_text(&text).is_empty());
    }

    #[test]
    fn words_for_a_rationale_are_read_as_what_they_name() {
        let read = |text: &str| serde_json::from_value::<Rationale>(text.into()).unwrap();
        assert_eq!(read("swapped"), Rationale::Made(Made::Swapped));
        assert_eq!(read("other"), Rationale::Made(Made::Other));
        assert_eq!(read("{wrong}"), Rationale::Text("{wrong}".to_owned()));
    }
}
