//! What a variable means in a step: look-up, substitution, and which steps a text can name.
//!
//! Order of look-up: the step's own axes, the matrix, `[vars]`, then axes inherited from inputs. Invariants: what a
//! variable supplies stands where it is mentioned, and remembers where it was defined; a definition that comes back to
//! itself is found by name, never by running out of stack.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::axis::{Axes, AxisDef, AxisId, Point, label_at};
use super::template::{self, Part, Template};
use crate::diagnostic::Diagnostic;
use crate::graph::Span;
use crate::recipe::{Data, Key, Table, Value};
use crate::source::Sources;

/// Index of an axis definition.
pub(super) type DefId = usize;
/// The axes of a step's variants, each with every definition its labels can come from.
pub(super) type AxisDefs = BTreeMap<AxisId, BTreeSet<DefId>>;

/// What the whole recipe defines.
pub(super) struct World<'a> {
    pub sources: &'a Sources,
    pub vars: Table,
    pub matrix: HashMap<String, DefId>,
    pub defs: Vec<AxisDef>,
    pub axes: Axes,
}

/// Why a value is not there.
pub(super) enum Miss {
    /// The step must first be multiplied by this axis of the matrix.
    Axis(AxisId),
    /// No such variable here: an inherited axis, or a mistake.
    Unknown { name: String, span: Span },
    /// The recipe is wrong.
    Bad(Box<Diagnostic>),
}

/// One step at one point.
pub(super) struct Scope<'w, 'a> {
    pub world: &'w World<'a>,
    pub own: &'w HashMap<String, DefId>,
    pub inherited: &'w AxisDefs,
    pub point: &'w Point,
    /// Names being looked up, to see a circle.
    stack: RefCell<Vec<String>>,
}

impl<'w, 'a> Scope<'w, 'a> {
    pub(super) fn new(
        world: &'w World<'a>,
        own: &'w HashMap<String, DefId>,
        inherited: &'w AxisDefs,
        point: &'w Point,
    ) -> Self {
        Scope { world, own, inherited, point, stack: RefCell::new(Vec::new()) }
    }

    /// The value with every variable replaced.
    pub(super) fn eval(&self, value: &Value) -> Result<Value, Miss> {
        let data = match &value.data {
            Data::String(text) => return self.eval_text(value, text),
            Data::Array(items) => Data::Array(items.iter().map(|v| self.eval(v)).collect::<Result<_, _>>()?),
            Data::Table(table) => {
                let entries = table.iter().map(|(k, v)| Ok((k.clone(), self.eval(v)?)));
                Data::Table(entries.collect::<Result<Table, Miss>>()?)
            }
            other => other.clone(),
        };
        Ok(Value { span: value.span.clone(), via: value.via.clone(), data })
    }

    fn eval_text(&self, value: &Value, text: &str) -> Result<Value, Miss> {
        match parsed(self.world.sources, value, text)? {
            Template::Plain(text) => {
                Ok(Value { span: value.span.clone(), via: value.via.clone(), data: Data::String(text) })
            }
            Template::Whole(name) => {
                let supplied = self.look_up(&name, &value.span)?;
                Ok(moved(supplied, &value.span, &name))
            }
            Template::Parts(parts) => {
                let mut out = String::new();
                let mut via = Vec::new();
                for part in parts {
                    match part {
                        Part::Text(text) => out.push_str(&text),
                        Part::Name(name) => {
                            let supplied = self.look_up(&name, &value.span)?;
                            out.push_str(&as_text(&supplied).ok_or_else(|| {
                                let message =
                                    format!("`{name}` is {}, which cannot be part of a text", supplied.type_name());
                                Miss::Bad(Box::new(
                                    Diagnostic::new("wrong-type", message)
                                        .at(&value.span, format!("`${{{name}}}` stands inside text"))
                                        .related(&supplied.span, format!("`{name}` is defined here"))
                                        .help(format!("`\"${name}\"` alone is the whole value")),
                                ))
                            })?);
                            via.push((name, supplied.span.clone()));
                        }
                    }
                }
                Ok(Value { span: value.span.clone(), via: Some(Arc::new(via)), data: Data::String(out) })
            }
        }
    }

