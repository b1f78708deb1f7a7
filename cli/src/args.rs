//! The command line.
//!
//! Invariant: whatever stands here is what `--help` says; no other module reads arguments or the environment, but for
//! the folder of the store ([`crate::load`]).

use actloom_engine::op::DeviceRequest;
use actloom_engine::recipe::Overrides;
use actloom_ops::tool::device::{LAYERS, MODELS};
use camino::Utf8PathBuf;
use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand, ValueEnum};

use crate::exit;

const GLOBAL: &str = "Everywhere";

/// Trains language-model agents by recipe: what is known is reused, what changed runs, and every number has its reason.
#[derive(Debug, Parser)]
#[command(name = "actloom", version, about, after_help = exit::TABLE, infer_long_args = false)]
pub struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = GLOBAL)]
pub struct Global {
    /// Folder of the store [default: the user's cache folder]
    #[arg(long, global = true, env = "ACTLOOM_STORE", value_name = "DIR", hide_env_values = true)]
    pub store: Option<Utf8PathBuf>,
    /// Print JSON on stdout; for `run` JSON lines, an event each, the last one the summary
    #[arg(long, global = true)]
    pub json: bool,
    /// What to log on stderr: `debug`, `actloom_engine=trace`
    #[arg(long, global = true, env = "ACTLOOM_LOG", value_name = "FILTER", hide_env_values = true)]
    pub log: Option<String>,
    /// Write a trace for chrome://tracing or ui.perfetto.dev
    #[arg(long, global = true, value_name = "FILE")]
    pub trace: Option<Utf8PathBuf>,
    /// When to colour; NO_COLOR is honoured
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub color: Color,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Color {
    #[default]
    Auto,
    Always,
    Never,
}

impl Color {
    /// Settles colour for the whole program.
    pub fn write_global(self) {
        match self {
            Color::Auto => {}
            Color::Always => anstream::ColorChoice::Always.write_global(),
            Color::Never => anstream::ColorChoice::Never.write_global(),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a recipe, or some steps of it; reuse everything that is known
    Run(Run),
    /// Say what a run would do, and why; do nothing
    Plan(Plan),
    /// Explain why a step runs, or that it does not
    Why(Why),
    /// Draw the graph of steps
    Graph(Graph),
    /// List the ops, or describe one: parameters, inputs, outputs
    Ops(Ops),
    /// Print a JSON Schema of recipes, for editors
    Schema,
    /// Show what a step made: outputs, metrics, provenance
    Show(Show),
    /// Copy what a step made out of the store: a trained model, episodes, a table
    Export(Export),
    /// List past runs
    Runs(Runs),
    /// Look after the store
    #[command(subcommand)]
    Cache(Cache),
    /// Write a recipe to start from
    New(New),
    /// Look at a model, try it, or write it in another form
    #[command(subcommand)]
    Model(Model),
    /// Talk to a model
    Chat(Chat),
    /// Play one task of an environment, or watch a model play it
    Play(Play),
    /// Look at environments: their tasks, and whether captured transcripts come out again
    #[command(subcommand)]
    Env(Env),
    /// Look at a GPU: what it is, whether it computes what it should, how fast
    #[command(subcommand)]
    Device(DeviceVerb),
}

/// Which recipe, and what of it to change.
#[derive(Debug, clap::Args)]
pub struct Recipe {
    /// Take a profile of the recipe
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// Override a value: `step.act.learning_rate=1e-5`, or a variable: `seed=1`
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// Where tensors live: `auto`, `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value = "auto", value_name = "DEVICE", value_parser = device)]
    pub device: DeviceRequest,
}

impl Recipe {
    pub fn overrides(&self) -> Overrides {
        Overrides { profile: self.profile.clone(), set: self.set.clone() }
    }
}

/// A recipe and some of its steps. A first word that is no file and no folder with a recipe is a step.
#[derive(Debug, clap::Args)]
pub struct Words {
    /// The recipe's file [default: the only one in this folder]
    #[arg(value_name = "RECIPE")]
    pub first: Option<String>,
    /// `STEP`, or some of its variants: `STEP[axis=label]`
    #[arg(value_name = "STEP")]
    pub rest: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct Run {
    #[command(flatten)]
    pub words: Words,
    #[command(flatten)]
    pub recipe: Recipe,
    /// Run a step although its result is known
    #[arg(long, value_name = "STEP")]
    pub force: Vec<String>,
    /// Cores for running steps [default: all]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub jobs: Option<u32>,
    /// GPUs for running steps [default: one, where the device is one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=64))]
    pub gpus: Option<u32>,
    /// Start nothing new after a failure
    #[arg(long)]
    pub fail_fast: bool,
    /// Where to put tables and reports, in a folder named like the recipe, or `NAME-PROFILE` with a profile
    #[arg(long, value_name = "DIR", default_value = "out", conflicts_with = "no_out")]
    pub out: Utf8PathBuf,
    /// Put no tables and reports anywhere
    #[arg(long)]
    pub no_out: bool,
}

#[derive(Debug, clap::Args)]
pub struct Plan {
    #[command(flatten)]
    pub words: Words,
    #[command(flatten)]
    pub recipe: Recipe,
    /// Plan as if these were forced
    #[arg(long, value_name = "STEP")]
    pub force: Vec<String>,
    /// List every variant, and what is reused too
    #[arg(long)]
    pub all: bool,
}

#[derive(Debug, clap::Args)]
pub struct Why {
    #[command(flatten)]
    pub words: Words,
    #[command(flatten)]
    pub recipe: Recipe,
}

#[derive(Debug, clap::Args)]
pub struct Graph {
    /// The recipe's file [default: the only one in this folder]
    #[arg(value_name = "RECIPE")]
    pub first: Option<String>,
    #[command(flatten)]
    pub recipe: Recipe,
    /// What draws it
    #[arg(long, value_enum, default_value_t)]
    pub format: GraphFormat,
    /// A box for every variant
    #[arg(long)]
    pub expand: bool,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum GraphFormat {
    /// Graphviz
    #[default]
    Dot,
    Mermaid,
}

#[derive(Debug, clap::Args)]
pub struct Ops {
    pub name: Option<String>,
    /// Write the reference of all ops as a page of Markdown
    #[arg(long, conflicts_with = "name")]
    pub markdown: bool,
}

#[derive(Debug, clap::Args)]
pub struct Show {
    #[command(flatten)]
    pub words: Words,
    #[command(flatten)]
    pub recipe: Recipe,
}

#[derive(Debug, clap::Args)]
#[command(override_usage = "actloom export [OPTIONS] [RECIPE] STEP DIR", after_help = EXPORT)]
pub struct Export {
    /// `[RECIPE] STEP DIR`: the recipe's file, unless it is the only one in this folder; a step, or some of its variants;
    /// a folder to write to
    #[arg(value_name = "WORD", num_args = 2..=3, required = true)]
    pub words: Vec<String>,
    #[command(flatten)]
    pub recipe: Recipe,
}

const EXPORT: &str = "\
Each output becomes a writable file or folder below DIR: `DIR/model/config.json`. Several variants get a folder each, \
named like the variant. Nothing is overwritten, and what is not made yet is not run.";

#[derive(Debug, clap::Args)]
pub struct Runs {
    /// List more than the last twenty
    #[arg(long)]
    pub all: bool,
}

#[derive(Debug, Subcommand)]
pub enum Cache {
    /// List recorded results
    Ls,
    /// Say how much the store holds
    Du,
    /// Hash everything again and report what is not as it was stored
    Verify(Verify),
    /// Plan what to forget; `--apply` forgets it
    Gc(Gc),
}

#[derive(Debug, clap::Args)]
pub struct Verify {
    /// Remove what is damaged, so that the next run makes it again; the exit code is still 5
    #[arg(long)]
    pub repair: bool,
}

#[derive(Debug, clap::Args)]
pub struct Gc {
    /// Forget the least recently used results until the store is this small: `20G`
    #[arg(long, value_name = "SIZE", value_parser = crate::text::parse_bytes)]
    pub max_bytes: Option<u64>,
    /// Forget results that were not used for so long: `30d`, `12h`
    #[arg(long, value_name = "TIME", value_parser = crate::text::parse_age)]
    pub max_age: Option<std::time::Duration>,
    /// Forget nothing that this recipe would reuse
    #[arg(long, value_name = "RECIPE")]
    pub keep: Vec<Utf8PathBuf>,
    /// Do it
    #[arg(long)]
    pub apply: bool,
}

#[derive(Debug, clap::Args)]
pub struct New {
    /// A folder, which gets a `recipe.toml`, or a file whose name ends in `.toml`
    #[arg(value_name = "DIR")]
    pub path: Utf8PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum Model {
    /// Say what a model, an adapter or a GGUF file holds, and what memory it needs
    Info(ModelInfo),
    /// Write the logits of given token ids, and what the model would say next
    Logits(Logits),
    /// Write what a model says after a prompt
    Generate(Generate),
    /// Write a model whose weights have an adapter added
    Merge(Merge),
    /// Write a model in another type of number, or in other shards
    Convert(Convert),
}

/// Which model.
#[derive(Debug, clap::Args)]
pub struct Source {
    /// A Hugging Face folder
    #[arg(value_name = "DIR")]
    pub dir: Utf8PathBuf,
    /// A PEFT folder whose adapters are put on
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<Utf8PathBuf>,
    /// Where tensors live: `auto`, `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value = "auto", value_name = "DEVICE", value_parser = device)]
    pub device: DeviceRequest,
}

#[derive(Debug, clap::Args)]
pub struct ModelInfo {
    /// A Hugging Face folder, an adapter's folder, or a GGUF file
    #[arg(value_name = "DIR")]
    pub path: Utf8PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct Logits {
    #[command(flatten)]
    pub source: Source,
    /// JSON: a list of lists of token ids
    #[arg(long, value_name = "FILE.json")]
    pub tokens: Utf8PathBuf,
    /// Gets `logits.0`, `logits.1`, ...: [tokens, vocabulary] in float32 for each list
    #[arg(long, value_name = "FILE.safetensors")]
    pub out: Utf8PathBuf,
    /// Also write `greedy.0`, ...: the N likeliest next ids of each list, end ids ignored
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub greedy: Option<u32>,
}

#[derive(Debug, clap::Args)]
pub struct Generate {
    #[command(flatten)]
    pub source: Source,
    #[command(flatten)]
    pub prompt: Prompt,
    #[command(flatten)]
    pub sampling: Sampling,
    /// Continue the text as it is, without the chat template
    #[arg(long, conflicts_with = "chat")]
    pub raw: bool,
    /// Number of texts; several are set apart by a line `---`
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub samples: u32,
    /// Most tokens of a text
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,
}

/// Without any of these the prompt is read from stdin.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub struct Prompt {
    /// A message; without a chat template, a text to continue [default: stdin]
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// The same from a file
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Option<Utf8PathBuf>,
    /// A conversation: `[{"role": "user", "content": "..."}]`
    #[arg(long, value_name = "FILE.json")]
    pub chat: Option<Utf8PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct Sampling {
    /// 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 1.0, allow_negative_numbers = true, value_parser = temperature)]
    pub temperature: f64,
    /// Keep the K likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: u32,
    /// Keep the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = share)]
    pub top_p: f64,
    /// Keep tokens with at least this share of the likeliest one's probability
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = share)]
    pub min_p: f64,
    /// End before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// The same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

#[derive(Debug, clap::Args)]
pub struct Convert {
    /// A Hugging Face folder
    #[arg(value_name = "DIR")]
    pub dir: Utf8PathBuf,
    #[command(flatten)]
    pub form: Form,
}

#[derive(Debug, clap::Args)]
pub struct Merge {
    /// A Hugging Face folder: the base
    #[arg(value_name = "DIR")]
    pub dir: Utf8PathBuf,
    /// A PEFT folder
    #[arg(long, value_name = "DIR")]
    pub adapter: Utf8PathBuf,
    #[command(flatten)]
    pub form: Form,
}

/// How a model is written, and where.
#[derive(Debug, clap::Args)]
pub struct Form {
    /// A new folder; nothing is overwritten
    #[arg(long, value_name = "DIR")]
    pub out: Utf8PathBuf,
    /// Type of numbers, rounded to the nearest, ties to even [default: the model's own]
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,
    /// Largest file of weights
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = crate::text::parse_bytes)]
    pub shard_size: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Dtype {
    Float32,
    Bfloat16,
    Float16,
}

#[derive(Debug, Subcommand)]
pub enum Env {
    /// List the environments, their splits, and what they need
    List,
    /// List tasks of an environment
    Tasks(EnvTasks),
    /// Replay a captured transcript on a household game; exit code 1 says that something differs
    Check(EnvCheck),
}

#[derive(Debug, clap::Subcommand)]
pub enum DeviceVerb {
    /// Say which device a run would have, and why
    Show(DeviceOf),
    /// Check every kernel against the processor; exit code 1 says that something is wrong
    Check(DeviceCheck),
    /// Measure training, scoring and decoding beside what the device can do
    Bench(DeviceBench),
}

#[derive(Debug, clap::Args)]
pub struct DeviceOf {
    /// Which: `auto`, `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value = "auto", value_name = "DEVICE", value_parser = device)]
    pub device: DeviceRequest,
}

#[derive(Debug, clap::Args)]
pub struct DeviceCheck {
    #[command(flatten)]
    pub of: DeviceOf,
    /// Also a model's logits and gradients as PyTorch has them: a folder like `ops/tests/fixtures/parity`
    #[arg(long, value_name = "FOLDER")]
    pub reference: Option<Utf8PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct DeviceBench {
    #[command(flatten)]
    pub of: DeviceOf,
    /// Models of the shapes of Qwen3, with commas between them
    #[arg(long, value_name = "SIZE", value_delimiter = ',', default_value = "0.6B,8B", value_parser = PossibleValuesParser::new(MODELS))]
    pub model: Vec<String>,
    /// At most so many layers of each, where a whole one does not fit
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(LAYERS)))]
    pub layers: Option<u32>,
    /// Begin nothing after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 360)]
    pub limit: u64,
}

#[derive(Debug, clap::Args)]
pub struct EnvTasks {
    /// The environment: `household`
    #[arg(value_name = "ENV")]
    pub env: String,
    /// Its data: ALFWorld's games, a catalogue, a program
    #[arg(long, value_name = "PATH")]
    pub data: Option<Utf8PathBuf>,
    /// The split [default: the environment's first]
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// How many; 0 lists all that there are
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub count: usize,
    /// Seed of tasks that are made
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// A setting as in a recipe's `world`: `size=small`
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = CHECK)]
pub struct EnvCheck {
    /// A `game.tw-pddl`, or an `initial_state.pddl`
    #[arg(long, value_name = "FILE")]
    pub game: Utf8PathBuf,
    /// JSON lines: `cmd` (null resets), `obs`, `score`, `done`, `won`, `admissible`
    #[arg(long, value_name = "FILE.jsonl")]
    pub transcript: Utf8PathBuf,
}

const CHECK: &str = "\
What a row lacks after `obs` is not compared. An `initial_state.pddl` has no words: its task is that of the transcript's \
first observation, its commands are those of ALFWorld 2.1.2 (`move mug 1 to desk 1`).";

#[derive(Debug, clap::Args)]
#[command(after_help = CHAT)]
pub struct Chat {
    #[command(flatten)]
    pub source: Source,
    /// What the model is told first
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    pub sampling: Sampling,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,
}

const CHAT: &str = "\
A line is a message. `/reset` forgets the conversation, `/system TEXT` begins a new one under TEXT, `/help` lists these, \
`/quit` or Ctrl-D ends. Ctrl-C ends the answer, not the program.";

#[derive(Debug, clap::Args)]
#[command(after_help = PLAY)]
pub struct Play {
    /// Which environment
    #[arg(value_parser = ["household", "webshop", "scienceworld", "command"])]
    pub env: String,
    /// A task's number in the split, from 0, or its id
    #[arg(default_value = "0")]
    pub task: String,
    /// The environment's data: games, a catalogue, a jar, a program
    #[arg(long, value_name = "PATH")]
    pub data: Option<Utf8PathBuf>,
    /// Which tasks [default: the environment's first split]
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// Which tasks are made, and what a model draws; as the `seed` of a step
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// A setting of the world as recipes write it: `size=small`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Longest game [default: 1000 for a person, 50 for a model]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub max_steps: Option<u32>,
    /// Write what was played as one more line of this file of episodes
    #[arg(long, value_name = "FILE.jsonl")]
    pub out: Option<Utf8PathBuf>,
    /// Let this policy play: a model's folder, a GGUF file, a policy.json
    #[arg(long, value_name = "DIR", help_heading = WATCH)]
    pub model: Option<Utf8PathBuf>,
    /// A setting of the prompt as recipes write it: `style=react`; may be repeated
    #[arg(long, value_name = "KEY=VALUE", requires = "model", help_heading = WATCH)]
    pub prompt_set: Vec<String>,
    /// 0 always takes the likeliest token [default: 0.4]
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = temperature, requires = "model", help_heading = WATCH)]
    pub temperature: Option<f64>,
    /// Most tokens of a reply [default: 32]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000), requires = "model", help_heading = WATCH)]
    pub max_tokens: Option<u32>,
    /// `free`, or held to the `admissible` actions [default: free]
    #[arg(long, value_name = "HOW", value_parser = ["free", "admissible"], requires = "model", help_heading = WATCH)]
    pub decoding: Option<String>,
    /// Where tensors live: `auto`, `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value = "auto", value_name = "DEVICE", value_parser = device, help_heading = WATCH)]
    pub device: DeviceRequest,
}

