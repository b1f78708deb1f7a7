//! What is asked for on a command line, held against what recipes may say, and opened.
//!
//! Invariant: settings are checked as those of a step are: by name, type and range, with the nearest name for what is not
//! known. A task is the one that a step with the same seed would play under that number.

use actloom_engine::diagnostic::Diagnostics;
use actloom_engine::op::{DeviceRequest, OpError, seed_for};
use actloom_engine::recipe::{Overrides, parse_text};
use actloom_engine::resolve::resolve;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

use crate::env::{Env, EnvError, Suite};
use crate::op::{demos, rollout};
use crate::registry::registry;
use crate::tool::worlds;

/// Listed tasks that are looked through for an id.
const LISTED: usize = 100_000;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    pub env: String,
    /// A number in the split, or an id.
    pub task: String,
    /// The environment's first if it is left out.
    pub split: Option<String>,
    pub data: Option<Utf8PathBuf>,
    pub seed: u64,
    /// `key=value` of the world, values as in TOML.
    pub set: Vec<String>,
    pub max_steps: Option<usize>,
    /// Who plays instead of a person.
    pub model: Option<Model>,
}

/// Who plays, and how.
#[derive(Clone, Debug)]
pub struct Model {
    pub path: Utf8PathBuf,
    pub device: DeviceRequest,
    /// `key=value` of the prompt.
    pub prompt: Vec<String>,
    pub temperature: Option<f64>,
    pub max_tokens: Option<usize>,
    /// `free` or `admissible`.
    pub decoding: Option<String>,
}

impl Model {
    /// Its path, or that of the model in a folder that `export` wrote.
    pub(super) fn found(&self) -> Utf8PathBuf {
        let inner = self.path.join("model");
        let outer = ["config.json", "policy.json"].iter().any(|name| self.path.join(name).exists());
        if !outer && inner.join("config.json").is_file() { inner } else { self.path.clone() }
    }
}

/// A task, ready to be played.
pub struct Opened {
    pub(super) env: Box<dyn Env>,
    /// Its number in the split.
    pub(super) index: usize,
    /// Longest game, in steps.
    pub(super) most: Option<usize>,
    pub(super) player: Option<Player>,
}

/// A policy's part.
pub(super) struct Player {
    pub path: Utf8PathBuf,
    pub device: DeviceRequest,
    pub params: rollout::Params,
    /// Of its answers.
    pub seed: u64,
}

/// Why nothing was opened.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    /// What is asked for cannot be.
    #[error("{message}")]
    Asked { message: String, help: Option<String> },
    /// The world cannot.
    #[error(transparent)]
    World(#[from] OpError),
}

impl Wrong {
    pub(crate) fn asked(message: impl Into<String>, help: impl Into<String>) -> Wrong {
        asked(message.into(), Some(help.into()))
    }
}

impl From<EnvError> for Wrong {
    fn from(error: EnvError) -> Wrong {
        Wrong::World(error.into())
    }
}

impl Asked {
    /// Opens the world and the task.
    ///
    /// # Errors
    /// Settings that cannot be; a task that there is not; whatever the world has against it.
    pub fn open(&self) -> Result<Opened, Wrong> {
        // 1. settings, as a step would have them
        let data = worlds::data(&self.env, self.data.as_deref())?;
        let params = self.params(data.as_deref())?;
        let (world, player) = match &self.model {
            None => (typed::<demos::Params>(params)?.world, None),
            Some(model) => {
                let params: rollout::Params = typed(params)?;
                let seed = seed_for(self.seed, "actions");
                let world = params.world.clone();
                (world, Some(Player { path: model.found(), device: model.device, params, seed }))
            }
        };
        // 2. the world, and the task in it
        let suite = world.open(data.as_deref())?;
        let (env, index) = find(&*suite, self.split.as_deref(), &self.task, seed_for(self.seed, "tasks"))?;
        let most = player.as_ref().map_or(self.max_steps, |player| Some(player.params.max_steps));
        Ok(Opened { env, index, most, player })
    }