    fn look_up(&self, name: &str, used: &Span) -> Result<Value, Miss> {
        let found = self.definition(name, used)?;
        self.guarded(name, found, |value| self.eval(value))
    }

    /// Runs `visit` on a definition unless that definition is being visited already.
    fn guarded<T>(
        &self,
        name: &str,
        found: &'w Value,
        visit: impl FnOnce(&'w Value) -> Result<T, Miss>,
    ) -> Result<T, Miss> {
        if let Some(first) = self.stack.borrow().iter().position(|n| n == name) {
            let mut names: Vec<String> = self.stack.borrow()[first..].to_vec();
            // The same circle is the same finding, wherever it was entered.
            let least = (0..names.len()).min_by_key(|i| &names[*i]).unwrap_or(0);
            names.rotate_left(least);
            names.push(names[0].clone());
            let message = format!("variable `{}` is defined by itself: {}", names[0], names.join(" -> "));
            let span = self.world.vars.get(&names[0]).map_or(&found.span, |value| &value.span);
            return Err(Miss::Bad(Box::new(Diagnostic::new("cycle", message).at(span, "comes back to itself"))));
        }
        self.stack.borrow_mut().push(name.to_owned());
        let result = visit(found);
        self.stack.borrow_mut().pop();
        result
    }

    fn definition(&self, name: &str, used: &Span) -> Result<&'w Value, Miss> {
        let world = self.world;
        for def in [self.own.get(name), world.matrix.get(name)].into_iter().flatten() {
            let def = &world.defs[*def];
            match label_at(self.point, def.axis) {
                None => return Err(Miss::Axis(def.axis)),
                // A label the definition does not have is another step's, inherited.
                Some(label) => {
                    if let Some(value) = def.value(label) {
                        return Ok(value);
                    }
                }
            }
        }
        if let Some(value) = world.vars.get(name) {
            return Ok(value);
        }
        self.inherited_value(name, used)?.ok_or_else(|| Miss::Unknown { name: name.to_owned(), span: used.clone() })
    }

    fn inherited_value(&self, name: &str, used: &Span) -> Result<Option<&'w Value>, Miss> {
        let Some(axis) = self.world.axes.find(name) else { return Ok(None) };
        let (Some(label), Some(defs)) = (label_at(self.point, axis), self.inherited.get(&axis)) else {
            return Ok(None);
        };
        let mut values = defs.iter().filter_map(|def| self.world.defs[*def].value(label));
        let Some(first) = values.next() else { return Ok(None) };
        if let Some(other) = values.find(|other| !other.same(first)) {
            let label = self.world.axes.label(axis, label);
            let message = format!("`{label}` on axis `{name}` means two things to this step's inputs");
            return Err(Miss::Bad(Box::new(
                Diagnostic::new("ambiguous-axis", message)
                    .at(used, format!("which `${name}`?"))
                    .related(&first.span, "this one")
                    .related(&other.span, "or this one")
                    .help("give one of the axes another name"),
            )));
        }
        Ok(Some(first))
    }

    /// Calls `found` with the name of every step that `value` can refer to, over all points.
    pub(super) fn heads(&self, value: &'w Value, found: &mut dyn FnMut(&str)) -> Result<(), Miss> {
        match &value.data {
            Data::Array(items) => items.iter().try_for_each(|item| self.heads(item, found)),
            Data::String(text) => match parsed(self.world.sources, value, text)? {
                Template::Plain(text) => {
                    head(&text, found);
                    Ok(())
                }
                Template::Whole(name) => self.every(&name, &mut |v| self.guarded(&name, v, |v| self.heads(v, found))),
                Template::Parts(parts) => {
                    let mut texts = vec![String::new()];
                    for part in &parts {
                        // Behind a dot or a bracket the step's name is complete.
                        if texts.iter().all(|t| !t.is_empty() && (!t.starts_with('@') || t.contains(['.', '[']))) {
                            break;
                        }
                        match part {
                            Part::Text(text) => texts.iter_mut().for_each(|t| t.push_str(text)),
                            Part::Name(name) => {
                                let mut longer = BTreeSet::new();
                                self.every(name, &mut |v| {
                                    self.guarded(name, v, |v| {
                                        self.texts(v, &mut |end| {
                                            longer.extend(texts.iter().map(|t| format!("{t}{end}")));
                                        })
                                    })
                                })?;
                                texts = longer.into_iter().take(MANY_TEXTS).collect();
                            }
                        }
                    }
                    texts.iter().for_each(|text| head(text, found));
                    Ok(())
                }
            },
            _ => Ok(()),
        }
    }

    /// Every text that a scalar can be, over all points.
    fn texts(&self, value: &'w Value, found: &mut dyn FnMut(&str)) -> Result<(), Miss> {
        let Data::String(text) = &value.data else {
            if let Some(text) = as_text(value) {
                found(&text);
            }
            return Ok(());
        };
        match parsed(self.world.sources, value, text)? {
            Template::Plain(text) => {
                found(&text);
                Ok(())
            }
            Template::Whole(name) => self.every(&name, &mut |v| self.guarded(&name, v, |v| self.texts(v, found))),
            // Text made of text made of text: left to the run over the points, which sees it as an unknown order.
            Template::Parts(_) => Ok(()),
        }
    }

    /// Calls `visit` with every value that a name can have, over all points.
    fn every(&self, name: &str, visit: &mut dyn FnMut(&'w Value) -> Result<(), Miss>) -> Result<(), Miss> {
        if let Some(def) = self.own.get(name).or_else(|| self.world.matrix.get(name)) {
            return self.world.defs[*def].values.iter().try_for_each(|(_, value)| visit(value));
        }
        match self.world.vars.get(name) {
            Some(value) => visit(value),
            None => Ok(()),
        }
    }
}

