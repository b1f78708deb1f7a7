//! `act`: Agentic Critical Training: which of two actions is better? GRPO that rewards only the choice.
//!
//! arXiv 2603.08706. The model sees the state and both actions in random order, reasons freely, then answers with the
//! text of one of them. Which reasoning helps is left to the reinforcement.

use actloom_engine::op::{Kind, Op, OpContext, OpError, Ports, Problem};

use super::policy_optimisation::Params;
use super::{common, training};
use crate::artifact::{self, Pair};
use crate::model::{self, Model};
use crate::reward::{Outcome, Reward};
use crate::text::{Prompt, Text, which};
use crate::train::draw::{Asked, Questions};
use crate::train::grpo;

/// Pairs as questions.
pub struct Critics {
    pub prompts: Vec<Vec<u32>>,
    pub pairs: Vec<Pair>,
    pub reward: Reward,
    pub prompt: Prompt,
}

impl Critics {
    /// Renders each pair's question.
    ///
    /// # Errors
    /// The template's, and prompts too long for the model.
    pub fn new(pairs: Vec<Pair>, text: &Text, model: &Model, p: &Params) -> Result<Self, OpError> {
        let ids = |pair| common::prompt_ids(text, &common::question(&p.prompt, pair)?, model, p.max_tokens);
        let prompts = pairs.iter().map(ids).collect::<Result<_, OpError>>()?;
        Ok(Critics { prompts, pairs, reward: p.reward, prompt: p.prompt.clone() })
    }
}

/// What an answer to a pair's question is worth.
pub fn judge(pair: &Pair, prompt: &Prompt, reward: &Reward, answer: Option<&str>) -> Outcome {
    let said = answer.and_then(|answer| prompt.choice(answer));
    let choice = said.and_then(|said| which(said, &pair.shown));
    // another possible action, said in the right form, is not malformed: it is wrong
    let possible = said.is_some_and(|said| choice.is_some() || pair.actions.iter().any(|a| a == said));
    Outcome { position: Some(pair.expert), ..reward.outcome(choice == Some(pair.expert), possible) }
}

impl Questions for Critics {
    fn len(&self) -> usize {
        self.pairs.len()
    }

    fn prompt(&self, index: usize) -> &[u32] {
        &self.prompts[index]
    }

    fn judge(&self, index: usize, answer: Option<&str>) -> Outcome {
        judge(&self.pairs[index], &self.prompt, &self.reward, answer)
    }
}

/// The op.
pub struct Act;

impl Op for Act {
    type Params = Params;
    const NAME: &'static str = "act";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "Agentic Critical Training: learns by GRPO to say which of two actions is better";

    fn ports(&self, p: &Params) -> Ports {
        p.training.outputs(Ports::new().input("model", Kind::MODEL, "the model to start from").input(
            "pairs",
            Kind::PAIRS,
            "pairs of actions; those held out are left out",
        ))
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        p.check()
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let (mut model, text) = common::load_for(ctx, ctx.input("model"), &p.prompt)?;
        p.training.prepare(ctx, &mut model)?;
        let mut pairs: Vec<Pair> = artifact::read(ctx.input("pairs"))?;
        pairs.retain(|pair| !pair.held_out);
        if p.limit > 0 {
            pairs.truncate(p.limit);
        }
        if pairs.is_empty() {
            return Err(OpError::with_help("no pair is left to train on", "lower `held_out` of `pairs`"));
        }
        let critics = Critics::new(pairs, &text, &model, p)?;
        let reference = if p.kl > 0.0 { Some(model::load(ctx.input("model"), &model.device)?) } else { None };
        let settings = p.settings(ctx.seed("samples"));
        grpo::run(ctx, &mut model, reference.as_ref(), &text, &mut Asked(critics), None, &settings)?;
        training::publish(ctx, &model, ctx.input("model"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::{Past, SCHEMA_VERSION, Task};

    fn critics() -> Critics {
        let text = |s: &str| s.to_owned();
        let task = Task {
            env: text("household"),
            id: text("0"),
            split: text("train"),
            kind: text("x"),
            goal: text("y"),
            seed: None,
        };
        let pair = Pair {
            v: SCHEMA_VERSION,
            task,
            episode: 0,
            turn: 0,
            past: Past::of_texts(text("s"), Vec::new()),
            shown: [text("open fridge 1"), text("go to desk 1")],
            expert: 1,
            actions: vec![text("go to bed 1"), text("go to desk 1"), text("open fridge 1")],
            held_out: false,
        };
        Critics { prompts: vec![vec![0]], pairs: vec![pair], reward: Reward::default(), prompt: Prompt::default() }
    }

    #[test]
    fn only_the_choice_is_rewarded_and_nothing_can_be_talked_into_it() {
        let judge = |answer| critics().judge(0, answer).reward;
        assert_eq!(judge(Some("go to desk 1")), 1.0);
        assert_eq!(judge(Some("<think>open fridge 1</think>go to desk 1")), 1.0);
        assert_eq!(judge(Some("<think>go to desk 1</think>open fridge 1")), 0.1);
        assert_eq!(judge(Some("go to bed 1")), 0.1);
        for bad in [
            "go to desk 1 go to desk 1",
            "the better one is go to desk 1",
            "",
            "<think>go to desk 1</think>",
            "go to desk",
        ] {
            assert_eq!(judge(Some(bad)), -0.5, "{bad:?}");
        }
        assert_eq!(judge(None), -0.5, "an answer that did not end");
    }
}
