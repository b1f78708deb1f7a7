//! `dpo`: direct preference optimisation on pairs. Rafailov et al., 2023 (arXiv 2305.18290).
//!
//! Two readings of a pair. `on = "actions"`: the state is the prompt, the expert's action is preferred to the alternative.
//! `on = "choices"`: the critic's question is the prompt, the right answer is preferred to the wrong one.
//!
//! The reference is the model that training starts from, without adapters; it is asked once, before the first update, so no
//! second model is in memory. Left out: a reference of another folder, and answers with a reasoning, for pairs have none.

use actloom_engine::op::{Kind, Op, OpContext, OpError, Ports, Problem, Resources};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::act::judge;
use super::common::{self, Recalled, kept};
use super::forms::{Fit, OnLong, Order, at_line, check_amount};
use super::training::{self, Defaults, Training};
use crate::artifact::{self, Pair};
use crate::model::Model;
use crate::reward::Reward;
use crate::text::{Dialogue, Message, Prompt, Text};
use crate::train::dpo::{self, Logps, Preferred, Settings};
use crate::train::objective::dpo::{Objective, Preference};
use crate::train::sft::Plan;

/// What of a pair is preferred to what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum On {
    /// At the state, the expert's action to the alternative.
    #[default]
    Actions,
    /// To the question which of the two is better, the right answer to the wrong one.
    Choices,
}

/// Parameters of `dpo`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    #[serde(default)]
    pub on: On,
    /// What is done with the margin between the two answers.
    #[serde(default)]
    pub loss: Preference,
    /// Weight of the margin; a small one lets the model go far from where it started.
    #[serde(default = "beta")]
    #[schemars(range(min = 0.000001, max = 1000.0))]
    pub beta: f64,
    /// How probable it is that a label is wrong (cDPO); with `loss = "sigmoid"` alone.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 0.5))]
    pub label_smoothing: f64,
    /// Weight of the chosen answers' own loss, in nats a token, beside that of the preferences; 0: none.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub sft_weight: f64,
    /// Only the first so many pairs; 0 takes all. Pairs that were held out are not counted.
    #[serde(default)]
    pub limit: usize,
    /// Passes over the pairs: 1 unless `updates` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub epochs: Option<u64>,
    /// Exactly so many updates instead, with as many passes as they need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000000))]
    pub updates: Option<u64>,
    /// Pairs in an update.
    #[serde(default = "batch")]
    #[schemars(range(min = 1, max = 100000))]
    pub batch: usize,
    /// Longest sequence (prompt and answer), in tokens; 0 takes what the model takes.
    #[serde(default)]
    pub max_length: usize,
    /// What becomes of pairs with a longer one: `refuse` or `drop`.
    #[serde(default)]
    pub on_long: OnLong,
    /// How states and questions are put, and how actions and choices are said.
    #[serde(default)]
    pub prompt: Prompt,
    #[serde(flatten)]
    pub training: Training<Preferences>,
}

/// Defaults of learning from preferences.
pub struct Preferences;

impl Defaults for Preferences {
    const LEARNING_RATE: f64 = 5e-7;
    const CHECKPOINT: u64 = 200;
}

/// Passes, where nothing else is said.
const EPOCHS: u64 = 1;
/// Pairs whose reference is kept together.
const CHUNK: usize = 256;

fn beta() -> f64 {
    0.1
}
fn batch() -> usize {
    32
}

/// The prompt of a pair, and both answers to it.
fn preferred(pair: &Pair, p: &Params, text: &Text) -> Result<Preferred, OpError> {
    let prompt = &p.prompt;
    let (state, says): (Vec<Message>, [String; 2]) = match p.on {
        On::Actions => {
            let reply = |which: usize| prompt.reply(None, &pair.shown[which]);
            (Recalled::from(pair).messages(prompt)?, [reply(pair.expert), reply(1 - pair.expert)])
        }
        On::Choices => {
            let says = [pair.expert, 1 - pair.expert].map(|which| prompt.choose(None, &pair.shown, which));
            (common::question(prompt, pair)?, says)
        }
    };
    let read = match p.on {
        On::Actions => prompt.is_plain() || prompt.parse(&says[0]).is_ok_and(|r| r.action == pair.shown[pair.expert]),
        On::Choices => judge(pair, prompt, &Reward::default(), Some(&says[0])).correct,
    };
    if !read {
        return Err(OpError::with_help(
            format!("the prompt would not read `{}` as `{}`", says[0], pair.shown[pair.expert]),
            match p.on {
                On::Actions => {
                    "write `thinking = \"none\"` or `\"optional\"` in `prompt`, and leave marks out of actions"
                }
                On::Choices => {
                    "write `reason = \"none\"` or `\"optional\"` in `prompt`, and leave marks out of actions"
                }
            },
        ));
    }
    let state = Dialogue::told(text, &state, |_| false)?;
    let answer = |says: &str| -> Result<Vec<u32>, OpError> {
        let mut dialogue = state.clone();
        dialogue.assistant(says, true)?;
        Ok(dialogue.example.ids.split_off(state.ids().len()))
    };
    let (chosen, rejected) = (answer(&says[0])?, answer(&says[1])?);
    Ok(Preferred { place: String::new(), prompt: state.example.ids, chosen, rejected })
}

