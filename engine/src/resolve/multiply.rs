//! The variants of one step, and what feeds each of them.
//!
//! 1. cross the step's own axes, and split by axes of the matrix that its keys mention;
//! 2. join the variants of its inputs;
//! 3. do the same for keys that mention inherited axes, known only now;
//! 4. type the parameters of each variant and hold its inputs against the ports.
//!
//! Invariant: a step that something is wrong with (`tainted`) still has variants, so that its followers are checked too,
//! but is not a ground to complain about them.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use super::axis::{AxisId, Point, join, label_at, refine, with};
use super::check::at;
use super::define::{StepDef, undefined};
use super::params::Typed;
use super::path;
use super::reference::{self, Reference};
use super::scope::{AxisDefs, Miss, Scope, within};
use super::{MOST_EDGES, MOST_VARIANTS, Resolver};
use crate::diagnostic::{Diagnostic, listed, nearest};
use crate::graph::Outside;
use crate::recipe::{Data, Value};
use crate::source::Sources;

/// A resolved step.
pub(super) struct Done {
    pub variants: Vec<Variant>,
    pub axes: AxisDefs,
    pub tainted: bool,
}

pub(super) struct Variant {
    pub point: Point,
    /// `None` where the op is not known.
    pub typed: Option<Rc<Typed>>,
    pub fed: Vec<Fed>,
    pub seed: u64,
    pub pin_device: bool,
    pub resources: Occupied,
}

impl Variant {
    /// Whether it is the same work, whatever its labels are.
    fn equals(&self, other: &Variant) -> bool {
        let typed = match (&self.typed, &other.typed) {
            (Some(a), Some(b)) => Rc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        // what is wrong at an input is said already
        let sound = |v: &Variant| {
            v.fed.iter().all(|fed| fed.refs.pure && fed.refs.items.iter().all(|(_, item)| item.is_sound()))
        };
        let picks = |v: &Variant| v.fed.iter().map(|fed| (fed.key, fed.picks.clone())).collect::<Vec<_>>();
        typed
            && sound(self)
            && sound(other)
            && (self.seed, self.pin_device, &self.resources) == (other.seed, other.pin_device, &other.resources)
            && picks(self) == picks(other)
    }
}

/// What one key of a step brings in.
#[derive(Clone)]
pub(super) struct Fed {
    /// Index into [`StepDef::inputs`].
    pub key: usize,
    /// The references, as evaluated.
    pub refs: Rc<Refs>,
    /// One for each reference; what it stands for.
    pub picks: Vec<Rc<[Pick]>>,
}

/// One artifact that feeds.
#[derive(Clone, PartialEq)]
pub(super) enum Pick {
    /// An output of one variant.
    Step { step: usize, variant: usize, output: Rc<str> },
    /// Something that is there already.
    Outside(Rc<Outside>),
}

/// The value of an input key.
pub(super) struct Refs {
    pub whole: Value,
    pub list: bool,
    /// Nothing in it but references and paths, or what wants to be one.
    pub pure: bool,
    pub items: Vec<(Value, Item)>,
}

/// One thing written at an input.
pub(super) enum Item {
    Step(Reference),
    Outside(Rc<Outside>),
    /// Text that begins as a reference and is none, and what was expected.
    NoReference(String),
    NoPath(Box<Diagnostic>),
}

impl Item {
    /// Whether it stands for artifacts.
    pub(super) fn is_sound(&self) -> bool {
        matches!(self, Item::Step(_) | Item::Outside(_))
    }
}

/// What a recipe says that a step occupies; the rest is the op's.
#[derive(Clone, Copy, Default, PartialEq)]
pub(super) struct Occupied {
    pub cpu: Option<u32>,
    pub gpu: Option<u32>,
}

/// A variant in the making.
#[derive(Clone)]
pub(super) struct Row {
    pub point: Point,
    /// Which combination of own labels it came from.
    own: usize,
    pub fed: Vec<Fed>,
}

impl Resolver<'_, '_> {
    pub(super) fn step(&mut self, index: usize) {
        let step = &self.steps[index];
        let mut axes = AxisDefs::new();
        let mut tainted = false;
        let Some(mut rows) = self.own_points(step, &mut axes) else { return self.explode(index) };
        let mut pending: Vec<usize> = (0..step.inputs.len()).collect();
        for last in [false, true] {
            // What is inherited is known in the second pass only; the first leaves keys that need it.
            let inherited = if last { axes.clone() } else { AxisDefs::new() };
            let probed: Vec<&Value> = pending
                .iter()
                .map(|&k| step.inputs[k].1)
                .chain(step.params.iter().chain(&step.settings).map(|(_, v)| *v))
                .collect();
            let Some(split) = self.split(step, rows, &probed, &inherited, &mut axes) else {
                return self.explode(index);
            };
            rows = split;
            for key in std::mem::take(&mut pending) {
                match self.feed_key(index, key, rows, &inherited, last, &mut axes, &mut tainted) {
                    Ok((fed, waits)) => {
                        rows = fed;
                        if waits {
                            pending.push(key);
                        }
                    }
                    Err(TooMany) => return self.explode(index),
                }
            }
        }
        rows.sort_by(|a, b| a.point.cmp(&b.point));
        self.variants += rows.len();
        if self.variants > MOST_VARIANTS {
            return self.explode(index);
        }
        let variants = self.finish(index, rows, &axes, &mut tainted);
        if !tainted {
            self.axes_are_used(index, &variants);
        }
        self.done[index] = Some(Done { variants, axes, tainted });
    }

