//! `eval`: counts the scores of a policy from the episodes it played.

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::{self, Episode};
use crate::eval::scores::Scores;
use crate::report::number;

/// Scores episodes.
pub struct Eval;

/// Parameters of `eval`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvalParams {
    /// An episode loops when one action is taken this often upon one observation.
    #[schemars(range(min = 2, max = 1000))]
    #[serde(default = "three")]
    pub loop_at: usize,
}

fn three() -> usize {
    3
}

impl Op for Eval {
    type Params = EvalParams;
    const NAME: &'static str = "eval";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Counts success, steps, invalid and repeated actions and loops of played episodes";

    fn ports(&self, _params: &EvalParams) -> Ports {
        Ports::new()
            .input("episodes", Kind::EPISODES, "What was played")
            .port("critic", &[Kind::SCORES], Arity::Optional, "A critic's numbers, added with the prefix `critic_`")
            .output(
                "scores",
                Kind::SCORES,
                "Named numbers, success by task type, and every task for paired comparisons",
            )
    }

    fn run(&self, params: &EvalParams, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let path = ctx.input("episodes");
        let episodes: Vec<Episode> = artifact::read(path)?;
        if episodes.is_empty() {
            return Err(OpError::failed(format!("cannot score `{path}`: it has no episodes, expected at least one")));
        }
        let mut scores = Scores::of_episodes(&episodes, params.loop_at);
        if let Some(critic) = ctx.input_opt("critic") {
            scores.merge("critic_", &Scores::read(critic)?);
        }
        scores.write(ctx.output("scores"))?;
        let success = scores.metrics.get("success").copied().flatten().unwrap_or(0.0);
        let note = format!("success {} %", number::metric("success", success, true));
        ctx.progress(episodes.len() as u64, episodes.len() as u64, "episodes", note);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::scores::tests::episode;
    use crate::op::table::tests::Bench;

    #[test]
    fn scores_are_written_with_the_critics_numbers_beside_them() {
        let bench = Bench::new();
        let path = bench.path("episodes.jsonl");
        artifact::write(&path, &[episode("id/0", "look", true, &[("look", true, "a mug")])]).unwrap();
        fs_err::write(bench.path("critic.json"), "{\"v\":1,\"accuracy\":0.7}").unwrap();
        let params = serde_json::from_str("{}").unwrap();
        let inputs = [("episodes", vec![bench.input("episodes.jsonl", "play", &[])])];
        let critic = ("critic", vec![bench.input("critic.json", "judge", &[])]);
        bench.run(&Eval, &params, inputs.into_iter().chain([critic]), "scores").unwrap();
        let scores = Scores::read(&bench.path("scores")).unwrap();
        assert_eq!((scores.metrics["success"], scores.metrics["critic_accuracy"]), (Some(1.0), Some(0.7)));
        assert_eq!(scores.per_task.len(), 1);
    }

    #[test]
    fn no_episodes_are_refused_because_nothing_can_be_said_of_them() {
        let bench = Bench::new();
        artifact::write::<Episode>(&bench.path("none.jsonl"), &[]).unwrap();
        let params = serde_json::from_str("{}").unwrap();
        let inputs = [("episodes", vec![bench.input("none.jsonl", "play", &[])])];
        let error = bench.run(&Eval, &params, inputs, "scores").unwrap_err().to_string();
        assert!(error.starts_with("cannot score `") && error.ends_with("expected at least one"), "{error}");
    }

    #[test]
    fn every_parameter_has_a_default() {
        let params: EvalParams = serde_json::from_str("{}").unwrap();
        assert_eq!(params.loop_at, 3);
    }
}
