//! A step's parameters at one point: evaluated, checked, in canonical form, and the ports that follow from them.
//!
//! Invariant: canonical parameters come from the op's own type, so `1e-1` and `0.1`, or a default written out and one
//! left out, are the same value.

use serde_json::Value as Json;

use super::check::{Checker, at, via};
use super::define::{OpInfo, StepDef};
use super::describe::lookup;
use crate::diagnostic::Diagnostic;
use crate::graph::Span;
use crate::op::{Ports, Problem, Resources};
use crate::recipe::{Data, Key, Table, Value};

/// Parameters after the check.
pub(super) struct Typed {
    /// `None` where something was reported.
    params: Option<Json>,
    /// Ports for the parameters; with wrong ones left out where that works, else `None`.
    pub ports: Option<Ports>,
}

impl Typed {
    pub(super) fn settled(&self) -> Option<(&Json, &Ports)> {
        Some((self.params.as_ref()?, self.ports.as_ref()?))
    }
}

/// Checks the parameters of a step. Those in `absent` are written, but what they say is not known.
pub(super) fn check(step: &StepDef<'_>, info: &OpInfo, table: &Table, absent: &[String]) -> (Typed, Vec<Diagnostic>) {
    let mut checker = Checker::new(&info.schema, format!("step `{}`", step.name));
    // Keys that are surely no inputs, and so misspelt parameters.
    let strays = step.inputs.iter().filter(|(_, v)| !may_refer(v)).map(|(key, _)| key.text.as_str());
    checker.parameters(&info.schema, table, step.key, strays.chain(absent.iter().map(String::as_str)).collect());
    let whole = absent.is_empty() && !checker.misspelt;
    let mut found = checker.into_found();
    let json = json(table);
    if whole
        && found.is_empty()
        && let Some(error) = info.validator.as_ref().and_then(|v| v.iter_errors(&json).next())
    {
        let path: Vec<String> = error.instance_path().as_str().split('/').skip(1).map(str::to_owned).collect();
        found.push(problem(step, table, &Problem { path, message: error.to_string(), help: None }));
    }
    if whole && found.is_empty() {
        match info.op.canonical(&json) {
            Ok(params) => {
                found.extend(info.op.check(&params).iter().map(|p| problem(step, table, p)));
                let ports = info.op.ports(&params);
                return (Typed { params: found.is_empty().then_some(params), ports: Some(ports) }, found);
            }
            Err(error) => found.push(refused(step, table, &error)),
        }
    }
    // Ports are still wanted, to tell inputs from mistakes: try without what is wrong, and with the plainest values
    // for what must be there.
    let bad: Vec<&Span> = found.iter().filter_map(|d| d.primary.as_ref().map(|(span, _)| span)).collect();
    let mut sound = match crate::schema::example(&info.schema, &info.schema) {
        Json::Object(sound) => sound,
        _ => serde_json::Map::new(),
    };
    for (key, value) in table.iter() {
        if !bad.iter().any(|span| span.within(&value.span)) {
            sound.insert(key.text.clone(), value.to_json());
        }
    }
    let ports = info.op.canonical(&Json::Object(sound)).ok().map(|params| info.op.ports(&params));
    (Typed { params: None, ports }, found)
}

/// `resources` of a step.
pub(super) fn resources(step: &StepDef<'_>, value: &Value) -> (Option<Resources>, Vec<Diagnostic>) {
    let schema = schemars::schema_for!(Resources).to_value();
    let mut checker = Checker::new(&schema, format!("step `{}`", step.name));
    checker.value(&schema, value, &mut vec!["resources".to_owned()]);
    let found = checker.into_found();
    let resources = if found.is_empty() { serde_json::from_value(value.to_json()).ok() } else { None };
    (resources, found)
}

/// Whether a key that is no parameter may be meant as an input.
fn may_refer(value: &Value) -> bool {
    match &value.data {
        Data::String(text) => text.contains(['@', '$']),
        Data::Array(_) => true,
        _ => false,
    }
}

fn json(table: &Table) -> Json {
    Json::Object(table.iter().map(|(key, value)| (key.text.clone(), value.to_json())).collect())
}

/// A finding of the op itself, put where its path leads.
pub(super) fn problem(step: &StepDef<'_>, table: &Table, problem: &Problem) -> Diagnostic {
    let message = match problem.path.as_slice() {
        [] => format!("step `{}`: {}", step.name, problem.message),
        path => format!("`{}` of step `{}`: {}", path.join("."), step.name, problem.message),
    };
    let d = Diagnostic::new("bad-parameter", message).help_opt(problem.help.clone());
    match find(table, &problem.path) {
        Some(Found::Value(value)) => at(d, value, "not allowed here".to_owned()),
        Some(Found::Key(key)) => via(d.at(&key.span, "in this table"), &key.via),
        None => d.at(&step.key.span, "in this step"),
    }
}

/// What serde said no to. It names the field in backticks, if anything.
fn refused(step: &StepDef<'_>, table: &Table, error: &str) -> Diagnostic {
    let d = Diagnostic::new("bad-parameter", format!("parameters of step `{}` do not fit: {error}", step.name));
    let named = error.split('`').skip(1).step_by(2).find_map(|name| table.get(name));
    match named {
        Some(value) => at(d, value, "not allowed here".to_owned()),
        None => d.at(&step.key.span, "in this step"),
    }
}

enum Found<'t> {
    Value(&'t Value),
    /// The path goes on to something that is not written; the table it would be in.
    Key(&'t Key),
}

fn find<'t>(table: &'t Table, path: &[String]) -> Option<Found<'t>> {
    let (first, rest) = path.split_first()?;
    let (mut key, mut value) = table.entry(first)?;
    for name in rest {
        match &value.data {
            Data::Table(inner) => match inner.entry(name) {
                Some(found) => (key, value) = found,
                None => return Some(Found::Key(key)),
            },
            Data::Array(items) => match name.parse::<usize>().ok().and_then(|i| items.get(i)) {
                Some(item) => value = item,
                None => return Some(Found::Value(value)),
            },
            _ => return Some(Found::Value(value)),
        }
    }
    Some(Found::Value(value))
}

/// Every name that a key of a step can have.
pub(super) fn known<'n>(info: &'n OpInfo, ports: Option<&'n Ports>) -> Vec<&'n str> {
    let mut known = parameter_names(&info.schema);
    known.extend(super::RESERVED);
    known.extend(ports.iter().flat_map(|p| p.inputs.iter().map(|port| port.name)));
    known
}

/// Names of an op's parameters.
pub(super) fn parameter_names(schema: &Json) -> Vec<&str> {
    let schema = schema.get("$ref").and_then(Json::as_str).and_then(|t| lookup(schema, t)).unwrap_or(schema);
    schema.get("properties").and_then(Json::as_object).map_or(Vec::new(), |p| p.keys().map(String::as_str).collect())
}
