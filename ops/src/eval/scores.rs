//! Scores of one policy on one set of tasks, counted from its episodes.
//!
//! Invariants: a number that is not defined is `null`, never NaN and never 0; tasks keep the order of the episodes
//! file; one task is listed once, with means over its episodes, so that two policies can be compared task by task.

use std::collections::{BTreeMap, HashMap};

use actloom_engine::op::OpError;
use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::stats;
use crate::artifact::{Actor, Decoding, End, Episode};

/// Version of the scores file; its field `v`.
pub const SCORES_VERSION: u32 = 1;

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

/// Means over the episodes of one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskScore {
    pub env: String,
    pub id: String,
    pub kind: String,
    pub episodes: usize,
    pub success: f64,
    pub score: f64,
    pub steps: f64,
}

/// Success on one task type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KindScore {
    pub episodes: usize,
    pub success: f64,
    /// Wilson's 95 % interval.
    pub interval: [f64; 2],
}

/// A scores file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    pub v: u32,
    /// `None` where no episodes were played (scores of a critic alone).
    pub decoding: Option<Decoded>,
    pub episodes: usize,
    /// Name -> number; `null` where it is not defined (`steps_won` where nothing was won).
    pub metrics: BTreeMap<String, Option<f64>>,
    /// 95 % intervals of some of the metrics.
    #[serde(default)]
    pub intervals: BTreeMap<String, [f64; 2]>,
    /// Task type -> success.
    #[serde(default)]
    pub by_kind: BTreeMap<String, KindScore>,
    #[serde(default)]
    pub per_task: Vec<TaskScore>,
}

/// What the turns of one episode add up to.
struct Conduct {
    invalid: usize,
    repeated: usize,
    looped: bool,
}

/// Counts how often each (observation acted upon, action) occurs.
fn conduct(episode: &Episode, loop_at: usize) -> Conduct {
    let mut seen: HashMap<(&str, &str), usize> = HashMap::new();
    let mut conduct = Conduct { invalid: 0, repeated: 0, looped: false };
    let mut before = episode.start.as_str();
    for turn in &episode.turns {
        let times = seen.entry((before, turn.action.as_str())).or_default();
        *times += 1;
        conduct.repeated += usize::from(*times > 1);
        conduct.looped |= *times >= loop_at;
        conduct.invalid += usize::from(turn.admissible == Some(false));
        before = &turn.observation;
    }
    conduct
}

fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

impl Scores {
    /// Numbers alone, where no episodes were played: a critic's.
    pub fn of_metrics(metrics: BTreeMap<String, Option<f64>>) -> Scores {
        Scores {
            v: SCORES_VERSION,
            decoding: None,
            episodes: 0,
            metrics,
            intervals: BTreeMap::new(),
            by_kind: BTreeMap::new(),
            per_task: Vec::new(),
        }
    }

    /// Counts. An episode loops when one (observation, action) occurs `loop_at` times in it.
    ///
    /// Metrics: `success`, `score`, `steps` (means over episodes), `steps_won` (over won ones), `limit` (share that ran
    /// into the step limit), `loops` (share that looped), `invalid` and `repeated` (shares of all actions).
    pub fn of_episodes(episodes: &[Episode], loop_at: usize) -> Scores {
        let n = episodes.len();
        let steps = |e: &Episode| e.turns.len() as f64;
        let all = |f: &dyn Fn(&Episode) -> f64| stats::mean(&episodes.iter().map(f).collect::<Vec<_>>());
        let whole: Vec<f64> = episodes.iter().filter(|e| e.end != End::Context).map(steps).collect();
        let won_steps: Vec<f64> = episodes.iter().filter(|e| e.success).map(steps).collect();
        let conducts: Vec<Conduct> = episodes.iter().map(|e| conduct(e, loop_at)).collect();
        let actions: usize = episodes.iter().map(|e| e.turns.len()).sum();
        let metrics = [
            ("success", share(won_steps.len(), n)),
            ("score", all(&|e| e.score)),
            // an episode that was cut off by the context would pass for a short one
            ("steps", stats::mean(&whole)),
            ("steps_won", stats::mean(&won_steps)),
            ("limit", share(episodes.iter().filter(|e| e.end == End::Limit).count(), n)),
            ("context", share(episodes.iter().filter(|e| e.end == End::Context).count(), n)),
            ("loops", share(conducts.iter().filter(|c| c.looped).count(), n)),
            ("invalid", share(conducts.iter().map(|c| c.invalid).sum(), actions)),
            ("repeated", share(conducts.iter().map(|c| c.repeated).sum(), actions)),
        ];
        let mut intervals = BTreeMap::new();
        if let Some(interval) = stats::wilson(won_steps.len(), n) {
            intervals.insert("success".to_owned(), interval);
        }
        Scores {
            v: SCORES_VERSION,
            decoding: decoded(episodes),
            episodes: n,
            metrics: metrics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            intervals,
            by_kind: by_kind(episodes),
            per_task: per_task(episodes),
        }
    }

