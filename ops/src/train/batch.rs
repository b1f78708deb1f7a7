//! Sequences with loss masks, and the packed rows that hold them without padding.
//!
//! Invariants: a target is a token and the row that predicts it, by construction and never by searching text; a row has a
//! target once, however many sequences it belongs to.

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

/// Whose token a target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The number that the sequence was added with.
    pub member: usize,
    /// Which token of that sequence.
    pub token: usize,
}

/// One packed row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    pub ids: Vec<u32>,
    pub packing: Packing,
    pub targets: Vec<Target>,
    /// For each target: whose token it is, in ascending order. Each owner has a part of its coefficient.
    pub owners: Vec<Vec<Owner>>,
}

impl Row {
    /// Adds a segment by hand, with targets of `member` where `learn` says so. A [`Forest`](super::forest::Forest) lays out
    /// rows by itself.
    pub fn add(&mut self, member: usize, parent: Option<usize>, ids: &[u32], learn: impl Fn(usize) -> bool) -> usize {
        let segment = self.segment(parent, ids);
        for (i, (row, id)) in self.packing.rows(segment).zip(ids).enumerate() {
            if learn(i)
                && let Some(before) = self.packing.before(row)
            {
                let token = self.packing.positions()[row] as usize;
                self.targets.push(Target { row: before as u32, id: *id });
                self.owners.push(vec![Owner { member, token }]);
            }
        }
        segment
    }

    /// Adds tokens that continue `parent`, or start a tree.
    pub(super) fn segment(&mut self, parent: Option<usize>, ids: &[u32]) -> usize {
        self.ids.extend_from_slice(ids);
        match parent {
            Some(parent) => self.packing.child(parent, ids.len()),
            None => self.packing.root(ids.len()),
        }
    }
}
