//! `sft`: imitation: maximum likelihood of the actions of episodes, or of the answers of conversations, given everything
//! before them.
//!
//! Invariant: no example is lost silently: each is learned whole, or counted, or refused with its file and line.

use std::borrow::Cow;
use std::io::{BufRead, BufReader};

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem};
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common;
use super::training::{self, Defaults, Training};
use crate::artifact::{self, Episode};
use crate::rng::Rng;
use crate::text::{Dialogue, Message, Prompt, Text};
use crate::train::batch::Example;
use crate::train::{chat, sft};

/// Parameters of `sft`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Only the first so many episodes or conversations; 0 takes all.
    #[serde(default)]
    pub limit: usize,
    /// Passes over the data.
    #[serde(default = "epochs")]
    #[schemars(range(min = 1, max = 10000))]
    pub epochs: u64,
    /// Examples in an update. An episode is one, or with `form = "single"` of the prompt each of its turns; a
    /// conversation is one or more (see the guide on training).
    #[serde(default = "batch")]
    #[schemars(range(min = 1, max = 100000))]
    pub batch: usize,
    /// Longest example, in tokens; 0 takes what the model takes.
    #[serde(default)]
    pub max_length: usize,
    /// What becomes of longer ones.
    #[serde(default)]
    pub on_long: OnLong,
    /// How the states of episodes are put, and how actions are said.
    #[serde(default)]
    pub prompt: Prompt,
    /// What of episodes is imitated.
    #[serde(default)]
    pub answers: Answers,
    #[serde(flatten)]
    pub training: Training<Imitation>,
}

/// What becomes of an example that is too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnLong {
    /// The step fails and names its line.
    #[default]
    Refuse,
    /// It is left out, and counted.
    Drop,
    /// Its end is cut off, and it is counted.
    Truncate,
}

/// What of episodes is imitated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Answers {
    /// Actions, said in the form of the prompt.
    #[default]
    Actions,
    /// All that was said, where the episode has it. What the prompt would not read as the turn's action is shown and not
    /// learned.
    Replies,
}

/// Defaults of imitation.
pub struct Imitation;

impl Defaults for Imitation {
    const LEARNING_RATE: f64 = 1e-5;
    const CHECKPOINT: u64 = 200;
}

fn epochs() -> u64 {
    3
}
fn batch() -> usize {
    8
}

/// What there is to learn, and what was left out.
struct Data<'p> {
    params: &'p Params,
    longest: usize,
    examples: Vec<Example>,
    sources: usize,
    answers: usize,
    dropped: usize,
    cut: usize,
    empty: usize,
    /// Answers that the prompt would not read as the action that was taken.
    unread: usize,
}

impl Data<'_> {
    fn full(&self) -> bool {
        self.params.limit > 0 && self.sources >= self.params.limit
    }

    /// Takes the examples of one line.
    fn add(&mut self, examples: Vec<Example>, path: &Utf8Path, line: usize) -> Result<(), OpError> {
        self.sources += 1;
        if examples.is_empty() {
            self.empty += 1;
        }
        for mut example in examples {
            let length = example.ids.len();
            if length > self.longest {
                match self.params.on_long {
                    OnLong::Refuse => {
                        return Err(OpError::with_help(
                            format!("line {line} of `{path}` has {length} tokens, expected at most {}", self.longest),
                            "write `on_long = \"drop\"` or `\"truncate\"`, or raise `max_length` up to the model's positions",
                        ));
                    }
                    OnLong::Drop => {
                        self.dropped += 1;
                        continue;
                    }
                    OnLong::Truncate => {
                        example.truncate(self.longest);
                        self.cut += 1;
                    }
                }
            }
            if example.targets() == 0 {
                self.empty += 1;
            } else {
                self.examples.push(example);
            }
        }
        Ok(())
    }

    fn episodes(&mut self, text: &Text, path: &Utf8Path) -> Result<(), OpError> {
        for (index, episode) in artifact::read::<Episode>(path)?.iter().enumerate() {
            if self.full() {
                break;
            }
            let examples = self.episode(text, index, episode).map_err(|error| at_line(path, index + 1, error))?;
            self.add(examples, path, index + 1)?;
        }
        Ok(())
    }

    /// One example, or one for each turn where every state is a message of its own.
    fn episode(&mut self, text: &Text, index: usize, episode: &Episode) -> Result<Vec<Example>, OpError> {
        let Params { prompt, answers, .. } = self.params;
        let whole = *answers == Answers::Replies;
        let says: Vec<Cow<'_, str>> = episode
            .turns
            .iter()
            .map(|turn| match &turn.reply {
                Some(reply) if whole => Cow::from(reply),
                _ => Cow::from(prompt.reply(None, &turn.action)),
            })
            .collect();
        // a plain prompt reads every text as itself
        let learn: Vec<bool> = says
            .iter()
            .zip(&episode.turns)
            .map(|(says, turn)| {
                let read = prompt.parse(says).is_ok_and(|reply| reply.action == turn.action.trim());
                read || (prompt.is_plain() && *says == turn.action)
            })
            .collect();
        let learned = learn.iter().filter(|learn| **learn).count();
        self.answers += learned;
        self.unread += learn.len() - learned;
        let example = |turn: usize| -> Result<Example, OpError> {
            let mut messages = common::state(prompt, (index, episode), turn, whole)?;
            messages.push(Message::assistant(says[turn].as_ref()));
            let alone = !prompt.grows();
            Ok(Dialogue::told(text, &messages, |answer| alone || learn[answer])?.example)
        };
        if prompt.grows() {
            return episode.turns.len().checked_sub(1).map(example).into_iter().collect();
        }
        (0..episode.turns.len()).filter(|turn| learn[*turn]).map(example).collect()
    }

    fn conversations(&mut self, text: &Text, path: &Utf8Path) -> Result<(), OpError> {
        for (line, conversation) in chat::read_file(path)? {
            if self.full() {
                break;
            }
            let (examples, answers) =
                chat::examples(text, &conversation).map_err(|error| at_line(path, line, error))?;
            self.answers += answers;
            self.add(examples, path, line)?;
        }
        Ok(())
    }
}

