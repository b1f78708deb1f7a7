//! `actloom run`: plans, runs, and shows tables and where things were put.

use actloom_engine::op::{DeviceRequest, Resources};
use actloom_engine::plan::{Goal, plan, select};
use actloom_engine::run::{RunOptions, Summary, run as run_plan};
use actloom_engine::stop::Stop;
use owo_colors::OwoColorize;
use petgraph::graph::NodeIndex;
use serde::Serialize;

use crate::args::{Global, Run};
use crate::device;
use crate::exit::{Exit, Failure};
use crate::load;
use crate::outputs::{self, Shown, file_name};
use crate::progress::{Board, Watcher};
use crate::signal;
use crate::terminal::{out, out_json, say};
use crate::text;

/// The last line of `--json`, after the events.
#[derive(Serialize)]
struct Last<'a> {
    event: &'static str,
    #[serde(flatten)]
    summary: &'a Summary,
    outputs: &'a [Shown],
}

pub fn run(args: &Run, global: &Global) -> Result<Exit, Failure> {
    let (path, steps) = load::words(&args.words)?;
    let loaded = load::recipe(path, &args.recipe)?;
    let graph = &loaded.graph;
    let store = load::store(global)?;
    let goal = Goal { steps: steps.clone(), force: args.force.clone(), device: loaded.device };
    let plan = plan(graph, &goal, &store)?;

    if plan.counts.run + plan.counts.pending > 0 {
        // a device that cannot be had ends the run before anything is done for it
        say(&format!("device {}", device::announce(loaded.device)?));
    }
    let stop = Stop::new();
    let board = Board::new();
    let talker = board.clone();
    signal::listen(&stop, move |line| talker.say(line))?;
    let options = RunOptions { slots: slots(args, loaded.device), keep_going: !args.fail_fast };
    let mut watcher = Watcher::new(board, global.json);
    let summary = run_plan(graph, &plan, &store, &mut watcher, &stop, &options)?;

    let shown_of: Vec<NodeIndex> = match steps.as_slice() {
        [] => graph.nodes.node_indices().collect(),
        steps => select(graph, steps)?,
    };
    // a profile's results stand beside the recipe's own, never in their place
    let name = match &args.recipe.profile {
        Some(profile) => format!("{}-{profile}", graph.name),
        None => graph.name.clone(),
    };
    let folder = (!args.no_out).then(|| args.out.join(file_name(&name)));
    let shown = outputs::collect(graph, &store, &summary, &shown_of, folder.as_deref())?;
    if global.json {
        out_json(&Last { event: "summary", summary: &summary, outputs: &shown });
    } else {
        print_tables(&shown);
    }
    for Shown { step, path, .. } in &shown {
        if let Some(path) = path {
            say(&format!("{}: wrote {path}", step.bold()));
        }
    }
    say(&sentence(&summary));
    Ok(if summary.stopped || summary.interrupted > 0 {
        Exit::Interrupted
    } else if !summary.is_complete() {
        Exit::StepFailed
    } else {
        Exit::Done
    })
}

fn slots(args: &Run, device: DeviceRequest) -> Resources {
    let cores = || std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let gpus = u32::from(matches!(device, DeviceRequest::Cuda(_)));
    Resources { cpu: args.jobs.unwrap_or_else(cores), gpu: args.gpus.unwrap_or(gpus) }
}

fn print_tables(shown: &[Shown]) {
    let tables: Vec<(&String, &String)> =
        shown.iter().filter_map(|shown| Some((&shown.step, shown.text.as_ref()?))).collect();
    let several = tables.len() > 1;
    for (index, (step, text)) in tables.into_iter().enumerate() {
        let gap = if index > 0 { "\n" } else { "" };
        let title = if several { format!("{gap}{step}\n\n") } else { String::new() };
        out(&format!("{title}{text}"));
    }
}

/// `3 steps ran, 37 reused, in 12.3 s`.
fn sentence(summary: &Summary) -> String {
    let s = |n: usize| if n == 1 { "" } else { "s" };
    let mut parts = Vec::new();
    if summary.published > 0 {
        parts.push(format!("{} step{} ran", summary.published, s(summary.published)));
    }
    if summary.reused > 0 {
        let unit = if parts.is_empty() { format!(" step{}", s(summary.reused)) } else { String::new() };
        parts.push(format!("{}{unit} reused", summary.reused));
    }
    for (count, word) in [(summary.failed, "failed"), (summary.interrupted, "stopped"), (summary.skipped, "skipped")] {
        if count > 0 {
            parts.push(format!("{count} {word}"));
        }
    }
    if parts.is_empty() {
        parts.push("nothing to do".to_owned());
    }
    format!("{}, in {}", parts.join(", "), text::duration(std::time::Duration::from_secs_f64(summary.seconds)))
}
