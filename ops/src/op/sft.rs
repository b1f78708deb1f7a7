//! `sft`: maximum likelihood of answers, given everything before them.
//!
//! Four forms of data, of which one training may mix several: the actions of episodes (imitation), the answers of
//! conversations, a reflection with the action it led to (the self-reflection of Early Experience, arXiv 2510.08558), and
//! the right answer to a critic's question (SFT on choices).
//!
//! Invariants: no example is lost silently: each is learned whole, or counted, or refused with its file and line; pairs
//! that were held out are never learned; what the prompt would not read as the action taken is never learned.

use std::borrow::Cow;

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem, Resources};
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::act::judge;
use super::common::{self, Recalled};
use super::forms::{Fit, Form, OnLong, Order, at_line, check_amount};
use super::training::{self, Defaults, Training, longest};
use crate::artifact::{self, Episode, Pair, Reflection};
use crate::reward::Reward;
use crate::text::prompt::{Reply, Thinking};
use crate::text::{Dialogue, Message, Prompt, Role, Text};
use crate::train::batch::Example;
use crate::train::{chat, sft};

/// Parameters of `sft`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Only the first so many lines of each input; 0 takes all. Pairs that were held out are not counted.
    #[serde(default)]
    pub limit: usize,
    /// Passes over the data: 3 unless `updates` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub epochs: Option<u64>,
    /// Exactly so many updates instead, with as many passes as they need: for methods compared at equal updates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000000))]
    pub updates: Option<u64>,
    /// Examples in an update. An episode is one, or with `form = "single"` of the prompt each of its turns; a
    /// conversation is one or more (see the guide on training); a reflection is one, and so is a pair.
    #[serde(default = "batch")]
    #[schemars(range(min = 1, max = 100000))]
    pub batch: usize,
    /// Longest example, in tokens; 0 takes what the model takes.
    #[serde(default)]
    pub max_length: usize,
    /// What becomes of longer ones.
    #[serde(default)]
    pub on_long: OnLong,
    /// How states are put, and how actions and choices are said.
    #[serde(default)]
    pub prompt: Prompt,
    /// What of episodes is imitated.
    #[serde(default)]
    pub answers: Answers,
    #[serde(flatten)]
    pub training: Training<Imitation>,
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

/// Passes, where nothing else is said.
const EPOCHS: u64 = 3;

fn batch() -> usize {
    8
}

/// What there is to learn, and what was left out.
struct Data<'p> {
    params: &'p Params,
    text: &'p Text,
    fit: Fit,
    examples: Vec<Example>,
    /// Lines that were taken.
    lines: usize,
    answers: usize,
    reflections: usize,
    pairs: usize,
    held_out: usize,
    /// Answers that the prompt would not read as what they say.
    unread: usize,
}

