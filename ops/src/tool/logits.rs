//! `actloom model logits`: the logits of given token ids, and what the model would say next, greedily.
//!
//! 1. Read and check the lists ([`read_lists`]).
//! 2. Pack them into rows of some thousand tokens and stream the logits to the file.
//! 3. Continue each list by its likeliest tokens, all lists side by side.
//!
//! Invariants: the numbers of a list do not depend on the other lists; no more than 64 MiB of logits are held at once,
//! whatever the vocabulary; the file appears whole or not at all.

use actloom_engine::op::OpError;
use camino::Utf8Path;
use safetensors::tensor::Dtype;
use serde_json::Value;

use super::{Source, load};
use crate::infer::{self, Request, Sampling};
use crate::model::{Entry, Model, TensorWriter, failed};
use crate::nn::Packing;
use crate::nn::kernel::view;
use crate::rng::Rng;

/// Tokens in one packed row, unless one list is longer.
const ROW: usize = 4096;
/// Bytes of logits held at once.
const HELD: usize = 64 << 20;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    pub source: Source,
    /// JSON: a list of lists of token ids.
    pub tokens: &'a Utf8Path,
    pub out: &'a Utf8Path,
    /// New ids for each list; 0 writes none.
    pub greedy: usize,
}

/// What was written.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    pub lists: usize,
    pub tokens: usize,
    pub vocabulary: usize,
    pub greedy: usize,
    pub device: String,
    pub bytes: u64,
}

/// Writes `logits.0`, `logits.1`, ... ([t, v], float32) and, where asked for, `greedy.0`, ... (int64).
///
/// # Errors
/// Names the list and the position of an id that the model does not have; the model's and the file system's.
pub fn logits(job: &Job<'_>) -> Result<Report, OpError> {
    let lists = read_lists(job.tokens)?;
    check_out(job)?;
    let (model, device) = load(&job.source)?;
    check(&lists, &model, job.greedy)?;

    let v = model.config.vocab_size;
    let mut entries = Vec::new();
    for (i, ids) in lists.iter().enumerate() {
        entries.push(Entry { name: format!("logits.{i}"), dtype: Dtype::F32, shape: vec![ids.len(), v] });
        if job.greedy > 0 {
            entries.push(Entry { name: format!("greedy.{i}"), dtype: Dtype::I64, shape: vec![job.greedy] });
        }
    }
    let mut writer = TensorWriter::create(job.out, entries)?;
    match write(job, &lists, &model, &mut writer) {
        Ok(()) => writer.finish()?,
        Err(error) => {
            writer.abandon();
            return Err(error);
        }
    }
    Ok(Report {
        lists: lists.len(),
        tokens: lists.iter().map(Vec::len).sum(),
        vocabulary: v,
        greedy: job.greedy,
        device,
        bytes: fs_err::metadata(job.out)?.len(),
    })
}

fn write(job: &Job<'_>, lists: &[Vec<u32>], model: &Model, writer: &mut TensorWriter) -> Result<(), OpError> {
    let mut first = 0;
    while first < lists.len() {
        let mut tokens = 0;
        let fits = lists[first..].iter().take_while(|ids| {
            tokens += ids.len();
            tokens <= ROW || tokens == ids.len()
        });
        let next = first + fits.count();
        write_row(first, &lists[first..next], model, writer)?;
        first = next;
    }
    if job.greedy > 0 {
        for (i, ids) in continue_greedily(model, lists, job.greedy)?.into_iter().enumerate() {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| i64::from(*id).to_le_bytes()).collect();
            writer.write(&format!("greedy.{i}"), &bytes)?;
        }
    }
    Ok(())
}

/// A file error or a tensor error on the way out of the model.
struct Failed(OpError);

impl From<candle_core::Error> for Failed {
    fn from(error: candle_core::Error) -> Self {
        Failed(failed(error))
    }
}

/// One packed row: lists `first`, `first + 1`, ...
fn write_row(first: usize, lists: &[Vec<u32>], model: &Model, writer: &mut TensorWriter) -> Result<(), OpError> {
    let ids = lists.concat();
    let mut packing = Packing::new();
    for list in lists {
        packing.root(list.len());
    }
    let v = model.config.vocab_size;
    let rows = (HELD / (4 * v)).max(1);
    // which list the next row of logits belongs to, and how many rows that list still misses
    let (mut list, mut left) = (0, lists[0].len());
    model
        .each_logits(&ids, &packing, rows, |part| {
            let host = part.to_device(&candle_core::Device::Cpu)?;
            let values = view(&host)?;
            let mut values = &values[..];
            while !values.is_empty() {
                if left == 0 {
                    list += 1;
                    left = lists[list].len();
                }
                let take = left.min(values.len() / v);
                let (here, rest) = values.split_at(take * v);
                let bytes: Vec<u8> = here.iter().flat_map(|x| x.to_le_bytes()).collect();
                writer.write(&format!("logits.{}", first + list), &bytes).map_err(Failed)?;
                left -= take;
                values = rest;
            }
            Ok(())
        })
        .map_err(|Failed(error)| error)
}

