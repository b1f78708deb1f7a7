//! `gpqa`: questions with one right and three wrong options, which are shown in an order of their own.

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem, Resources};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::Filters;
use super::exam::{self, Exam, Marking, Question};
use super::math::{at, column, named};
use crate::eval::questions::choice::{chosen, letter, order};
use crate::eval::questions::reply::{Malformed, after_reasoning};
use crate::eval::questions::table::{self, Table};

/// Names of the columns, where they are not the published ones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// The question; `Question` where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// The right option; `Correct Answer` where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correct: Option<String>,
    /// The wrong options; `Incorrect Answer 1` to `Incorrect Answer 3` where they are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incorrect: Option<[String; 3]>,
    /// What names a question; `Record ID` where it is left out. The order of its options depends on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The domain; `High-level domain` where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The subdomain; `Subdomain` where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subdomain: Option<String>,
}

/// Parameters of `gpqa`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Replies to each question.
    #[serde(default = "samples")]
    #[schemars(range(min = 1, max = 10000))]
    pub samples: usize,
    /// For which k pass@k is counted; each at most `samples`.
    #[serde(default = "k")]
    pub k: Vec<usize>,
    /// Only the first so many questions; 0 takes all.
    #[serde(default)]
    pub limit: usize,
    /// Seed of the order of options. The order of a question depends on this and on the question's id, not on the step's
    /// seed, so that every policy and every seed sees the same letters.
    #[serde(default)]
    pub order: u64,
    /// 0 takes the likeliest token.
    #[serde(default = "temperature")]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub temperature: f64,
    #[serde(default)]
    pub filters: Filters,
    /// Longest reply, in tokens, its reasoning included.
    #[serde(default = "max_tokens")]
    #[schemars(range(min = 1, max = 1000000))]
    pub max_tokens: usize,
    /// What the model is told first; nothing where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The variable `enable_thinking` of the model's chat template; left out, the template decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_thinking: Option<bool>,
    /// The user's turn; `{question}` stands for the question, `{options}` for a line for each option.
    #[serde(default = "instruction")]
    pub instruction: String,
    /// Names of the columns of `data`.
    #[serde(default)]
    pub columns: Columns,
}

fn samples() -> usize {
    1
}
fn k() -> Vec<usize> {
    vec![1]
}
fn temperature() -> f64 {
    0.6
}
fn max_tokens() -> usize {
    4096
}
fn instruction() -> String {
    "{question}\n\n{options}\n\nExactly one of the options is right. Work it out step by step. The last line of the reply \
     must be `Answer: ` and the letter of that option, nothing else."
        .to_owned()
}

/// The op.
pub struct Gpqa;

impl Op for Gpqa {
    type Params = Params;
    const NAME: &'static str = "gpqa";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "asks a policy questions with four options in a seeded order and counts the right ones";

    fn ports(&self, _: &Params) -> Ports {
        Ports::new()
            .port("policy", &[Kind::MODEL, Kind::POLICY], Arity::One, "who is asked")
            .input("data", Kind::QUESTIONS, "the questions: JSON lines, a JSON array, CSV or Parquet")
            .output(
                "scores",
                Kind::SCORES,
                "accuracy, pass@k, the majority's answer, shares of unfinished and malformed replies",
            )
            .output("answers", Kind::ANSWERS, "one question a line, with its replies and what was read in them")
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        exam::check(p.samples, &p.k, &p.instruction, &["{question}", "{options}"])
    }

    fn resources(&self, _: &Params) -> Resources {
        Resources { cpu: 1, gpu: 1 }
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let questions = questions(p, ctx)?;
        let exam = Exam {
            name: Self::NAME,
            samples: p.samples,
            temperature: p.temperature,
            filters: &p.filters,
            max_tokens: p.max_tokens,
            system: p.system.as_deref(),
            enable_thinking: p.enable_thinking,
            k: &p.k,
        };
        exam::hold(ctx, &exam, &questions, &Letters)
    }
}

/// The letter on the last line.
struct Letters;

impl Marking for Letters {
    fn extract(&self, question: &Question, reply: &str) -> Result<String, Malformed> {
        chosen(after_reasoning(reply)?, question.options.len()).map(|place| letter(place).to_string())
    }

    fn equal(&self, reference: &str, answer: &str) -> bool {
        reference == answer
    }
}

const INCORRECT: [&str; 3] = ["Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"];

fn questions(p: &Params, ctx: &OpContext<'_>) -> Result<Vec<Question>, OpError> {
    let (path, c) = (ctx.input("data"), &p.columns);
    let wrong = |i: usize| c.incorrect.as_ref().map_or(INCORRECT[i], |names| &names[i]);
    let wanted = [
        column(c.question.as_deref(), &["Question"]),
        column(c.correct.as_deref(), &["Correct Answer"]),
        column(Some(wrong(0)), &[]),
        column(Some(wrong(1)), &[]),
        column(Some(wrong(2)), &[]),
        column(c.id.as_deref(), &["Record ID"]),
        column(c.domain.as_deref(), &["High-level domain"]),
        column(c.subdomain.as_deref(), &["Subdomain"]),
    ];
    let names: Vec<&str> = wanted.iter().map(|w| w.names[0]).collect();
    let table = table::read(path, &wanted)?;
    let given = [(c.id.as_deref(), 5), (c.domain.as_deref(), 6), (c.subdomain.as_deref(), 7)];
    named(&table, &given).map_err(|e| at(e, path.as_str()))?;
    let count = if p.limit > 0 { p.limit.min(table.rows.len()) } else { table.rows.len() };
    let mut questions = Vec::with_capacity(count);
    for row in 0..count {
        questions.push(one(p, &table, row, &names).map_err(|e| at(e, path.as_str()))?);
    }
    exam::distinct(&questions).map_err(|e| at(e, path.as_str()))?;
    Ok(questions)
}

fn one(p: &Params, table: &Table, row: usize, names: &[&str]) -> Result<Question, OpError> {
    let question = exam::cell(table, row, 0, names[0])?.trim();
    let mut options = Vec::with_capacity(4);
    for (column, name) in names.iter().enumerate().take(5).skip(1) {
        let option = exam::cell(table, row, column, name)?.trim();
        if options.contains(&option) {
            return Err(OpError::failed(format!(
                "{} has two equal options, expected four different ones (column `{}`)",
                table.place(row),
                name
            )));
        }
        options.push(option);
    }
    let optional = |column: usize| table.rows[row][column].as_deref().map(str::trim).filter(|s| !s.is_empty());
    let id = optional(5).map_or_else(|| (row + 1).to_string(), str::to_owned);
    let order = order(p.order, &id, options.len());
    let shown: Vec<String> = order.iter().map(|i| options[*i].to_owned()).collect();
    let right = order.iter().position(|i| *i == 0).unwrap_or_default();
    let lines: Vec<String> = shown.iter().enumerate().map(|(i, o)| format!("({}) {o}", letter(i))).collect();
    Ok(Question {
        id,
        kind: optional(6).unwrap_or_default().to_owned(),
        // a subdomain may have its domain's name
        groups: optional(7).filter(|sub| Some(*sub) != optional(6)).map(str::to_owned).into_iter().collect(),
        question: question.to_owned(),
        prompt: exam::filled(&p.instruction, &[("{question}", question), ("{options}", &lines.join("\n"))]),
        reference: letter(right).to_string(),
        options: shown,
    })
}