impl Data<'_> {
    /// Takes the lines of one input.
    fn read(&mut self, path: &Utf8Path) -> Result<(), OpError> {
        match Form::of(path)? {
            None => Ok(()),
            Some(Form::Conversations) => {
                let lines = chat::read_file(path)?;
                self.take(path, lines, |data, _, conversation| {
                    let (examples, answers) = chat::examples(data.text, conversation)?;
                    data.answers += answers;
                    Ok(examples)
                })
            }
            Some(Form::Episodes) => {
                let episodes = artifact::read::<Episode>(path)?;
                self.take(path, numbered(episodes), |data, line, episode| data.episode(line - 1, episode))
            }
            Some(Form::Reflections) => {
                let reflections = artifact::read::<Reflection>(path)?;
                self.take(path, numbered(reflections), |data, _, reflection| data.reflection(reflection))
            }
            Some(Form::Pairs) => {
                let mut pairs = numbered(artifact::read::<Pair>(path)?);
                let all = pairs.len();
                pairs.retain(|(_, pair)| !pair.held_out);
                self.held_out += all - pairs.len();
                self.take(path, pairs, |data, _, pair| data.pair(pair))
            }
        }
    }

    /// Takes the examples of each line, up to the limit.
    fn take<T>(
        &mut self,
        path: &Utf8Path,
        lines: Vec<(usize, T)>,
        examples: impl Fn(&mut Self, usize, &T) -> Result<Vec<Example>, OpError>,
    ) -> Result<(), OpError> {
        let most = if self.params.limit == 0 { usize::MAX } else { self.params.limit };
        for (line, item) in lines.iter().take(most) {
            self.lines += 1;
            let examples = examples(self, *line, item).map_err(|error| at_line(path, *line, error))?;
            if examples.is_empty() {
                self.fit.empty += 1;
            }
            for example in examples {
                let fitted = self.fit.fit(example, &format!("line {line} of `{path}`"))?;
                self.examples.extend(fitted);
            }
        }
        Ok(())
    }

    /// A state and the one answer to it that is learned; nothing where the prompt would not read the answer so.
    fn answered(&mut self, mut state: Vec<Message>, answer: String, read: bool) -> Result<Vec<Example>, OpError> {
        if !read {
            self.unread += 1;
            return Ok(Vec::new());
        }
        self.answers += 1;
        let before = state.iter().filter(|message| message.role == Role::Assistant).count();
        state.push(Message::assistant(answer));
        Ok(vec![Dialogue::told(self.text, &state, |answer| answer == before)?.example])
    }

    /// The reflection, and the action it led to.
    fn reflection(&mut self, line: &Reflection) -> Result<Vec<Example>, OpError> {
        let prompt = &self.params.prompt;
        if prompt.thinking() == Thinking::None {
            return Err(OpError::with_help(
                "this is a reflection, and the prompt has no reasoning before the action",
                "write `thinking = \"optional\"` in `prompt`",
            ));
        }
        self.reflections += 1;
        let says = prompt.reply(Some(&line.reflection), &line.action);
        let whole = |reply: Reply<'_>| reply.action == line.action && reply.reasoning.is_some();
        let read = prompt.parse(&says).is_ok_and(whole);
        self.answered(Recalled::from(line).messages(prompt)?, says, read)
    }

    /// The question of a pair, and the better action in the form of an answer.
    fn pair(&mut self, pair: &Pair) -> Result<Vec<Example>, OpError> {
        let prompt = &self.params.prompt;
        self.pairs += 1;
        let says = prompt.choose(None, &pair.shown, pair.expert);
        let read = judge(pair, prompt, &Reward::default(), Some(&says)).correct;
        self.answered(common::question(prompt, pair)?, says, read)
    }

    /// Counts, as metrics; those that only some data have where they are not 0.
    fn facts(&self, examples: usize) -> Vec<(&'static str, f64)> {
        let mut facts = vec![("examples", examples as f64), ("actions", self.answers as f64)];
        facts.extend(self.fit.facts());
        let some = [
            ("reflections", self.reflections),
            ("pairs", self.pairs),
            ("held_out_pairs", self.held_out),
            ("unread_answers", self.unread),
        ];
        facts.extend(some.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name, n as f64)));
        facts
    }

    /// Why there is no example.
    fn nothing(&self) -> OpError {
        let Data { lines, held_out, unread, fit: Fit { dropped, empty, .. }, .. } = self;
        let mut nothing = format!(
            "the data holds nothing to imitate: {lines} lines, {dropped} examples too long, {empty} without an answer"
        );
        if *unread > 0 {
            return OpError::with_help(
                format!("{nothing}, {unread} answers that the prompt would not read as the action taken"),
                "where the data holds no reasoning, write `thinking = \"optional\"` or `\"none\"` in `prompt`; \
                 where episodes do, `answers = \"replies\"`",
            );
        }
        if *held_out > 0 {
            nothing += &format!(", {held_out} pairs held out");
        }
        OpError::failed(nothing)
    }

    /// One example, or one for each turn where every state is a message of its own.
    fn episode(&mut self, index: usize, episode: &Episode) -> Result<Vec<Example>, OpError> {
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
            Ok(Dialogue::told(self.text, &messages, |answer| alone || learn[answer])?.example)
        };
        if prompt.grows() {
            return episode.turns.len().checked_sub(1).map(example).into_iter().collect();
        }
        (0..episode.turns.len()).filter(|turn| learn[*turn]).map(example).collect()
    }
}

