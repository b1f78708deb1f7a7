//! `math`: questions whose answers are mathematics, the last box of a reply compared with the reference.

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem, Resources};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::Filters;
use super::exam::{self, Exam, Marking, Question};
use crate::eval::questions::math::equal;
use crate::eval::questions::reply::{Malformed, after_reasoning, boxed};
use crate::eval::questions::table::{self, Column, Table};

/// Names of the columns, where they are not the published ones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// The question; `problem` or `question` where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// The answer alone; `answer` where it is left out. Where the file has no such column, the last box of the solution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The worked solution; `solution` where it is left out. It is read only where there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solution: Option<String>,
    /// What names a question; `unique_id` or `id` where it is left out, else the row's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The subject; `subject` or `type` where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The difficulty; `level` where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
}

/// Parameters of `math`.
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
    /// The user's turn; `{question}` stands for the question.
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
    "{question}\n\nWork it out step by step. Write the final answer once at the end, as \\boxed{...}.".to_owned()
}

/// The op.
pub struct Math;

impl Op for Math {
    type Params = Params;
    const NAME: &'static str = "math";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "asks a policy questions with mathematical answers and counts the right ones";

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
        exam::check(p.samples, &p.k, &p.instruction, &["{question}"])
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
        exam::hold(ctx, &exam, &questions, &Boxes)
    }
}

/// The last box, compared as mathematics.
struct Boxes;

impl Marking for Boxes {
    fn extract(&self, _: &Question, reply: &str) -> Result<String, Malformed> {
        boxed(after_reasoning(reply)?).map(str::to_owned)
    }

    fn equal(&self, reference: &str, answer: &str) -> bool {
        equal(reference, answer)
    }
}

/// The given name of a column, or the published ones.
pub(super) fn column<'a>(given: Option<&'a str>, published: &[&'a str]) -> Column<'a> {
    Column { names: given.map_or_else(|| published.to_vec(), |name| vec![name]) }
}

fn questions(p: &Params, ctx: &OpContext<'_>) -> Result<Vec<Question>, OpError> {
    let (path, c) = (ctx.input("data"), &p.columns);
    let wanted = [
        column(c.question.as_deref(), &["problem", "question"]),
        column(c.answer.as_deref(), &["answer"]),
        column(c.solution.as_deref(), &["solution"]),
        column(c.id.as_deref(), &["unique_id", "id"]),
        column(c.subject.as_deref(), &["subject", "type"]),
        column(c.level.as_deref(), &["level"]),
    ];
    let table = table::read(path, &wanted)?;
    named(
        &table,
        &[(c.id.as_deref(), 3), (c.subject.as_deref(), 4), (c.level.as_deref(), 5), (c.solution.as_deref(), 2)],
    )
    .map_err(|e| at(e, path.as_str()))?;
    let count = if p.limit > 0 { p.limit.min(table.rows.len()) } else { table.rows.len() };
    let mut questions = Vec::with_capacity(count);
    for row in 0..count {
        questions.push(one(p, &table, row, wanted[0].names[0]).map_err(|e| at(e, path.as_str()))?);
    }
    exam::distinct(&questions).map_err(|e| at(e, path.as_str()))?;
    Ok(questions)
}

/// Refuses a column that was asked for by name and is nowhere.
pub(super) fn named(table: &Table, given: &[(Option<&str>, usize)]) -> Result<(), OpError> {
    for (name, column) in given {
        if let Some(name) = name
            && table.rows.iter().all(|row| row[*column].is_none())
        {
            return Err(OpError::failed(format!("no row has the column `{name}`; the columns are {}", table.there())));
        }
    }
    Ok(())
}

/// An error of a file with the file's name.
pub(super) fn at(e: OpError, path: &str) -> OpError {
    match e {
        OpError::Failed { message, help } => {
            OpError::Failed { message: format!("cannot use questions of `{path}`: {message}"), help }
        }
        e => e,
    }
}

fn one(p: &Params, table: &Table, row: usize, name: &str) -> Result<Question, OpError> {
    let question = exam::cell(table, row, 0, name)?;
    let optional = |column: usize| table.rows[row][column].as_deref().map(str::trim).filter(|s| !s.is_empty());
    let reference = match (optional(1), optional(2)) {
        (Some(answer), _) => answer,
        (None, Some(solution)) if p.columns.answer.is_none() => boxed(solution).map_err(|_| {
            OpError::failed(format!("{} has no `answer`, and its `solution` no \\boxed{{..}}", table.place(row)))
        })?,
        _ => exam::cell(table, row, 1, p.columns.answer.as_deref().unwrap_or("answer"))?,
    };
    let level = optional(5).map(|level| {
        let bare = level.strip_prefix("Level ").unwrap_or(level);
        format!("level {bare}")
    });
    Ok(Question {
        id: optional(3).map_or_else(|| (row + 1).to_string(), str::to_owned),
        kind: optional(4).unwrap_or_default().to_owned(),
        groups: level.into_iter().collect(),
        question: question.to_owned(),
        prompt: exam::filled(&p.instruction, &[("{question}", question)]),
        reference: reference.to_owned(),
        options: Vec::new(),
    })
}
