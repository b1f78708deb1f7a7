//! `eval`: counts the scores of a policy from the episodes it played.

use actloom_engine::op::{Arity, InputArtifact, Kind, Op, OpContext, OpError, Ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::{self, Episode};
use crate::eval::Counting;
use crate::eval::scores::Scores;
use crate::eval::taxonomy::LOOP_AT;
use crate::report::number;

/// Scores episodes.
pub struct Eval;

/// Parameters of `eval`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvalParams {
    /// An episode loops when one action is taken this often upon one observation.
    #[schemars(range(min = 2, max = 1000))]
    #[serde(default = "loop_at")]
    pub loop_at: usize,
    /// Resamples of the bootstrap behind the intervals.
    #[schemars(range(min = 100, max = 100_000))]
    #[serde(default = "resamples")]
    pub resamples: usize,
}

fn loop_at() -> usize {
    LOOP_AT
}

fn resamples() -> usize {
    10_000
}

impl Op for Eval {
    type Params = EvalParams;
    const NAME: &'static str = "eval";
    const VERSION: u32 = 4;
    const ABOUT: &'static str =
        "Counts success, steps, invalid actions and causes of failure of played episodes, with intervals";

    fn ports(&self, _params: &EvalParams) -> Ports {
        let baseline = "Another policy's episodes of the same tasks, to be compared with task by task";
        Ports::new()
            .port("episodes", &[Kind::EPISODES], Arity::Many, "What was played; several files are scored as one")
            .port("critic", &[Kind::SCORES], Arity::Optional, "A critic's numbers, added with the prefix `critic_`")
            .port("baseline", &[Kind::EPISODES], Arity::ManyOptional, baseline)
            .output(
                "scores",
                Kind::SCORES,
                "Named numbers with intervals, numbers by task type, and every task for paired comparisons",
            )
    }

    fn run(&self, params: &EvalParams, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let counting = Counting { loop_at: params.loop_at, resamples: params.resamples, seed: ctx.seed("bootstrap") };
        let episodes = played(ctx.inputs("episodes"))?;
        let mut scores = Scores::of_episodes(&episodes, &counting);
        if let Some(critic) = ctx.input_opt("critic") {
            scores.merge("critic_", &Scores::read(critic)?);
        }
        if !ctx.inputs("baseline").is_empty() {
            // its own intervals are of no interest here
            let other = played(ctx.inputs("baseline"))?;
            let baseline = Scores::of_episodes(&other, &Counting { resamples: 0, ..counting });
            scores.compare(&baseline, &counting).map_err(|why| {
                OpError::with_help(
                    why,
                    "let both play one split with one `seed`: the seed makes the tasks of worlds that make them",
                )
            })?;
        }
        scores.write(ctx.output("scores"))?;
        told(&scores, ctx);
        Ok(())
    }
}

fn played(files: &[InputArtifact]) -> Result<Vec<Episode>, OpError> {
    let mut all = Vec::new();
    for InputArtifact { path, .. } in files {
        let episodes: Vec<Episode> = artifact::read(path)?;
        if episodes.is_empty() {
            return Err(OpError::failed(format!("cannot score `{path}`: it has no episodes, expected at least one")));
        }
        all.extend(episodes);
    }
    Ok(all)
}

/// Every number that is defined as a metric of the step, so that `show` tells it.
fn told(scores: &Scores, ctx: &mut OpContext<'_>) {
    for (name, value) in &scores.metrics {
        if let Some(value) = value {
            ctx.metric(0, name, *value);
        }
    }
    if let Some(paired) = &scores.baseline {
        for (name, found) in &paired.metrics {
            ctx.metric(0, &format!("baseline_{name}_difference"), found.difference);
        }
        if let Some(mcnemar) = &paired.mcnemar {
            ctx.metric(0, "baseline_mcnemar_p", mcnemar.p);
        }
    }
    let success = scores.metrics.get("success").copied().flatten().unwrap_or(0.0);
    let note = format!("success {} %", number::metric("success", success, true));
    ctx.progress(scores.episodes as u64, scores.episodes as u64, "episodes", note);
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
    fn several_files_are_scored_as_one_and_an_empty_one_is_named() {
        let bench = Bench::new();
        for (file, won) in [("seen.jsonl", true), ("unseen.jsonl", false)] {
            let id = file.trim_end_matches(".jsonl");
            let game = episode(&format!("{id}/0"), "look", won, &[("look", true, "a mug")]);
            artifact::write(&bench.path(file), &[game]).unwrap();
        }
        artifact::write::<Episode>(&bench.path("none.jsonl"), &[]).unwrap();
        let params = serde_json::from_str("{}").unwrap();
        let run = |files: &[&str], to: &str| {
            let files = files.iter().map(|file| bench.input(file, "play", &[])).collect();
            bench.run(&Eval, &params, [("episodes", files)], to)
        };
        run(&["seen.jsonl", "unseen.jsonl"], "scores").unwrap();
        let scores = Scores::read(&bench.path("scores")).unwrap();
        assert_eq!((scores.metrics["success"], scores.per_task.len()), (Some(0.5), 2));
        let error = run(&["seen.jsonl", "none.jsonl"], "nothing").unwrap_err().to_string();
        assert!(error.contains("none.jsonl`: it has no episodes"), "{error}");
    }

    #[test]
    fn a_baseline_is_compared_with_and_one_of_other_tasks_is_refused() {
        let bench = Bench::new();
        let episodes = |won: [bool; 3], seed: Option<u64>| {
            let play = |(i, won): (usize, bool)| episode(&format!("id/{i}"), "look", won, &[("look", true, "a mug")]);
            let mut episodes: Vec<Episode> = won.into_iter().enumerate().map(play).collect();
            episodes.iter_mut().for_each(|e| e.task.seed = seed);
            episodes
        };
        artifact::write(&bench.path("ours.jsonl"), &episodes([true, true, false], Some(1))).unwrap();
        artifact::write(&bench.path("base.jsonl"), &episodes([false, true, false], Some(1))).unwrap();
        artifact::write(&bench.path("other.jsonl"), &episodes([false, true, false], Some(2))).unwrap();
        let params = serde_json::from_str("{\"resamples\": 100}").unwrap();
        let score = |other: &str| {
            let inputs = [
                ("episodes", vec![bench.input("ours.jsonl", "play", &[])]),
                ("baseline", vec![bench.input(other, "base", &[])]),
            ];
            bench.run(&Eval, &params, inputs, "scores")
        };
        score("base.jsonl").unwrap();
        let paired = Scores::read(&bench.path("scores")).unwrap().baseline.unwrap();
        assert!((paired.metrics["success"].difference - 1.0 / 3.0).abs() < 1e-12);
        let mcnemar = paired.mcnemar.unwrap();
        assert_eq!((mcnemar.b, mcnemar.c, mcnemar.p), (1, 0, 1.0));
        match score("other.jsonl").unwrap_err() {
            OpError::Failed { message, help } => {
                assert!(message.starts_with("the episodes and the baseline share no task: "), "{message}");
                assert!(message.contains("3 tasks such as `household id/0` (seed 1)"), "{message}");
                assert!(!message.contains("jsonl"), "{message}");
                assert!(message.ends_with("3 tasks such as `household id/0` (seed 2)"), "{message}");
                assert!(help.unwrap().contains("one `seed`"));
            }
            other => panic!("{other}"),
        }
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
        assert_eq!((params.loop_at, params.resamples), (3, 10_000));
    }
}
