//! Checks a value of the recipe against an op's JSON Schema, finding everything at once.
//!
//! Knows what schemars writes: types, properties, items, enums and constants, `anyOf`/`oneOf` of tagged, untagged and
//! plain enums, ranges, lengths, references. Where alternatives all fail, the one that was most likely meant speaks.
//! Invariant: a finding points at the exact key or value, however deep.

use serde_json::{Map, Value as Json};

use super::describe::{constants, describe, list, lookup, or, plain, type_is};
use crate::diagnostic::{Diagnostic, listed, nearest};
use crate::recipe::{Data, Key, Table, Value};

/// What is being checked: `step `act``.
pub(super) struct Checker<'s> {
    root: &'s Json,
    owner: String,
    found: Vec<Diagnostic>,
    /// Something is missing, and the misspelt key that was meant for it is reported elsewhere.
    pub(super) misspelt: bool,
}

impl<'s> Checker<'s> {
    /// `root` is the schema document, for its definitions; `owner` names the table in messages.
    pub(super) fn new(root: &'s Json, owner: impl Into<String>) -> Self {
        Checker { root, owner: owner.into(), found: Vec::new(), misspelt: false }
    }

    pub(super) fn into_found(self) -> Vec<Diagnostic> {
        self.found
    }

    /// The parameters of an op: properties, and which of them must be there. `header` is where a missing one is
    /// reported, unless one of the `strays`, keys that are reported elsewhere, must have been meant for it. Other keys
    /// are not looked at: they may be inputs.
    pub(super) fn parameters(&mut self, schema: &'s Json, table: &Table, header: &Key, strays: Vec<&str>) {
        let schema = self.deref(schema);
        let Some(schema) = schema.as_object() else { return };
        self.properties(schema, table, &mut Vec::new(), header, Some(strays));
    }

    pub(super) fn value(&mut self, schema: &'s Json, value: &Value, path: &mut Vec<String>) {
        let schema = match schema {
            Json::Object(schema) => schema,
            Json::Bool(false) => {
                self.report(
                    value,
                    "wrong-type",
                    format!("{} is not allowed", self.name(path)),
                    "not allowed here".into(),
                );
                return;
            }
            _ => return,
        };
        if let Some(target) = schema.get("$ref").and_then(Json::as_str) {
            let before = self.found.len();
            if let Some(target) = lookup(self.root, target) {
                self.value(target, value, path);
            }
            if self.found.len() > before {
                return;
            }
        }
        for part in list(schema, "allOf") {
            self.value(part, value, path);
        }
        for word in ["anyOf", "oneOf"] {
            if schema.contains_key(word) && !self.alternatives(list(schema, word), value, path) {
                return;
            }
        }
        if let Some(options) = constants(schema)
            && !options.iter().any(|option| **option == value.to_json())
        {
            self.not_one_of(&options, value, path);
            return;
        }
        if !self.right_type(schema, value, path) {
            return;
        }
        match &value.data {
            Data::Integer(_) | Data::Float(_) => self.number(schema, value, path),
            Data::String(text) => self.text(schema, text, value, path),
            Data::Array(items) => self.array(schema, items, value, path),
            Data::Table(table) => {
                let header = Key { text: String::new(), span: value.span.clone(), via: value.via.clone() };
                self.properties(schema, table, path, &header, None);
            }
            Data::Boolean(_) | Data::Datetime(_) => {}
        }
    }