    /// Says of each of the step's own axes with several labels that something depends on it.
    fn axes_are_used(&mut self, index: usize, variants: &[Variant]) {
        let step = &self.steps[index];
        for &def in &step.own_order {
            let axis = &self.world.defs[def];
            let mut first: HashMap<Point, &Variant> = HashMap::new();
            let used = variants.iter().any(|variant| {
                let rest = variant.point.iter().filter(|(a, _)| *a != axis.axis).copied().collect();
                !first.entry(rest).or_insert(variant).equals(variant)
            });
            // labels that bring in axes of their own have variants of their own
            let all = variants.len() == first.len() * axis.values.len();
            if used || !all || axis.values.len() < 2 {
                continue;
            }
            let (name, place) = (&axis.name, axis.values[0].1.clone());
            let d =
                Diagnostic::new("unused-axis", format!("nothing of step `{}` depends on its axis `{name}`", step.name));
            let d = at(d, &place, "every label means the same".to_owned());
            self.report(d.help(format!("write `\"${name}\"` where its values belong, or leave the axis out")));
        }
    }

    /// Every combination of the step's own labels.
    fn own_points(&self, step: &StepDef<'_>, axes: &mut AxisDefs) -> Option<Vec<Row>> {
        let mut points = vec![Point::new()];
        for &def in &step.own_order {
            let axis = &self.world.defs[def];
            if points.len().saturating_mul(axis.values.len()) > MOST_VARIANTS {
                return None;
            }
            axes.entry(axis.axis).or_default().insert(def);
            points = points
                .iter()
                .flat_map(|p| axis.values.iter().map(|(label, _)| with(p, axis.axis, *label)).collect::<Vec<_>>())
                .collect();
        }
        Some(points.into_iter().enumerate().map(|(own, point)| Row { point, own, fed: Vec::new() }).collect())
    }

    /// Splits rows by every axis of the matrix that the values mention.
    fn split(
        &self,
        step: &StepDef<'_>,
        rows: Vec<Row>,
        values: &[&Value],
        inherited: &AxisDefs,
        axes: &mut AxisDefs,
    ) -> Option<Vec<Row>> {
        let mut out = Vec::with_capacity(rows.len());
        let mut open = rows;
        open.reverse();
        while let Some(row) = open.pop() {
            let scope = Scope::new(self.world, &step.own, inherited, &row.point);
            let wanted = values.iter().find_map(|value| match scope.eval(value) {
                Err(Miss::Axis(axis)) => Some(axis),
                _ => None,
            });
            let Some(axis) = wanted else {
                out.push(row);
                continue;
            };
            let name = self.world.axes.name(axis);
            let Some(&def) = self.world.matrix.get(name) else { panic!("BUG: `{name}` is no axis of the matrix") };
            axes.entry(axis).or_default().insert(def);
            for (label, _) in self.world.defs[def].values.iter().rev() {
                open.push(Row { point: with(&row.point, axis, *label), ..row.clone() });
            }
            if open.len() + out.len() > MOST_VARIANTS {
                return None;
            }
        }
        Some(out)
    }

