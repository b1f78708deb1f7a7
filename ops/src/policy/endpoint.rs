//! A server as a policy: OpenAI's HTTP interface, as vLLM and SGLang speak it; chat completions or plain completions.
//!
//! Invariants: nothing is contacted before the first ask; the key comes from the environment and is never written;
//! whatever the server does not say (ids, log-probabilities) is `None`; an answer outside the allowed ones, where it was
//! to be held to them, is an error: a server that ignores a field it does not know would go unnoticed otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actloom_engine::op::OpError;
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::http::{Job, Patience, Reply, Server, beginning};
use super::{Answer, Ask, Cost, Finish, Identity, Policy, Sampling, Session};
use crate::rng::Rng;
use crate::text::{Message, THINK_CLOSE, THINK_OPEN, Template, said};

/// Version of `policy.json`.
pub const POLICY_FILE_VERSION: u32 = 1;

/// `policy.json`: who acts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    pub v: u32,
    pub endpoint: Settings,
}

/// Which of a server's interfaces is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// `/chat/completions`: the server applies the chat template.
    #[default]
    Chat,
    /// `/completions`: `template` makes the text here.
    Completions,
}

/// How a server is held to a list of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Choices {
    /// It cannot be: a step that needs it is refused.
    #[default]
    Refuse,
    /// vLLM's `structured_outputs.choice`.
    StructuredOutputs,
    /// `guided_choice` of vLLM before 0.12.
    GuidedChoice,
}

/// Where a server is and how it is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The address below which `/models` and `/chat/completions` are: `http://localhost:8000/v1`.
    pub url: String,
    /// The model's name at the server; left out, the one that it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default)]
    pub api: Api,
    /// Name of the environment variable that holds the key; left out, no key is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_env: Option<String>,
    /// Requests under way at once.
    #[serde(default = "concurrency")]
    #[schemars(range(min = 1, max = 1024))]
    pub concurrency: usize,
    /// Longest wait for one answer, in seconds.
    #[serde(default = "deadline")]
    #[schemars(range(min = 0.001, max = 86400.0))]
    pub deadline: f64,
    /// Longest time for all requests of a step, in seconds.
    #[serde(default = "overall")]
    #[schemars(range(min = 0.001, max = 31536000.0))]
    pub overall: f64,
    /// How often a request is made again after a status of 429 or 5xx or a lost connection.
    #[serde(default = "retries")]
    #[schemars(range(max = 100))]
    pub retries: u32,
    /// How the server is held to a list of answers.
    #[serde(default)]
    pub choices: Choices,
    /// Ask for log-probabilities.
    #[serde(default = "yes")]
    pub logprobs: bool,
    /// Send a seed with each request.
    #[serde(default = "yes")]
    pub seeds: bool,
    /// With `api = "completions"`: the chat template (Jinja) that makes a text of a conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// More fields of the request's body, as they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Value>,
}

fn concurrency() -> usize {
    16
}
fn deadline() -> f64 {
    120.0
}
fn overall() -> f64 {
    86400.0
}
fn retries() -> u32 {
    5
}
fn yes() -> bool {
    true
}

/// Variables of the server's chat template, in the request.
const KWARGS: &str = "chat_template_kwargs";