    /// True where an alternative fits; otherwise something was reported.
    fn alternatives(&mut self, branches: &'s [Json], value: &Value, path: &mut Vec<String>) -> bool {
        let mut failed: Vec<(&'s Json, Vec<Diagnostic>)> = Vec::new();
        for branch in branches {
            // TOML has no null: an option that is not wanted is left out.
            if branch.get("type").and_then(Json::as_str) == Some("null") {
                continue;
            }
            let mut probe = Checker::new(self.root, self.owner.clone());
            probe.value(branch, value, path);
            if probe.found.is_empty() {
                return true;
            }
            failed.push((branch, probe.found));
        }
        if failed.len() == 1 {
            self.found.extend(failed.pop().map(|(_, found)| found).unwrap_or_default());
            return false;
        }
        let open: Vec<&'s Json> = failed.iter().map(|(branch, _)| self.deref(branch)).collect();
        match meant(&open, value) {
            Meant::Branch(i) => self.found.extend(failed.swap_remove(i).1),
            Meant::NotOneOf { options, at, key } => {
                let options: Vec<&Json> = options.iter().collect();
                if let Some(key) = key {
                    path.push(key);
                    self.not_one_of(&options, at, path);
                    path.pop();
                } else {
                    self.not_one_of(&options, at, path);
                }
            }
            Meant::UnknownKey { key, names } => {
                let names = names.iter().map(String::as_str);
                self.unknown_key(key, &names.collect::<Vec<_>>(), path);
            }
            Meant::MissingTag { tag, options } => {
                let message = format!("{} has no `{tag}`", self.name(path));
                let d = at(Diagnostic::new("missing-parameter", message), value, format!("`{tag}` is missing"));
                self.found.push(d.help(format!("`{tag}` is {}", listed(options.iter().map(String::as_str), "or"))));
            }
            Meant::Unclear => {
                let mut kinds: Vec<String> = open.iter().map(|branch| self.describe(branch)).collect();
                kinds.dedup();
                self.wrong_type(value, path, &or(&kinds));
            }
        }
        false
    }

    fn right_type(&mut self, schema: &Map<String, Json>, value: &Value, path: &[String]) -> bool {
        let types: Vec<&str> = match schema.get("type") {
            Some(Json::String(one)) => vec![one],
            Some(Json::Array(many)) => many.iter().filter_map(Json::as_str).collect(),
            _ => return true,
        };
        let fits = types.iter().any(|t| {
            matches!(
                (*t, &value.data),
                ("string", Data::String(_))
                    | ("integer" | "number", Data::Integer(_))
                    | ("number", Data::Float(_))
                    | ("boolean", Data::Boolean(_))
                    | ("array", Data::Array(_))
                    | ("object", Data::Table(_))
            )
        });
        if !fits {
            let expected = self.describe_object(schema);
            self.wrong_type(value, path, &expected);
        }
        fits
    }

    fn number(&mut self, schema: &Map<String, Json>, value: &Value, path: &[String]) {
        let n = match value.data {
            Data::Integer(n) => n as f64,
            Data::Float(n) => n,
            _ => return,
        };
        let limits = limits(schema);
        if limits.iter().all(|limit| limit.holds(n)) {
            return;
        }
        // The width of an integer is only worth a word where it is what was missed.
        let expected: Vec<String> =
            limits.iter().filter(|limit| limit.bound.abs() < 1e9 || !limit.holds(n)).map(Limit::to_string).collect();
        let expected = format!("expected {}", expected.join(" and "));
        let message = format!("{} is {}, {expected}", self.name(path), value.to_json());
        self.report(value, "out-of-range", message, expected);
    }

    fn text(&mut self, schema: &Map<String, Json>, text: &str, value: &Value, path: &[String]) {
        self.length(schema, ("minLength", "maxLength"), text.chars().count() as u64, "character", value, path);
    }

    fn array(&mut self, schema: &'s Map<String, Json>, items: &[Value], value: &Value, path: &mut Vec<String>) {
        self.length(schema, ("minItems", "maxItems"), items.len() as u64, "item", value, path);
        let fixed = list(schema, "prefixItems");
        for (i, item) in items.iter().enumerate() {
            if let Some(schema) = fixed.get(i).or_else(|| schema.get("items")) {
                path.push(i.to_string());
                self.value(schema, item, path);
                path.pop();
            }
        }
        if schema.get("uniqueItems") == Some(&Json::Bool(true)) {
            for (i, item) in items.iter().enumerate() {
                if let Some(first) = items[..i].iter().find(|other| other.same(item)) {
                    let message = format!("{} has `{}` twice", self.name(path), item.to_json());
                    let d = at(Diagnostic::new("duplicate", message), item, "again here".to_owned());
                    self.found.push(d.related(&first.span, "first here"));
                }
            }
        }
    }

    fn length(
        &mut self,
        schema: &Map<String, Json>,
        words: (&str, &str),
        has: u64,
        unit: &str,
        value: &Value,
        path: &[String],
    ) {
        let plural = |n: u64| if n == 1 { format!("{n} {unit}") } else { format!("{n} {unit}s") };
        let expected = match (schema.get(words.0).and_then(Json::as_u64), schema.get(words.1).and_then(Json::as_u64)) {
            (Some(min), _) if has < min => format!("expected at least {}", plural(min)),
            (_, Some(max)) if has > max => format!("expected at most {}", plural(max)),
            _ => return,
        };
        let message = format!("{} has {}, {expected}", self.name(path), plural(has));
        self.report(value, "out-of-range", message, expected);
    }

    fn properties(
        &mut self,
        schema: &'s Map<String, Json>,
        table: &Table,
        path: &mut Vec<String>,
        header: &Key,
        strays: Option<Vec<&str>>,
    ) {
        let closed = strays.is_none();
        let mut strays = strays.unwrap_or_default();
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Json::as_object);
        let known: Vec<&str> = properties.unwrap_or(&empty).keys().map(String::as_str).collect();
        for (key, value) in table.iter() {
            path.push(key.text.clone());
            match properties.and_then(|p| p.get(&key.text)) {
                Some(schema) => self.value(schema, value, path),
                None if !closed => {}
                None => match schema.get("additionalProperties") {
                    Some(Json::Bool(false)) => {
                        path.pop();
                        strays.push(&key.text);
                        self.unknown_key(key, &known, path);
                        path.push(key.text.clone());
                    }
                    Some(schema) => self.value(schema, value, path),
                    None => {}
                },
            }
            path.pop();
        }
        for name in list(schema, "required").iter().filter_map(Json::as_str) {
            // A misspelt key is reported as such, with this name as help.
            let misspelt = || strays.iter().any(|stray| nearest(stray, known.iter().copied()) == Some(name));
            if table.get(name).is_some() {
                continue;
            }
            if misspelt() {
                self.misspelt = true;
            } else {
                let expects = properties.and_then(|p| p.get(name)).map_or("a value".to_owned(), |s| self.describe(s));
                let message = format!("{} has no `{name}`", self.name(path));
                let mut d =
                    Diagnostic::new("missing-parameter", message).at(&header.span, format!("`{name}` is missing"));
                d = via(d, &header.via);
                self.found.push(d.help(format!("`{name}` takes {expects}")));
            }
        }
    }