/// No sane recipe puts one reference together in more ways.
const MANY_TEXTS: usize = 4096;

fn head(text: &str, found: &mut dyn FnMut(&str)) {
    if let Some(rest) = text.strip_prefix('@') {
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        found(&rest[..end]);
    }
}

/// The text taken apart.
pub(super) fn parsed(sources: &Sources, value: &Value, text: &str) -> Result<Template, Miss> {
    template::parse(text).map_err(|bad| {
        let message = format!("`{text}` has a `$` that is no variable");
        Miss::Bad(Box::new(
            Diagnostic::new("bad-variable", message).at(&within(sources, value, bad.bytes), bad.expected),
        ))
    })
}

/// The place of a part of a text value; of the whole value where escapes make that uncertain.
pub(super) fn within(sources: &Sources, value: &Value, part: std::ops::Range<usize>) -> Span {
    let whole = &value.span;
    let raw = sources.get(whole.source).text.get(whole.bytes.clone()).unwrap_or("");
    let Some(text) = value.as_str() else { return whole.clone() };
    let quote = usize::from(raw.starts_with(['"', '\'']));
    if value.via.is_none() && raw.get(quote..raw.len().saturating_sub(quote)) == Some(text) {
        let start = whole.bytes.start + quote;
        Span { source: whole.source, bytes: start + part.start..start + part.end }
    } else {
        whole.clone()
    }
}

/// A scalar as text.
pub(super) fn as_text(value: &Value) -> Option<String> {
    match &value.data {
        Data::String(text) | Data::Datetime(text) => Some(text.clone()),
        Data::Integer(_) | Data::Float(_) | Data::Boolean(_) => Some(value.to_json().to_string()),
        Data::Array(_) | Data::Table(_) => None,
    }
}

/// The value as if written at `used`, remembering that `name` supplied it.
fn moved(value: Value, used: &Span, name: &str) -> Value {
    let via = |span: &Span, before: &crate::recipe::Via| {
        let mut chain = vec![(name.to_owned(), span.clone())];
        chain.extend(before.iter().flat_map(|chain| chain.iter().cloned()));
        Some(Arc::new(chain))
    };
    let data = match value.data {
        Data::Array(items) => Data::Array(items.into_iter().map(|v| moved(v, used, name)).collect()),
        Data::Table(table) => Data::Table(
            table
                .iter()
                .map(|(k, v)| {
                    let key = Key { text: k.text.clone(), span: used.clone(), via: via(&k.span, &k.via) };
                    (key, moved(v.clone(), used, name))
                })
                .collect(),
        ),
        scalar => scalar,
    };
    Value { via: via(&value.span, &value.via), span: used.clone(), data }
}
