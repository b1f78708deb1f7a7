//! `catalogue`: WebShop's products and goals, indexed for search; the user's files, or made-up ones.

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem};
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::env::EnvError;
use crate::env::webshop::product::PRICES;
use crate::env::webshop::shelf::{self, Doing};
use crate::env::webshop::{Files, GoalSource, synthesize};

/// Products that are made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Synthetic {
    #[schemars(range(min = 1, max = 10000000))]
    pub products: u64,
    /// Instructions as people write them, one goal each, spread evenly over the products.
    #[schemars(range(min = 0, max = 2000000))]
    pub goals: u64,
    /// The files in WebShop's formats become an output too.
    pub keep: bool,
}

impl Default for Synthetic {
    fn default() -> Self {
        Synthetic { products: 1000, goals: 500, keep: false }
    }
}

/// Parameters of `catalogue`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Products are made up, from the step's seed, instead of read from the input `files`.
    pub synthetic: Option<Synthetic>,
    /// Where goals come from.
    pub goals: GoalSource,
    /// What the price of a product is drawn with that the files give two, and the limits of goals.
    pub price_seed: u64,
}

impl Default for Params {
    fn default() -> Self {
        Params { synthetic: None, goals: GoalSource::default(), price_seed: PRICES }
    }
}

/// The op.
pub struct Catalogue;

impl Op for Catalogue {
    type Params = Params;
    const NAME: &'static str = "catalogue";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "indexes WebShop's products and goals, the original's files or made-up ones";

    fn ports(&self, p: &Params) -> Ports {
        let ports = Ports::new();
        let ports = match p.synthetic {
            Some(_) => ports,
            None => ports
                .port(
                    "files",
                    &[Kind::PRODUCTS],
                    Arity::One,
                    "a folder with `items_shuffle*.json`, `items_ins_v2*.json` and, for goals of people, `items_human_ins*.json`",
                )
                .port(
                    "nouns",
                    &[Kind::ANY],
                    Arity::Optional,
                    "a JSON file `{asin: [noun, ..]}` of the products' names; else `items_nouns.json` of `files`, if it is there",
                ),
        };
        let ports = ports.output("catalogue", Kind::CATALOGUE, "products, goals and the search index");
        match p.synthetic {
            Some(Synthetic { keep: true, .. }) => {
                ports.output("files", Kind::PRODUCTS, "what was made up, in WebShop's formats")
            }
            _ => ports,
        }
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Some(Synthetic { goals: 0, .. }) = p.synthetic
            && p.goals == GoalSource::Human
        {
            let problem = Problem::new(&["synthetic", "goals"], "0 instructions of people leave no goals");
            problems.push(problem.help("ask for one or more, or set `goals = \"synthetic\"`"));
        }
        problems
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let scratch = ctx.scratch().to_owned();
        let made = scratch.join("files");
        let mut files = match &p.synthetic {
            Some(synthetic) => {
                let folder = if synthetic.keep { ctx.output("files") } else { &made };
                fs_err::create_dir_all(folder)?;
                make_up(ctx, synthetic, folder)?;
                Files::of(folder)?
            }
            None => Files::of(ctx.input("files"))?,
        };
        if let Some(nouns) = ctx.input_opt("nouns") {
            files.nouns = Some(nouns.to_owned());
        }
        files.prices = p.price_seed;
        if p.goals == GoalSource::Human && files.human.is_none() {
            return Err(OpError::with_help(
                format!("`{}` has no `items_human_ins*.json`, expected the goals of people", ctx.input("files")),
                "set `goals = \"synthetic\"` to make goals of the attribute file",
            ));
        }
        let folder = ctx.output("catalogue");
        fs_err::create_dir_all(folder)?;
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
        let total = p.synthetic.map_or(0, |synthetic| synthetic.products);
        let going = |doing: Doing, done: u64| {
            match doing {
                Doing::Products => ctx.progress(done, total, "products", ""),
                Doing::Words => ctx.progress(done, 0, "words", "merging the index"),
            }
            !ctx.stopping()
        };
        let built = shelf::stock(&files, p.goals, folder, &scratch, threads, going).map_err(stopped)?;
        if made.exists() {
            fs_err::remove_dir_all(&made)?;
        }
        if built.goals == 0 {
            return Err(OpError::with_help(
                format!("none of {} products has a goal", built.products),
                "goals need `instruction_attributes`; those of people come from `items_human_ins*.json`",
            ));
        }
        ctx.metric(0, "products", built.products as f64);
        ctx.metric(0, "goals", built.goals as f64);
        ctx.metric(0, "words", built.words as f64);
        ctx.metric(0, "terms", built.terms as f64);
        Ok(())
    }
}

/// Makes products up.
fn make_up(ctx: &OpContext<'_>, synthetic: &Synthetic, folder: &Utf8Path) -> Result<(), OpError> {
    let Synthetic { products, goals, .. } = *synthetic;
    let going = |done: u64| {
        ctx.progress(done, products, "products", "making them up");
        !ctx.stopping()
    };
    synthesize::write(folder, products, goals, ctx.seed("products"), going).map_err(stopped)
}

/// A stop that was asked for is no failure.
fn stopped(error: EnvError) -> OpError {
    match error {
        EnvError::Io(why) if why.kind() == std::io::ErrorKind::Interrupted => OpError::Interrupted,
        other => other.into(),
    }
}
