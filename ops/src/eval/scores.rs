//! Scores of one policy on one set of tasks, counted from its episodes.
//!
//! Invariants: a number that is not defined is `null`, never NaN and never 0; tasks keep the order of the episodes
//! file; one task is listed once, with each of its episodes, so that two policies can be compared task by task and
//! resampled task by task; a file of an earlier version is read as far as it says what this one needs.

use std::collections::{BTreeMap, HashMap};

use actloom_engine::op::OpError;
use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::counts::{Counted, Counting, Key, Numbers, key};
use super::paired::Paired;
use super::stats::{self, Interval};
use super::taxonomy::Cause;
use crate::artifact::{Actor, Decoding, Episode};

/// Version of the scores file; its field `v`. Version 1 had means of tasks where this one has episodes.
pub const SCORES_VERSION: u32 = 2;

/// Who acted, and whether it could say anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decoded {
    /// A policy, held to the admissible actions of each state.
    Admissible,
    /// A policy that could say anything.
    Free,
    /// The environment's expert.
    Expert,
    /// Random admissible actions.
    Random,
    /// More than one of these in one file.
    Mixed,
}

impl Decoded {
    /// For a sentence: `decoding was ...`.
    pub fn phrase(self) -> &'static str {
        match self {
            Decoded::Admissible => "held to admissible actions",
            Decoded::Free => "free (any text could be said)",
            Decoded::Expert => "none (the expert acted)",
            Decoded::Random => "none (random admissible actions)",
            Decoded::Mixed => "mixed within one file",
        }
    }

    fn of(episode: &Episode) -> Decoded {
        match (episode.actor, episode.decoding) {
            (Actor::Expert, _) => Decoded::Expert,
            (Actor::Random, _) => Decoded::Random,
            (Actor::Policy, Some(Decoding::Admissible)) => Decoded::Admissible,
            // A policy that nothing held could say anything.
            (Actor::Policy, Some(Decoding::Free) | None) => Decoded::Free,
        }
    }
}

/// One episode of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpisodeScore {
    pub success: bool,
    pub score: f64,
    pub steps: usize,
    /// Why it failed; `None` where it was won, and in scores of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Cause>,
}

/// The episodes of one task, in the order of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskScore {
    pub env: String,
    pub id: String,
    /// What the task was made with, where it was made and not listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    pub kind: String,
    /// None where it is a question that was put and not played.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub episodes: Vec<EpisodeScore>,
    /// Of a question: name -> its mean over what was answered; a number that is not defined for it is left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, f64>,
}

impl TaskScore {
    /// Tasks of equal keys are the same task.
    pub(super) fn key(&self) -> Key<'_> {
        (&self.env, &self.id, self.seed)
    }

    /// The mean of `success`, `score` or `steps` over the task's episodes, or the question's number of that name.
    pub fn value(&self, metric: &str) -> Option<f64> {
        if let Some(value) = self.values.get(metric) {
            return Some(*value);
        }
        let of = |episode: &EpisodeScore| match metric {
            "success" => Some(f64::from(u8::from(episode.success))),
            "score" => Some(episode.score),
            "steps" => Some(episode.steps as f64),
            _ => None,
        };
        stats::mean(&self.episodes.iter().map(of).collect::<Option<Vec<f64>>>()?)
    }
}

/// One task type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KindScore {
    pub episodes: usize,
    pub success: f64,
    /// Wilson's, or the bootstrap's over tasks where some were played several times.
    pub interval: Option<Interval>,
    /// All numbers, as in [`Scores::metrics`].
    #[serde(default)]
    pub metrics: BTreeMap<String, Option<f64>>,
}