/// An error with the line it is about.
fn at_line(path: &Utf8Path, line: usize, error: OpError) -> OpError {
    match error {
        OpError::Failed { message, help } => {
            OpError::Failed { message: format!("line {line} of `{path}`: {message}"), help }
        }
        other => other,
    }
}

/// Whether a file of the user's own holds conversations; episodes say their version.
fn holds_conversations(path: &Utf8Path) -> Result<bool, OpError> {
    if !fs_err::metadata(path)?.is_file() {
        return Err(OpError::failed(format!("`{path}` is a folder, expected a file of JSON lines")));
    }
    for line in BufReader::new(fs_err::File::open(path)?).lines() {
        let line = line.map_err(|e| OpError::failed(format!("cannot read `{path}`: {e}")))?;
        if !line.trim().is_empty() {
            let value: serde_json::Value = serde_json::from_str(&line)
                .map_err(|e| OpError::failed(format!("cannot read the first line of `{path}` as JSON: {e}")))?;
            return match (value["messages"].is_null(), value["v"].is_null()) {
                (false, _) => Ok(true),
                (true, false) => Ok(false),
                (true, true) => Err(OpError::with_help(
                    format!("the first line of `{path}` is neither a conversation nor an episode"),
                    r#"expected lines like {"messages": [{"role": "user", "content": ".."}, ..]}"#,
                )),
            };
        }
    }
    Ok(false)
}

/// The op.
pub struct Sft;

impl Op for Sft {
    type Params = Params;
    const NAME: &'static str = "sft";
    const VERSION: u32 = 3;
    const ABOUT: &'static str = "imitates the actions of episodes or the answers of conversations";

    fn ports(&self, p: &Params) -> Ports {
        p.training.outputs(Ports::new().input("model", Kind::MODEL, "the model to start from").port(
            "data",
            &[Kind::EPISODES, Kind::CONVERSATIONS],
            Arity::Many,
            "episodes whose actions are imitated, or conversations whose answers are",
        ))
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        p.prompt.check()
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let (mut model, text) = common::load_for(ctx, ctx.input("model"), &p.prompt)?;
        // 1. the data, before anything is spent on it
        let positions = model.config.max_positions;
        let longest = if p.max_length == 0 { positions } else { p.max_length.min(positions) };
        let (sources, answers, dropped, cut, empty, unread) = (0, 0, 0, 0, 0, 0);
        let mut data = Data { params: p, longest, examples: Vec::new(), sources, answers, dropped, cut, empty, unread };
        for input in ctx.inputs("data") {
            if holds_conversations(&input.path)? {
                data.conversations(&text, &input.path)?;
            } else {
                data.episodes(&text, &input.path)?;
            }
        }
        let examples = std::mem::take(&mut data.examples);
        if examples.is_empty() {
            let Data { sources, dropped, empty, unread, .. } = data;
            let nothing = format!(
                "the data holds nothing to imitate: {sources} lines, {dropped} examples too long, {empty} without an answer"
            );
            if unread > 0 {
                return Err(OpError::with_help(
                    format!("{nothing}, {unread} answers that the prompt would not read as the action taken"),
                    "where the episodes hold no reasoning, write `thinking = \"optional\"` or `\"none\"` in `prompt`; \
                     where they do, `answers = \"replies\"`",
                ));
            }
            return Err(OpError::failed(nothing));
        }
        // 2. training
        p.training.prepare(ctx, &mut model)?;
        let per_epoch = examples.len().div_ceil(p.batch) as u64;
        let mut facts = vec![
            ("examples", examples.len() as f64),
            ("actions", data.answers as f64),
            ("dropped_examples", data.dropped as f64),
            ("truncated_examples", data.cut as f64),
            ("empty_examples", data.empty as f64),
        ];
        if data.unread > 0 {
            facts.push(("unread_answers", data.unread as f64));
        }
        let plan = sft::Plan { steps: p.epochs * per_epoch, facts, ..p.training.plan() };
        let seed = ctx.seed("order");
        sft::run(ctx, &mut model, &plan, |step| {
            let (epoch, batch) = (step / per_epoch, (step % per_epoch) as usize);
            let mut order: Vec<usize> = (0..examples.len()).collect();
            Rng::at(seed, &[epoch]).shuffle(&mut order);
            let chosen = &order[batch * p.batch..examples.len().min((batch + 1) * p.batch)];
            Ok::<Vec<Example>, OpError>(chosen.iter().map(|i| examples[*i].clone()).collect())
        })?;
        // 3. what came of it
        training::publish(ctx, &model, ctx.input("model"))
    }
}