/// Lines with their numbers, from 1.
fn numbered<T>(lines: Vec<T>) -> Vec<(usize, T)> {
    (1..).zip(lines).collect()
}

/// The op.
pub struct Sft;

impl Op for Sft {
    type Params = Params;
    const NAME: &'static str = "sft";
    const VERSION: u32 = 3;
    const ABOUT: &'static str = "imitates actions, answers, reflections and choices";

    fn ports(&self, p: &Params) -> Ports {
        p.training.outputs(Ports::new().input("model", Kind::MODEL, "the model to start from").port(
            "data",
            &[Kind::EPISODES, Kind::CONVERSATIONS, Kind::REFLECTIONS, Kind::PAIRS],
            Arity::Many,
            "episodes whose actions are imitated, conversations whose answers are, reflections, or pairs whose better \
             action is chosen; all of them are mixed",
        ))
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        let mut problems = p.prompt.check();
        problems.extend(check_amount(p.epochs, p.updates));
        problems
    }

    fn resources(&self, _: &Params) -> Resources {
        Resources { cpu: 1, gpu: 1 }
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let (mut model, text) = common::load_for(ctx, ctx.input("model"), &p.prompt)?;
        // 1. the data, before anything is spent on it
        let fit = Fit::new(p.max_length, model.config.max_positions, p.on_long);
        let (lines, answers, reflections, pairs, held_out, unread) = (0, 0, 0, 0, 0, 0);
        let examples = Vec::new();
        let mut data =
            Data { params: p, text: &text, fit, examples, lines, answers, reflections, pairs, held_out, unread };
        for input in ctx.inputs("data") {
            data.read(&input.path)?;
        }
        let examples = std::mem::take(&mut data.examples);
        if examples.is_empty() {
            return Err(data.nothing());
        }
        // 2. training
        p.training.prepare(ctx, &mut model, longest(&examples))?;
        let order = Order::new(examples.len(), p.batch, ctx.seed("order"));
        let steps = order.updates(p.epochs.unwrap_or(EPOCHS), p.updates);
        let plan = sft::Plan { steps, facts: data.facts(examples.len()), ..p.training.plan() };
        sft::run(ctx, &mut model, &plan, |step| {
            Ok::<Vec<Example>, OpError>(order.at(step).into_iter().map(|i| examples[i].clone()).collect())
        })?;
        // 3. what came of it
        training::publish(ctx, &model, ctx.input("model"))
    }
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;
    use serde_json::{Value, json};

    use super::*;
    use crate::artifact::{Past, SCHEMA_VERSION, Task};

    fn text() -> Text {
        let folder = Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/model");
        Text::load(&folder, &[317, 315]).unwrap()
    }

    fn task() -> Task {
        let text = |s: &str| s.to_owned();
        Task { env: text("e"), id: text("0"), split: text("train"), kind: text("k"), goal: text("g"), seed: None }
    }

    fn past() -> Past {
        Past::of_texts("a room".to_owned(), vec![("look".to_owned(), "a desk".to_owned())])
    }

    fn reflection(monologue: &str) -> Reflection {
        let (actions, reflection, action) = (Vec::new(), monologue.to_owned(), "go to desk 1".to_owned());
        Reflection { v: SCHEMA_VERSION, task: task(), episode: 0, turn: 1, past: past(), actions, reflection, action }
    }

