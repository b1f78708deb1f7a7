//! `rl`: policy optimisation of the next action, in two regimes.
//!
//! 1. States: single actions at the states of expert episodes; the reward compares with the expert.
//! 2. Episodes: whole episodes that the model under training plays itself; the environment says what they are worth.
//!
//! Invariant: one loop and one objective for both; they differ in what is drawn.

use std::collections::BTreeMap;
use std::sync::Arc;

use actloom_engine::op::{Kind, Op, OpContext, OpError, Ports, Problem, Resources};
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::episodes::{self, Episodes};
use super::worlds::Tasks;
use super::{common, policy_optimisation, training};
use crate::artifact::{self, Episode, Task};
use crate::model::Model;
use crate::reward::{Outcome, Reward};
use crate::text::{Prompt, Text};
use crate::train::draw::{Asked, Questions, Source};
use crate::train::{collect, grpo};

/// Parameters of `rl`.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct Params {
    /// Learns from whole episodes that the model plays in an environment. Left out, it learns from single actions at the
    /// states of the input `states`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub episodes: Option<episodes::Settings>,
    #[serde(flatten)]
    pub optimisation: policy_optimisation::Params,
}

/// Expert states as questions.
struct States {
    /// Number of the episode that each is of.
    episodes: Vec<usize>,
    /// Of those episodes.
    tasks: Vec<Task>,
    prompts: Vec<Vec<u32>>,
    /// The expert's action and everything possible.
    answers: Vec<(String, Vec<String>)>,
    reward: Reward,
    prompt: Prompt,
}

impl States {
    /// The first `limit` states of a file of episodes, 0 for all.
    fn read(
        path: &Utf8Path,
        limit: usize,
        p: &policy_optimisation::Params,
        text: &Text,
        model: &Model,
    ) -> Result<States, OpError> {
        let episodes: Vec<Episode> = artifact::read(path)?;
        let mut states = States {
            episodes: Vec::new(),
            tasks: Vec::new(),
            prompts: Vec::new(),
            answers: Vec::new(),
            reward: p.reward,
            prompt: p.prompt.clone(),
        };
        'all: for (number, episode) in episodes.iter().enumerate() {
            for (turn, state) in episode.turns.iter().enumerate() {
                if limit > 0 && states.prompts.len() == limit {
                    break 'all;
                }
                let messages = common::state(&p.prompt, (number, episode), turn, p.prompt.tells_replies())?;
                if states.episodes.last() != Some(&number) {
                    states.tasks.push(episode.task.clone());
                }
                states.episodes.push(number);
                states.prompts.push(common::prompt_ids(text, &messages, model, p.max_tokens)?);
                states.answers.push((state.action.clone(), state.actions.clone()));
            }
        }
        if states.prompts.is_empty() {
            return Err(OpError::failed(format!("the episodes in `{path}` hold no state to act at")));
        }
        Ok(states)
    }

    /// The action that an answer says, if it has the form that was asked for.
    fn said<'a>(&self, answer: Option<&'a str>) -> Option<&'a str> {
        self.prompt.parse(answer?).ok().map(|reply| reply.action)
    }
}

impl Questions for States {
    fn len(&self) -> usize {
        self.prompts.len()
    }

    fn prompt(&self, index: usize) -> &[u32] {
        &self.prompts[index]
    }

    fn families(&self) -> Vec<Vec<usize>> {
        let mut families: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, episode) in self.episodes.iter().enumerate() {
            families.entry(*episode).or_default().push(index);
        }
        families.into_values().collect()
    }

    fn judge(&self, index: usize, answer: Option<&str>) -> Outcome {
        let (expert, actions) = &self.answers[index];
        let said = self.said(answer);
        let outcome = self.reward.outcome(said == Some(expert), said.is_some_and(|a| actions.iter().any(|b| a == b)));
        self.reward.formed(outcome, said.is_some())
    }

    fn formed(&self, answer: Option<&str>) -> bool {
        self.said(answer).is_some()
    }

    fn knows(&self, index: usize) -> bool {
        !self.answers[index].1.is_empty()
    }

    fn parts(&self, _index: usize, answer: Option<&str>, outcome: &Outcome) -> BTreeMap<&'static str, f64> {
        self.reward.parts(outcome, self.said(answer).is_some())
    }
}

/// The op.
pub struct Rl;

impl Op for Rl {
    type Params = Params;
    const NAME: &'static str = "rl";
    const VERSION: u32 = 5;
    const ABOUT: &'static str =
        "learns by policy optimisation to act: as an expert does at its states, or to win episodes of its own";