    fn unknown_key(&mut self, key: &Key, known: &[&str], path: &[String]) {
        let message = format!("unknown key `{}` in {}", key.text, self.name(path));
        let d = via(Diagnostic::new("unknown-key", message).at(&key.span, "not known here"), &key.via);
        let help = match nearest(&key.text, known.iter().copied()) {
            Some(near) => format!("there is a key `{near}`"),
            None if known.is_empty() => "it takes no keys".to_owned(),
            None => format!("the keys are {}", listed(known.iter().copied(), "and")),
        };
        self.found.push(d.help(help));
    }

    fn not_one_of(&mut self, options: &[&Json], value: &Value, path: &[String]) {
        let names: Vec<String> = options.iter().map(|o| plain(o)).collect();
        let expected = format!("expected {}", listed(names.iter().map(String::as_str), "or"));
        if value.as_str().is_none() && options.iter().all(|o| o.is_string()) {
            let message = format!("{} is {}, {expected}", self.name(path), value.type_name());
            self.report(value, "wrong-type", message, expected);
            return;
        }
        let given = plain(&value.to_json());
        let near = nearest(&given, names.iter().map(String::as_str)).map(|near| format!("there is `{near}`"));
        let message = format!("{} is `{given}`, {expected}", self.name(path));
        let d = at(Diagnostic::new("not-one-of", message), value, expected);
        self.found.push(d.help_opt(near));
    }

    fn wrong_type(&mut self, value: &Value, path: &[String], expected: &str) {
        let message = format!("{} is {}, expected {expected}", self.name(path), value.type_name());
        let help = match &value.data {
            Data::Float(n) if n.fract() == 0.0 && expected.contains("integer") => Some(format!("write `{n:.0}`")),
            Data::String(text) if text.starts_with('@') => {
                Some(format!("{} is a parameter; only inputs take the output of a step", self.name(path)))
            }
            Data::String(text) if !expected.contains("text") && toml_scalar(text) => {
                Some(format!("write `{text}` without quotes"))
            }
            _ => None,
        };
        let d = at(Diagnostic::new("wrong-type", message), value, format!("expected {expected}"));
        self.found.push(d.help_opt(help));
    }

