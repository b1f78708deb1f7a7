//! What ops take, for people and for editors: the reference of one op, and a JSON Schema of the whole recipe.
//!
//! Invariants: both come from the ops' own schemas and ports, so they cannot be out of date; the recipe's schema lets
//! through every recipe that resolves (it may let through more: names and kinds are the resolver's).

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::op::{Arity, DynOp, InputPort, OutputPort, Ports, Registry, Resources};
use crate::resolve::{describe, lookup};

/// One op, as `actloom ops NAME` prints it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpReference {
    pub name: &'static str,
    pub version: u32,
    pub about: &'static str,
    pub params: Vec<ParamReference>,
    pub inputs: Vec<PortReference<InputPort>>,
    pub outputs: Vec<PortReference<OutputPort>>,
}

/// One parameter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParamReference {
    pub name: String,
    /// In words: `an integer`, `` `a` or `b` ``.
    #[serde(rename = "type")]
    pub takes: String,
    pub required: bool,
    /// The default, where there is one that is not "nothing".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// In words: `at least 1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
    pub about: String,
    /// The values of an enum, or the forms of a table.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Choice>,
    /// The keys of a table.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub params: Vec<ParamReference>,
}

/// One value or form that a parameter can have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    pub name: String,
    pub about: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub params: Vec<ParamReference>,
}

/// A port, and the parameter that brings it if it is not always there: `answer = "text"`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PortReference<P> {
    #[serde(flatten)]
    pub port: P,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
}

/// Everything that can be said about an op.
pub fn op_reference(op: &dyn DynOp) -> OpReference {
    let schema = op.schema();
    let (inputs, outputs) = all_ports(op, &schema);
    OpReference {
        name: op.name(),
        version: op.version(),
        about: op.about(),
        params: params(&schema, &schema),
        inputs,
        outputs,
    }
}

fn params(root: &Value, schema: &Value) -> Vec<ParamReference> {
    let required: Vec<&str> = array(schema, "required").iter().filter_map(Value::as_str).collect();
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return Vec::new() };
    let tagless = properties.iter().filter(|(_, schema)| schema.get("const").is_none());
    tagless
        .map(|(name, schema)| {
            let target = open(root, schema);
            ParamReference {
                name: name.clone(),
                takes: describe(root, schema),
                required: required.contains(&name.as_str()),
                default: schema.get("default").filter(|default| !default.is_null()).cloned(),
                range: range(target),
                about: about(schema).or_else(|| about(target)).unwrap_or_default(),
                choices: choices(root, target),
                params: params(root, target),
            }
        })
        .collect()
}

/// The schema behind references and options.
fn open<'s>(root: &'s Value, schema: &'s Value) -> &'s Value {
    if let Some(target) = schema.get("$ref").and_then(Value::as_str).and_then(|target| lookup(root, target)) {
        return open(root, target);
    }
    let branches: Vec<&Value> =
        array(schema, "anyOf").iter().filter(|b| b.get("type").is_none_or(|t| t != "null")).collect();
    match branches.as_slice() {
        [one] => open(root, one),
        _ => schema,
    }
}

fn choices(root: &Value, schema: &Value) -> Vec<Choice> {
    if let Some(options) = schema.get("enum").and_then(Value::as_array) {
        return options
            .iter()
            .filter(|o| !o.is_null())
            .map(|option| Choice { name: plain(option), about: String::new(), params: Vec::new() })
            .collect();
    }
    let mut out = Vec::new();
    for branch in array(schema, "oneOf").iter().chain(array(schema, "anyOf")) {
        let branch = open(root, branch);
        let about = about(branch).unwrap_or_default();
        let tag = branch
            .get("properties")
            .and_then(Value::as_object)
            .and_then(|p| p.iter().find_map(|(name, s)| Some(format!("{name} = {}", s.get("const")?))));
        if branch.get("type").is_some_and(|t| t == "null") {
            continue;
        } else if let Some(name) = branch.get("const") {
            out.push(Choice { name: plain(name), about, params: Vec::new() });
        } else if branch.get("enum").is_some() {
            out.extend(choices(root, branch));
        } else if let Some(name) = tag {
            out.push(Choice { name, about, params: params(root, branch) });
        } else {
            out.push(Choice { name: describe(root, branch), about, params: params(root, branch) });
        }
    }
    out
}

