//! `actloom why`: the reason for one step, or the proof that it need not run.

use actloom_engine::cache::Store;
use actloom_engine::graph::Graph;
use actloom_engine::key::graph_dependencies;
use actloom_engine::plan::{Goal, Nearest, Plan, Planned, Verdict, nearest_action, plan, select};
use actloom_engine::reason::Reason;
use actloom_engine::root::{Root, roots};
use owo_colors::OwoColorize;
use serde::Serialize;

use super::plan::{sentence, waits_for};
use crate::args::{Global, Why};
use crate::exit::{Exit, Failure};
use crate::load;
use crate::terminal::out_either;
use crate::text;

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    step: &'a Planned,
    /// The recorded result most like this step's, where the step itself never ran.
    nearest: Option<Nearest>,
    /// For a pending step: what has to run before it for a reason of its own.
    roots: Vec<Root>,
}

/// More lines of reasons, and more names in a line, are only counted.
const SHOWN: usize = 5;

pub fn run(args: &Why, global: &Global) -> Result<Exit, Failure> {
    let (path, steps) = load::words(&args.words)?;
    let loaded = load::recipe(path, &args.recipe)?;
    let store = load::store(global)?;
    let plan = plan(&loaded.graph, &Goal { steps: steps.clone(), device: loaded.device, ..Goal::default() }, &store)?;
    let asked = if steps.is_empty() { None } else { Some(select(&loaded.graph, &steps)?) };
    let dependencies = graph_dependencies(&loaded.graph);
    let mut answers = Vec::new();
    for step in plan.steps.iter().filter(|step| asked.as_ref().is_none_or(|asked| asked.contains(&step.node))) {
        let roots = match step.verdict {
            Verdict::Pending { .. } => roots(&dependencies, &plan, step.node),
            _ => Vec::new(),
        };
        answers.push(Answer { step, nearest: nearest(&loaded.graph, &plan, step, &store)?, roots });
    }
    out_either(global.json, &answers, || answers.iter().map(explain).collect());
    Ok(Exit::Done)
}

fn nearest(graph: &Graph, plan: &Plan, step: &Planned, store: &Store) -> Result<Option<Nearest>, Failure> {
    match &step.verdict {
        Verdict::Run { reasons, .. } | Verdict::Pending { reasons, .. } if reasons.contains(&Reason::NeverRan) => {
            Ok(nearest_action(graph, plan, step.node, store)?)
        }
        _ => Ok(None),
    }
}

fn explain(answer: &Answer<'_>) -> String {
    let Answer { step, nearest, roots } = answer;
    let name = step.name.bold();
    let (mut text, reasons) = match &step.verdict {
        Verdict::Reuse { key, action } => {
            let of = |field: &str| action.provenance[field].as_str().unwrap_or("?").to_owned();
            let made = format!("made by run {} at {}", of("run"), text::time(&of("finished")));
            return format!("{name} is reused\n  key {}, {made}\n", key.short());
        }
        Verdict::Run { reasons, .. } => (format!("{name} has to run\n"), reasons),
        Verdict::Pending { because, reasons } => {
            (format!("{name} {}; it is reused if they come out as before\n", waits_for(because)), reasons)
        }
    };
    for root in roots.iter().take(SHOWN) {
        text += &format!("  because {}: {}\n", some(&root.steps), sentence(&root.reasons));
    }
    if let Some(more) = roots.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        text += &format!("  and {more} more\n");
    }
    for reason in reasons {
        text += &format!("  {reason}\n");
    }
    if let Some(nearest) = nearest {
        let of = match (&nearest.recipe, &nearest.step) {
            (Some(recipe), Some(step)) => format!("`{step}` of recipe `{recipe}`"),
            _ => format!("action {}", nearest.key.short()),
        };
        text += &format!("  nearest recorded result: {of}, which differs in\n");
        for reason in &nearest.differs {
            text += &format!("    {reason}\n");
        }
        if nearest.differs.is_empty() {
            text += "    nothing that is known yet\n";
        }
    }
    text
}

/// `a, b and 3 more`.
fn some(names: &[String]) -> String {
    match names.get(SHOWN..) {
        None | Some([]) => names.join(", "),
        Some(rest) => format!("{} and {} more", names[..SHOWN].join(", "), rest.len()),
    }
}
