//! `actloom cache`: what the store holds, whether it is sound, and what it may forget.

use actloom_engine::cache::gc::{self, GcPlan, Policy, Why};
use actloom_engine::cache::{Action, Problem, Store};
use actloom_engine::plan::{Goal, Verdict, plan};
use serde_json::json;

use crate::args::{Cache, Gc, Global, Recipe, Verify};
use crate::exit::{Exit, Failure};
use crate::load;
use crate::terminal::{out, out_either, out_json, say};
use crate::text;

pub fn run(verb: &Cache, global: &Global) -> Result<Exit, Failure> {
    let store = load::store(global)?;
    match verb {
        Cache::Ls => ls(&store, global),
        Cache::Du => du(&store, global),
        Cache::Verify(args) => verify(&store, args, global),
        Cache::Gc(args) => gc(&store, args, global),
    }
}

fn ls(store: &Store, global: &Global) -> Result<Exit, Failure> {
    let mut actions = store.actions()?;
    let finished = |action: &Action| action.provenance["finished"].as_str().unwrap_or("").to_owned();
    actions.sort_by_key(|action| (finished(action), action.key));
    out_either(global.json, &actions, || {
        let rows = actions.iter().map(|action| {
            let of = |field: &str| action.provenance[field].as_str().unwrap_or("").to_owned();
            let bytes = action.outputs.values().map(|artifact| artifact.bytes).sum();
            let op = action.manifest["op"].as_str().unwrap_or("").to_owned();
            vec![action.key.short(), of("recipe"), of("node"), op, text::bytes(bytes), text::time(&of("finished"))]
        });
        match actions.is_empty() {
            true => "no results yet\n".to_owned(),
            false => text::columns(&["key", "recipe", "step", "op", "size", "finished"], rows),
        }
    });
    Ok(Exit::Done)
}

fn du(store: &Store, global: &Global) -> Result<Exit, Failure> {
    let usage = store.usage()?;
    out_either(global.json, &json!({"root": store.root(), "bytes": usage.bytes(), "usage": usage}), || {
        let rows = [
            ("objects", usage.objects, "contents of files"),
            ("trees", usage.trees, "lists of the files in a folder"),
            ("actions", usage.actions, "recorded results"),
            ("scratch", usage.scratch, "checkpoints of unfinished steps"),
            ("stage", usage.stage, "being written"),
            ("runs", usage.runs, "the journal"),
        ];
        let rows = rows.map(|(name, tally, about)| {
            vec![name.to_owned(), tally.count.to_string(), text::bytes(tally.bytes), about.to_owned()]
        });
        let table = text::columns(&["", "files", "size", ""], rows);
        format!("{table}\n{} in `{}`\n", text::bytes(usage.bytes()), store.root())
    });
    Ok(Exit::Done)
}

fn verify(store: &Store, args: &Verify, global: &Global) -> Result<Exit, Failure> {
    let report = store.verify()?;
    out_either(global.json, &report, || {
        let mut page: String = report.problems.iter().map(|problem| format!("{problem}\n")).collect();
        page += &format!(
            "{}, {}, {}: {}; {} of garbage\n",
            text::counted(report.objects.count as usize, "object"),
            text::counted(report.trees.count as usize, "tree"),
            text::counted(report.actions as usize, "result"),
            match report.problems.len() {
                0 => "sound".to_owned(),
                n => text::counted(n, "problem"),
            },
            text::bytes(report.garbage.bytes),
        );
        page
    });
    if report.is_clean() {
        return Ok(Exit::Done);
    }
    let repairable = report.problems.iter().any(Problem::is_repairable);
    if !repairable {
        say("`--repair` has nothing to do here: it removes neither files of others nor records of newer programs");
    } else if args.repair {
        let removed = store.repair(&report)?;
        let left = store.verify()?.problems.len();
        let left = match left {
            0 => "the store is sound now".to_owned(),
            n => format!("{} left", text::counted(n, "problem")),
        };
        say(&format!(
            "removed {}; {left}; the next run that needs what was removed makes it again",
            text::counted(removed as usize, "damaged file")
        ));
    } else {
        say("`cache verify --repair` removes what is damaged; the next run that needs it makes it again");
    }
    Ok(Exit::Unsound)
}

fn gc(store: &Store, args: &Gc, global: &Global) -> Result<Exit, Failure> {
    let mut policy = Policy { max_bytes: args.max_bytes, max_age: args.max_age, ..Policy::default() };
    for path in &args.keep {
        let options = Recipe { profile: None, set: Vec::new(), device: Default::default() };
        let loaded = load::recipe(Some(path.clone()), &options)?;
        let plan = plan(&loaded.graph, &Goal { device: loaded.device, ..Goal::default() }, store)?;
        policy.keep.extend(plan.steps.iter().filter_map(|step| match &step.verdict {
            Verdict::Reuse { key, .. } => Some(*key),
            _ => None,
        }));
    }
    let plan = gc::plan(store, &policy)?;
    let collected = if args.apply { Some(gc::collect(store, &plan)?) } else { None };
    if global.json {
        out_json(&json!({"plan": plan, "collected": collected}));
        return Ok(Exit::Done);
    }
    out(&page(store, &plan)?);
    match collected {
        Some(collected) => {
            let skipped = match collected.skipped {
                0 => String::new(),
                n => format!("; {n} stayed because they are in use"),
            };
            out(&format!("freed {}{skipped}\n", text::bytes(collected.bytes)));
        }
        None if !plan.is_empty() => say("nothing was removed; `--apply` removes it"),
        None => {}
    }
    Ok(Exit::Done)
}

fn page(store: &Store, plan: &GcPlan) -> Result<String, Failure> {
    if plan.is_empty() {
        return Ok(format!("nothing to remove; {} stay\n", text::bytes(plan.keeps)));
    }
    let mut rows = Vec::new();
    for doomed in &plan.actions {
        let action = store.action(&doomed.key).ok().flatten();
        let of = |field: &str| {
            action.as_ref().and_then(|action| action.provenance[field].as_str().map(str::to_owned)).unwrap_or_default()
        };
        let why = match doomed.why {
            Why::Age => "age",
            Why::Space => "space",
        };
        rows.push(vec![
            doomed.key.short(),
            of("recipe"),
            of("node"),
            text::time(&doomed.last_used.to_string()),
            why.to_owned(),
        ]);
    }
    let table = match rows.is_empty() {
        true => String::new(),
        false => text::columns(&["key", "recipe", "step", "last used", "why"], rows) + "\n",
    };
    Ok(format!(
        "{table}{}, {}, {}, {}, {}: {} go, {} stay\n",
        text::counted(plan.actions.len(), "result"),
        text::counted(plan.objects.len(), "object"),
        text::counted(plan.trees.len(), "tree"),
        text::counted(plan.stages.len(), "stage"),
        text::counted(plan.scratch.len(), "scratch folder"),
        text::bytes(plan.frees),
        text::bytes(plan.keeps)
    ))
}
