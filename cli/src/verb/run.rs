//! `actloom run`: plans, runs, and shows tables and where things were put.

use actloom_engine::op::{DeviceRequest, Resources};
use actloom_engine::plan::{Goal, plan, select};
use actloom_engine::run::{RunOptions, Summary, run as run_plan};
use actloom_engine::stop::Stop;
use camino::Utf8Path;
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
    /// Tables and reports, each with the path it was written to.
    outputs: &'a [Shown],
    /// The folder of them all; `None` with `--no-out`.
    out: Option<&'a Utf8Path>,
}

pub fn run(args: &Run, global: &Global) -> Result<Exit, Failure> {
    let (path, steps) = load::words(&args.words)?;
    let loaded = load::recipe(path, &args.recipe)?;
    let graph = &loaded.graph;
    // A GPU that was demanded and is not there is known at once, not hours later when a step wants it.
    let mut device = match args.recipe.device {
        DeviceRequest::Cuda(_) => Some(device::open(args.recipe.device)?),
        DeviceRequest::Auto | DeviceRequest::Cpu => None,
    };
    let store = load::store(global)?;
    let goal = Goal { steps: steps.clone(), force: args.force.clone(), device: loaded.device };
    let plan = plan(graph, &goal, &store)?;
    if plan.counts.run + plan.counts.pending > 0 {
        let found = match device.take() {
            Some(found) => found,
            None => device::open(args.recipe.device)?,
        };
        say(&format!("device: {}", found.why));
        device = Some(found);
    }

    let stop = Stop::new();
    let board = Board::new();
    let talker = board.clone();
    signal::listen(&stop, move |line| talker.say(line))?;
    let slots = slots(args, device.is_some_and(|found| found.is_gpu));
    let options = RunOptions { slots, keep_going: !args.fail_fast };
    let mut watcher = Watcher::new(board, global.json, stop.clone());
    let summary = run_plan(graph, &plan, &store, &mut watcher, &stop, &options)?;

    let shown_of: Vec<NodeIndex> = match steps.as_slice() {
        [] => graph.nodes.node_indices().collect(),
        steps => select(graph, steps)?,
    };
    // A profile in small must not write over what the recipe itself made.
    let name = match &args.recipe.profile {
        Some(profile) => format!("{}-{profile}", graph.name),
        None => graph.name.clone(),
    };
    let folder = (!args.no_out).then(|| args.out.join(file_name(&name)));
    let shown = outputs::collect(graph, &store, &summary, &shown_of, folder.as_deref())?;
    if global.json {
        out_json(&Last { event: "summary", summary: &summary, outputs: &shown, out: folder.as_deref() });
    } else {
        print_tables(&shown);
    }
    for path in shown.iter().filter_map(|shown| shown.path.as_ref()) {
        say(&format!("wrote {path}"));
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

fn slots(args: &Run, on_gpu: bool) -> Resources {
    let cores = || std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    Resources { cpu: args.jobs.unwrap_or_else(cores), gpu: args.gpus.unwrap_or(u32::from(on_gpu)) }
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
    let mut parts = Vec::new();
    if summary.published > 0 {
        parts.push(format!("{} ran", text::counted(summary.published, "step")));
    }
    if summary.reused > 0 {
        let count = match parts.is_empty() {
            true => text::counted(summary.reused, "step"),
            false => summary.reused.to_string(),
        };
        parts.push(format!("{count} reused"));
    }
    // Of a stopped run, what did not start was just counted.
    let skipped = if summary.stopped { 0 } else { summary.skipped };
    for (count, word) in [(summary.failed, "failed"), (summary.interrupted, "stopped"), (skipped, "skipped")] {
        if count > 0 {
            parts.push(format!("{count} {word}"));
        }
    }
    if parts.is_empty() {
        parts.push("nothing to do".to_owned());
    }
    format!("{}, in {}", parts.join(", "), text::duration(std::time::Duration::from_secs_f64(summary.seconds)))
}
