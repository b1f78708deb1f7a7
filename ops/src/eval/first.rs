//! The first version of the scores file, read as the second.
//!
//! Invariant: nothing is made up: means over several episodes of one task cannot be taken apart, and are refused.

use serde_json::{Map, Value, json};

/// Rewrites the fields of version 1.
///
/// # Errors
/// A task that was played several times, by name.
pub(super) fn to_second(fields: &mut Map<String, Value>) -> Result<(), String> {
    let wilson = |interval: &mut Value| {
        if let Some([low, high]) = interval.as_array().map(Vec::as_slice) {
            *interval = json!({ "low": low, "high": high, "method": "wilson" });
        }
    };
    fields.insert("v".to_owned(), super::scores::SCORES_VERSION.into());
    let intervals = fields.get_mut("intervals").and_then(Value::as_object_mut);
    intervals.into_iter().flatten().for_each(|(_, interval)| wilson(interval));
    let kinds = fields.get_mut("by_kind").and_then(Value::as_object_mut);
    kinds.into_iter().flatten().filter_map(|(_, kind)| kind.get_mut("interval")).for_each(wilson);
    let tasks = fields.get_mut("per_task").and_then(Value::as_array_mut);
    for task in tasks.into_iter().flatten().filter_map(Value::as_object_mut) {
        if task.get("episodes").and_then(Value::as_u64) != Some(1) {
            return Err(format!(
                "it is of version 1, which has only means of the task `{}`, played {} times; score the episodes again",
                task.get("id").and_then(Value::as_str).unwrap_or_default(),
                task.get("episodes").unwrap_or(&Value::Null),
            ));
        }
        let mut of = |name: &str| task.remove(name).unwrap_or(Value::Null);
        let (success, score, steps) = (of("success"), of("score"), of("steps"));
        let episode = json!({
            "success": success.as_f64().map_or(success, |share| Value::Bool(share == 1.0)),
            "score": score,
            "steps": steps.as_f64().map_or(steps, |steps| Value::from(steps as u64)),
        });
        task.insert("episodes".to_owned(), json!([episode]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::eval::scores::Scores;
    use crate::eval::stats::Method;

    fn file(episodes: u64, success: f64) -> Value {
        json!({
            "v": 1, "decoding": "free", "episodes": episodes, "metrics": {"success": success, "steps_won": null},
            "intervals": {"success": [0.1, 0.9]},
            "by_kind": {"look": {"episodes": episodes, "success": success, "interval": [0.1, 0.9]}},
            "per_task": [{
                "env": "household", "id": "id/0", "kind": "look", "episodes": episodes, "success": success,
                "score": 0.5, "steps": 7.0,
            }],
        })
    }

    fn read(value: &Value) -> Result<Scores, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::from_path_buf(dir.path().join("scores.json")).unwrap();
        fs_err::write(&path, value.to_string()).unwrap();
        Scores::read(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn scores_of_version_1_are_read_where_tasks_were_played_once() {
        let scores = read(&file(1, 1.0)).unwrap();
        let episode = &scores.per_task[0].episodes[0];
        assert_eq!((episode.success, episode.score, episode.steps, episode.failure), (true, 0.5, 7, None));
        assert_eq!(scores.intervals["success"].method, Method::Wilson);
        assert_eq!(scores.by_kind["look"].interval.as_ref().unwrap().high, 0.9);
        assert_eq!(scores.v, 2);
    }

    #[test]
    fn means_of_several_episodes_cannot_be_taken_apart() {
        let error = read(&file(3, 0.5)).unwrap_err();
        assert!(
            error.ends_with(
                "it is of version 1, which has only means of the task `id/0`, played 3 times; score the episodes again"
            ),
            "{error}"
        );
    }

    proptest! {
        /// A field of another shape is an error, never a panic.
        #[test]
        fn other_shapes_are_refused_or_read(field in 0..6usize, shape in 0..6usize) {
            let shapes = [json!(null), json!([]), json!({}), json!("x"), json!(-1e300), json!([1, 2, 3])];
            let mut value = file(1, 1.0);
            let place = match field {
                0 => &mut value["intervals"],
                1 => &mut value["intervals"]["success"],
                2 => &mut value["by_kind"]["look"],
                3 => &mut value["per_task"],
                4 => &mut value["per_task"][0],
                _ => &mut value["per_task"][0]["steps"],
            };
            *place = shapes[shape].clone();
            let _ = read(&value);
        }
    }
}