/// What the starting model gives to both answers of each pair, kept in parts for a step that is stopped.
fn reference(ctx: &OpContext<'_>, model: &Model, pairs: &[Preferred], rows: usize) -> Result<Vec<Logps>, OpError> {
    let mut out = Vec::with_capacity(pairs.len());
    for (chunk, part) in pairs.chunks(CHUNK).enumerate() {
        if ctx.stopping() {
            return Err(OpError::Interrupted);
        }
        let part: Vec<&Preferred> = part.iter().collect();
        out.extend(kept(ctx, &format!("reference-{chunk}"), || dpo::score(model, &part, rows))?);
    }
    Ok(out)
}

/// The op.
pub struct Dpo;

impl Op for Dpo {
    type Params = Params;
    const NAME: &'static str = "dpo";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "direct preference optimisation: the expert's action before the alternative";

    fn ports(&self, p: &Params) -> Ports {
        p.training.outputs(
            Ports::new().input("model", Kind::MODEL, "the model to start from, which is also the reference").input(
                "pairs",
                Kind::PAIRS,
                "pairs of actions; those held out are left out",
            ),
        )
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        let mut problems = p.prompt.check();
        problems.extend(check_amount(p.epochs, p.updates));
        if p.label_smoothing > 0.0 && p.loss != Preference::Sigmoid {
            let message = "labels are smoothed in the sigmoid loss alone, expected 0";
            problems.push(Problem::new(&["label_smoothing"], message).help("write `loss = \"sigmoid\"`"));
        }
        if p.on_long == OnLong::Truncate {
            let message = "an answer that is cut off is another answer, expected `refuse` or `drop`";
            problems.push(Problem::new(&["on_long"], message));
        }
        if p.on == On::Actions && !p.prompt.can_be_held() {
            let message = "the prompt wants a reasoning before the action, and pairs have none";
            problems.push(Problem::new(&["prompt", "thinking"], message).help("write `thinking = \"optional\"`"));
        }
        if p.on == On::Choices && !p.prompt.can_choose_at_once() {
            let message = "the prompt wants a reasoning before the choice, and pairs have none";
            problems.push(Problem::new(&["prompt", "reason"], message).help("write `reason = \"optional\"`"));
        }
        if p.training.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0) {
            let message =
                "dropout makes the second pass of an update compute something else than the first, expected 0";
            problems.push(Problem::new(&["lora", "dropout"], message));
        }
        problems
    }

    fn resources(&self, _: &Params) -> Resources {
        Resources { cpu: 1, gpu: 1 }
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let (mut model, text) = common::load_for(ctx, ctx.input("model"), &p.prompt)?;
        // 1. the pairs
        let path = ctx.input("pairs");
        let mut lines: Vec<(usize, Pair)> = (1..).zip(artifact::read(path)?).collect();
        let all = lines.len();
        lines.retain(|(_, pair)| !pair.held_out);
        let held_out = all - lines.len();
        if p.limit > 0 {
            lines.truncate(p.limit);
        }
        let mut fit = Fit::new(p.max_length, model.config.max_positions, p.on_long);
        let mut pairs = Vec::with_capacity(lines.len());
        for (line, pair) in &lines {
            let place = format!("line {line} of `{path}`");
            let preferred = preferred(pair, p, &text).map_err(|error| at_line(path, *line, error))?;
            if fit.takes(preferred.length(), &place)? {
                pairs.push(Preferred { place, ..preferred });
            }
        }
        if pairs.is_empty() {
            return Err(OpError::with_help(
                format!("no pair is left to train on: {held_out} are held out, {} too long", fit.dropped),
                "lower `held_out` of `pairs`, or raise `max_length`",
            ));
        }
        // 2. what the model gives to them before it is trained
        let longest = pairs.iter().map(|pair| pair.prompt.len() + pair.chosen.len() + pair.rejected.len()).max();
        p.training.prepare(ctx, &mut model, longest.unwrap_or(0))?;
        let reference = reference(ctx, &model, &pairs, p.training.row_tokens)?;
        // 3. training
        let order = Order::new(pairs.len(), p.batch, ctx.seed("order"));
        let facts = vec![
            ("pairs", pairs.len() as f64),
            ("held_out_pairs", held_out as f64),
            ("dropped_pairs", fit.dropped as f64),
        ];
        let plan = Plan { steps: order.updates(p.epochs.unwrap_or(EPOCHS), p.updates), facts, ..p.training.plan() };
        let settings = Settings {
            objective: Objective { preference: p.loss, beta: p.beta, smoothing: p.label_smoothing },
            sft_weight: p.sft_weight,
            row_tokens: p.training.row_tokens,
        };
        dpo::run(ctx, &mut model, &pairs, &reference, &settings, &plan, |step| order.at(step))?;
        training::publish(ctx, &model, ctx.input("model"))
    }
}
