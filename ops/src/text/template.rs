//! Chat templates of model folders, run through minijinja as transformers runs them through Jinja.
//!
//! Invariants: what a template sees is what transformers shows it (special tokens, `tools` and `documents` as none,
//! loop controls, Python's methods and JSON); what minijinja does not know is refused when the folder is loaded; a
//! template's text does not depend on the day.

use std::fmt::Write;

use actloom_engine::op::OpError;
use camino::Utf8Path;
use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::{Map, Value as Json, json};

use super::tokenizer::Message;

/// What `strftime_now` tells every template: a rendering must be the same tomorrow, or nothing that was computed from it
/// could be reused. It is the day that Llama's templates name where they are told none.
const TODAY: DateTime = DateTime::constant(2024, 7, 26, 0, 0, 0, 0);

/// Special tokens that templates may name.
const TOKENS: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

/// A chat template, ready to run.
pub struct Template {
    environment: Environment<'static>,
    /// What every rendering sees.
    variables: Map<String, Json>,
}

fn read_json(path: &Utf8Path) -> Result<Json, OpError> {
    serde_json::from_slice(&fs_err::read(path)?).map_err(|e| OpError::failed(format!("cannot read `{path}`: {e}")))
}

/// A template out of `tokenizer_config.json`: one text, or several by name, of which `default` is meant.
fn named(value: &Json) -> Option<&str> {
    match value {
        Json::String(text) => Some(text),
        Json::Array(several) => several.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str()),
        _ => None,
    }
}

impl Template {
    /// Loads `chat_template.jinja`, else the template in `tokenizer_config.json`, and the special tokens; `None` where
    /// the folder has neither template.
    ///
    /// # Errors
    /// Names the file that is malformed, and what in a template is not understood.
    pub fn load(folder: &Utf8Path) -> Result<Option<Template>, OpError> {
        let (file, settings) = (folder.join("chat_template.jinja"), folder.join("tokenizer_config.json"));
        let settings = if settings.exists() { read_json(&settings)? } else { Json::Null };
        let source = if file.exists() {
            fs_err::read_to_string(&file)?
        } else {
            match named(&settings["chat_template"]) {
                Some(template) => template.to_owned(),
                None => return Ok(None),
            }
        };
        let mut variables = Map::new();
        for name in TOKENS {
            // a token is its text, or an object that says how it is split off
            let token = settings[name].as_str().or_else(|| settings[name]["content"].as_str());
            if let Some(token) = token {
                variables.insert(name.to_owned(), json!(token));
            }
        }
        Template::new(source, &format!("`{folder}`"), variables).map(Some)
    }

    /// Parses a template; `of` says in errors whose it is, `tokens` are the special tokens by the names that templates
    /// use (`bos_token`).
    ///
    /// # Errors
    /// What in the template is not understood.
    pub fn new(source: String, of: &str, tokens: Map<String, Json>) -> Result<Template, OpError> {
        let mut variables = tokens;
        for name in ["tools", "documents"] {
            variables.insert(name.to_owned(), Json::Null);
        }
        let environment = environment(source)
            .map_err(|e| OpError::failed(format!("the chat template of {of} cannot be used: {}", explain(&e))))?;
        Ok(Template { environment, variables })
    }

    /// Shows every rendering these variables, beside those that all templates see.
    ///
    /// # Errors
    /// A variable that the template never reads: it would change nothing.
    pub fn set(&mut self, variables: &Map<String, Json>) -> Result<(), OpError> {
        let read = self
            .environment
            .get_template("chat")
            .map(|template| template.undeclared_variables(false))
            .map_err(|e| OpError::failed(format!("the chat template cannot be used: {}", explain(&e))))?;
        for (name, value) in variables {
            if !read.contains(name) {
                return Err(OpError::with_help(
                    format!("the chat template has no variable `{name}`"),
                    format!("leave `{name}` out for this model"),
                ));
            }
            self.variables.insert(name.clone(), value.clone());
        }
        Ok(())
    }

    /// A conversation as text.
    ///
    /// # Errors
    /// The template's.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, OpError> {
        self.run(Value::from(Serde(messages)), add_generation_prompt, &Map::new())
    }

    /// A conversation in transformers' own form (roles of any name, tool calls), with variables of the template such as
    /// `tools` or `enable_thinking`.
    ///
    /// # Errors
    /// The template's.
    pub fn render_with(
        &self,
        messages: &Json,
        add_generation_prompt: bool,
        variables: &Map<String, Json>,
    ) -> Result<String, OpError> {
        self.run(Value::from(Serde(messages)), add_generation_prompt, variables)
    }

    fn run(&self, messages: Value, prompt: bool, more: &Map<String, Json>) -> Result<String, OpError> {
        let variables = self.variables.iter().chain(more).map(|(k, v)| (k.clone(), Value::from(Serde(v))));
        let given = [("messages".to_owned(), messages), ("add_generation_prompt".to_owned(), Value::from(prompt))];
        self.environment
            .get_template("chat")
            .and_then(|t| t.render(Value::from_pairs(variables.chain(given))))
            .map_err(|e| OpError::failed(format!("the chat template refused the conversation: {}", explain(&e))))
    }
}