fn range(schema: &Value) -> Option<String> {
    let number = |key: &str| schema.get(key).filter(|n| n.is_number());
    let mut parts = Vec::new();
    for (key, word) in [
        ("minimum", "at least"),
        ("exclusiveMinimum", "more than"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "less than"),
    ] {
        if let Some(bound) = number(key) {
            // Every unsigned integer is at least 0.
            let idle = key == "minimum"
                && bound.as_f64() == Some(0.0)
                && schema.get("format").and_then(Value::as_str).is_some_and(|f| f.starts_with("uint"));
            if !idle {
                let bound = bound.as_f64().map_or_else(|| bound.to_string(), |b| b.to_string());
                parts.push(format!("{word} {bound}"));
            }
        }
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn about(schema: &Value) -> Option<String> {
    schema.get("description").and_then(Value::as_str).map(|text| text.split('\n').collect::<Vec<_>>().join(" "))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn array<'s>(schema: &'s Value, key: &str) -> &'s [Value] {
    schema.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

type AllPorts = (Vec<PortReference<InputPort>>, Vec<PortReference<OutputPort>>);

/// The ports with the plainest parameters, and those that one other choice brings.
fn all_ports(op: &dyn DynOp, schema: &Value) -> AllPorts {
    let plainest = example(schema, schema);
    let mut trials: Vec<(Option<String>, Value)> = vec![(None, plainest.clone())];
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        for option in options(schema, property) {
            let mut trial = plainest.clone();
            trial[name.as_str()] = option.clone();
            let shown = option.get("kind").unwrap_or(&option);
            trials.push((Some(format!("{name} = {shown}")), trial));
        }
    }
    let mut inputs: Vec<PortReference<InputPort>> = Vec::new();
    let mut outputs: Vec<PortReference<OutputPort>> = Vec::new();
    for (when, trial) in trials {
        let Ok(params) = op.canonical(&trial) else { continue };
        let Ports { inputs: ins, outputs: outs } = op.ports(&params);
        for port in ins {
            if !inputs.iter().any(|known| known.port.name == port.name) {
                inputs.push(PortReference { port, when: when.clone() });
            }
        }
        for port in outs {
            if !outputs.iter().any(|known| known.port.name == port.name) {
                outputs.push(PortReference { port, when: when.clone() });
            }
        }
    }
    (inputs, outputs)
}

/// Values worth trying for a parameter that is a choice.
fn options(root: &Value, schema: &Value) -> Vec<Value> {
    let schema = open(root, schema);
    if schema.get("type").is_some_and(|t| t == "boolean") {
        return vec![json!(false), json!(true)];
    }
    let mut out: Vec<Value> = array(schema, "enum").to_vec();
    out.extend(array(schema, "oneOf").iter().chain(array(schema, "anyOf")).map(|branch| example(root, branch)));
    if out.is_empty() && schema.get("properties").is_some() {
        // An optional table: being there may be the choice.
        out.push(example(root, schema));
    }
    out
}

/// The plainest value that a schema takes.
pub(crate) fn example(root: &Value, schema: &Value) -> Value {
    let schema = open(root, schema);
    for key in ["default", "const"] {
        if let Some(value) = schema.get(key) {
            return value.clone();
        }
    }
    if let Some(first) = array(schema, "enum").first() {
        return first.clone();
    }
    if let Some(first) = array(schema, "oneOf").iter().chain(array(schema, "anyOf")).next() {
        return example(root, first);
    }
    let kind = match schema.get("type") {
        Some(Value::Array(types)) => types.first().and_then(Value::as_str),
        other => other.and_then(Value::as_str),
    };
    let at_least = |n: f64| schema.get("minimum").and_then(Value::as_f64).unwrap_or(n);
    match kind {
        Some("object") => {
            let properties = schema.get("properties");
            let required = array(schema, "required").iter().filter_map(Value::as_str);
            required
                .map(|name| {
                    let property = properties.and_then(|p| p.get(name)).unwrap_or(&Value::Null);
                    (name.to_owned(), example(root, property))
                })
                .collect::<Map<_, _>>()
                .into()
        }
        Some("array") => {
            let count = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0);
            let fixed = array(schema, "prefixItems");
            (0..count as usize)
                .map(|i| fixed.get(i).or_else(|| schema.get("items")).map_or(Value::Null, |item| example(root, item)))
                .collect()
        }
        Some("integer") => json!(at_least(1.0) as i64),
        Some("number") => json!(at_least(1.0)),
        Some("boolean") => json!(false),
        Some("string") => json!(""),
        _ => Value::Null,
    }
}