/// A scores file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    pub v: u32,
    /// `None` where no episodes were played (scores of a critic alone).
    pub decoding: Option<Decoded>,
    pub episodes: usize,
    /// What the numbers were taken under, where that is not told by the policy and the tasks: `reasoning` of a critic.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub conditions: BTreeMap<String, String>,
    /// Name -> number; `null` where it is not defined (`steps_won` where nothing was won).
    pub metrics: BTreeMap<String, Option<f64>>,
    /// 95 % intervals of the metrics; left out where there are too few tasks.
    #[serde(default)]
    pub intervals: BTreeMap<String, Interval>,
    /// Task type -> its numbers.
    #[serde(default)]
    pub by_kind: BTreeMap<String, KindScore>,
    /// Against another policy on the same tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Paired>,
    #[serde(default)]
    pub per_task: Vec<TaskScore>,
}

impl Scores {
    /// Numbers alone, where no episodes were played.
    pub fn of_metrics(metrics: BTreeMap<String, Option<f64>>) -> Scores {
        Scores {
            v: SCORES_VERSION,
            decoding: None,
            episodes: 0,
            conditions: BTreeMap::new(),
            metrics,
            intervals: BTreeMap::new(),
            by_kind: BTreeMap::new(),
            baseline: None,
            per_task: Vec::new(),
        }
    }

    /// Counts.
    ///
    /// Metrics: `success`, `score`, `return` (sum of rewards), `steps` (means over episodes), `steps_won` (over won
    /// ones), `limit` (share that ran into the step limit), `context`, `loops` (share that looped), `loops_refused`
    /// (upon a refusal), `invalid`, `repeated`, `malformed` and `repeats_failed` (shares of all actions), `recovered` (share
    /// of refused actions behind which another one was possible), `failure_*` (shares of all episodes, by cause),
    /// `success_at_*` where every task was played several times.
    pub fn of_episodes(episodes: &[Episode], counting: &Counting) -> Scores {
        let counted: Vec<Counted<'_>> = episodes.iter().map(|e| Counted::of(e, counting.loop_at)).collect();
        let all: Vec<&Counted<'_>> = counted.iter().collect();
        let numbers = Numbers::of(&all);
        Scores {
            decoding: decoded(episodes),
            episodes: episodes.len(),
            intervals: numbers.intervals(counting),
            by_kind: by_kind(&counted, counting),
            per_task: per_task(&counted),
            ..Scores::of_metrics(numbers.values())
        }
    }

    /// Compares with another policy's scores, task by task.
    ///
    /// # Errors
    /// Where no task was played by both; says what each side played.
    pub fn compare(&mut self, baseline: &Scores, counting: &Counting) -> Result<(), String> {
        self.baseline = Some(Paired::of(&self.per_task, &baseline.per_task, counting)?);
        Ok(())
    }

    /// Adds another file's numbers, their intervals and their conditions under a prefix: `accuracy` becomes
    /// `critic_accuracy`.
    pub fn merge(&mut self, prefix: &str, other: &Scores) {
        for (name, value) in &other.metrics {
            self.metrics.insert(format!("{prefix}{name}"), *value);
        }
        for (name, interval) in &other.intervals {
            self.intervals.insert(format!("{prefix}{name}"), interval.clone());
        }
        for (name, value) in &other.conditions {
            self.conditions.insert(format!("{prefix}{name}"), value.clone());
        }
    }

    /// Whether tasks have this number, so that two files can be compared in it task by task.
    pub(super) fn by_task(&self, metric: &str) -> bool {
        self.per_task.iter().any(|task| task.value(metric).is_some())
    }