/// An error with all of its causes, the template's own words among them.
fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        // an included template or a macro repeats what it passes on
        if !text.contains(&next.to_string()) {
            let _ = write!(text, ": {next}");
        }
        cause = next.source();
    }
    text
}

fn environment(source: String) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |text: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, text))
    });
    environment.add_function("strftime_now", |format: String| {
        jiff::fmt::strtime::format(&format, TODAY)
            .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("`strftime_now` of `{format}`: {e}")))
    });
    environment.add_template_owned("chat", scoped(&source))?;
    Ok(environment)
}

/// `{% generation %}` marks what an assistant said, for masks by searching; ours are made by construction. The mark is
/// left out of the text, its scope is kept.
fn scoped(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let word = tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replace("generation", "with")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endwith")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Python's `json.dumps` with the arguments that transformers lets a template give; nothing is escaped for HTML.
fn to_json(value: &Value, ensure_ascii: Option<bool>, indent: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let bad = |what: String| Error::new(ErrorKind::InvalidOperation, what);
    if value.is_undefined() {
        return Err(bad("`tojson` of a value that is not defined".to_owned()));
    }
    let ascii = ensure_ascii.or(named.get("ensure_ascii")?).unwrap_or(false);
    let indent = indent.or(named.get("indent")?).filter(|i| !i.is_none());
    let separators: Option<Vec<String>> = named.get("separators")?;
    let sort_keys = named.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    named.assert_all_used()?;
    let indent = match indent {
        None => None,
        Some(indent) => match (indent.as_str(), usize::try_from(indent.clone())) {
            (Some(text), _) => Some(text.to_owned()),
            (None, Ok(width)) => Some(" ".repeat(width)),
            _ => return Err(bad(format!("`tojson` was given `indent={indent}`, expected a number or a text"))),
        },
    };
    let [comma, colon] = match separators.as_deref() {
        None => [if indent.is_some() { "," } else { ", " }, ": "].map(str::to_owned),
        Some([comma, colon]) => [comma.clone(), colon.clone()],
        Some(other) => return Err(bad(format!("`tojson` was given {} separators, expected 2", other.len()))),
    };
    let value = serde_json::to_value(value).map_err(|e| bad(format!("`tojson`: {e}")))?;
    let style = Style { ascii, indent, comma, colon, sort_keys };
    let mut out = String::new();
    style.write(&value, 0, &mut out);
    Ok(Value::from(out))
}

/// How JSON is laid out.
struct Style {
    ascii: bool,
    indent: Option<String>,
    comma: String,
    colon: String,
    sort_keys: bool,
}

impl Style {
    fn write(&self, value: &Json, depth: usize, out: &mut String) {
        match value {
            Json::Array(items) => self.items('[', ']', items.iter().map(|v| (None, v)).collect(), depth, out),
            Json::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().map(|(k, v)| (Some(k), v)).collect();
                if self.sort_keys {
                    fields.sort_by_key(|(k, _)| *k);
                }
                self.items('{', '}', fields, depth, out);
            }
            Json::String(text) => self.text(text, out),
            Json::Number(number) if number.is_f64() => out.push_str(&float(number.as_f64().unwrap_or(f64::NAN))),
            other => out.push_str(&other.to_string()),
        }
    }

    fn items(&self, open: char, close: char, items: Vec<(Option<&String>, &Json)>, depth: usize, out: &mut String) {
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(open);
        for (i, (key, value)) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.comma);
            }
            line(out, depth + 1);
            if let Some(key) = key {
                self.text(key, out);
                out.push_str(&self.colon);
            }
            self.write(value, depth + 1, out);
        }
        if !items.is_empty() {
            line(out, depth);
        }
        out.push(close);
    }

    fn text(&self, text: &str, out: &mut String) {
        let quoted = Json::from(text).to_string();
        for c in quoted.chars() {
            if self.ascii && (!c.is_ascii() || c == '\u{7f}') {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            } else {
                out.push(c);
            }
        }
    }
}

/// A float as Python writes it: exponents from 1e16 and below 1e-4, of two digits at least.
fn float(x: f64) -> String {
    let scientific = format!("{x:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{x:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}
