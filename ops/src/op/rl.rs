//! `rl`: GRPO on the next action at the states of expert episodes: single step, the reward compares with the expert.

use actloom_engine::op::{Kind, Op, OpContext, OpError, Ports, Problem};

use super::common;
use super::policy_optimisation::Params;
use super::training;
use crate::artifact::{self, Episode};
use crate::model;
use crate::reward::{Outcome, Reward};
use crate::text::Prompt;
use crate::train::draw::{Asked, Questions};
use crate::train::grpo;

/// Expert states as questions.
struct States {
    prompts: Vec<Vec<u32>>,
    /// The expert's action and everything possible.
    answers: Vec<(String, Vec<String>)>,
    reward: Reward,
    prompt: Prompt,
}

impl Questions for States {
    fn len(&self) -> usize {
        self.prompts.len()
    }

    fn prompt(&self, index: usize) -> &[u32] {
        &self.prompts[index]
    }

    fn judge(&self, index: usize, answer: Option<&str>) -> Outcome {
        let (expert, actions) = &self.answers[index];
        let said = answer.and_then(|answer| self.prompt.parse(answer).ok()).map(|reply| reply.action);
        self.reward.outcome(said == Some(expert), said.is_some_and(|a| actions.iter().any(|b| a == b)))
    }
}

/// The op.
pub struct Rl;

impl Op for Rl {
    type Params = Params;
    const NAME: &'static str = "rl";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "learns by GRPO to act as the expert does at the states of its episodes";

    fn ports(&self, p: &Params) -> Ports {
        p.training.outputs(Ports::new().input("model", Kind::MODEL, "the model to start from").input(
            "states",
            Kind::EPISODES,
            "expert episodes; each turn is a state",
        ))
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        p.check()
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let (mut model, text) = common::load_for(ctx, ctx.input("model"), &p.prompt)?;
        p.training.prepare(ctx, &mut model)?;
        let episodes: Vec<Episode> = artifact::read(ctx.input("states"))?;
        let prompt = p.prompt.clone();
        let mut states = States { prompts: Vec::new(), answers: Vec::new(), reward: p.reward, prompt };
        'all: for (number, episode) in episodes.iter().enumerate() {
            for (turn, state) in episode.turns.iter().enumerate() {
                if p.limit > 0 && states.prompts.len() == p.limit {
                    break 'all;
                }
                let messages = common::state(&p.prompt, (number, episode), turn, p.prompt.tells_replies())?;
                states.prompts.push(common::prompt_ids(&text, &messages, &model, p.max_tokens)?);
                states.answers.push((state.action.clone(), state.actions.clone()));
            }
        }
        if states.prompts.is_empty() {
            return Err(OpError::failed("the episodes hold no state to act at"));
        }
        let reference = if p.kl > 0.0 { Some(model::load(ctx.input("model"), &model.device)?) } else { None };
        let settings = p.settings(ctx.seed("samples"));
        grpo::run(ctx, &mut model, reference.as_ref(), &text, &mut Asked(states), None, &settings)?;
        training::publish(ctx, &model, ctx.input("model"))
    }
}