    /// Joins what one key refers to. True with it: the key must wait for inherited axes.
    fn feed_key(
        &mut self,
        index: usize,
        key: usize,
        rows: Vec<Row>,
        inherited: &AxisDefs,
        last: bool,
        axes: &mut AxisDefs,
        tainted: &mut bool,
    ) -> Result<(Vec<Row>, bool), TooMany> {
        let step = &self.steps[index];
        let value = step.inputs[key].1;
        // Rows by what the key says there: most often the same everywhere.
        let mut groups: Vec<(Rc<Refs>, Vec<Row>)> = Vec::new();
        let mut by_text: HashMap<String, usize> = HashMap::new();
        let mut out = Vec::new();
        let mut evaluated = Vec::with_capacity(rows.len());
        for row in &rows {
            let scope = Scope::new(self.world, &step.own, inherited, &row.point);
            match scope.eval(value) {
                Err(Miss::Unknown { .. }) if !last => return Ok((rows, true)),
                other => evaluated.push(other),
            }
        }
        for (row, value) in rows.into_iter().zip(evaluated) {
            match value {
                Ok(value) => {
                    let group = *by_text.entry(value.to_json().to_string()).or_insert_with(|| {
                        groups.push((Rc::new(refs(self.world.sources, value)), Vec::new()));
                        groups.len() - 1
                    });
                    groups[group].1.push(row);
                }
                Err(miss) => {
                    self.missed(miss, step.inputs[key].1, *tainted);
                    *tainted = true;
                    out.push(row);
                }
            }
        }
        for (refs, mut rows) in groups {
            for row in &mut rows {
                row.fed.push(Fed { key, refs: Rc::clone(&refs), picks: Vec::new() });
            }
            for (value, item) in &refs.items {
                match item {
                    Item::Step(item) => rows = self.feed(index, rows, value, item, axes, tainted)?,
                    Item::Outside(outside) => {
                        let picks: Rc<[Pick]> = Rc::from([Pick::Outside(Rc::clone(outside))]);
                        rows.iter_mut().for_each(|row| put(row, &picks));
                    }
                    Item::NoReference(_) | Item::NoPath(_) => {}
                }
            }
            out.extend(rows);
        }
        Ok((out, false))
    }

    pub(super) fn missed(&mut self, miss: Miss, at: &Value, tainted: bool) {
        match miss {
            Miss::Bad(d) => self.report(*d),
            Miss::Unknown { name, span } if !tainted => {
                let place = Value { span, ..at.clone() };
                let d = undefined(self.world, self.steps, &name, &place);
                self.report(d);
            }
            // A wrong input may have brought the axis.
            Miss::Unknown { .. } => {}
            Miss::Axis(axis) => panic!("BUG: axis `{}` was never split", self.world.axes.name(axis)),
        }
    }

    /// Joins the variants of one reference to the rows.
    fn feed(
        &mut self,
        index: usize,
        rows: Vec<Row>,
        value: &Value,
        item: &Reference,
        axes: &mut AxisDefs,
        tainted: &mut bool,
    ) -> Result<Vec<Row>, TooMany> {
        let none: Rc<[Pick]> = Rc::from([]);
        let unfed = |mut rows: Vec<Row>| {
            rows.iter_mut().for_each(|row| put(row, &none));
            Ok(rows)
        };
        let Some(&target) = self.by_name.get(item.step.as_str()) else {
            let d = Diagnostic::new("unknown-step", format!("there is no step `{}`", item.step));
            let place = Value { span: within(self.world.sources, value, 0..1 + item.step.len()), ..value.clone() };
            let help = match nearest(&item.step, self.by_name.keys().copied()) {
                Some(near) => format!("there is a step `{near}`"),
                None => format!("the steps are {}", listed(self.steps.iter().map(|s| s.name), "and")),
            };
            self.report(at(d, &place, "no step has this name".to_owned()).help(help));
            *tainted = true;
            return unfed(rows);
        };
        let chosen = match &self.done[target] {
            None => Err(None),
            Some(done) => {
                *tainted |= done.tainted;
                self.choose(target, done, value, item).map_err(Some)
            }
        };
        let chosen = match chosen {
            Ok(chosen) => chosen,
            Err(found) => {
                if let Some(d) = found {
                    self.report(*d);
                }
                *tainted = true;
                return unfed(rows);
            }
        };
        for axis in chosen.iter().flat_map(|(_, point)| point.iter().map(|(axis, _)| *axis)) {
            if let Some(defs) = self.done[target].as_ref().and_then(|done| done.axes.get(&axis)) {
                let known = axes.entry(axis).or_default();
                if !defs.is_subset(known) {
                    known.extend(defs);
                }
            }
        }
        let picks: Vec<Pick> = chosen.iter().map(|(variant, _)| self.pick(target, *variant, item)).collect();
        let budget = MOST_EDGES.saturating_sub(self.edges);
        let points: Vec<&Point> = chosen.iter().map(|(_, point)| point).collect();
        if points.iter().all(|point| point.is_empty()) && (item.collects() || points.len() == 1) {
            let picks: Rc<[Pick]> = picks.into();
            self.edges += picks.len().saturating_mul(rows.len());
            if self.edges > MOST_EDGES {
                return Err(TooMany);
            }
            let mut rows = rows;
            rows.iter_mut().for_each(|row| put(row, &picks));
            return Ok(rows);
        }
        let mut rows = rows;
        if item.collects() {
            let refined = {
                let left: Vec<&Point> = rows.iter().map(|row| &row.point).collect();
                refine(&left, &points, MOST_VARIANTS).ok_or(TooMany)?
            };
            rows = refined.into_iter().map(|(from, point)| Row { point, ..rows[from].clone() }).collect();
        }
        let left: Vec<&Point> = rows.iter().map(|row| &row.point).collect();
        let pairs = join(&left, &points, budget).ok_or(TooMany)?;
        self.edges += pairs.len();
        let mut out = Vec::with_capacity(pairs.len());
        if item.collects() {
            for same_row in pairs.chunk_by(|a, b| a.0 == b.0) {
                let picks: Rc<[Pick]> = same_row.iter().map(|(_, c, _)| picks[*c].clone()).collect();
                let mut row = rows[same_row[0].0].clone();
                put(&mut row, &picks);
                out.push(row);
            }
        } else {
            if pairs.len() > MOST_VARIANTS {
                return Err(TooMany);
            }
            for (row, c, point) in pairs {
                let mut row = Row { point, ..rows[row].clone() };
                put(&mut row, &Rc::from([picks[c].clone()]));
                out.push(row);
            }
        }
        self.lost(index, &rows, &mut out, value, item, &points, tainted);
        Ok(out)
    }

