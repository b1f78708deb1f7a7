//! `worldmodel`: the implicit world model of Early Experience (arXiv 2510.08558): what does the environment answer to an
//! action?
//!
//! The loss is the mean of -log p(next observation | state, action) over the observation's tokens, for the expert's actions
//! and, where they were executed, for alternatives: the model learns what actions lead to, right ones and wrong ones,
//! from its own environment and without a reward.
//!
//! 1. In a conversation, an episode is one sequence in which every observation but the first is learned; alternatives
//!    branch off before the expert's action. With `form = "single"` each state is its own prompt, and expert and
//!    alternatives branch off behind it.
//! 2. An example is what the prompt says up to the action, the action, and the observation as a user's turn: the ids are
//!    those that a later episode contains, for the same code makes both.
//! 3. Learned are the observation's own tokens. What the template writes around it is said twice, around two observations
//!    that have nothing in common; what both have in common is the template's and is not learned. A token that the
//!    tokenizer makes of both is learned. Lists of admissible actions behind the observation are not learned.
//!
//! Left out of the published method: nothing; the imitation that follows is `sft`, whose `updates` keeps the number of
//! updates of both together equal to that of imitation alone.

use std::collections::BTreeMap;
use std::ops::Deref;

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem, Resources};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common;
use super::forms::{Fit, OnLong, Order, at_line, check_amount, outcomes, sampled_at};
use super::training::{self, Defaults, Training, longest};
use crate::artifact::{self, Episode, Outcome, Samples, Turn};
use crate::text::{Dialogue, Message, Prompt, Role, Text};
use crate::train::batch::Example;
use crate::train::sft;

/// Parameters of `worldmodel`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Only the first so many episodes; 0 takes all.
    #[serde(default)]
    pub limit: usize,
    /// Alternatives of a state at most, in the order they were sampled in; 0 takes all.
    #[serde(default)]
    pub per_state: usize,
    /// Passes over the data: 1 unless `updates` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub epochs: Option<u64>,
    /// Exactly so many updates instead, with as many passes as they need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000000))]
    pub updates: Option<u64>,
    /// Episodes in an update, each with all its alternatives; with `form = "single"` of the prompt, states in an update.
    #[serde(default = "batch")]
    #[schemars(range(min = 1, max = 100000))]
    pub batch: usize,
    /// Longest example (a state, an action and the observation), in tokens; 0 takes what the model takes.
    #[serde(default)]
    pub max_length: usize,
    /// What becomes of longer ones.
    #[serde(default)]
    pub on_long: OnLong,
    /// How states and observations are put, and how actions are said.
    #[serde(default)]
    pub prompt: Prompt,
    #[serde(flatten)]
    pub training: Training<Consequences>,
}

/// Defaults of learning what actions lead to.
pub struct Consequences;

impl Defaults for Consequences {
    const LEARNING_RATE: f64 = 1e-5;
    const CHECKPOINT: u64 = 200;
}

/// Passes, where nothing else is said.
const EPOCHS: u64 = 1;

fn batch() -> usize {
    8
}

/// A text that no prompt writes.
const MARK: &str = "\u{1}observation\u{1}";

/// Says what the environment answers, and learns the tokens in which the observation has a part.
///
/// # Errors
/// The template's and the tokenizer's.
pub fn observe<T: Deref<Target = Text> + Clone>(
    dialogue: &mut Dialogue<T>,
    prompt: &Prompt,
    observation: &str,
    actions: &[String],
) -> Result<(), OpError> {
    let around = |other: &str| -> Result<Vec<u32>, OpError> { dialogue.clone().user(&prompt.turn(other, actions)) };
    let (one, other) = (around("0")?, around("x")?);
    let equal = |pairs: &mut dyn Iterator<Item = (&u32, &u32)>| pairs.take_while(|(a, b)| a == b).count();
    let before = equal(&mut one.iter().zip(&other));
    let behind = equal(&mut one.iter().rev().zip(other.iter().rev()));
    let said = dialogue.user(&prompt.turn(observation, actions))?;
    if observation.trim().is_empty() {
        return Ok(());
    }
    let head = equal(&mut said.iter().zip(&one[..before]));
    let rest = &said[head..];
    let tail = equal(&mut rest.iter().rev().zip(one[one.len() - behind..].iter().rev()));
    let from = dialogue.example.ids.len() - rest.len();
    let to = dialogue.example.ids.len() - tail;
    dialogue.example.learn[from..to].fill(true);
    Ok(())
}

