//! `actloom ops`: what can stand behind `op =`.

use actloom_engine::diagnostic::nearest;
use actloom_engine::op::{Arity, InputPort, OutputPort};
use actloom_engine::schema::{Choice, OpReference, ParamReference, PortReference, op_reference};
use actloom_ops::registry::registry;
use owo_colors::OwoColorize;
use serde_json::{Value, json};

use crate::args::{Global, Ops};
use crate::exit::{Exit, Failure};
use crate::terminal::{out, out_either};
use crate::text;

pub fn run(args: &Ops, global: &Global) -> Result<Exit, Failure> {
    let registry = registry();
    if args.markdown {
        out(super::ops_page::markdown(&registry).trim_end());
        return Ok(Exit::Done);
    }
    let Some(name) = &args.name else {
        let list: Vec<Value> = registry
            .iter()
            .map(|op| json!({"name": op.name(), "version": op.version(), "about": op.about()}))
            .collect();
        out_either(global.json, &list, || {
            let rows = registry.iter().map(|op| vec![op.name().to_owned(), op.about().to_owned()]);
            text::columns(&["op", "about"], rows)
        });
        return Ok(Exit::Done);
    };
    let Some(op) = registry.get(name) else {
        let help = match nearest(name, registry.names()) {
            Some(near) => format!("an op has the name `{near}`"),
            None => "`actloom ops` lists them".to_owned(),
        };
        return Err(Failure::usage(format!("there is no op `{name}`"), help));
    };
    let reference = op_reference(op.as_ref());
    out_either(global.json, &reference, || page(&reference));
    Ok(Exit::Done)
}

fn page(op: &OpReference) -> String {
    let mut page = format!("{} {}\n{}\n", op.name.bold(), format!("version {}", op.version).dimmed(), op.about);
    page += &format!("\n{}\n", "Parameters".bold());
    if op.params.is_empty() {
        page += "  none\n";
    }
    params(&mut page, &op.params, 1);
    page += &format!("\n{}\n", "Inputs".bold());
    if op.inputs.is_empty() {
        page += "  none\n";
    }
    for PortReference { port: InputPort { name, kinds, arity, about, .. }, when } in &op.inputs {
        let kinds: Vec<&str> = kinds.iter().map(|kind| kind.0).collect();
        let arity = match arity {
            Arity::One => "",
            Arity::Optional => ", optional",
            Arity::Many => ", one or more",
            Arity::ManyOptional => ", any number",
        };
        port(&mut page, name, &format!("{}{arity}", kinds.join(" or ")), when.as_deref(), about);
    }
    page += &format!("\n{}\n", "Outputs".bold());
    for PortReference { port: OutputPort { name, kind, about }, when } in &op.outputs {
        port(&mut page, name, kind.0, when.as_deref(), about);
    }
    port(&mut page, "metrics", "metrics", None, "what the op measured, as JSON lines");
    page
}

fn port(page: &mut String, name: &str, what: &str, when: Option<&str>, about: &str) {
    let when = when.map(|when| format!(", with `{when}`")).unwrap_or_default();
    *page += &format!("  {} {}\n", name.green(), format!("{what}{when}").dimmed());
    words(page, about, 2);
}

fn params(page: &mut String, params_of: &[ParamReference], depth: usize) {
    for param in params_of {
        let ParamReference { name, takes, required, default, range, about, choices, params: inner } = param;
        let mut facts = vec![takes.clone()];
        facts.extend(range.clone());
        match default {
            Some(default) => facts.push(format!("default {default}")),
            None if *required => facts.push("required".to_owned()),
            None => {}
        }
        *page += &format!("{}{} {}\n", "  ".repeat(depth), name.green(), facts.join(", ").dimmed());
        words(page, about, depth + 1);
        for Choice { name, about, params: of_choice } in
            choices.iter().filter(|c| !c.about.is_empty() || !c.params.is_empty())
        {
            let about = about.lines().next().unwrap_or("");
            *page += &format!("{}`{name}`: {about}\n", "  ".repeat(depth + 1));
            params(page, of_choice, depth + 2);
        }
        params(page, inner, depth + 1);
    }
}

/// Documentation, a line each.
fn words(page: &mut String, about: &str, depth: usize) {
    for line in about.lines().filter(|line| !line.trim().is_empty()) {
        *page += &format!("{}{}\n", "  ".repeat(depth), line.trim());
    }
}
