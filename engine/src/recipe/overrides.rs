//! Profiles and `--set`: values put over the recipe's by path.
//!
//! Invariants: a path begins with `vars`, `matrix` or `step`, or is one name, which means a variable; it may add a key
//! to a step (whether the op knows it is for [`crate::resolve`], for profiles that are not chosen too), never a step, a
//! variable or an axis. The paths of every profile are checked, chosen or not; `--set` wins over the profile.

use std::ops::Range;

use super::{Data, Key, Overrides, Table, Unchosen, Value, span, text};
use crate::diagnostic::{Diagnostic, Findings, listed, nearest};
use crate::graph::Span;
use crate::source::{Source, SourceId, Sources};

/// Returns the profiles that are not chosen.
pub(super) fn apply(
    root: &mut Table,
    sources: &mut Sources,
    overrides: &Overrides,
    findings: &mut Findings,
    numbers: &mut Vec<Diagnostic>,
) -> Vec<Unchosen> {
    let mut unchosen = Vec::new();
    let profiles = root.get("profile").and_then(Value::as_table).cloned().unwrap_or_default();
    // Checked on a copy, so that a profile that is not chosen leaves no trace.
    for (name, profile) in profiles.iter() {
        let mut copy = root.clone();
        apply_profile(&mut copy, name, profile, findings);
        if overrides.profile.as_ref() != Some(&name.text) {
            let mut places = Vec::new();
            profile.as_table().into_iter().for_each(|table| all_places(table, &mut places));
            unchosen.push(Unchosen { root: copy, places });
        }
    }
    if let Some(chosen) = &overrides.profile {
        match profiles.entry(chosen) {
            Some((name, profile)) => apply_profile(root, name, profile, findings),
            None => {
                let id = sources.add(Source { name: "--profile".to_owned(), path: None, text: chosen.clone() });
                let help = if profiles.is_empty() {
                    "the recipe has no profile".to_owned()
                } else {
                    match nearest(chosen, profiles.keys()) {
                        Some(name) => format!("there is a profile `{name}`"),
                        None => format!("the recipe's profiles are {}", listed(profiles.keys(), "and")),
                    }
                };
                findings.push(
                    Diagnostic::new("unknown-profile", format!("there is no profile `{chosen}`"))
                        .at(&span(id, 0..chosen.len()), "not in the recipe")
                        .help(help),
                );
            }
        }
    }
    for set in &overrides.set {
        apply_set(root, sources, set, findings, numbers);
    }
    unchosen
}

/// Where every key and value stands.
fn all_places(table: &Table, places: &mut Vec<Span>) {
    for (key, value) in table.iter() {
        places.extend([key.span.clone(), value.span.clone()]);
        if let Data::Table(inner) = &value.data {
            all_places(inner, places);
        }
    }
}

fn apply_profile(root: &mut Table, name: &Key, profile: &Value, findings: &mut Findings) {
    let Some(table) = profile.as_table() else {
        findings.push(
            Diagnostic::new(
                "wrong-type",
                format!("profile `{}` is {}, expected a table", name.text, profile.type_name()),
            )
            .at(&profile.span, "expected a table")
            .help("write `set = { \"step.NAME.KEY\" = VALUE }` in it"),
        );
        return;
    };
    for (key, value) in table.iter() {
        match (key.text.as_str(), &value.data) {
            ("set", Data::Table(set)) => set_all(root, &mut Vec::new(), set, findings),
            ("set", _) => findings.push(
                Diagnostic::new(
                    "wrong-type",
                    format!("`set` of profile `{}` is {}, expected a table", name.text, value.type_name()),
                )
                .at(&value.span, "expected a table of paths and values"),
            ),
            ("about", Data::String(_)) => {}
            ("about", _) => findings.push(
                Diagnostic::new("wrong-type", format!("`about` is {}, expected text", value.type_name()))
                    .at(&value.span, "expected text"),
            ),
            _ => findings.push(
                Diagnostic::new("unknown-key", format!("unknown key `{}` in profile `{}`", key.text, name.text))
                    .at(&key.span, "a profile has `set` and `about`")
                    .help(format!("write `set = {{ \"step.NAME.{}\" = VALUE }}`", key.text)),
            ),
        }
    }
}

/// `"step.a.b" = 1` is a path in one key; `step.a.b = 1`, not quoted, arrives as tables in tables.
fn set_all(root: &mut Table, before: &mut Vec<(String, Span)>, set: &Table, findings: &mut Findings) {
    for (key, value) in set.iter() {
        let depth = before.len();
        match text::read_path(&key.text) {
            Some(path) => before.extend(path.into_iter().map(|name| (name, key.span.clone()))),
            None => {
                findings.push(
                    Diagnostic::new("unknown-path", format!("`{}` is not a path", key.text))
                        .at(&key.span, "expected names with dots between them"),
                );
                continue;
            }
        }
        let whole = match before[0].0.as_str() {
            "step" => before.len() >= 3,
            "vars" | "matrix" => before.len() >= 2,
            _ => true,
        };
        match &value.data {
            Data::Table(inner) if !whole => set_all(root, before, inner, findings),
            _ => put(root, before, value.clone(), findings),
        }
        before.truncate(depth);
    }
}

