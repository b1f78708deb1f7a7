//! `actloom plan`: what a run would do, and why.

use actloom_engine::graph::Graph;
use actloom_engine::plan::{Goal, Plan as Planned, Verdict, plan};
use actloom_engine::reason::Reason;
use actloom_engine::root::root_steps;

use crate::args::{Global, Plan};
use crate::exit::{Exit, Failure};
use crate::load;
use crate::terminal::out_either;
use crate::text;

pub fn run(args: &Plan, global: &Global) -> Result<Exit, Failure> {
    let (path, steps) = load::words(&args.words)?;
    let loaded = load::recipe(path, &args.recipe)?;
    let store = load::store(global)?;
    let goal = Goal { steps, force: args.force.clone(), device: loaded.device };
    let plan = plan(&loaded.graph, &goal, &store)?;
    out_either(global.json, &plan, || table(&loaded.graph, &plan, args.all));
    Ok(Exit::Done)
}

/// A line for every variant with `--all`; else one for all variants of a step that have the same lot, and none for
/// what is reused.
fn table(graph: &Graph, plan: &Planned, all: bool) -> String {
    let roots = root_steps(graph, plan);
    let mut rows: Vec<(usize, [String; 4])> = Vec::new();
    for step in plan.steps.iter().filter(|step| all || !matches!(step.verdict, Verdict::Reuse { .. })) {
        let (verdict, why) = match &step.verdict {
            Verdict::Reuse { key, .. } => ("reuse", key.short()),
            Verdict::Run { reasons, .. } => ("run", sentence(reasons)),
            Verdict::Pending { because, reasons } => {
                let because = if all { because.clone() } else { steps_of(because) };
                let known = reasons.iter().filter(|reason| **reason != Reason::NeverRan).cloned().collect::<Vec<_>>();
                let known = if known.is_empty() { String::new() } else { format!("; {}", sentence(&known)) };
                // What never ran waits for what never ran; there is nothing to trace.
                let fresh = reasons.contains(&Reason::NeverRan);
                let roots: &[&str] = if fresh { &[] } else { &roots[step.node.index()] };
                ("pending", waits_for(&because) + &after_all(roots, &steps_of(&because)) + &known)
            }
        };
        let name = if all { &step.name } else { &step.step };
        let row = [verdict.to_owned(), name.clone(), step.op.to_owned(), why];
        match rows.iter_mut().find(|(_, same)| !all && *same == row) {
            Some((count, _)) => *count += 1,
            None => rows.push((1, row)),
        }
    }
    let counts = &plan.counts;
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|(count, [verdict, name, op, why])| {
            let times = if count > 1 { format!(" ×{count}") } else { String::new() };
            vec![verdict, name + &times, op, why]
        })
        .collect();
    let table = if rows.is_empty() { String::new() } else { text::columns(&["", "step", "op", "why"], rows) + "\n" };
    format!(
        "{table}{}: {} reused, {} to run, {} pending\n",
        text::counted(counts.steps, "step"),
        counts.reuse,
        counts.run,
        counts.pending
    )
}

/// `, in the end for a and b`: the steps at the root, where those waited for are not all of them.
fn after_all(roots: &[&str], direct: &[String]) -> String {
    if roots.iter().all(|root| direct.iter().any(|step| step == root)) {
        return String::new();
    }
    match roots {
        [] => String::new(),
        [one] => format!(", in the end for {one}"),
        [first, second] => format!(", in the end for {first} and {second}"),
        [first, second, third] => format!(", in the end for {first}, {second} and {third}"),
        [first, second, rest @ ..] => format!(", in the end for {first}, {second} and {} more", rest.len()),
    }
}

/// The steps of some variants, each once.
fn steps_of(variants: &[String]) -> Vec<String> {
    let mut steps: Vec<String> = Vec::new();
    for variant in variants {
        let step = variant.split('[').next().unwrap_or(variant);
        if !steps.iter().any(|there| there == step) {
            steps.push(step.to_owned());
        }
    }
    steps
}

/// All reasons in one line.
pub fn sentence(reasons: &[Reason]) -> String {
    reasons.iter().map(Reason::to_string).collect::<Vec<_>>().join("; ")
}

/// `waits for a, b and 3 more`.
pub fn waits_for(because: &[String]) -> String {
    match because {
        all if all.len() <= 3 => format!("waits for {}", all.join(", ")),
        [first, second, rest @ ..] => format!("waits for {first}, {second} and {} more", rest.len()),
        _ => String::new(),
    }
}
