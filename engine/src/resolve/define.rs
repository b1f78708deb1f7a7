//! What a recipe defines: its heading, variables, axes, and steps with their ops.
//!
//! Invariant: what is malformed is reported and left out, so that the rest can still be looked at.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value as Json;

use super::axis::{Axes, AxisDef};
use super::scope::{AxisDefs, DefId, Miss, Scope, World, as_text, parsed};
use super::template::is_variable;
use super::{RESERVED, Shared};
use super::{path, reference};
use crate::diagnostic::{Diagnostic, Findings, listed, nearest};
use crate::op::{DynOp, Registry};
use crate::recipe::{Data, Key, Recipe, Table, Value};

const TOP: [&str; 7] = ["name", "about", "extends", "vars", "matrix", "step", "profile"];

pub(super) struct Heading {
    pub name: String,
    pub about: String,
}

/// An op and its schema, once per op that the recipe uses.
pub(super) struct OpInfo {
    pub op: Arc<dyn DynOp>,
    pub schema: Json,
    /// Says no to what [`super::check`] has no words for; `None` where the schema itself is none.
    pub validator: Option<jsonschema::Validator>,
}

/// One step as written.
pub(super) struct StepDef<'a> {
    pub name: &'a str,
    pub key: &'a Key,
    pub table: &'a Table,
    /// `None` where the recipe names no op that exists.
    pub op: Option<Shared<OpInfo>>,
    pub own: HashMap<String, DefId>,
    /// The same, in the order written.
    pub own_order: Vec<DefId>,
    /// Keys that are not parameters: inputs, and mistakes.
    pub inputs: Vec<(&'a Key, &'a Value)>,
    pub params: Vec<(&'a Key, &'a Value)>,
    /// `seed`, `pin_device`, `resources`.
    pub settings: Vec<(&'a Key, &'a Value)>,
}

/// `name` and `about`, and a look at the other top-level keys.
pub(super) fn heading(recipe: &Recipe, findings: &mut Findings) -> Heading {
    for (key, value) in recipe.root.iter() {
        match key.text.as_str() {
            "name" | "about" => {
                text(value, &format!("`{}`", key.text), findings);
            }
            "vars" | "matrix" | "step" | "profile" => {
                section(recipe, &key.text, findings);
            }
            "extends" => {}
            other => {
                let d = Diagnostic::new("unknown-key", format!("unknown key `{other}` at the top of the recipe"))
                    .at(&key.span, "not known here");
                let help = match nearest(other, TOP) {
                    Some(near) => format!("there is a key `{near}`"),
                    None => format!("the keys are {}", listed(TOP, "and")),
                };
                findings.push(d.help(help));
            }
        }
    }
    let given = |key| recipe.root.get(key).and_then(Value::as_str).map(str::to_owned);
    Heading {
        name: given("name").unwrap_or_else(|| recipe.path.file_stem().unwrap_or("recipe").to_owned()),
        about: given("about").unwrap_or_default(),
    }
}

/// The value as text, or a finding.
pub(super) fn text<'v>(value: &'v Value, name: &str, findings: &mut Findings) -> Option<&'v str> {
    let text = value.as_str();
    if text.is_none() {
        findings.push(
            Diagnostic::new("wrong-type", format!("{name} is {}, expected text", value.type_name()))
                .at(&value.span, "expected text"),
        );
    }
    text
}

fn section<'a>(recipe: &'a Recipe, name: &str, findings: &mut Findings) -> Option<&'a Table> {
    let value = recipe.root.get(name)?;
    let table = value.as_table();
    if table.is_none() {
        findings.push(
            Diagnostic::new("wrong-type", format!("`{name}` is {}, expected a table", value.type_name()))
                .at(&value.span, "expected a table")
                .help(format!("write `[{name}]` above its keys")),
        );
    }
    table
}

/// Variables and the matrix.
pub(super) fn world<'a>(recipe: &'a Recipe, findings: &mut Findings) -> World<'a> {
    let table = |name| recipe.root.get(name).and_then(Value::as_table);
    let mut world = World {
        sources: &recipe.sources,
        vars: Table::default(),
        matrix: HashMap::new(),
        defs: Vec::new(),
        axes: Axes::default(),
    };
    for (key, value) in table("vars").into_iter().flat_map(Table::iter) {
        named(key, "a variable", findings);
        world.vars.insert(key.clone(), value.clone());
    }
    for (key, value) in table("matrix").into_iter().flat_map(Table::iter) {
        if let Some(def) = axis(&mut world, key, value, findings) {
            world.matrix.insert(key.text.clone(), def);
        }
    }
    world
}

fn named(key: &Key, what: &str, findings: &mut Findings) {
    if !is_variable(&key.text) {
        findings.push(
            Diagnostic::new("bad-name", format!("`{}` cannot be the name of {what}", key.text))
                .at(&key.span, "expected a letter, then letters, digits, `_` and `-`"),
        );
    }
}

