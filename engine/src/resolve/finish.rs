//! The last part of a step: each variant's parameters, seed and resources, and its inputs held against the op's ports.
//!
//! Invariant: nothing is said about ports while wrong parameters leave them unknown.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::axis::label_at;
use super::check::at;
use super::define::{OpInfo, StepDef};
use super::multiply::{Fed, Item, Occupied, Pick, Row, Variant};
use super::params::{self, Typed, parameter_names};
use super::reference::Reference;
use super::scope::{AxisDefs, Scope};
use super::{METRICS, Resolver};
use crate::diagnostic::{Diagnostic, listed, nearest};
use crate::op::{Arity, InputLabels, InputPort, Kind, Ports, Resources};
use crate::recipe::{Data, Key, Table, Value};
use crate::schema::op_reference;

impl Resolver<'_, '_> {
    pub(super) fn finish(&mut self, index: usize, rows: Vec<Row>, axes: &AxisDefs, tainted: &mut bool) -> Vec<Variant> {
        let steps = self.steps;
        let step = &steps[index];
        // Variants that do not differ in parameters share them.
        let mut typed: HashMap<String, Rc<Typed>> = HashMap::new();
        let mut variants = Vec::with_capacity(rows.len());
        for row in rows {
            let scope = Scope::new(self.world, &step.own, axes, &row.point);
            let mut missing = Vec::new();
            let mut eval = |value: &Value| match scope.eval(value) {
                Ok(value) => Some(value),
                Err(miss) => {
                    missing.push((miss, value.clone()));
                    None
                }
            };
            let params: Vec<(Key, Option<Value>)> = step.params.iter().map(|(k, v)| ((*k).clone(), eval(v))).collect();
            let settings: Vec<(&str, Value)> =
                step.settings.iter().filter_map(|(k, v)| Some((k.text.as_str(), eval(v)?))).collect();
            for (miss, at) in missing {
                self.missed(miss, &at, *tainted);
            }
            let absent: Vec<String> =
                params.iter().filter(|(_, v)| v.is_none()).map(|(key, _)| key.text.clone()).collect();
            let table: Table = params.into_iter().filter_map(|(k, v)| Some((k, v?))).collect();
            let typed = step.op.as_ref().map(|info| {
                let json = Value { span: step.key.span.clone(), via: None, data: Data::Table(table.clone()) }.to_json();
                Rc::clone(typed.entry(format!("{json}{absent:?}")).or_insert_with(|| {
                    let (typed, found) = params::check(step, info, &table, &absent);
                    found.into_iter().for_each(|d| self.findings.push(d));
                    if let Some(ports) = &typed.ports {
                        self.missing_inputs(step, ports);
                    }
                    Rc::new(typed)
                }))
            });
            if let Some(info) = &step.op {
                let ports = typed.as_ref().and_then(|t| t.ports.as_ref());
                for fed in &row.fed {
                    self.input(step, info, ports, fed);
                }
                if let Some((params, ports)) = typed.as_ref().and_then(|typed| typed.settled())
                    && !*tainted
                    && let Some(inputs) = self.labels(step, ports, &row.fed)
                {
                    let problems = info.op.check_inputs(params, &inputs);
                    if !problems.is_empty() {
                        let mut written = table;
                        for fed in &row.fed {
                            written.insert(step.inputs[fed.key].0.clone(), fed.refs.whole.clone());
                        }
                        problems.iter().for_each(|p| self.report(params::problem(step, &written, p)));
                    }
                }
            }
            let mut variant = Variant {
                seed: self.axis_seed(step, axes, &row),
                point: row.point,
                typed,
                fed: row.fed,
                pin_device: false,
                resources: Occupied::default(),
            };
            for (name, value) in settings {
                self.setting(step, name, &value, &mut variant);
            }
            variants.push(variant);
        }
        variants
    }

