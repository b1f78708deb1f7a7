//! The command line.
//!
//! Invariant: whatever stands here is what `--help` says; no other module reads arguments or the environment, but for
//! the folder of the store ([`crate::load`]).

use actloom_engine::op::DeviceRequest;
use actloom_engine::recipe::Overrides;
use camino::Utf8PathBuf;
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
    fn devices_read_as_documented() {
        assert_eq!(device("cuda:3"), Ok(DeviceRequest::Cuda(3)));
        assert_eq!(device("cuda"), Ok(DeviceRequest::Cuda(0)));
        assert!(["gpu", "cuda:", "cuda:x", "cpu:0", ""].iter().all(|text| device(text).is_err()));
    }
}