/// A JSON Schema (draft 2020-12) of recipes made of these ops.
///
/// A file that `extends` another may leave out what its base says, so only others are held to what an op requires.
pub fn recipe_schema(registry: &Registry) -> Value {
    let names: Vec<&str> = registry.names().collect();
    let mut defs = common_defs();
    let mut dispatch = Vec::new();
    let mut complete = Vec::new();
    for op in registry.iter() {
        let (schema, required) = op_schema(op.as_ref(), &mut defs);
        let key = format!("op.{}", op.name());
        let when = json!({ "properties": { "op": { "const": op.name() } }, "required": ["op"] });
        dispatch.push(json!({ "if": when, "then": { "$ref": format!("#/$defs/{key}") } }));
        complete.push(json!({ "if": when, "then": { "required": required } }));
        defs.insert(key, schema);
    }
    let abouts: Vec<String> = registry.iter().map(|op| format!("- `{}`: {}", op.name(), op.about())).collect();
    defs.insert(
        "step".to_owned(),
        json!({
            "type": "object",
            "properties": { "op": { "enum": names, "description": format!("What the step runs.\n{}", abouts.join("\n")) } },
            "allOf": dispatch,
        }),
    );
    defs.insert("complete_step".to_owned(), json!({ "$ref": "#/$defs/step", "required": ["op"], "allOf": complete }));
    let steps = |kind: &str| json!({ "properties": { "step": { "additionalProperties": { "$ref": format!("#/$defs/{kind}") } } } });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "actloom recipe",
        "type": "object",
        "properties": {
            "name": { "type": "string", "description": "What the recipe is called." },
            "about": { "type": "string", "description": "One line about it." },
            "extends": { "type": "string", "description": "Another recipe, relative to this one, that this one is put over." },
            "vars": { "type": "object", "description": "Variables: `\"$name\"` is the whole value, `\"${name}\"` a part of a text." },
            "matrix": {
                "type": "object",
                "description": "Axes. A step that mentions one, or follows a step that does, has a variant for each of its values.",
                "additionalProperties": { "$ref": "#/$defs/axis" },
            },
            "step": { "type": "object", "description": "The steps, by name." },
            "profile": {
                "type": "object",
                "description": "Changes to choose with `--profile NAME`.",
                "additionalProperties": { "$ref": "#/$defs/profile" },
            },
        },
        "additionalProperties": false,
        "if": { "required": ["extends"] },
        "then": steps("step"),
        "else": steps("complete_step"),
        "$defs": defs,
    })
}

fn common_defs() -> Map<String, Value> {
    let defs = json!({
        "variable": { "type": "string", "pattern": "\\$", "description": "A variable or an axis, or text with one in it." },
        "reference": {
            "type": "string",
            "pattern": "^@|\\$",
            "description": "The output of a step: `@step`, `@step.output`, `@step[axis=label]`, `@step[*]`.",
        },
        "path": {
            "type": "object",
            "properties": { "path": {
                "type": "string",
                "minLength": 1,
                "description": "Absolute, below `~`, or below the folder of the file that says it.",
            }, "get": { "type": "string", "description": "Where to get it, for those who do not have it." } },
            "required": ["path"],
            "additionalProperties": false,
            "description": "A file or folder that is there already.",
        },
        "input": { "anyOf": [{ "$ref": "#/$defs/reference" }, { "$ref": "#/$defs/path" }] },
        "inputs": { "anyOf": [
            { "$ref": "#/$defs/input" },
            { "type": "array", "items": { "$ref": "#/$defs/input" } },
        ] },
        "axis": {
            "description": "A list of values, or a table of named values.",
            "anyOf": [
                { "type": "array", "minItems": 1 },
                { "type": "object", "minProperties": 1 },
                { "$ref": "#/$defs/variable" },
            ],
        },
        "profile": {
            "type": "object",
            "properties": {
                "about": { "type": "string" },
                "set": { "type": "object", "description": "Paths and their values: `\"step.act.epochs\" = 1`." },
            },
            "additionalProperties": false,
        },
    });
    match defs {
        Value::Object(defs) => defs,
        _ => Map::new(),
    }
}