    /// Parameters of `demos` for a person, of `rollout` for a model.
    fn params(&self, data: Option<&Utf8Path>) -> Result<Value, Wrong> {
        let quoted = |text: &str| Value::from(text).to_string();
        let mut text = format!("name = \"play\"\n[step.play]\nworld = {{ env = {} }}\n", quoted(&self.env));
        let mut line = |key: &str, value: String| text.push_str(&format!("{key} = {value}\n"));
        let path = |path: &Utf8Path| format!("{{ path = {} }}", quoted(path.as_str()));
        if let Some(data) = data {
            line("data", path(data));
        }
        if let Some(split) = &self.split {
            line("split", quoted(split));
        }
        if let Some(most) = self.max_steps {
            line("max_steps", most.to_string());
        }
        match &self.model {
            None => {
                line("op", quoted("demos"));
                line("count", "1".to_owned());
            }
            Some(model) => {
                line("op", quoted("rollout"));
                line("tasks", "1".to_owned());
                line("policy", path(&model.found()));
                if self.split.is_none() {
                    // there is no default; which one is played is settled when the world is open
                    line("split", quoted("train"));
                }
                if let Some(temperature) = model.temperature {
                    line("temperature", format!("{temperature:?}"));
                }
                if let Some(most) = model.max_tokens {
                    line("max_tokens", most.to_string());
                }
                if let Some(decoding) = &model.decoding {
                    line("decoding", quoted(decoding));
                }
            }
        }
        let mut overrides = Overrides::default();
        overrides.set.extend(self.set.iter().map(|set| format!("step.play.world.{set}")));
        let prompt = self.model.iter().flat_map(|model| &model.prompt);
        overrides.set.extend(prompt.map(|set| format!("step.play.prompt.{set}")));
        if let Some(set) = overrides.set.iter().find(|set| !set.contains('=')) {
            let set = set.rsplit('.').next().unwrap_or_default();
            return Err(asked(format!("`{set}` has no `=`"), Some("write `KEY=VALUE`".to_owned())));
        }
        let resolved = parse_text(Utf8Path::new("play.toml"), &text, &overrides)
            .and_then(|recipe| resolve(&recipe, &registry()))
            .map_err(|found| first(&found))?;
        let node = resolved.nodes.node_weights().next();
        Ok(node.map_or(Value::Null, |node| node.params.clone()))
    }
}

fn asked(message: String, help: Option<String>) -> Wrong {
    Wrong::Asked { message, help }
}

/// The first finding, in the words of a command line.
fn first(found: &Diagnostics) -> Wrong {
    let Some(found) = found.located().into_iter().next() else {
        panic!("BUG: settings are refused for no reason");
    };
    let help = (!found.help.is_empty()).then(|| found.help.join("; "));
    let message = found.message.replace(" of step `play`", "").replace("step `play`", "the environment");
    asked(message, help)
}

fn typed<T: serde::de::DeserializeOwned>(params: Value) -> Result<T, Wrong> {
    serde_json::from_value(params).map_err(|e| asked(e.to_string(), None))
}

/// A task by its number, or by its id. Without a split a number is one of the first, and an id of whichever has it.
pub(super) fn find(
    suite: &dyn Suite,
    split: Option<&str>,
    task: &str,
    seed: u64,
) -> Result<(Box<dyn Env>, usize), Wrong> {
    let splits = suite.splits();
    let Some(first) = split.or(splits.first().map(String::as_str)) else {
        return Err(asked(format!("the environment `{}` has no split", suite.name()), None));
    };
    let there = worlds::count(suite, first)?;
    if let Ok(index) = task.parse::<usize>() {
        if let Some(all) = there.filter(|all| index >= *all) {
            let message = format!("the split `{first}` of `{}` has {all} tasks, there is none `{index}`", suite.name());
            return Err(asked(message, Some("tasks count from 0".to_owned())));
        }
        return Ok((suite.open(first, index, seed)?, index));
    }
    // 1. `tiny/id/17` says where it stands, and so does `id/17`
    if let Some((named, index)) = task.rsplit_once('/')
        && let Ok(index) = index.parse::<usize>()
        && let Some(named) = named.rsplit('/').next()
        && splits.iter().any(|split| split == named)
        && suite.count(named)?.is_none_or(|all| index < all)
    {
        let env = suite.open(named, index, seed)?;
        if is(&*env, task) {
            return match split {
                // a split has other names too: `valid_seen`
                Some(asked) if asked != named && splits.iter().any(|split| split == asked) => {
                    Err(elsewhere(suite, asked, task, named))
                }
                _ => Ok((env, index)),
            };
        }
    }
    // 2. the split that was asked for, or the first
    let mut example = None;
    for index in 0..there.unwrap_or(1).min(LISTED) {
        let env = suite.open(first, index, seed)?;
        if is(&*env, task) {
            return Ok((env, index));
        }
        example.get_or_insert_with(|| env.task().id.clone());
    }
    // 3. all others
    for other in splits.iter().filter(|other| *other != first) {
        for index in 0..suite.count(other)?.unwrap_or(0).min(LISTED) {
            let Ok(env) = suite.open(other, index, seed) else { continue };
            if is(&*env, task) {
                return match split {
                    Some(asked) => Err(elsewhere(suite, asked, task, other)),
                    None => Ok((env, index)),
                };
            }
        }
    }
    let help = example.map(|example| format!("an id looks like `{example}`; a number counts from 0"));
    let message = match split {
        Some(split) => format!("the split `{split}` of `{}` has no task `{task}`", suite.name()),
        None => format!("no split of `{}` has a task `{task}`", suite.name()),
    };
    Err(asked(message, help))
}

/// Whether this is the id of a task, or its last parts.
fn is(env: &dyn Env, task: &str) -> bool {
    env.task().id.strip_suffix(task).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
}

fn elsewhere(suite: &dyn Suite, split: &str, task: &str, named: &str) -> Wrong {
    Wrong::asked(
        format!("the split `{split}` of `{}` has no task `{task}`, it is in `{named}`", suite.name()),
        format!("say `--split {named}`, or leave `--split` out"),
    )
}