const WATCH: &str = "To watch a model";

const PLAY: &str = "\
A line is an action, or its number in the list. `/actions [WORDS] [PAGE]` lists what is possible, `/hint` says what the \
expert would do, `/undo` takes the last action back, `/restart` begins again, `/do TEXT` says TEXT as it is, `/help` lists \
these, `/quit` or Ctrl-D ends. In a pipe every line of stdin is an action or a command, and the game's end is the program's. \
A model is watched step by step with Enter; in a pipe it plays to the end.";

fn temperature(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|t| t.is_finite() && *t >= 0.0);
    number.ok_or_else(|| "expected a number, 0 or above".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|p| (0.0..=1.0).contains(p));
    number.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

fn device(text: &str) -> Result<DeviceRequest, String> {
    match text.split_once(':') {
        None if text == "auto" => Ok(DeviceRequest::Auto),
        None if text == "cpu" => Ok(DeviceRequest::Cpu),
        None if text == "cuda" => Ok(DeviceRequest::Cuda(0)),
        Some(("cuda", number)) if number.parse::<u8>().is_ok() => Ok(DeviceRequest::Cuda(number.parse().unwrap_or(0))),
        _ => Err("expected `auto`, `cpu`, `cuda` or `cuda:N`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn numbers_outside_their_range_are_refused() {
        assert_eq!((temperature("0"), temperature("1.5")), (Ok(0.0), Ok(1.5)));
        assert!(["-1", "inf", "NaN", "warm", ""].iter().all(|text| temperature(text).is_err()));
        assert_eq!((share("0.95"), share("1")), (Ok(0.95), Ok(1.0)));
        assert!(["1.1", "-0.1", "NaN", "all"].iter().all(|text| share(text).is_err()));
    }

    #[test]
    fn devices_read_as_documented() {
        assert_eq!(device("cuda:3"), Ok(DeviceRequest::Cuda(3)));
        assert_eq!(device("cuda"), Ok(DeviceRequest::Cuda(0)));
        assert!(["gpu", "cuda:", "cuda:x", "cpu:0", ""].iter().all(|text| device(text).is_err()));
    }
}
