//! `actloom ops --markdown`: the reference of every op as a page of the book.
//!
//! Invariant: the page comes from the ops' own schemas and ports, as `docs/src/ops.md` holds it (a test compares them). A
//! table that several ops take stands once, at the end; one that differs between ops stands at each.

use std::collections::BTreeMap;
use std::fmt::Write;

use actloom_engine::op::{Arity, InputPort, OutputPort, Registry};
use actloom_engine::schema::{Choice, OpReference, ParamReference, PortReference, op_reference};

const HEAD: &str = "\
# Ops

Every op with its parameters, inputs and outputs; `actloom ops NAME` prints the same, and `actloom ops --markdown` writes this
page. Beside what is listed, every op has an output `metrics` (JSON lines). The keys that every step may have (`seed`, `each`,
...) are in [the recipe language](recipes.md#steps).
";

/// The page.
pub fn markdown(registry: &Registry) -> String {
    let ops: Vec<OpReference> = registry.iter().map(|op| op_reference(op.as_ref())).collect();
    let shared = shared(&ops);
    let mut page = format!("{HEAD}\n| op | version | |\n|---|---:|---|\n");
    for op in &ops {
        let _ = writeln!(page, "| [`{0}`](#{0}) | {1} | {2} |", op.name, op.version, cell(op.about));
    }
    for op in &ops {
        of_op(&mut page, op, &shared);
    }
    for (name, param) in &shared {
        let _ = writeln!(page, "\n## `{name}` (table)\n\n{}", sentence(&param.about));
        table(&mut page, param, &shared);
    }
    page
}

/// Tables that more than one op takes in the same form, by name.
fn shared(ops: &[OpReference]) -> BTreeMap<&str, &ParamReference> {
    let mut seen: BTreeMap<&str, Vec<&ParamReference>> = BTreeMap::new();
    for param in ops.iter().flat_map(|op| &op.params).filter(|param| is_table(param)) {
        seen.entry(&param.name).or_default().push(param);
    }
    let same = |params: &[&ParamReference]| params.windows(2).all(|p| inside(p[0]) == inside(p[1]));
    seen.into_iter().filter(|(_, params)| params.len() > 1 && same(params)).map(|(n, params)| (n, params[0])).collect()
}

fn inside(param: &ParamReference) -> (&[ParamReference], &[Choice]) {
    (&param.params, &param.choices)
}

fn is_table(param: &ParamReference) -> bool {
    !param.params.is_empty() || param.choices.iter().any(|choice| !choice.params.is_empty())
}

fn of_op(page: &mut String, op: &OpReference, shared: &BTreeMap<&str, &ParamReference>) {
    let _ = writeln!(page, "\n## {}\n\n{}", op.name, sentence(op.about));
    if !op.inputs.is_empty() {
        page.push_str("\n| input | takes | |\n|---|---|---|\n");
        for PortReference { port: InputPort { name, kinds, arity, about, .. }, when } in &op.inputs {
            let kinds: Vec<String> = kinds.iter().map(|kind| format!("`{kind}`")).collect();
            let how_many = match arity {
                Arity::One => "one of",
                Arity::Optional => "none or one of",
                Arity::Many => "one or more of",
                Arity::ManyOptional => "any number of",
            };
            let _ =
                writeln!(page, "| `{name}` | {how_many} {} | {} |", kinds.join(" or "), told(about, when.as_deref()));
        }
    }
    if !op.outputs.is_empty() {
        page.push_str("\n| output | kind | |\n|---|---|---|\n");
        for PortReference { port: OutputPort { name, kind, about }, when } in &op.outputs {
            let _ = writeln!(page, "| `{name}` | `{kind}` | {} |", told(about, when.as_deref()));
        }
    }
    params(page, &op.params, shared);
    for param in op.params.iter().filter(|param| is_table(param) && !shared.contains_key(&*param.name)) {
        let _ = writeln!(page, "\n### `{}` of `{}`", param.name, op.name);
        table(page, param, shared);
    }
}

/// The keys of a table, or of each of its forms.
fn table(page: &mut String, param: &ParamReference, shared: &BTreeMap<&str, &ParamReference>) {
    params(page, &param.params, shared);
    for choice in &param.choices {
        if choice.params.is_empty() {
            let _ = writeln!(page, "\n`{}`: {}", choice.name, choice.about);
        } else {
            let _ = writeln!(page, "\n`{}`: {}", choice.name, sentence(&choice.about));
            params(page, &choice.params, shared);
        }
    }
}

fn params(page: &mut String, params: &[ParamReference], shared: &BTreeMap<&str, &ParamReference>) {
    if params.is_empty() {
        return;
    }
    page.push_str("\n| parameter | takes | default | |\n|---|---|---|---|\n");
    for param in params {
        let ParamReference { name, takes, required, default, range, about, .. } = param;
        let range = range.as_ref().map(|range| format!(", {range}")).unwrap_or_default();
        let default = match default {
            _ if *required => "**required**".to_owned(),
            Some(_) if is_table(param) && shared.contains_key(&**name) => format!("see [`{name}`](#{name}-table)"),
            Some(value) if value.is_object() && is_table(param) => "see below".to_owned(),
            Some(value) => format!("`{}`", cell(&value.to_string())),
            None if is_table(param) && shared.contains_key(&**name) => format!("none; see [`{name}`](#{name}-table)"),
            None => "none".to_owned(),
        };
        let _ = writeln!(page, "| `{name}` | {}{range} | {default} | {} |", cell(takes), cell(about));
    }
    for param in params.iter().filter(|param| !is_table(param)) {
        let told: Vec<&Choice> = param.choices.iter().filter(|choice| !choice.about.is_empty()).collect();
        if told.is_empty() {
            continue;
        }
        let _ = writeln!(page, "\n`{}`:\n", param.name);
        for choice in told {
            let _ = writeln!(page, "- `{}`: {}", choice.name, choice.about.lines().next().unwrap_or_default());
        }
    }
    let nested = params.iter().filter(|param| is_table(param) && !param.params.is_empty());
    for param in nested.filter(|param| !shared.contains_key(&*param.name) && param.default.is_none()) {
        let _ = writeln!(page, "\nKeys of `{}`:", param.name);
        self::params(page, &param.params, shared);
    }
}

fn told(about: &str, when: Option<&str>) -> String {
    match when {
        Some(when) => format!("{}; only with `{}`", cell(about), cell(when)),
        None => cell(about),
    }
}

/// Text that stays within one cell.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn sentence(text: &str) -> String {
    let text = cell(text);
    let mut letters = text.chars();
    let first: String = letters.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
    let dot = if text.ends_with('.') { "" } else { "." };
    format!("{first}{}{dot}", letters.as_str())
}