    /// Reads a scores file: this module's, or a plain object of named numbers.
    ///
    /// # Errors
    /// Names the path, and the field that is no number or the version that is not known.
    pub fn read(path: &Utf8Path) -> Result<Scores, OpError> {
        let text = fs_err::read_to_string(path)?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| OpError::failed(format!("cannot read scores from `{path}`: {e}")))?;
        Scores::from_value(value).map_err(|e| OpError::failed(format!("cannot read scores from `{path}`: {e}")))
    }

    fn from_value(value: Value) -> Result<Scores, String> {
        let Value::Object(mut fields) = value else {
            return Err("not a JSON object of named numbers".to_owned());
        };
        let version = fields.get("v").cloned();
        if let Some(v) = &version
            && *v != SCORES_VERSION
            && *v != 1
        {
            return Err(format!("schema version is {v}, expected {SCORES_VERSION} or 1"));
        }
        if fields.contains_key("metrics") {
            if version == Some(Value::from(1)) {
                super::first::to_second(&mut fields)?;
            }
            return serde_json::from_value(Value::Object(fields)).map_err(|e| e.to_string());
        }
        let mut metrics = BTreeMap::new();
        for (name, value) in fields.into_iter().filter(|(name, _)| name != "v") {
            let number = value.as_f64();
            if number.is_none() && !value.is_null() {
                return Err(format!("`{name}` is `{value}`, expected a number"));
            }
            metrics.insert(name, number);
        }
        Ok(Scores::of_metrics(metrics))
    }

    /// Writes the file: one object, indented, so that people can read it and a diff stays small.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, path: &Utf8Path) -> Result<(), OpError> {
        let mut text = serde_json::to_string_pretty(self).map_err(std::io::Error::from)?;
        text.push('\n');
        fs_err::write(path, text)?;
        Ok(())
    }
}

fn decoded(episodes: &[Episode]) -> Option<Decoded> {
    let first = Decoded::of(episodes.first()?);
    Some(if episodes.iter().all(|e| Decoded::of(e) == first) { first } else { Decoded::Mixed })
}