/// One axis: a list, whose labels are its values' texts, or a table of named values.
fn axis(world: &mut World<'_>, key: &Key, value: &Value, findings: &mut Findings) -> Option<DefId> {
    named(key, "an axis", findings);
    if let Some((var, _)) = world.vars.entry(&key.text) {
        findings.push(
            Diagnostic::new("duplicate", format!("`{}` is both a variable and an axis", key.text))
                .at(&key.span, "an axis here")
                .related(&var.span, "a variable here"),
        );
    }
    // An axis may be a list that a variable holds.
    let mut value = value;
    let held;
    if let Some(name) = value.as_str().and_then(|text| text.strip_prefix('$'))
        && let Some(list) = world.vars.get(name)
    {
        held = list.clone();
        value = &held;
    }
    let id = world.axes.intern(&key.text);
    let mut values = Vec::new();
    let mut seen: HashMap<String, crate::graph::Span> = HashMap::new();
    let mut put = |world: &mut World<'_>, label: String, at: &crate::graph::Span, value: &Value| {
        if let Some(first) = seen.get(&label) {
            findings.push(
                Diagnostic::new("duplicate", format!("axis `{}` has the label `{label}` twice", key.text))
                    .at(at, "again here")
                    .related(first, "first here")
                    .help(format!("name the values: `{} = {{ one = .., other = .. }}`", key.text)),
            );
            return;
        }
        seen.insert(label.clone(), at.clone());
        values.push((world.axes.intern_label(id, &label), value.clone()));
    };
    let mut bad = Vec::new();
    match &value.data {
        Data::Array(items) => {
            for item in items {
                match label(item) {
                    Some(label) => put(world, label, &item.span, item),
                    None => bad.push(
                        Diagnostic::new(
                            "unnamed-value",
                            format!("axis `{}` has {} in its list, which gives no label", key.text, item.type_name()),
                        )
                        .at(&item.span, "needs a name")
                        .help(format!("name the values: `{} = {{ one = .., other = .. }}`", key.text)),
                    ),
                }
            }
        }
        Data::Table(table) => {
            for (name, value) in table.iter() {
                put(world, name.text.clone(), &name.span, value);
            }
        }
        _ => bad.push(
            Diagnostic::new("wrong-type", format!("axis `{}` is {}, expected a list", key.text, value.type_name()))
                .at(&value.span, "expected a list, or a table of named values")
                .help(format!("write `{} = [{}]`", key.text, shown(value))),
        ),
    }
    if values.is_empty() && bad.is_empty() {
        bad.push(
            Diagnostic::new("out-of-range", format!("axis `{}` has no values", key.text))
                .at(&value.span, "expected at least one value"),
        );
    }
    for d in bad {
        findings.push(d);
    }
    if values.is_empty() {
        return None;
    }
    let by_label = values.iter().enumerate().map(|(i, (label, _))| (*label, i)).collect();
    world.defs.push(AxisDef { axis: id, name: key.text.clone(), values, by_label });
    Some(world.defs.len() - 1)
}

fn label(value: &Value) -> Option<String> {
    if let Data::Table(table) = &value.data {
        return path::label(table);
    }
    let text = as_text(value)?;
    Some(if text.starts_with('@') { reference::label(&text) } else { text })
}

fn shown(value: &Value) -> String {
    value.to_json().to_string()
}

/// Every step, in the order written.
pub(super) fn steps<'a>(
    recipe: &'a Recipe,
    registry: &Registry,
    world: &mut World<'a>,
    findings: &mut Findings,
) -> Vec<StepDef<'a>> {
    let mut ops: HashMap<&'static str, Shared<OpInfo>> = HashMap::new();
    let mut steps = Vec::new();
    for (key, value) in recipe.root.get("step").and_then(Value::as_table).into_iter().flat_map(Table::iter) {
        if !reference::is_name(&key.text) {
            findings.push(
                Diagnostic::new("bad-name", format!("`{}` cannot be the name of a step", key.text))
                    .at(&key.span, "expected letters, digits, `_` and `-`"),
            );
            continue;
        }
        let Some(table) = value.as_table() else {
            findings.push(
                Diagnostic::new(
                    "wrong-type",
                    format!("step `{}` is {}, expected a table", key.text, value.type_name()),
                )
                .at(&value.span, "expected a table")
                .help(format!("write `[step.{}]` and its keys below", key.text)),
            );
            continue;
        };
        let op = op(key, table, registry, &mut ops, findings);
        let mut step = StepDef {
            name: &key.text,
            key,
            table,
            op,
            own: HashMap::new(),
            own_order: Vec::new(),
            inputs: Vec::new(),
            params: Vec::new(),
            settings: Vec::new(),
        };
        sort_keys(&mut step, world, findings);
        steps.push(step);
    }
    if steps.is_empty() && findings.is_empty() {
        findings.push(
            Diagnostic::new("no-steps", "the recipe has no step")
                .help("write `[step.NAME]` with `op = \"...\"` below it"),
        );
    }
    steps
}

