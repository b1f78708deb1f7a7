//! What an item says beside its messages: how it went, and which task it is of.
//!
//! Invariants: a number outside its range is refused and never read as a success; fields that contradict each other are
//! refused; the goal is what the environment said, where its form is known.

use serde_json::{Map, Value};

use super::{Params, shortened};
use crate::artifact::Task;

/// How it went.
pub(super) struct Outcome {
    pub(super) success: bool,
    pub(super) score: f64,
    /// What the last action earned, on the scale of scores.
    pub(super) reward: Option<f64>,
}

impl Outcome {
    /// From `score`, `reward` and `success`, whichever there are. What says nothing is a demonstration that succeeded.
    pub(super) fn of(item: &Map<String, Value>, scale: f64) -> Result<Outcome, String> {
        let number = |name: &str| match item.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or(format!("`{name}` is `{value}`, expected a number")),
        };
        let success = match item.get("success") {
            None | Some(Value::Null) => None,
            Some(Value::Bool(success)) => Some(*success),
            // as some write it
            Some(value) if value.as_f64() == Some(0.0) || value.as_f64() == Some(1.0) => {
                Some(value.as_f64() == Some(1.0))
            }
            Some(value) => return Err(format!("`success` is `{value}`, expected true or false")),
        };
        let (score, reward) = (number("score")?, number("reward")?);
        if let Some(score) = score.filter(|score| !(0.0..=1.0).contains(score)) {
            return Err(format!("`score` is {score}, expected 0 to 1"));
        }
        let reward = match reward {
            // the quotient too may leave the range, by a rounding
            Some(earned) if (0.0..=scale).contains(&earned) => Some((earned / scale).min(1.0)),
            Some(earned) if scale == 1.0 => {
                return Err(format!(
                    "`reward` is {earned}, expected 0 to 1; `scale` says what is earned for a perfect episode"
                ));
            }
            Some(earned) => return Err(format!("`reward` is {earned}, expected 0 to {scale}, which is `scale`")),
            None => None,
        };
        let known = score.map(|score| ("score", score)).or(reward.map(|reward| ("reward", reward)));
        match (success, known) {
            (Some(true), Some((name, 0.0))) => {
                Err(format!("`success` is true and `{name}` is 0, expected fields that agree"))
            }
            (Some(false), Some((name, 1.0))) => {
                Err(format!("`success` is false and `{name}` is the most there is, expected fields that agree"))
            }
            _ => {
                let score = known.map_or(if success == Some(false) { 0.0 } else { 1.0 }, |(_, score)| score);
                Ok(Outcome { success: success.unwrap_or(score >= 1.0), score, reward })
            }
        }
    }
}

/// The goal that a first observation tells, where its form is known: the household's and ScienceWorld's line, the page of
/// WebShop. Of several the last, for examples stand before.
fn told_goal(start: &str) -> Option<&str> {
    let line = |begin: &str| start.lines().rev().find_map(|line| line.trim().strip_prefix(begin));
    let household = || line("Your task is to:");
    let page = || {
        let (_, after) = start.rsplit_once("Instruction:")?;
        let after = after.trim_start().strip_prefix("[SEP]")?;
        Some(after.split_once("[SEP]")?.0)
    };
    let science = || start.lines().rev().map(str::trim).find(|line| line.starts_with("Your task is to "));
    [household(), page(), science()].into_iter().flatten().map(str::trim).find(|goal| !goal.is_empty())
}

/// The task: from the first observation, `task` (an object as in episodes, or the goal), `id`, `goal` and `kind`, whichever
/// there are.
pub(super) fn task(item: &Map<String, Value>, start: &str, p: &Params, number: usize) -> Result<Task, String> {
    let nothing = Map::new();
    let (named, fields) = match item.get("task") {
        Some(Value::Object(fields)) => (None, fields),
        other => (other, &nothing),
    };
    let known = ["env", "id", "split", "kind", "goal", "seed"];
    if let Some(key) = fields.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("`task` has `{key}`, expected one of `{}`", known.join("`, `")));
    }
    let text = |name: &str, value: Option<&Value>| match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) if name == "id" => Ok(Some(number.to_string())),
        Some(value) => Err(format!("`{name}` is `{}`, expected a text", shortened(&value.to_string()))),
    };
    let of = |name: &str| match text(name, fields.get(name))? {
        Some(value) => Ok(Some(value)),
        None => text(name, item.get(name)),
    };
    let env = text("env", fields.get("env"))?.unwrap_or_else(|| p.env.clone());
    if env != p.env {
        return Err(format!("its task is of `{env}`, expected `{}`", p.env));
    }
    let seed = match fields.get("seed") {
        None | Some(Value::Null) => None,
        Some(seed) => Some(seed.as_u64().ok_or(format!("`seed` is `{seed}`, expected a whole number, 0 or above"))?),
    };
    // a text is the goal, a number names the task
    let (named, numbered) = match named {
        Some(Value::Number(_)) => (None, text("id", named)?),
        other => (text("task", other)?, None),
    };
    let id = of("id")?.filter(|id| !id.is_empty()).or(numbered);
    let goal = of("goal")?.filter(|goal| !goal.trim().is_empty()).or(named);
    Ok(Task {
        env,
        id: id.unwrap_or_else(|| format!("imported/{number}")),
        split: text("split", fields.get("split"))?.unwrap_or_else(|| p.split.clone()),
        kind: of("kind")?.unwrap_or_else(|| "imported".to_owned()),
        goal: told_goal(start).map(str::to_owned).or(goal).unwrap_or_default(),
        seed,
    })
}