/// Fields of the body that are made here.
const OURS: [&str; 11] =
    ["model", "messages", "prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "n", "stream"];

impl Settings {
    /// What is wrong with them: the parameter, what, and what to do.
    pub fn problems(&self) -> Vec<(&'static str, String, &'static str)> {
        let mut problems = Vec::new();
        let rest = self.url.strip_prefix("http://").or_else(|| self.url.strip_prefix("https://"));
        match rest {
            None => problems.push((
                "url",
                format!("`{}` is no address, expected `http://` or `https://` at its beginning", self.url),
                "write `url = \"http://localhost:8000/v1\"`",
            )),
            Some(rest) => {
                if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
                    // not shown: it holds a password
                    problems.push((
                        "url",
                        "the address holds a user or a password, expected neither".into(),
                        "put the key into an environment variable and name it: `key_env`",
                    ));
                } else if rest.contains(['?', '#']) {
                    problems.push((
                        "url",
                        format!("`{}` goes on after the path, expected an address that ends with it", self.url),
                        "leave out `?` and `#`; a key belongs into an environment variable, `key_env`",
                    ));
                }
            }
        }
        if let Some(name) = &self.key_env
            && (name.is_empty() || name.contains(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        {
            problems.push((
                "key_env",
                "it is not the name of an environment variable".into(),
                "`key_env` is the name of the variable, never the key itself",
            ));
        }
        match (self.api, &self.template) {
            (Api::Completions, None) => problems.push((
                "template",
                "`api = \"completions\"` sends a text, and nothing says how a conversation becomes one".into(),
                "give the model's chat template as `template`, or take `api = \"chat\"`",
            )),
            (Api::Chat, Some(_)) => problems.push((
                "template",
                "`api = \"chat\"` leaves the template to the server".into(),
                "leave out `template`, or take `api = \"completions\"`",
            )),
            _ => {}
        }
        if let Some(field) = self.extra.keys().find(|key| OURS.contains(&key.as_str())) {
            problems.push((
                "extra",
                format!("`{field}` of the request is set by the step that asks"),
                "leave it out of `extra`",
            ));
        }
        problems
    }
}

/// A server that acts.
pub struct Endpoint {
    settings: Settings,
    server: Arc<Server>,
    template: Option<Template>,
    /// A reasoning that comes apart from its answer is put before it.
    joins: bool,
    talks: Vec<Option<Vec<Message>>>,
    /// Beginnings of answers that are not given yet, by session.
    begun: BTreeMap<usize, String>,
    /// When patience ends; set by the first request.
    end: Option<Instant>,
    /// Models that the server lists.
    listed: Vec<String>,
    /// Models that answered.
    served: Vec<String>,
    cost: Cost,
}

impl Endpoint {
    /// Reads a `policy.json` and, if it names one, the key from the environment. Contacts nobody.
    ///
    /// # Errors
    /// Names what cannot be read, and a variable that is not set.
    pub fn load(path: &Utf8Path) -> Result<Endpoint, OpError> {
        let file: PolicyFile = serde_json::from_slice(&fs_err::read(path)?)
            .map_err(|e| OpError::failed(format!("cannot read the policy `{path}`: {e}")))?;
        if file.v != POLICY_FILE_VERSION {
            let v = file.v;
            return Err(OpError::failed(format!("`{path}` has version {v}, expected {POLICY_FILE_VERSION}")));
        }
        let settings = file.endpoint;
        let key = match &settings.key_env {
            None => None,
            Some(name) => match std::env::var(name) {
                Ok(key) if !key.trim().is_empty() => Some(key.trim().to_owned()),
                _ => {
                    return Err(OpError::with_help(
                        format!("the environment variable `{name}` is not set, expected the key to `{}`", settings.url),
                        format!("set `{name}`, or leave out `key_env` of the endpoint where no key is needed"),
                    ));
                }
            },
        };
        Endpoint::new(settings, key)
    }

    /// An endpoint whose key is at hand.
    ///
    /// # Errors
    /// The first of [`Settings::problems`], and the template's.
    pub fn new(settings: Settings, key: Option<String>) -> Result<Endpoint, OpError> {
        if let Some((field, what, help)) = settings.problems().into_iter().next() {
            return Err(OpError::with_help(format!("`{field}` of the endpoint: {what}"), help));
        }
        let template = match &settings.template {
            Some(source) => Some(Template::new(source.clone(), "the endpoint", serde_json::Map::new())?),
            None => None,
        };
        let patience = Patience {
            deadline: Duration::from_secs_f64(settings.deadline),
            overall: Duration::from_secs_f64(settings.overall),
            retries: settings.retries,
            concurrency: settings.concurrency,
        };
        let server = Arc::new(Server::new(&settings.url, key, patience));
        Ok(Endpoint {
            settings,
            server,
            template,
            joins: false,
            talks: Vec::new(),
            begun: BTreeMap::new(),
            end: None,
            listed: Vec::new(),
            served: Vec::new(),
            cost: Cost::default(),
        })
    }

    fn talk(&mut self, session: Session) -> &mut Vec<Message> {
        match self.talks.get_mut(session.0).and_then(Option::as_mut) {
            Some(talk) => talk,
            None => panic!("BUG: a conversation is used that is not open"),
        }
    }

    /// The first contact: what does the server serve?
    fn meet(&mut self, stopping: &dyn Fn() -> bool) -> Result<Instant, OpError> {
        if let Some(end) = self.end {
            return Ok(end);
        }
        let end = Instant::now() + Duration::from_secs_f64(self.settings.overall);
        let job = Job { path: "/models", body: None, rng: Rng::new(0, 0) };
        let place = format!("{}/models", self.server.url());
        match self.server.all(vec![job], end, stopping)?.pop() {
            Some(Reply::Json(json)) => {
                let list = json["data"].as_array().ok_or_else(|| {
                    let seen = beginning(&json.to_string());
                    OpError::failed(format!("`{place}` answered `{seen}`, expected an object with the list `data`"))
                })?;
                self.listed = list.iter().filter_map(|m| m["id"].as_str().map(str::to_owned)).collect();
            }
            // a gateway may have no such list; then the answers say who gave them
            Some(Reply::Refused(404 | 405 | 501, _)) | None => {}
            Some(Reply::Refused(status, text)) => return Err(self.refused("/models", status, &text)),
        }
        if self.settings.model.is_none() {
            match self.listed.as_slice() {
                [one] => self.settings.model = Some(one.clone()),
                several => {
                    let names = several.iter().map(|m| format!("`{m}`")).collect::<Vec<_>>().join(", ");
                    return Err(OpError::with_help(
                        format!("`{place}` lists {} models, expected one where `model` is left out", several.len()),
                        if names.is_empty() {
                            "name the model: `model`".into()
                        } else {
                            format!("`model` is one of {names}")
                        },
                    ));
                }
            }
        }
        self.end = Some(end);
        Ok(end)
    }

    fn refused(&self, path: &str, status: u16, text: &str) -> OpError {
        let message =
            format!("`{}{path}` refused the request with status {status}: `{}`", self.server.url(), beginning(text));
        match (status, &self.settings.key_env) {
            (401 | 403, None) => {
                OpError::with_help(message, "name the environment variable that holds the key: `key_env`")
            }
            (401 | 403, Some(name)) => OpError::with_help(message, format!("see whether `{name}` holds the right key")),
            (404, _) => {
                OpError::with_help(message, "see whether `url` ends in `/v1` and whether the server knows `model`")
            }
            _ => OpError::failed(message),
        }
    }

    fn path(&self) -> &'static str {
        match self.settings.api {
            Api::Chat => "/chat/completions",
            Api::Completions => "/completions",
        }
    }

    fn body(&self, messages: &[Message], ask: &Ask<'_>, seed: u32) -> Result<Value, OpError> {
        let Sampling { temperature, max_tokens, top_k, top_p, min_p, stop, stop_ids } = ask.sampling;
        let mut body = Map::new();
        let mut set = |key: &str, value: Value| body.insert(key.to_owned(), value);
        set("model", json!(self.settings.model));
        match &self.template {
            None => set("messages", serde_json::to_value(messages).map_err(std::io::Error::from)?),
            Some(template) => {
                let begun = self.begun.get(&ask.session.0).map_or("", String::as_str);
                set("prompt", json!(template.render(messages, true)? + begun))
            }
        };
        set("max_tokens", json!(max_tokens));
        set("temperature", json!(temperature));
        if *top_p < 1.0 {
            set("top_p", json!(top_p));
        }
        if *top_k > 0 {
            set("top_k", json!(top_k));
        }
        if *min_p > 0.0 {
            set("min_p", json!(min_p));
        }
        if !stop.is_empty() {
            set("stop", json!(stop));
        }
        if !stop_ids.is_empty() {
            set("stop_token_ids", json!(stop_ids));
        }
        if self.settings.logprobs {
            match self.settings.api {
                Api::Chat => set("logprobs", json!(true)),
                Api::Completions => set("logprobs", json!(1)),
            };
        }
        if self.settings.seeds {
            set("seed", json!(seed));
        }
        if !ask.allowed.is_empty() {
            match self.settings.choices {
                Choices::StructuredOutputs => set("structured_outputs", json!({ "choice": ask.allowed })),
                Choices::GuidedChoice => set("guided_choice", json!(ask.allowed)),
                Choices::Refuse => {
                    return Err(OpError::with_help(
                        format!(
                            "the answers of `{}` are to be held to a list, and nothing says that it can",
                            self.server.url()
                        ),
                        "set `choices = \"structured_outputs\"` of the endpoint (vLLM), or let the step decode freely",
                    ));
                }
            };
        }
        for (key, value) in &self.settings.extra {
            set(key, value.clone());
        }
        Ok(Value::Object(body))
    }

    fn read(&mut self, ask: &Ask<'_>, reply: Reply) -> Result<Answer, OpError> {
        let path = self.path();
        let json = match reply {
            Reply::Json(json) => json,
            Reply::Refused(400 | 413 | 422, text) if too_long(&text) => {
                return Ok(Answer { text: String::new(), ids: None, logps: None, finish: Finish::Room });
            }
            Reply::Refused(status, text) => return Err(self.refused(path, status, &text)),
        };
        let place = format!("{}{path}", self.server.url());
        let wrong = |what: &str| {
            let seen = beginning(&json.to_string());
            OpError::failed(format!("`{place}` answered `{seen}`, expected {what}"))
        };
        let choice = json["choices"].get(0).ok_or_else(|| wrong("an object with the list `choices`"))?;
        let finish = match choice["finish_reason"].as_str() {
            Some("stop") => Finish::End,
            // cut off, by the server's filter or by whoever stopped it: no answer, and no reason to end a study
            Some("length" | "content_filter" | "abort" | "tool_calls" | "function_call") => Finish::Length,
            _ => return Err(wrong("`choices[0].finish_reason` to be `stop`, `length` or one of OpenAI's others")),
        };
        let (text, logps) = match self.settings.api {
            Api::Chat => (&choice["message"]["content"], logprobs(&choice["logprobs"]["content"], |t| &t["logprob"])),
            Api::Completions => (&choice["text"], logprobs(&choice["logprobs"]["token_logprobs"], |t| t)),
        };
        let text = match (text, finish) {
            (Value::String(text), _) => text.clone(),
            // a reasoning that no answer followed
            (Value::Null, _) if choice["message"].get("content").is_some() => String::new(),
            (Value::Null, Finish::Length) => String::new(),
            _ => return Err(wrong("the answer's text to be a string")),
        };
        let apart = ["reasoning_content", "reasoning"].iter().find_map(|field| choice["message"][*field].as_str());
        let text = match apart.filter(|reasoning| self.joins && !reasoning.is_empty()) {
            Some(reasoning) if !text.contains(THINK_OPEN) => format!("{THINK_OPEN}{reasoning}{THINK_CLOSE}{text}"),
            _ => text,
        };
        if finish == Finish::End && !ask.allowed.is_empty() && !ask.allowed.contains(&text) {
            return Err(OpError::with_help(
                format!("`{place}` answered `{}`, expected one of the answers it was to be held to", beginning(&text)),
                "the server does not know the field that `choices` of the endpoint names, or another one is needed",
            ));
        }
        self.cost.answers += 1;
        self.cost.read += json["usage"]["prompt_tokens"].as_u64().unwrap_or(0);
        self.cost.sampled += json["usage"]["completion_tokens"].as_u64().unwrap_or(0);
        if let Some(model) = json["model"].as_str()
            && !self.served.iter().any(|m| m == model)
        {
            self.served.push(model.to_owned());
            self.served.sort();
        }
        // servers report the distribution before temperature and filters
        let logps =
            logps.filter(|_| ask.sampling.temperature == 1.0 && ask.sampling.is_whole() && ask.allowed.is_empty());
        Ok(Answer { text, ids: None, logps, finish })
    }
}

/// Log-probabilities of the tokens, if there is one for each.
fn logprobs(list: &Value, of: impl Fn(&Value) -> &Value) -> Option<Vec<f32>> {
    let list = list.as_array().filter(|list| !list.is_empty())?;
    list.iter().map(|token| of(token).as_f64().map(|l| l as f32)).collect()
}

/// Whether a refusal says that the conversation is longer than the model takes, in OpenAI's or vLLM's or SGLang's words.
fn too_long(text: &str) -> bool {
    ["context_length_exceeded", "maximum context length", "longer than the model's context length"]
        .iter()
        .any(|words| text.contains(words))
}

impl Policy for Endpoint {
    fn identity(&self) -> Identity {
        let served =
            if self.served.is_empty() { self.settings.model.iter().cloned().collect() } else { self.served.clone() };
        Identity {
            make: "endpoint",
            served,
            listed: self.listed.clone(),
            at: self.server.url().to_owned(),
            reproducible: false,
        }
    }

    fn cost(&self) -> Cost {
        Cost { retries: self.server.retries(), ..self.cost }
    }

    fn width(&self) -> usize {
        // the next requests are ready while the slowest of these are under way; a step that is killed asks them again
        self.settings.concurrency.saturating_mul(2)
    }

    fn join_reasoning(&mut self, join: bool) {
        self.joins = join;
    }

    fn set(&mut self, variables: &Map<String, Value>) -> Result<(), OpError> {
        if let Some(template) = &mut self.template {
            return template.set(variables);
        }
        // vLLM and SGLang both take them under this name
        let known = self.settings.extra.get(KWARGS).cloned().unwrap_or_else(|| json!({}));
        let Value::Object(mut all) = known else {
            return Err(OpError::failed(format!("`{KWARGS}` of the endpoint is `{known}`, expected a table")));
        };
        for (name, value) in variables {
            if let Some(other) = all.insert(name.clone(), value.clone()).filter(|other| other != value) {
                return Err(OpError::with_help(
                    format!("`{name}` is `{value}` in the prompt and `{other}` in `extra.{KWARGS}` of the endpoint"),
                    "set it at one place",
                ));
            }
        }
        if !all.is_empty() {
            self.settings.extra.insert(KWARGS.to_owned(), Value::Object(all));
        }
        Ok(())
    }

    fn open(&mut self) -> Session {
        self.talks.push(Some(Vec::new()));
        Session(self.talks.len() - 1)
    }

    fn close(&mut self, session: Session) {
        self.talks[session.0] = None;
        self.begun.remove(&session.0);
    }

    fn system(&mut self, session: Session, content: &str) -> Result<(), OpError> {
        let talk = self.talk(session);
        if !talk.is_empty() {
            return Err(OpError::failed(
                "a system text stands in the middle of a conversation, expected at its beginning",
            ));
        }
        talk.push(Message::system(content));
        Ok(())
    }

    fn user(&mut self, session: Session, content: &str) -> Result<(), OpError> {
        self.talk(session).push(Message::user(said(content)));
        Ok(())
    }

    fn assistant(&mut self, session: Session, content: &str) -> Result<(), OpError> {
        let begun = self.begun.remove(&session.0).unwrap_or_default();
        self.talk(session).push(Message::assistant(begun + content));
        Ok(())
    }

    fn begins(&self) -> bool {
        self.template.is_some()
    }

    fn begin(&mut self, session: Session, text: &str) -> Result<(), OpError> {
        if !self.begins() {
            return Err(super::cannot_begin(&self.identity()));
        }
        self.begun.entry(session.0).or_default().push_str(text);
        Ok(())
    }

    fn tokens(&self, _: Session) -> Option<usize> {
        None
    }

    fn positions(&self) -> Option<usize> {
        None
    }

    fn answer(&mut self, asks: &[Ask<'_>], stopping: &dyn Fn() -> bool) -> Result<Vec<Answer>, OpError> {
        if asks.is_empty() {
            return Ok(Vec::new());
        }
        let end = self.meet(stopping)?;
        let mut jobs = Vec::with_capacity(asks.len());
        for ask in asks {
            let mut rng = ask.rng.clone();
            // servers take a seed of 31 bits and more
            let seed = rng.next_u32() >> 1;
            let messages = self.talk(ask.session).clone();
            jobs.push(Job { path: self.path(), body: Some(self.body(&messages, ask, seed)?), rng });
        }
        let replies = self.server.all(jobs, end, stopping)?;
        let mut answers = Vec::with_capacity(asks.len());
        for (ask, reply) in asks.iter().zip(replies) {
            let answer = self.read(ask, reply)?;
            if ask.keep {
                let begun = self.begun.remove(&ask.session.0).unwrap_or_default();
                self.talk(ask.session).push(Message::assistant(begun + &answer.text));
            }
            answers.push(answer);
        }
        Ok(answers)
    }
}