fn sort_keys<'a>(step: &mut StepDef<'a>, world: &mut World<'a>, findings: &mut Findings) {
    for (key, value) in step.table.iter() {
        match key.text.as_str() {
            "op" => {}
            "about" => {
                text(value, &format!("`about` of step `{}`", step.name), findings);
            }
            "each" => match value.as_table() {
                Some(axes) => {
                    for (name, values) in axes.iter() {
                        if let Some(def) = axis(world, name, values, findings) {
                            step.own.insert(name.text.clone(), def);
                            step.own_order.push(def);
                        }
                    }
                }
                None => findings.push(
                    Diagnostic::new(
                        "wrong-type",
                        format!("`each` of step `{}` is {}, expected a table", step.name, value.type_name()),
                    )
                    .at(&value.span, "expected a table of axes")
                    .help("write `each = { axis = [..] }`"),
                ),
            },
            name if RESERVED.contains(&name) => step.settings.push((key, value)),
            name => {
                let properties = step.op.as_ref().and_then(|op| op.schema.get("properties")?.as_object());
                if properties.is_some_and(|p| p.contains_key(name)) {
                    step.params.push((key, value));
                } else {
                    step.inputs.push((key, value));
                }
            }
        }
    }
}

fn op(
    key: &Key,
    table: &Table,
    registry: &Registry,
    ops: &mut HashMap<&'static str, Shared<OpInfo>>,
    findings: &mut Findings,
) -> Option<Shared<OpInfo>> {
    let Some(value) = table.get("op") else {
        findings.push(
            Diagnostic::new("missing-parameter", format!("step `{}` has no `op`", key.text))
                .at(&key.span, "`op` is missing")
                .help(format!("the ops are {}", listed(registry.names(), "and"))),
        );
        return None;
    };
    let name = text(value, &format!("`op` of step `{}`", key.text), findings)?;
    let Some(op) = registry.get(name) else {
        let help = match nearest(name, registry.names()) {
            Some(near) => format!("there is an op `{near}`"),
            None => format!("the ops are {}", listed(registry.names(), "and")),
        };
        findings.push(
            Diagnostic::new("unknown-op", format!("step `{}` runs the unknown op `{name}`", key.text))
                .at(&value.span, "no op has this name")
                .help(help),
        );
        return None;
    };
    let info = ops.entry(op.name()).or_insert_with(|| {
        let schema = op.schema();
        let validator = jsonschema::validator_for(&schema).ok();
        Shared::new(OpInfo { op: Arc::clone(op), schema, validator })
    });
    Some(Shared::clone(info))
}

/// Looks at every variable, used or not: names that nothing defines, definitions that run in a circle.
pub(super) fn check_vars(world: &World<'_>, steps: &[StepDef<'_>], findings: &mut Findings) {
    let axes: HashSet<&str> = world.defs.iter().map(|def| def.name.as_str()).collect();
    let (none, no_axes, nowhere) = (HashMap::new(), AxisDefs::new(), Vec::new());
    let scope = Scope::new(world, &none, &no_axes, &nowhere);
    for (_, value) in world.vars.iter() {
        mentions(world, value, &mut |name, at| {
            if world.vars.get(name).is_none() && !axes.contains(name) {
                findings.push(undefined(world, steps, name, at));
            }
        });
        if let Err(Miss::Bad(d)) = scope.eval(value) {
            findings.push(*d);
        }
    }
}

/// Calls `found` with every name that a value's texts mention, not looking into what they mean.
fn mentions(world: &World<'_>, value: &Value, found: &mut dyn FnMut(&str, &Value)) {
    match &value.data {
        Data::String(text) => {
            if let Ok(template) = parsed(world.sources, value, text) {
                template.names().into_iter().for_each(|name| found(name, value));
            }
        }
        Data::Array(items) => items.iter().for_each(|item| mentions(world, item, found)),
        Data::Table(table) => table.iter().for_each(|(_, value)| mentions(world, value, found)),
        _ => {}
    }
}

/// The finding for a name that nothing defines.
pub(super) fn undefined(world: &World<'_>, steps: &[StepDef<'_>], name: &str, at: &Value) -> Diagnostic {
    let mut known: BTreeMap<&str, ()> = world.vars.keys().map(|k| (k, ())).collect();
    known.extend(world.defs.iter().map(|def| (def.name.as_str(), ())));
    let d = Diagnostic::new("undefined-variable", format!("variable `{name}` is not defined"));
    let d = super::check::at(d, at, "neither in `[vars]` nor an axis".to_owned());
    let help = match nearest(name, known.keys().copied()) {
        Some(near) if near == name => {
            let owners = steps.iter().filter(|step| step.own.contains_key(name)).map(|step| step.name);
            format!("`{name}` is an axis of {}, which this step does not follow", listed(owners, "and"))
        }
        Some(near) => format!("there is a variable `{near}`"),
        None if known.is_empty() => "write `$$` for a dollar sign".to_owned(),
        None => format!("defined are {}", listed(known.keys().copied(), "and")),
    };
    d.help(help)
}
