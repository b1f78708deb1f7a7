//! `act`: Agentic Critical Training: which of two actions is better? GRPO that rewards only the choice.
//!
//! arXiv 2603.08706. The model sees the state and both actions in random order, reasons freely, then answers with the
//! text of one of them. Which reasoning helps is left to the reinforcement.

use std::collections::BTreeMap;

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem, Resources};

use super::policy_optimisation::{Params, apart};
use super::{common, training};
use crate::artifact::{self, Pair};
use crate::model::Model;
use crate::reward::{Outcome, Reward};
use crate::text::prompt::Choosing;
use crate::text::{Prompt, Text};
use crate::train::draw::{Asked, Questions, Source};
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
    let choice = said.and_then(|said| prompt.which(said, &pair.shown));
    // another possible action, said in the right form, is not malformed: it is wrong
    let other = |said: &str| prompt.choosing() == Choosing::Text && pair.actions.iter().any(|a| a == said);
    let possible = said.is_some_and(|said| choice.is_some() || other(said));
    Outcome { position: Some(pair.expert), ..reward.outcome(choice == Some(pair.expert), possible) }
}

impl Questions for Critics {
    fn len(&self) -> usize {
        self.pairs.len()
    }

    fn prompt(&self, index: usize) -> &[u32] {
        &self.prompts[index]
    }

    fn families(&self) -> Vec<Vec<usize>> {
        let mut families: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, pair) in self.pairs.iter().enumerate() {
            families.entry(pair.episode).or_default().push(index);
        }
        families.into_values().collect()
    }

    fn judge(&self, index: usize, answer: Option<&str>) -> Outcome {
        let outcome = judge(&self.pairs[index], &self.prompt, &self.reward, answer);
        self.reward.formed(outcome, self.formed(answer))
    }

    fn formed(&self, answer: Option<&str>) -> bool {
        answer.and_then(|answer| self.prompt.choice(answer)).is_some_and(|said| !said.is_empty())
    }

    fn knows(&self, index: usize) -> bool {
        self.prompt.choosing() == Choosing::Index || !self.pairs[index].actions.is_empty()
    }

    fn parts(&self, _index: usize, answer: Option<&str>, outcome: &Outcome) -> BTreeMap<&'static str, f64> {
        self.reward.parts(outcome, self.formed(answer))
    }
}

/// Pairs to train on and pairs to validate on.
fn split(pairs: Vec<Pair>, p: &Params, other: Option<Vec<Pair>>) -> Result<(Vec<Pair>, Vec<Pair>), OpError> {
    let (held_out, mut training): (Vec<Pair>, Vec<Pair>) = pairs.into_iter().partition(|pair| pair.held_out);
    if p.limit > 0 {
        training.truncate(p.limit);
    }
    if training.is_empty() {
        let (what, help) = match held_out.len() {
            0 => ("the pairs file is empty".to_owned(), "look at the metrics of the step that made it"),
            n => (
                format!("no pair is left to train on: all {n} are held out"),
                "lower `held_out` of `pairs`; look at its `leaked` if `on_leak = \"drop\"`",
            ),
        };
        return Err(OpError::with_help(what, help));
    }
    let validation = match (p.validate, other) {
        (None, _) => Vec::new(),
        (Some(_), Some(other)) => {
            apart(training.iter().map(|pair| &pair.task), other.iter().map(|pair| &pair.task))?;
            other
        }
        (Some(_), None) => held_out,
    };
    if p.validate.is_some() && validation.is_empty() {
        return Err(OpError::with_help(
            "`validate` is set and there is no pair to validate on",
            "give the input `validation`, or raise `held_out` of `pairs`",
        ));
    }
    Ok((training, validation))
}

/// The op.
pub struct Act;

impl Op for Act {
    type Params = Params;
    const NAME: &'static str = "act";
    const VERSION: u32 = 5;
    const ABOUT: &'static str = "Agentic Critical Training: learns by GRPO to say which of two actions is better";