    fn report(&mut self, value: &Value, code: &'static str, message: String, label: String) {
        self.found.push(at(Diagnostic::new(code, message), value, label));
    }

    /// `` `reward.correct` of step `act` ``.
    fn name(&self, path: &[String]) -> String {
        if path.is_empty() { self.owner.clone() } else { format!("`{}` of {}", path.join("."), self.owner) }
    }

    fn deref(&self, schema: &'s Json) -> &'s Json {
        let target = schema.get("$ref").and_then(Json::as_str).and_then(|target| lookup(self.root, target));
        target.unwrap_or(schema)
    }

    fn describe(&self, schema: &'s Json) -> String {
        describe(self.root, schema)
    }

    fn describe_object(&self, schema: &Map<String, Json>) -> String {
        describe(self.root, &Json::Object(schema.clone()))
    }
}

/// Which alternative was most likely meant.
enum Meant<'v> {
    Branch(usize),
    NotOneOf { options: Vec<Json>, at: &'v Value, key: Option<String> },
    UnknownKey { key: &'v Key, names: Vec<String> },
    MissingTag { tag: String, options: Vec<String> },
    Unclear,
}

fn meant<'v>(branches: &[&Json], value: &'v Value) -> Meant<'v> {
    let objects: Vec<Option<&Map<String, Json>>> = branches.iter().map(|b| b.as_object()).collect();
    // Plain enum: every branch is a constant.
    let options: Option<Vec<Json>> = objects
        .iter()
        .map(|b| b.and_then(constants).map(|options| options.into_iter().cloned().collect::<Vec<_>>()))
        .collect::<Option<Vec<_>>>()
        .map(|o| o.concat());
    if let Some(options) = options {
        return Meant::NotOneOf { options, at: value, key: None };
    }
    if let Data::Table(table) = &value.data {
        // Internally tagged: every table has the same property with a constant of its own.
        if let Some((tag, tags)) = tag(branches) {
            return match table.get(&tag) {
                None => Meant::MissingTag { tag, options: tags.iter().map(|(_, option)| plain(option)).collect() },
                Some(given) => match tags.iter().find(|(_, option)| *option == given.to_json()) {
                    Some((i, _)) => Meant::Branch(*i),
                    None => Meant::NotOneOf {
                        options: tags.into_iter().map(|(_, option)| option).collect(),
                        at: given,
                        key: Some(tag),
                    },
                },
            };
        }
        // Externally tagged: every table branch has one required key.
        let names: Vec<(usize, &str)> = objects
            .iter()
            .enumerate()
            .filter_map(|(i, b)| {
                let b = b.as_ref()?;
                let [one] = list(b, "required") else { return None };
                let closed = b.get("additionalProperties") == Some(&Json::Bool(false));
                closed.then_some((i, one.as_str()?))
            })
            .collect();
        if let Some((i, _)) = names.iter().find(|(_, name)| table.get(name).is_some()) {
            return Meant::Branch(*i);
        }
        let tables = branches.iter().filter(|b| type_is(b, "object")).count();
        if names.len() == tables
            && tables > 1
            && let Some((key, _)) = table.iter().next()
        {
            return Meant::UnknownKey { key, names: names.iter().map(|(_, name)| (*name).to_owned()).collect() };
        }
    }
    if value.as_str().is_some() {
        let options: Vec<Json> = objects
            .iter()
            .filter_map(|b| b.and_then(constants))
            .flat_map(|options| options.into_iter().cloned().collect::<Vec<_>>())
            .collect();
        let open_text = branches.iter().any(|b| type_is(b, "string") && b.as_object().and_then(constants).is_none());
        if !options.is_empty() && !open_text {
            return Meant::NotOneOf { options, at: value, key: None };
        }
    }
    // Untagged: the only one of the value's type, if there is only one.
    let kind = match value.data {
        Data::String(_) => "string",
        Data::Integer(_) => "integer",
        Data::Float(_) => "number",
        Data::Boolean(_) => "boolean",
        Data::Array(_) => "array",
        Data::Table(_) => "object",
        Data::Datetime(_) => "date",
    };
    let fitting: Vec<usize> = (0..branches.len())
        .filter(|&i| type_is(branches[i], kind) || kind == "integer" && type_is(branches[i], "number"))
        .collect();
    match fitting.as_slice() {
        [one] => Meant::Branch(*one),
        [_, ..] if kind == "object" => {
            // The table that knows most of the keys.
            let keys = |i: usize| {
                let known = objects[i].and_then(|b| b.get("properties")).and_then(Json::as_object);
                value.as_table().map_or(0, |t| t.keys().filter(|k| known.is_some_and(|p| p.contains_key(*k))).count())
            };
            fitting
                .iter()
                .copied()
                .max_by_key(|&i| (keys(i), std::cmp::Reverse(i)))
                .map_or(Meant::Unclear, Meant::Branch)
        }
        _ => Meant::Unclear,
    }
}