/// Makes the examples of episodes.
struct Maker<'a> {
    prompt: &'a Prompt,
    text: &'a Text,
    /// What was tried at each state, by episode and turn.
    tried: BTreeMap<(usize, usize), Vec<(&'a str, &'a Outcome)>>,
}

impl<'a> Maker<'a> {
    fn tried(&self, episode: usize, turn: usize) -> &[(&'a str, &'a Outcome)] {
        self.tried.get(&(episode, turn)).map_or(&[], Vec::as_slice)
    }

    /// The example of an action at a state and what came of it.
    fn branch(&self, state: &Dialogue<&'a Text>, action: &str, observation: &str) -> Result<Example, OpError> {
        let mut branch = state.clone();
        branch.example.learn.fill(false);
        branch.assistant(&self.prompt.reply(None, action), false)?;
        observe(&mut branch, self.prompt, observation, &[])?;
        Ok(branch.example)
    }

    fn branches(&self, state: &Dialogue<&'a Text>, e: usize, turn: usize) -> Result<Vec<Example>, OpError> {
        self.tried(e, turn).iter().map(|(action, outcome)| self.branch(state, action, &outcome.observation)).collect()
    }

    /// The examples of an episode in parts that belong together.
    fn episode(&self, e: usize, episode: &Episode) -> Result<Vec<Vec<Example>>, OpError> {
        let replies = self.prompt.tells_replies();
        let state = |turn: usize| common::state(self.prompt, (e, episode), turn, replies);
        if self.prompt.grows() {
            return match episode.turns.len().checked_sub(1) {
                Some(last) => Ok(vec![self.conversation(e, episode, &state(last)?)?]),
                None => Ok(Vec::new()),
            };
        }
        let part = |(t, turn): (usize, &Turn)| {
            let state = Dialogue::told(self.text, &state(t)?, |_| false)?;
            let mut part = vec![self.branch(&state, &turn.action, &turn.observation)?];
            part.extend(self.branches(&state, e, t)?);
            Ok(part)
        };
        episode.turns.iter().enumerate().map(part).collect()
    }

    /// The whole episode, then each alternative behind what it shares with the episode. `messages` are those of the last
    /// state.
    fn conversation(&self, e: usize, episode: &Episode, messages: &[Message]) -> Result<Vec<Example>, OpError> {
        let mut dialogue = Dialogue::new(self.text);
        let mut part = Vec::new();
        let mut turn = 0;
        let mut said = false;
        for message in messages {
            match message.role {
                Role::System => dialogue.system(&message.content)?,
                Role::User if said => {
                    self.observed(&mut dialogue, episode, turn)?;
                    turn += 1;
                }
                Role::User => {
                    dialogue.user(&message.content)?;
                    said = true;
                }
                Role::Assistant => {
                    part.extend(self.branches(&dialogue, e, turn)?);
                    dialogue.assistant(&message.content, false)?;
                }
            }
        }
        part.extend(self.branches(&dialogue, e, turn)?);
        dialogue.assistant(&self.prompt.reply(None, &episode.turns[turn].action), false)?;
        self.observed(&mut dialogue, episode, turn)?;
        part.insert(0, dialogue.example);
        Ok(part)
    }

    /// What came of the expert's action, with the actions that were possible then where the prompt tells them.
    fn observed(&self, dialogue: &mut Dialogue<&'a Text>, episode: &Episode, turn: usize) -> Result<(), OpError> {
        let actions = episode.turns.get(turn + 1).map_or(&[][..], |next| &next.actions);
        observe(dialogue, self.prompt, &episode.turns[turn].observation, actions)
    }
}

/// The op.
pub struct WorldModel;

impl Op for WorldModel {
    type Params = Params;
    const NAME: &'static str = "worldmodel";
    const VERSION: u32 = 1;
    const ABOUT: &'static str =
        "learns what the environment answers to actions: Early Experience's implicit world model";

