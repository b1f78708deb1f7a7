//! What `math` and `gpqa` share: questions are put to a policy several times, replies are marked and counted.
//!
//! Invariants: each (question, sample) has a random stream of its own, so a reply does not depend on what is asked beside
//! it; a reply that did not come to its end is wrong, whatever is in it; questions keep the order of the file.

use std::collections::{BTreeMap, HashSet};

use actloom_engine::op::{OpContext, OpError, Problem};
use serde::{Deserialize, Serialize};

use super::common::{self, Filters};
use crate::artifact;
use crate::eval::questions::pass;
use crate::eval::questions::reply::Malformed;
use crate::eval::questions::table::Table;
use crate::eval::scores::{Decoded, EpisodeScore, KindScore, Scores, TaskScore};
use crate::eval::stats::{self, Interval, Method};
use crate::policy::{Ask, Finish, Policy, open_with};
use crate::rng::Rng;
use crate::text::{Message, Prompt};

/// Version of the answers file; the field `v` of each line.
pub const ANSWERS_VERSION: u32 = 1;
/// Resamples behind an interval.
const RESAMPLES: usize = 10_000;
/// Most replies between two checkpoints.
const CHUNK: usize = 96;

/// A question ready to be put.
pub struct Question {
    pub id: String,
    /// Its subject; empty where the file does not say.
    pub kind: String,
    /// Further groups that it is counted in: `level 3`.
    pub groups: Vec<String>,
    /// As the file has it.
    pub question: String,
    /// What is put to the policy.
    pub prompt: String,
    /// The right answer: an expression, or a letter.
    pub reference: String,
    /// What stands at A, B, ..; empty without options.
    pub options: Vec<String>,
}

/// One reply, marked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    pub text: String,
    /// The answer in it, if there is one.
    pub extracted: Option<String>,
    pub correct: bool,
    /// `end`, or why it did not come to its end: `length` (cut off), `room` (the question fills the context).
    pub finish: Ended,
    /// Why a reply that came to its end has no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub malformed: Option<Malformed>,
}

/// How a reply ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    End,
    Length,
    Room,
}

impl From<Finish> for Ended {
    fn from(finish: Finish) -> Ended {
        match finish {
            Finish::End => Ended::End,
            Finish::Length => Ended::Length,
            Finish::Room => Ended::Room,
        }
    }
}

/// One line of an answers file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    pub v: u32,
    pub id: String,
    /// The subject; empty where the file does not say.
    pub kind: String,
    pub question: String,
    /// Options in the order shown; left out where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// The right answer: an expression, or the letter of the right option.
    pub reference: String,
    pub replies: Vec<Reply>,
}

/// How questions are asked.
pub struct Exam<'a> {
    /// `math` or `gpqa`: part of a task's name in scores.
    pub name: &'static str,
    pub samples: usize,
    pub temperature: f64,
    pub filters: &'a Filters,
    pub max_tokens: usize,
    pub system: Option<&'a str>,
    pub enable_thinking: Option<bool>,
    pub k: &'a [usize],
}

/// Reads and compares answers.
pub trait Marking {
    /// The answer in a reply that came to its end.
    ///
    /// # Errors
    /// Why there is none.
    fn extract(&self, question: &Question, reply: &str) -> Result<String, Malformed>;

    /// Whether two answers are the same.
    fn equal(&self, reference: &str, answer: &str) -> bool;
}

/// Problems of the shared parameters.
pub fn check(samples: usize, k: &[usize], instruction: &str, placeholders: &[&str]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for n in k {
        if *n == 0 || *n > samples {
            problems.push(
                Problem::new(&["k"], format!("`k` has {n}, expected 1 to `samples`, which is {samples}"))
                    .help("raise `samples`: pass@k needs k replies to each question"),
            );
        }
    }
    if k.is_empty() {
        problems.push(Problem::new(&["k"], "`k` is empty, expected at least one number").help("`k = [1]`"));
    }
    for name in placeholders {
        let times = instruction.matches(name).count();
        if times != 1 {
            let what = format!("the instruction has `{name}` {times} times, expected it once");
            problems.push(Problem::new(&["instruction"], what));
        }
    }
    problems
}

/// A text with what stands for its placeholders. Each is replaced where the text has it, never inside what was put in.
pub fn filled(text: &str, values: &[(&str, &str)]) -> String {
    let (mut rest, mut out) = (text, String::new());
    while let Some((at, name, value)) =
        values.iter().filter_map(|(name, value)| Some((rest.find(name)?, *name, *value))).min_by_key(|found| found.0)
    {
        out.push_str(&rest[..at]);
        out.push_str(value);
        rest = &rest[at + name.len()..];
    }
    out + rest
}

/// The cell of a row that must be there.
///
/// # Errors
/// Names row and column, and the columns that are there.
pub fn cell<'t>(table: &'t Table, row: usize, column: usize, name: &str) -> Result<&'t str, OpError> {
    table.rows[row][column].as_deref().filter(|text| !text.trim().is_empty()).ok_or_else(|| {
        OpError::with_help(
            format!("{} has no `{name}`; the columns are {}", table.place(row), table.there()),
            "map the names with `columns`, or repair the row",
        )
    })
}