    fn ports(&self, p: &Params) -> Ports {
        let ports =
            p.optimisation.training.outputs(Ports::new().input("model", Kind::MODEL, "the model to start from"));
        match &p.episodes {
            Some(episodes) => episodes.world.port(ports),
            None => {
                let ports = ports.input("states", Kind::EPISODES, "expert episodes; each turn is a state");
                match p.optimisation.validate {
                    Some(_) => ports.input(
                        "validation",
                        Kind::EPISODES,
                        "expert episodes of other tasks at whose states the model is validated",
                    ),
                    None => ports,
                }
            }
        }
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        let mut problems = p.optimisation.check();
        let Some(episodes) = &p.episodes else { return problems };
        let p = &p.optimisation;
        problems.extend(episodes.check(&p.prompt));
        if p.reward != (Reward { length: p.reward.length, ..Reward::default() }) {
            let what = "no answer is compared with an expert's where whole episodes are played";
            problems.push(Problem::new(&["reward"], what).help("write `reward` in the table `episodes`"));
        }
        if p.limit > 0 {
            let what = "`limit` counts states, and whole episodes are played";
            problems.push(Problem::new(&["limit"], what).help("write `tasks` in the table `episodes`"));
        }
        if p.validate.is_some() && episodes.validation.is_none() {
            let what = "there is nothing to validate on, expected a table `validation` in `episodes`";
            problems.push(Problem::new(&["validate"], what));
        }
        if p.validate.is_none() && episodes.validation.is_some() {
            let what = "tasks for validation are given, and `validate` is not set";
            let problem = Problem::new(&["episodes", "validation"], what);
            problems.push(problem.help("write `validate = {}`, or leave this table out"));
        }
        if p.order == collect::Order::Families {
            let what = "`families` puts questions about one episode side by side, and whole episodes are played";
            problems.push(Problem::new(&["order"], what).help("leave `order` out"));
        }
        if episodes.gigpo.is_some() && p.loss == Some(policy_optimisation::Loss::Rloo) {
            let what = "`gigpo` in `episodes` says how episodes are compared, and `rloo` is another way to";
            problems.push(Problem::new(&["loss"], what).help("leave `loss` or `gigpo` out"));
        }
        if episodes.gigpo.is_some() && p.advantage.is_some() {
            let what = "`gigpo` in `episodes` says how episodes are compared, expected no `advantage` beside it";
            problems.push(Problem::new(&["advantage"], what));
        }
        problems
    }

    fn resources(&self, _: &Params) -> Resources {
        Resources { cpu: 1, gpu: 1 }
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let Params { episodes, optimisation: p } = p;
        let (mut model, text) = common::load_for(ctx, ctx.input("model"), &p.prompt)?;
        p.training.prepare(ctx, &mut model, 0)?;
        let text = Arc::new(text);
        let mut settings = p.settings(ctx.seed("samples"));
        let (mut source, mut validation): (Box<dyn Source>, Option<Box<dyn Source>>) = match episodes {
            Some(episodes) => {
                settings.compare.gigpo = episodes.gigpo.map(|gigpo| gigpo.settings());
                let tasks = Tasks::open(ctx, &episodes.world, &episodes.split, episodes.first, episodes.tasks)?;
                ctx.note("reproducible", tasks.suite.reproducible());
                let source = Episodes::new(tasks, episodes, &p.prompt, text.clone());
                let validation = source.validation(episodes)?;
                (Box::new(source), validation.map(|source| Box::new(source) as Box<dyn Source>))
            }
            None => {
                let states = |path, limit| States::read(path, limit, p, &text, &model);
                let training = states(ctx.input("states"), p.limit)?;
                let bare = training.answers.iter().filter(|(_, actions)| actions.is_empty()).count();
                p.reward.warn_of_bare(ctx, (bare, training.answers.len()), "states");
                let validation = p.validate.map(|_| states(ctx.input("validation"), 0)).transpose()?;
                if let Some(validation) = &validation {
                    policy_optimisation::apart(training.tasks.iter(), validation.tasks.iter())?;
                }
                let boxed = |states| Box::new(Asked(states)) as Box<dyn Source>;
                (boxed(training), validation.map(boxed))
            }
        };
        let reference =
            if p.kl > 0.0 { Some(training::load_reference(ctx, ctx.input("model"), &model)?) } else { None };
        let validation: Option<&mut dyn Source> = match &mut validation {
            Some(source) => Some(&mut **source),
            None => None,
        };
        grpo::run(ctx, &mut model, reference.as_ref(), &text, &mut *source, validation, &settings)?;
        training::publish(ctx, &model, ctx.input("model"))
    }
}