    fn ports(&self, p: &Params) -> Ports {
        let validation = "pairs of other tasks that `validate` asks, all of them; left out, those held out of `pairs`";
        let ports = Ports::new().input("model", Kind::MODEL, "the model to start from").input(
            "pairs",
            Kind::PAIRS,
            "pairs of actions; those held out are not trained on",
        );
        p.training.outputs(match p.validate {
            Some(_) => ports.port("validation", &[Kind::PAIRS], Arity::Optional, validation),
            None => ports,
        })
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        p.check()
    }

    fn resources(&self, _: &Params) -> Resources {
        Resources { cpu: 1, gpu: 1 }
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let (mut model, text) = common::load_for(ctx, ctx.input("model"), &p.prompt)?;
        p.training.prepare(ctx, &mut model, 0)?;
        let other = ctx.input_opt("validation").map(artifact::read).transpose()?;
        let (training, validation) = split(artifact::read(ctx.input("pairs"))?, p, other)?;
        // an action that is neither of the two counts as possible only where the list says so
        let bare = training.iter().filter(|pair| pair.actions.is_empty()).count();
        p.reward.warn_of_bare(ctx, (bare, training.len()), "pairs");
        let mut critics = Asked(Critics::new(training, &text, &model, p)?);
        let mut validation = Asked(Critics::new(validation, &text, &model, p)?);
        let asked = p.validate.is_some().then_some(&mut validation as &mut dyn Source);
        let reference =
            if p.kl > 0.0 { Some(training::load_reference(ctx, ctx.input("model"), &model)?) } else { None };
        let settings = p.settings(ctx.seed("samples"));
        grpo::run(ctx, &mut model, reference.as_ref(), &text, &mut critics, asked, &settings)?;
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

    #[test]
    fn under_a_sum_the_form_alone_earns_its_part_and_nothing_quoted_earns_more() {
        use crate::reward::Composition::{Exclusive, Sum};
        let right = "go to desk 1";
        // answer -> what it earns under `exclusive`, under `sum`
        let cases = [
            (Some("go to desk 1"), 1.0, 1.15),
            (Some("<think>open fridge 1</think>go to desk 1"), 1.0, 1.15),
            (Some("open fridge 1"), 0.1, 0.15),
            (Some("go to bed 1"), 0.1, 0.15),
            (Some("<think>go to desk 1</think>open fridge 1"), 0.1, 0.15),
            // of the right form, and no possible action: the right one quoted, both, one said twice
            (Some("not open fridge 1 but go to desk 1"), 0.05, 0.05),
            (Some("open fridge 1\ngo to desk 1"), 0.05, 0.05),
            (Some("go to desk 1 go to desk 1"), 0.05, 0.05),
            (Some("go to desk"), 0.05, 0.05),
            // no form
            (Some(""), -0.5, -0.5),
            (Some("<think>go to desk 1</think>"), -0.5, -0.5),
            (Some("<think>go to desk 1"), -0.5, -0.5),
            (Some("go to desk 1</think>open fridge 1"), -0.5, -0.5),
            (None, -0.5, -0.5),
        ];
        for (answer, exclusive, sum) in cases {
            for (composition, want) in [(Exclusive, exclusive), (Sum, sum)] {
                let mut critics = critics();
                critics.reward = Reward { format: Some(0.05), composition, ..Reward::default() };
                let outcome = critics.judge(0, answer);
                assert!((outcome.reward - want).abs() < 1e-12, "{composition:?} {answer:?}: {outcome:?}");
                let parts = critics.parts(0, answer, &outcome);
                assert_eq!(parts.values().sum::<f64>(), outcome.reward, "{answer:?}: {parts:?}");
                let ends = answer.is_some_and(|a| a.ends_with(right));
                assert!(ends || !outcome.correct, "{answer:?}");
            }
        }
    }
}
