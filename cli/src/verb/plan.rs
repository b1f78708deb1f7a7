//! `actloom plan`: what a run would do, and why.

use actloom_engine::plan::{Goal, Plan as Planned, Verdict, plan};
use actloom_engine::reason::Reason;

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
    out_either(global.json, &plan, || table(&plan, args.all));
    Ok(Exit::Done)
}

fn table(plan: &Planned, all: bool) -> String {
    let shown = plan.steps.iter().filter(|step| all || !matches!(step.verdict, Verdict::Reuse { .. }));
    let rows: Vec<Vec<String>> = shown
        .map(|step| {
            let (verdict, why) = match &step.verdict {
                Verdict::Reuse { key, .. } => ("reuse", key.short()),
                Verdict::Run { reasons, .. } => ("run", sentence(reasons)),
                Verdict::Pending { because, .. } => ("pending", waits_for(because)),
            };
            vec![verdict.to_owned(), step.name.clone(), step.op.to_owned(), why]
        })
        .collect();
    let counts = &plan.counts;
    let table = if rows.is_empty() { String::new() } else { text::columns(&["", "step", "op", "why"], rows) + "\n" };
    format!(
        "{table}{} steps: {} reused, {} to run, {} pending\n",
        counts.steps, counts.reuse, counts.run, counts.pending
    )
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