/// The property that tells the tables among the branches apart, and its value in each.
fn tag(branches: &[&Json]) -> Option<(String, Vec<(usize, Json)>)> {
    let tables: Vec<(usize, &Map<String, Json>)> =
        branches.iter().enumerate().filter_map(|(i, b)| Some((i, b.get("properties")?.as_object()?))).collect();
    let (_, first) = tables.first()?;
    first.iter().find_map(|(name, _)| {
        let tags: Option<Vec<(usize, Json)>> =
            tables.iter().map(|(i, p)| Some((*i, p.get(name)?.get("const")?.clone()))).collect();
        tags.map(|tags| (name.clone(), tags))
    })
}

fn toml_scalar(text: &str) -> bool {
    matches!(text, "true" | "false") || text.parse::<f64>().is_ok_and(f64::is_finite)
}

/// Adds the caret, and where the value was defined if a variable supplied it.
pub(super) fn at(d: Diagnostic, value: &Value, label: String) -> Diagnostic {
    via(d.at(&value.span, label), &value.via)
}

pub(super) fn via(mut d: Diagnostic, via: &crate::recipe::Via) -> Diagnostic {
    for (name, span) in via.iter().flat_map(|chain| chain.iter()) {
        d = d.related(span, format!("`{name}` is defined here"));
    }
    d
}

/// One end of a range.
struct Limit {
    word: &'static str,
    bound: f64,
}

impl Limit {
    fn holds(&self, n: f64) -> bool {
        match self.word {
            "at least" => n >= self.bound,
            "at most" => n <= self.bound,
            "more than" => n > self.bound,
            _ => n < self.bound,
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.word, self.bound)
    }
}

fn limits(schema: &Map<String, Json>) -> Vec<Limit> {
    let words = [
        ("minimum", "at least"),
        ("exclusiveMinimum", "more than"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "less than"),
    ];
    let mut out: Vec<Limit> =
        words.into_iter().filter_map(|(key, word)| Some(Limit { word, bound: schema.get(key)?.as_f64()? })).collect();
    // schemars leaves the width of integers to `format`.
    let (least, most) = match schema.get("format").and_then(Json::as_str) {
        Some("int8") => (f64::from(i8::MIN), f64::from(i8::MAX)),
        Some("int16") => (f64::from(i16::MIN), f64::from(i16::MAX)),
        Some("int32") => (f64::from(i32::MIN), f64::from(i32::MAX)),
        Some("uint8") => (0.0, f64::from(u8::MAX)),
        Some("uint16") => (0.0, f64::from(u16::MAX)),
        Some("uint32") => (0.0, f64::from(u32::MAX)),
        Some("uint" | "uint64") => (0.0, f64::INFINITY),
        _ => return out,
    };
    if !out.iter().any(|l| matches!(l.word, "at least" | "more than")) {
        out.insert(0, Limit { word: "at least", bound: least });
    }
    if most.is_finite() && !out.iter().any(|l| matches!(l.word, "at most" | "less than")) {
        out.push(Limit { word: "at most", bound: most });
    }
    out
}