fn apply_set(
    root: &mut Table,
    sources: &mut Sources,
    set: &str,
    findings: &mut Findings,
    numbers: &mut Vec<Diagnostic>,
) {
    let id = sources.add(Source { name: "--set".to_owned(), path: None, text: set.to_owned() });
    let Some((left, right)) = set.split_once('=') else {
        findings.push(
            Diagnostic::new("bad-set", format!("`{set}` has no `=`"))
                .at(&span(id, 0..set.len()), "expected `PATH=VALUE`")
                .help("for example `--set step.act.epochs=2`, or `--set seed=1` for a variable"),
        );
        return;
    };
    let at = place(id, left, 0);
    let Some(path) = text::read_path(left) else {
        findings.push(
            Diagnostic::new("unknown-path", format!("`{}` is not a path", left.trim()))
                .at(&at, "expected names with dots between them"),
        );
        return;
    };
    let offset = left.len() + 1 + (right.len() - right.trim_start().len());
    let right = right.trim();
    let value = text::read_value(right, id, offset, numbers).unwrap_or_else(|| Value {
        span: place(id, right, offset),
        via: None,
        data: Data::String(right.trim().to_owned()),
    });
    let path: Vec<(String, Span)> =
        segments(left, &path, id).unwrap_or_else(|| path.into_iter().map(|name| (name, at.clone())).collect());
    put(root, &path, value, findings);
}

/// Each segment with its own place, where nothing is quoted.
fn segments(left: &str, path: &[String], id: SourceId) -> Option<Vec<(String, Span)>> {
    let mut from = 0;
    let mut out = Vec::new();
    for part in left.split('.') {
        let name = part.trim();
        let start = from + (part.len() - part.trim_start().len());
        out.push((name.to_owned(), span(id, start..start + name.len())));
        from += part.len() + 1;
    }
    (out.len() == path.len() && out.iter().zip(path).all(|(a, b)| a.0 == *b)).then_some(out)
}

/// The text without the blanks around it.
fn place(id: SourceId, text: &str, offset: usize) -> Span {
    let start = offset + (text.len() - text.trim_start().len());
    let bytes: Range<usize> = start..start + text.trim().len();
    span(id, bytes)
}

/// Puts one value at a path.
fn put(root: &mut Table, path: &[(String, Span)], value: Value, findings: &mut Findings) {
    let shown = path.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(".");
    let (section, rest) = match path {
        [(name, at)] if !matches!(name.as_str(), "step" | "vars" | "matrix") => ("vars", vec![(name, at)]),
        [(name, _), rest @ ..] if matches!(name.as_str(), "step" | "vars" | "matrix") && !rest.is_empty() => {
            (name.as_str(), rest.iter().map(|(name, at)| (name, at)).collect())
        }
        _ => {
            let d = Diagnostic::new("unknown-path", format!("`{shown}` names nothing that can be set"))
                .at(&path[0].1, "expected a path that begins with `step`, `vars` or `matrix`");
            let known = |section: &str| {
                let table = root.get(section).and_then(Value::as_table);
                table.is_some_and(|table| table.get(&path[0].0).is_some())
            };
            let meant = ["vars", "matrix", "step"].into_iter().find(|section| known(section));
            findings.push(d.help_opt(meant.map(|section| format!("write `{section}.{shown}`"))));
            return;
        }
    };
    let (noun, article) = match section {
        "step" => ("step", "a step"),
        "vars" => ("variable", "a variable"),
        _ => ("axis", "an axis of the matrix"),
    };
    let (name, at) = rest[0];
    let names =
        root.get(section).and_then(Value::as_table).map_or(Vec::new(), |t| t.keys().map(str::to_owned).collect());
    if !names.contains(name) {
        let other = ["step", "vars", "matrix"]
            .into_iter()
            .find(|s| *s != section && root.get(s).and_then(Value::as_table).is_some_and(|t| t.get(name).is_some()));
        let help = match (nearest(name, names.iter().map(String::as_str)), other) {
            (_, Some(other)) => format!("there is `{other}.{name}`"),
            (Some(near), None) => format!("there is {article} `{near}`"),
            (None, None) if names.is_empty() => format!("nothing is in `[{section}]`"),
            (None, None) => format!("it has {}", listed(names.iter().map(String::as_str), "and")),
        };
        findings.push(
            Diagnostic::new("unknown-path", format!("the recipe has no {noun} `{name}`"))
                .at(at, "nothing to set here")
                .help(help),
        );
        return;
    }
    if section == "step" && rest.len() == 1 {
        findings.push(
            Diagnostic::new("unknown-path", format!("`{shown}` is a whole step"))
                .at(at, "expected the path of one of its keys")
                .help(format!("write `step.{name}.KEY`")),
        );
        return;
    }
    let mut table = match root.get_mut(section) {
        Some(Value { data: Data::Table(table), .. }) => table,
        _ => return,
    };
    let (last, parents) = match rest.split_last() {
        Some(split) => split,
        None => return,
    };
    for (name, at) in parents {
        if table.get(name).is_none() {
            let empty = Value { span: (*at).clone(), via: None, data: Data::Table(Table::default()) };
            table.insert(Key { text: (*name).clone(), span: (*at).clone(), via: None }, empty);
        }
        match table.get_mut(name) {
            Some(Value { data: Data::Table(inner), .. }) => table = inner,
            Some(other) => {
                findings.push(
                    Diagnostic::new(
                        "unknown-path",
                        format!("`{name}` in `{shown}` is {}, not a table", other.type_name()),
                    )
                    .at(at, "has no keys to set")
                    .related(&other.span, "defined here"),
                );
                return;
            }
            None => return,
        }
    }
    table.insert(Key { text: last.0.clone(), span: last.1.clone(), via: None }, value);
}