    /// The labels of what arrives at the labelled ports; `None` where there are none, or where something else than an
    /// output of a step or a path is written there.
    fn labels(&self, step: &StepDef<'_>, ports: &Ports, fed: &[Fed]) -> Option<InputLabels> {
        let mut labels = BTreeMap::new();
        for port in ports.inputs.iter().filter(|port| port.labelled) {
            let Some(fed) = fed.iter().find(|fed| step.inputs[fed.key].0.text == port.name) else { continue };
            if !fed.refs.pure || fed.refs.items.iter().any(|(_, item)| !item.is_sound()) {
                return None;
            }
            let of_pick = |pick: &Pick| match pick {
                Pick::Step { step, variant, .. } => {
                    let done = self.done[*step].as_ref()?;
                    Some(self.world.axes.labels(&done.variants[*variant].point))
                }
                Pick::Outside(_) => Some(BTreeMap::new()),
            };
            let arriving: Option<Vec<_>> = fed.picks.iter().flat_map(|picks| picks.iter()).map(of_pick).collect();
            labels.insert(port.name.to_owned(), arriving?);
        }
        (!labels.is_empty()).then(|| InputLabels::new(labels))
    }

    /// The value of an axis named `seed`, where it is an integer.
    fn axis_seed(&self, step: &StepDef<'_>, axes: &AxisDefs, row: &Row) -> u64 {
        let Some(axis) = self.world.axes.find("seed") else { return 0 };
        if label_at(&row.point, axis).is_none() {
            return 0;
        }
        let mention = Value { span: step.key.span.clone(), via: None, data: Data::String("$seed".to_owned()) };
        match Scope::new(self.world, &step.own, axes, &row.point).eval(&mention) {
            Ok(Value { data: Data::Integer(n), .. }) => u64::try_from(n).unwrap_or(0),
            _ => 0,
        }
    }

    fn setting(&mut self, step: &StepDef<'_>, name: &str, value: &Value, variant: &mut Variant) {
        let wrong = |expected: &str| {
            let message = format!("`{name}` of step `{}` is {}, expected {expected}", step.name, value.type_name());
            at(Diagnostic::new("wrong-type", message), value, format!("expected {expected}"))
        };
        match (name, &value.data) {
            ("seed", Data::Integer(n)) => match u64::try_from(*n) {
                Ok(seed) => variant.seed = seed,
                Err(_) => {
                    let message = format!("`seed` of step `{}` is {n}, expected at least 0", step.name);
                    self.report(at(Diagnostic::new("out-of-range", message), value, "expected at least 0".to_owned()));
                }
            },
            ("seed", _) => self.report(wrong("an integer")),
            ("pin_device", Data::Boolean(pin)) => variant.pin_device = *pin,
            ("pin_device", _) => self.report(wrong("`true` or `false`")),
            _ => {
                let (resources, found) = params::resources(step, value);
                found.into_iter().for_each(|d| self.report(d));
                let said = |name: &str| matches!(&value.data, Data::Table(t) if t.get(name).is_some());
                variant.resources = match resources {
                    Some(r) => Occupied { cpu: said("cpu").then_some(r.cpu), gpu: said("gpu").then_some(r.gpu) },
                    None => Occupied::default(),
                };
            }
        }
    }

    fn missing_inputs(&mut self, step: &StepDef<'_>, ports: &Ports) {
        for port in &ports.inputs {
            let wanted = matches!(port.arity, Arity::One | Arity::Many);
            // A misspelt key is reported as such, with this name as help.
            let near = |key: &Key| {
                let known = step.op.iter().flat_map(|info| params::known(info, Some(ports)));
                nearest(&key.text, known) == Some(port.name)
            };
            if wanted && !step.inputs.iter().any(|(key, _)| key.text == port.name || near(key)) {
                let makers = self.makers(step, port);
                let message = format!("step `{}` has no input `{}`", step.name, port.name);
                self.report(
                    Diagnostic::new("missing-input", message)
                        .at(&step.key.span, format!("`{}` is missing", port.name))
                        .help(format!("`{}` takes {}: {}", port.name, kinds(port), port.about))
                        .help_opt(makers),
                );
            }
        }
    }

    /// Steps resolved so far that make what a port takes.
    fn makers(&self, step: &StepDef<'_>, port: &InputPort) -> Option<String> {
        if port.kinds.contains(&Kind::ANY) {
            return None;
        }
        let makes = |done: &super::Done| {
            let ports = done.variants.first()?.typed.as_ref()?.ports.as_ref()?;
            ports.outputs.first().map(|output| port.kinds.contains(&output.kind))
        };
        let names: Vec<String> = self
            .steps
            .iter()
            .zip(&self.done)
            .filter(|(s, done)| s.name != step.name && done.as_ref().and_then(makes) == Some(true))
            .map(|(s, _)| format!("@{}", s.name))
            .take(4)
            .collect();
        (!names.is_empty()).then(|| format!("there is {}", listed(names.iter().map(String::as_str), "and")))
    }