    fn pair() -> Pair {
        Pair {
            v: SCHEMA_VERSION,
            task: task(),
            episode: 0,
            turn: 1,
            past: past(),
            shown: ["open box 2".to_owned(), "go to desk 1".to_owned()],
            expert: 1,
            actions: Vec::new(),
            held_out: false,
        }
    }

    /// What the examples say and what of it is learned, and how many answers were not read.
    fn made(
        prompt: Value,
        make: impl Fn(&mut Data<'_>) -> Result<Vec<Example>, OpError>,
    ) -> Result<(Vec<(String, String)>, usize), OpError> {
        let params: Params = serde_json::from_value(json!({ "prompt": prompt })).unwrap();
        let text = text();
        let fit = Fit::new(0, 1000, OnLong::Refuse);
        let (lines, answers, reflections, pairs, held_out, unread) = (0, 0, 0, 0, 0, 0);
        let examples = Vec::new();
        let mut data =
            Data { params: &params, text: &text, fit, examples, lines, answers, reflections, pairs, held_out, unread };
        let examples = make(&mut data)?;
        let said = examples.iter().map(|example| {
            let learned: Vec<u32> =
                example.ids.iter().zip(&example.learn).filter(|(_, learn)| **learn).map(|(id, _)| *id).collect();
            (text.decode(&example.ids).unwrap(), text.decode(&learned).unwrap())
        });
        Ok((said.collect(), data.unread))
    }

    const STATE: &str = "<|im_start|>user\na room<|im_end|>\n<|im_start|>assistant\nlook<|im_end|>\n\
                         <|im_start|>user\na desk";
    const OPEN: &str = "<|im_end|>\n<|im_start|>assistant\n";

    #[test]
    fn of_a_reflection_the_monologue_and_its_action_are_learned_and_no_earlier_action() {
        let answer = "<think>it may be there</think>go to desk 1<|im_end|>";
        let line = reflection("it may be there");
        let (said, unread) = made(json!({ "thinking": "optional" }), |data| data.reflection(&line)).unwrap();
        assert_eq!((said, unread), (vec![(format!("{STATE}{OPEN}{answer}"), answer.to_owned())], 0));
        let (said, _) =
            made(json!({ "style": "react", "texts": { "first": "{observation}" } }), |data| data.reflection(&line))
                .unwrap();
        assert_eq!(said[0].1, "Thought: it may be there\nAction: go to desk 1<|im_end|>");
    }

    #[test]
    fn a_reflection_that_would_be_read_otherwise_is_not_learned_and_one_without_a_place_is_refused() {
        for monologue in ["so </think>open box 2", "<think>", "a <|im_end|>"] {
            let line = reflection(monologue);
            let (said, unread) = made(json!({ "thinking": "required" }), |data| data.reflection(&line)).unwrap();
            assert_eq!((said, unread), (Vec::new(), 1), "{monologue}");
        }
        let error = made(json!({}), |data| data.reflection(&reflection("hm"))).unwrap_err();
        let OpError::Failed { message, help } = error else { panic!("{error}") };
        assert!(message.contains("the prompt has no reasoning"), "{message}");
        assert!(help.unwrap().contains("thinking = \"optional\""));
    }

    #[test]
    fn of_a_pair_the_better_action_is_learned_behind_the_critics_question() {
        let question = format!("{STATE}\nWhich action is better?\nopen box 2\ngo to desk 1{OPEN}");
        let (said, unread) = made(json!({}), |data| data.pair(&pair())).unwrap();
        let answer = "go to desk 1<|im_end|>";
        assert_eq!((said, unread), (vec![(format!("{question}{answer}"), answer.to_owned())], 0));
        let (said, unread) = made(json!({ "thinking": "required" }), |data| data.pair(&pair())).unwrap();
        assert_eq!((said, unread), (Vec::new(), 1), "a prompt that wants a reasoning reads no choice without one");
    }
}