/// Refuses to put the result in the place of anything but a file of its own.
fn check_out(job: &Job<'_>) -> Result<(), OpError> {
    let Ok(found) = std::fs::metadata(job.out) else { return Ok(()) };
    if !found.is_file() {
        return Err(OpError::failed(format!("`{}` is there and is no file, expected a file's name", job.out)));
    }
    let same = |a: &Utf8Path, b: &Utf8Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same(job.out, job.tokens) {
        return Err(OpError::failed(format!(
            "`{}` is the file of tokens, expected another name for the result",
            job.out
        )));
    }
    Ok(())
}

/// The `n` likeliest next tokens of every list, end ids ignored; of equal logits the lowest id.
fn continue_greedily(model: &Model, lists: &[Vec<u32>], n: usize) -> Result<Vec<Vec<u32>>, OpError> {
    /// Nothing ends an answer, and no text is wanted.
    struct Endless;
    impl infer::Tokens for Endless {
        fn eos(&self) -> &[u32] {
            &[]
        }
        fn decode(&self, _: &[u32]) -> Result<String, OpError> {
            Ok(String::new())
        }
    }
    let request = |ids: &Vec<u32>| Request::new(ids.as_slice(), Sampling::plain(0.0, n), Rng::new(0, 0));
    let done = infer::complete(model, &Endless, lists.iter().map(request).collect(), &|| false)?;
    let ids: Vec<Vec<u32>> = done.into_iter().map(|completion| completion.ids).collect();
    if let Some(short) = ids.iter().find(|ids| ids.len() != n) {
        panic!("BUG: {} tokens came back, {n} were asked for", short.len());
    }
    Ok(ids)
}

/// Reads a JSON list of lists of token ids.
///
/// # Errors
/// Names the list, from 0, and the position of what is no token id.
pub fn read_lists(path: &Utf8Path) -> Result<Vec<Vec<u32>>, OpError> {
    let wrong = |what: String| {
        OpError::with_help(
            format!("cannot use `{path}`: {what}"),
            "expected a list of lists of token ids: [[1, 2, 3], [4]]",
        )
    };
    let json: Value =
        serde_json::from_slice(&fs_err::read(path)?).map_err(|error| wrong(format!("not JSON: {error}")))?;
    let Some(lists) = json.as_array() else { return Err(wrong("not a list".to_owned())) };
    if lists.is_empty() {
        return Err(wrong("it has no list".to_owned()));
    }
    let mut out = Vec::with_capacity(lists.len());
    for (i, list) in lists.iter().enumerate() {
        let Some(list) = list.as_array() else { return Err(wrong(format!("entry {i} is not a list"))) };
        if list.is_empty() {
            return Err(wrong(format!("list {i} is empty")));
        }
        let id = |(position, id): (usize, &Value)| {
            let whole = id.as_u64().and_then(|id| u32::try_from(id).ok());
            whole.ok_or_else(|| wrong(format!("`{id}` at position {position} of list {i} is not a token id")))
        };
        out.push(list.iter().enumerate().map(id).collect::<Result<Vec<u32>, OpError>>()?);
    }
    Ok(out)
}

/// What the model cannot take, before anything is computed.
fn check(lists: &[Vec<u32>], model: &Model, greedy: usize) -> Result<(), OpError> {
    let (v, longest) = (model.config.vocab_size, model.config.max_positions);
    for (i, list) in lists.iter().enumerate() {
        if let Some(position) = list.iter().position(|id| *id as usize >= v) {
            let id = list[position];
            return Err(OpError::failed(format!(
                "token id {id} at position {position} of list {i} is not in the vocabulary, expected an id below {v}"
            )));
        }
        let n = list.len();
        if n > longest {
            return Err(OpError::failed(format!("list {i} has {n} tokens, the model takes {longest}")));
        }
        if n + greedy > longest {
            return Err(OpError::failed(format!(
                "list {i} has {n} tokens, and {greedy} more are asked for; the model takes {longest}"
            )));
        }
    }
    Ok(())
}