/// Refuses two questions of one id: their scores could not be told apart.
///
/// # Errors
/// Names the id.
pub fn distinct(questions: &[Question]) -> Result<(), OpError> {
    let mut seen = HashSet::new();
    match questions.iter().find(|q| !seen.insert(&q.id)) {
        None => Ok(()),
        Some(twice) => Err(OpError::with_help(
            format!("two questions have the id `{}`, expected each once", twice.id),
            "name another column with `columns.id`, or remove the second one",
        )),
    }
}

/// Puts every question, marks the replies, writes `answers` and `scores`.
///
/// # Errors
/// The policy's, and a question that leaves no room for a reply.
pub fn hold(
    ctx: &mut OpContext<'_>,
    exam: &Exam<'_>,
    questions: &[Question],
    marking: &dyn Marking,
) -> Result<(), OpError> {
    let set = Prompt { enable_thinking: exam.enable_thinking, ..Prompt::default() };
    let mut policy = common::open_policy_for(ctx, ctx.input("policy"), &set)?;
    let seed = ctx.seed("replies");
    let total = questions.len() * exam.samples;
    // 1. every (question, sample) in order
    let mut replies: Vec<Reply> = Vec::with_capacity(total);
    while replies.len() < total {
        let first = replies.len();
        let last = (first + policy.width().clamp(1, CHUNK)).min(total);
        replies.extend(common::kept(ctx, &format!("replies-{first}"), || {
            ask(ctx, &mut *policy, exam, questions, marking, first..last, seed)
        })?);
        let right = replies.iter().filter(|r| r.correct).count() as f64 / replies.len() as f64;
        ctx.progress(replies.len() as u64, total as u64, "replies", format!("right {:.0} %", 100.0 * right));
    }
    common::note_policy(ctx, &*policy);
    // 2. what came of it
    let mut answered = Vec::with_capacity(questions.len());
    let mut replies = replies.into_iter();
    for q in questions {
        answered.push(Answered {
            v: ANSWERS_VERSION,
            id: q.id.clone(),
            kind: q.kind.clone(),
            question: q.question.clone(),
            options: q.options.clone(),
            reference: q.reference.clone(),
            replies: replies.by_ref().take(exam.samples).collect(),
        });
    }
    artifact::write(ctx.output("answers"), &answered)?;
    let scores = count(exam, questions, &answered, marking, ctx.seed("bootstrap"));
    for (name, value) in &scores.metrics {
        if let Some(value) = value {
            ctx.metric(0, name, *value);
        }
    }
    scores.write(ctx.output("scores"))
}

/// Asks for replies `range` of all (question, sample) pairs.
fn ask(
    ctx: &OpContext<'_>,
    policy: &mut dyn Policy,
    exam: &Exam<'_>,
    questions: &[Question],
    marking: &dyn Marking,
    range: std::ops::Range<usize>,
    seed: u64,
) -> Result<Vec<Reply>, OpError> {
    let sampling = exam.filters.sampling(exam.temperature, exam.max_tokens);
    let pairs: Vec<(usize, usize)> = range.map(|i| (i / exam.samples, i % exam.samples)).collect();
    let mut replies = Vec::with_capacity(pairs.len());
    for pairs in pairs.chunks(policy.width().max(1)) {
        // the samples of one question share its conversation
        let (mut sessions, mut asks) = (Vec::new(), Vec::with_capacity(pairs.len()));
        let mut open = None;
        for (index, sample) in pairs {
            let session = match open {
                Some((before, session)) if before == *index => session,
                _ => {
                    let mut messages: Vec<Message> = exam.system.map(Message::system).into_iter().collect();
                    messages.push(Message::user(&*questions[*index].prompt));
                    let session = open_with(policy, &messages, exam.max_tokens).map_err(|e| match e {
                        OpError::Failed { message, .. } => OpError::with_help(
                            format!("the question `{}` cannot be put: {message}", questions[*index].id),
                            "lower `max_tokens`, or take a policy with more positions",
                        ),
                        e => e,
                    })?;
                    sessions.push(session);
                    open = Some((*index, session));
                    session
                }
            };
            let rng = Rng::at(seed, &[*index as u64, *sample as u64]);
            asks.push(Ask { session, allowed: &[], sampling: &sampling, rng, keep: false });
        }
        let answers = policy.answer(&asks, &|| ctx.stopping())?;
        sessions.into_iter().for_each(|session| policy.close(session));
        for ((index, _), answer) in pairs.iter().zip(answers) {
            let question = &questions[*index];
            let extracted = answer.ended().map(|text| marking.extract(question, text));
            let correct = matches!(&extracted, Some(Ok(found)) if marking.equal(&question.reference, found));
            let (extracted, malformed) = match extracted {
                Some(Ok(found)) => (Some(found), None),
                Some(Err(why)) => (None, Some(why)),
                None => (None, None),
            };
            let finish = answer.finish.into();
            replies.push(Reply { text: answer.text, extracted, correct, finish, malformed });
        }
    }
    Ok(replies)
}

