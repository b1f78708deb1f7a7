//! Sequences with loss masks, packed into rows without padding.
//!
//! Invariants: a target is a token and the row that predicts it, by construction and never by searching text; the
//! packing of a step is a function of its sequences' lengths; a step's loss is divided by the target count of the whole
//! step, so gradient accumulation equals the full batch.

use std::ops::Range;

use crate::model::Target;
use crate::nn::Packing;

/// One training sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    pub ids: Vec<u32>,
    /// Which tokens count in the loss; the first never does, for nothing predicts it.
    pub learn: Vec<bool>,
    /// Its end was cut off.
    pub cut: bool,
}

impl Example {
    /// Appends tokens.
    pub fn push(&mut self, ids: &[u32], learn: bool) {
        self.ids.extend_from_slice(ids);
        self.learn.resize(self.ids.len(), learn);
    }

    /// Cuts off what is beyond `limit` tokens.
    pub fn truncate(&mut self, limit: usize) {
        self.cut |= self.ids.len() > limit;
        self.ids.truncate(limit);
        self.learn.truncate(limit);
    }

    /// Tokens that count in the loss.
    pub fn targets(&self) -> usize {
        self.learn.iter().skip(1).filter(|l| **l).count()
    }
}

/// One packed row.
#[derive(Clone, Debug, Default)]
pub struct Row {
    pub ids: Vec<u32>,
    pub packing: Packing,
    pub targets: Vec<Target>,
    /// For each sequence of the row: its index in the step and its targets.
    pub members: Vec<(usize, Range<usize>)>,
}

impl Row {
    /// Adds a segment's tokens, with targets where `learn` says so, under the index `member`.
    pub fn add(&mut self, member: usize, parent: Option<usize>, ids: &[u32], learn: impl Fn(usize) -> bool) -> usize {
        let segment = match parent {
            Some(parent) => self.packing.child(parent, ids.len()),
            None => self.packing.root(ids.len()),
        };
        let first = self.targets.len();
        for (i, (row, id)) in self.packing.rows(segment).zip(ids).enumerate() {
            if learn(i)
                && let Some(before) = self.packing.before(row)
            {
                self.targets.push(Target { row: before as u32, id: *id });
            }
        }
        self.ids.extend_from_slice(ids);
        self.members.push((member, first..self.targets.len()));
        segment
    }
}

/// Packs examples into rows of at most `limit` tokens (a longer example gets a row of its own), in order.
pub fn pack(examples: &[&Example], limit: usize) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (member, example) in examples.iter().enumerate() {
        if example.targets() == 0 {
            continue;
        }
        let fits = rows.last().is_some_and(|r| r.ids.len() + example.ids.len() <= limit);
        if !fits {
            rows.push(Row::default());
        }
        if let Some(row) = rows.last_mut() {
            row.add(member, None, &example.ids, |i| example.learn[i]);
        }
    }
    rows
}