    /// Adds another file's numbers under a prefix: `accuracy` becomes `critic_accuracy`.
    pub fn merge(&mut self, prefix: &str, other: &Scores) {
        for (name, value) in &other.metrics {
            self.metrics.insert(format!("{prefix}{name}"), *value);
        }
        for (name, interval) in &other.intervals {
            self.intervals.insert(format!("{prefix}{name}"), *interval);
        }
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
        let Value::Object(fields) = value else {
            return Err("not a JSON object of named numbers".to_owned());
        };
        if let Some(v) = fields.get("v")
            && v != SCORES_VERSION
        {
            return Err(format!("schema version is {v}, expected {SCORES_VERSION}"));
        }
        if fields.contains_key("metrics") {
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

fn by_kind(episodes: &[Episode]) -> BTreeMap<String, KindScore> {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for episode in episodes {
        let (won, n) = counts.entry(&episode.task.kind).or_default();
        *won += usize::from(episode.success);
        *n += 1;
    }
    let scored = counts.into_iter().filter_map(|(kind, (won, n))| {
        Some((kind.to_owned(), KindScore { episodes: n, success: share(won, n)?, interval: stats::wilson(won, n)? }))
    });
    scored.collect()
}

fn per_task(episodes: &[Episode]) -> Vec<TaskScore> {
    let mut places: HashMap<(&str, &str), usize> = HashMap::new();
    let mut tasks: Vec<TaskScore> = Vec::new();
    for episode in episodes {
        let task = &episode.task;
        let place = *places.entry((&task.env, &task.id)).or_insert(tasks.len());
        if place == tasks.len() {
            tasks.push(TaskScore {
                env: task.env.clone(),
                id: task.id.clone(),
                kind: task.kind.clone(),
                episodes: 0,
                success: 0.0,
                score: 0.0,
                steps: 0.0,
            });
        }
        let sum = &mut tasks[place];
        sum.episodes += 1;
        sum.success += f64::from(u8::from(episode.success));
        sum.score += episode.score;
        sum.steps += episode.turns.len() as f64;
    }
    for task in &mut tasks {
        let n = task.episodes as f64;
        task.success /= n;
        task.score /= n;
        task.steps /= n;
    }
    tasks
}

#[cfg(test)]
pub(crate) mod tests {
    use camino::Utf8PathBuf;

    use super::*;
    use crate::artifact::{SCHEMA_VERSION, Task, Turn};

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
        let scores = Scores::of_episodes(&two(), 3);
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
        assert_eq!(scores.intervals["success"], stats::wilson(1, 2).unwrap());
        assert_eq!(scores.by_kind["heat"].success, 0.0);
        assert_eq!(scores.by_kind["look"].episodes, 1);
        assert_eq!(Scores::of_episodes(&two(), 4).metrics["loops"], Some(0.0));
    }

    #[test]
    fn a_mean_over_nothing_won_is_null_and_not_zero() {
        let scores = Scores::of_episodes(&two()[1..], 3);
        assert_eq!(scores.metrics["steps_won"], None);
        assert!(serde_json::to_string(&scores).unwrap().contains("\"steps_won\":null"));
        let idle = Scores::of_episodes(&[episode("id/0", "look", false, &[])], 3);
        assert_eq!(idle.metrics["invalid"], None);
    }

    #[test]
    fn a_task_played_twice_is_listed_once_with_means() {
        let mut episodes = two();
        episodes.push(episode("id/0", "look", false, &[("look", true, "a mug"); 4]));
        let scores = Scores::of_episodes(&episodes, 3);
        assert_eq!(scores.per_task.len(), 2);
        let first = &scores.per_task[0];
        assert_eq!((first.id.as_str(), first.episodes, first.success, first.steps), ("id/0", 2, 0.5, 3.0));
    }

    #[test]
    fn decoding_names_the_actor_and_admits_a_mixture() {
        let mut episodes = two();
        episodes[0].decoding = Some(Decoding::Free);
        assert_eq!(Scores::of_episodes(&episodes[..1], 3).decoding, Some(Decoded::Free));
        assert_eq!(Scores::of_episodes(&episodes, 3).decoding, Some(Decoded::Mixed));
        episodes.iter_mut().for_each(|e| (e.actor, e.decoding) = (Actor::Expert, None));
        assert_eq!(Scores::of_episodes(&episodes, 3).decoding, Some(Decoded::Expert));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("scores.json")).unwrap();
        let scores = Scores::of_episodes(&two(), 3);
        scores.write(&path).unwrap();
        assert_eq!(Scores::read(&path).unwrap(), scores);
    }

    #[test]
    fn a_plain_object_of_numbers_is_read_and_merged_under_a_prefix() {
        let plain = Scores::from_value(serde_json::json!({"v": 1, "accuracy": 0.75, "margin": null})).unwrap();
        assert_eq!((plain.decoding, plain.episodes), (None, 0));
        let mut scores = Scores::of_episodes(&two(), 3);
        scores.merge("critic_", &plain);
        assert_eq!(scores.metrics["critic_accuracy"], Some(0.75));
        assert_eq!(scores.metrics["critic_margin"], None);
        assert_eq!(scores.metrics["success"], Some(0.5));
    }

    #[test]
    fn what_is_no_scores_file_is_refused_by_name() {
        let refused = |value| Scores::from_value(value).unwrap_err();
        assert_eq!(refused(serde_json::json!({"v": 2, "a": 1})), "schema version is 2, expected 1");
        assert_eq!(refused(serde_json::json!({"a": "b"})), "`a` is `\"b\"`, expected a number");
        assert_eq!(refused(serde_json::json!([1])), "not a JSON object of named numbers");
        assert!(refused(serde_json::json!({"v": 1, "metrics": {}})).contains("missing field `episodes`"));
    }
}