    /// Reports combinations of own labels that have lost every row, and keeps one row of each.
    fn lost(
        &mut self,
        index: usize,
        before: &[Row],
        after: &mut Vec<Row>,
        value: &Value,
        item: &Reference,
        points: &[&Point],
        tainted: &mut bool,
    ) {
        let left: BTreeSet<usize> = after.iter().map(|row| row.own).collect();
        let mut gone = BTreeSet::new();
        // What is wrong further up may be what is missing here.
        let quiet = *tainted;
        for row in before.iter().filter(|row| !left.contains(&row.own)) {
            if !gone.insert(row.own) {
                continue;
            }
            let mut kept = row.clone();
            put(&mut kept, &Rc::from([]));
            after.push(kept);
            if quiet {
                continue;
            }
            let step = &self.steps[index];
            let shared: BTreeSet<AxisId> = points.iter().flat_map(|p| p.iter().map(|(a, _)| *a)).collect();
            let fitting = |axis: AxisId, labels: &mut dyn Iterator<Item = &Point>| -> Vec<String> {
                let labels: BTreeSet<u32> = labels.filter_map(|p| label_at(p, axis)).collect();
                labels.into_iter().map(|l| self.world.axes.label(axis, l).to_owned()).collect()
            };
            let clash = shared.iter().find_map(|&axis| {
                let here = fitting(axis, &mut before.iter().filter(|r| r.own == row.own).map(|r| &r.point));
                let there = fitting(axis, &mut points.iter().copied());
                (!here.is_empty() && !there.is_empty() && here.iter().all(|l| !there.contains(l)))
                    .then_some((axis, here, there))
            });
            let d = match clash {
                Some((axis, here, there)) => {
                    let axis = self.world.axes.name(axis);
                    let strs = |v: &[String]| listed(v.iter().map(String::as_str), "and");
                    Diagnostic::new(
                        "no-variant",
                        format!(
                            "no variant of `{}` fits step `{}`: on axis `{axis}` it has {}, the step has {}",
                            item.step,
                            step.name,
                            strs(&there),
                            strs(&here)
                        ),
                    )
                    .help(format!(
                        "fix the axis, `\"@{}[{axis}={}]\"`, or give one of the axes another name",
                        item.step, there[0]
                    ))
                }
                None => Diagnostic::new(
                    "no-variant",
                    format!(
                        "no variant of `{}` fits step `{}` at {}",
                        item.step,
                        step.name,
                        self.world.axes.show(&row.point)
                    ),
                ),
            };
            self.report(at(d, value, "matched label by label".to_owned()));
            *tainted = true;
        }
    }