    /// Holds one key that is no parameter against the ports.
    fn input(&mut self, step: &StepDef<'_>, info: &OpInfo, ports: Option<&Ports>, fed: &Fed) {
        let key = step.inputs[fed.key].0;
        let refs = &fed.refs;
        for (value, item) in &refs.items {
            match item {
                Item::NoReference(expected) => {
                    let text = value.as_str().unwrap_or("");
                    let d = Diagnostic::new("bad-reference", format!("`{text}` is no reference to a step"));
                    self.report(
                        at(d, value, expected.clone())
                            .help("write `\"@step\"`, `\"@step.output\"`, `\"@step[axis=label]\"` or `\"@step[*]\"`"),
                    );
                }
                Item::NoPath(d) => self.report(Diagnostic::clone(d)),
                Item::Step(_) | Item::Outside(_) => {}
            }
        }
        let Some(port) = ports.and_then(|ports| ports.inputs.iter().find(|port| port.name == key.text)) else {
            return self.no_port(step, info, ports, key, refs.pure);
        };
        let name = format!("`{}` of step `{}`", port.name, step.name);
        if !refs.pure {
            let what = if refs.list { "has something else in its list" } else { refs.whole.type_name() };
            let verb = if refs.list { "" } else { "is " };
            let message = format!("{name} {verb}{what}, expected the output of a step");
            let d = at(Diagnostic::new("wrong-type", message), &refs.whole, "expected `\"@step\"`".to_owned());
            let close = refs.whole.as_str().and_then(|text| nearest(text, self.steps.iter().map(|s| s.name)));
            let help = close
                .map_or("a file or folder is `{ path = \"..\" }`".to_owned(), |near| format!("write `\"@{near}\"`"));
            self.report(d.help(help));
            return;
        }
        let many = matches!(port.arity, Arity::Many | Arity::ManyOptional);
        if !many
            && (refs.list || refs.items.iter().any(|(_, item)| matches!(item, Item::Step(item) if item.collects())))
        {
            let message = format!("{name} takes one artifact, and is given a list");
            let d = at(Diagnostic::new("wrong-arity", message), &refs.whole, "expected one `\"@step\"`".to_owned());
            self.report(
                d.help("fix the axes that are too many, `\"@step[axis=label]\"`, or multiply this step with `each`"),
            );
        }
        if port.arity == Arity::Many && refs.items.is_empty() {
            let message = format!("{name} is an empty list");
            self.report(at(
                Diagnostic::new("missing-input", message),
                &refs.whole,
                "expected at least one `\"@step\"`".to_owned(),
            ));
        }
        let sound = refs.items.iter().filter(|(_, item)| item.is_sound());
        for ((value, item), picks) in sound.zip(&fed.picks) {
            // What a path holds shows when the op reads it.
            let Item::Step(item) = item else { continue };
            for pick in picks.iter() {
                self.kind(&name, port, value, item, pick);
            }
        }
    }

    fn no_port(&mut self, step: &StepDef<'_>, info: &OpInfo, ports: Option<&Ports>, key: &Key, reference: bool) {
        let params = parameter_names(&info.schema);
        let inputs: Vec<&str> = ports.iter().flat_map(|p| p.inputs.iter().map(|port| port.name)).collect();
        let near = nearest(&key.text, params::known(info, ports));
        // Without ports, only what looks like a parameter can be called wrong.
        if ports.is_none() && (reference || near.is_none()) {
            return;
        }
        let elsewhere = op_reference(&*info.op).inputs.into_iter().find(|input| input.port.name == key.text);
        if let Some(other) = elsewhere {
            let message = format!("step `{}` takes no input `{}` as it is set", step.name, key.text);
            let help = match other.when {
                Some(when) => format!("`{}` takes it only with `{when}`", info.op.name()),
                None => format!("its inputs are {}", listed(inputs.iter().copied(), "and")),
            };
            let label = "not with these parameters";
            return self.report(Diagnostic::new("unknown-key", message).at(&key.span, label).help(help));
        }
        let help = match near {
            Some(near) if inputs.contains(&near) => format!("there is an input `{near}`"),
            Some(near) if params.contains(&near) => format!("there is a parameter `{near}`"),
            Some(near) => format!("there is a key `{near}`"),
            None => {
                let list = |names: &[&str]| listed(names.iter().copied(), "and");
                match (params.is_empty(), inputs.is_empty()) {
                    (true, true) => format!("`{}` takes neither parameters nor inputs", info.op.name()),
                    (true, false) => format!("its inputs are {}", list(&inputs)),
                    (false, true) => format!("its parameters are {}", list(&params)),
                    (false, false) => format!("its inputs are {}; its parameters {}", list(&inputs), list(&params)),
                }
            }
        };
        let message = format!("unknown key `{}` in step `{}`", key.text, step.name);
        let label = format!("neither an input nor a parameter of `{}`", info.op.name());
        self.report(Diagnostic::new("unknown-key", message).at(&key.span, label).help(help));
    }