    fn ports(&self, p: &Params) -> Ports {
        let ports = Ports::new()
            .input("model", Kind::MODEL, "the model to start from")
            .input("states", Kind::EPISODES, "expert episodes; each turn is a state, an action and what came of it")
            .port(
                "alternatives",
                &[Kind::SAMPLES],
                Arity::Optional,
                "other actions at these states, executed (`execute = true` of `alternatives`)",
            );
        p.training.outputs(ports)
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        let mut problems = p.prompt.check();
        problems.extend(check_amount(p.epochs, p.updates));
        if problems.is_empty() && p.prompt.turn(MARK, &[]).matches(MARK).count() != 1 {
            let message = "this text tells the observation more than once, so its own tokens cannot be told apart";
            problems.push(Problem::new(&["prompt", "texts", "turn"], message).help("write `{observation}` once"));
        }
        problems
    }

    fn resources(&self, _: &Params) -> Resources {
        Resources { cpu: 1, gpu: 1 }
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let (mut model, text) = common::load_for(ctx, ctx.input("model"), &p.prompt)?;
        // 1. the data, before anything is spent on it
        let path = ctx.input("states");
        let episodes: Vec<Episode> = artifact::read(path)?;
        let samples: Vec<Samples> = match ctx.input_opt("alternatives") {
            Some(path) => artifact::read(path)?,
            None => Vec::new(),
        };
        let mut maker = Maker { prompt: &p.prompt, text: &text, tried: BTreeMap::new() };
        for line in &samples {
            sampled_at(&episodes, line)?;
            maker.tried.entry((line.episode, line.turn)).or_default().extend(outcomes(line, p.per_state)?);
        }
        let taken = if p.limit == 0 { episodes.len() } else { p.limit.min(episodes.len()) };
        let mut fit = Fit::new(p.max_length, model.config.max_positions, p.on_long);
        let mut parts: Vec<Vec<Example>> = Vec::new();
        for (e, episode) in episodes[..taken].iter().enumerate() {
            for part in maker.episode(e, episode).map_err(|error| at_line(path, e + 1, error))? {
                let place = format!("line {} of `{path}`", e + 1);
                let fitted = part.into_iter().map(|example| fit.fit(example, &place));
                let part: Vec<Example> = fitted.filter_map(Result::transpose).collect::<Result<_, OpError>>()?;
                if !part.is_empty() {
                    parts.push(part);
                }
            }
        }
        if parts.is_empty() {
            let Fit { dropped, empty, .. } = fit;
            return Err(OpError::failed(format!(
                "the episodes hold no transition to learn: {taken} episodes, {dropped} examples too long, {empty} without \
                 an observation"
            )));
        }
        let alternatives = maker.tried.range(..(taken, 0)).map(|(_, tried)| tried.len()).sum::<usize>();
        let mut facts = vec![
            ("examples", parts.iter().map(Vec::len).sum::<usize>() as f64),
            ("expert_transitions", episodes[..taken].iter().map(|e| e.turns.len()).sum::<usize>() as f64),
            ("alternative_transitions", alternatives as f64),
            ("observation_tokens", parts.iter().flatten().map(Example::targets).sum::<usize>() as f64),
        ];
        facts.extend(fit.facts());
        // 2. training
        p.training.prepare(ctx, &mut model, longest(parts.iter().flatten()))?;
        let order = Order::new(parts.len(), p.batch, ctx.seed("order"));
        let plan =
            sft::Plan { steps: order.updates(p.epochs.unwrap_or(EPOCHS), p.updates), facts, ..p.training.plan() };
        sft::run(ctx, &mut model, &plan, |step| {
            Ok::<Vec<Example>, OpError>(order.at(step).into_iter().flat_map(|i| parts[i].clone()).collect())
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
    use crate::eval::scores::tests::episode;

    fn text() -> Text {
        let folder = Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/model");
        Text::load(&folder, &[317, 315]).unwrap()
    }

    fn learned(text: &Text, example: &Example) -> String {
        let ids: Vec<u32> =
            example.ids.iter().zip(&example.learn).filter(|(_, learn)| **learn).map(|(id, _)| *id).collect();
        text.decode(&ids).unwrap()
    }

    fn tried(action: &'static str, observation: &str) -> (&'static str, Outcome) {
        (action, Outcome { observation: observation.to_owned(), reward: 0.0, done: false, won: false })
    }

    /// The parts of an episode of two turns, with an alternative at the second.
    fn parts(text: &Text, prompt: Value, actions: &[&str]) -> Vec<Vec<Example>> {
        let prompt: Prompt = serde_json::from_value(prompt).unwrap();
        let mut episode =
            episode("id/0", "k", true, &[("go to desk 1", true, "a mug 1"), ("take mug 1", true, "you have it")]);
        episode.start = "a room".to_owned();
        for turn in &mut episode.turns {
            turn.actions = actions.iter().map(|a| (*a).to_owned()).collect();
        }
        let (action, outcome) = tried("open box 2", "it is shut");
        let tried = BTreeMap::from([((0, 1), vec![(action, &outcome)])]);
        Maker { prompt: &prompt, text, tried }.episode(0, &episode).unwrap()
    }

    #[test]
    fn in_a_conversation_every_observation_but_the_first_is_learned_and_not_a_token_more() {
        let text = text();
        let parts = parts(&text, json!({}), &[]);
        let part = match parts.as_slice() {
            [part] => part,
            other => panic!("{other:?}"),
        };
        let said: Vec<String> = part.iter().map(|e| learned(&text, e)).collect();
        assert_eq!(said, ["a mug 1you have it", "it is shut"]);
        // the ids are those of a later state of the same episode
        let told = [
            Message::user("a room"),
            Message::assistant("go to desk 1"),
            Message::user("a mug 1"),
            Message::assistant("take mug 1"),
            Message::user("you have it"),
        ];
        assert_eq!(part[0].ids, Dialogue::told(&text, &told, |_| false).unwrap().example.ids);
        let branch = [&told[..3], &[Message::assistant("open box 2"), Message::user("it is shut")]].concat();
        assert_eq!(part[1].ids, Dialogue::told(&text, &branch, |_| false).unwrap().example.ids);
    }

    #[test]
    fn with_states_of_their_own_each_state_is_a_part_with_its_alternatives() {
        let text = text();
        let parts = parts(&text, json!({ "form": "single", "thinking": "none" }), &[]);
        let said: Vec<Vec<String>> = parts.iter().map(|p| p.iter().map(|e| learned(&text, e)).collect()).collect();
        assert_eq!(said, [vec!["a mug 1"], vec!["you have it", "it is shut"]]);
    }

    #[test]
    fn a_list_of_admissible_actions_is_told_and_not_learned() {
        let text = text();
        let parts = parts(&text, json!({ "actions": "all" }), &["look", "open box 2"]);
        let said: Vec<String> = parts[0].iter().map(|e| learned(&text, e)).collect();
        // both texts end a line before the list, where the tokenizer may join the two
        assert_eq!(said[0].replace('\n', ""), "a mug 1you have it");
        assert_eq!(said[1], "it is shut");
        let whole = text.decode(&parts[0][0].ids).unwrap();
        assert!(whole.contains("a mug 1\n\nNow you can do one of these:\nlook\nopen box 2"), "{whole}");
    }

    #[test]
    fn the_mask_is_the_observation_whatever_it_says() {
        let text = text();
        for (observation, exact) in [
            ("0", true),
            ("x", true),
            ("0x0", true),
            ("user", true),
            ("assistant\nuser", true),
            ("On the desk 1, you see nothing.", true),
            (" blank before and behind ", true),
            ("caf\u{e9} \u{1f642}", true),
            ("\na line before", false),
            ("a line behind\n", true),
        ] {
            let mut dialogue = Dialogue::new(&text);
            dialogue.user("a room").unwrap();
            dialogue.assistant("look", false).unwrap();
            observe(&mut dialogue, &Prompt::default(), observation, &[]).unwrap();
            let said = learned(&text, &dialogue.example);
            assert!(said.contains(observation.trim()) && (!exact || said == observation), "{observation:?}: {said:?}");
            let whole = text.decode(&dialogue.example.ids).unwrap();
            assert!(whole.ends_with(&format!("<|im_start|>user\n{observation}<|im_end|>\n<|im_start|>assistant\n")));
        }
        for nothing in ["", " ", "\n\n"] {
            let mut dialogue = Dialogue::new(&text);
            dialogue.user("a room").unwrap();
            dialogue.assistant("look", false).unwrap();
            observe(&mut dialogue, &Prompt::default(), nothing, &[]).unwrap();
            assert_eq!(dialogue.example.targets(), 0, "{nothing:?}");
        }
    }
}
