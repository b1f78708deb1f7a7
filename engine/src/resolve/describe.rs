//! Reads schemas: look-up of definitions, the constants of an enum, and what a schema takes in words.

use serde_json::{Map, Value as Json};

use crate::diagnostic::listed;

pub(super) fn type_is(schema: &Json, name: &str) -> bool {
    match schema.get("type") {
        Some(Json::String(one)) => one == name,
        Some(Json::Array(many)) => many.iter().any(|t| t == name),
        _ => name == "object" && schema.get("properties").is_some(),
    }
}

/// The values of an `enum` or `const`.
pub(super) fn constants(schema: &Map<String, Json>) -> Option<Vec<&Json>> {
    if let Some(one) = schema.get("const") {
        return Some(vec![one]);
    }
    schema.get("enum")?.as_array().map(|options| options.iter().filter(|o| !o.is_null()).collect())
}

pub(super) fn list<'s>(schema: &'s Map<String, Json>, word: &str) -> &'s [Json] {
    schema.get(word).and_then(Json::as_array).map_or(&[], Vec::as_slice)
}

/// `#/$defs/Name` in the schema document.
pub(crate) fn lookup<'s>(root: &'s Json, target: &str) -> Option<&'s Json> {
    if target == "#" { Some(root) } else { root.pointer(target.strip_prefix('#')?) }
}

pub(super) fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

pub(super) fn or(kinds: &[String]) -> String {
    match kinds {
        [] => "something else".to_owned(),
        [one] => one.clone(),
        [head @ .., last] => format!("{} or {last}", head.join(", ")),
    }
}

/// What a schema takes, in words: `an integer`, `a list of text`, `` `a` or `b` ``.
pub(crate) fn describe(root: &Json, schema: &Json) -> String {
    let Some(object) = schema.as_object() else { return "anything".to_owned() };
    if let Some(target) = object.get("$ref").and_then(Json::as_str) {
        return lookup(root, target).map_or_else(|| "anything".to_owned(), |target| describe(root, target));
    }
    if let Some(options) = constants(object) {
        let names: Vec<String> = options.iter().map(|o| plain(o)).collect();
        return listed(names.iter().map(String::as_str), "or");
    }
    for word in ["anyOf", "oneOf"] {
        if object.contains_key(word) {
            let open: Vec<&Json> = list(object, word).iter().filter(|b| !type_is(b, "null")).collect();
            let all: Option<Vec<&Json>> =
                open.iter().map(|b| b.as_object().and_then(constants)).collect::<Option<Vec<_>>>().map(|o| o.concat());
            if let Some(options) = all {
                let names: Vec<String> = options.iter().map(|o| plain(o)).collect();
                return listed(names.iter().map(String::as_str), "or");
            }
            let mut kinds: Vec<String> = Vec::new();
            for branch in open {
                let kind = describe(root, branch);
                if !kinds.contains(&kind) {
                    kinds.push(kind);
                }
            }
            return or(&kinds);
        }
    }
    let types: Vec<&str> = match object.get("type") {
        Some(Json::String(one)) => vec![one],
        Some(Json::Array(many)) => many.iter().filter_map(Json::as_str).collect(),
        _ => return "anything".to_owned(),
    };
    let kinds: Vec<String> = types
        .into_iter()
        .filter(|t| *t != "null")
        .map(|t| match t {
            "string" => "text".to_owned(),
            "integer" => "an integer".to_owned(),
            "number" => "a number".to_owned(),
            "boolean" => "`true` or `false`".to_owned(),
            "array" => match object.get("items") {
                Some(items) if items.is_object() => format!("a list, each {}", describe(root, items)),
                _ => "a list".to_owned(),
            },
            _ => "a table".to_owned(),
        })
        .collect();
    or(&kinds)
}