fn by_kind(counted: &[Counted<'_>], counting: &Counting) -> BTreeMap<String, KindScore> {
    let mut kinds: BTreeMap<&str, Vec<&Counted<'_>>> = BTreeMap::new();
    for counted in counted {
        kinds.entry(&counted.episode.task.kind).or_default().push(counted);
    }
    let scored = kinds.into_iter().filter_map(|(kind, of)| {
        let numbers = Numbers::of(&of);
        let metrics = numbers.values();
        let success = metrics.get("success").copied().flatten()?;
        let interval = numbers.success_interval(counting);
        Some((kind.to_owned(), KindScore { episodes: of.len(), success, interval, metrics }))
    });
    scored.collect()
}

fn per_task(counted: &[Counted<'_>]) -> Vec<TaskScore> {
    let mut places: HashMap<Key<'_>, usize> = HashMap::new();
    let mut tasks: Vec<TaskScore> = Vec::new();
    for Counted { episode, cause, .. } in counted {
        let task = &episode.task;
        let place = *places.entry(key(task)).or_insert(tasks.len());
        if place == tasks.len() {
            let (env, id, kind) = (task.env.clone(), task.id.clone(), task.kind.clone());
            tasks.push(TaskScore { env, id, seed: task.seed, kind, episodes: Vec::new(), values: BTreeMap::new() });
        }
        tasks[place].episodes.push(EpisodeScore {
            success: episode.success,
            score: episode.score,
            steps: episode.turns.len(),
            failure: *cause,
        });
    }
    tasks
}

#[cfg(test)]
pub(crate) mod tests {
    use camino::Utf8PathBuf;

    use super::*;
    use crate::artifact::{End, SCHEMA_VERSION, Task, Turn};
    use crate::eval::stats::Method;

    pub(crate) fn counting() -> Counting {
        Counting { loop_at: 3, resamples: 200, seed: 1 }
    }

    fn scored(episodes: &[Episode]) -> Scores {
        Scores::of_episodes(episodes, &counting())
    }

    /// An episode of `(action, admissible, observation)` turns.
    pub(crate) fn episode(id: &str, kind: &str, success: bool, turns: &[(&str, bool, &str)]) -> Episode {
        Episode {
            v: SCHEMA_VERSION,
            task: Task {
                env: "household".to_owned(),
                id: id.to_owned(),
                split: "id".to_owned(),
                kind: kind.to_owned(),
                goal: format!("goal of {id}."),
                seed: None,
            },
            actor: Actor::Policy,
            decoding: Some(Decoding::Admissible),
            start: "you are in the kitchen".to_owned(),
            turns: turns
                .iter()
                .map(|(action, admissible, observation)| Turn {
                    action: (*action).to_owned(),
                    admissible: Some(*admissible),
                    observation: (*observation).to_owned(),
                    actions: vec!["look".to_owned()],
                    reply: None,
                    reward: 0.0,
                })
                .collect(),
            success,
            score: if success { 1.0 } else { 0.25 },
            end: if success { End::Done } else { End::Limit },
        }
    }

    fn two() -> Vec<Episode> {
        vec![
            episode("id/0", "look", true, &[("look", true, "a mug"), ("take mug", true, "taken")]),
            episode(
                "id/1",
                "heat",
                false,
                &[
                    ("look", true, "a mug"),
                    ("look", true, "a mug"),
                    ("look", true, "a mug"),
                    ("look", true, "a mug"),
                    ("fly", false, "nothing happens"),
                    ("fly", false, "nothing happens"),
                ],
            ),
        ]
    }

    #[test]
    fn two_episodes_count_up_by_hand() {
        let scores = scored(&two());
        let metric = |name: &str| scores.metrics[name];
        assert_eq!(metric("success"), Some(0.5));
        assert_eq!(metric("score"), Some(0.625));
        assert_eq!(metric("steps"), Some(4.0));
        assert_eq!(metric("steps_won"), Some(2.0));
        assert_eq!(metric("limit"), Some(0.5));
        assert_eq!(metric("invalid"), Some(0.25));
        // `look` upon "a mug" three times: two repeats. `fly` is said upon two different observations: none.
        assert_eq!(metric("repeated"), Some(0.25));
        assert_eq!(metric("loops"), Some(0.5));
        assert_eq!(scores.decoding, Some(Decoded::Admissible));
        assert_eq!(scores.intervals["success"], Interval::new(stats::wilson(1, 2).unwrap(), Method::Wilson));
        assert_eq!(scores.intervals["steps"], Interval::new([2.0, 6.0], Method::Bootstrap));
        assert!(!scores.intervals.contains_key("steps_won"), "a quarter of the resamples won nothing");
        assert_eq!((metric("failure_loop"), metric("failure_stuck")), (Some(0.5), Some(0.0)));
        assert_eq!(metric("return"), Some(0.0));
        assert_eq!(scores.by_kind["heat"].metrics["invalid"], Some(1.0 / 3.0));
        assert_eq!(scores.by_kind["heat"].success, 0.0);
        assert_eq!(scores.by_kind["look"].episodes, 1);
        assert_eq!(Scores::of_episodes(&two(), &Counting { loop_at: 4, ..counting() }).metrics["loops"], Some(0.0));
    }

    #[test]
    fn a_mean_over_nothing_won_is_null_and_not_zero() {
        let scores = scored(&two()[1..]);
        assert_eq!(scores.metrics["steps_won"], None);
        assert!(serde_json::to_string(&scores).unwrap().contains("\"steps_won\":null"));
        let idle = scored(&[episode("id/0", "look", false, &[])]);
        assert_eq!(idle.metrics["invalid"], None);
    }

    #[test]
    fn a_task_played_twice_is_listed_once_with_both_episodes() {
        let mut episodes = two();
        episodes.push(episode("id/0", "look", false, &[("look", true, "a mug"); 4]));
        let scores = scored(&episodes);
        assert_eq!(scores.per_task.len(), 2);
        let first = &scores.per_task[0];
        let kept: Vec<_> = first.episodes.iter().map(|e| (e.success, e.score, e.steps, e.failure)).collect();
        assert_eq!(kept, [(true, 1.0, 2, None), (false, 0.25, 4, Some(Cause::Loop))]);
        assert_eq!((first.value("success"), first.value("steps"), first.value("loops")), (Some(0.5), Some(3.0), None));
        // episodes of one task are not independent of each other
        assert_eq!(scores.intervals["success"].method, Method::Bootstrap);
        assert!(!scores.metrics.contains_key("success_at_2"), "one task was played once");
    }

    #[test]
    fn success_in_k_tries_is_told_where_every_task_was_played_k_times() {
        let turns = [("look", true, "a mug")];
        let plays = |id, won: &[bool]| won.iter().map(|w| episode(id, "look", *w, &turns)).collect::<Vec<_>>();
        let mut episodes = plays("id/0", &[true, false, false]);
        episodes.extend(plays("id/1", &[false, false, false, true]));
        let scores = scored(&episodes);
        // one of three in two tries, 2 / 3; one of four, 1 / 2; in three tries 1 and 3 / 4
        assert!((scores.metrics["success_at_2"].unwrap() - (2.0 / 3.0 + 0.5) / 2.0).abs() < 1e-12);
        assert!((scores.metrics["success_at_3"].unwrap() - 0.875).abs() < 1e-12);
        assert_eq!(scores.intervals["success_at_3"], Interval::new([0.75, 1.0], Method::Bootstrap));
        assert!(!scores.metrics.contains_key("success_at_4"));
    }

    #[test]
    fn tasks_of_another_seed_are_listed_beside_each_other() {
        let mut episodes = two();
        episodes[1].task = episodes[0].task.clone();
        episodes[1].task.seed = Some(7);
        assert_eq!(scored(&episodes).per_task.len(), 2);
    }

    #[test]
    fn success_and_the_causes_of_failure_add_up_to_one() {
        let scores = scored(&two());
        let failures = scores.metrics.iter().filter(|(name, _)| name.starts_with("failure_"));
        let sum: f64 = failures.map(|(_, value)| value.unwrap()).sum();
        assert_eq!(sum + scores.metrics["success"].unwrap(), 1.0);
    }

    #[test]
    fn intervals_repeat_with_their_seed() {
        let scores = scored(&two());
        assert_eq!(scores, scored(&two()));
        let other = Scores::of_episodes(&two(), &Counting { resamples: 0, ..counting() });
        assert_eq!(other.intervals.keys().collect::<Vec<_>>(), ["success"]);
    }

    #[test]
    fn decoding_names_the_actor_and_admits_a_mixture() {
        let mut episodes = two();
        episodes[0].decoding = Some(Decoding::Free);
        assert_eq!(scored(&episodes[..1]).decoding, Some(Decoded::Free));
        assert_eq!(scored(&episodes).decoding, Some(Decoded::Mixed));
        episodes.iter_mut().for_each(|e| (e.actor, e.decoding) = (Actor::Expert, None));
        assert_eq!(scored(&episodes).decoding, Some(Decoded::Expert));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("scores.json")).unwrap();
        let scores = scored(&two());
        scores.write(&path).unwrap();
        assert_eq!(Scores::read(&path).unwrap(), scores);
    }

    #[test]
    fn a_plain_object_of_numbers_is_read_and_merged_under_a_prefix() {
        let plain = Scores::from_value(serde_json::json!({"v": 1, "accuracy": 0.75, "margin": null})).unwrap();
        assert_eq!((plain.decoding, plain.episodes), (None, 0));
        let mut scores = scored(&two());
        scores.merge("critic_", &plain);
        assert_eq!(scores.metrics["critic_accuracy"], Some(0.75));
        assert_eq!(scores.metrics["critic_margin"], None);
        assert_eq!(scores.metrics["success"], Some(0.5));
    }

    #[test]
    fn what_is_no_scores_file_is_refused_by_name() {
        let refused = |value| Scores::from_value(value).unwrap_err();
        assert_eq!(refused(serde_json::json!({"v": 3, "a": 1})), "schema version is 3, expected 2 or 1");
        assert_eq!(refused(serde_json::json!({"a": "b"})), "`a` is `\"b\"`, expected a number");
        assert_eq!(refused(serde_json::json!([1])), "not a JSON object of named numbers");
        assert!(refused(serde_json::json!({"v": 2, "metrics": {}})).contains("missing field `episodes`"));
    }
}
