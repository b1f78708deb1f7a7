//! `actloom runs`: what ran, when, and how it ended.

use std::time::Duration;

use actloom_engine::journal::{Ending, Journal, RunInfo};

use crate::args::{Global, Runs};
use crate::exit::{Exit, Failure};
use crate::load;
use crate::terminal::{out_either, say};
use crate::text;

/// How many are listed unless all are asked for.
const SHOWN: usize = 20;

pub fn run(args: &Runs, global: &Global) -> Result<Exit, Failure> {
    let store = load::store(global)?;
    let all = Journal::of(&store).runs()?;
    let skip = if args.all { 0 } else { all.len().saturating_sub(SHOWN) };
    out_either(global.json, &&all[skip..], || table(&all[skip..]));
    if skip > 0 && !global.json {
        say(&format!("{}: `actloom runs --all`", text::counted(skip, "earlier run")));
    }
    Ok(Exit::Done)
}

fn table(runs: &[RunInfo]) -> String {
    if runs.is_empty() {
        return "no runs yet\n".to_owned();
    }
    let rows = runs.iter().map(|run| {
        let ending = match run.ending {
            Ending::Finished => "finished",
            Ending::Failed => "failed",
            Ending::Interrupted => "interrupted",
            Ending::Running => "running",
            Ending::Killed => "killed",
        };
        let of = |field: &str| run.summary.as_ref().map(|summary| summary[field].clone());
        let count = |field: &str| of(field).map(|value| value.to_string()).unwrap_or_default();
        let took = of("seconds").and_then(|value| value.as_f64()).map(Duration::from_secs_f64);
        vec![
            run.record.id.clone(),
            run.record.recipe.clone(),
            ending.to_owned(),
            count("published"),
            count("reused"),
            count("failed"),
            took.map(text::duration).unwrap_or_default(),
        ]
    });
    text::columns(&["run", "recipe", "ended", "ran", "reused", "failed", "took"], rows)
}
