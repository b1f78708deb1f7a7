//! Small ops without code, with the ports and parameters that recipes in tests need.

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem, Registry};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Declares an op that does nothing.
macro_rules! fake {
    ($op:ident, $name:literal, $params:ty, $about:literal, |$p:ident| $ports:expr $(, check |$c:ident| $check:expr)?) => {
        pub struct $op;
        impl Op for $op {
            type Params = $params;
            const NAME: &'static str = $name;
            const VERSION: u32 = 1;
            const ABOUT: &'static str = $about;
            fn ports(&self, $p: &$params) -> Ports {
                $ports
            }
            $(fn check(&self, $c: &$params) -> Vec<Problem> {
                $check
            })?
            fn run(&self, _: &$params, _: &mut OpContext<'_>) -> Result<(), OpError> {
                Ok(())
            }
        }
    };
}

fn default_env() -> String {
    "household".to_owned()
}

fn three() -> u32 {
    3
}

fn rate() -> f64 {
    1e-3
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Family of the model.
    architecture: String,
    #[schemars(range(min = 8, max = 4096))]
    hidden_size: u32,
    layers: u32,
    heads: u32,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pretrain {
    from: Architecture,
    #[serde(default = "default_env")]
    env: String,
    /// How many tokens are read.
    tokens: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Training tasks.
    #[default]
    Train,
    /// Rooms that training has seen.
    Id,
    /// Rooms that training has not seen.
    Ood,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Demos {
    #[serde(default = "default_env")]
    env: String,
    #[serde(default)]
    size: String,
    #[serde(default)]
    split: Split,
    #[schemars(range(min = 1))]
    count: u32,
}

/// How the learning rate moves.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Schedule {
    /// The same all the time.
    Constant,
    /// Down to a share of the peak along a cosine.
    Cosine {
        #[schemars(range(min = 0.0, max = 1.0))]
        floor: f64,
    },
}

/// A number of steps, or a word.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Warmup {
    Steps(u32),
    Word(Word),
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    None,
    Epoch,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sft {
    /// Episodes to use; all where it is left out.
    #[serde(default)]
    limit: Option<u32>,
    /// Passes over the data.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 1000))]
    epochs: u32,
    /// Peak learning rate.
    #[serde(default = "rate")]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    learning_rate: f64,
    #[serde(default)]
    schedule: Option<Schedule>,
    #[serde(default)]
    warmup: Option<Warmup>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Alternatives {
    per_state: u32,
    #[serde(default)]
    keep: Vec<Keep>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    DiffersFromExpert,
    Admissible,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pairs {
    #[serde(default)]
    answer: String,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reward {
    correct: f64,
    admissible: f64,
    malformed: f64,
}

impl Default for Reward {
    fn default() -> Self {
        Reward { correct: 1.0, admissible: 0.1, malformed: -0.5 }
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Grpo {
    #[schemars(range(min = 2))]
    group: u32,
    #[serde(default = "three")]
    epochs: u32,
    #[serde(default)]
    reward: Reward,
}

fn grpo_check(p: &Grpo) -> Vec<Problem> {
    if p.reward.correct <= p.reward.malformed {
        return vec![
            Problem::new(&["reward", "correct"], "is not above `malformed`").help("a correct choice must pay more"),
        ];
    }
    Vec::new()
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    #[serde(default = "default_env")]
    env: String,
    #[serde(default)]
    size: String,
    #[serde(default)]
    split: Split,
    #[serde(default)]
    tasks: u32,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TableParams {
    rows: String,
    columns: String,
    #[serde(default)]
    over: String,
    #[serde(default)]
    compare: Vec<[String; 2]>,
}

fn model_and(ports: Ports) -> Ports {
    ports.output("model", Kind::MODEL, "the trained model")
}

fake!(PretrainOp, "pretrain", Pretrain, "trains a model from nothing", |_p| model_and(Ports::new()));
fake!(DemosOp, "demos", Demos, "lets the expert play", |_p| Ports::new().output(
    "episodes",
    Kind::EPISODES,
    "what the expert did"
));
fake!(SftOp, "sft", Sft, "imitates episodes", |_p| model_and(
    Ports::new().input("model", Kind::MODEL, "what to start from").port(
        "data",
        &[Kind::EPISODES, Kind::SAMPLES],
        Arity::Many,
        "what to imitate"
    )
));
fake!(AlternativesOp, "alternatives", Alternatives, "samples a policy at expert states", |_p| Ports::new()
    .input("policy", Kind::MODEL, "who is asked")
    .input("states", Kind::EPISODES, "where")
    .output("samples", Kind::SAMPLES, "what the policy would do"));
fake!(PairsOp, "pairs", Pairs, "pairs expert actions with alternatives", |_p| Ports::new()
    .input("states", Kind::EPISODES, "expert episodes")
    .input("alternatives", Kind::SAMPLES, "what else could be done")
    .output("pairs", Kind::PAIRS, "to train on")
    .output("held_out", Kind::PAIRS, "to test on"));
fake!(ReflectOp, "reflect", Nothing, "lets a policy explain the expert", |_p| Ports::new()
    .input("policy", Kind::MODEL, "who explains")
    .input("states", Kind::EPISODES, "expert episodes")
    .input("alternatives", Kind::SAMPLES, "what else could be done")
    .output("samples", Kind::SAMPLES, "explanations"));
fake!(
    ActOp,
    "act",
    Grpo,
    "trains a critic on pairs",
    |_p| model_and(Ports::new().input("model", Kind::MODEL, "what to start from").input(
        "pairs",
        Kind::PAIRS,
        "what to judge"
    )),
    check | p | grpo_check(p)
);
fake!(RlOp, "rl", Grpo, "trains on next actions", |_p| model_and(
    Ports::new().input("model", Kind::MODEL, "what to start from").input("states", Kind::EPISODES, "where to act")
));
fake!(RolloutOp, "rollout", Rollout, "plays", |_p| Ports::new().input("policy", Kind::MODEL, "who plays").output(
    "episodes",
    Kind::EPISODES,
    "what was played"
));
fake!(EvalOp, "eval", Nothing, "scores episodes", |_p| Ports::new()
    .input("episodes", Kind::EPISODES, "what was played")
    .output("scores", Kind::SCORES, "numbers"));
fake!(TableOp, "table", TableParams, "tabulates scores", |_p| Ports::new()
    .port("results", &[Kind::SCORES], Arity::Many, "what to tabulate")
    .labelled()
    .output("table", Kind::TABLE, "the table"));
fake!(ReportOp, "report", Nothing, "makes a page of everything", |_p| Ports::new()
    .port("inputs", &[Kind::ANY], Arity::Many, "what to show")
    .named()
    .output("report", Kind::REPORT, "the page"));

/// Every fake op.
pub fn registry() -> Registry {
    Registry::new()
        .with(PretrainOp)
        .with(DemosOp)
        .with(SftOp)
        .with(AlternativesOp)
        .with(PairsOp)
        .with(ReflectOp)
        .with(ActOp)
        .with(RlOp)
        .with(RolloutOp)
        .with(EvalOp)
        .with(TableOp)
        .with(ReportOp)
}