/// What a step that runs this op may say, and what it must.
fn op_schema(op: &dyn DynOp, defs: &mut Map<String, Value>) -> (Value, Vec<String>) {
    let schema = op.schema();
    let prefix = format!("op.{}.", op.name());
    for (name, def) in schema.get("$defs").and_then(Value::as_object).into_iter().flatten() {
        defs.insert(format!("{prefix}{name}"), lenient(def, &prefix, false));
    }
    let mut properties = Map::new();
    properties.insert("op".to_owned(), json!({ "const": op.name(), "description": op.about() }));
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        properties.insert(name.clone(), lenient(property, &prefix, true));
    }
    let mut required: Vec<String> = array(&schema, "required").iter().map(plain).collect();
    for PortReference { port, when } in op_reference(op).inputs {
        let many = matches!(port.arity, Arity::Many | Arity::ManyOptional);
        if when.is_none() && matches!(port.arity, Arity::One | Arity::Many) {
            required.push(port.name.to_owned());
        }
        let kinds: Vec<&str> = port.kinds.iter().map(|kind| kind.0).collect();
        let about = format!("{} (takes {})", port.about, kinds.join(" or "));
        let target = if many { "#/$defs/inputs" } else { "#/$defs/input" };
        properties.insert(port.name.to_owned(), json!({ "$ref": target, "description": about }));
    }
    for (name, property) in settings() {
        properties.insert(name.to_owned(), property);
    }
    let schema = json!({ "properties": properties, "additionalProperties": false });
    (schema, required)
}

/// Keys that every step may have.
fn settings() -> [(&'static str, Value); 5] {
    let mut resources = schemars::schema_for!(Resources).to_value();
    if let Some(resources) = resources.as_object_mut() {
        resources.remove("$schema");
        resources.remove("title");
    }
    let resources = lenient(&resources, "", true);
    [
        (
            "seed",
            json!({
                "description": "Where the step's randomness starts; the axis `seed` or else 0 where it is left out.",
                "anyOf": [{ "type": "integer", "minimum": 0 }, { "$ref": "#/$defs/variable" }],
            }),
        ),
        (
            "each",
            json!({
                "description": "Axes of the step's own; what follows it inherits them.",
                "type": "object",
                "additionalProperties": { "$ref": "#/$defs/axis" },
            }),
        ),
        (
            "pin_device",
            json!({
                "description": "Results of another kind of device are not reused.",
                "anyOf": [{ "type": "boolean" }, { "$ref": "#/$defs/variable" }],
            }),
        ),
        ("resources", resources),
        ("about", json!({ "type": "string", "description": "One line about the step." })),
    ]
}

/// The schema with a variable allowed in the place of every value, and references into this op's own definitions.
/// `value`: the schema stands for a value, not for one form of it.
fn lenient(schema: &Value, prefix: &str, value: bool) -> Value {
    let Some(object) = schema.as_object() else { return schema.clone() };
    let mut out = Map::new();
    for (key, part) in object {
        let part = match (key.as_str(), part) {
            ("$ref", Value::String(target)) => json!(target.replace("#/$defs/", &format!("#/$defs/{prefix}"))),
            ("properties", Value::Object(properties)) => properties
                .iter()
                // A variable in the place of a tag would leave open which form is meant.
                .map(|(name, p)| (name.clone(), lenient(p, prefix, p.get("const").is_none())))
                .collect::<Map<_, _>>()
                .into(),
            ("items" | "additionalProperties", part) => lenient(part, prefix, true),
            ("prefixItems", Value::Array(parts)) => parts.iter().map(|p| lenient(p, prefix, true)).collect(),
            // Several forms may fit once variables may stand anywhere.
            ("anyOf" | "oneOf" | "allOf", Value::Array(parts)) => {
                parts.iter().map(|p| lenient(p, prefix, false)).collect()
            }
            _ => part.clone(),
        };
        let key = if key == "oneOf" { "anyOf" } else { key };
        out.insert(key.to_owned(), part);
    }
    let open_text = object.get("type").is_some_and(|t| t == "string") && !object.contains_key("enum");
    if !value || open_text || object.is_empty() {
        return Value::Object(out);
    }
    let mut wrapped = Map::new();
    for key in ["description", "default", "title"] {
        if let Some(part) = out.remove(key) {
            wrapped.insert(key.to_owned(), part);
        }
    }
    wrapped.insert("anyOf".to_owned(), json!([out, { "$ref": "#/$defs/variable" }]));
    Value::Object(wrapped)
}
