//! `actloom env`: environments, their tasks, and captured transcripts replayed.

use actloom_ops::tool::worlds::{self, Difference, Replay, TaskList};
use owo_colors::OwoColorize;
use serde_json::Value;

use crate::args::{Env, EnvCheck, EnvTasks, Global};
use crate::exit::{Exit, Failure};
use crate::terminal::{out_either, say};
use crate::text;

pub fn run(verb: &Env, global: &Global) -> Result<Exit, Failure> {
    match verb {
        Env::List => {
            let list = worlds::list();
            out_either(global.json, &list, || {
                let rows = list.iter().map(|world| {
                    let splits = if world.splits.is_empty() { "its own".to_owned() } else { world.splits.join(", ") };
                    vec![world.name.to_owned(), splits, world.needs.to_owned(), world.about.to_owned()]
                });
                text::columns(&["environment", "splits", "needs", "about"], rows)
            });
            Ok(Exit::Done)
        }
        Env::Tasks(verb) => tasks(verb, global),
        Env::Check(verb) => check(verb, global),
    }
}

fn tasks(args: &EnvTasks, global: &Global) -> Result<Exit, Failure> {
    let settings = worlds::settings(&args.env, &args.set)?;
    let list = worlds::tasks(&settings, args.data.as_deref(), args.split.as_deref(), args.count, args.seed)?;
    out_either(global.json, &list, || {
        let rows = list.tasks.iter().map(|task| vec![task.id.clone(), task.kind.clone(), task.goal.clone()]);
        text::columns(&["task", "kind", "goal"], rows)
    });
    let TaskList { there, passed_over, tasks, split } = &list;
    if let Some(there) = there.filter(|there| *there > tasks.len()) {
        say(&format!("{} of {there} in the split `{split}`; `--count 0` lists all", tasks.len()));
    }
    for line in passed_over {
        say(line);
    }
    Ok(Exit::Done)
}

fn check(args: &EnvCheck, global: &Global) -> Result<Exit, Failure> {
    let replay = worlds::check(&args.game, &args.transcript)?;
    out_either(global.json, &replay, || page(&replay));
    // A difference is what was asked about, and not what was hoped for.
    Ok(if replay.equal { Exit::Done } else { Exit::StepFailed })
}

fn page(replay: &Replay) -> String {
    let Some(Difference { line, command, field, expected, found, missing, surplus }) = &replay.difference else {
        return format!("{}: {}", "equal".green().bold(), text::counted(replay.rows, "row"));
    };
    let after = match command {
        Some(command) => format!("after `{command}`"),
        None => "after a reset".to_owned(),
    };
    let mut page = format!("{}: line {line}, {after}: `{field}`\n", "different".red().bold());
    if *field == "admissible" {
        for (what, commands) in [("missing", missing), ("too much", surplus)] {
            for command in commands {
                page += &format!("  {what}: {command}\n");
            }
        }
        if missing.is_empty() && surplus.is_empty() {
            page += "  the same commands in another order, or some of them twice\n";
        }
        return page;
    }
    for (what, value) in [("expected", expected), ("found", found)] {
        page += &format!("  {what:<8}  {}\n", shown(value));
    }
    page
}

/// Texts with their line ends as `\n`, so that every difference can be seen.
fn shown(value: &Value) -> String {
    value.to_string()
}