    /// The variants of `target` that a reference stands for, without the labels that it fixes or collects.
    fn choose(&self, target: usize, done: &Done, value: &Value, item: &Reference) -> Result<Chosen, Box<Diagnostic>> {
        let axes = &self.world.axes;
        let name = self.steps[target].name;
        let has = |axis: &str| axes.find(axis).filter(|id| done.axes.contains_key(id));
        let known = || done.axes.keys().map(|id| axes.name(*id));
        let unknown_axis = |axis: &str| {
            let d = Diagnostic::new("unknown-axis", format!("step `{name}` has no axis `{axis}`"));
            let help = match nearest(axis, known()) {
                Some(near) => format!("there is an axis `{near}`"),
                None if done.axes.is_empty() => format!("nothing multiplies `{name}`: write `\"@{name}\"`"),
                None => format!("its axes are {}", listed(known(), "and")),
            };
            Box::new(at(d, &self.part(value, axis), "nothing multiplies the step by it".to_owned()).help(help))
        };
        let mut fixed = Vec::new();
        for (axis, label) in &item.fixed {
            let Some(id) = has(axis) else { return Err(unknown_axis(axis)) };
            let labels: BTreeSet<u32> = done.variants.iter().filter_map(|v| label_at(&v.point, id)).collect();
            match axes.find_label(id, label).filter(|l| labels.contains(l)) {
                Some(label) => fixed.push((id, label)),
                None => {
                    let known: Vec<&str> = labels.iter().map(|l| axes.label(id, *l)).collect();
                    let d = Diagnostic::new(
                        "unknown-label",
                        format!("axis `{axis}` of step `{name}` has no label `{label}`"),
                    );
                    let help = match nearest(label, known.iter().copied()) {
                        Some(near) => format!("there is a label `{near}`"),
                        None => format!("its labels are {}", listed(known, "and")),
                    };
                    return Err(Box::new(at(d, &self.part(value, label), "no such label".to_owned()).help(help)));
                }
            }
        }
        let mut collected = BTreeSet::new();
        for axis in &item.collected {
            collected.insert(has(axis).ok_or_else(|| unknown_axis(axis))?);
        }
        let candidates: Vec<(usize, Point)> = done
            .variants
            .iter()
            .enumerate()
            .filter(|(_, v)| fixed.iter().all(|(a, l)| label_at(&v.point, *a).is_none_or(|label| label == *l)))
            .map(|(i, v)| {
                let kept = |a: AxisId| !item.all && !collected.contains(&a) && fixed.iter().all(|(f, _)| *f != a);
                (i, v.point.iter().copied().filter(|(a, _)| kept(*a)).collect())
            })
            .collect();
        if candidates.is_empty() {
            let d = Diagnostic::new("unknown-label", format!("no variant of step `{name}` has all of these labels"));
            return Err(Box::new(at(d, value, "selects nothing".to_owned())));
        }
        Ok(candidates)
    }

    /// The place of a word in a reference.
    pub(super) fn part(&self, value: &Value, word: &str) -> Value {
        let text = value.as_str().unwrap_or("");
        let from = text.find('[').unwrap_or(0);
        match text[from..].find(word) {
            Some(i) => {
                let start = from + i;
                Value { span: within(self.world.sources, value, start..start + word.len()), ..value.clone() }
            }
            None => value.clone(),
        }
    }

    /// One variant as what a reference means; without a port named, its first output.
    fn pick(&self, target: usize, variant: usize, item: &Reference) -> Pick {
        let first = || {
            let ports = self.done[target].as_ref()?.variants[variant].typed.as_ref()?.ports.as_ref()?;
            Some(ports.outputs.first()?.name)
        };
        let output = item.port.as_deref().or_else(first).unwrap_or("");
        Pick::Step { step: target, variant, output: output.into() }
    }
}

struct TooMany;

/// Variants, each with what is left of its point.
type Chosen = Vec<(usize, Point)>;

fn put(row: &mut Row, picks: &Rc<[Pick]>) {
    if let Some(fed) = row.fed.last_mut() {
        fed.picks.push(Rc::clone(picks));
    }
}

/// Reads an evaluated input key. A list in a list comes from a variable, and is part of the outer one.
fn refs(sources: &Sources, value: Value) -> Refs {
    let mut items = Vec::new();
    let mut pure = true;
    let mut add = |value: &Value| {
        let item = match &value.data {
            Data::String(text) if text.starts_with('@') => match reference::parse(text) {
                Ok(reference) => Item::Step(reference),
                Err(expected) => Item::NoReference(expected),
            },
            Data::Table(table) if path::is_path(table) => match path::read(sources, table) {
                Ok(outside) => Item::Outside(Rc::new(outside)),
                Err(d) => Item::NoPath(d),
            },
            _ => {
                pure = false;
                return;
            }
        };
        items.push((value.clone(), item));
    };
    let list = match &value.data {
        Data::Array(values) => {
            for value in values {
                match &value.data {
                    Data::Array(inner) => inner.iter().for_each(&mut add),
                    _ => add(value),
                }
            }
            true
        }
        _ => {
            add(&value);
            false
        }
    };
    Refs { whole: value, list, pure, items }
}
