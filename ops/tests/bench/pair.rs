//! Pairs of actions as lines of a file.

use actloom_ops::artifact::{Past, SCHEMA_VERSION};
use serde_json::{Value, json};

use crate::bench::task;

/// A pair at a first observation; the expert's action is shown second.
pub fn pair(start: &str, expert: &str, other: &str, held_out: bool) -> Value {
    json!({
        "v": SCHEMA_VERSION, "task": task(), "episode": 0, "turn": 0,
        "past": Past::of_texts(start.to_owned(), Vec::new()),
        "shown": [other, expert], "expert": 1, "actions": [], "held_out": held_out,
    })
}