/// Counts. Intervals are over questions: a percentile bootstrap of their means.
fn count(exam: &Exam<'_>, questions: &[Question], answered: &[Answered], marking: &dyn Marking, seed: u64) -> Scores {
    let n = exam.samples;
    let right: Vec<usize> = answered.iter().map(|a| a.replies.iter().filter(|r| r.correct).count()).collect();
    let means: Vec<f64> = right.iter().map(|c| *c as f64 / n as f64).collect();
    let mut metrics: BTreeMap<String, Option<f64>> = BTreeMap::new();
    let mut intervals = BTreeMap::new();
    let mut add = |name: String, values: &[f64]| {
        if let Some(bounds) = stats::bootstrap(values, RESAMPLES, seed) {
            intervals.insert(name.clone(), Interval::new(bounds, Method::Bootstrap));
        }
        metrics.insert(name, stats::mean(values));
    };
    add("accuracy".to_owned(), &means);
    // by this name tables compare two policies question by question
    add("success".to_owned(), &means);
    for k in exam.k {
        let values: Option<Vec<f64>> = right.iter().map(|c| pass::pass_at(n, *c, *k)).collect();
        if let Some(values) = values {
            add(format!("pass@{k}"), &values);
        }
    }
    let voted: Vec<f64> = answered
        .iter()
        .map(|a| {
            let given: Vec<Option<&str>> = a.replies.iter().map(|r| r.extracted.as_deref()).collect();
            let chosen = pass::majority(&given, |x, y| marking.equal(x, y));
            f64::from(u8::from(chosen.is_some_and(|place| a.replies[place].correct)))
        })
        .collect();
    if n > 1 {
        add(format!("maj@{n}"), &voted);
    }
    let replies = || answered.iter().flat_map(|a| &a.replies);
    let total = replies().count();
    let share =
        |f: &dyn Fn(&Reply) -> bool| (total > 0).then(|| replies().filter(|r| f(r)).count() as f64 / total as f64);
    metrics.insert("truncated".to_owned(), share(&|r| r.finish != Ended::End));
    metrics.insert("malformed".to_owned(), share(&|r| r.malformed.is_some()));
    metrics.insert("questions".to_owned(), Some(questions.len() as f64));
    metrics.insert("replies".to_owned(), Some(total as f64));
    let mut scores = Scores::of_metrics(metrics);
    scores.decoding = Some(Decoded::Free);
    scores.episodes = total;
    scores.intervals = intervals;
    scores.by_kind = by_kind(n, questions, &means, &right, seed);
    scores.per_task = questions
        .iter()
        .zip(answered)
        .map(|(q, answered)| TaskScore {
            env: exam.name.to_owned(),
            id: q.id.clone(),
            seed: None,
            kind: q.kind.clone(),
            episodes: answered.replies.iter().map(of_reply).collect(),
            values: BTreeMap::new(),
        })
        .collect();
    scores
}

/// A reply as an episode of one step.
fn of_reply(reply: &Reply) -> EpisodeScore {
    EpisodeScore { success: reply.correct, score: f64::from(u8::from(reply.correct)), steps: 1, failure: None }
}

/// Accuracy by subject and by every other group. With one reply to each question the interval is Wilson's, else the
/// bootstrap over questions: replies to one question are not independent.
fn by_kind(n: usize, questions: &[Question], means: &[f64], right: &[usize], seed: u64) -> BTreeMap<String, KindScore> {
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, q) in questions.iter().enumerate() {
        let kind = Some(q.kind.as_str()).filter(|kind| !kind.is_empty());
        for group in kind.into_iter().chain(q.groups.iter().map(String::as_str)) {
            groups.entry(group).or_default().push(i);
        }
    }
    let scored = groups.into_iter().filter_map(|(group, members)| {
        let values: Vec<f64> = members.iter().map(|i| means[*i]).collect();
        let won = members.iter().map(|i| right[*i]).sum();
        // of a single question nothing can be resampled
        let interval = match n {
            1 => stats::wilson(won, members.len()).map(|bounds| Interval::new(bounds, Method::Wilson)),
            _ => stats::bootstrap(&values, RESAMPLES, seed).map(|bounds| Interval::new(bounds, Method::Bootstrap)),
        };
        let (episodes, success) = (members.len() * n, stats::mean(&values)?);
        let metrics = [("accuracy".to_owned(), Some(success))].into();
        Some((group.to_owned(), KindScore { episodes, success, interval, metrics }))
    });
    scored.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_replaced_once_and_not_inside_what_was_put_in() {
        let text =
            filled("Q: {question}\nO: {options}", &[("{question}", "what is {options}?"), ("{options}", "A) 1")]);
        assert_eq!(text, "Q: what is {options}?\nO: A) 1");
    }

    #[test]
    fn more_passes_than_replies_and_a_missing_placeholder_are_problems() {
        assert!(check(4, &[1, 4], "{question}", &["{question}"]).is_empty());
        let problems = check(4, &[0, 5], "no place", &["{question}"]);
        assert_eq!(problems.len(), 3, "{problems:?}");
    }
}