    /// Whether one output may feed one port.
    fn kind(&mut self, name: &str, port: &InputPort, value: &Value, item: &Reference, pick: &Pick) {
        let Pick::Step { step, variant, output } = pick else { return };
        let (maker, variant) = (&self.steps[*step], *variant);
        let kind = if &**output == METRICS {
            Kind::METRICS
        } else {
            let ports = self.done[*step].as_ref().and_then(|d| d.variants[variant].typed.as_ref()?.ports.as_ref());
            let Some(ports) = ports else { return };
            match ports.outputs.iter().find(|made| made.name == &**output) {
                Some(output) => output.kind,
                None => {
                    let names = || ports.outputs.iter().map(|output| output.name).chain([METRICS]);
                    let d = if output.is_empty() {
                        Diagnostic::new("unknown-output", format!("step `{}` makes nothing but `metrics`", maker.name))
                            .help(format!("write `\"@{}.metrics\"`", maker.name))
                    } else {
                        let help = match nearest(output, names()) {
                            Some(near) => format!("there is an output `{near}`"),
                            None => format!("its outputs are {}", listed(names(), "and")),
                        };
                        let message = format!("step `{}` has no output `{output}`", maker.name);
                        Diagnostic::new("unknown-output", message).help(help)
                    };
                    let place = match &item.port {
                        Some(port) => {
                            let start = item.step.len() + 2;
                            let span = super::scope::within(self.world.sources, value, start..start + port.len());
                            Value { span, ..value.clone() }
                        }
                        None => value.clone(),
                    };
                    self.report(at(d, &place, "no such output".to_owned()));
                    return;
                }
            }
        };
        if !port.kinds.iter().any(|wanted| wanted.accepts(kind)) {
            let message = format!("{name} takes {}, and `{}` makes {kind}", kinds(port), value.as_str().unwrap_or(""));
            let d =
                at(Diagnostic::new("wrong-kind", message), value, format!("expected {}, found {kind}", kinds(port)));
            let fitting = self.done[*step].as_ref().and_then(|d| {
                let ports = d.variants[variant].typed.as_ref()?.ports.as_ref()?;
                let fits = |kind: Kind| port.kinds.iter().any(|wanted| wanted.accepts(kind));
                ports.outputs.iter().find(|output| fits(output.kind)).map(|output| output.name)
            });
            let help = match fitting {
                Some(output) => Some(format!("write `\"@{}.{output}\"`", maker.name)),
                None if kind == Kind::POLICY && port.kinds.contains(&Kind::MODEL) => Some(
                    "a policy can act (`rollout`, `alternatives`, `critic`), but its weights are not here to be trained or \
                     copied: take a model"
                        .to_owned(),
                ),
                None => None,
            };
            self.report(d.related(&maker.key.span, format!("`{}` is made here", maker.name)).help_opt(help));
        }
    }
}

/// `model`, `scores or metrics`.
fn kinds(port: &InputPort) -> String {
    let names: Vec<&str> = port.kinds.iter().map(|kind| kind.0).collect();
    names.join(" or ")
}

impl Variant {
    /// Cores and GPUs, as the recipe or else the op says.
    pub(super) fn needs(&self, info: &OpInfo, params: &serde_json::Value) -> Resources {
        let (own, said) = (info.op.resources(params), self.resources);
        Resources { cpu: said.cpu.unwrap_or(own.cpu), gpu: said.gpu.unwrap_or(own.gpu) }
    }
}
